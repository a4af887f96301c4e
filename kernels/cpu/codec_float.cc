// Small floats as codes: fp8 with bf16 scales, MXFP8, MXFP4, NVFP4.
#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/codec_float.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/codec-inl.h"
#include "kernels/cpu/find.h"

HWY_BEFORE_NAMESPACE();
namespace ringfold::kernels {
namespace HWY_NAMESPACE {

// A float of one sign bit, kExponent and kMantissa bits whose largest finite code without sign is kLargest; codes
// beyond that are NaNs.
template <int kExponent, int kMantissa, uint32_t kLargest>
struct SmallFloat {
  static constexpr int kMagnitudeBits = kExponent + kMantissa, kDropped = 23 - kMantissa;
  static constexpr uint32_t kExponentBias = (1u << (kExponent - 1)) - 1;
  static constexpr uint32_t kMagnitudeMask = (1u << kMagnitudeBits) - 1;
  // Bits of f32 numbers: the least normal number; that whose last place is the step of the subnormal ones; the step.
  static constexpr uint32_t kNormal = (127 + 1 - kExponentBias) << 23;
  static constexpr uint32_t kRounder = (127 + 1 - kExponentBias - kMantissa + 23) << 23;
  static constexpr uint32_t kStep = (127 + 1 - kExponentBias - kMantissa) << 23;

  // To nearest, ties to even, saturating; not for NaN.
  static HWY_INLINE Vu code(Vf v) {
    const Vu size = magnitude(v);
    const Vu sign = hn::ShiftRight<31 - kMagnitudeBits>(hn::Xor(as_bits(v), size));
    // Adding just under half of the last place that stays, plus its own bit, carries when that rounds up.
    const Vu odd = hn::And(hn::ShiftRight<kDropped>(size), set_bits(1));
    const Vu rounded = hn::ShiftRight<kDropped>(hn::Add(size, hn::Add(odd, set_bits((1u << (kDropped - 1)) - 1))));
    const Vu normal = hn::Sub(rounded, set_bits((127 - kExponentBias) << kMantissa));
    const Vf rounder = as_float(set_bits(kRounder));
    const Vu subnormal = hn::Sub(as_bits(hn::Add(as_float(size), rounder)), set_bits(kRounder));
    const Vu any = hn::IfThenElse(less(size, set_bits(kNormal)), subnormal, normal);
    return hn::Or(sign, hn::IfThenElse(less(any, set_bits(kLargest)), any, set_bits(kLargest)));
  }

  static HWY_INLINE Vf value(Vu code) {
    const Vu size = hn::And(code, set_bits(kMagnitudeMask));
    const Vu sign = hn::ShiftLeft<31 - kMagnitudeBits>(hn::Xor(code, size));
    const Vf normal = as_float(hn::Add(hn::ShiftLeft<kDropped>(size), set_bits((127 - kExponentBias) << 23)));
    const Vf subnormal = hn::Mul(hn::ConvertTo(Df(), hn::BitCast(Di(), size)), as_float(set_bits(kStep)));
    const Vf any = if_then_else(less(size, set_bits(1u << kMantissa)), subnormal, normal);
    const Vu signed_bits = hn::Or(as_bits(any), sign);
    if constexpr (kLargest == kMagnitudeMask) return as_float(signed_bits);
    return if_then_else(less(set_bits(kLargest), size), as_float(set_bits(kNanBits)), as_float(signed_bits));
  }
};
using E4M3 = SmallFloat<4, 3, 0x7E>;
using E5M2 = SmallFloat<5, 2, 0x7B>;
using E2M1 = SmallFloat<2, 1, 0x7>;

// What they share: codes are x times the reciprocal of the scale, in one plane.
template <class Small, size_t kElems>
struct Floats {
  static constexpr int kBits = Small::kMagnitudeBits + 1, kHighBits = 0;
  static constexpr bool kSigned = false;
  static constexpr size_t kBlock = kElems;
  static constexpr size_t kBlocks = kGroup / kElems;

  void draw(const Draw&, size_t) const {}
  HWY_INLINE Vu code(Vf x, Vf inverse, size_t) const { return Small::code(hn::Mul(x, inverse)); }
  HWY_INLINE Vu clean(Vu code) const { return code; }
  HWY_INLINE Vu finish(Vu word) const { return word; }
  HWY_INLINE Vf value(Vu code) const { return Small::value(code); }
};

// bf16 scales as those of the integer codecs: the least that is not below absmax / kMost.
template <class Small, int kMost>
struct Scaled : Floats<Small, 32>, BF16Head<32> {
  HWY_INLINE void prepare(const float* x, size_t, Prepared& to, std::byte* head) const {
    largest_magnitudes<32>(x, to.largest);
    alignas(64) uint32_t scales[32];
    to.finite = scale_up<32>(to.largest, 1.0f / kMost, to.by, scales);
    this->write(scales, head);
  }
  static HWY_INLINE void read_head(const std::byte* head, float* factors) { Scaled::read(head, factors); }
};

// OCP MX: the scale is the power of two of absmax's exponent less that of the format's largest number, which is
// kLargestExponent; larger elements saturate. No less than 2^-126, whose reciprocal is a normal number.
template <class Small, uint32_t kLargestExponent>
struct MX : Floats<Small, 32> {
  static constexpr size_t head_bytes(size_t n) { return (n + 31) / 32; }

  HWY_INLINE void prepare(const float* x, size_t, Prepared& to, std::byte* head) const {
    largest_magnitudes<32>(x, to.largest);
    to.finite = true;
    for (size_t b = 0; b < 32; ++b) {
      const uint32_t exponent = to.largest[b] >> 23;
      const bool finite = exponent != 255;
      const uint32_t scale = finite ? std::max(exponent, kLargestExponent + 1) - kLargestExponent : 255;
      const uint32_t inverse = finite ? (254 - scale) << 23 : 0;
      std::memcpy(to.by + b, &inverse, 4);
      head[b] = static_cast<std::byte>(scale);
      to.finite &= finite;
    }
  }
  static HWY_INLINE void read_head(const std::byte* head, float* factors) {
    for (size_t b = 0; b < 32; ++b) {
      const auto scale = static_cast<uint32_t>(head[b]);
      const uint32_t bits = scale == 255 ? kNanBits : scale == 0 ? 0x00400000u : scale << 23;
      std::memcpy(factors + b, &bits, 4);
    }
  }
};

// NVFP4: a block's scale is an e4m3 number times one f32 of the group, which makes the largest block's 448.
struct NVFP4 : Floats<E2M1, 16> {
  static constexpr size_t head_bytes(size_t n) { return 4 + (n + 31) / 32 * 2; }

  HWY_INLINE void prepare(const float* x, size_t, Prepared& to, std::byte* head) const {
    largest_magnitudes<16>(x, to.largest);
    Vu most = hn::Zero(Du()), special = hn::Zero(Du());
    for (size_t b = 0; b < kBlocks; b += kLanes) {
      const Vu of = hn::Load(Du(), to.largest + b);
      const auto finite = less(of, set_bits(kInfBits));
      special = hn::Or(special, hn::VecFromMask(Du(), hn::Not(finite)));
      const Vu counted = hn::And(of, hn::VecFromMask(Du(), finite));
      most = hn::IfThenElse(less(most, counted), counted, most);
    }
    to.finite = hn::AllTrue(Du(), hn::Eq(special, hn::Zero(Du())));
    const float largest = hn::GetLane(as_float(hn::MaxOfLanes(Du(), most)));
    float group = largest * (1.0f / 2688);  // 448 * 6
    if (group < 0x1p-126f) group = 0;
    const Vf inverse_of_group = set_float(group == 0 ? 0 : 1 / group);
    std::memcpy(head, &group, 4);
    for (size_t b = 0; b < kBlocks; b += kLanes) {
      const Vu of = hn::Load(Du(), to.largest + b);
      const auto finite = less(of, set_bits(kInfBits));
      const Vu counted = hn::And(of, hn::VecFromMask(Du(), finite));
      const Vf wanted = hn::Mul(hn::Mul(as_float(counted), set_float(1.0f / 6)), inverse_of_group);
      const Vu code = E4M3::code(wanted);
      const Vf scale = hn::Mul(E4M3::value(code), set_float(group));
      const Vu ok = hn::VecFromMask(Du(), hn::Not(less(as_bits(scale), set_bits(0x00800000u))));
      hn::Store(as_float(hn::And(as_bits(hn::Div(set_float(1), scale)), ok)), Df(), to.by + b);
      alignas(64) uint32_t codes[kLanes];
      hn::Store(hn::IfThenElse(finite, hn::And(code, ok), set_bits(0x7F)), Du(), codes);
      for (size_t i = 0; i < kLanes; ++i) head[4 + b + i] = static_cast<std::byte>(codes[i]);
    }
  }
  static HWY_INLINE void read_head(const std::byte* head, float* factors) {
    float group;
    std::memcpy(&group, head, 4);
    for (size_t b = 0; b < kBlocks; b += kLanes) {
      alignas(64) uint32_t codes[kLanes];
      for (size_t i = 0; i < kLanes; ++i) codes[i] = static_cast<uint32_t>(head[4 + b + i]);
      const Vf factor = hn::Mul(E4M3::value(hn::Load(Du(), codes)), set_float(group));
      const auto finite = less(magnitude(factor), set_bits(kInfBits));
      hn::Store(if_then_else(finite, factor, as_float(set_bits(kNanBits))), Df(), factors + b);
    }
  }
};

CodecKernels find_float_codec_here(const Codec& codec) {
  switch (codec.kind) {
    case CodecKind::kE4M3: return codec_of<Scaled<E4M3, 448>>();
    case CodecKind::kE5M2: return codec_of<Scaled<E5M2, 57344>>();
    case CodecKind::kMXFP8: return codec_of<MX<E4M3, 8>>();
    case CodecKind::kMXFP4: return codec_of<MX<E2M1, 2>>();
    case CodecKind::kNVFP4: return codec_of<NVFP4>();
    default: return {};
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace ringfold::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ringfold::kernels {

HWY_EXPORT(find_float_codec_here);

CodecKernels find_float_codec(const Codec& codec) { return HWY_DYNAMIC_DISPATCH(find_float_codec_here)(codec); }

}  // namespace ringfold::kernels
#endif
