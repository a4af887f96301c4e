// Calls of a library that block for as long as they like: whoever asked waits until its deadline only.
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "ringfold/status.h"

namespace ringfold::comm {

// One call at a time, each on a thread of its own. A call that did not return by its deadline fails with kTimeout,
// and so does every one after it, at once: what the library knows of that call is unsure from then on. Any thread.
// Must outlive a call that is stuck: keep it to the end of the process.
class BlockingCalls {
 public:
  explicit BlockingCalls(std::string whose) : whose_(std::move(whose)) {}

  template <typename T>
  Result<T> call(double timeout_s, std::function<Result<T>()> what) {
    std::lock_guard lock(mutex_);
    if (stuck_) return Status(Code::kTimeout, fmt::format("{} has not answered an earlier call", whose_));
    auto task = std::make_shared<std::packaged_task<Result<T>()>>(std::move(what));
    auto result = task->get_future();
    std::thread([task] { (*task)(); }).detach();
    if (result.wait_for(std::chrono::duration<double>(timeout_s)) == std::future_status::ready) return result.get();
    stuck_ = true;
    return Status(Code::kTimeout, fmt::format("{} has not answered within {:.3g} s", whose_, timeout_s));
  }

  // For the end: on the caller's thread.
  void unless_stuck(const std::function<void()>& what) {
    std::lock_guard lock(mutex_);
    if (!stuck_) what();
  }

 private:
  const std::string whose_;
  std::mutex mutex_;
  bool stuck_ = false;
};

}  // namespace ringfold::comm
