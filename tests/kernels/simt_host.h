// The kernel bodies of kernels/simt on threads of this machine: what tests compare with the CPU's kernels, and what a
// GPU's results are compared with.
#pragma once

#include "kernels/simt/all_reduce.h"
#include "kernels/simt/combine.h"
#include "kernels/simt/fold.h"
#include "kernels/simt/multicast.h"
#include "ringfold/codec.h"
#include "ringfold/types.h"

namespace ringfold::test {

// The shape of a launch: results must not depend on it.
struct HostGrid {
  size_t blocks = 1, warps = 1;
};

// `args.head` and `args.quads` are set here. False where the type has no such operation.
bool fold_on_host(DataType type, ReduceKind kind, bool complete, kernels::simt::FoldArgs args, HostGrid grid = {});
// `args.begin`, `args.end` and `args.call.keep` are set here.
void combine_on_host(const Codec& codec, kernels::simt::CombineArgs args, HostGrid grid = {});
// One rank's launch; ranks run side by side. f32, f16 and bf16; two-shot for 2, 4 and 8 ranks.
void all_reduce_on_host(const kernels::simt::OneShotArgs& args, DataType type, ReduceKind kind, int blocks);
void all_reduce_on_host(const kernels::simt::TwoShotArgs& args, DataType type, ReduceKind kind, int ranks,
                        int blocks);
// Of sums, where `args.data.copies` are: with the factor or without.
void multicast_on_host(const kernels::simt::MulticastArgs& args, DataType type, bool scale, int blocks);

}  // namespace ringfold::test
