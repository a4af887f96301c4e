// What is in flight: the part of a collective, send or receive that the user's Work handle sees.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "exec/list.h"
#include "ringfold/status.h"

namespace ringfold::exec {

class Domain;

// Reference counted. Completes exactly once, with the first cause; `status()` may be read once done() is true. All
// else is guarded by the engine's lock.
class Request {
 public:
  Request() = default;
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;
  virtual ~Request() = default;

  bool done() const { return done_.load(std::memory_order_acquire); }
  const Status& status() const { return status_; }
  virtual std::string describe() const = 0;
  // Of a receive that is done: the rank that the message came from; -1 for all else.
  virtual int came_from() const { return -1; }
  // Of a receive that is not done: the rank whose next message may be what it waits for; -1 for all else.
  virtual int listens_to() const { return -1; }

  void ref() { references_.fetch_add(1, std::memory_order_relaxed); }
  // The same while no other thread knows the request: without a locked instruction.
  void ref_unshared() {
    references_.store(references_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }
  void unref() {
    // The last one needs no locked instruction: nobody else can change the count.
    if (references_.load(std::memory_order_acquire) == 1 ||
        references_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      recycle();
    }
  }

  std::shared_ptr<Domain> domain;
  base::Deadline deadline;
  std::vector<std::function<void(const Status&)>> callbacks;
  int waiters = 0;          // threads in Engine::wait for it
  Hook<Request> in_flight;  // of its domain's list

 protected:
  friend class Domain;
  friend class Engine;
  // It is done; the callbacks are for the caller to run, without locks.
  void end(const Status& status, std::vector<std::function<void()>>* deferred) {
    if (!status.ok()) status_ = status;
    for (auto& callback : callbacks) {
      deferred->push_back([callback = std::move(callback), status = status_] { callback(status); });
    }
    callbacks.clear();
    done_.store(true, std::memory_order_release);
  }
  // Called when all is here, before the request is done with a good end.
  virtual void landed() {}
  // Called when nobody refers to the request any more, on any thread.
  virtual void recycle() { delete this; }
  void reset() {
    references_.store(1, std::memory_order_relaxed);
    done_.store(false, std::memory_order_relaxed);
    if (!status_.ok()) status_ = {};
    callbacks.clear();
    waiters = 0;
  }
  Status status_;
  std::atomic<bool> done_{false};

 private:
  std::atomic<uint32_t> references_{1};
};

// Owning handle.
template <typename T>
class Ref {
 public:
  Ref() = default;
  explicit Ref(T* adopted) : p_(adopted) {}
  Ref(const Ref& o) : p_(o.p_) {
    if (p_) p_->ref();
  }
  Ref(Ref&& o) noexcept : p_(std::exchange(o.p_, nullptr)) {}
  template <typename U>
  Ref(const Ref<U>& o) : p_(o.get()) {  // NOLINT
    if (p_) p_->ref();
  }
  Ref& operator=(Ref o) noexcept {
    std::swap(p_, o.p_);
    return *this;
  }
  ~Ref() {
    if (p_) p_->unref();
  }
  T* get() const { return p_; }
  T* release() { return std::exchange(p_, nullptr); }
  T* operator->() const { return p_; }
  T& operator*() const { return *p_; }
  explicit operator bool() const { return p_ != nullptr; }

 private:
  T* p_ = nullptr;
};

}  // namespace ringfold::exec
