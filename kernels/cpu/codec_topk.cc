// The largest elements of each group. One code for all instruction sets: selecting takes most of the time, and
// branches.
#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>

#include "kernels/cpu/find.h"

namespace ringfold::kernels {
namespace {

constexpr size_t kTopKGroup = Codec::kGroup;

size_t kept_of(const Codec& codec, size_t n) { return (codec.keep * n + kTopKGroup - 1) / kTopKGroup; }

// Magnitudes as bits compare as the numbers do; NaN is above infinity, so it is kept and seen.
uint32_t size_bits(float v) { return std::bit_cast<uint32_t>(v) & 0x7FFFFFFFu; }

void encode_group(const float* in, size_t n, size_t keep, std::byte* code) {
  uint32_t sizes[kTopKGroup];
  for (size_t i = 0; i < n; ++i) sizes[i] = size_bits(in[i]);
  std::nth_element(sizes, sizes + keep - 1, sizes + n, std::greater<>());
  const uint32_t least = sizes[keep - 1];
  // As many of those that equal the least are kept as there is room for: the first ones.
  size_t ties = keep - static_cast<size_t>(std::count_if(sizes, sizes + keep, [&](uint32_t s) { return s > least; }));
  size_t at = 0;
  for (size_t i = 0; i < n && at < keep; ++i) {
    const uint32_t size = size_bits(in[i]);
    if (size < least || (size == least && ties == 0)) continue;
    ties -= size == least ? 1 : 0;
    const auto index = static_cast<uint16_t>(i);
    std::memcpy(code + 2 * at, &index, 2);
    std::memcpy(code + 2 * keep + 4 * at, in + i, 4);
    ++at;
  }
}

void decode_group(const std::byte* code, size_t n, size_t keep, float* out) {
  std::fill_n(out, n, 0.0f);
  for (size_t at = 0; at < keep; ++at) {
    uint16_t index;
    std::memcpy(&index, code + 2 * at, 2);
    if (index < n) std::memcpy(out + index, code + 2 * keep + 4 * at, 4);
  }
}

void encode_top(const Codec& codec, const float* in, size_t elems, std::byte* code, const Draw&) {
  for (size_t at = 0; at < elems; at += kTopKGroup) {
    const size_t n = std::min(kTopKGroup, elems - at), keep = kept_of(codec, n);
    encode_group(in + at, n, keep, code);
    code += 6 * keep;
  }
}

void decode_top(const Codec& codec, const std::byte* code, size_t elems, float* out) {
  for (size_t at = 0; at < elems; at += kTopKGroup) {
    const size_t n = std::min(kTopKGroup, elems - at), keep = kept_of(codec, n);
    decode_group(code, n, keep, out + at);
    code += 6 * keep;
  }
}

void decode_add_top(const Codec& codec, const std::byte* code, size_t elems, float* sum) {
  for (size_t at = 0; at < elems; at += kTopKGroup) {
    const size_t n = std::min(kTopKGroup, elems - at), keep = kept_of(codec, n);
    float values[kTopKGroup];
    decode_group(code, n, keep, values);
    code += 6 * keep;
    for (size_t i = 0; i < n; ++i) {
      const float v = sum[at + i] + values[i];
      sum[at + i] = v == v ? v : std::bit_cast<float>(0x7FC00000u);
    }
  }
}

}  // namespace

CodecKernels find_topk_codec() { return {encode_top, decode_top, decode_add_top}; }

}  // namespace ringfold::kernels
