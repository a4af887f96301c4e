// Properties of lowering: for every collective, algorithm, number of ranks and size, the programs of all ranks
// together compute the collective, with two slots of credit, in any order of execution, in and out of place, in one
// pass and in many.
#include <gtest/gtest.h>

#include "algo/algo.h"
#include "plan/lower.h"
#include "plan/planner.h"
#include "plan/program_check.h"

namespace ringfold::plan {
namespace {

struct Case {
  Collective collective;
  std::string algorithm;
};

bool has_unequal_blocks(Collective c) {
  return c == Collective::kAllGather || c == Collective::kReduceScatter || c == Collective::kGather ||
         c == Collective::kScatter;
}

std::vector<Case> all_cases(bool (*wanted)(Collective) = [](Collective) { return true; }) {
  std::vector<Case> cases;
  for (int c = 0; c < kCollectives; ++c) {
    const auto collective = static_cast<Collective>(c);
    if (!wanted(collective)) continue;
    for (auto& algorithm : algo::algorithms_for(collective)) cases.push_back({collective, algorithm});
  }
  return cases;
}

class Lowering : public testing::TestWithParam<Case> {
 protected:
  // Lowers for all ranks and checks the programs. Too wide a step is a legal answer for several passes.
  static void check(const schedule::Schedule& schedule, uint64_t count, uint64_t tile_bytes, int slots, bool in_place,
                    const std::vector<uint64_t>& sizes = {}, uint64_t seed = 1) {
    if (GetParam().collective == Collective::kBarrier) count = 0;
    const int n = schedule.shape.ranks;
    std::vector<program::Program> programs;
    std::vector<Layout> layouts;
    for (int r = 0; r < n; ++r) {
      LowerRequest request;
      request.schedule = &schedule;
      request.layout = {.shape = schedule.shape, .rank = r, .count = count, .sizes = sizes, .receive_sizes = {}};
      request.type = DataType::kF16;
      request.tile_bytes = tile_bytes;
      request.slots = slots;
      auto program = lower(request);
      if (!program.ok() && program.status().code() == Code::kInvalid) {
        EXPECT_TRUE(schedule.algorithm == "recursive" || schedule.algorithm == "tree" ||
                    schedule.algorithm == "hierarchical" || schedule.algorithm == "star")
            << program.status().to_string();
        return;
      }
      ASSERT_TRUE(program.ok()) << program.status().to_string();
      programs.push_back(*std::move(program));
      layouts.push_back(request.layout);
    }
    for (bool early : {false, true}) {
      const Status status =
          check_programs(programs, layouts, {.slots = slots, .in_place = in_place, .early = early, .seed = seed});
      ASSERT_TRUE(status.ok()) << status.to_string() << "\n"
                               << schedule.algorithm << " n=" << n << " root=" << schedule.shape.root
                               << " count=" << count << " tile=" << tile_bytes << " slots=" << slots
                               << " in_place=" << in_place << " early=" << early;
    }
  }

  static std::vector<std::vector<int>> host_maps(int n) {
    std::vector<std::vector<int>> maps = {{}};
    if (GetParam().algorithm != "hierarchical" && GetParam().algorithm != "doubling") return maps;
    std::vector<int> pairs, uneven, one(n, 0);
    for (int r = 0; r < n; ++r) pairs.push_back(r / 2), uneven.push_back(r == 0 ? 0 : 1);
    maps.push_back(pairs);
    maps.push_back(uneven);
    maps.push_back(one);
    return maps;
  }

  template <typename F>
  static void for_schedules(int n, std::vector<int> lane_counts, F f) {
    for (int lanes : lane_counts) {
      for (int root : has_root(GetParam().collective) ? std::vector{0, n / 2, n - 1} : std::vector{0}) {
        for (auto& hosts : host_maps(n)) {
          auto schedule = algo::make(GetParam().algorithm, {GetParam().collective, n, root}, {lanes, hosts});
          ASSERT_TRUE(schedule.ok()) << schedule.status().to_string();
          f(*schedule);
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }

  static bool can_be_in_place() { return GetParam().collective != Collective::kAllToAll; }
};

TEST(Planner, TakesTheTilesOfAChoiceWhereTheWorldsAreLarger) {
  const plan::Layout layout{.shape = {Collective::kBroadcast, 2, 0}, .rank = 0, .count = 4096};
  const auto planned = [&](uint64_t worlds, uint64_t chosen) {
    plan::World world{.host_of = {0, 0}, .tile_bytes = worlds, .slots = 8};
    world.choose = [chosen](Collective, uint64_t, const Codec&) {
      return plan::Choice{.algorithm = "direct", .tile_bytes = chosen};
    };
    return *plan::make_plan(world, layout, DataType::kF32, ReduceKind::kSum);
  };
  EXPECT_EQ(planned(128 << 10, 4096).program.tile_bytes, 4096u);
  EXPECT_EQ(planned(1024, 4096).program.tile_bytes, 1024u);
  EXPECT_NE(planned(128 << 10, 4096).details, planned(128 << 10, 8192).details) << "ranks that cut differently";
}

TEST_P(Lowering, SmallCountsInOnePassOverTwoSlots) {
  for (int n = 1; n <= 17; ++n) {
    for_schedules(n, {1, 2, 4}, [&](const schedule::Schedule& s) {
      for (uint64_t count : {0, 1, 3, n, 5 * n + 2}) {
        check(s, count, 1 << 20, 2, false);
        if (HasFatalFailure()) return;
      }
      if (can_be_in_place()) check(s, 2 * n + 1, 1 << 20, 2, true);
    });
    if (HasFatalFailure()) return;
  }
}

TEST_P(Lowering, ManyPassesAndTilesOverFewSlots) {
  for (int n : {1, 2, 3, 4, 5, 7, 8, 9}) {
    for_schedules(n, {1, 3}, [&](const schedule::Schedule& s) {
      for (uint64_t seed = 1; seed <= 3; ++seed) {
        check(s, 101, 4, 2, false, {}, seed);
        if (HasFatalFailure()) return;
        check(s, 67, 6, 3, can_be_in_place() && seed == 2, {}, seed);
        if (HasFatalFailure()) return;
        check(s, 230, 8, 8, can_be_in_place() && seed == 3, {}, seed);
        if (HasFatalFailure()) return;
      }
    });
    if (HasFatalFailure()) return;
  }
}

class LoweringUnequalBlocks : public Lowering {};

TEST_P(LoweringUnequalBlocks, AnySizes) {
  for (int n : {2, 3, 4, 5, 8}) {
    for_schedules(n, {1, 2}, [&](const schedule::Schedule& s) {
      std::vector<uint64_t> sizes;
      for (int r = 0; r < n; ++r) sizes.push_back(static_cast<uint64_t>((r * 7 + 3) % 11));
      check(s, 0, 1 << 20, 2, false, sizes);
      if (HasFatalFailure()) return;
      check(s, 0, 4, 4, true, sizes);
    });
    if (HasFatalFailure()) return;
  }
}

TEST_P(Lowering, ManyRanks) {
  for (int n : {31, 32, 64, 127, 128}) {
    if (GetParam().collective == Collective::kAllToAll && n > 32) continue;
    for_schedules(n, {1}, [&](const schedule::Schedule& s) { check(s, n + 1, 1 << 20, 2, false); });
    if (HasFatalFailure()) return;
  }
}

std::string name_of_case(const testing::TestParamInfo<Case>& info) {
  return std::string(name_of(info.param.collective)) + "_" + info.param.algorithm;
}
INSTANTIATE_TEST_SUITE_P(All, Lowering, testing::ValuesIn(all_cases()), name_of_case);
INSTANTIATE_TEST_SUITE_P(All, LoweringUnequalBlocks, testing::ValuesIn(all_cases(has_unequal_blocks)), name_of_case);

}  // namespace
}  // namespace ringfold::plan
