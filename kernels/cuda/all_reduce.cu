#include "kernels/cuda/all_reduce.h"

#include "kernels/cuda/launch.cuh"

namespace ringfold::kernels::cuda {
namespace {

// blockIdx.y is the rank that a block plays; DeviceBlock looks at blockIdx.x alone.
template <class N, class Op, bool kPost>
__global__ void __launch_bounds__(simt::kThreads) one_shot_kernel(const simt::OneShotArgs* args) {
  simt::DeviceBlock block(nullptr);
  simt::one_shot<N, Op, kPost>(block, args[blockIdx.y]);
}
template <class N, class Op, bool kPost, int kRanks>
__global__ void __launch_bounds__(simt::kThreads, 2) two_shot_kernel(const simt::TwoShotArgs* args) {
  simt::DeviceBlock block(nullptr);
  simt::two_shot<N, Op, kPost, kRanks>(block, args[blockIdx.y]);
}

template <class Kernel, class Args>
int launch_all(Kernel kernel, const Args* args, int played, int blocks, Stream stream) {
  if (played < 1 || played > simt::kMostRanks || blocks < 1 || blocks > simt::kMostBlocks)
    return cudaErrorInvalidValue;
  void* parameters[] = {&args};
  return cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(blocks, played),
                                     dim3(simt::kThreads), parameters, 0, static_cast<cudaStream_t>(stream));
}

// The types and operations that gradients and their norms need.
template <class Visit>
int with_operation(DataType type, ReduceKind kind, Visit visit) {
  int error = cudaErrorNotSupported;
  const auto take = [&](auto number, auto operation, auto post) { error = visit(number, operation, post); };
  if (type == DataType::kF32) simt::visit_operation<simt::F32>(kind, true, take);
  if (type == DataType::kF16) simt::visit_operation<simt::F16>(kind, true, take);
  if (type == DataType::kBF16) simt::visit_operation<simt::BF16>(kind, true, take);
  return error;
}

}  // namespace

int one_shot(DataType type, ReduceKind kind, const simt::OneShotArgs* args, int played, int blocks, Stream stream) {
  return with_operation(type, kind, [&]<class N, class Op, class Post>(simt::Tag<N>, simt::Tag<Op>, Post) {
    return launch_all(one_shot_kernel<N, Op, Post::value>, args, played, blocks, stream);
  });
}

int two_shot(DataType type, ReduceKind kind, const simt::TwoShotArgs* args, int ranks, int played, int blocks,
             Stream stream) {
  return with_operation(type, kind, [&]<class N, class Op, class Post>(simt::Tag<N>, simt::Tag<Op>, Post) -> int {
    switch (ranks) {
      case 2: return launch_all(two_shot_kernel<N, Op, Post::value, 2>, args, played, blocks, stream);
      case 4: return launch_all(two_shot_kernel<N, Op, Post::value, 4>, args, played, blocks, stream);
      case 8: return launch_all(two_shot_kernel<N, Op, Post::value, 8>, args, played, blocks, stream);
      default: return cudaErrorNotSupported;
    }
  });
}

int most_blocks(int played) {
  int device = 0, processors = 0, each = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &each, two_shot_kernel<simt::F16, simt::Sum, true, 8>, simt::kThreads, 0);
  const int blocks = processors * each / (played > 0 ? played : 1);
  return blocks < simt::kMostBlocks ? blocks : simt::kMostBlocks;
}

}  // namespace ringfold::kernels::cuda
