// Time as Ringfold sees it: one monotone clock, and a moment by which a call must have returned.
#pragma once

#include <time.h>

#include <algorithm>
#include <chrono>

namespace ringfold::base {

using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;
using Duration = Clock::duration;

inline double seconds_of(Duration d) { return std::chrono::duration<double>(d).count(); }
inline Duration duration_of(double seconds) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

struct Deadline {
  TimePoint at = TimePoint::max();

  static Deadline never() { return {}; }
  static Deadline after(Duration d) { return {Clock::now() + d}; }
  // The same within a tick of the system's, some milliseconds, never earlier, and five times faster.
  static Deadline about_after(Duration d);
  bool passed() const { return at != TimePoint::max() && Clock::now() >= at; }
  // Never negative, and never more than a day, so that it can be added to the clock and given to a system call.
  Duration left() const {
    return at == TimePoint::max() ? std::chrono::hours(24)
                                  : std::clamp<Duration>(at - Clock::now(), Duration::zero(), std::chrono::hours(24));
  }
  // The earlier of this deadline and `d` from now.
  Deadline within(Duration d) const { return {std::min(at, Clock::now() + d)}; }
};

inline Deadline Deadline::about_after(Duration d) {
#if defined(CLOCK_MONOTONIC_COARSE)
  static const Duration kTick = [] {
    timespec tick{};
    clock_getres(CLOCK_MONOTONIC_COARSE, &tick);
    return std::chrono::seconds(tick.tv_sec) + std::chrono::nanoseconds(tick.tv_nsec);
  }();
  timespec now{};  // of the last tick, on the clock that steady_clock reads
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return {TimePoint(std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec)) + kTick + d};
#else
  return after(d);
#endif
}

}  // namespace ringfold::base
