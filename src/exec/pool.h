// Requests of one kind that are not in use, kept for the next calls. Taken under the engine's lock, given back on any
// thread, and neither needs a lock of its own. What one place (of kPlaces, the others are taken modulo) gets back is
// what it gives out first: so calls of a few shapes, which take turns, get requests that know their shape.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <utility>

#include "exec/request.h"

namespace ringfold::exec {

template <typename T>
class Pool {
 public:
  static constexpr uint32_t kPlaces = 8;

  // Null: there is none.
  T* take(uint32_t place) {
    // Only a taker empties a place, and there is one at a time: nobody changes it between the two.
    std::atomic<T*>& mine = places_[place % kPlaces];
    T* item = mine.load(std::memory_order_acquire);
    if (item != nullptr && item != closed()) {
      mine.store(nullptr, std::memory_order_relaxed);
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
  void give(T* item, uint32_t place) {
    T* nobody = nullptr;
    if (places_[place % kPlaces].compare_exchange_strong(nobody, item, std::memory_order_release)) return;
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
    for (auto& place : places_) {
      T* last = place.exchange(closed(), std::memory_order_acq_rel);
      if (last != closed()) delete last;
    }
    T* returned = returned_.exchange(closed(), std::memory_order_acq_rel);
    T* idle = std::exchange(idle_, nullptr);
    if (returned == closed()) returned = nullptr;
    for (T* list : {idle, returned}) {
      while (list != nullptr) delete std::exchange(list, after(list));
    }
  }

 private:
  static T* closed() { return reinterpret_cast<T*>(alignof(T)); }  // nothing lies there
  static T* after(T* item) { return static_cast<T*>(item->in_flight.after); }

  // Those that came back while their places were free: taken and given by one access.
  std::array<std::atomic<T*>, kPlaces> places_{};
  T* idle_ = nullptr;  // linked through in_flight.after, as are those below
  // What has come back since idle_ was filled. A taker takes all of it, so nothing can leave and return unseen while
  // another is put before it.
  std::atomic<T*> returned_{nullptr};
};

}  // namespace ringfold::exec
