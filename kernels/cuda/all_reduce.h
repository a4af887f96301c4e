// all_reduce in one kernel on every GPU (kernels/simt/all_reduce.h): launches. One launch on each rank, or one of all
// ranks that are played on one GPU, for tests. Exists in every build, like cuda.h.
#pragma once

#include "kernels/cuda/cuda.h"
#include "kernels/simt/all_reduce.h"
#include "kernels/simt/multicast.h"

namespace ringfold::kernels::cuda {

// `args` lies in device memory, one for each of `played` ranks, and `ranks` is that of the communicator: 2, 4 or 8
// (two-shot of values), 2 to 8 (the others). All blocks must run at the same time: the launch is cooperative, and
// fails where they do not fit. most_blocks() fit. Ranks must launch with the same number of blocks. These are the
// only kernels that wait; they end within the time limit of their arguments, or when an abort word is set.
int one_shot(DataType type, ReduceKind kind, const simt::OneShotArgs* args, int played, int blocks, Stream stream);
int two_shot(DataType type, ReduceKind kind, const simt::TwoShotArgs* args, int ranks, int played, int blocks,
             Stream stream);

// By multicast memory, on GPUs of compute capability 9 or later; `scale`: with the arguments' factor. f32, f16, bf16.
int multicast(DataType type, bool scale, const simt::MulticastArgs* args, int blocks, Stream stream);

// The most blocks for each of `played` ranks on this GPU that a two-shot of 8, which takes most registers, may be
// launched with.
int most_blocks(int played);

}  // namespace ringfold::kernels::cuda
