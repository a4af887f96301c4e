// Memory for copies that a call needs while it is in flight, kept for the next one: fresh memory costs a page fault
// for every 4 KiB, which is more than the copy. From ringfold::allocate, so that neighbours read it in place.
#pragma once

#include <algorithm>
#include <bit>
#include <memory>
#include <mutex>
#include <utility>

#include "ringfold/memory.h"

namespace ringfold::comm {

// Holds the largest buffer that was given back, no more. Any thread.
class Spare : public std::enable_shared_from_this<Spare> {
 public:
  // At least `bytes` > 0; goes back by itself, also after its communicator.
  Result<std::shared_ptr<std::byte[]>> take(size_t bytes) {
    Buffer<std::byte> buffer;
    size_t capacity = 0;
    {
      std::lock_guard lock(mutex_);
      if (capacity_ >= bytes) {
        buffer = std::move(kept_);
        capacity = std::exchange(capacity_, 0);
      }
    }
    if (!buffer) {
      capacity = std::bit_ceil(std::max<size_t>(bytes, 4096));
      auto made = allocate_buffer<std::byte>(capacity);
      if (!made.ok()) return made.status();
      buffer = *std::move(made);
    }
    return std::shared_ptr<std::byte[]>(buffer.release(), [self = shared_from_this(), capacity](std::byte* memory) {
      self->give_back(Buffer<std::byte>(memory), capacity);
    });
  }

 private:
  void give_back(Buffer<std::byte> buffer, size_t capacity) {
    std::lock_guard lock(mutex_);
    if (capacity <= capacity_) return;
    kept_ = std::move(buffer);
    capacity_ = capacity;
  }

  std::mutex mutex_;
  Buffer<std::byte> kept_;
  size_t capacity_ = 0;
};

}  // namespace ringfold::comm
