// The handle that PyTorch holds on a call of Ringfold's, and the threads that complete its futures.
#pragma once

#include <torch/csrc/distributed/c10d/Work.hpp>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "ringfold/work.h"
#include "torch/device.h"
#include "torch/tensors.h"

namespace ringfold::pytorch {

// Runs what hangs on futures, on threads of its own: that is user code, which may wait for a further call, while the
// thread that completed this one is needed to move it. There are as many as such waits need. Any thread.
class Completer : public std::enable_shared_from_this<Completer> {
 public:
  void post(std::function<void()> task);
  // Lets the threads finish what they have, and waits for them; what is posted later runs where it is posted. To be
  // called before the last reference goes.
  void stop();

 private:
  void run();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;  // each holds a reference
  size_t idle_ = 0;
  bool stopping_ = false;
};

// Completes after the results are in the tensors. wait() drives the runtime on the calling thread; of a call on
// device tensors it has the current stream wait instead, and the program only if it is given a time.
class CallWork : public c10d::Work {
 public:
  // `title` is what profilers show; `inputs` are for them only.
  CallWork(int rank, c10d::OpType type, const char* title, const Tensors& inputs, Tensors outputs,
           std::shared_ptr<Completer> completer);

  // Once: from now on the call is this handle's. `after` runs when the call has succeeded, and may throw; it holds
  // the tensors that the call uses.
  void follow(ringfold::Work call, std::function<void()> after);
  // The same for a call on device tensors, whose results are in them at the mark.
  void follow(ringfold::Work call, std::optional<DeviceMark> mark);

  bool isCompleted() override;
  bool wait(std::chrono::milliseconds timeout = kNoTimeout) override;
  void synchronize() override {
    if (mark_) mark_->hold_current_stream();
  }
  void abort() override;
  int sourceRank() const override { return source_; }
  std::vector<at::Tensor> result() override { return outputs_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override;

  std::function<void()> on_abort;  // of the group

 private:
  using Future = c10::intrusive_ptr<c10::ivalue::Future>;
  void complete(const Status& status);
  void complete(const Future& future);
  void wait_for_call(std::chrono::milliseconds timeout);

  const std::string operation_;
  Tensors outputs_;
  const std::shared_ptr<Completer> completer_;
  ringfold::Work call_;
  std::function<void()> after_;
  std::optional<DeviceMark> mark_;  // of a call on device tensors
  std::atomic<int> source_{-1};
  std::mutex future_mutex_;
  Future future_;  // null: nobody has asked for it
  bool complete_ = false;
};

}  // namespace ringfold::pytorch
