// Memory for buffers: of this host, where its other processes can read it in place, or of a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "ringfold/status.h"

namespace ringfold {

// `bytes` of zeroed memory, page aligned (2 MiB aligned and on huge pages where the size allows it), which ranks on
// the same host map: collectives then read the peers' buffers directly instead of copying through slots. Everything
// also works with ordinary memory. Any thread. kUnavailable when the system has no memory to give.
RINGFOLD_API Result<void*> allocate(size_t bytes);

// A GPU by its number among those that the process sees; -1: the one whose context is current on the calling thread.
struct Device {
  int ordinal = -1;
};
// That one. kUnavailable without a driver, kInvalid where no context is current.
RINGFOLD_API Result<Device> current_device();
// `bytes` of zeroed memory of a GPU, in the context that the CUDA runtime uses there. Calls take any device memory,
// not only this. Any thread; no context needs to be current. kUnavailable without a driver, a device or enough
// memory, kInvalid for a device that there is not.
RINGFOLD_API Result<void*> allocate(size_t bytes, Device device);

// Gives memory from either allocate() back; null is allowed. Peers drop their mappings by themselves. Not while a
// Work uses it.
RINGFOLD_API void deallocate(void* memory);

struct Deallocate {
  void operator()(void* memory) const { deallocate(memory); }
};
template <typename T>
using Buffer = std::unique_ptr<T[], Deallocate>;

// A typed buffer of `elems` trivially copyable elements from allocate().
template <typename T>
Result<Buffer<T>> allocate_buffer(size_t elems) {
  auto memory = allocate(elems <= SIZE_MAX / sizeof(T) ? elems * sizeof(T) : SIZE_MAX);
  if (!memory.ok()) return memory.status();
  return Buffer<T>(static_cast<T*>(*memory));
}

}  // namespace ringfold
