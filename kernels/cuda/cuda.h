// Kernels for memory of a CUDA device: the tables of kernels/reducer.h and kernels/codec.h, with a stream to run on.
// The arithmetic and its bits are those of the CPU (kernels/simt). Exists in every build: without nvcc, without a
// driver and without a GPU the functions that find kernels give nulls, and why_no_gpu() says why.
//
// Rules for all kernels: pointers are of the current device, or of memory that it maps (peers', pinned). Nothing is
// allocated and nothing waits: a call enqueues on its stream and returns 0, or the cudaError_t of the launch (name:
// error_text). No kernel spins. Buffers at multiples of 16 bytes are fast; others give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/codec.h"
#include "kernels/reducer.h"

namespace ringfold::kernels::cuda {

// A cudaStream_t. Null is the default stream.
using Stream = void*;

// "" where kernels can run; otherwise the reason in words: no CUDA in this build, no driver, one that is too old, no
// GPU, or only one for which this build has no code. Asks once; afterwards free. Thread-safe.
const std::string& why_no_gpu();
// "NVIDIA H200, 132 SMs, 141 GB, compute capability 9.0, driver 13.0"; "" without one.
std::string describe_gpu();
std::string error_text(int error);

inline constexpr int kMostInputs = 64;  // of a fold
inline constexpr int kMostTerms = 8;    // of a combination

// copies `bytes` bytes; the buffers do not overlap.
int copy(void* dst, const void* src, size_t bytes, Stream stream);

// As Reducer's functions, for at most kMostInputs inputs.
using ReduceFn = int (*)(void* out, const void* const* in, int inputs, size_t elems, const Post& post, Stream stream);
struct Reducer {
  ReduceFn fold = nullptr;
  ReduceFn fold_complete = nullptr;
};
Reducer find_reducer(DataType type, ReduceKind kind);

// What combine() of kernels/coding.h is given.
struct Term {
  const float* values = nullptr;
  const std::byte* code = nullptr;
};
struct Target {
  float* values = nullptr;
  std::byte* code = nullptr;
  float* residual = nullptr;
};

struct CodecKernels {
  int (*encode)(const Codec& codec, const float* in, size_t elems, std::byte* code, const Draw& draw,
                Stream stream) = nullptr;
  int (*decode)(const Codec& codec, const std::byte* code, size_t elems, float* out, Stream stream) = nullptr;
  int (*decode_add)(const Codec& codec, const std::byte* code, size_t elems, float* sum, Stream stream) = nullptr;
  // Folds 1 to kMostTerms terms from the left, multiplies by `post`'s factor if there is one, and leaves values, a
  // code or both, with error feedback: all in one pass over memory.
  int (*combine)(const Codec& codec, const Term* terms, int count, size_t elems, const Post* post,
                 const Target& target, const Draw& draw, Stream stream) = nullptr;
};
// `codec` is valid and not kNone.
CodecKernels find_codec(const Codec& codec);

}  // namespace ringfold::kernels::cuda
