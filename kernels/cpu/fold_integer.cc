// Integers. They wrap, so sums and products are the same bits signed and unsigned, and are compiled unsigned only.
#include <type_traits>

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/fold_integer.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/find.h"
#include "kernels/cpu/fold-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ringfold::kernels {
namespace HWY_NAMESPACE {

struct Min : Op {
  template <class D, class V>
  static HWY_INLINE V combine(D, V a, V b) {
    return hn::Min(a, b);
  }
};

struct Max : Op {
  template <class D, class V>
  static HWY_INLINE V combine(D, V a, V b) {
    return hn::Max(a, b);
  }
};

// Bytes to be multiplied: no processor multiplies vectors of bytes, so pairs of them travel as 16-bit lanes, the even
// one with rubbish above it, which cannot reach the lower half of a product.
#if HWY_TARGET == HWY_SCALAR
using BytePairs = Plain<uint8_t>;
#else
struct BytePairs {
  using Stored = hn::ScalableTag<uint8_t>;
  using D = hn::ScalableTag<uint16_t>;
  using V = hn::Vec<D>;
  static constexpr int kVecs = 2;
  static constexpr int kUnroll = 2;
  static HWY_INLINE void widen(hn::Vec<Stored> stored, V* v) {
    v[0] = hn::BitCast(D(), stored);
    v[1] = hn::ShiftRight<8>(v[0]);
  }
  static HWY_INLINE hn::Vec<Stored> narrow(const V* v) {
    const V low = hn::And(v[0], hn::Set(D(), uint16_t{0xFF}));
    return hn::BitCast(Stored(), hn::Or(low, hn::ShiftLeft<8>(v[1])));
  }
};
#endif

// The sum, then division, one element at a time, of what is still in the first-level cache.
template <class T>
void average(void* out, const void* const* in, int inputs, size_t elems, const Post& post) {
  using U = hwy::MakeUnsigned<T>;
  using Wide = std::conditional_t<hwy::IsSigned<T>(), int64_t, uint64_t>;
  constexpr size_t kBlock = 4096 / sizeof(T);
  const auto divisor = static_cast<Wide>(post.divisor);
  T* result = static_cast<T*>(out);
  for (size_t begin = 0; begin < elems; begin += kBlock) {
    const size_t end = elems - begin < kBlock ? elems : begin + kBlock;
    fold_any<Plain<U>, Sum, false>(static_cast<U*>(out), in, inputs, begin, end, post);
    for (size_t i = begin; i < end; ++i) result[i] = static_cast<T>(static_cast<Wide>(result[i]) / divisor);
  }
}

template <class T>
Reducer find_op(ReduceKind kind) {
  using U = hwy::MakeUnsigned<T>;
  using Product = std::conditional_t<sizeof(T) == 1, BytePairs, Plain<U>>;
  switch (kind) {
    case ReduceKind::kSum: return reducer_of<Plain<U>, Sum>();
    case ReduceKind::kProd: return reducer_of<Product, Prod>();
    case ReduceKind::kMin: return reducer_of<Plain<T>, Min>();
    case ReduceKind::kMax: return reducer_of<Plain<T>, Max>();
    case ReduceKind::kAvg: {
      Reducer r = reducer_of<Plain<U>, Sum>();
      r.fold_complete = r.fold_complete_streaming = average<T>;  // divides what is in the cache: it cannot stream
      return r;
    }
    case ReduceKind::kScaledSum: return {};
  }
  return {};
}

Reducer find_integer(DataType type, ReduceKind kind) {
  switch (type) {
    case DataType::kI8: return find_op<int8_t>(kind);
    case DataType::kU8: return find_op<uint8_t>(kind);
    case DataType::kI32: return find_op<int32_t>(kind);
    case DataType::kU32: return find_op<uint32_t>(kind);
    case DataType::kI64: return find_op<int64_t>(kind);
    case DataType::kU64: return find_op<uint64_t>(kind);
    default: return {};
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace ringfold::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ringfold::kernels {

HWY_EXPORT(find_integer);

Reducer find_integer_reducer(DataType type, ReduceKind kind) {
  return HWY_DYNAMIC_DISPATCH(find_integer)(type, kind);
}

}  // namespace ringfold::kernels
#endif
