#include "comm/elsewhere.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "comm/thread.h"

namespace ringfold::comm {
namespace {

class Elsewhere {
 public:
  Elsewhere() : thread_(start_thread("ringfold-end", [this] { run(); })) {}
  ~Elsewhere() {
    {
      const std::lock_guard lock(mutex_);
      over_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }
  void take(std::function<void()> task) {
    {
      const std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    changed_.notify_one();
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return over_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      auto task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      task = nullptr;
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool over_ = false;
  std::thread thread_;
};

}  // namespace

void run_elsewhere(std::function<void()> task) {
  static Elsewhere elsewhere;
  elsewhere.take(std::move(task));
}

}  // namespace ringfold::comm
