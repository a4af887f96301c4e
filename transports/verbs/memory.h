// Memory that devices may reach.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "base/region.h"
#include "transports/verbs/device.h"

namespace ringfold::verbs {

// Page-aligned zeroed memory that devices may reach, and its keys. Stays with the parent at a fork.
class Memory {
 public:
  Memory() = default;
  ~Memory() { reset(); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // New memory of `bytes`, reachable by `devices`.
  Status allocate(size_t bytes, const std::vector<Device*>& devices);
  // Memory of somebody else's.
  Status adopt(std::byte* data, size_t bytes, const std::vector<Device*>& devices);
  // Memory of another device, whole pages of it, as the dma-buf of that; for reading and writing.
  Status adopt_dma_buf(std::byte* data, size_t bytes, int dma_buf, const std::vector<Device*>& devices);
  void reset();
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  uint32_t local_key(const Device* device) const { return find(device)->lkey; }
  uint32_t remote_key(const Device* device) const { return find(device)->rkey; }

 private:
  Status register_with(const std::vector<Device*>& devices, int dma_buf = -1);
  const ibv_mr* find(const Device* device) const;

  struct Entry {
    Device* device;
    ibv_mr* mr;
  };
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  bool own_ = false;
  std::vector<Entry> entries_;
};

// The keys of memory from ringfold::allocate, made when they are first needed. Only of that memory: its end is known
// here, as an id that is never given again, so that a key can never stand for other memory than it was made for. What
// malloc gives may be unmapped and mapped anew at the same address, of which verbs tell nothing.
class Regions {
 public:
  // Of the memory around [data, data + bytes); null: it cannot be had.
  const Memory* find(const std::byte* data, size_t bytes, const std::vector<Device*>& devices);
  void clear() { entries_.clear(); }

 private:
  region::Finder finder_;
  std::vector<std::pair<uint64_t, std::unique_ptr<Memory>>> entries_;  // by id; no memory: cannot be registered
};

}  // namespace ringfold::verbs
