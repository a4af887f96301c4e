// One pass over memory that folds many inputs into one output: the loop shared by all types and operations, compiled
// once per instruction set (included by fold_float.cc and fold_integer.cc under Highway's foreach_target).
//
// The loop knows two things only by name:
//   Pack  how elements are computed with: `widen` turns one vector of stored elements into kVecs vectors to compute
//         with, `narrow` turns them back. Rounding happens in `narrow`, hence once, however many inputs there are.
//   Op    what is done to vectors: `enter` each widened one, `combine` two from the left, `leave` once at the end.
// All inputs of kUnroll vectors are read before their output is written, so the output may be an input. The
// last elements, fewer than a vector, take the same path with part of the vector: an element's bits cannot depend on
// its position.
#if defined(RINGFOLD_FOLD_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef RINGFOLD_FOLD_INL_H
#undef RINGFOLD_FOLD_INL_H
#else
#define RINGFOLD_FOLD_INL_H
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/copy.h"
#include "kernels/reducer.h"

HWY_BEFORE_NAMESPACE();
namespace ringfold::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Elements that are computed with as they are.
template <class T>
struct Plain {
  using Stored = hn::ScalableTag<T>;
  using D = Stored;
  using V = hn::Vec<D>;
  static constexpr int kVecs = 1;
  static constexpr int kUnroll = 4;
  static HWY_INLINE void widen(V stored, V* v) { v[0] = stored; }
  static HWY_INLINE V narrow(const V* v) { return v[0]; }
};
template <class P>
using Elem = hn::TFromD<typename P::Stored>;

// A NaN result is the one NaN that reducer.h names; integers pass.
template <class D, class V>
HWY_INLINE V settle_nan(D d, V v) {
  using T = hn::TFromD<D>;
  if constexpr (hwy::IsFloat<T>()) {
    const auto bits = static_cast<hwy::MakeUnsigned<T>>(sizeof(T) == 4 ? 0x7FC00000ull : 0x7FF8000000000000ull);
    return hn::IfThenElse(hn::IsNaN(v), hn::BitCast(d, hn::Set(hn::RebindToUnsigned<D>(), bits)), v);
  } else {
    return v;
  }
}

struct Op {
  template <class D, class V>
  static HWY_INLINE V enter(D, V v) {
    return v;
  }
  template <class D, class V>
  static HWY_INLINE V leave(D d, V v) {
    return settle_nan(d, v);
  }
};

struct Sum : Op {
  template <class D, class V>
  static HWY_INLINE V combine(D, V a, V b) {
    return hn::Add(a, b);
  }
};

struct Prod : Op {
  template <class D, class V>
  static HWY_INLINE V combine(D, V a, V b) {
    return hn::Mul(a, b);
  }
};

// The first `count` lanes, without touching memory past them. A masked access where there is one for lanes of every
// size; elsewhere through the stack, which costs the 15 ns of a load that waits for the smaller stores before it.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> load_some(D d, const T* p, size_t count) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3  // smaller is better
  return hn::MaskedLoad(hn::FirstN(d, count), d, p);
#else
  alignas(64) T buffer[hn::MaxLanes(D())] = {};
  std::memcpy(buffer, p, count * sizeof(T));
  return hn::Load(d, buffer);
#endif
}

template <class D, class T = hn::TFromD<D>>
HWY_INLINE void store_some(hn::Vec<D> v, D d, T* p, size_t count) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3  // smaller is better
  hn::BlendedStore(v, hn::FirstN(d, count), d, p);
#else
  alignas(64) T buffer[hn::MaxLanes(D())];
  hn::Store(v, d, buffer);
  std::memcpy(p, buffer, count * sizeof(T));
#endif
}

// kUnroll vectors of one input from index `at`, widened and entered; with kTail the `count` elements there, fewer
// than a vector.
template <class P, class Op, int kUnroll, bool kTail>
HWY_INLINE void load_packs(const void* in, size_t at, size_t count, typename P::V* v) {
  constexpr typename P::Stored stored;
  const Elem<P>* from = static_cast<const Elem<P>*>(in) + at;
  for (int u = 0; u < kUnroll; ++u) {
    if constexpr (kTail) {
      P::widen(load_some(stored, from, count), v);
    } else {
      P::widen(hn::LoadU(stored, from + u * hn::MaxLanes(stored)), v + u * P::kVecs);
    }
  }
  for (int j = 0; j < kUnroll * P::kVecs; ++j) v[j] = Op::enter(typename P::D(), v[j]);
}

// One step of the pass. kInputs == 0: their number is known at run time only.
template <class P, class Op, bool kScale, int kInputs, int kUnroll, bool kTail = false, bool kStream = false>
HWY_INLINE void fold_packs(Elem<P>* out, const void* const* in, int inputs, size_t at, typename P::V scale,
                           size_t count = 0) {
  constexpr typename P::Stored stored;
  constexpr typename P::D d;
  constexpr int kVecs = kUnroll * P::kVecs;
  typename P::V acc[kVecs];
  typename P::V next[kVecs];
  load_packs<P, Op, kUnroll, kTail>(in[0], at, count, acc);
  const int n = kInputs != 0 ? kInputs : inputs;
  for (int k = 1; k < n; ++k) {
    load_packs<P, Op, kUnroll, kTail>(in[k], at, count, next);
    for (int j = 0; j < kVecs; ++j) acc[j] = Op::combine(d, acc[j], next[j]);
  }
  for (auto& v : acc) {
    if constexpr (kScale) v = hn::Mul(v, scale);
    v = Op::leave(d, v);
  }
  for (int u = 0; u < kUnroll; ++u) {
    const auto result = P::narrow(&acc[u * P::kVecs]);
    if constexpr (kTail) {
      store_some(result, stored, out + at, count);
    } else if constexpr (kStream) {
      hn::Stream(result, stored, out + at + u * hn::MaxLanes(stored));
    } else {
      hn::StoreU(result, stored, out + at + u * hn::MaxLanes(stored));
    }
  }
}

// Elements [begin, end). kStream: stores go around the caches, from the first element that starts a cache line on.
template <class P, class Op, bool kScale, int kInputs, bool kStream = false>
HWY_NOINLINE void fold_range(Elem<P>* out, const void* const* in, int inputs, size_t begin, size_t end,
                             const Post& post) {
  using T = hn::TFromD<typename P::D>;
  const auto scale = hn::Set(typename P::D(), kScale ? static_cast<T>(post.factor) : T{1});
  constexpr size_t kLanes = hn::MaxLanes(typename P::Stored());
  constexpr int kUnroll = P::kUnroll;
  const void* local[kInputs != 0 ? kInputs : 1];  // the compiler cannot know that a store to `out` spares in[k]
  if constexpr (kInputs != 0) {
    // One by one: a vector load of pointers that the caller has just stored one by one waits until they are in the
    // cache (a failed store forwarding), which costs more than a short fold itself.
    for (int k = 0; k < kInputs; ++k) local[k] = const_cast<const void* const volatile*>(in)[k];
    in = local;
  }
  size_t i = begin;
  if constexpr (kStream) {
    constexpr size_t kLine = 64;
    const size_t past = reinterpret_cast<uintptr_t>(out + i) % kLine;
    const size_t to_line = past % sizeof(*out) != 0 ? end - i : (kLine - past) % kLine / sizeof(*out);
    const size_t head = i + (to_line < end - i ? to_line : end - i);
    for (; i < head; i += kLanes < head - i ? kLanes : head - i) {
      fold_packs<P, Op, kScale, 0, 1, true>(out, in, inputs, i, scale, kLanes < head - i ? kLanes : head - i);
    }
  }
  for (; end - i >= kUnroll * kLanes; i += kUnroll * kLanes) {
    fold_packs<P, Op, kScale, kInputs, kUnroll, false, kStream>(out, in, inputs, i, scale);
  }
  for (; end - i >= kLanes; i += kLanes) {
    fold_packs<P, Op, kScale, kInputs, 1, false, kStream>(out, in, inputs, i, scale);
  }
  if (i < end) fold_packs<P, Op, kScale, 0, 1, true>(out, in, inputs, i, scale, end - i);
  if constexpr (kStream) hwy::FlushStream();
}

// Sums of up to 8 inputs, the daily case, have their loops unrolled, which is worth up to 1.5x in the second-level
// cache (Zen 5, AVX-512); in main memory nothing. Streaming stores are no faster than that, so only two inputs are.
template <class P, class Op, bool kScale, bool kStream = false>
void fold_any(Elem<P>* out, const void* const* in, int inputs, size_t begin, size_t end, const Post& post) {
  if constexpr (std::is_same_v<Op, Sum> && HWY_TARGET != HWY_SCALAR) {
    if (inputs == 2) return fold_range<P, Op, kScale, 2, kStream>(out, in, inputs, begin, end, post);
    if constexpr (!kStream) {
      switch (inputs) {
        case 3: return fold_range<P, Op, kScale, 3>(out, in, inputs, begin, end, post);
        case 4: return fold_range<P, Op, kScale, 4>(out, in, inputs, begin, end, post);
        case 5: return fold_range<P, Op, kScale, 5>(out, in, inputs, begin, end, post);
        case 6: return fold_range<P, Op, kScale, 6>(out, in, inputs, begin, end, post);
        case 7: return fold_range<P, Op, kScale, 7>(out, in, inputs, begin, end, post);
        case 8: return fold_range<P, Op, kScale, 8>(out, in, inputs, begin, end, post);
        default: break;
      }
    }
  }
  fold_range<P, Op, kScale, 0, kStream>(out, in, inputs, begin, end, post);
}

// The ReduceFns of a pack and an operation.
template <class P, class Op, bool kScale>
void reduce(void* out, const void* const* in, int inputs, size_t elems, const Post& post) {
  if (inputs == 1 && !kScale) {
    if (elems != 0 && out != in[0]) std::memcpy(out, in[0], elems * sizeof(Elem<P>));
    return;
  }
  fold_any<P, Op, kScale>(static_cast<Elem<P>*>(out), in, inputs, 0, elems, post);
}

template <class P, class Op, bool kScale>
void reduce_streaming(void* out, const void* const* in, int inputs, size_t elems, const Post& post) {
  if (inputs == 1 && !kScale) {
    if (out != in[0]) copy_streaming(out, in[0], elems * sizeof(Elem<P>));
    return;
  }
  fold_any<P, Op, kScale, true>(static_cast<Elem<P>*>(out), in, inputs, 0, elems, post);
}

template <class P, class Op>
Reducer reducer_of() {
  return {reduce<P, Op, false>, reduce<P, Op, false>, reduce_streaming<P, Op, false>, reduce_streaming<P, Op, false>};
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace ringfold::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
