// Reductions: the arithmetic of kernels/reducer.h for one element, and the pass over memory in accesses of 16 bytes.
#pragma once

#include <type_traits>

#include "kernels/simt/memory.h"

namespace ringfold::kernels::simt {

// --- Elements: `Bits` is how they are stored, `Computed` what they are folded in.

struct F32 {
  using Bits = uint32_t;
  using Computed = float;
  static RF_SIMT float widen(uint32_t v) { return float_of(v); }
  static RF_SIMT uint32_t narrow(float v) { return bits_of(v); }
};
struct F64 {
  using Bits = uint64_t;
  using Computed = double;
  static RF_SIMT double widen(uint64_t v) { return double_of(v); }
  static RF_SIMT uint64_t narrow(double v) { return bits_of(v); }
};
struct F16 {
  using Bits = uint16_t;
  using Computed = float;
  static RF_SIMT float widen(uint16_t v) { return widen_f16(v); }
  static RF_SIMT uint16_t narrow(float v) { return static_cast<uint16_t>(narrow_f16(v)); }
};
struct BF16 {
  using Bits = uint16_t;
  using Computed = float;
  static RF_SIMT float widen(uint16_t v) { return widen_bf16(v); }
  static RF_SIMT uint16_t narrow(float v) { return static_cast<uint16_t>(narrow_bf16(v)); }
};
// Integers wrap; bytes are computed with as 32 bits.
template <class T>
struct Integer {
  using Bits = std::make_unsigned_t<T>;
  using Computed = std::conditional_t<(sizeof(T) < 4), std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>, T>;
  static RF_SIMT Computed widen(Bits v) { return static_cast<Computed>(static_cast<T>(v)); }
  static RF_SIMT Bits narrow(Computed v) { return static_cast<Bits>(v); }
};

// --- Operations

template <class C>
inline constexpr bool kFloating = std::is_floating_point_v<C>;

RF_SIMT uint32_t raw(float v) { return bits_of(v); }
RF_SIMT uint64_t raw(double v) { return bits_of(v); }
RF_SIMT float cooked(uint32_t v) { return float_of(v); }
RF_SIMT double cooked(uint64_t v) { return double_of(v); }

struct Sum {
  template <class C>
  static RF_SIMT C combine(C a, C b) {
    if constexpr (kFloating<C>) {
      return add(a, b);
    } else {
      using U = std::make_unsigned_t<C>;
      return static_cast<C>(static_cast<U>(a) + static_cast<U>(b));
    }
  }
};
struct Prod {
  template <class C>
  static RF_SIMT C combine(C a, C b) {
    if constexpr (kFloating<C>) {
      return multiply(a, b);
    } else {
      using U = std::make_unsigned_t<C>;
      return static_cast<C>(static_cast<U>(a) * static_cast<U>(b));
    }
  }
};
// Of floats: NaN when either is, and of two zeros the one with the sign (without it, for max).
struct Min {
  template <class C>
  static RF_SIMT C combine(C a, C b) {
    if (a < b) return a;
    if (b < a) return b;
    if constexpr (kFloating<C>) return a == b ? cooked(raw(a) | raw(b)) : settle(add(a, b));
    return a;
  }
};
struct Max {
  template <class C>
  static RF_SIMT C combine(C a, C b) {
    if (a > b) return a;
    if (b > a) return b;
    if constexpr (kFloating<C>) return a == b ? cooked(raw(a) & raw(b)) : settle(add(a, b));
    return a;
  }
};

// What follows the fold: floats are multiplied by `factor`, integers divided by `divisor`.
template <class N, bool kPost>
RF_SIMT typename N::Bits leave(typename N::Computed v, double factor, long long divisor) {
  using C = typename N::Computed;
  if constexpr (kFloating<C>) {
    if constexpr (kPost) v = multiply(v, static_cast<C>(factor));
    return N::narrow(settle(v));
  } else if constexpr (kPost) {
    using T = std::conditional_t<std::is_signed_v<C>, std::make_signed_t<typename N::Bits>, typename N::Bits>;
    using Wide = std::conditional_t<std::is_signed_v<C>, int64_t, uint64_t>;
    return static_cast<typename N::Bits>(static_cast<Wide>(static_cast<T>(N::narrow(v))) /
                                         static_cast<Wide>(divisor));
  } else {
    return N::narrow(v);
  }
}

// --- The pass

template <class N>
struct Lanes {
  using Bits = typename N::Bits;
  static constexpr int kCount = 16 / sizeof(Bits), kPerWord = sizeof(Bits) < 4 ? 4 / sizeof(Bits) : 1;
  static RF_SIMT Bits get(const Quad& q, int i) {
    if constexpr (sizeof(Bits) == 8) {
      return static_cast<uint64_t>(q.word[2 * i + 1]) << 32 | q.word[2 * i];
    } else {
      return static_cast<Bits>(q.word[i / kPerWord] >> (8 * sizeof(Bits) * (i % kPerWord)));
    }
  }
  // Into a quad of zeros.
  static RF_SIMT void put(Quad& q, int i, Bits v) {
    if constexpr (sizeof(Bits) == 8) {
      q.word[2 * i] = static_cast<uint32_t>(v);
      q.word[2 * i + 1] = static_cast<uint32_t>(v >> 32);
    } else {
      q.word[i / kPerWord] |= static_cast<uint32_t>(v) << (8 * sizeof(Bits) * (i % kPerWord));
    }
  }
};

inline constexpr int kMostInputs = 64;

// The arguments of a fold, passed by value to the kernel. `head` elements come before the first address that is a
// multiple of 16, and `quads` vectors after it; where the buffers are not aligned alike, all is head.
struct FoldArgs {
  void* out;
  const void* in[kMostInputs];
  int inputs;
  size_t elems, head, quads;
  double factor;
  long long divisor;
};

inline void set_alignment(FoldArgs& args, size_t size) {  // on the host
  const auto place = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16; };
  bool alike = place(args.out) % size == 0;
  for (int k = 0; k < args.inputs; ++k) alike &= place(args.in[k]) == place(args.out);
  const size_t head = (16 - place(args.out)) % 16 / size;
  args.head = alike && head < args.elems ? head : args.elems;
  args.quads = (args.elems - args.head) * size / 16;
}

template <class N, class Op, bool kPost>
RF_SIMT void fold_element(const FoldArgs& args, size_t i) {
  using Bits = typename N::Bits;
  auto acc = N::widen(load_at<Bits>(static_cast<const Bits*>(args.in[0]) + i));
  for (int k = 1; k < args.inputs; ++k) {
    acc = Op::combine(acc, N::widen(load_at<Bits>(static_cast<const Bits*>(args.in[k]) + i)));
  }
  store_at<Bits>(static_cast<Bits*>(args.out) + i, leave<N, kPost>(acc, args.factor, args.divisor));
}

template <class N, bool kPost>
RF_SIMT void store_folded(typename N::Computed* acc, const FoldArgs& args, void* to) {
  Quad q = {};
  RF_UNROLL
  for (int e = 0; e < Lanes<N>::kCount; ++e) {
    Lanes<N>::put(q, e, leave<N, kPost>(acc[e], args.factor, args.divisor));
  }
  store_quad(to, q);
}

// kCount vectors, `stride` apart, from vector `at` on. All loads of a known number of inputs come before their first
// use, so that enough of them are under way; of an unknown number, those of four.
template <class N, class Op, bool kPost, int kInputs, int kCount>
RF_SIMT void fold_quads(const FoldArgs& args, size_t at, size_t stride) {
  using L = Lanes<N>;
  const size_t first = args.head * sizeof(typename N::Bits);
  const auto place = [&](const void* p, int u) {
    return static_cast<const std::byte*>(p) + first + 16 * (at + u * stride);
  };
  typename N::Computed acc[kCount][L::kCount];
  const auto take = [&](const Quad(&q)[kCount], bool start) {
    RF_UNROLL
    for (int u = 0; u < kCount; ++u) {
      RF_UNROLL
      for (int e = 0; e < L::kCount; ++e) {
        const auto v = N::widen(L::get(q[u], e));
        acc[u][e] = start ? v : Op::combine(acc[u][e], v);
      }
    }
  };
  if constexpr (kInputs != 0) {
    Quad q[kInputs][kCount];
    RF_UNROLL
    for (int k = 0; k < kInputs; ++k) {
      RF_UNROLL
      for (int u = 0; u < kCount; ++u) q[k][u] = load_quad(place(args.in[k], u));
    }
    RF_UNROLL
    for (int k = 0; k < kInputs; ++k) take(q[k], k == 0);
  } else {
    constexpr int kAtOnce = 4;
    for (int k = 0; k < args.inputs; k += kAtOnce) {
      Quad q[kAtOnce][kCount];
      RF_UNROLL
      for (int j = 0; j < kAtOnce; ++j) {
        RF_UNROLL
        for (int u = 0; u < kCount; ++u) {
          if (k + j < args.inputs) q[j][u] = load_quad(place(args.in[k + j], u));
        }
      }
      RF_UNROLL
      for (int j = 0; j < kAtOnce; ++j) {
        if (k + j < args.inputs) take(q[j], k + j == 0);
      }
    }
  }
  RF_UNROLL
  for (int u = 0; u < kCount; ++u) {
    store_folded<N, kPost>(acc[u], args, const_cast<std::byte*>(place(args.out, u)));
  }
}

// The work of one block: kInputs == 0 means any number.
template <class N, class Op, bool kPost, int kInputs, class Block>
RF_SIMT void fold(Block& block, const FoldArgs& args) {
  constexpr int kUnroll = kInputs == 0 ? 1 : kInputs >= 5 ? 1 : kInputs >= 3 ? 2 : 4;
  block.threads([&](size_t thread, size_t threads) {
    const size_t all = block.count() * threads, me = block.index() * threads + thread;
    for (size_t i = me; i < args.head; i += all) fold_element<N, Op, kPost>(args, i);
    size_t at = block.index() * threads * kUnroll + thread;
    for (; at + (kUnroll - 1) * threads < args.quads; at += all * kUnroll) {
      fold_quads<N, Op, kPost, kInputs, kUnroll>(args, at, threads);
    }
    for (int u = 0; u < kUnroll && at < args.quads; ++u, at += threads) {
      fold_quads<N, Op, kPost, kInputs, 1>(args, at, 0);
    }
    const size_t tail = args.head + args.quads * 16 / sizeof(typename N::Bits);
    for (size_t i = tail + me; i < args.elems; i += all) fold_element<N, Op, kPost>(args, i);
  });
}

// A copy is a fold of one input of bytes.
template <class Block>
RF_SIMT void copy(Block& block, const FoldArgs& args) {
  fold<Integer<uint8_t>, Sum, false, 1>(block, args);
}

}  // namespace ringfold::kernels::simt
