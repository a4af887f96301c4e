#include "base/latch.h"

#include <sched.h>

#include <chrono>
#include <thread>

namespace ringfold::base {

void Latch::wait() {
  constexpr int kYields = 1000;
  constexpr auto kNap = std::chrono::microseconds(50);
  waiting_.fetch_add(1, std::memory_order_relaxed);
  for (int turn = 0; !try_lock(); ++turn) {
    if (turn < kYields) {
      sched_yield();
    } else {
      std::this_thread::sleep_for(kNap);
    }
  }
  waiting_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace ringfold::base
