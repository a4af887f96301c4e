// all_reduce through NVLink's switch (NVLS): memory of all GPUs at one address, where a load gives the sum of all
// copies and a store writes to all of them. Each rank works on one part, so every value crosses each GPU's links once
// in each direction, whatever the number of ranks.
//
// The switch adds in an order of its own, with one rounding for 16-bit floats: this stands outside the promise that
// results have the same bits however they are made (docs/design.md), and is never used in deterministic mode. All
// ranks end with the same bits, since one load's result is written to all.
#pragma once

#include "kernels/simt/all_reduce.h"

namespace ringfold::kernels::simt {

// A multicast address. On a CPU, where there is none, the memories that it would stand for.
struct Multicast {
  std::byte* address;
  std::byte* copies[kMostRanks];
  int count;
};

#if defined(__CUDACC__)
// Of 16 bytes of N at an offset that is a multiple of 16.
template <class N>
RF_SIMT Quad load_sum(const Multicast& m, size_t offset) {
  Quad q = {};
#if __CUDA_ARCH__ >= 900
  const std::byte* const p = m.address + offset;
#define RF_LOAD_SUM(kind)                                                               \
  asm volatile("multimem.ld_reduce.relaxed.sys.global.add" kind " {%0,%1,%2,%3}, [%4];" \
               : "=r"(q.word[0]), "=r"(q.word[1]), "=r"(q.word[2]), "=r"(q.word[3])     \
               : "l"(p)                                                                 \
               : "memory")
  if constexpr (std::is_same_v<N, F16>) {
    RF_LOAD_SUM(".acc::f32.v4.f16x2");
  } else if constexpr (std::is_same_v<N, BF16>) {
    RF_LOAD_SUM(".acc::f32.v4.bf16x2");
  } else {
    float v[4];
    asm volatile("multimem.ld_reduce.relaxed.sys.global.add.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
                 : "l"(p)
                 : "memory");
    for (int i = 0; i < 4; ++i) q.word[i] = __float_as_uint(v[i]);
  }
#undef RF_LOAD_SUM
#else
  (void)m;
  (void)offset;
  __trap();  // launches are refused before
#endif
  return q;
}
RF_SIMT void store_to_all(const Multicast& m, size_t offset, const Quad& q) {
#if __CUDA_ARCH__ >= 900
  asm volatile("multimem.st.relaxed.sys.global.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(m.address + offset),
               "f"(__uint_as_float(q.word[0])), "f"(__uint_as_float(q.word[1])), "f"(__uint_as_float(q.word[2])),
               "f"(__uint_as_float(q.word[3]))
               : "memory");
#else
  (void)m;
  (void)offset;
  (void)q;
  __trap();
#endif
}
// Between uses of the same memory at a GPU's own address and at the multicast one.
RF_SIMT void change_address() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.alias;" ::: "memory");
#endif
}
#else
template <class N>
RF_SIMT Quad load_sum(const Multicast& m, size_t offset) {
  using L = Lanes<N>;
  Quad sum = {};
  Quad q[kMostRanks];
  for (int r = 0; r < m.count; ++r) q[r] = load_quad(m.copies[r] + offset);
  for (int e = 0; e < L::kCount; ++e) {
    auto acc = N::widen(L::get(q[0], e));
    for (int r = 1; r < m.count; ++r) acc = add(acc, N::widen(L::get(q[r], e)));
    L::put(sum, e, leave<N, false>(acc, 1, 1));
  }
  return sum;
}
RF_SIMT void store_to_all(const Multicast& m, size_t offset, const Quad& q) {
  for (int r = 0; r < m.count; ++r) store_quad(m.copies[r] + offset, q);
}
RF_SIMT void change_address() {}
#endif

struct MulticastArgs {
  Ranks at;
  Multicast
      data;  // `quads` vectors of 16 bytes: inputs, and then results. What is beyond the elements has no meaning
  size_t quads;
  double factor;
};

// Sums of f32, f16 and bf16; kPost: multiplied by `factor` after that.
template <class N, bool kPost, class Block>
RF_SIMT void multicast_all_reduce(Block& block, const MulticastArgs& args) {
  using L = Lanes<N>;
  const Ranks& at = args.at;
  if (!begin(block, at)) return;
  const uint32_t number = at.mine().barriers;
  if (meet(block, at, number + 1)) {
    const Part part = part_of(args.quads, at.rank, at.ranks);
    change_address();
    block.threads([&](size_t thread, size_t threads) {
      const size_t all = block.count() * threads, me = block.index() * threads + thread;
      for (size_t i = part.begin + me; i < part.end; i += all) {
        Quad q = load_sum<N>(args.data, 16 * i);
        if constexpr (kPost) {
          Quad scaled = {};
          RF_UNROLL
          for (int e = 0; e < L::kCount; ++e)
            L::put(scaled, e, leave<N, true>(N::widen(L::get(q, e)), args.factor, 1));
          q = scaled;
        }
        store_to_all(args.data, 16 * i, q);
      }
    });
    change_address();
    meet(block, at, number + 2);
  }
  finish(block, at, [&](RankState& state) { state.barriers = number + 2; });
}

}  // namespace ringfold::kernels::simt
