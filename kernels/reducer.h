// Reductions over memory: the interface between the executor and the kernels (cpu/ with Highway; cuda/ has its own table).
#pragma once

#include <cstddef>

#include "ringfold/types.h"

namespace ringfold::kernels {

// out[i] = post(in[0][i] o in[1][i] o ... o in[inputs-1][i]) for i < elems, folded from the left in that order.
//
// - f16 and bf16 are widened to f32, folded in f32, and rounded once (to nearest even) on the way out, whatever
// `inputs` is.
// - `factor` is applied after the fold, before that rounding: f64 is multiplied by it, the other floats by its
// nearest
//   f32; integers are divided by `divisor` (>= 1), truncating towards zero. What find() returns for kSum ... kMax
//   ignores both.
// - out may be one of the inputs (same address); otherwise out and the inputs do not overlap. Inputs may overlap each
//   other. No alignment is needed beyond the element's own.
// - inputs >= 1. One input without post is a copy of its bits. elems == 0 touches no memory.
// - The same bits on every instruction set: no contraction to fused multiply-add, no reassociation, and two things
// that
//   IEEE 754 or the processors leave open are settled: a NaN result is the positive quiet NaN without payload, and
//   among zeros min prefers -0 and max prefers +0 whatever their order. So the bits do not depend on where in the
//   buffer an element lies or on which host reduced it.
// - Reentrant; nothing is allocated.
struct Post {
  double factor = 1.0;
  long long divisor = 1;
};
using ReduceFn = void (*)(void* out, const void* const* in, int inputs, size_t elems, const Post& post);

struct Reducer {
  ReduceFn fold = nullptr;           // without post: an intermediate result
  ReduceFn fold_complete = nullptr;  // with post: the result that holds every contribution
  // The same bits with stores that go around the caches (as copy_streaming's; complete on return in the same way).
  // Which is faster depends on who reads and who has read the output (base/stores.h).
  ReduceFn fold_streaming = nullptr;
  ReduceFn fold_complete_streaming = nullptr;
};

// The CPU reducer for a type and operation, for the best instruction set this processor has: call it at bind, keep
// the pointers. kAvg and kScaledSum add in `fold` and post-process in `fold_complete`; for the others both are the
// same function. A combination that has no meaning (kScaledSum of integers) gives nulls.
Reducer find_cpu_reducer(DataType type, ReduceKind kind);

}  // namespace ringfold::kernels
