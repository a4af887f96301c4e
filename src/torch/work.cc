#include "torch/work.h"

#include <exception>

namespace ringfold::pytorch {

void Completer::post(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    if (!stopping_) {
      tasks_.push_back(std::move(task));
      if (tasks_.size() <= idle_) return changed_.notify_one();
      threads_.emplace_back([self = shared_from_this()] { self->run(); });
      return;
    }
  }
  task();
}

void Completer::stop() {
  std::vector<std::thread> threads;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    threads.swap(threads_);
  }
  changed_.notify_all();
  for (std::thread& thread : threads) {
    if (thread.get_id() == std::this_thread::get_id()) {
      thread.detach();  // user code on this very thread let the group go
    } else {
      thread.join();
    }
  }
}

void Completer::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    ++idle_;
    changed_.wait(lock, [&] { return stopping_ || !tasks_.empty(); });
    --idle_;
    if (tasks_.empty()) return;
    auto task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    task = nullptr;  // what it held may be user code's, too
    lock.lock();
  }
}

CallWork::CallWork(int rank, c10d::OpType type, const char* title, const Tensors& inputs, Tensors outputs,
                   std::shared_ptr<Completer> completer)
    : c10d::Work(rank, type, title, inputs),
      operation_(std::string(title).substr(std::string("ringfold:").size())),
      outputs_(std::move(outputs)),
      completer_(std::move(completer)) {}

void CallWork::follow(ringfold::Work call, std::function<void()> after) {
  call_ = std::move(call);
  after_ = std::move(after);
  auto self = c10::intrusive_ptr<CallWork>::unsafe_reclaim_from_nonowning(this);
  call_.then([self = std::move(self)](const Status& status) { self->complete(status); });
}

void CallWork::follow(ringfold::Work call, std::optional<DeviceMark> mark) {
  mark_.emplace(*std::move(mark));
  // A future of devices is complete when its results are on their way: who uses them waits on the device.
  future_ = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()),
                                                     std::vector<c10::Device>{mark_->stream().device()});
  const auto future = future_;
  const bool failed = call.test() && !call.wait().ok();
  if (failed) {
    future->setError(std::make_exception_ptr(Error(operation_, call.wait())));
  } else {
    const c10::StreamGuard guard(mark_->stream());
    future->markCompleted(c10::IValue(outputs_));
  }
  follow(std::move(call), std::function<void()>());
}

// On whichever thread completed the call; the future goes to another one.
void CallWork::complete(const Status& status) {
  std::exception_ptr error;
  if (status.ok()) {
    try {
      source_ = call_.source();
      if (after_) after_();
    } catch (...) {
      error = std::current_exception();
    }
  } else {
    error = std::make_exception_ptr(Error(operation_, status));
  }
  after_ = nullptr;  // the tensors are the caller's again before anybody is told
  finish(error);
  Future future;
  {
    const std::lock_guard lock(future_mutex_);
    complete_ = true;
    future = future_;
  }
  if (!future || mark_) return;
  auto self = c10::intrusive_ptr<CallWork>::unsafe_reclaim_from_nonowning(this);
  completer_->post([self = std::move(self), future = std::move(future)] { self->complete(future); });
}

void CallWork::complete(const Future& future) {
  if (auto error = exception()) {
    future->setError(error);
  } else {
    future->markCompleted(c10::IValue(outputs_));
  }
}

c10::intrusive_ptr<c10::ivalue::Future> CallWork::getFuture() {
  std::unique_lock lock(future_mutex_);
  if (future_) return future_;
  future_ = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
  auto future = future_;
  const bool now = complete_;
  lock.unlock();
  if (now) complete(future);
  return future;
}

bool CallWork::isCompleted() {
  if (!call_.test()) return false;
  const std::lock_guard lock(mutex_);
  return completed_ && (!mark_ || exception_ || mark_->passed());
}

bool CallWork::wait(std::chrono::milliseconds timeout) {
  // Whoever asks where a message came from does so next.
  const bool from_any = retrieveOpType() == c10d::OpType::RECVANYSOURCE;
  if (!mark_ || from_any || timeout != kNoTimeout || call_.test()) wait_for_call(timeout);
  synchronize();
  return true;
}

void CallWork::wait_for_call(std::chrono::milliseconds timeout) {
  if (timeout == kNoTimeout) {
    (void)call_.wait();
  } else {
    const Status status = call_.wait_for(std::chrono::duration<double>(timeout).count());
    if (status.code() == Code::kTimeout && !call_.test()) throw Error(operation_, status);
  }
  // The results may still be on their way into the tensors, on the thread that completed the call.
  std::unique_lock lock(mutex_);
  cv_.wait(lock, [&] { return completed_; });
  if (exception_) std::rethrow_exception(exception_);
}

void CallWork::abort() {
  if (on_abort) on_abort();
}

}  // namespace ringfold::pytorch
