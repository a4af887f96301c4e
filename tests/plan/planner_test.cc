// What the planner makes of a world, and that the programs of all ranks still fit each other.
#include "plan/planner.h"

#include <gtest/gtest.h>

#include "plan/program_check.h"

namespace ringfold::plan {
namespace {

constexpr int kRanks = 4;

World world_of(uint64_t exchange_bytes) {
  World world;
  world.host_of.assign(kRanks, 0);
  world.tile_bytes = 128;
  world.slots = 8;
  world.exchange_bytes = exchange_bytes;
  return world;
}

class Exchange : public testing::TestWithParam<Collective> {
 protected:
  // `sizes`: of all_to_all_v, what rank r sends to rank s.
  static void plan(const World& world, uint64_t count, const std::vector<std::vector<uint64_t>>& sizes,
                   std::vector<Planned>* plans) {
    std::vector<program::Program> programs;
    std::vector<Layout> layouts;
    for (int r = 0; r < kRanks; ++r) {
      Layout layout{.shape = {GetParam(), kRanks}, .rank = r, .count = count, .sizes = {}, .receive_sizes = {}};
      if (!sizes.empty()) {
        layout.sizes = sizes[static_cast<size_t>(r)];
        for (int s = 0; s < kRanks; ++s)
          layout.receive_sizes.push_back(sizes[static_cast<size_t>(s)][static_cast<size_t>(r)]);
      }
      auto planned = make_plan(world, layout, DataType::kF32, kSum);
      ASSERT_TRUE(planned.ok()) << planned.status().to_string();
      programs.push_back(planned->program);
      layouts.push_back(layout);
      plans->push_back(*std::move(planned));
    }
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      const Status status =
          check_programs(programs, layouts, {.slots = world.exchange_bytes == 0 ? world.slots : 2, .seed = seed});
      ASSERT_TRUE(status.ok()) << status.to_string();
    }
  }
};

TEST_P(Exchange, NoMoreIsUnderWayToEachThanTheWorldAllows) {
  constexpr uint64_t kCount = 200;
  std::vector<Planned> wide, narrow;
  plan(world_of(0), kCount, {}, &wide);
  if (HasFatalFailure()) return;
  plan(world_of(64), kCount, {}, &narrow);
  if (HasFatalFailure()) return;
  const uint64_t chunk = kCount / wide[0].program.chunks_per_block;
  for (size_t r = 0; r < kRanks; ++r) {
    EXPECT_EQ(wide[r].program.passes, 1U);
    EXPECT_EQ(narrow[r].program.tile_bytes, 64U);
    EXPECT_EQ(narrow[r].program.passes, (chunk * sizeof(float) + 63) / 64);
    EXPECT_NE(wide[r].details, narrow[r].details);
  }
}

INSTANTIATE_TEST_SUITE_P(Plans, Exchange,
                         testing::Values(Collective::kAllToAll, Collective::kReduceScatter, Collective::kAllReduce),
                         [](const auto& info) { return std::string(name_of(info.param)); });

using ExchangeOfSizes = Exchange;
// The two ends of a link know no other sizes than their own, and so have different numbers of passes.
TEST_P(ExchangeOfSizes, RanksWithOnePassAndRanksWithManyFit) {
  std::vector<Planned> plans;
  plan(world_of(64), 0, {{0, 3, 1, 0}, {5, 200, 16, 2}, {1, 0, 7, 333}, {0, 9, 40, 4}}, &plans);
  if (HasFatalFailure()) return;
  EXPECT_EQ(plans[0].program.passes, 1U);
  EXPECT_GT(plans[3].program.passes, 1U);
}
INSTANTIATE_TEST_SUITE_P(Plans, ExchangeOfSizes, testing::Values(Collective::kAllToAll));

// What is the same for everybody is read from the cache again and again.
TEST(Planner, OnlyWhatDiffersForEachIsExchangedInPieces) {
  const Layout layout{.shape = {Collective::kAllGather, kRanks}, .count = 200, .sizes = {}, .receive_sizes = {}};
  auto planned = make_plan(world_of(64), layout, DataType::kF32, kSum);
  ASSERT_TRUE(planned.ok()) << planned.status().to_string();
  EXPECT_EQ(planned->program.tile_bytes, 128U);
}

}  // namespace
}  // namespace ringfold::plan
