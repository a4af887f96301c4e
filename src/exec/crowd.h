// Is the processor that a waiter would spin on wanted by others?
//
// By its affinity a rank may have a processor for itself while others run there all the same: ranks of another
// container, which count as another host; other programs. A rank that spins then keeps its core from the very rank
// that it waits for. What yields take tells: with nobody else on the core 0.2 to 0.3 us; 1 us and more if somebody
// had a turn (Intel Xeon, Linux 6.18). Who keeps the core for the rest of a time slice, milliseconds, computes: each
// yield costs a slice there, and spinning saves some.
//
// With two hosts of two ranks on two cores, 64 B of all_reduce took 28 to 48 us with spinning, 12 to 25 without.
#pragma once

#include <algorithm>
#include <chrono>

#include "base/clock.h"

namespace ringfold::exec {

class Crowd {
 public:
  static constexpr base::Duration kTurn = std::chrono::nanoseconds(800);
  static constexpr base::Duration kSlice = std::chrono::milliseconds(1);
  static constexpr int kForgotten = 64;  // yields to nobody in a row

  // A yield took so long.
  void yielded(base::Duration away) {
    if (away < kTurn) {
      alone_ = std::min(alone_ + 1, kForgotten);
    } else {
      alone_ = away < kSlice ? 0 : kForgotten;
    }
  }
  bool here() const { return alone_ < kForgotten; }

 private:
  int alone_ = kForgotten;
};

}  // namespace ringfold::exec
