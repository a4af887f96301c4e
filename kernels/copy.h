// Copies between buffers that do not overlap, by who reads the result next.
#pragma once

#include <cstddef>
#include <cstring>

namespace ringfold::kernels {

// The destination is read soon, or is small: leave it in the cache.
inline void copy(void* dst, const void* src, size_t bytes) {
  if (bytes != 0) std::memcpy(dst, src, bytes);
}

// The destination is large and nobody reads it soon: write around the cache, which spares the read of each line that
// an ordinary store makes first. Complete and visible to other threads' acquire loads after a release store, as any
// write is: the weakly ordered stores are fenced before it returns.
void copy_streaming(void* dst, const void* src, size_t bytes);

}  // namespace ringfold::kernels
