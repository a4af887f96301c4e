// Random shapes: the checker passes every generator's schedule, the oracle agrees, and the checker's verdict on
// schedules that were broken at random is never kinder than the oracle's.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <memory>
#include <random>

#include "algo/algo.h"
#include "schedule/checker.h"
#include "tests/schedule/oracle.h"
#include "tests/schedule/shapes.h"

namespace ringfold::test {
namespace {

using namespace schedule;

struct Case {
  std::string algorithm;
  Shape shape;
  algo::Parameters parameters;
};

// rapidcheck's report goes to the test's; it shrinks the case that it found.
void holds(const char* what, const std::function<void()>& property) { EXPECT_TRUE(rc::check(what, property)); }

Case any_case(int least_ranks, int most_ranks) {
  Case c;
  c.shape.collective = *rc::gen::elementOf(std::vector<Collective>(std::begin(kEvery), std::end(kEvery)));
  c.algorithm = *rc::gen::elementOf(algo::algorithms_for(c.shape.collective));
  c.shape.ranks = *rc::gen::inRange(least_ranks, most_ranks + 1);
  if (has_root(c.shape.collective)) c.shape.root = *rc::gen::inRange(0, c.shape.ranks);
  c.parameters.lanes = *rc::gen::inRange(1, 5);
  if (c.algorithm == "hierarchical") {
    const auto ranks = static_cast<size_t>(c.shape.ranks);
    const int hosts = *rc::gen::inRange(1, c.shape.ranks + 1);
    c.parameters.host_of = renumbered(*rc::gen::container<std::vector<int>>(ranks, rc::gen::inRange(0, hosts)));
  }
  RC_LOG() << c.algorithm << " " << name_of_case(c.shape, c.parameters) << "\n";
  return c;
}

TEST(Properties, GeneratorsPassTheCheckerForAnyShape) {
  holds("a made schedule passes", [] {
    const Case c = any_case(1, 48);
    const auto schedule = algo::make(c.algorithm, c.shape, c.parameters);
    RC_ASSERT(schedule.ok());
    CheckReport report;
    const Status status = check(*schedule, {}, &report);
    RC_LOG() << status.message() << "\n";
    RC_ASSERT(status.ok());
    if (algo::is_canonical(c.shape.collective, c.algorithm)) RC_ASSERT(report.canonical);
  });
}

TEST(Properties, GeneratorsPlayRightForAnyShape) {
  holds("a made schedule plays right", [] {
    const Case c = any_case(1, 9);
    const auto schedule = algo::make(c.algorithm, c.shape, c.parameters);
    RC_ASSERT(schedule.ok());
    RC_ASSERT(play(*schedule, *rc::gen::arbitrary<uint64_t>()) == "");
  });
}

TEST(Properties, RanksAreMadeAlikeEachTime) {
  holds("rank() is pure", [] {
    const Case c = any_case(1, 20);
    const auto schedule = algo::make(c.algorithm, c.shape, c.parameters);
    RC_ASSERT(schedule.ok());
    const int rank = *rc::gen::inRange(0, c.shape.ranks);
    RC_ASSERT(schedule->rank(rank).lanes == Schedule(*schedule).rank(rank).lanes);
  });
}

TEST(Properties, WhatTheCheckerLetsPassPlaysRight) {
  holds("no broken schedule passes", [] {
    const Case c = any_case(2, 6);
    const auto schedule = algo::make(c.algorithm, c.shape, c.parameters);
    RC_ASSERT(schedule.ok());
    auto ranks = std::make_shared<std::vector<RankSteps>>();
    for (int r = 0; r < c.shape.ranks; ++r) ranks->push_back(schedule->rank(r));
    std::mt19937_64 random(*rc::gen::arbitrary<uint64_t>());
    const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
    for (size_t edits = 1 + below(3); edits > 0; --edits) {
      auto& steps = (*ranks)[below(ranks->size())];
      auto& lane = steps.lanes[below(steps.lanes.size())];
      if (lane.empty()) continue;
      const auto chunk = [&](uint32_t old) {
        return static_cast<uint32_t>(random() % 2 ? old : below(schedule->chunks() + steps.temporaries.size()));
      };
      Step& step = lane[below(lane.size())];
      switch (below(6)) {
        case 0: std::swap(step, lane[below(lane.size())]); break;
        case 1: step.flags ^= 1 + below(3); break;
        case 2: step.kind = static_cast<StepKind>(below(7)); break;
        case 3: step.chunk = chunk(step.chunk); break;
        case 4: step.source = chunk(step.source); break;
        default:
          const Step moved = step;
          lane.erase(lane.begin() + (&step - lane.data()));
          lane.insert(lane.begin() + static_cast<std::ptrdiff_t>(below(lane.size() + 1)), moved);
      }
    }
    Schedule broken = *schedule;
    broken.rank = [ranks](int rank) { return (*ranks)[static_cast<size_t>(rank)]; };
    const bool passed = check(broken).ok();
    RC_TAG(passed);
    if (!passed) return;
    for (uint64_t seed = 0; seed < 10; ++seed) RC_ASSERT(play(broken, seed) == "");
  });
}

}  // namespace
}  // namespace ringfold::test
