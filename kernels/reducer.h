// Reductions over memory: the interface between the executor and the kernels (cpu/ with Highway; cuda/ later).
#pragma once

#include <cstddef>

#include "ringfold/types.h"

namespace ringfold::kernels {

// out[i] = post(in[0][i] o in[1][i] o ... o in[inputs-1][i]) for i < elems, folded from the left in that order.
//
// - f16 and bf16 are widened to f32, folded in f32, and rounded once (to nearest even) on the way out, whatever `inputs` is.
// - `factor` is applied after the fold, before that rounding: floats are multiplied by it; integers are divided by
//   `divisor`, truncating towards zero. The Reducer that find() returns for kSum ... kMax ignores both.
// - out may be one of the inputs (same address); otherwise out and the inputs do not overlap. No alignment is needed
//   beyond the element's own.
// - inputs >= 1; with one input it is a copy with `post` applied.
// - The same bits on every instruction set: no contraction to fused multiply-add, no reassociation.
struct Post {
  double factor = 1.0;
  long long divisor = 1;
};
using ReduceFn = void (*)(void* out, const void* const* in, int inputs, size_t elems, const Post& post);

struct Reducer {
  ReduceFn fold = nullptr;           // without post: an intermediate result
  ReduceFn fold_complete = nullptr;  // with post: the result that holds every contribution
};

// The CPU reducer for a type and operation, for the best instruction set this processor has. kAvg and kScaledSum add in
// `fold` and post-process in `fold_complete`. A combination that has no meaning (kScaledSum of integers) gives nulls.
Reducer find_cpu_reducer(DataType type, ReduceKind kind);

}  // namespace ringfold::kernels
