// Time as Ringfold sees it: one monotone clock, and a moment by which a call must have returned.
#pragma once

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
  bool passed() const { return at != TimePoint::max() && Clock::now() >= at; }
  // Never negative, and never more than a day, so that it can be added to the clock and given to a system call.
  Duration left() const {
    return at == TimePoint::max() ? std::chrono::hours(24)
                                  : std::clamp<Duration>(at - Clock::now(), Duration::zero(), std::chrono::hours(24));
  }
  // The earlier of this deadline and `d` from now.
  Deadline within(Duration d) const { return {std::min(at, Clock::now() + d)}; }
};

}  // namespace ringfold::base
