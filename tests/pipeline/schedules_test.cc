// The schedules, over all small shapes: what the checker proves of each, and that the closed formulas of idle time
// and activations are what simulator and checker count.
#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <tuple>

#include "ringfold/pipeline.h"

namespace ringfold::test {
namespace {

using namespace pipeline;

constexpr int kMostRanks = 16;

std::string text_of(std::string_view name, const Shape& s) {
  return std::string(name) + " p=" + std::to_string(s.ranks) + " m=" + std::to_string(s.micro_batches) +
         " v=" + std::to_string(s.chunks);
}

// Every shape that the schedule takes: p to 16, m to 3p + 3 and some more, v to 4.
template <typename F>
void for_every_shape(const Recipe& recipe, F&& f) {
  for (int p = 1; p <= kMostRanks; ++p) {
    std::set<int> micro_batches = {5 * p, 8 * p, 64};
    for (int m = 1; m <= 3 * p + 3; ++m) micro_batches.insert(m);
    for (int m : micro_batches) {
      for (int v = 1; v <= 4; ++v) {
        const Shape shape{p, m, v};
        if (recipe.accepts(shape).ok()) f(shape);
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

class Schedules : public testing::TestWithParam<std::string> {
 protected:
  Recipe recipe() const { return *find_recipe(GetParam()); }
};

TEST_P(Schedules, AreCompleteInOrderAndFreeOfDeadlock) {
  int shapes = 0;
  for_every_shape(recipe(), [&](const Shape& shape) {
    const auto schedule = make(GetParam(), shape);
    ASSERT_TRUE(schedule.ok()) << schedule.status().to_string();
    EXPECT_EQ(schedule->stages(), shape.ranks * shape.chunks);
    const Status status = check(*schedule);
    EXPECT_TRUE(status.ok()) << text_of(GetParam(), shape) << ": " << status.to_string();
    ++shapes;
  });
  EXPECT_GE(shapes, 100);
}

TEST_P(Schedules, HoldTheActivationsOfTheFormula) {
  int shapes = 0;
  for_every_shape(recipe(), [&](const Shape& shape) {
    CheckReport report;
    ASSERT_TRUE(check(*make(GetParam(), shape), {}, &report).ok());
    ASSERT_EQ(static_cast<int>(report.peak.size()), shape.ranks);
    for (int r = 0; r < shape.ranks; ++r) {
      const auto expected = recipe().peak(shape, r);
      if (!expected) continue;
      EXPECT_EQ(report.peak[static_cast<size_t>(r)], *expected) << text_of(GetParam(), shape) << " rank " << r;
      ++shapes;
    }
  });
  EXPECT_GE(shapes, 500);
}

TEST_P(Schedules, IdleForTheTimeOfTheFormula) {
  int shapes = 0;
  const Times all_times[] = {{1, 1, 1}, {1, 2, 1}, {2, 2, 1}, {1, 1, 0.5}, {3, 4, 2}, {1, 1.5, 0.75},
                             {1, 1, 2}, {3, 5, 4}, {2, 1, 1}, {5, 4, 4},   {2, 5, 3}};
  for_every_shape(recipe(), [&](const Shape& shape) {
    const auto schedule = make(GetParam(), shape);
    ASSERT_TRUE(schedule.ok());
    for (const Times& times : all_times) {
      const auto expected = recipe().bubble(shape, times);
      if (!expected) continue;
      const auto timing = simulate(*schedule, times);
      ASSERT_TRUE(timing.ok());
      EXPECT_NEAR(timing->bubble, *expected, 1e-9 * timing->makespan)
          << text_of(GetParam(), shape) << " F=" << times.forward << " B=" << times.backward_input
          << " W=" << times.backward_weight;
      ++shapes;
    }
  });
  EXPECT_GE(shapes, 100);
}

// Ranks need not wait for each other between steps: what one leaves idle at its end, it has not waited for at its
// beginning.
TEST_P(Schedules, StepsInARowTakeTheTimeOfOneEach) {
  for_every_shape(recipe(), [&](const Shape& shape) {
    if (shape.micro_batches > 2 * shape.ranks) return;
    const auto schedule = make(GetParam(), shape);
    for (const Times& times : {Times{1, 1, 1}, Times{2, 3, 1}}) {
      const auto one = simulate(*schedule, times, 1), four = simulate(*schedule, times, 4);
      ASSERT_TRUE(one.ok() && four.ok());
      EXPECT_LE(four->step, one->step + 1e-9) << text_of(GetParam(), shape);
      EXPECT_GE(four->step, shape.micro_batches * times.work() - 1e-9);
      if (recipe().bubble(shape, times)) {
        EXPECT_NEAR(four->step, one->step, 1e-9) << text_of(GetParam(), shape);
      }
    }
  });
}

// A transfer between ranks costs its time, and chunks of one rank hand over for nothing.
TEST_P(Schedules, TransfersTakeTheirTime) {
  const auto schedule = make(GetParam(), {4, 8});
  const auto without = simulate(*schedule, {}), with = simulate(*schedule, {.transfer = 0.25});
  EXPECT_GT(with->makespan, without->makespan);
  for (size_t k = 0; k < with->busy.size(); ++k) EXPECT_NEAR(with->busy[k], without->busy[k], 1e-9);
  const auto alone = make(GetParam(), {1, 8});
  EXPECT_NEAR(simulate(*alone, {.transfer = 0.25})->makespan, 8 * 3, 1e-9);
}

INSTANTIATE_TEST_SUITE_P(Every, Schedules,
                         testing::Values("gpipe", "1f1b", "interleaved-1f1b", "zb-h1", "zb-h2", "zb-v"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

}  // namespace
}  // namespace ringfold::test
