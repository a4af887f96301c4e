// Every generator, for every number of ranks to 128 and some to 4096, makes schedules that pass the checker.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>

#include "algo/algo.h"
#include "schedule/checker.h"
#include "tests/schedule/shapes.h"

namespace ringfold::test {
namespace {

using algo::make;
using algo::Parameters;
using schedule::check;
using schedule::CheckOptions;
using schedule::CheckReport;

CheckReport passes(const std::string& algorithm, const Shape& shape, const Parameters& parameters) {
  CheckReport report;
  const auto schedule = make(algorithm, shape, parameters);
  EXPECT_TRUE(schedule.ok()) << schedule.status().message();
  if (!schedule.ok()) return report;
  const Status status = check(*schedule, {}, &report);
  EXPECT_TRUE(status.ok()) << name_of_case(shape, parameters) << "\n" << status.message();
  return report;
}

bool knows_hosts(const std::string& algorithm) { return algorithm == "hierarchical" || algorithm == "doubling"; }

class Generators : public testing::TestWithParam<std::string> {};

TEST_P(Generators, PassForEveryNumberOfRanksTo128) {
  const std::string& algorithm = GetParam();
  uint64_t schedules = 0;
  uint64_t steps = 0;
  for (const Collective collective : kEvery) {
    if (!has(algorithm, collective)) continue;
    for (int n = 1; n <= 128; ++n) {
      // Beyond, numbers of lanes (all_to_all only) and placements take turns.
      const bool all_lanes = n <= 24 || collective != Collective::kAllToAll;
      const bool all_placements = n <= 24;
      for (const int root : roots_of(collective, n)) {
        for (int lanes = 1; lanes <= 4; ++lanes) {
          if (!all_lanes && lanes != 1 + (n + root) % 4) continue;
          auto placements = knows_hosts(algorithm) ? placements_of(n) : std::vector<std::vector<int>>{{}};
          for (size_t p = 0; p < placements.size(); ++p) {
            if (!all_placements && p != static_cast<size_t>(n / 4) % placements.size()) continue;
            const Shape shape{collective, n, root};
            const Parameters parameters{lanes, placements[p]};
            const CheckReport report = passes(algorithm, shape, parameters);
            if (HasFailure()) return;
            EXPECT_EQ(report.hazards_tested, collective != Collective::kBarrier);
            if (algo::is_canonical(collective, algorithm)) {
              EXPECT_TRUE(report.canonical) << name_of_case(shape, parameters);
            }
            ++schedules;
            steps += report.steps;
          }
        }
      }
    }
  }
  RecordProperty("schedules", std::to_string(schedules));
  RecordProperty("steps", std::to_string(steps));
  EXPECT_GE(schedules, 128u);
}

TEST_P(Generators, PassForListedNumbersOfRanksTo4096) {
  const std::string& algorithm = GetParam();
  for (const Collective collective : kEvery) {
    if (!has(algorithm, collective)) continue;
    // Links or cells of these grow with the square (all_to_all: the cube) of the ranks.
    const bool square = algorithm == "direct" || algorithm == "oneshot" || algorithm == "star";
    const int most = collective == Collective::kAllToAll ? 256 : square && !has_root(collective) ? 1024 : 4096;
    const bool quadratic = !has_root(collective) && collective != Collective::kBarrier;
    for (const int n : {129, 192, 255, 256, 257, 500, 1000, 1024, 1025, 2048, 4095, 4096}) {
      if (n > most || (quadratic && n > 1025 && n < 4096)) continue;
      if (quadratic && n == 4096 && collective != Collective::kAllReduce) continue;
      Parameters parameters;
      if (knows_hosts(algorithm)) parameters.host_of = placements_of(n)[n % 2 ? 5 : 3];
      passes(algorithm, {collective, n, has_root(collective) ? n / 3 : 0}, parameters);
      if (HasFailure()) return;
    }
  }
}

// The figures that the essays in src/algo claim.
TEST(GeneratorFigures, CodingDepthAndRoundsAreAsClaimed) {
  const auto report_of = [](const std::string& algorithm, Collective collective, int n) {
    return passes(algorithm, {collective, n, 0}, {});
  };
  for (const int n : {2, 3, 4, 7, 8, 16, 33, 64}) {
    const auto ceil_log = static_cast<uint32_t>(std::bit_width(static_cast<unsigned>(n - 1)));
    const auto floor_log = static_cast<uint32_t>(std::bit_width(static_cast<unsigned>(n))) - 1;
    const auto u = static_cast<uint32_t>(n);
    const CheckReport ring = report_of("ring", Collective::kAllReduce, n);
    EXPECT_EQ(ring.coding_depth, n);
    EXPECT_EQ(ring.rounds, 2 * (u - 1));
    EXPECT_EQ(ring.messages, uint64_t{u} * 2 * (u - 1));
    EXPECT_EQ(report_of("ring", Collective::kAllGather, n).coding_depth, 1);
    const CheckReport direct = report_of("direct", Collective::kAllReduce, n);
    EXPECT_EQ(direct.coding_depth, 2);
    EXPECT_EQ(direct.rounds, 2u);
    const CheckReport oneshot = report_of("oneshot", Collective::kAllReduce, n);
    EXPECT_EQ(oneshot.coding_depth, 1);
    EXPECT_EQ(oneshot.rounds, 1u);
    const CheckReport doubling = report_of("doubling", Collective::kAllReduce, n);
    const bool power = std::has_single_bit(u), prime = n == 2 || n == 3 || n == 7;
    if (power) {
      EXPECT_EQ(doubling.messages, uint64_t{u} * ceil_log);
    }
    if (power || prime) {
      EXPECT_EQ(doubling.rounds, prime ? 1 : ceil_log);
    }
    const CheckReport recursive = report_of("recursive", Collective::kAllReduce, n);
    EXPECT_EQ(recursive.coding_depth, static_cast<int>(floor_log) + 1);
    EXPECT_EQ(recursive.rounds, 2 * ceil_log);
    EXPECT_EQ(report_of("recursive", Collective::kBarrier, n).rounds, ceil_log);
    EXPECT_LE(report_of("tree", Collective::kAllReduce, n).rounds, 2 * ceil_log);
    EXPECT_LE(report_of("tree", Collective::kBroadcast, n).rounds, ceil_log + 1);
    EXPECT_EQ(report_of("tree", Collective::kGather, n).rounds, floor_log);
    EXPECT_EQ(report_of("chain", Collective::kAllReduce, n).rounds, 2 * (u - 1));
    for (const auto collective : {Collective::kAllReduce, Collective::kReduceScatter, Collective::kAllGather}) {
      const CheckReport star = report_of("star", collective, n);
      EXPECT_EQ(star.coding_depth, collective == Collective::kAllGather ? 1 : 2);
      EXPECT_EQ(star.rounds, 2u);
      EXPECT_EQ(star.messages, 2 * (u - 1));
    }
  }
}

TEST(GeneratorFigures, DoublingSendsEachHostOneMessageARound) {
  for (const int hosts : {2, 4, 8}) {
    for (const int members : {2, 3, 5}) {
      Parameters parameters;
      for (int r = 0; r < hosts * members; ++r) parameters.host_of.push_back(r / members);
      const Shape shape{Collective::kAllReduce, hosts * members, 0};
      const auto rounds = static_cast<uint32_t>(std::bit_width(static_cast<unsigned>(hosts))) - 1;
      const CheckReport report = passes("doubling", shape, parameters);
      EXPECT_EQ(report.rounds, rounds + 2);
      EXPECT_EQ(report.messages, static_cast<uint64_t>(hosts) * (rounds + 2 * (static_cast<uint32_t>(members) - 1)));
      const auto made = make("doubling", shape, parameters);
      for (int rank = 0; rank < shape.ranks; ++rank) {
        const auto steps = made->rank(rank);
        int across = 0;
        for (const schedule::Step& step : steps.lanes[0]) {
          across += step.kind == schedule::StepKind::kSend && step.peer / members != rank / members;
        }
        EXPECT_EQ(across, rank % members == 0 ? static_cast<int>(rounds) : 0);
      }
    }
  }
}

TEST(GeneratorFigures, EveryRankIsAnInnerNodeInAtMostOneOfTheTwoTrees) {
  for (int n = 2; n <= 300; ++n) {
    const auto schedule = make("tree", {Collective::kAllReduce, n, 0}, {});
    ASSERT_TRUE(schedule.ok());
    for (int rank = 0; rank < n; ++rank) {
      const auto steps = schedule->rank(rank);
      int inner = 0;
      for (int tree = 0; tree < 2; ++tree) {
        const auto& up = steps.lanes[static_cast<size_t>(tree)];
        const auto received = std::count_if(
            up.begin(), up.end(), [](const auto& step) { return step.kind == schedule::StepKind::kRecvReduce; });
        EXPECT_LE(received, 2);
        inner += received > 0;
      }
      EXPECT_LE(inner, 1) << "rank " << rank << " of " << n;
    }
  }
}

TEST(GeneratorArguments, AreRefusedWithTheReason) {
  const auto message = [](std::string_view algorithm, Shape shape, Parameters parameters) {
    const auto schedule = make(algorithm, shape, parameters);
    EXPECT_EQ(schedule.status().code(), Code::kInvalid);
    return schedule.ok() ? "" : schedule.status().message();
  };
  const Shape shape{Collective::kAllReduce, 4, 0};
  EXPECT_EQ(message("oneshot", {Collective::kAllToAll, 4, 0}, {}),
            "no algorithm \"oneshot\" for all_to_all; there are direct");
  EXPECT_EQ(message("ring", {Collective::kAllReduce, 0, 0}, {}), "a schedule needs at least one rank");
  EXPECT_EQ(message("tree", {Collective::kReduce, 4, 4}, {}), "root 4 is not a rank of 4");
  EXPECT_EQ(message("ring", shape, {.lanes = 5}), "lanes must be 1 to 4");
  EXPECT_EQ(message("hierarchical", shape, {.host_of = {0, 0}}), "host_of must name a host per rank");
  EXPECT_EQ(message("hierarchical", shape, {.host_of = {0, 2, 1, 1}}),
            "host_of must number hosts from 0 in order of first appearance");
  EXPECT_EQ(message("direct", {Collective::kAllToAll, 50000, 0}, {}),
            "too many ranks: chunks are numbered with 31 bits");
}

INSTANTIATE_TEST_SUITE_P(All, Generators, testing::ValuesIn(every_algorithm()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace ringfold::test
