// One pass that folds values and codes and leaves the result as values, as a code, or both: what a move does whose
// links carry codes. Works through pieces that stay in the first-level cache, so memory is read and written once.
#pragma once

#include <cstddef>

#include "kernels/codec.h"
#include "kernels/reducer.h"

namespace ringfold::kernels {

struct Coder {
  Codec codec;
  CodecKernels kernels;
  Reducer sum;  // of f32; fold_complete post-processes
};
// `codec` is valid and not kNone.
Coder make_coder(const Codec& codec, ReduceKind op);

// A contribution: one of the two is set.
struct Term {
  const float* values = nullptr;
  const std::byte* code = nullptr;
};

// Where the result goes; what is null is not made. With `code`, `values` get what the code decodes to, so that the
// sender goes on with what the receivers have.
struct Target {
  float* values = nullptr;  // may be the values of a term
  std::byte* code = nullptr;
  // Error feedback, with `code` only: what earlier codes missed is added to the result before it is encoded, and what
  // this code misses is left here; not a number where the result is not finite counts as nothing missed. In units of
  // the result over `factor`.
  float* residual = nullptr;
};

// result = the terms folded from the left; with `post`, which is for complete sums, multiplied by its factor.
void combine(const Coder& coder, const Term* terms, int count, size_t elems, const Post* post, const Target& target,
             const Draw& draw);

}  // namespace ringfold::kernels
