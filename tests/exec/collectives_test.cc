// Every collective with every algorithm, executed by ranks on threads, gives exact results, whatever the number of
// ranks, the count, the type, the operation, the place, the slots and the tiles.
#include <random>

#include "algo/algo.h"
#include "tests/exec/expecting.h"
#include "tests/exec/world.h"

namespace ringfold::test {
namespace {

struct Case {
  Collective collective;
  std::string algorithm;
};

std::vector<Case> all_cases(bool variable_only = false) {
  std::vector<Case> cases;
  for (int c = 0; c < kCollectives; ++c) {
    const auto collective = static_cast<Collective>(c);
    if (variable_only && !has_variable_form(collective)) continue;
    for (auto& algorithm : algo::algorithms_for(collective)) cases.push_back({collective, algorithm});
  }
  return cases;
}

std::vector<int> hosts_of(const std::string& algorithm, int n, uint64_t variant) {
  std::vector<int> hosts;
  if (algorithm != "hierarchical") return hosts;
  for (int r = 0; r < n; ++r) hosts.push_back(variant % 3 == 0 ? r / 2 : variant % 3 == 1 ? std::min(r, 1) : r);
  return hosts;
}

class Execution : public testing::TestWithParam<Case> {
 protected:
  static Call make(int n, uint64_t variant) {
    Call call;
    const auto [collective, algorithm] = GetParam();
    call.shape = {collective, n, has_root(collective) ? static_cast<int>(variant % static_cast<uint64_t>(n)) : 0};
    call.algorithm = algorithm;
    call.hosts = hosts_of(algorithm, n, variant);
    call.lanes = 1 + static_cast<int>(variant % 4);
    call.type = static_cast<DataType>(variant % kDataTypes);
    if (reduces(collective)) {
      call.op = static_cast<ReduceKind>(variant % 7 % kReduceKinds);
      if (!has_meaning(call.type, call.op.kind)) call.op = kSum;
      if (call.op.kind == ReduceKind::kScaledSum) call.op = ReduceOp::scaled_sum(0.75);
    }
    call.salt = variant;
    return call;
  }
};

TEST_P(Execution, SmallAndOddCounts) {
  for (int n : {1, 2, 3, 4, 5, 6, 7, 8, 11, 17}) {
    World world(n);
    world.each([&](Rank& rank) {
      uint64_t variant = static_cast<uint64_t>(n) * 31;
      for (uint64_t count : {0, 1, 2, 3, 7, n - 1, n, n + 1, 1000}) {
        if (n > 8 && count == 1000) continue;
        for (uint64_t tile : {64, 4096}) {
          for (bool in_place : {false, true}) {
            if (in_place && !has_in_place_form(GetParam().collective)) continue;
            Call call = make(n, ++variant);
            call.count = GetParam().collective == Collective::kBarrier ? 0 : count;
            call.in_place = in_place;
            call.tile_bytes = tile;
            rank.perform(call);
            if (HasFailure()) return;
          }
        }
      }
    });
    if (HasFailure()) return;
  }
}

TEST_P(Execution, LargeCountsInManyPassesOverFewSlots) {
  for (int n : {2, 5}) {
    World world(n, {.loopback = {.slots = 2, .slot_bytes = 2048, .reference_bytes = 1024}});
    world.each([&](Rank& rank) {
      for (uint64_t variant : {1, 5}) {
        Call call = make(n, variant);
        call.count = GetParam().collective == Collective::kBarrier ? 0 : 65537;
        call.in_place = variant == 5 && has_in_place_form(GetParam().collective);
        call.tile_bytes = 2048;
        call.slots = 2;
        rank.perform(call);
      }
    });
    if (HasFailure()) return;
  }
}

// Makes worlds whose links are those of expecting.h.
World::Options expecting(Expectations& all, const loopback::Options& loopback) {
  World::Options options;
  options.make = [&all, loopback](int n) {
    auto ranks = World::over_loopback(n, loopback);
    for (auto& rank : ranks) rank = std::make_unique<Expecting>(std::move(rank), all);
    return ranks;
  };
  return options;
}

// Where nothing is reduced, what a link was told to expect is free from then on, though its move may not have begun.
// Not so in place where a rank's own block comes back to it: the star's centre sends it when it has read it.
TEST_P(Execution, WhatIsExpectedIsWantedThereAndFree) {
  for (const bool in_place : {false, true}) {
    if (in_place && !has_in_place_form(GetParam().collective)) continue;
    Expectations all;
    all.spoil = !reduces(GetParam().collective) && !(in_place && GetParam().algorithm == "star");
    for (int n : {2, 3, 4, 5, 8}) {
      for (int slots : {2, 4, 8}) {
        World world(n, expecting(all, {.slots = slots, .slot_bytes = 1024, .reference_bytes = 512}));
        world.each([&](Rank& rank) {
          for (uint64_t variant = 0; variant < 4; ++variant) {
            Call call = make(n, variant + static_cast<uint64_t>(slots));
            call.count = GetParam().collective == Collective::kBarrier ? 0 : 4000 * variant + 1500 + variant % 2;
            call.in_place = in_place;
            call.tile_bytes = 1024;
            call.slots = slots;
            rank.perform(call);
            if (HasFailure()) return;
          }
        });
        if (HasFailure()) return;
      }
    }
  }
}

TEST(Expectations, OfABlockAfterBlockAreMadeBeforeItsTurn) {
  for (const char* algorithm : {"ring", "direct"}) {
    Expectations all;
    World world(4, expecting(all, {.slots = 4, .slot_bytes = 1024, .reference_bytes = 512}));
    world.each([&](Rank& rank) {
      rank.perform(
          {.shape = {Collective::kAllGather, 4}, .algorithm = algorithm, .count = 20000, .tile_bytes = 1024});
    });
    EXPECT_GT(all.arrivals, 200u);
    EXPECT_GT(static_cast<double>(all.expected), 0.95 * static_cast<double>(all.arrivals)) << algorithm;
  }
}

class Blocks : public Execution {};

TEST_P(Blocks, OfDifferentSizesAreExpectedWhereTheyAreWanted) {
  Expectations all;
  all.spoil = !reduces(GetParam().collective) && GetParam().algorithm != "star";
  for (int n : {2, 3, 7}) {
    World world(n, expecting(all, {.slots = 4, .slot_bytes = 256, .reference_bytes = 128}));
    world.each([&](Rank& rank) {
      std::mt19937_64 random(static_cast<uint64_t>(n));
      for (uint64_t variant = 0; variant < 20; ++variant) {
        Call call = make(n, variant);
        for (int r = 0; r < n; ++r) call.sizes.push_back(random() % 3 == 0 ? 0 : random() % 2000);
        call.in_place = variant % 2 == 1;
        call.tile_bytes = 256;
        rank.perform(call);
        if (HasFailure()) return;
      }
    });
    if (HasFailure()) return;
  }
}

TEST_P(Blocks, OfDifferentSizes) {
  for (int n : {1, 2, 3, 4, 7}) {
    World world(n);
    world.each([&](Rank& rank) {
      std::mt19937_64 random(static_cast<uint64_t>(n));
      for (uint64_t variant = 0; variant < 20; ++variant) {
        Call call = make(n, variant);
        for (int r = 0; r < n; ++r) call.sizes.push_back(random() % 3 == 0 ? 0 : random() % 700);
        call.in_place = variant % 2 == 1;
        call.tile_bytes = variant % 3 == 0 ? 256 : 4096;
        rank.perform(call);
        if (HasFailure()) return;
      }
    });
    if (HasFailure()) return;
  }
}

std::string name_of_case(const testing::TestParamInfo<Case>& info) {
  return std::string(name_of(info.param.collective)) + "_" + info.param.algorithm;
}
INSTANTIATE_TEST_SUITE_P(All, Execution, testing::ValuesIn(all_cases()), name_of_case);
INSTANTIATE_TEST_SUITE_P(All, Blocks, testing::ValuesIn(all_cases(true)), name_of_case);

TEST(AllToAll, EverySizeForEveryPair) {
  for (int n : {1, 2, 3, 5, 8}) {
    World world(n);
    world.each([&](Rank& rank) {
      std::mt19937_64 random(static_cast<uint64_t>(n));
      for (uint64_t variant = 0; variant < 20; ++variant) {
        Call call;
        call.shape = {Collective::kAllToAll, n};
        call.type = static_cast<DataType>(variant % kDataTypes);
        call.tile_bytes = variant % 2 == 0 ? 64 : 4096;
        for (int s = 0; s < n; ++s) {
          call.matrix.emplace_back();
          for (int d = 0; d < n; ++d) call.matrix.back().push_back(random() % 4 == 0 ? 0 : random() % 900);
        }
        rank.perform(call);
        if (testing::Test::HasFailure()) return;
      }
    });
  }
}

TEST(Types, EveryTypeAndOperation) {
  for (const char* algorithm : {"ring", "direct", "oneshot", "tree"}) {
    World world(3);
    world.each([&](Rank& rank) {
      for (int t = 0; t < kDataTypes; ++t) {
        for (int k = 0; k < kReduceKinds; ++k) {
          Call call{.shape = {Collective::kAllReduce, 3}, .algorithm = algorithm, .count = 333};
          call.type = static_cast<DataType>(t);
          call.op = static_cast<ReduceKind>(k);
          if (!has_meaning(call.type, call.op.kind)) continue;
          if (call.op.kind == ReduceKind::kScaledSum) call.op = ReduceOp::scaled_sum(-0.37);
          call.in_place = (t + k) % 2 == 0;
          rank.perform(call);
        }
      }
    });
  }
}

}  // namespace
}  // namespace ringfold::test
