#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <mutex>

namespace ringfold::log {
namespace {

constexpr const char* kPattern = "%H:%M:%S.%e %l %v";

struct State {
  std::shared_ptr<spdlog::logger> logger =
      std::make_shared<spdlog::logger>("ringfold", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  std::mutex mutex;
  std::string prefix;
  std::function<bool(Level, std::string_view)> observer;

  State() {
    logger->set_pattern(kPattern);
    logger->set_level(spdlog::level::warn);
    if (const char* name = std::getenv("RINGFOLD_LOG")) logger->set_level(spdlog::level::from_str(name));
  }
};

// Never destroyed: threads may log until the process ends.
State& state() {
  static State* const kState = new State;
  return *kState;
}

spdlog::level::level_enum to_spdlog(Level level) {
  return level == Level::kOff ? spdlog::level::off : static_cast<spdlog::level::level_enum>(level);
}

}  // namespace

bool enabled(Level level) { return state().logger->should_log(to_spdlog(level)); }

void write(Level level, std::string_view line) {
  auto& s = state();
  std::string text;
  {
    std::lock_guard lock(s.mutex);
    if (level >= Level::kWarn && s.observer && !s.observer(level, line)) return;
    text = s.prefix.empty() ? std::string(line) : s.prefix + ": " + std::string(line);
  }
  s.logger->log(to_spdlog(level), text);
}

void set_level(Level level) { state().logger->set_level(to_spdlog(level)); }

bool set_level(std::string_view name) {
  auto level = spdlog::level::from_str(std::string(name));
  if (level == spdlog::level::off && name != "off") return false;
  state().logger->set_level(level);
  return true;
}

void set_prefix(std::string prefix) {
  std::lock_guard lock(state().mutex);
  state().prefix = std::move(prefix);
}

void set_observer(std::function<bool(Level, std::string_view)> observer) {
  std::lock_guard lock(state().mutex);
  state().observer = std::move(observer);
}

}  // namespace ringfold::log
