#include "kernels/coding.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace ringfold::kernels {
namespace {

// 8 KiB of values: two such pieces, a code and what is read of the terms fit a first-level cache of 32 KiB.
constexpr size_t kPiece = 2 * Codec::kGroup;

// x + factor * missed, to be encoded; and afterwards what the code misses. A NaN is settled as a reducer's is: which
// of two payloads an addition passes on depends on the processor, and topk sends it.
void add_missed(float* x, const float* missed, size_t n, float factor) {
  for (size_t i = 0; i < n; ++i) {
    const float v = x[i] + missed[i] * factor;
    x[i] = v == v ? v : std::bit_cast<float>(0x7FC00000u);
  }
}
void keep_missed(float* missed, const float* x, const float* decoded, size_t n, float factor) {
  for (size_t i = 0; i < n; ++i) {
    const float gap = (x[i] - decoded[i]) / factor;
    missed[i] = std::isfinite(gap) ? gap : 0.0f;
  }
}

}  // namespace

Coder make_coder(const Codec& codec, ReduceKind op) {
  return {codec, find_cpu_codec(codec), find_cpu_reducer(DataType::kF32, op)};
}

void combine(const Coder& coder, const Term* terms, int count, size_t elems, const Post* post, const Target& target,
             const Draw& draw) {
  alignas(64) float piece[kPiece], decoded[kPiece];
  // Where the result goes may hold a term that is read after the first.
  bool aside = target.code != nullptr;
  for (int t = 1; t < count; ++t) aside |= terms[t].values != nullptr && terms[t].values == target.values;
  for (size_t at = 0; at < elems; at += kPiece) {
    const size_t n = std::min(kPiece, elems - at);
    const uint64_t code_at = encoded_bytes(coder.codec, at);
    float* const values = target.values != nullptr ? target.values + at : nullptr;
    float* const sum = aside ? piece : values;
    const float* result = nullptr;
    for (int t = 0; t < count; ++t) {
      const float* plain = terms[t].values != nullptr ? terms[t].values + at : nullptr;
      const std::byte* code = terms[t].code != nullptr ? terms[t].code + code_at : nullptr;
      if (t == 0) {
        if (plain == nullptr) coder.kernels.decode(coder.codec, code, n, sum);
        result = plain != nullptr ? plain : sum;
      } else if (plain != nullptr) {
        const void* both[] = {result, plain};
        coder.sum.fold(sum, both, 2, n, {});
        result = sum;
      } else {
        if (result != sum) std::memcpy(sum, result, n * sizeof(float));
        coder.kernels.decode_add(coder.codec, code, n, sum);
        result = sum;
      }
    }
    if (post != nullptr) {
      const void* one[] = {result};
      coder.sum.fold_complete(sum, one, 1, n, *post);
      result = sum;
    }
    if (target.code == nullptr) {
      if (result != values) std::memcpy(values, result, n * sizeof(float));
      continue;
    }
    float* const missed = target.residual != nullptr ? target.residual + at : nullptr;
    const float factor = post != nullptr ? static_cast<float>(post->factor) : 1.0f;
    if (missed != nullptr) {
      if (result != piece) std::memcpy(piece, result, n * sizeof(float));
      add_missed(piece, missed, n, factor);
      result = piece;
    }
    std::byte* const out = target.code + code_at;
    coder.kernels.encode(coder.codec, result, n, out, {draw.key, draw.first + at});
    if (missed == nullptr && values == nullptr) continue;
    float* const back = missed != nullptr ? decoded : values;
    coder.kernels.decode(coder.codec, out, n, back);
    if (missed == nullptr) continue;
    keep_missed(missed, piece, decoded, n, factor);
    if (values != nullptr) std::memcpy(values, decoded, n * sizeof(float));
  }
}

}  // namespace ringfold::kernels
