// all_reduce in one kernel on every rank.
//
// One-shot, for small counts: every rank sends all of its values to all others, in packets of 8 bytes of data that
// carry a tag in the same 8 bytes each half of it. Who sees the tag has the data, so a call takes one crossing of the
// link and no barrier. Two sets of packets alternate: a rank that sends for call c + 1 has received all packets of
// call c, so a slower peer still reads those of call c at most, and for c + 2 it needs that peer's packets of c + 1.
//
// Two-shot, for the others: each rank folds one part of the inputs, read where they lie, and writes the result to all
// outputs. (With a codec, calls are programs of the kernels of combine.h: comm/stream_player.h.)
//
// All folds are in the order of ranks: the bits are those of one fold of kernels/reducer.h over all ranks' inputs, on
// every rank.
#pragma once

#include "kernels/simt/fold.h"
#include "kernels/simt/ranks.h"

namespace ringfold::kernels::simt {

// --- One-shot

struct OneShotArgs {
  Ranks at;
  const void* in;
  void* out;                       // may be `in`
  std::byte* packets[kMostRanks];  // of every rank: 2 * ranks * capacity packets of 16 bytes, zeros at first
  size_t capacity;                 // packets: 8 bytes of values each
  size_t elems;
  double factor;
  long long divisor;
};

// Tags are never 0, and their lowest bit alternates.
RF_SIMT uint32_t next_tag(uint32_t tag) { return tag == ~0u ? 2 : tag + 1; }

RF_SIMT uint64_t load_some(const std::byte* p, size_t bytes) {
  if (bytes >= 8 && reinterpret_cast<uintptr_t>(p) % 8 == 0) return load_at<uint64_t>(p);
  uint64_t v = 0;
  for (size_t i = 0; i < 8 && i < bytes; ++i) v |= static_cast<uint64_t>(p[i]) << (8 * i);
  return v;
}
RF_SIMT void store_some(std::byte* p, size_t bytes, uint64_t v) {
  if (bytes >= 8 && reinterpret_cast<uintptr_t>(p) % 8 == 0) return store_at<uint64_t>(p, v);
  for (size_t i = 0; i < 8 && i < bytes; ++i) p[i] = static_cast<std::byte>(v >> (8 * i));
}

template <class N, class Op, bool kPost, class Block>
RF_SIMT void one_shot(Block& block, const OneShotArgs& args) {
  using L = Lanes<N>;
  constexpr int kElems = L::kCount / 2;  // in a packet
  const Ranks& at = args.at;
  if (!begin(block, at)) return;
  const auto ranks = static_cast<size_t>(at.ranks);
  const uint32_t tag = next_tag(at.mine().tag);
  const size_t set = tag % 2, bytes = args.elems * sizeof(typename N::Bits), packets = (bytes + 7) / 8;
  const auto place = [&](int of, int from, size_t i) {
    return args.packets[of] + 16 * ((set * ranks + static_cast<size_t>(from)) * args.capacity + i);
  };
  const auto* const in = static_cast<const std::byte*>(args.in);
  auto* const out = static_cast<std::byte*>(args.out);
  stagger(block, at, 0x10000u);
  block.threads([&](size_t thread, size_t threads) {
    for (size_t i = block.index() * threads + thread; i < packets; i += block.count() * threads) {
      const uint64_t v = load_some(in + 8 * i, bytes - 8 * i), flag = static_cast<uint64_t>(tag) << 32;
      const Packet packet = {{flag | static_cast<uint32_t>(v), flag | v >> 32}};
      for (int k = 1; k < at.ranks; ++k) {
        const int to = at.rank + k < at.ranks ? at.rank + k : at.rank + k - at.ranks;
        store_packet(place(to, at.rank, i), packet);
      }
    }
  });
  bool ok = true;
  block.threads([&](size_t thread, size_t threads) {
    for (size_t i = block.index() * threads + thread; i < packets && ok; i += block.count() * threads) {
      typename N::Computed acc[kElems] = {};
      for (int r = 0; r < at.ranks; ++r) {
        uint64_t v;
        if (r == at.rank) {
          v = load_some(in + 8 * i, bytes - 8 * i);
        } else {
          Packet packet;
          ok = wait_until(at, r, [&] {
            packet = load_packet(place(at.rank, r, i));
            return packet.half[0] >> 32 == tag && packet.half[1] >> 32 == tag;
          });
          if (!ok) return;
          v = static_cast<uint32_t>(packet.half[0]) | packet.half[1] << 32;
        }
        const Quad q = {{static_cast<uint32_t>(v), static_cast<uint32_t>(v >> 32), 0, 0}};
        RF_UNROLL
        for (int e = 0; e < kElems; ++e) {
          const auto x = N::widen(L::get(q, e));
          acc[e] = r == 0 ? x : Op::combine(acc[e], x);
        }
      }
      Quad q = {};
      RF_UNROLL
      for (int e = 0; e < kElems; ++e) L::put(q, e, leave<N, kPost>(acc[e], args.factor, args.divisor));
      store_some(out + 8 * i, bytes - 8 * i, q.word[0] | static_cast<uint64_t>(q.word[1]) << 32);
    }
  });
  finish(block, at, [&](RankState& state) { state.tag = tag; });
}

// --- Two-shot of values

struct TwoShotArgs {
  Ranks at;
  const void* in[kMostRanks];  // of every rank
  void* out[kMostRanks];       // may be `in`
  size_t elems;
  size_t quads;  // vectors of 16 bytes; 0 unless all buffers start at a multiple of 16
  double factor;
  long long divisor;
};

inline void set_alignment(TwoShotArgs& args, size_t size) {  // on the host
  bool aligned = true;
  for (int r = 0; r < args.at.ranks; ++r) {
    aligned &=
        reinterpret_cast<uintptr_t>(args.in[r]) % 16 == 0 && reinterpret_cast<uintptr_t>(args.out[r]) % 16 == 0;
  }
  args.quads = aligned ? args.elems * size / 16 : 0;
}

// [begin, end) of rank's part of n.
struct Part {
  size_t begin, end;
};
RF_SIMT Part part_of(size_t n, int rank, int ranks) {
  const size_t each = (n + static_cast<size_t>(ranks) - 1) / static_cast<size_t>(ranks);
  const size_t begin = each * static_cast<size_t>(rank);
  return {begin < n ? begin : n, begin + each < n ? begin + each : n};
}

template <class N, class Op, bool kPost, int kRanks, class Block>
RF_SIMT void two_shot(Block& block, const TwoShotArgs& args) {
  using Bits = typename N::Bits;
  using L = Lanes<N>;
  const Ranks& at = args.at;
  if (!begin(block, at)) return;
  const uint32_t number = at.mine().barriers;
  if (meet(block, at, number + 1)) {
    const Part part = part_of(args.quads, at.rank, kRanks);
    const size_t done = args.quads * L::kCount;
    const Part rest = part_of(args.elems - done, at.rank, kRanks);
    block.threads([&](size_t thread, size_t threads) {
      const size_t all = block.count() * threads, me = block.index() * threads + thread;
      for (size_t i = part.begin + me; i < part.end; i += all) {
        Quad q[kRanks];
        RF_UNROLL
        for (int r = 0; r < kRanks; ++r) q[r] = load_quad(static_cast<const std::byte*>(args.in[r]) + 16 * i);
        Quad result = {};
        RF_UNROLL
        for (int e = 0; e < L::kCount; ++e) {
          auto acc = N::widen(L::get(q[0], e));
          RF_UNROLL
          for (int r = 1; r < kRanks; ++r) acc = Op::combine(acc, N::widen(L::get(q[r], e)));
          L::put(result, e, leave<N, kPost>(acc, args.factor, args.divisor));
        }
        RF_UNROLL
        for (int r = 0; r < kRanks; ++r) store_quad(static_cast<std::byte*>(args.out[r]) + 16 * i, result);
      }
      for (size_t i = done + rest.begin + me; i < done + rest.end; i += all) {
        auto acc = N::widen(load_at<Bits>(static_cast<const Bits*>(args.in[0]) + i));
        RF_UNROLL
        for (int r = 1; r < kRanks; ++r) {
          acc = Op::combine(acc, N::widen(load_at<Bits>(static_cast<const Bits*>(args.in[r]) + i)));
        }
        const Bits result = leave<N, kPost>(acc, args.factor, args.divisor);
        RF_UNROLL
        for (int r = 0; r < kRanks; ++r) store_at<Bits>(static_cast<Bits*>(args.out[r]) + i, result);
      }
    });
    meet(block, at, number + 2);
  }
  finish(block, at, [&](RankState& state) { state.barriers = number + 2; });
}

}  // namespace ringfold::kernels::simt
