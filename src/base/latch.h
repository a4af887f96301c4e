// A mutual exclusion for sections that mostly take well below a microsecond and are entered all the time. Compared
// with std::mutex: giving it back is an ordinary store. A locked instruction there would wait until everything that
// the section wrote can be seen, and the last thing that the engine writes is a message to a peer, in a line that the
// peer has read: that wait is as long as the message's own way. Whoever does not get it yields, then naps, since
// nobody could know that a sleeper had to be woken.
#pragma once

#include <atomic>

namespace ringfold::base {

class Latch {
 public:
  void lock() {
    if (!try_lock()) wait();
  }
  bool try_lock() {
    return !held_.load(std::memory_order_relaxed) && !held_.exchange(true, std::memory_order_acquire);
  }
  void unlock() { held_.store(false, std::memory_order_release); }
  // Does another thread wait for it? A holder that takes it back at once would shut that one out.
  bool contended() const { return waiting_.load(std::memory_order_relaxed) > 0; }

 private:
  void wait();

  std::atomic<bool> held_{false};
  std::atomic<int> waiting_{0};
};

// Holds a latch while it lives, but for the times that its owner gives it away. (std::unique_lock does the same with
// a check and a call for each.)
class LatchLock {
 public:
  explicit LatchLock(Latch& latch) : latch_(latch) { latch_.lock(); }
  ~LatchLock() {
    if (held_) latch_.unlock();
  }
  LatchLock(const LatchLock&) = delete;
  LatchLock& operator=(const LatchLock&) = delete;
  void lock() {
    latch_.lock();
    held_ = true;
  }
  void unlock() {
    held_ = false;
    latch_.unlock();
  }

 private:
  Latch& latch_;
  bool held_ = true;
};

}  // namespace ringfold::base
