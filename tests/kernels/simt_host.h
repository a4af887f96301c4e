// The kernel bodies of kernels/simt on threads of this machine: what tests compare with the CPU's kernels, and what a
// GPU's results are compared with.
#pragma once

#include "kernels/simt/combine.h"
#include "kernels/simt/fold.h"
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

}  // namespace ringfold::test
