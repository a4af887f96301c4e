// What the block codecs share, compiled once per instruction set: the walk over groups, planes of small codes, and
// the largest magnitudes of blocks.
//
// Planes. The codes of a group are kept in planes of 1, 2, 4 or 8 bits. A plane for B runs of 32 elements with b bits
// each is W = b * B words of 32 bits (little-endian), and element i has the b bits from b * (i / W) on of word i % W.
// So neighbouring elements lie in neighbouring words: a vector of codes is shifted and added to a vector of words,
// and nothing is ever moved between lanes, however wide a vector is.
//
// A codec is a Format:
//   kBits, kHighBits  bits of a code in the plane of its lower bits (<= 8), and in that of its upper bits (0: none)
//   kSigned           the lower plane is read with sign extension
//   kBlock            elements that share a parameter
//   head_bytes(n)     of the scales, which come before the planes
//   prepare           from the elements: the head and each block's parameter for code()
//   code, finish      from an element and its block's parameter: the code, in a sum of which a constant may be left
//                     over that `finish` takes away from the word
//   read_head, value  from the head: each block's factor; from a code: the number that is multiplied by it
#if defined(RINGFOLD_CODEC_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef RINGFOLD_CODEC_INL_H
#undef RINGFOLD_CODEC_INL_H
#else
#define RINGFOLD_CODEC_INL_H
#endif

#include <algorithm>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/codec.h"
#include "kernels/cpu/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ringfold::kernels {
namespace HWY_NAMESPACE {

using Di = hn::ScalableTag<int32_t>;
using Vi = hn::Vec<Di>;
inline constexpr size_t kGroup = Codec::kGroup;
inline constexpr size_t kLanes = hn::MaxLanes(Df());
inline constexpr size_t kPadded = kGroup + 16;  // room for a vector that starts inside a group
inline constexpr uint32_t kInfBits = 0x7F800000u, kNanBits = 0x7FC00000u;

HWY_INLINE Vf as_float(Vu v) { return hn::BitCast(Df(), v); }
HWY_INLINE Vu as_bits(Vf v) { return hn::BitCast(Du(), v); }
HWY_INLINE Vf set_float(float v) { return hn::Set(Df(), v); }
HWY_INLINE Vu set_bits(uint32_t v) { return hn::Set(Du(), v); }
HWY_INLINE Vf if_then_else(hn::Mask<Du> m, Vf yes, Vf no) { return hn::IfThenElse(hn::RebindMask(Df(), m), yes, no); }
// Magnitudes as bits are never negative numbers, and signed comparisons are the ones that every processor has.
HWY_INLINE hn::Mask<Du> less(Vu a, Vu b) {
  return hn::RebindMask(Du(), hn::Lt(hn::BitCast(Di(), a), hn::BitCast(Di(), b)));
}
HWY_INLINE Vu magnitude(Vf v) { return hn::And(as_bits(v), set_bits(0x7FFFFFFFu)); }
HWY_INLINE Vf canonical_nan(Vf v) { return hn::IfThenElse(hn::IsNaN(v), as_float(set_bits(kNanBits)), v); }
// Words at any address.
HWY_INLINE Vu load_words(const std::byte* p) {
#if HWY_TARGET == HWY_SCALAR
  uint32_t word;
  std::memcpy(&word, p, sizeof(word));
  return set_bits(word);
#else
  return hn::BitCast(Du(), hn::LoadU(hn::Repartition<uint8_t, Du>(), reinterpret_cast<const uint8_t*>(p)));
#endif
}
HWY_INLINE void store_words(Vu v, std::byte* p) {
#if HWY_TARGET == HWY_SCALAR
  const uint32_t word = hn::GetLane(v);
  std::memcpy(p, &word, sizeof(word));
#else
  const hn::Repartition<uint8_t, Du> bytes;
  hn::StoreU(hn::BitCast(bytes, v), bytes, reinterpret_cast<uint8_t*>(p));
#endif
}

HWY_INLINE Vi larger(Vi a, Vi b) { return hn::Max(a, b); }

// In: kLanes vectors. Out: a vector whose lane i is the largest lane of in[i].
HWY_INLINE Vi largest_lanes(const Vi* in) {
#if HWY_TARGET == HWY_SCALAR
  return in[0];
#else
  constexpr Di d;
  Vi quad[kLanes / 4];
  for (size_t q = 0; q < kLanes / 4; ++q) {
    const Vi* v = in + 4 * q;
    const Vi even = larger(hn::InterleaveLower(d, v[0], v[2]), hn::InterleaveUpper(d, v[0], v[2]));
    const Vi odd = larger(hn::InterleaveLower(d, v[1], v[3]), hn::InterleaveUpper(d, v[1], v[3]));
    quad[q] = larger(hn::InterleaveLower(d, even, odd), hn::InterleaveUpper(d, even, odd));
  }
  if constexpr (kLanes == 4) return quad[0];
  // quad[q] holds, in each 128 bits, a share of the result for 4 of the inputs.
  if constexpr (kLanes == 8) {
    return larger(hn::ConcatLowerLower(d, quad[1], quad[0]), hn::ConcatUpperUpper(d, quad[1], quad[0]));
  }
  if constexpr (kLanes == 16) {
    Vi even = larger(hn::ConcatLowerLower(d, quad[2], quad[0]), hn::ConcatUpperUpper(d, quad[2], quad[0]));
    Vi odd = larger(hn::ConcatLowerLower(d, quad[3], quad[1]), hn::ConcatUpperUpper(d, quad[3], quad[1]));
    even = larger(even, hn::SwapAdjacentBlocks(even));
    odd = larger(odd, hn::SwapAdjacentBlocks(odd));
    return hn::OddEvenBlocks(odd, even);
  }
#endif
}

// The largest magnitude, as bits, of each block of a group: NaN is larger than infinity.
template <size_t kBlock>
HWY_INLINE void largest_magnitudes(const float* x, uint32_t* largest) {
  for (size_t block = 0; block < kGroup / kBlock; block += kLanes) {
    Vi of[kLanes];
    for (size_t k = 0; k < kLanes; ++k) {
      const float* p = x + (block + k) * kBlock;
      of[k] = hn::BitCast(Di(), magnitude(hn::LoadU(Df(), p)));
      for (size_t i = kLanes; i < kBlock; i += kLanes) {
        of[k] = larger(of[k], hn::BitCast(Di(), magnitude(hn::LoadU(Df(), p + i))));
      }
    }
    hn::Store(hn::BitCast(Du(), largest_lanes(of)), Du(), largest + block);
  }
}

// What `prepare` finds out, for blocks of at least 16 elements.
struct Prepared {
  alignas(64) float by[kGroup / 16];  // code()'s parameter
  alignas(
      64) uint32_t largest[kGroup / 16];  // the largest magnitude as bits; kInfBits or more: the block is not finite
  bool finite = true;                     // all of them are
};

// A head of bf16 scales, one a block; non-finite ones become NaN.
template <size_t kBlock>
struct BF16Head {
  static constexpr size_t head_bytes(size_t n) { return (n + kBlock - 1) / kBlock * 2; }
  static HWY_INLINE void write(const uint32_t* scales, std::byte* head) {
    for (size_t b = 0; b < kGroup / kBlock; ++b) {
      const auto scale = static_cast<uint16_t>(scales[b]);
      std::memcpy(head + 2 * b, &scale, 2);
    }
  }
  static HWY_INLINE void read(const std::byte* head, float* factors) {
    for (size_t b = 0; b < kGroup / kBlock; ++b) {
      uint16_t scale;
      std::memcpy(&scale, head + 2 * b, 2);
      uint32_t bits = uint32_t{scale} << 16;
      bits = (bits & kInfBits) == kInfBits ? kNanBits : bits;
      std::memcpy(factors + b, &bits, 4);
    }
  }
};

// Scales for codes whose largest magnitude is 1 / `inverse_of_most`: the least bf16 that is not below absmax times
// that, and 0 unless that is a normal number. One division a block. False if some block is not finite; its scale is
// NaN.
template <size_t kBlocks>
HWY_INLINE bool scale_up(const uint32_t* largest, float inverse_of_most, float* inverses, uint32_t* scales) {
  Vu special = hn::Zero(Du());
  for (size_t b = 0; b < kBlocks; b += kLanes) {
    const Vu most = hn::Load(Du(), largest + b);
    const Vu exact = as_bits(hn::Mul(as_float(most), set_float(inverse_of_most)));
    const Vu up = hn::And(hn::Add(exact, set_bits(0xFFFFu)), set_bits(0xFFFF0000u));
    const Vu finite = hn::VecFromMask(Du(), less(most, set_bits(kInfBits)));
    const Vu ok = hn::AndNot(hn::VecFromMask(Du(), less(up, set_bits(0x00800000u))), finite);
    hn::Store(as_float(hn::And(as_bits(hn::Div(set_float(1.0f), as_float(up))), ok)), Df(), inverses + b);
    const Vu scale = hn::Or(hn::And(up, ok), hn::AndNot(finite, set_bits(kNanBits)));
    hn::Store(hn::ShiftRight<16>(scale), Du(), scales + b);
    special = hn::Or(special, hn::Not(finite));
  }
  return hn::AllTrue(Du(), hn::Eq(special, hn::Zero(Du())));
}

template <class F>
struct Planes {
  static constexpr int kBits = F::kBits, kHigh = F::kHighBits, kRows = 32 / kBits;
  static constexpr size_t kWords = kBits * 32;                     // of a whole group's plane
  static constexpr size_t kRun = F::kBlock < 32 ? F::kBlock : 32;  // words that share parameters
  static constexpr uint32_t kMask = (1u << kBits) - 1;
  static constexpr size_t bytes(size_t runs) { return runs * 4 * (kBits + kHigh); }

  // --- a whole group

  template <int kRow>
  static HWY_INLINE Vu join(const F& f, const float* x, const Vf* by, size_t at, uint32_t* high, Vu word) {
    constexpr size_t kFrom = kRow * kWords;
    Vu code = f.code(hn::LoadU(Df(), x + kFrom + at), by[kRow], kFrom + at);
    if constexpr (kHigh != 0) {
      hn::Store(hn::ShiftRight<kBits>(code), Du(), high + kFrom + at);
      code = hn::And(code, set_bits(kMask));
    }
    word = kRow == 0 ? code : hn::Add(word, hn::ShiftLeft<kBits * kRow>(code));
    if constexpr (kRow + 1 < kRows) word = join<kRow + 1>(f, x, by, at, high, word);
    return word;
  }

  static HWY_INLINE void encode(const F& f, const float* x, const float* by, std::byte* planes) {
    alignas(64) uint32_t high[kHigh != 0 ? kPadded : 1];
    for (size_t run = 0; run < kWords; run += kRun) {
      Vf rows[kRows];
      for (int j = 0; j < kRows; ++j) rows[j] = set_float(by[(j * kWords + run) / F::kBlock]);
      for (size_t at = run; at < run + kRun; at += kLanes) {
        store_words(f.finish(join<0>(f, x, rows, at, high, hn::Zero(Du()))), planes + 4 * at);
      }
    }
    if constexpr (kHigh != 0) pack<kHigh>(high, 32, planes + 4 * kWords);
  }

  template <bool kAdd>
  static HWY_INLINE void put(Vf v, float* out) {
    if constexpr (kAdd) v = canonical_nan(hn::Add(hn::LoadU(Df(), out), v));
    hn::StoreU(v, Df(), out);
  }

  template <bool kAdd, int kRow>
  static HWY_INLINE void split(const F& f, Vu word, const Vf* by, size_t at, const uint32_t* high, float* out) {
    constexpr size_t kFrom = kRow * kWords;
    constexpr int kAbove = 32 - kBits - kBits * kRow;
    Vu code;
    if constexpr (F::kSigned) {
      const Vu up = kAbove == 0 ? word : hn::ShiftLeft<kAbove>(word);
      code = hn::BitCast(Du(), hn::ShiftRight<32 - kBits>(hn::BitCast(Di(), up)));
    } else {
      code = kRow == 0 ? word : hn::ShiftRight<kBits * kRow>(word);
      if constexpr (kAbove != 0) code = hn::And(code, set_bits(kMask));
    }
    if constexpr (kHigh != 0) code = hn::Or(code, hn::ShiftLeft<kBits>(hn::Load(Du(), high + kFrom + at)));
    put<kAdd>(hn::Mul(f.value(code), by[kRow]), out + kFrom + at);
    if constexpr (kRow + 1 < kRows) split<kAdd, kRow + 1>(f, word, by, at, high, out);
  }

  template <bool kAdd>
  static HWY_INLINE void decode(const F& f, const std::byte* planes, const float* by, float* out) {
    alignas(64) uint32_t high[kHigh != 0 ? kPadded : 1];
    if constexpr (kHigh != 0) unpack<kHigh>(planes + 4 * kWords, 32, high);
    for (size_t run = 0; run < kWords; run += kRun) {
      Vf rows[kRows];
      for (int j = 0; j < kRows; ++j) rows[j] = set_float(by[(j * kWords + run) / F::kBlock]);
      for (size_t at = run; at < run + kRun; at += kLanes) {
        split<kAdd, 0>(f, load_words(planes + 4 * at), rows, at, high, out);
      }
    }
  }

  // --- the last group, of `runs` < 32 runs or padded to them. Rows then are no multiple of a vector, and what is
  // read or written past their ends is garbage: all buffers have room for it, and rows are written in ascending
  // order.

  template <int kPlaneBits>
  static HWY_INLINE void pack(const uint32_t* codes, size_t runs, std::byte* plane) {
    const size_t words = kPlaneBits * runs;
    for (size_t at = 0; at < words; at += kLanes) {
      Vu word = hn::Zero(Du());
      for (int j = 0; j < 32 / kPlaneBits; ++j) {
        word = hn::Or(word, hn::ShiftLeftSame(hn::LoadU(Du(), codes + j * words + at), kPlaneBits * j));
      }
      store_words(word, plane + 4 * at);
    }
  }

  template <int kPlaneBits>
  static HWY_INLINE void unpack(const std::byte* plane, size_t runs, uint32_t* codes) {
    const size_t words = kPlaneBits * runs;
    for (int j = 0; j < 32 / kPlaneBits; ++j) {
      for (size_t at = 0; at < words; at += kLanes) {
        const Vu word = hn::ShiftRightSame(load_words(plane + 4 * at), kPlaneBits * j);
        hn::StoreU(hn::And(word, set_bits((1u << kPlaneBits) - 1)), Du(), codes + j * words + at);
      }
    }
  }

  static HWY_INLINE void encode_short(const F& f, const float* x, const float* by, size_t runs, std::byte* planes) {
    alignas(64) uint32_t low[kPadded] = {}, high[kPadded] = {};
    for (size_t i = 0; i < 32 * runs; i += kLanes) {
      const Vu code = f.clean(f.code(hn::Load(Df(), x + i), set_float(by[i / F::kBlock]), i));
      hn::Store(hn::And(code, set_bits(kMask)), Du(), low + i);
      hn::Store(hn::ShiftRight<kBits>(code), Du(), high + i);
    }
    pack<kBits>(low, runs, planes);
    if constexpr (kHigh != 0) pack<kHigh>(high, runs, planes + 4 * kBits * runs);
  }

  static HWY_INLINE void decode_short(const F& f, const std::byte* planes, const float* by, size_t runs, float* out) {
    alignas(64) uint32_t low[kPadded], high[kPadded];
    unpack<kBits>(planes, runs, low);
    if constexpr (kHigh != 0) unpack<kHigh>(planes + 4 * kBits * runs, runs, high);
    for (size_t i = 0; i < 32 * runs; i += kLanes) {
      Vu code = hn::Load(Du(), low + i);
      if constexpr (kHigh != 0) code = hn::Or(code, hn::ShiftLeft<kBits>(hn::Load(Du(), high + i)));
      if constexpr (F::kSigned) {
        code = hn::BitCast(Du(), hn::ShiftRight<32 - kBits>(hn::BitCast(Di(), hn::ShiftLeft<32 - kBits>(code))));
      }
      hn::Store(hn::Mul(f.value(code), set_float(by[i / F::kBlock])), Df(), out + i);
    }
  }
};

// Elements of blocks that are not finite are encoded as zeros: what they hold has no say in the code but by the
// scale.
template <size_t kBlock>
HWY_NOINLINE const float* without_special(const float* x, const Prepared& prepared, float* copy) {
  std::memcpy(copy, x, kGroup * sizeof(float));
  for (size_t b = 0; b < kGroup / kBlock; ++b) {
    if (prepared.largest[b] >= kInfBits) std::fill_n(copy + b * kBlock, kBlock, 0.0f);
  }
  return copy;
}

template <class F>
HWY_INLINE void encode_whole(F f, const float* x, std::byte* code, const Draw& draw) {
  Prepared prepared;
  f.prepare(x, kGroup, prepared, code);
  f.draw(draw, kGroup);
  if (HWY_UNLIKELY(!prepared.finite)) {
    alignas(64) float copy[kGroup];
    x = without_special<F::kBlock>(x, prepared, copy);
    return Planes<F>::encode(f, x, prepared.by, code + F::head_bytes(kGroup));
  }
  Planes<F>::encode(f, x, prepared.by, code + F::head_bytes(kGroup));
}

// A group of n < kGroup elements, padded with zeros.
template <class F>
HWY_NOINLINE void encode_part(F f, const float* padded, size_t n, std::byte* code, const Draw& draw) {
  Prepared prepared;
  alignas(64) std::byte head[4 + 2 * kGroup / 16], planes[kPadded];
  alignas(64) float copy[kGroup];
  const size_t runs = (n + 31) / 32;
  f.prepare(padded, n, prepared, head);
  f.draw(draw, 32 * runs);
  if (!prepared.finite) padded = without_special<F::kBlock>(padded, prepared, copy);
  Planes<F>::encode_short(f, padded, prepared.by, runs, planes);
  std::memcpy(code, head, F::head_bytes(n));
  std::memcpy(code + F::head_bytes(n), planes, Planes<F>::bytes(runs));
}

template <class F>
constexpr size_t bytes_of(size_t n) {
  return F::head_bytes(n) + Planes<F>::bytes((n + 31) / 32);
}

template <class F>
void encode(const Codec&, const float* in, size_t elems, std::byte* code, const Draw& draw) {
  Draw from = draw;
  for (; elems >= kGroup; elems -= kGroup, in += kGroup, code += bytes_of<F>(kGroup), from.first += kGroup) {
    encode_whole(F(), in, code, from);
  }
  if (elems == 0) return;
  alignas(64) float padded[kGroup] = {};
  std::memcpy(padded, in, elems * sizeof(float));
  encode_part(F(), padded, elems, code, from);
}

// Room for the values of a last group that are decoded in full vectors.
template <class F>
HWY_NOINLINE void decode_part(const std::byte* code, size_t n, float* out) {
  alignas(64) std::byte head[4 + 2 * kGroup / 16] = {}, planes[kGroup + 64];
  alignas(64) float by[kGroup / 16];
  const F f;
  const size_t runs = (n + 31) / 32;
  std::memcpy(head, code, F::head_bytes(n));
  std::memcpy(planes, code + F::head_bytes(n), Planes<F>::bytes(runs));
  F::read_head(head, by);
  Planes<F>::decode_short(f, planes, by, runs, out);
}

HWY_INLINE void add_values(const float* values, size_t n, float* sum) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    hn::StoreU(canonical_nan(hn::Add(hn::LoadU(Df(), sum + i), hn::LoadU(Df(), values + i))), Df(), sum + i);
  }
  for (; i < n; ++i) {
    const hn::CappedTag<float, 1> one;
    const auto v = hn::Add(hn::LoadU(one, sum + i), hn::LoadU(one, values + i));
    hn::StoreU(
        hn::IfThenElse(hn::IsNaN(v), hn::BitCast(one, hn::Set(hn::RebindToUnsigned<decltype(one)>(), kNanBits)), v),
        one, sum + i);
  }
}

template <class F, bool kAdd>
void decode(const Codec&, const std::byte* code, size_t elems, float* out) {
  const F f;
  for (; elems >= kGroup; elems -= kGroup, out += kGroup, code += bytes_of<F>(kGroup)) {
    alignas(64) float by[kGroup / 16];
    F::read_head(code, by);
    Planes<F>::template decode<kAdd>(f, code + F::head_bytes(kGroup), by, out);
  }
  if (elems == 0) return;
  alignas(64) float values[kPadded];
  decode_part<F>(code, elems, values);
  if constexpr (kAdd) {
    add_values(values, elems, out);
  } else {
    std::memcpy(out, values, elems * sizeof(float));
  }
}

template <class F>
CodecKernels codec_of() {
  return {encode<F>, decode<F, false>, decode<F, true>};
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace ringfold::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
