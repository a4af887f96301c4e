// Integer codes: nearest or stochastic, of the elements or of their rotation.
#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/codec_int.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/codec-inl.h"
#include "kernels/cpu/find.h"

HWY_BEFORE_NAMESPACE();
namespace ringfold::kernels {
namespace HWY_NAMESPACE {

// Products of the lanes with a constant: the upper and the lower halves.
HWY_INLINE void multiply_long(Vu a, uint32_t factor, Vu& high, Vu& low) {
#if HWY_TARGET == HWY_SCALAR
  const uint64_t product = uint64_t{hn::GetLane(a)} * factor;
  high = set_bits(static_cast<uint32_t>(product >> 32));
  low = set_bits(static_cast<uint32_t>(product));
#else
  const hn::RepartitionToWide<Du> wide;
  const auto even = hn::MulEven(a, set_bits(factor));
  const auto odd = hn::MulEven(hn::BitCast(Du(), hn::ShiftRight<32>(hn::BitCast(wide, a))), set_bits(factor));
  high = hn::OddEven(hn::BitCast(Du(), odd), hn::BitCast(Du(), hn::ShiftRight<32>(even)));
  low = hn::OddEven(hn::BitCast(Du(), hn::ShiftLeft<32>(odd)), hn::BitCast(Du(), even));
#endif
}

// 16 random bits for each element of a group. Philox4x32-10 (Salmon et al., SC'11) turns counter c into the bits of
// elements 8c to 8c+7, so each element's depend on nothing but the key and its index.
struct Random {
  static constexpr size_t kMost = (kGroup + 14) / 8 + kLanes;  // counters, of which the first and last may be shared
  alignas(64) uint32_t words[4 * kMost];
  size_t skip = 0;  // elements of the first counter that come before the group

  Random() {}  // NOLINT: `words` is filled by draw()

  HWY_NOINLINE void draw(const Draw& from, size_t elems) {
    skip = from.first % 8;
    const uint64_t begin = from.first / 8;
    const size_t counters = (skip + elems + 7) / 8;
    for (size_t at = 0; at < counters; at += kLanes) {
      alignas(64) uint32_t lows[kLanes], highs[kLanes];
      for (size_t i = 0; i < kLanes; ++i) {
        lows[i] = static_cast<uint32_t>(begin + at + i);
        highs[i] = static_cast<uint32_t>((begin + at + i) >> 32);
      }
      Vu x = hn::Load(Du(), lows), y = hn::Load(Du(), highs), z = hn::Zero(Du()), w = z;
      uint32_t key0 = static_cast<uint32_t>(from.key), key1 = static_cast<uint32_t>(from.key >> 32);
      for (int round = 0; round < 10; ++round) {
        Vu high0, low0, high1, low1;
        multiply_long(x, 0xD2511F53u, high0, low0);
        multiply_long(z, 0xCD9E8D57u, high1, low1);
        x = hn::Xor(hn::Xor(high1, y), set_bits(key0));
        y = low1;
        z = hn::Xor(hn::Xor(high0, w), set_bits(key1));
        w = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
      }
#if HWY_TARGET == HWY_SCALAR
      const Vu all[] = {x, y, z, w};
      for (int i = 0; i < 4; ++i) words[4 * at + i] = hn::GetLane(all[i]);
#else
      hn::StoreInterleaved4(x, y, z, w, Du(), words + 4 * at);
#endif
    }
  }

  // Of elements at, at + 1, ...: numbers in (0, 1), multiples of 2^-17 in the middles of 2^16 equal intervals.
  HWY_INLINE Vf uniform(size_t at) const {
#if HWY_TARGET == HWY_SCALAR
    const size_t i = skip + at;
    const Vi bits = hn::Set(Di(), static_cast<int32_t>(words[i / 2] >> (16 * (i % 2)) & 0xFFFF));
#else
    const hn::Rebind<uint16_t, Df> half;
    const Vi bits = hn::PromoteTo(Di(), hn::LoadU(half, reinterpret_cast<const uint16_t*>(words) + skip + at));
#endif
    return hn::Mul(hn::ConvertTo(Df(), hn::Add(hn::Add(bits, bits), hn::Set(Di(), 1))), set_float(0x1p-17f));
  }
};
struct NoRandom {
  void draw(const Draw&, size_t) {}
};

template <int kCodeBits, bool kStochastic>
struct Int : BF16Head<32> {
  static constexpr int kBits = kCodeBits == 8 ? 8 : 4, kHighBits = kCodeBits - kBits;
  static constexpr bool kSigned = kHighBits == 0;
  static constexpr size_t kBlock = 32;
  static constexpr uint32_t kMost = (1u << (kCodeBits - 1)) - 1, kMask = 2 * kMost + 1;
  static constexpr uint32_t kBias = kMost + 1;

  std::conditional_t<kStochastic, Random, NoRandom> random;

  HWY_INLINE void draw(const Draw& from, size_t elems) { random.draw(from, elems); }

  HWY_INLINE void prepare(const float* x, size_t, Prepared& to, std::byte* head) const {
    largest_magnitudes<kBlock>(x, to.largest);
    alignas(64) uint32_t scales[32];
    to.finite = scale_up<32>(to.largest, 1.0f / kMost, to.by, scales);
    write(scales, head);
  }
  static HWY_INLINE void read_head(const std::byte* head, float* factors) { read(head, factors); }

  // Adding 2^23 rounds to an integer, to even, which then is in the low bits. On top of it an even number keeps that
  // integer from becoming negative, so that codes can be added to a word without borrowing from each other.
  HWY_INLINE Vu code(Vf x, Vf inverse, size_t at) const {
    const Vf y = hn::Mul(x, inverse);
    if constexpr (kStochastic) {
      const Vf most = set_float(kMost);
      const Vf r = hn::Max(hn::Min(hn::Floor(hn::Add(y, random.uniform(at))), most), hn::Neg(most));
      return hn::And(hn::BitCast(Du(), hn::ConvertTo(Di(), r)), set_bits(kMask));
    } else {
      const Vu biased = as_bits(hn::Add(y, set_float(0x1p23f + kBias)));
      return kHighBits == 0 ? biased : without_bias(biased);
    }
  }
  HWY_INLINE Vu clean(Vu code) const { return kStochastic || kHighBits != 0 ? code : without_bias(code); }
  static HWY_INLINE Vu without_bias(Vu code) { return hn::And(hn::Xor(code, set_bits(kBias)), set_bits(kMask)); }
  HWY_INLINE Vu finish(Vu word) const {
    if constexpr (kStochastic || kHighBits != 0) return word;
    constexpr uint32_t kLeft = kBits == 8 ? 0x4B000000u : 0xFB000000u;  // 2^23's exponent, once a row
    return hn::Xor(hn::Sub(word, set_bits(kLeft)), set_bits(kBits == 8 ? 0x80808080u : 0x88888888u));
  }
  HWY_INLINE Vf value(Vu code) const {
    if constexpr (kHighBits == 0) return hn::ConvertTo(Df(), hn::BitCast(Di(), code));
    constexpr int kUp = 32 - kCodeBits;
    return hn::ConvertTo(Df(), hn::ShiftRight<kUp>(hn::BitCast(Di(), hn::ShiftLeft<kUp>(code))));
  }
};

// --- Rotation: each run of 32 elements times a Hadamard matrix (not normalised: entries are 1 and -1), after signs
// that are fixed but look random, or a run of equal numbers would become one large one.

struct RotationSigns {
  alignas(64) uint32_t bits[32];
  constexpr RotationSigns() : bits() {
    for (int i = 0; i < 32; ++i) bits[i] = (0x6A09E667u >> i & 1u) << 31;
  }
};
constexpr RotationSigns kSigns;

template <size_t kStride>
HWY_INLINE void butterflies(Vf* v) {
  constexpr size_t kVecs = 32 / kLanes;
  if constexpr (kStride >= kLanes) {
    constexpr size_t kFar = kStride / kLanes;
    for (size_t i = 0; i < kVecs; ++i) {
      if (i & kFar) continue;
      const Vf a = v[i], b = v[i + kFar];
      v[i] = hn::Add(a, b);
      v[i + kFar] = hn::Sub(a, b);
    }
  } else {
#if HWY_TARGET != HWY_SCALAR
    alignas(64) int32_t other[kLanes];
    alignas(64) uint32_t minus[kLanes];
    for (size_t i = 0; i < kLanes; ++i) {
      other[i] = static_cast<int32_t>(i ^ kStride);
      minus[i] = i & kStride ? 0x80000000u : 0;
    }
    const auto indices = hn::SetTableIndices(Df(), other);
    const Vf signs = as_float(hn::Load(Du(), minus));
    for (size_t i = 0; i < kVecs; ++i) v[i] = hn::Add(hn::TableLookupLanes(v[i], indices), hn::Xor(v[i], signs));
#endif
  }
}

// Strides from 16 down to 1, in this order: sums of floats depend on it.
template <bool kBack>
HWY_NOINLINE void rotate_runs(float* x, size_t runs) {
  constexpr size_t kVecs = 32 / kLanes;
  for (size_t run = 0; run < runs; ++run, x += 32) {
    Vf v[kVecs];
    for (size_t i = 0; i < kVecs; ++i) {
      v[i] = hn::Load(Df(), x + i * kLanes);
      if constexpr (!kBack) v[i] = hn::Xor(v[i], as_float(hn::Load(Du(), kSigns.bits + i * kLanes)));
    }
    butterflies<16>(v);
    butterflies<8>(v);
    butterflies<4>(v);
    butterflies<2>(v);
    butterflies<1>(v);
    for (size_t i = 0; i < kVecs; ++i) {
      if constexpr (kBack) {
        v[i] = hn::Mul(hn::Xor(v[i], as_float(hn::Load(Du(), kSigns.bits + i * kLanes))), set_float(1.0f / 32));
        v[i] = canonical_nan(v[i]);
      }
      hn::Store(v[i], Df(), x + i * kLanes);
    }
  }
}

template <class F>
void encode_rotated(const Codec&, const float* in, size_t elems, std::byte* code, const Draw& draw) {
  Draw from = draw;
  while (elems != 0) {
    alignas(64) float x[kGroup];
    const size_t n = std::min(kGroup, elems);
    std::memcpy(x, in, n * sizeof(float));
    std::fill(x + n, x + kGroup, 0.0f);
    rotate_runs<false>(x, (n + 31) / 32);
    if (n == kGroup) {
      encode_whole(F(), x, code, from);
    } else {
      encode_part(F(), x, n, code, from);
    }
    in += n;
    elems -= n;
    code += bytes_of<F>(n);
    from.first += n;
  }
}

template <class F, bool kAdd>
void decode_rotated(const Codec&, const std::byte* code, size_t elems, float* out) {
  while (elems != 0) {
    alignas(64) float x[kPadded];
    const size_t n = std::min(kGroup, elems);
    if (n == kGroup) {
      alignas(64) float by[kGroup / 16];
      F::read_head(code, by);
      Planes<F>::template decode<false>(F(), code + F::head_bytes(kGroup), by, x);
    } else {
      decode_part<F>(code, n, x);
    }
    rotate_runs<true>(x, (n + 31) / 32);
    if constexpr (kAdd) {
      add_values(x, n, out);
    } else {
      std::memcpy(out, x, n * sizeof(float));
    }
    out += n;
    elems -= n;
    code += bytes_of<F>(n);
  }
}

template <int kCodeBits>
CodecKernels int_codec_of(const Codec& codec) {
  using Nearest = Int<kCodeBits, false>;
  using Stochastic = Int<kCodeBits, true>;
  // Decoding does not depend on how the code was rounded.
  CodecKernels found = codec_of<Nearest>();
  if (codec.rotate) found = {encode_rotated<Nearest>, decode_rotated<Nearest, false>, decode_rotated<Nearest, true>};
  if (codec.rounding == Rounding::kStochastic) {
    found.encode = codec.rotate ? encode_rotated<Stochastic> : encode<Stochastic>;
  }
  return found;
}

CodecKernels find_int_codec_here(const Codec& codec) {
  switch (codec.kind) {
    case CodecKind::kInt8: return int_codec_of<8>(codec);
    case CodecKind::kInt6: return int_codec_of<6>(codec);
    case CodecKind::kInt5: return int_codec_of<5>(codec);
    case CodecKind::kInt4: return int_codec_of<4>(codec);
    default: return {};
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace ringfold::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ringfold::kernels {

HWY_EXPORT(find_int_codec_here);

CodecKernels find_int_codec(const Codec& codec) { return HWY_DYNAMIC_DISPATCH(find_int_codec_here)(codec); }

}  // namespace ringfold::kernels
#endif
