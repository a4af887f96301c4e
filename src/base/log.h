// Log lines: one logger, to standard error, with the level from RINGFOLD_LOG (trace, debug, info, warn, error, off;
// default warn). Any thread may log. Call sites: log::warn("rank {}: ...", r).
#pragma once

#include <fmt/format.h>

#include <functional>
#include <string>
#include <string_view>

namespace ringfold::log {

enum class Level { kTrace, kDebug, kInfo, kWarn, kError, kOff };

bool enabled(Level level);
void write(Level level, std::string_view line);
void set_level(Level level);
bool set_level(std::string_view name);  // false when the name is unknown
// A prefix for every line of this process, such as "rank 3".
void set_prefix(std::string prefix);
// Sees every line at kWarn or above before it is written; returning false swallows it. Tests use this to fail on
// unexpected lines. Not to be changed while other threads log.
void set_observer(std::function<bool(Level, std::string_view)> observer);

template <typename... A>
void debug(fmt::format_string<A...> f, A&&... a) {
  if (enabled(Level::kDebug)) write(Level::kDebug, fmt::format(f, std::forward<A>(a)...));
}
template <typename... A>
void info(fmt::format_string<A...> f, A&&... a) {
  if (enabled(Level::kInfo)) write(Level::kInfo, fmt::format(f, std::forward<A>(a)...));
}
template <typename... A>
void warn(fmt::format_string<A...> f, A&&... a) {
  if (enabled(Level::kWarn)) write(Level::kWarn, fmt::format(f, std::forward<A>(a)...));
}
template <typename... A>
void error(fmt::format_string<A...> f, A&&... a) {
  if (enabled(Level::kError)) write(Level::kError, fmt::format(f, std::forward<A>(a)...));
}

}  // namespace ringfold::log
