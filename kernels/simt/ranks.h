// What ranks on GPUs share while one kernel of each works on a collective: flags, and waiting that always ends.
//
// Every rank has a RankState and maps those of all others. A kernel is one launch on every rank with the same number
// of blocks; block b of a rank meets only block b of the others. Blocks wait for each other, so all of a launch must
// run at the same time: no more than fit, by a cooperative launch.
//
// Counters live in this memory and are advanced by the kernel itself, never passed to it: a captured graph that is
// replayed finds them as the last replay left them. They wrap, and are compared by signed distance.
//
// One launch of a rank at a time: who finds another one inside gives up, and so do all ranks.
//
// Waits are bounded. Who gives up notes what it waited for in its own state and raises the abort word of all ranks;
// nothing that was waited for in vain is used. After that the memory must be made anew.
#pragma once

#include "kernels/simt/memory.h"

namespace ringfold::kernels::simt {

inline constexpr int kMostRanks = 8;
inline constexpr int kMostBlocks = 256;

// In a rank's memory; zeros at first.
struct RankState {
  uint64_t calls;     // that are complete
  uint32_t tag;       // of the last call that sent packets
  uint32_t barriers;  // that all blocks have passed
  uint32_t finished;  // blocks that have done the current call
  uint32_t abort;     // not zero: leave. Written by peers and by the host
  uint32_t failure;   // not zero: 1 + the rank that was waited for in vain, or kAborted, or kBusy
  uint32_t running;   // blocks that have begun the current call
  uint32_t arrived[kMostBlocks][kMostRanks];  // the barrier that block b of rank r has come to
};
inline constexpr uint32_t kAborted = 0xFFu, kBusy = 0xFEu;

struct Ranks {
  int rank, ranks;
  RankState* state[kMostRanks];  // of every rank, as this one maps it
  uint64_t timeout_ns;
  uint32_t delay;  // for tests: not zero scatters pauses over the kernel
  RF_SIMT RankState& mine() const { return *state[rank]; }
};

// One thread's wait until `done` says so.
template <class Done>
RF_SIMT bool wait_until(const Ranks& at, int peer, Done done) {
  const uint64_t begin = now_ns();
  for (uint32_t turn = 0;; ++turn) {
    if (done()) return true;
    if (peek(&at.mine().abort) != 0) {
      claim(&at.mine().failure, kAborted);
      return false;
    }
    if (turn % 64 == 63 && now_ns() - begin > at.timeout_ns) {
      claim(&at.mine().failure, static_cast<uint32_t>(peer) + 1);
      for (int r = 0; r < at.ranks; ++r) poke(&at.state[r]->abort, 1);
      return false;
    }
    relax();
  }
}

// The first thing a block does. False: give up.
template <class Block>
RF_SIMT bool begin(Block& block, const Ranks& at) {
  bool alone = true;
  block.threads([&](size_t thread, size_t) {
    if (thread != 0) return;
    alone = count_up(&at.mine().running) < block.count();
    if (alone) return;
    claim(&at.mine().failure, kBusy);
    for (int r = 0; r < at.ranks; ++r) poke(&at.state[r]->abort, 1);
  });
  return block.all(alone);
}

template <class Block>
RF_SIMT void stagger(Block& block, const Ranks& at, uint32_t where) {
  if (at.delay == 0) return;
  block.threads([&](size_t thread, size_t) {
    if (thread != 0) return;
    uint32_t h = at.delay ^ (static_cast<uint32_t>(at.mine().calls) * 0x9E3779B9u) ^ (where << 8) ^
                 static_cast<uint32_t>(at.rank) ^ (static_cast<uint32_t>(block.index()) << 16);
    h = (h ^ h >> 15) * 0x85EBCA6Bu;
    h = (h ^ h >> 13) * 0xC2B2AE35u;
    if ((h >> 8) % 4 == 0) pause(h % 20000);
  });
  block.sync();
}

// Meets block b of all ranks: what they wrote before it is seen after it. `number` counts up by one from call to
// call. False: give up. Arrivals are noted also for the blocks that this launch does not have, so that a later launch
// with more of them does not find numbers that were left behind.
template <class Block>
RF_SIMT bool meet(Block& block, const Ranks& at, uint32_t number) {
  stagger(block, at, number);
  block.sync();
  block.threads([&](size_t thread, size_t) {
    if (thread >= static_cast<size_t>(at.ranks)) return;
    for (size_t b = block.index(); b < kMostBlocks; b += block.count()) {
      publish(&at.state[thread]->arrived[b][at.rank], number);
    }
  });
  bool ok = true;
  block.threads([&](size_t thread, size_t) {
    if (thread >= static_cast<size_t>(at.ranks) || !ok) return;
    const uint32_t* const flag = &at.mine().arrived[block.index()][thread];
    ok = wait_until(at, static_cast<int>(thread), [&] { return static_cast<int32_t>(observe(flag) - number) >= 0; });
  });
  return block.all(ok);
}

// The last thing a block does. The last block runs `advance` on the state.
template <class Block, class Advance>
RF_SIMT void finish(Block& block, const Ranks& at, Advance advance) {
  block.sync();
  block.threads([&](size_t thread, size_t) {
    if (thread != 0) return;
    RankState& state = at.mine();
    if (count_up(&state.finished) + 1 != block.count()) return;
    poke(&state.finished, 0);
    poke(&state.running, 0);  // another launch may be looking, against the rules
    ++state.calls;
    advance(state);
  });
}

}  // namespace ringfold::kernels::simt
