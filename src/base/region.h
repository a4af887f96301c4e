// Memory from ringfold::allocate, as transports see it: which region an address lies in, and how another process of
// this host finds that region's memory.
//
// Every region is a memfd. A process that has some shows them in its *directory*, one more memfd: entry e says that
// region `id` is behind file descriptor `fd` of this process. A peer that was told {entry, id, offset} opens
// /proc/PID/fd/FD, maps it, and checks the entry again; ids are never used twice, so an entry that still holds the id
// proves that the right memory was mapped. When a region is freed its entry is cleared and `freed` grows: peers that
// kept a mapping look at that one word now and then.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "ringfold/memory.h"

namespace ringfold::region {

inline constexpr uint32_t kMaxShared = 4096;  // regions beyond that work, but are not shared
inline constexpr uint32_t kNotShared = ~uint32_t{0};

// In shared memory; all words atomic, written under the owner's registry lock.
struct Directory {
  struct Entry {
    uint64_t id;  // 0: free
    uint64_t bytes;
    int64_t fd;
  };
  uint64_t freed;
  Entry entries[kMaxShared];
};

struct Region {
  const std::byte* base = nullptr;
  size_t bytes = 0;
  uint64_t id = 0;
  uint32_t entry = kNotShared;
  bool contains(const void* data, size_t size) const {
    const uintptr_t offset = reinterpret_cast<uintptr_t>(data) - reinterpret_cast<uintptr_t>(base);
    return offset < bytes && size <= bytes - offset;
  }
};

// File descriptor of this process's directory; made at the first call, kept to the end of the process. A child made
// by fork() starts an own one: what its parent had allocated is private to the two and not shared further.
Result<int> directory();

// Memory that something else allocated, and that deallocate() is to give back with `release`.
void adopt(void* memory, void (*release)(void* memory));

// Looks up which shared region holds an address. Keeps its last answer, "none" included, and asks the registry again
// only for another place or after an allocate() or deallocate() anywhere: an object per thread or lock.
class Finder {
 public:
  // The region that holds all of [data, data + bytes), or null. Valid until the next call.
  const Region* find(const void* data, size_t bytes) {
    if (generation_ != current_generation().load(std::memory_order_acquire) || !seen_.contains(data, bytes)) {
      look_up(data);
    }
    return shared_ && seen_.contains(data, bytes) ? &seen_ : nullptr;
  }

 private:
  static std::atomic<uint64_t>& current_generation();
  void look_up(const void* data);

  uint64_t generation_ = 0;  // the registry's begins at 1
  Region seen_;              // a shared region, or a stretch of addresses that belong to none
  bool shared_ = false;
};

}  // namespace ringfold::region
