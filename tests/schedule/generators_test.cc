// Every generator, for every number of ranks to 128 and some to 4096, makes schedules that pass the checker.
#include <gtest/gtest.h>

#include <bit>
#include <map>

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

class Generators : public testing::TestWithParam<std::string> {};

TEST_P(Generators, PassForEveryNumberOfRanksTo128) {
  const std::string& algorithm = GetParam();
  uint64_t schedules = 0;
  uint64_t steps = 0;
  for (const Collective collective : kEvery) {
    if (!has(algorithm, collective)) continue;
    for (int n = 1; n <= 128; ++n) {
      const bool few = n <= 24;  // beyond, one number of lanes and one placement at a time take turns
      for (const int root : roots_of(collective, n)) {
        for (int lanes = 1; lanes <= 4; ++lanes) {
          if (!few && lanes != 1 + (n + root) % 4) continue;
          auto placements = algorithm == "hierarchical" ? placements_of(n) : std::vector<std::vector<int>>{{}};
          for (size_t p = 0; p < placements.size(); ++p) {
            if (!few && p != static_cast<size_t>(n / 4) % placements.size()) continue;
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
  printf("%s: %zu schedules, %zu steps\n", algorithm.c_str(), size_t(schedules), size_t(steps));
}

TEST_P(Generators, PassForListedNumbersOfRanksTo4096) {
  const std::string& algorithm = GetParam();
  for (const Collective collective : kEvery) {
    if (!has(algorithm, collective)) continue;
    // Links or cells of these grow with the square (all_to_all: the cube) of the ranks.
    const bool square = algorithm == "direct" || algorithm == "oneshot";
    const int most = collective == Collective::kAllToAll ? 256 : square && !has_root(collective) ? 1024 : 4096;
    for (const int n : {129, 192, 255, 256, 257, 500, 1000, 1024, 1025, 2048, 4095, 4096}) {
      const bool quadratic = !has_root(collective) && collective != Collective::kBarrier;
      if (n > most || (n > 1025 && n < 4096 && quadratic)) continue;
      if (n == 4096 && algorithm != "ring" && algorithm != "tree" && algorithm != "chain" && quadratic) continue;
      if (n == 4096 && algorithm == "ring" && collective != Collective::kAllReduce) continue;
      Parameters parameters;
      if (algorithm == "hierarchical") parameters.host_of = placements_of(n)[n % 2 ? 5 : 3];
      passes(algorithm, {collective, n, has_root(collective) ? n / 3 : 0}, parameters);
      if (HasFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Generators, testing::ValuesIn(every_algorithm()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace ringfold::test
