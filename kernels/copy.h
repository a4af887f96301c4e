// Copies between buffers that do not overlap, with two kinds of stores. Which is faster: base/stores.h.
#pragma once

#include <cstddef>
#include <cstring>

#include "base/stores.h"

namespace ringfold::kernels {

// Leaves the destination in the cache.
inline void copy(void* dst, const void* src, size_t bytes) {
  if (bytes != 0) std::memcpy(dst, src, bytes);
}

// Writes around the caches: no line is read, or taken from a core that shares it, before it is written. Complete and
// visible to other threads' acquire loads after a release store, as any write is: the weakly ordered stores are
// fenced before it returns.
void copy_streaming(void* dst, const void* src, size_t bytes);

// With the kind of stores that has been faster.
inline void copy(base::Stores& stores, void* dst, const void* src, size_t bytes) {
  stores.write(bytes, [&](bool streaming) { streaming ? copy_streaming(dst, src, bytes) : copy(dst, src, bytes); });
}

}  // namespace ringfold::kernels
