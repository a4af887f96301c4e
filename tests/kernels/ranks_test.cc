// all_reduce in one kernel, on ranks that are threads: the kernels that GPUs run, block by block, against the oracle;
// with pauses scattered over them, counters that wrap, peers that never come. Under a thread sanitizer this is the
// proof of the protocols.
#include <gtest/gtest.h>

#include <barrier>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/simt/all_reduce.h"
#include "kernels/simt/host.h"
#include "kernels/simt/select.h"
#include "tests/kernels/oracle.h"

namespace ringfold::test {
namespace {

namespace simt = kernels::simt;
using std::chrono::milliseconds;

// The memory that ranks share, and their kernels: one thread for each block, which meet between calls as kernels of a
// stream do.
class VirtualRanks {
 public:
  VirtualRanks(int ranks, size_t capacity) : ranks_(ranks), capacity_(capacity) {
    for (int r = 0; r < ranks; ++r) {
      states_.push_back(std::make_unique<simt::RankState>());
      packets_.emplace_back(4 * ranks * capacity);
    }
  }
  simt::RankState& state(int r) { return *states_[r]; }
  simt::Ranks at(int rank) {
    simt::Ranks at{};
    at.rank = rank;
    at.ranks = ranks_;
    for (int r = 0; r < ranks_; ++r) at.state[r] = states_[r].get();
    at.timeout_ns = 60'000'000'000;
    at.delay = delay;
    return at;
  }
  simt::OneShotArgs one_shot(int rank) {
    simt::OneShotArgs args{};
    args.at = at(rank);
    args.capacity = capacity_;
    for (int r = 0; r < ranks_; ++r) args.packets[r] = reinterpret_cast<std::byte*>(packets_[r].data());
    return args;
  }

  // body(block, rank, call) for each call and the ranks that `comes` lets in; `blocks` of a call may differ from call
  // to call.
  template <class Body>
  void run(const std::vector<int>& blocks, Body body, int absent = -1) {
    std::vector<std::thread> threads;
    std::vector<std::unique_ptr<std::barrier<>>> ends;
    int most = 0;
    for (int b : blocks) most = std::max(most, b);
    for (int r = 0; r < ranks_; ++r) ends.push_back(std::make_unique<std::barrier<>>(most));
    for (int r = 0; r < ranks_; ++r) {
      if (r == absent) continue;
      for (int b = 0; b < most; ++b) {
        threads.emplace_back([&, r, b] {
          for (size_t call = 0; call < blocks.size(); ++call) {
            if (b < blocks[call]) {
              simt::HostBlock block(b, blocks[call], 1);
              body(block, r, static_cast<int>(call));
            }
            ends[r]->arrive_and_wait();
          }
        });
      }
    }
    for (auto& thread : threads) thread.join();
  }

  uint32_t delay = 0;

 private:
  int ranks_;
  size_t capacity_;
  std::vector<std::unique_ptr<simt::RankState>> states_;
  std::vector<std::vector<uint64_t>> packets_;
};

// Of every call and rank: what goes in, and what comes out.
struct Buffers {
  Buffers(int calls, int ranks, size_t elems, size_t size, size_t off, std::mt19937_64& random)
      : ranks(ranks), off(off) {
    for (int i = 0; i < calls * ranks; ++i) {
      in.emplace_back(elems * size + 64);
      out.emplace_back(elems * size + 64);
      for (auto& b : in.back()) b = static_cast<std::byte>(random() % 61 + (random() % 3 == 0 ? 64 : 0));
    }
    given = in;
  }
  std::byte* start(std::vector<std::byte>& v) const {
    return v.data() + (16 - reinterpret_cast<uintptr_t>(v.data()) % 16) % 16 + off;
  }
  std::byte* input(int call, int r) { return start(in[call * ranks + r]); }
  std::byte* output(int call, int r) { return in_place(call) ? input(call, r) : start(out[call * ranks + r]); }
  static bool in_place(int call) { return call % 3 == 1; }
  const void* original(int call, int r) {  // as it was before the call
    auto& then = given[call * ranks + r];
    return then.data() + (start(in[call * ranks + r]) - in[call * ranks + r].data());
  }
  int ranks;
  size_t off;
  std::vector<std::vector<std::byte>> in, out, given;
};

struct Kind {
  DataType type;
  ReduceKind kind;
};
const Kind kKinds[] = {{DataType::kF32, ReduceKind::kSum}, {DataType::kBF16, ReduceKind::kAvg},
                       {DataType::kF16, ReduceKind::kMin}, {DataType::kF64, ReduceKind::kMax},
                       {DataType::kI32, ReduceKind::kAvg}, {DataType::kU8, ReduceKind::kProd}};

template <class Call>
void check(const Kind& k, int ranks, size_t elems, bool aligned, const std::vector<int>& blocks, VirtualRanks& world,
           Call call) {
  std::mt19937_64 random(elems * 8 + ranks);
  const size_t size = size_of(k.type);
  Buffers buffers(static_cast<int>(blocks.size()), ranks, elems, size, aligned ? 0 : size, random);
  const kernels::Post post{.factor = 1.0 / ranks, .divisor = ranks};
  world.run(blocks, [&](simt::HostBlock& block, int r, int c) { call(block, r, c, buffers, post); });
  for (int c = 0; c < static_cast<int>(blocks.size()); ++c) {
    std::vector<const void*> in;
    for (int r = 0; r < ranks; ++r) in.push_back(buffers.original(c, r));
    const auto want = expected(k.type, k.kind, true, in, elems, post);
    for (int r = 0; r < ranks; ++r) {
      ASSERT_EQ(world.state(r).failure, 0u);
      ASSERT_TRUE(elems == 0 || std::memcmp(want.data(), buffers.output(c, r), want.size()) == 0)
          << name_of(k.type) << ' ' << name_of(k.kind) << " ranks " << ranks << " elems " << elems << " call " << c
          << " rank " << r;
    }
  }
}

template <class N, class Op, bool kPost>
void two_shot_of(simt::HostBlock& block, const simt::TwoShotArgs& args) {
  switch (args.at.ranks) {
    case 2: return simt::two_shot<N, Op, kPost, 2>(block, args);
    case 4: return simt::two_shot<N, Op, kPost, 4>(block, args);
    default: return simt::two_shot<N, Op, kPost, 8>(block, args);
  }
}

void one_shot_call(const Kind& k, VirtualRanks& world, simt::HostBlock& block, int r, int c, size_t elems,
                   Buffers& buffers, const kernels::Post& post) {
  auto args = world.one_shot(r);
  args.in = buffers.input(c, r);
  args.out = buffers.output(c, r);
  args.elems = elems;
  args.factor = post.factor;
  args.divisor = post.divisor;
  simt::visit_reduction(k.type, k.kind, true, [&](auto number, auto operation, auto scaled) {
    simt::one_shot<typename decltype(number)::Type, typename decltype(operation)::Type, decltype(scaled)::value>(
        block, args);
  });
}
void two_shot_call(const Kind& k, VirtualRanks& world, simt::HostBlock& block, int r, int c, int ranks, size_t elems,
                   Buffers& buffers, const kernels::Post& post) {
  simt::TwoShotArgs args{};
  args.at = world.at(r);
  for (int p = 0; p < ranks; ++p) {
    args.in[p] = buffers.input(c, p);
    args.out[p] = buffers.output(c, p);
  }
  args.elems = elems;
  args.factor = post.factor;
  args.divisor = post.divisor;
  simt::set_alignment(args, size_of(k.type));
  simt::visit_reduction(k.type, k.kind, true, [&](auto number, auto operation, auto scaled) {
    two_shot_of<typename decltype(number)::Type, typename decltype(operation)::Type, decltype(scaled)::value>(block,
                                                                                                              args);
  });
}

TEST(GpuAllReduce, OneShotHasTheBitsOfOneFoldInTheOrderOfRanks) {
  for (int ranks : {2, 4, 8}) {
    for (const Kind& k : kKinds) {
      for (size_t elems : {size_t{0}, size_t{1}, size_t{7}, size_t{130}}) {
        VirtualRanks world(ranks, elems * size_of(k.type) / 8 + 1);
        for (int r = 0; r < ranks; ++r) world.state(r).tag = ~0u - 3;  // wraps within these calls
        world.delay = elems == 7 ? 1234 : 0;
        check(k, ranks, elems, elems != 7, {2, 1, 2, 2, 1, 2, 2}, world,
              [&](simt::HostBlock& block, int r, int c, Buffers& buffers, const kernels::Post& post) {
                one_shot_call(k, world, block, r, c, elems, buffers, post);
              });
      }
    }
  }
}

TEST(GpuAllReduce, TwoShotHasTheBitsOfOneFoldInTheOrderOfRanks) {
  for (int ranks : {2, 4, 8}) {
    for (const Kind& k : kKinds) {
      for (size_t elems : {size_t{0}, size_t{1}, size_t{37}, size_t{1001}}) {
        VirtualRanks world(ranks, 1);
        for (int r = 0; r < ranks; ++r) {
          world.state(r).barriers = 0xFFFFFFF8u;
          for (auto& block : world.state(r).arrived) std::fill(std::begin(block), std::end(block), 0xFFFFFFF8u);
        }
        world.delay = elems == 37 ? 99 : 0;
        check(k, ranks, elems, elems != 37, {1, 2, 2, 1, 2}, world,
              [&](simt::HostBlock& block, int r, int c, Buffers& buffers, const kernels::Post& post) {
                two_shot_call(k, world, block, r, c, ranks, elems, buffers, post);
              });
      }
    }
  }
}

// Both kinds of calls on the same memory, one after another, with other numbers of blocks each time.
TEST(GpuAllReduce, KindsOfCallsMayFollowEachOther) {
  const Kind k{DataType::kF32, ReduceKind::kSum};
  const size_t elems = 300;
  const int ranks = 4;
  VirtualRanks world(ranks, elems);
  world.delay = 7;
  std::vector<int> blocks;
  for (int c = 0; c < 60; ++c) blocks.push_back(1 + c * 7 % 3);
  check(k, ranks, elems, true, blocks, world,
        [&](simt::HostBlock& block, int r, int c, Buffers& buffers, const kernels::Post& post) {
          if (c % 5 < 2) return one_shot_call(k, world, block, r, c, elems, buffers, post);
          two_shot_call(k, world, block, r, c, ranks, elems, buffers, post);
        });
}

// A rank that never comes: the others end, name it, tell each other, and write nothing that they did not wait for.
TEST(GpuAllReduce, APeerThatNeverComesEndsTheKernelsAndIsNamed) {
  for (bool one : {true, false}) {
    const int ranks = 4, absent = 2;
    const size_t elems = 64;
    VirtualRanks world(ranks, elems);
    std::mt19937_64 random(1);
    Buffers buffers(1, ranks, elems, 4, 0, random);
    const auto untouched = buffers.out;
    world.run(
        {2},
        [&](simt::HostBlock& block, int r, int) {
          if (one) {
            auto args = world.one_shot(r);
            args.at.timeout_ns = 50'000'000;
            args.in = buffers.input(0, r);
            args.out = buffers.output(0, r);
            args.elems = elems;
            return simt::one_shot<simt::F32, simt::Sum, false>(block, args);
          }
          simt::TwoShotArgs args{};
          args.at = world.at(r);
          args.at.timeout_ns = 50'000'000;
          for (int p = 0; p < ranks; ++p) {
            args.in[p] = buffers.input(0, p);
            args.out[p] = buffers.output(0, p);
          }
          args.elems = elems;
          simt::two_shot<simt::F32, simt::Sum, false, 4>(block, args);
        },
        absent);
    int named = 0;
    for (int r = 0; r < ranks; ++r) {
      if (r == absent) continue;
      EXPECT_NE(world.state(r).failure, 0u);
      EXPECT_NE(world.state(r).abort, 0u);
      named += world.state(r).failure == absent + 1u ? 1 : 0;
    }
    EXPECT_GE(named, 1);
    EXPECT_EQ(buffers.out, untouched);
  }
}

TEST(GpuAllReduce, TheAbortWordEndsKernelsLongBeforeTheirTimeLimit) {
  const int ranks = 2;
  VirtualRanks world(ranks, 8);
  float in[2][8] = {}, out[2][8] = {};
  std::thread aborter([&] {
    std::this_thread::sleep_for(milliseconds(20));
    simt::poke(&world.state(0).abort, 1);
  });
  world.run(
      {1},
      [&](simt::HostBlock& block, int r, int) {
        auto args = world.one_shot(r);
        args.in = in[r];
        args.out = out[r];
        args.elems = 8;
        simt::one_shot<simt::F32, simt::Sum, false>(block, args);
      },
      1);
  aborter.join();
  EXPECT_EQ(world.state(0).failure, simt::kAborted);
}

TEST(GpuAllReduce, TagsAreNeverZeroAndAlternate) {
  for (uint32_t tag : {0u, 1u, ~0u - 1, ~0u}) {
    EXPECT_NE(simt::next_tag(tag), 0u);
    EXPECT_NE(simt::next_tag(tag) % 2, tag % 2);
  }
}

// The first launch waits for a peer; a second one of the same rank finds it inside, and both end.
TEST(GpuAllReduce, TwoLaunchesOfOneRankAtATimeEndBoth) {
  constexpr size_t kBlocks = 2;
  VirtualRanks world(2, 64);
  float in[2][10] = {}, out[2][10] = {};
  const auto launch = [&](int which) {
    simt::launch_on_host(kBlocks, 1, [&](simt::HostBlock& block) {
      auto args = world.one_shot(0);
      args.in = in[which];
      args.out = out[which];
      args.elems = 10;
      simt::one_shot<simt::F32, simt::Sum, false>(block, args);
    });
  };
  std::thread first([&] { launch(0); });
  while (simt::peek(&world.state(0).running) < kBlocks) std::this_thread::yield();
  launch(1);
  first.join();
  EXPECT_EQ(world.state(0).failure, simt::kBusy);
  EXPECT_EQ(world.state(0).abort, 1u);
  EXPECT_EQ(world.state(1).abort, 1u);  // the peer need not wait
}

}  // namespace
}  // namespace ringfold::test
