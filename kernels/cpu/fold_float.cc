// f64, f32, and the 16-bit floats that are folded in f32.
//
// A 16-bit input is read as 32-bit words of two elements, so that widening needs no instruction that crosses lanes:
// the low halves make one vector of f32, the high halves another. bf16 is the upper half of an f32, so widening is a
// shift or a mask. f16 takes some integer arithmetic, or one instruction where the processor has it.
#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/fold_float.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/find.h"
#include "kernels/cpu/fold-inl.h"
#include "kernels/cpu/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ringfold::kernels {
namespace HWY_NAMESPACE {

// Minimum with -0 < +0 and NaN when either is NaN: both selections answer their second name unless the comparison
// holds. They differ only for equal values, where `or` keeps the sign of -0, and with a NaN, where `or` keeps a NaN.
struct Min : Op {
  template <class D, class V>
  static HWY_INLINE V combine(D, V a, V b) {
    return hn::Or(hn::IfThenElse(hn::Lt(a, b), a, b), hn::IfThenElse(hn::Lt(b, a), b, a));
  }
};

// max(a, b) = -min(-a, -b), which also makes +0 the larger zero.
struct Max : Min {
  template <class D, class V>
  static HWY_INLINE V enter(D, V v) {
    return hn::Neg(v);
  }
  template <class D, class V>
  static HWY_INLINE V leave(D d, V v) {
    return settle_nan(d, hn::Neg(v));
  }
};

// `Half` makes f32 of the 16-bit floats in the halves of each word, and joins them again, rounding to nearest even;
// NaNs are settled before.
#if HWY_TARGET == HWY_SCALAR
template <class Half>
struct Halves {
  using Stored = hn::Rebind<uint16_t, Df>;
  using D = Df;
  using V = Vf;
  static constexpr int kVecs = 1;
  static constexpr int kUnroll = 1;
  static HWY_INLINE void widen(hn::Vec<Stored> stored, V* v) { v[0] = Half::low(hn::PromoteTo(Du(), stored)); }
  static HWY_INLINE hn::Vec<Stored> narrow(const V* v) {
    return hn::TruncateTo(Stored(), Half::join(v[0], hn::Zero(Df())));
  }
};
#else
template <class Half>
struct Halves {
  using Stored = hn::ScalableTag<uint16_t>;
  using D = Df;
  using V = Vf;
  static constexpr int kVecs = 2;
  static constexpr int kUnroll = Half::kUnroll;
  static HWY_INLINE void widen(hn::Vec<Stored> stored, V* v) {
    v[0] = Half::low(hn::BitCast(Du(), stored));
    v[1] = Half::high(hn::BitCast(Du(), stored));
  }
  static HWY_INLINE hn::Vec<Stored> narrow(const V* v) { return hn::BitCast(Stored(), Half::join(v[0], v[1])); }
};
#endif

using BF16 = Halves<BF16Half>;

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2  // smaller is better
// Converted by the processor (F16C), which rounds to nearest even and knows subnormals.
struct F16 {
  using Stored = hn::Rebind<uint16_t, Df>;
  using Half = hn::Rebind<hwy::float16_t, Df>;
  using D = Df;
  using V = Vf;
  static constexpr int kVecs = 1;
  static constexpr int kUnroll = 4;
  static HWY_INLINE void widen(hn::Vec<Stored> stored, V* v) {
    v[0] = hn::PromoteTo(Df(), hn::BitCast(Half(), stored));
  }
  static HWY_INLINE hn::Vec<Stored> narrow(const V* v) { return hn::BitCast(Stored(), hn::DemoteTo(Half(), v[0])); }
};
#else
using F16 = Halves<F16Half>;
#endif

template <class P>
Reducer find_op(ReduceKind kind) {
  switch (kind) {
    case ReduceKind::kSum: return reducer_of<P, Sum>();
    case ReduceKind::kProd: return reducer_of<P, Prod>();
    case ReduceKind::kMin: return reducer_of<P, Min>();
    case ReduceKind::kMax: return reducer_of<P, Max>();
    case ReduceKind::kAvg:
    case ReduceKind::kScaledSum:
      return {reduce<P, Sum, false>, reduce<P, Sum, true>, reduce_streaming<P, Sum, false>,
              reduce_streaming<P, Sum, true>};
  }
  return {};
}

Reducer find_float(DataType type, ReduceKind kind) {
  switch (type) {
    case DataType::kF64: return find_op<Plain<double>>(kind);
    case DataType::kF32: return find_op<Plain<float>>(kind);
    case DataType::kF16: return find_op<F16>(kind);
    case DataType::kBF16: return find_op<BF16>(kind);
    default: return {};
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace ringfold::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ringfold::kernels {

HWY_EXPORT(find_float);

Reducer find_float_reducer(DataType type, ReduceKind kind) { return HWY_DYNAMIC_DISPATCH(find_float)(type, kind); }

}  // namespace ringfold::kernels
#endif
