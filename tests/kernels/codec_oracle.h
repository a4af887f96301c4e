// What the codecs must compute, written from the definitions of their formats (docs/compression.md) one element at a
// time, with none of the kernels' code and none of their tricks: numbers of small formats are found by looking at
// all.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/codec.h"

namespace ringfold::test {

using Bytes = std::vector<std::byte>;

Bytes expected_code(const Codec& codec, const std::vector<float>& values, const kernels::Draw& draw = {});
std::vector<float> expected_values(const Codec& codec, const Bytes& code, size_t elems);

// One of each kind, the integer ones in all their variants.
std::vector<Codec> all_codecs();

// Bound of the error of one element: |decoded - x| <= relative * (largest magnitude of its block) + least; the block
// is the group for nvfp4. For f16 and bf16 of the element. Negative: no such bound.
struct ErrorBound {
  double relative;
  double least;
  size_t block;
};
ErrorBound oracle_bound(const Codec& codec);

}  // namespace ringfold::test
