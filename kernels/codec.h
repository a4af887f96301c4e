// Encoding and decoding of f32 memory: the interface between the executor and the kernels (cpu/ with Highway; cuda/
// has its own table). The formats are those of ringfold/codec.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ringfold/codec.h"

namespace ringfold::kernels {

// Where the random numbers of stochastic rounding come from: element i of a call draws by (key, first + i) alone, so
// a result does not depend on how a buffer was cut or by how many threads it was encoded.
struct Draw {
  uint64_t key = 0;
  uint64_t first = 0;
};

// - Buffers do not overlap, and need no alignment beyond a float's. elems == 0 touches no memory.
// - The same bits on every instruction set: no contraction to fused multiply-add, and no approximate reciprocals.
// - Reentrant; nothing is allocated.
struct CodecKernels {
  // code[0 .. encoded_bytes(elems)) = the code of in[0 .. elems).
  void (*encode)(const Codec& codec, const float* in, size_t elems, std::byte* code, const Draw& draw) = nullptr;
  // out[i] = value i of the code.
  void (*decode)(const Codec& codec, const std::byte* code, size_t elems, float* out) = nullptr;
  // sum[i] += value i of the code (f32 addition, sum on the left; a NaN result is as a reducer's, kernels/reducer.h).
  void (*decode_add)(const Codec& codec, const std::byte* code, size_t elems, float* sum) = nullptr;
};

// For the best instruction set this processor has: call it at bind. `codec` must be valid and not kNone.
CodecKernels find_cpu_codec(const Codec& codec);

}  // namespace ringfold::kernels
