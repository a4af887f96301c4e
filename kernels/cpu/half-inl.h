// f32 from f16 and bf16, and back with rounding to nearest even, by integer arithmetic: for the reducers and the
// codecs.
#if defined(RINGFOLD_HALF_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef RINGFOLD_HALF_INL_H
#undef RINGFOLD_HALF_INL_H
#else
#define RINGFOLD_HALF_INL_H
#endif

#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace ringfold::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Df = hn::ScalableTag<float>;
using Du = hn::ScalableTag<uint32_t>;
using Vf = hn::Vec<Df>;
using Vu = hn::Vec<Du>;

struct BF16Half {
  static constexpr int kUnroll = 2;
  static HWY_INLINE Vf low(Vu words) { return hn::BitCast(Df(), hn::ShiftLeft<16>(words)); }
  static HWY_INLINE Vf high(Vu words) { return hn::BitCast(Df(), hn::And(words, hn::Set(Du(), 0xFFFF0000u))); }
  static HWY_INLINE Vu join(Vf low, Vf high) {
    return hn::Or(hn::ShiftRight<16>(round(low)), hn::And(round(high), hn::Set(Du(), 0xFFFF0000u)));
  }

  // The upper 16 bits are right. Adding just under half of the last place that stays, plus its own bit, carries
  // exactly when the rest is above half, or is half and the last place odd. A carry into the exponent is right too.
  static HWY_INLINE Vu round(Vf v) {
    const Vu bits = hn::BitCast(Du(), v);
    const Vu odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(Du(), 1u));
    return hn::Add(bits, hn::Add(odd, hn::Set(Du(), 0x7FFFu)));
  }
};

struct F16Half {
  static constexpr int kUnroll = 1;
  static HWY_INLINE Vf low(Vu words) { return widen(hn::And(words, hn::Set(Du(), 0xFFFFu))); }
  static HWY_INLINE Vf high(Vu words) { return widen(hn::ShiftRight<16>(words)); }
  static HWY_INLINE Vu join(Vf low, Vf high) { return hn::Or(narrow(low), hn::ShiftLeft<16>(narrow(high))); }

  // The f32 that the f16 in the lower half of each word stands for.
  // With its fields moved to an f32's place the number is 2^112 too small (the biases are 15 and 127); the product is
  // exact, also for f16's subnormals. Infinity and NaN keep their fraction and get the largest exponent.
  static HWY_INLINE Vf widen(Vu half) {
    const Vu sign = hn::And(half, hn::Set(Du(), 0x8000u));
    const Vf moved = hn::BitCast(Df(), hn::ShiftLeft<13>(hn::Xor(half, sign)));
    const Vf special = hn::Or(moved, hn::BitCast(Df(), hn::Set(Du(), 0x7F800000u)));
    const Vf value = hn::Mul(moved, hn::Set(Df(), 0x1p112f));
    return hn::Or(hn::IfThenElse(hn::Ge(value, hn::Set(Df(), 0x1p16f)), special, value),
                  hn::BitCast(Df(), hn::ShiftLeft<16>(sign)));
  }

  // The nearest f16, in the lower half of each word.
  static HWY_INLINE Vu narrow(Vf v) {
    const Vf size = hn::Abs(v);
    const Vu bits = hn::BitCast(Du(), size);
    const Vu sign = hn::Xor(hn::BitCast(Du(), v), bits);
    // A normal result: as for bf16, 13 bits go; a carry out of the largest number makes infinity.
    const Vu odd = hn::And(hn::ShiftRight<13>(bits), hn::Set(Du(), 1u));
    const Vu rounded = hn::Add(hn::Sub(bits, hn::Set(Du(), 112u << 23)), hn::Add(odd, hn::Set(Du(), 0xFFFu)));
    const Vu normal = hn::ShiftRight<13>(rounded);
    // A subnormal one: the last place of 0.5 in f32 is 2^-24, f16's smallest step, so this addition rounds to it.
    const Vf half = hn::Set(Df(), 0.5f);
    const Vu tiny = hn::Sub(hn::BitCast(Du(), hn::Add(size, half)), hn::BitCast(Du(), half));
    Vf result = hn::IfThenElse(hn::Lt(size, hn::Set(Df(), 0x1p-14f)), cast(tiny), cast(normal));
    result = hn::IfThenElse(hn::Ge(size, hn::Set(Df(), 0x1p16f)), cast(hn::Set(Du(), 0x7C00u)), result);
    result = hn::IfThenElse(hn::IsNaN(v), cast(hn::Set(Du(), 0x7E00u)), result);
    return hn::Or(hn::BitCast(Du(), result), hn::ShiftRight<16>(sign));
  }

 private:
  static HWY_INLINE Vf cast(Vu v) { return hn::BitCast(Df(), v); }
};

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace ringfold::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
