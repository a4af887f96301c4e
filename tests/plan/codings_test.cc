// Properties of lowering with codes on the links: whatever schedule is lowered, the programs of all ranks give the
// same bits everywhere with any codec, a sender goes on with what its receivers decode, and nothing is encoded twice
// in a row; and the algorithms that the planner takes for codecs encode a contribution twice at most, at any number
// of ranks.
#include <gtest/gtest.h>

#include "algo/algo.h"
#include "plan/lower.h"
#include "plan/planner.h"
#include "plan/program_check.h"

namespace ringfold::plan {
namespace {

std::vector<std::vector<int>> host_maps(int n) {
  std::vector<int> one(n, 0), each, pairs, uneven, mixed;
  for (int r = 0; r < n; ++r)
    each.push_back(r), pairs.push_back(r / 2), uneven.push_back(r == 0 ? 0 : 1), mixed.push_back(r % 2);
  return {one, each, pairs, uneven, n > 1 ? mixed : one};
}

// Fails, is refused (with `may_refuse`), or passes.
void check(const schedule::Schedule& schedule, const std::vector<int>& host_of, uint64_t count, uint64_t tile_bytes,
           int slots, bool in_place, bool may_refuse, int most_depth) {
  const int n = schedule.shape.ranks;
  std::vector<program::Program> programs;
  std::vector<Layout> layouts;
  int refused = 0;
  for (int r = 0; r < n; ++r) {
    LowerRequest request;
    request.schedule = &schedule;
    request.layout = {.shape = schedule.shape, .rank = r, .count = count, .sizes = {}, .receive_sizes = {}};
    request.tile_bytes = tile_bytes;
    request.slots = slots;
    request.coded = [&, r](int peer) { return carries_codes(schedule.algorithm, host_of, r, peer); };
    auto program = lower(request);
    if (!program.ok()) {
      ASSERT_EQ(program.status().code(), Code::kInvalid) << program.status().to_string();
      ASSERT_TRUE(may_refuse) << program.status().to_string();
      ++refused;
      continue;
    }
    programs.push_back(*std::move(program));
    layouts.push_back(request.layout);
  }
  if (refused > 0) return;
  for (uint64_t seed : {1, 2}) {
    const ProgramCheckOptions options = {
        .slots = slots, .in_place = in_place, .early = seed == 2, .seed = seed, .most_depth = most_depth};
    const Status status = check_programs(programs, layouts, options);
    ASSERT_TRUE(status.ok()) << status.to_string() << "\n"
                             << schedule.algorithm << " n=" << n << " root=" << schedule.shape.root
                             << " count=" << count << " tile=" << tile_bytes << " in_place=" << in_place;
  }
}

void check_all(Collective collective, const std::string& algorithm, int n, const std::vector<int>& hosts,
               bool may_refuse, int most_depth) {
  for (int root : has_root(collective) ? std::vector{0, n - 1} : std::vector{0}) {
    for (int lanes : {1, 2}) {
      auto schedule = algo::make(algorithm, {collective, n, root}, {lanes, hosts, !may_refuse});
      ASSERT_TRUE(schedule.ok()) << schedule.status().to_string();
      for (uint64_t count : {0, 1, 5 * n + 2, 300}) {
        for (bool in_place : {false, collective != Collective::kAllToAll}) {
          check(*schedule, hosts, count, 1 << 20, 2, in_place, may_refuse, most_depth);
          check(*schedule, hosts, count, 64, 4, in_place, may_refuse, most_depth);
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
}

class CodingsOfAnySchedule : public testing::TestWithParam<Collective> {};

TEST_P(CodingsOfAnySchedule, AreRightOrRefused) {
  for (const auto& algorithm : algo::algorithms_for(GetParam())) {
    for (int n : {2, 3, 4, 5, 8}) {
      // Hierarchical with one host, or with a host for each rank: all links are coded then. (Where only some are, a
      // schedule that hands values on leaves different ones behind.)
      for (const auto& hosts : {std::vector<int>(n, 0), host_maps(n)[1]}) {
        check_all(GetParam(), algorithm, n, hosts, true, INT_MAX);
        if (HasFatalFailure()) return;
      }
    }
  }
}

class CodingsOfThePlanner : public testing::TestWithParam<Collective> {};

TEST_P(CodingsOfThePlanner, AreTwoAtMost) {
  for (int n : {1, 2, 3, 4, 5, 7, 8, 9, 16}) {
    for (const auto& hosts : host_maps(n)) {
      const auto algorithms = algorithms_for_codecs(GetParam(), hosts);
      ASSERT_FALSE(algorithms.empty());
      for (const auto& algorithm : algorithms) {
        check_all(GetParam(), algorithm, n, hosts, false, 2);
        if (HasFatalFailure()) return;
      }
    }
  }
}

std::string name_of_param(const testing::TestParamInfo<Collective>& info) { return std::string(name_of(info.param)); }
INSTANTIATE_TEST_SUITE_P(All, CodingsOfAnySchedule,
                         testing::Values(Collective::kAllReduce, Collective::kReduce, Collective::kReduceScatter,
                                         Collective::kAllGather, Collective::kBroadcast, Collective::kGather,
                                         Collective::kScatter, Collective::kAllToAll),
                         name_of_param);
INSTANTIATE_TEST_SUITE_P(All, CodingsOfThePlanner,
                         testing::Values(Collective::kAllReduce, Collective::kReduceScatter, Collective::kAllGather,
                                         Collective::kBroadcast),
                         name_of_param);

}  // namespace
}  // namespace ringfold::plan
