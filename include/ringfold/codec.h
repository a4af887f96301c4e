// Codecs: lossy encodings of f32 values for the way over a link. Sums are made in f32; only what is sent is encoded.
// docs/compression.md has the layouts, the errors and when to use which.
//
// Groups. A codec works on groups of kGroup elements; the code of n elements is that of its whole groups, one after
// another, and of the shorter last one. So the size of a code follows from n alone (encoded_bytes), and a stretch
// that starts at a group's first element can be encoded and decoded by itself. Inside a group, blocks of a few
// elements (16 to 128, by codec) share a scale. The last group is padded with zeros to a multiple of 32 elements.
//
// Any bytes are a valid code: a decoder reads exactly encoded_bytes(n) and writes exactly n values.
//
// Special values. A block with a NaN or an infinity decodes to NaN throughout (f16, bf16 and topk, that have no
// blocks: the element as it is). Zeros stay zeros, except in kSign, which has none. What is below a codec's range
// becomes zero: a block of kInt* and of kE* whose scale would be less than 2^-126. Sign of zero is not kept. A
// decoded NaN is the positive quiet one without payload.
//
// Errors. No decoded value is farther from the original than the share of its block's largest magnitude that stands
// with each kind (besides what becomes zero); with stochastic rounding twice, with rotation 32 times that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "ringfold/status.h"
#include "ringfold/types.h"

namespace ringfold {

enum class CodecKind : uint8_t {
  kNone,     // f32 as it is
  kF16,      // IEEE half; beyond 65504: infinity. Error: 2^-11 of the element, or 2^-25
  kBF16,     // the upper half of f32. 2^-8 of the element
  kInt8,     // integers -127..127 times the block's scale (bf16), blocks of 32. 1.008 / 254
  kInt6,     // -31..31. 1.008 / 62
  kInt5,     // -15..15. 1.008 / 30
  kInt4,     // -7..7. 1.008 / 14
  kE4M3,     // fp8 of OCP (largest 448) times the block's scale (bf16), blocks of 32. 1.008 / 28
  kE5M2,     // fp8 (largest 57344). 1.008 / 14
  kMXFP8,    // OCP MX: e4m3, blocks of 32, scale a power of two (E8M0). 1 / 8, as it saturates
  kMXFP4,    // OCP MX: e2m1, blocks of 32, E8M0. 1 / 4
  kNVFP4,    // e2m1, blocks of 16, scale e4m3, and one f32 for a group. 0.18 of the group's largest
  kSign,     // one bit: plus or minus the mean magnitude of the block of 128
  kTernary,  // minus, zero or plus the mean of those magnitudes that are above 0.7 of the block's mean; blocks of 128
  kTopK,  // the `keep` elements of largest magnitude of each group, as f32 (of equals the first); the others are zero
};
inline constexpr int kCodecKinds = 15;

enum class Rounding : uint8_t {
  kNearest,     // to the nearest value, ties to even: least error
  kStochastic,  // up or down, so that the mean is right: twice the squared error. Integer codecs only
};

struct Codec {
  CodecKind kind = CodecKind::kNone;
  Rounding rounding = Rounding::kNearest;
  // Rotates each 32 elements by a Hadamard matrix with fixed random signs before encoding, and back after decoding:
  // less error where few elements are much larger than the others. Integer codecs only.
  bool rotate = false;
  uint16_t keep = 0;  // kTopK: of each group, 1..kGroup/4; the last group keeps its share, rounded up
  // Only where the planner expects it to be faster than sending f32. Not part of the format.
  bool when_faster = false;

  constexpr Codec() = default;
  constexpr Codec(CodecKind k) : kind(k) {}  // NOLINT: a kind is a codec
  friend constexpr bool operator==(const Codec&, const Codec&) = default;
  constexpr explicit operator bool() const { return kind != CodecKind::kNone; }

  static constexpr size_t kGroup = 1024;
};

// Ok, or what is wrong with the combination of members.
RINGFOLD_API Status check(const Codec& codec);

// Largest error of one coding of a value, as a share of the largest magnitude in its block: what the check of a
// result may tolerate. Infinity: the codec has none that is of use (1 bit, ternary, top-k, rotated).
RINGFOLD_API double error_bound(const Codec& codec);

// Bytes of the code of `elems` values.
RINGFOLD_API uint64_t encoded_bytes(const Codec& codec, uint64_t elems);

// "int8", "topk", ...
RINGFOLD_API std::string_view name_of(CodecKind kind);
// "none", "int8", "int4+stochastic", "int4+rotate", "topk:0.01" (the share that is kept), "auto" (int8 when_faster),
// "auto:int4", and back. Parsing: kInvalid with the names there are.
RINGFOLD_API std::string to_string(const Codec& codec);
RINGFOLD_API Result<Codec> parse_codec(std::string_view text);

}  // namespace ringfold
