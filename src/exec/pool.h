// Requests of one kind that are not in use, kept for the next calls. Taken under the engine's lock, given back on any
// thread, and neither needs a lock of its own.
#pragma once

#include <atomic>
#include <utility>

#include "exec/request.h"

namespace ringfold::exec {

template <typename T>
class Pool {
 public:
  // Null: there is none.
  T* take() {
    // Only a taker empties the place, and there is one at a time: nobody changes it between the two.
    T* item = place_.load(std::memory_order_acquire);
    if (item != nullptr && item != closed()) {
      place_.store(nullptr, std::memory_order_relaxed);
      return item;
    }
    if (idle_ == nullptr) {
      T* returned = returned_.load(std::memory_order_relaxed);
      if (returned == nullptr || returned == closed()) return nullptr;
      idle_ = returned_.exchange(nullptr, std::memory_order_acquire);
    }
    return std::exchange(idle_, after(idle_));
  }

  // As soon as `item` is in its place somebody else may destroy it, and with it the domain that this is a part of.
  void give(T* item) {
    T* nobody = nullptr;
    if (place_.compare_exchange_strong(nobody, item, std::memory_order_release)) return;
    T* first = returned_.load(std::memory_order_relaxed);
    do {
      if (first == closed()) {
        delete item;
        return;
      }
      item->in_flight.after = first;
    } while (!returned_.compare_exchange_weak(first, item, std::memory_order_release, std::memory_order_relaxed));
  }

  // From now on what comes back is destroyed. Idempotent; under the engine's lock. The caller keeps the domain alive.
  void close() {
    T* last = place_.exchange(closed(), std::memory_order_acq_rel);
    T* returned = returned_.exchange(closed(), std::memory_order_acq_rel);
    T* idle = std::exchange(idle_, nullptr);
    if (last != nullptr && last != closed()) delete last;
    if (returned == closed()) returned = nullptr;
    for (T* list : {idle, returned}) {
      while (list != nullptr) delete std::exchange(list, after(list));
    }
  }

 private:
  static T* closed() { return reinterpret_cast<T*>(alignof(T)); }  // nothing lies there
  static T* after(T* item) { return static_cast<T*>(item->in_flight.after); }

  // The one that came back last, while its place was free: taken and given by one access.
  std::atomic<T*> place_{nullptr};
  T* idle_ = nullptr;  // linked through in_flight.after, as are those below
  // What has come back since idle_ was filled. A taker takes all of it, so nothing can leave and return unseen while
  // another is put before it.
  std::atomic<T*> returned_{nullptr};
};

}  // namespace ringfold::exec
