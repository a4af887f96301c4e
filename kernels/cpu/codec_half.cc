// f16 and bf16: no scales, no groups.
#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/codec_half.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/codec-inl.h"
#include "kernels/cpu/find.h"

HWY_BEFORE_NAMESPACE();
namespace ringfold::kernels {
namespace HWY_NAMESPACE {

using Half16 = hn::Rebind<uint16_t, Df>;  // as many as a vector of f32 has
using VHalf = hn::Vec<Half16>;
#if HWY_TARGET == HWY_SCALAR
using Pair16 = Half16;
#else
using Pair16 = hn::Repartition<uint16_t, Df>;  // two vectors of f32
#endif
constexpr size_t kPair = hn::MaxLanes(Pair16());

// The lower halves of the words of two vectors, which must be numbers of 16 bits with sign: they then pass the
// instructions that saturate. Those work on each 128 bits by themselves, so what they give is put in order.
HWY_INLINE hn::Vec<Pair16> pack_halves(Vi a, [[maybe_unused]] Vi b) {
#if HWY_TARGET == HWY_SCALAR
  return hn::TruncateTo(Pair16(), hn::BitCast(Du(), a));
#else
  const auto mixed = hn::ReorderDemote2To(hn::Repartition<int16_t, Df>(), a, b);
  if constexpr (kLanes == 4) return hn::BitCast(Pair16(), mixed);
  alignas(64) int32_t from[kLanes];
  for (size_t i = 0; i < kLanes / 2; ++i) {
    from[i] = static_cast<int32_t>(i / 2 * 4 + i % 2);
    from[kLanes / 2 + i] = from[i] + 2;
  }
  return hn::BitCast(Pair16(), hn::TableLookupLanes(hn::BitCast(Di(), mixed), hn::SetTableIndices(Di(), from)));
#endif
}

struct BF16Codec {
  static HWY_INLINE Vi narrow(Vf v) {
    return hn::ShiftRight<16>(hn::BitCast(Di(), BF16Half::round(canonical_nan(v))));
  }
  static HWY_INLINE hn::Vec<Pair16> narrow(Vf a, Vf b) { return pack_halves(narrow(a), narrow(b)); }
  static HWY_INLINE Vf widen(VHalf v) { return canonical_nan(as_float(hn::ShiftLeft<16>(hn::PromoteTo(Du(), v)))); }
};

struct F16Codec {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2  // smaller is better
  static HWY_INLINE hn::Vec<Pair16> narrow(Vf a, Vf b) {
    const hn::Rebind<hwy::float16_t, Df> half;
    return hn::Combine(Pair16(), hn::BitCast(Half16(), hn::DemoteTo(half, canonical_nan(b))),
                       hn::BitCast(Half16(), hn::DemoteTo(half, canonical_nan(a))));
  }
  static HWY_INLINE Vf widen(VHalf v) {
    return canonical_nan(hn::PromoteTo(Df(), hn::BitCast(hn::Rebind<hwy::float16_t, Df>(), v)));
  }
#else
  static HWY_INLINE Vi narrow(Vf v) {
    return hn::ShiftRight<16>(hn::BitCast(Di(), hn::ShiftLeft<16>(F16Half::narrow(canonical_nan(v)))));
  }
  static HWY_INLINE hn::Vec<Pair16> narrow(Vf a, Vf b) { return pack_halves(narrow(a), narrow(b)); }
  static HWY_INLINE Vf widen(VHalf v) { return canonical_nan(F16Half::widen(hn::PromoteTo(Du(), v))); }
#endif
};

template <class H>
HWY_INLINE void encode_pair(const float* in, uint16_t* code) {
  constexpr size_t kSecond = kPair - kLanes;
  hn::StoreU(H::narrow(hn::LoadU(Df(), in), hn::LoadU(Df(), in + kSecond)), Pair16(), code);
}

template <class H>
void encode_halves(const Codec&, const float* in, size_t elems, std::byte* code, const Draw&) {
  auto* to = reinterpret_cast<uint16_t*>(code);
  size_t i = 0;
  for (; i + 2 * kPair <= elems; i += 2 * kPair) {
    encode_pair<H>(in + i, to + i);
    encode_pair<H>(in + i + kPair, to + i + kPair);
  }
  for (; i < elems; i += kPair) {
    alignas(64) float some[kPair] = {};
    alignas(64) uint16_t result[kPair];
    const size_t n = std::min(kPair, elems - i);
    std::memcpy(some, in + i, n * sizeof(float));
    encode_pair<H>(some, result);
    std::memcpy(code + 2 * i, result, 2 * n);
  }
}

template <class H, bool kAdd>
HWY_INLINE void decode_vector(const uint16_t* code, float* out) {
  Vf v = H::widen(hn::LoadU(Half16(), code));
  if constexpr (kAdd) v = canonical_nan(hn::Add(hn::LoadU(Df(), out), v));
  hn::StoreU(v, Df(), out);
}

template <class H, bool kAdd>
void decode_halves(const Codec&, const std::byte* code, size_t elems, float* out) {
  const auto* from = reinterpret_cast<const uint16_t*>(code);
  size_t i = 0;
  for (; i + 4 * kLanes <= elems; i += 4 * kLanes) {
    for (size_t k = 0; k < 4 * kLanes; k += kLanes) decode_vector<H, kAdd>(from + i + k, out + i + k);
  }
  for (; i < elems; i += kLanes) {
    alignas(64) uint16_t some[kLanes] = {};
    alignas(64) float result[kLanes] = {};
    const size_t n = std::min(kLanes, elems - i);
    std::memcpy(some, code + 2 * i, 2 * n);
    if constexpr (kAdd) std::memcpy(result, out + i, n * sizeof(float));
    decode_vector<H, kAdd>(some, result);
    std::memcpy(out + i, result, n * sizeof(float));
  }
}

template <class H>
CodecKernels halves_of() {
  return {encode_halves<H>, decode_halves<H, false>, decode_halves<H, true>};
}

CodecKernels find_half_codec_here(const Codec& codec) {
  return codec.kind == CodecKind::kF16 ? halves_of<F16Codec>() : halves_of<BF16Codec>();
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace ringfold::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ringfold::kernels {

HWY_EXPORT(find_half_codec_here);

CodecKernels find_half_codec(const Codec& codec) { return HWY_DYNAMIC_DISPATCH(find_half_codec_here)(codec); }

}  // namespace ringfold::kernels
#endif
