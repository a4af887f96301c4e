#include "kernels/simt/multicast.h"

#include "kernels/cuda/all_reduce.h"
#include "kernels/cuda/launch.cuh"

namespace ringfold::kernels::cuda {
namespace {

template <class N, bool kPost>
__global__ void __launch_bounds__(simt::kThreads) multicast_kernel(const simt::MulticastArgs* args) {
  simt::DeviceBlock block(nullptr);
  simt::multicast_all_reduce<N, kPost>(block, *args);
}

template <class N>
int launch_multicast(bool scale, const simt::MulticastArgs* args, int blocks, Stream stream) {
  const void* const kernel = scale ? reinterpret_cast<const void*>(multicast_kernel<N, true>)
                                   : reinterpret_cast<const void*>(multicast_kernel<N, false>);
  void* parameters[] = {&args};
  return cudaLaunchCooperativeKernel(kernel, dim3(blocks), dim3(simt::kThreads), parameters, 0,
                                     static_cast<cudaStream_t>(stream));
}

}  // namespace

int multicast(DataType type, bool scale, const simt::MulticastArgs* args, int blocks, Stream stream) {
  if (blocks < 1 || blocks > simt::kMostBlocks) return cudaErrorInvalidValue;
  int device = 0, major = 0;
  if (const int error = cudaGetDevice(&device); error != 0) return error;
  if (const int error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device); error != 0)
    return error;
  if (major < 9) return cudaErrorNotSupported;
  switch (type) {
    case DataType::kF32: return launch_multicast<simt::F32>(scale, args, blocks, stream);
    case DataType::kF16: return launch_multicast<simt::F16>(scale, args, blocks, stream);
    case DataType::kBF16: return launch_multicast<simt::BF16>(scale, args, blocks, stream);
    default: return cudaErrorNotSupported;
  }
}

}  // namespace ringfold::kernels::cuda
