// Deterministic mode: the bits of a sum do not depend on how it was cut, by which way it went, or what else was in
// flight.
#include <cmath>
#include <cstring>
#include <random>

#include "tests/comm/ranks.h"

namespace ringfold::test {
namespace {

constexpr size_t kCount = 262'144;  // 1 MiB of f32
constexpr int kRanks = 4;

// Values of very different sizes, so that nearly every order of addition has bits of its own.
std::vector<float> noise(int rank) {
  std::mt19937 random(static_cast<uint32_t>(rank) + 1);
  std::vector<float> x(kCount);
  for (auto& v : x) v = std::ldexp(static_cast<float>(random() % 20001) - 10000.F, static_cast<int>(random() % 24));
  return x;
}

Options deterministic(const std::string& transport = "", const std::string& algorithm = "") {
  Options options = patient(transport, algorithm);
  options.deterministic = true;
  return options;
}

using Sums = std::vector<std::vector<float>>;  // by rank

// All ranks' results of one all_reduce of everything, cut into pieces of `piece` elements, all in flight at once.
Sums reduce(const Options& options, size_t piece, ReduceOp op = kSum) {
  Sums sums(kRanks, std::vector<float>(kCount));
  Ranks ranks(kRanks, options);
  ranks.each([&](Communicator& comm) {
    const auto x = noise(comm.rank());
    auto& sum = sums[static_cast<size_t>(comm.rank())];
    Group group;
    for (size_t at = 0; at < kCount; at += piece) {
      group.add(comm.all_reduce(x.data() + at, sum.data() + at, std::min(piece, kCount - at), DataType::kF32, op));
    }
    expect_ok(group.wait());
  });
  return sums;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<float> fold_in_rank_order() {
  auto sum = noise(0);
  for (int r = 1; r < kRanks; ++r) {
    const auto x = noise(r);
    for (size_t i = 0; i < kCount; ++i) sum[i] += x[i];
  }
  return sum;
}

TEST(Deterministic, SumsAreTheFoldInRankOrderWhateverTheSizeOfTheCalls) {
  const auto expected = fold_in_rank_order();
  for (size_t piece : {kCount, size_t{65'536}, size_t{1021}, size_t{777}}) {
    for (const auto& sum : reduce(deterministic(), piece)) EXPECT_TRUE(same_bits(sum, expected)) << piece;
  }
}

TEST(Deterministic, SumsAreTheSameOverEveryTransport) {
  const auto expected = fold_in_rank_order();
  for (const char* transport : {"loopback", "shm", "tcp"}) {
    for (const auto& sum : reduce(deterministic(transport), 50'000))
      EXPECT_TRUE(same_bits(sum, expected)) << transport;
  }
}

// Without the mode a ring adds every chunk in another order: otherwise the tests above could not fail.
TEST(Deterministic, IsMoreThanWhatAnyAlgorithmGives) {
  EXPECT_FALSE(same_bits(reduce(patient("", "ring"), kCount)[0], fold_in_rank_order()));
}

TEST(Deterministic, UsesOnlyAlgorithmsThatFoldInRankOrderWhateverIsAskedFor) {
  for (const char* asked : {"auto", "ring", "tree", "recursive", "hierarchical", "chain"}) {
    Ranks ranks(kRanks, deterministic("", asked));
    for (Collective c : {Collective::kAllReduce, Collective::kReduce, Collective::kReduceScatter}) {
      for (size_t count : {size_t{1}, size_t{1000}, kCount}) {
        const std::string used = ranks[0].algorithm_for(c, count, DataType::kF16);
        EXPECT_TRUE(used == "direct" || used == "oneshot") << used;
      }
    }
    EXPECT_TRUE(same_bits(reduce(deterministic("", asked), 99'999)[0], fold_in_rank_order())) << asked;
  }
}

TEST(Deterministic, ReduceAndReduceScatterGiveTheBitsOfAllReduce) {
  const auto expected = fold_in_rank_order();
  Ranks ranks(kRanks, deterministic());
  ranks.each([&](Communicator& comm) {
    const auto x = noise(comm.rank());
    std::vector<float> sum(kCount), part(kCount / kRanks);
    expect_ok(comm.reduce(x.data(), sum.data(), kCount, DataType::kF32, kSum, 2));
    EXPECT_TRUE(comm.rank() != 2 || same_bits(sum, expected));
    expect_ok(comm.reduce_scatter(x.data(), part.data(), part.size(), DataType::kF32));
    const auto* mine = expected.data() + static_cast<size_t>(comm.rank()) * part.size();
    EXPECT_EQ(std::memcmp(part.data(), mine, part.size() * sizeof(float)), 0);
  });
}

// In any mode: the same call again gives the same bits, and all ranks have them.
TEST(AnyMode, RunsRepeatTheirBitsAndReplicasAgree) {
  for (const char* algorithm : {"auto", "ring", "tree", "recursive", "direct", "chain", "hierarchical"}) {
    const auto first = reduce(patient("shm", algorithm), kCount), second = reduce(patient("shm", algorithm), kCount);
    for (int r = 0; r < kRanks; ++r) {
      EXPECT_TRUE(same_bits(first[static_cast<size_t>(r)], first[0])) << algorithm;
      EXPECT_TRUE(same_bits(first[static_cast<size_t>(r)], second[static_cast<size_t>(r)])) << algorithm;
    }
  }
}

}  // namespace
}  // namespace ringfold::test
