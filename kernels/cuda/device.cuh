// The executor of the kernel bodies (kernels/simt) on a GPU. What each member promises stands in kernels/simt/host.h.
#pragma once

#include <cuda_runtime.h>

#include "kernels/simt/memory.h"

namespace ringfold::kernels::simt {

inline constexpr int kThreads = 256;

class DeviceWarp {
 public:
  template <class T>
  struct Reg {
    __device__ __forceinline__ T& operator[](int) { return value; }
    __device__ __forceinline__ const T& operator[](int) const { return value; }
    T value;
  };

  __device__ __forceinline__ explicit DeviceWarp(uint32_t* scratch)
      : scratch_(scratch), lane_(static_cast<int>(threadIdx.x % 32)) {}
  template <class F>
  __device__ __forceinline__ void each(F f) {
    f(lane_);
  }
  template <class T>
  __device__ __forceinline__ Reg<T> exchange(const Reg<T>& v, int mask) {
    return {__shfl_xor_sync(~0u, v.value, mask)};
  }
  template <class T, class F>
  __device__ __forceinline__ Reg<T> fetch(const Reg<T>& v, F from) {
    return {static_cast<T>(__shfl_sync(~0u, v.value, from(lane_)))};
  }
  __device__ __forceinline__ uint32_t ballot(const Reg<bool>& v) { return __ballot_sync(~0u, v.value); }
  __device__ __forceinline__ uint32_t sum(const Reg<uint32_t>& v) { return __reduce_add_sync(~0u, v.value); }
  __device__ __forceinline__ Reg<bool> last_of_equals(const Reg<uint32_t>& v) {
    return {__match_any_sync(~0u, v.value) >> lane_ == 1u};
  }
  __device__ __forceinline__ void sync() { __syncwarp(); }
  __device__ __forceinline__ uint32_t* scratch() { return scratch_; }

 private:
  uint32_t* scratch_;
  int lane_;
};

// Of a launch with one row of blocks (gridDim.y) for each rank that it plays.
class DeviceBlock {
 public:
  // `scratch`: of the block, kThreads / 32 times what a warp needs.
  __device__ __forceinline__ explicit DeviceBlock(uint32_t* scratch, size_t words_per_warp = 0)
      : scratch_(scratch + threadIdx.x / 32 * words_per_warp) {}
  __device__ __forceinline__ size_t index() const { return blockIdx.x; }
  __device__ __forceinline__ size_t count() const { return gridDim.x; }
  template <class F>
  __device__ __forceinline__ void threads(F f) {
    f(static_cast<size_t>(threadIdx.x), static_cast<size_t>(kThreads));
  }
  template <class F>
  __device__ __forceinline__ void warps(F f) {
    constexpr size_t kWarps = kThreads / 32;
    DeviceWarp warp(scratch_);
    f(warp, blockIdx.x * kWarps + threadIdx.x / 32, gridDim.x * kWarps);
  }
  __device__ __forceinline__ bool all(bool yes) { return __syncthreads_and(yes) != 0; }
  __device__ __forceinline__ void sync() { __syncthreads(); }

 private:
  uint32_t* scratch_;
};

}  // namespace ringfold::kernels::simt
