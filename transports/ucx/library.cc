#include "transports/ucx/library.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <signal.h>
#include <ucs/debug/log_def.h>

#include <cstdarg>
#include <cstdlib>
#include <mutex>
#include <utility>

#include "base/loaded.h"
#include "base/log.h"

namespace ringfold::transport::ucx {
namespace {

ucs_log_func_rc_t keep_words(const char*, unsigned, const char*, ucs_log_level_t level,
                             const ucs_log_component_config_t*, const char* format, va_list arguments) {
  if (!Listening::here() || level > UCS_LOG_LEVEL_WARN) return UCS_LOG_FUNC_RC_CONTINUE;
  if (level == UCS_LOG_LEVEL_FATAL) return UCS_LOG_FUNC_RC_CONTINUE;  // UCX ends the process: its own words are due
  char text[1024];
  std::vsnprintf(text, sizeof text, format, arguments);
  Listening::words() = text;
  log::info("UCX: {}", text);
  return UCS_LOG_FUNC_RC_STOP;
}

Result<const Library*> load() {
  static Library table;
  const bool ours = ::dlopen("libucs.so.0", RTLD_NOW | RTLD_NOLOAD) == nullptr;
  base::Loaded ucp("libucp.so.0");
  if (!ucp.ok()) {
    return Status(
        Code::kUnavailable,
        fmt::format("UCX is not there ({}): install libucx0, or the ucx package of your system", ucp.why()));
  }
#define RF_LOAD(name) ucp.find(table.name, #name);
  RF_UCP_FUNCTIONS(RF_LOAD)
#undef RF_LOAD
  // Of libucs, which libucp has loaded.
  ucp.find(table.ucs_status_string, "ucs_status_string");
  decltype(&::ucs_log_push_handler) push_handler = nullptr;
  ucp.find(push_handler, "ucs_log_push_handler");
  if (!ucp.missing().empty()) {
    return Status(Code::kUnavailable,
                  fmt::format("the UCX of this system has no {}: version 1.13 is needed", ucp.missing()));
  }
  push_handler(keep_words);
  // UCX takes over the handlers of SIGSEGV and others when it is loaded. A library has no business there, unless the
  // user says so; a process that had UCX before keeps what it has.
  void (*disable)(int) = nullptr;
  ucp.find_if_there(disable, "ucs_debug_disable_signal");
  if (ours && disable != nullptr && std::getenv("UCX_HANDLE_ERRORS") == nullptr) {
    for (int signal : {SIGILL, SIGSEGV, SIGBUS, SIGFPE}) disable(signal);
  }
  return &table;
}

}  // namespace

Result<const Library*> library() {
  static const Result<const Library*> loaded = load();
  return loaded;
}

std::string& Listening::words() {
  thread_local std::string words;
  return words;
}

}  // namespace ringfold::transport::ucx
