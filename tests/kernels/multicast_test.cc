// all_reduce through multicast memory, on ranks that are threads, with memory that stands for the switch.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "kernels/simt/host.h"
#include "kernels/simt/multicast.h"
#include "tests/kernels/oracle.h"

namespace ringfold::test {
namespace {

namespace simt = kernels::simt;

struct MulticastRanks {
  MulticastRanks(int n, size_t bytes) : ranks(n) {
    for (int r = 0; r < n; ++r) {
      states.push_back(std::make_unique<simt::RankState>());
      memory.emplace_back(bytes / sizeof(simt::Quad));
    }
  }
  std::byte* data(int r) { return reinterpret_cast<std::byte*>(memory[static_cast<size_t>(r)].data()); }
  simt::MulticastArgs args(int rank) {
    simt::MulticastArgs args{};
    args.at.rank = rank;
    args.at.ranks = ranks;
    args.at.timeout_ns = timeout_ns;
    args.at.delay = 7;
    for (int r = 0; r < ranks; ++r) {
      args.at.state[r] = states[static_cast<size_t>(r)].get();
      args.data.copies[r] = data(r);
    }
    args.data.count = ranks;
    args.quads = memory.front().size();
    return args;
  }
  // One call of all ranks but one.
  template <class N, bool kPost>
  void call(int blocks, double factor, int absent = -1) {
    std::vector<std::thread> threads;
    for (int r = 0; r < ranks; ++r) {
      for (int b = 0; r != absent && b < blocks; ++b) {
        threads.emplace_back([&, r, b] {
          auto mine = args(r);
          mine.factor = factor;
          simt::HostBlock block(static_cast<size_t>(b), static_cast<size_t>(blocks), 1);
          simt::multicast_all_reduce<N, kPost>(block, mine);
        });
      }
    }
    for (auto& thread : threads) thread.join();
  }

  const int ranks;
  uint64_t timeout_ns = 60'000'000'000;
  std::vector<std::unique_ptr<simt::RankState>> states;
  std::vector<std::vector<simt::Quad>> memory;
};

template <class N>
void sums_of(DataType type) {
  std::mt19937_64 random(size_of(type));
  for (const int ranks : {2, 3, 8}) {
    for (const size_t quads : {size_t{0}, size_t{1}, size_t{5}, size_t{333}}) {
      const size_t elems = quads * 16 / size_of(type);
      MulticastRanks world(ranks, quads * 16);
      for (int call = 0; call < 4; ++call) {
        std::vector<std::vector<std::byte>> given;
        for (int r = 0; r < ranks; ++r) {
          given.emplace_back(quads * 16);
          for (auto& b : given.back()) b = static_cast<std::byte>(random() % 61);
          if (quads > 0) std::memcpy(world.data(r), given.back().data(), quads * 16);
        }
        const double factor = call % 2 == 0 ? 1 : 1.0 / ranks;
        call % 2 == 0 ? world.call<N, false>(1 + call, 1) : world.call<N, true>(1 + call, factor);
        // What leaves the switch is a sum; the factor comes after it.
        std::vector<const void*> in;
        for (auto& bytes : given) in.push_back(bytes.data());
        const auto sum = expected(type, ReduceKind::kSum, true, in, elems, {});
        const std::vector<const void*> one{sum.data()};
        const auto want =
            call % 2 == 0 ? sum : expected(type, ReduceKind::kScaledSum, true, one, elems, {.factor = factor});
        for (int r = 0; r < ranks; ++r) {
          ASSERT_EQ(world.states[static_cast<size_t>(r)]->failure, 0u);
          ASSERT_TRUE(quads == 0 || std::memcmp(want.data(), world.data(r), quads * 16) == 0)
              << name_of(type) << ", " << ranks << " ranks, " << quads << " vectors, call " << call;
        }
      }
    }
  }
}

TEST(MulticastAllReduce, LeavesTheSumInAllCopies) {
  sums_of<simt::F32>(DataType::kF32);
  sums_of<simt::F16>(DataType::kF16);
  sums_of<simt::BF16>(DataType::kBF16);
}

TEST(MulticastAllReduce, WithoutAPeerEndsAndNamesItAndWritesNothing) {
  MulticastRanks world(3, 64);
  for (int r = 0; r < 3; ++r) std::memset(world.data(r), r + 1, 64);
  world.timeout_ns = 50'000'000;
  world.call<simt::F32, false>(2, 1, 1);
  EXPECT_TRUE(world.states[0]->failure == 2 || world.states[2]->failure == 2);
  for (int r = 0; r < 3; ++r) {
    EXPECT_EQ(world.data(r)[0], static_cast<std::byte>(r + 1));
    EXPECT_EQ(world.data(r)[63], static_cast<std::byte>(r + 1));
  }
}

}  // namespace
}  // namespace ringfold::test
