#include "transports/ucx/library.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <signal.h>
#include <ucs/debug/log_def.h>

#include <cstdarg>
#include <cstdlib>
#include <mutex>
#include <utility>

#include "base/log.h"

namespace ringfold::transport::ucx {
namespace {

ucs_log_func_rc_t keep_words(const char*, unsigned, const char*, ucs_log_level_t level,
                             const ucs_log_component_config_t*, const char* format, va_list arguments) {
  if (Listening::depth() == 0 || level > UCS_LOG_LEVEL_WARN) return UCS_LOG_FUNC_RC_CONTINUE;
  if (level == UCS_LOG_LEVEL_FATAL) return UCS_LOG_FUNC_RC_CONTINUE;  // UCX ends the process: its own words are due
  char text[1024];
  std::vsnprintf(text, sizeof text, format, arguments);
  Listening::words() = text;
  log::info("UCX: {}", text);
  return UCS_LOG_FUNC_RC_STOP;
}

void* symbol(void* library, const char* name, std::string* missing) {
  void* found = ::dlsym(library, name);
  if (found == nullptr && missing->empty()) *missing = name;
  return found;
}

Result<const Library*> load() {
  static Library table;
  const bool ours = ::dlopen("libucs.so.0", RTLD_NOW | RTLD_NOLOAD) == nullptr;
  void* ucp = ::dlopen("libucp.so.0", RTLD_NOW | RTLD_LOCAL);
  if (ucp == nullptr) {
    return Status(
        Code::kUnavailable,
        fmt::format("UCX is not there ({}): install libucx0, or the ucx package of your system", ::dlerror()));
  }
  std::string missing;
#define RF_LOAD(name) table.name = reinterpret_cast<decltype(table.name)>(symbol(ucp, #name, &missing));
  RF_UCP_FUNCTIONS(RF_LOAD)
#undef RF_LOAD
  // Of libucs, which libucp has loaded: dlsym looks there, too.
  table.ucs_status_string =
      reinterpret_cast<decltype(table.ucs_status_string)>(symbol(ucp, "ucs_status_string", &missing));
  auto* push_handler =
      reinterpret_cast<decltype(&::ucs_log_push_handler)>(symbol(ucp, "ucs_log_push_handler", &missing));
  if (!missing.empty()) {
    return Status(Code::kUnavailable,
                  fmt::format("the UCX of this system has no {}: version 1.13 is needed", missing));
  }
  push_handler(keep_words);
  // UCX takes over the handlers of SIGSEGV and others when it is loaded. A library has no business there, unless the
  // user says so; a process that had UCX before keeps what it has.
  auto* disable = reinterpret_cast<void (*)(int)>(::dlsym(ucp, "ucs_debug_disable_signal"));
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

int& Listening::depth() {
  thread_local int depth = 0;
  return depth;
}

}  // namespace ringfold::transport::ucx
