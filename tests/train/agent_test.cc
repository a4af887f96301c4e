// The agent, in worlds that are made up: what it plans from what was measured, and where it arrives when the world is
// not quite what was measured.
#include "train/agent.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <random>
#include <thread>

#include "ringfold/communicator.h"
#include "train/survey.h"

namespace ringfold::train {
namespace {

Crew crew_of(std::vector<double> sample_s, double plain_s, std::string name = "all") {
  Crew crew;
  crew.name = std::move(name);
  for (size_t i = 0; i < sample_s.size(); ++i) crew.ranks.push_back(static_cast<int>(i));
  crew.sample_s = crew.own_sample_s = std::move(sample_s);
  crew.fixed_s = 1e-3;
  crew.exchange_s = {{"none", plain_s}, {"int8", plain_s / 3.7 + 1e-4}, {"int4", plain_s / 6.8 + 1e-4}};
  return crew;
}

Survey survey_of(std::vector<Crew> crews) {
  Survey survey;
  survey.crews = std::move(crews);
  survey.gradient_bytes = 8 << 20;
  return survey;
}

const Goal kGoal{.kind = Goal::Kind::kAccuracy, .value = 0.9};

TEST(Goal, is_read_or_refused_with_the_reason) {
  EXPECT_EQ(parse_goal("accuracy=0.91")->value, 0.91);
  EXPECT_EQ(parse_goal("tokens=1e6")->kind, Goal::Kind::kSamples);
  EXPECT_EQ(parse_goal("samples=20000")->value, 20000);
  for (const char* bad : {"", "accuracy", "accuracy=", "accuracy=0.9x", "accuracy=91", "accuracy=-1", "accuracy=nan",
                          "samples=inf", "=0.9", "loss=1"}) {
    const auto goal = parse_goal(bad);
    ASSERT_FALSE(goal.ok()) << bad;
    EXPECT_NE(goal.status().message().find("goal \"" + std::string(bad) + "\""), std::string::npos);
  }
}

TEST(Plan, sums_exactly_where_links_are_fast_and_codes_where_they_are_slow) {
  const std::vector<double> equal(4, 1e-4);
  auto fast = consider(kGoal, survey_of({crew_of(equal, 0.2e-3)}));
  EXPECT_EQ(fast[0].settings.sync, "ssgd");
  EXPECT_EQ(fast[0].settings.codec, "none");
  EXPECT_THAT(fast[0].settings.shares, testing::Each(testing::DoubleEq(0.25)));
  auto slow = consider(kGoal, survey_of({crew_of(equal, 20e-3)}));
  EXPECT_EQ(slow[0].settings.sync, "ssgd");
  EXPECT_NE(slow[0].settings.codec, "none");
  auto slowest = consider(kGoal, survey_of({crew_of(equal, 2)}));
  EXPECT_EQ(slowest[0].settings.sync, "diloco");
}

TEST(Plan, gives_a_slow_rank_less_of_each_batch) {
  const auto best = consider(kGoal, survey_of({crew_of({1e-4, 1e-4, 1e-4, 4e-4}, 0.2e-3)}))[0];
  EXPECT_EQ(best.settings.sync, "ssgd");
  EXPECT_NEAR(best.settings.shares[0], 4.0 / 13, 1e-9);
  EXPECT_NEAR(best.settings.shares[3], 1.0 / 13, 1e-9);
}

TEST(Plan, leaves_ranks_out_that_only_share_a_core_or_that_are_too_many) {
  // Four ranks on two cores compute each sample at half the rate, and exchange besides.
  const auto survey = survey_of({crew_of(std::vector<double>(4, 2e-4), 4e-3, "all 4"),
                                 crew_of({1e-4, 1e-4}, 2e-3, "2 of them"), crew_of({1e-4}, 0, "one")});
  EXPECT_EQ(consider(kGoal, survey)[0].settings.crew, 1u);
  Goal few = kGoal;
  few.max_ranks = 1;
  for (const auto& c : consider(few, survey)) EXPECT_EQ(c.settings.crew, 2u);
  few.max_ranks = 0;
  const std::string table = to_string(consider(few, survey), survey, 1);
  EXPECT_NE(table.find("2 of them"), std::string::npos) << table;
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 2) << table;
}

TEST(Plan, takes_larger_batches_for_accuracy_only_while_they_save_time) {
  Survey survey = survey_of({crew_of(std::vector<double>(4, 1e-6), 50e-3)});  // the exchange is all there is
  survey.batches = {128, 256, 512, 1024};
  EXPECT_EQ(consider(kGoal, survey)[0].settings.batch, 1024u);
  survey = survey_of({crew_of(std::vector<double>(4, 1e-3), 1e-6)});  // computing is
  survey.crews[0].fixed_s = 0;
  survey.batches = {128, 256, 512, 1024};
  EXPECT_EQ(consider(kGoal, survey)[0].settings.batch, 128u);
}

// A model of 64 MiB on 4 equal ranks, which may lie on the ranks of a pipeline and be shared by two.
Survey survey_of_large_model(double plain_s, size_t stage_bytes, size_t layer_bytes) {
  Survey survey = survey_of({crew_of(std::vector<double>(4, 1e-3), plain_s)});
  survey.gradient_bytes = 64 << 20;
  survey.batch = 64;
  survey.syncs = {"ssgd"};
  survey.least_replicas = 1;
  survey.stage_bytes = stage_bytes;
  survey.layer_bytes = layer_bytes;
  for (int pipeline : {1, 2, 4}) {
    for (int tensor : {1, 2}) {
      if (pipeline * tensor == 1 || pipeline * tensor > 4) continue;
      survey.cuts.push_back({.pipeline = pipeline, .tensor = tensor});
    }
  }
  return survey;
}

TEST(Plan, cuts_the_model_where_its_gradients_cost_more_than_its_activations) {
  // 1 GB/s of gradients, small activations: a pipeline of all ranks sums none.
  const auto best = consider(kGoal, survey_of_large_model(0.1, 4096, 1 << 20))[0];
  EXPECT_EQ(best.settings.cut.pipeline, 4);
  EXPECT_EQ(best.settings.cut.tensor, 1);
  EXPECT_EQ(best.settings.micro_batches, 16) << "many, so that ranks idle little";
  EXPECT_THAT(best.settings.shares, testing::ElementsAre(1.0));
  // Activations are large: whole models.
  EXPECT_EQ(consider(kGoal, survey_of_large_model(0.1, 8 << 20, 64 << 20))[0].settings.cut, Cut());
  // Only what crosses links within layers is small.
  EXPECT_EQ(consider(kGoal, survey_of_large_model(0.1, 8 << 20, 64))[0].settings.cut.tensor, 2);
  // Fast links: nothing to gain.
  EXPECT_EQ(consider(kGoal, survey_of_large_model(1e-4, 4096, 1 << 20))[0].settings.cut, Cut());
}

TEST(Plan, cuts_only_what_ranks_samples_and_the_user_allow) {
  Survey survey = survey_of_large_model(0.1, 4096, 1 << 20);
  survey.batch = 3;  // fewer samples than replicas, or than ranks of a pipeline
  for (const auto& c : consider(kGoal, survey)) {
    EXPECT_LE(c.settings.shares.size(), 3u);
    EXPECT_LE(c.settings.micro_batches, 3);
    EXPECT_EQ(c.settings.shares.size() * static_cast<size_t>(c.settings.cut.pipeline * c.settings.cut.tensor), 4u);
  }
  survey.batch = 64;
  survey.samples = 2;  // of an epoch
  for (const auto& c : consider(kGoal, survey)) EXPECT_LE(c.settings.micro_batches, 2);
  survey.samples = SIZE_MAX;
  survey.least_replicas = 2;  // so that one can go on without the other
  for (const auto& c : consider(kGoal, survey)) EXPECT_GE(c.settings.shares.size(), 2u);
  survey.cuts = {{.pipeline = 2}};
  for (const auto& c : consider(kGoal, survey)) EXPECT_EQ(c.settings.cut.pipeline, 2);
  survey.crews[0].ranks.resize(3);
  survey.crews[0].sample_s.resize(3);
  survey.crews[0].own_sample_s.resize(3);
  EXPECT_TRUE(consider(kGoal, survey).empty());
}

TEST(Plan, lets_ranks_update_in_turns_where_now_one_is_late_and_now_another) {
  Survey survey = survey_of({crew_of(std::vector<double>(4, 2e-4), 0.2e-3)});
  EXPECT_EQ(consider(kGoal, survey)[0].settings.sync, "ssgd");
  survey.crews[0].own_sample_s.assign(4, 1e-4);
  const auto best = consider(kGoal, survey)[0];
  EXPECT_EQ(best.settings.sync, "asgd");
  EXPECT_EQ(best.settings.codec, "none");
  EXPECT_EQ(best.settings.staleness, 4);
  survey.syncs = {"asgd"};
  survey.crews[0].sample_s[2] = survey.crews[0].own_sample_s[2] = 9e-4;
  for (const auto& c : consider(kGoal, survey)) {
    EXPECT_EQ(c.settings.sync, "asgd");
    EXPECT_EQ(c.settings.staleness, 9) << "a rank that is 9 times slower holds nobody up";
  }
}

TEST(Plan, small_batches_make_small_steps) {
  EXPECT_EQ(rate_for(256, 256), 1);
  EXPECT_LT(rate_for(64, 256), rate_for(128, 256));
  EXPECT_LT(rate_for(128, 256), 1);
  EXPECT_GT(rate_for(64, 256), 0.25);  // but not in proportion
  EXPECT_NEAR(rate_for(64, 256) * rate_for(256, 64), 1, 1e-9);
}

TEST(Plan, few_ranks_that_meet_now_and_then_where_links_are_slow_and_ranks_share_cores) {
  Survey survey =
      survey_of({crew_of(std::vector<double>(4, 2e-4), 40e-3, "all 4"), crew_of({1e-4, 1e-4}, 40e-3, "2")});
  survey.batches = {32, 64, 128};
  const Settings best = consider(kGoal, survey)[0].settings;
  EXPECT_EQ(best.sync, "local");
  EXPECT_EQ(best.crew, 1u);
  EXPECT_EQ(best.batch, 64u);
  EXPECT_THAT(best.shares, testing::Each(testing::DoubleEq(0.5)));
}

TEST(Plan, takes_small_differences_of_a_short_measurement_for_noise) {
  const auto best = consider(kGoal, survey_of({crew_of({1e-4, 1.5e-4}, 0.2e-3)}))[0];
  EXPECT_THAT(best.settings.shares, testing::Each(testing::DoubleEq(0.5)));
}

TEST(Rehearsal, what_looks_best_is_tried_and_what_turns_out_best_is_taken) {
  Crew alone = crew_of({1e-4}, 0, "one");
  alone.exchange_s = {{"none", 0.0}};
  const Survey survey = survey_of({crew_of({1e-4, 1e-4}, 0.2e-3, "both"), alone});
  auto comms = Communicator::init_local(2);
  ASSERT_TRUE(comms.ok()) << comms.status().to_string();
  std::atomic<int> trials = 0;
  const Rehearsal rehearsal{.compute = [](size_t) { return 0.0; },
                            .step = [&](Communicator& crew, const Settings&) -> Result<double> {
                              trials += crew.rank() == 0;
                              return crew.size() == 2 ? 60e-3 : 27e-3;  // two of them get in each other's way
                            }};
  std::vector<std::vector<Candidate>> found(2, consider(kGoal, survey));
  ASSERT_EQ(found[0][0].settings.crew, 0u);
  std::vector<std::thread> ranks;
  for (Communicator& comm : *comms) {
    ranks.emplace_back([&] {
      const Status status = rehearse(comm, survey, rehearsal, &found[static_cast<size_t>(comm.rank())]);
      EXPECT_TRUE(status.ok()) << status.to_string();
    });
  }
  for (auto& rank : ranks) rank.join();
  for (const auto& candidates : found) {
    EXPECT_EQ(candidates[0].settings.crew, 1u);
    EXPECT_TRUE(candidates[0].tried);
    EXPECT_EQ(candidates[0].cost, 1);
    EXPECT_EQ(candidates[0].step_s, 27e-3);
    EXPECT_TRUE(std::is_sorted(candidates.begin() + 1, candidates.end(),
                               [](const auto& a, const auto& b) { return a.cost < b.cost; }));
    EXPECT_NE(to_string(candidates, survey).find("measured"), std::string::npos);
  }
  EXPECT_GE(trials, 2);
  EXPECT_LE(trials, 6);
}

// ---- while it runs ----

// The world as it is: rates and exchanges beside what the survey believed.
struct World {
  std::vector<double> sample_s;
  double plain_s = 0, hiding = 0.3, noise = 0, best_bucket_kib = 1024;
  std::mt19937_64 random{1};

  double step_s(const Settings& s) {
    const auto o = look(s, 0);
    double most = 0;
    for (size_t m = 0; m < o.compute_s.size(); ++m) most = std::max(most, o.compute_s[m] + o.exposed_s[m]);
    return most / static_cast<double>(o.steps);
  }
  Observation look(const Settings& s, size_t step) {
    constexpr size_t kSteps = 50;
    Observation o{.step = step, .steps = kSteps};
    double most = 0;
    for (size_t m = 0; m < sample_s.size(); ++m) {
      const double samples = s.shares[m] * static_cast<double>(s.batch);
      o.samples.push_back(static_cast<size_t>(samples * kSteps));
      o.compute_s.push_back(samples * sample_s[m] * kSteps * wobble());
      most = std::max(most, o.compute_s.back());
    }
    const double ratio = s.codec == "none" ? 1 : s.codec == "int8" ? 3.7 : 6.8;
    const double off = std::fabs(std::log2(static_cast<double>(s.bucket_kib) / best_bucket_kib));
    const double exchange = plain_s / ratio * (1 + 0.1 * off) * kSteps;
    const double exposed = std::max(exchange / 8, exchange - hiding * most) * wobble();
    for (double c : o.compute_s) o.exposed_s.push_back(most - c + exposed);
    return o;
  }
  double wobble() { return 1 + noise * std::uniform_real_distribution<>(-1, 1)(random); }
};

struct Arrived {
  double step_s = 0;
  int decisions = 0, late = 0;  // late: after the 25th observation
};
Arrived let_run(Agent& agent, World world) {
  Arrived arrived;
  for (size_t i = 0; i < 50; ++i) {
    if (agent.observe(world.look(agent.settings(), i * 50))) {
      ++arrived.decisions;
      arrived.late += i >= 25;
    }
  }
  world.noise = 0;
  arrived.step_s = world.step_s(agent.settings());
  return arrived;
}

TEST(Agent, comes_within_a_few_percent_of_the_best_settings_whatever_the_world_is) {
  std::mt19937_64 random(7);
  const auto uniform = [&](double low, double high) { return std::uniform_real_distribution<>(low, high)(random); };
  for (int trial = 0; trial < 300; ++trial) {
    World world{.plain_s = std::exp(uniform(std::log(1e-4), std::log(0.3))),
                .hiding = uniform(0, 0.6),
                .noise = 0.01,
                .best_bucket_kib = std::exp2(uniform(7, 13)),
                .random = std::mt19937_64(static_cast<uint64_t>(trial))};
    for (int m = 0; m < 4; ++m) world.sample_s.push_back(1e-4 * uniform(1, trial % 3 == 0 ? 6 : 1.05));
    // The survey took all ranks for equal and the links for three times as fast or slow.
    const Survey survey =
        survey_of({crew_of(std::vector<double>(4, 1e-4), world.plain_s * std::exp2(uniform(-1.5, 1.5)))});
    Candidate chosen;
    for (const auto& c : consider(kGoal, survey)) {
      if (c.settings.sync == "ssgd") {
        chosen = c;
        break;
      }
    }
    Agent agent(survey, chosen);
    const Arrived arrived = let_run(agent, world);

    World quiet = world;
    quiet.noise = 0;
    Settings fair = chosen.settings;
    double all = 0, best = INFINITY;
    for (size_t m = 0; m < 4; ++m) all += fair.shares[m] = 1 / world.sample_s[m];
    for (double& s : fair.shares) s /= all;
    for (const char* codec : {"none", "int8", "int4"}) {
      for (size_t kib : {64, 256, 1024, 4096, 16384}) {
        fair.codec = codec;
        fair.bucket_kib = kib;
        best = std::min(best, quiet.step_s(fair));
      }
    }
    EXPECT_LE(arrived.step_s, best * 1.15)
        << trial << ": " << agent.settings().codec << ", " << agent.settings().bucket_kib;
    EXPECT_LE(arrived.decisions, 14) << trial;
    EXPECT_EQ(arrived.late, 0) << trial << ": it should have come to rest";
  }
}

TEST(Agent, changes_nothing_in_a_world_that_is_as_it_was_measured) {
  World world{.sample_s = std::vector<double>(4, 1e-4), .plain_s = 0.2e-3, .noise = 0.01};
  const Survey survey = survey_of({crew_of(world.sample_s, world.plain_s)});
  Agent agent(survey, consider(kGoal, survey)[0]);
  EXPECT_EQ(let_run(agent, world).decisions, 0);
}

TEST(Agent, gives_work_to_others_when_a_rank_becomes_slow_and_says_which) {
  World world{.sample_s = std::vector<double>(4, 1e-4), .plain_s = 0.2e-3};
  const Survey survey = survey_of({crew_of(world.sample_s, world.plain_s)});
  Agent agent(survey, consider(kGoal, survey)[0]);
  world.sample_s[2] = 4e-4;
  const auto decision = agent.observe(world.look(agent.settings(), 100));
  ASSERT_TRUE(decision);
  EXPECT_EQ(decision->step, 100u);
  EXPECT_EQ(decision->seen, "rank 2 computes 2.29 times as long as the ranks' mean");
  EXPECT_EQ(decision->changed, "samples by rank 64/64/64/64 -> 79/79/20/79");
  EXPECT_FALSE(agent.observe(world.look(agent.settings(), 150)));
  world.sample_s[2] = 1e-4;  // and back
  ASSERT_TRUE(agent.observe(world.look(agent.settings(), 200)));
  EXPECT_NEAR(agent.settings().shares[2], 0.25, 1e-3);
}

// What a rank computed is its time less its waiting, and the two are not taken at one instant.
TEST(Agent, makes_nothing_of_times_that_cannot_be) {
  World world{.sample_s = std::vector<double>(4, 1e-4), .plain_s = 0.2e-3};
  const Survey survey = survey_of({crew_of(world.sample_s, world.plain_s)});
  Agent agent(survey, consider(kGoal, survey)[0]);
  world.sample_s[2] = 4e-4;
  Observation seen = world.look(agent.settings(), 100);
  for (const double wrong : {0.0, -1e-3}) {
    seen.compute_s[1] = wrong;
    EXPECT_FALSE(agent.observe(seen)) << wrong;
    for (const double share : agent.settings().shares) EXPECT_GT(share, 0);
  }
}

TEST(Agent, stops_moving_work_about_where_what_it_sees_is_noise) {
  World world{.sample_s = std::vector<double>(4, 1e-4), .plain_s = 0.2e-3, .noise = 0.2};
  const Survey survey = survey_of({crew_of(world.sample_s, world.plain_s)});
  Agent agent(survey, consider(kGoal, survey)[0]);
  const Arrived arrived = let_run(agent, world);
  EXPECT_LE(arrived.decisions, 12);
  EXPECT_EQ(arrived.late, 0);
}

TEST(Agent, takes_back_what_did_not_help_says_so_and_does_not_try_it_again) {
  World world{.sample_s = std::vector<double>(2, 1e-4), .plain_s = 50e-3, .hiding = 0};
  Survey survey = survey_of({crew_of(world.sample_s, world.plain_s)});
  survey.crews[0].exchange_s = {{"none", 50e-3}, {"int8", 10e-3}};
  Agent agent(survey, {.settings = {.shares = {0.5, 0.5}}});
  const double before = world.step_s(agent.settings());
  const auto decision = agent.observe(world.look(agent.settings(), 50));
  ASSERT_TRUE(decision);
  EXPECT_EQ(decision->changed, "codec none -> int8");
  world.plain_s = 50e-3 * 3.8;  // codes turn out to be no faster
  const auto back = agent.observe(world.look(agent.settings(), 100));
  ASSERT_TRUE(back);
  EXPECT_EQ(back->changed, "back: not codec none -> int8");
  EXPECT_NE(back->outcome.find("ms a step"), std::string::npos);
  EXPECT_EQ(agent.settings().codec, "none");
  world.plain_s = 50e-3;
  for (size_t i = 0; i < 20; ++i) agent.observe(world.look(agent.settings(), 150 + i * 50));
  EXPECT_EQ(agent.settings().codec, "none");
  EXPECT_LE(world.step_s(agent.settings()), before * 1.001);
}

TEST(Agent, shares_a_lost_ranks_work_among_those_that_remain) {
  const Survey survey = survey_of({crew_of({1e-4, 1e-4, 3e-4}, 0.2e-3)});
  Agent agent(survey, consider(kGoal, survey)[0]);
  const Decision decision = agent.go_on_with(70, {0, 2}, "rank 1 on b: its process ended");
  EXPECT_EQ(decision.seen, "rank 1 on b: its process ended");
  EXPECT_EQ(decision.changed, "goes on with 2 ranks, samples by rank 110/110/37 -> 192/64");
  EXPECT_NEAR(agent.settings().shares[0], 3.0 / 4, 1e-9);
  World world{.sample_s = {1e-4, 3e-4}, .plain_s = 0.2e-3};
  EXPECT_FALSE(agent.observe(world.look(agent.settings(), 120)));
  // It comes back, with the work of one of the ranks on average.
  const Decision back = agent.go_on_with(130, {0, 2, 1}, "rank 1 came back");
  EXPECT_EQ(back.changed, "goes on with 3 ranks, samples by rank 192/64 -> 128/43/85");
}

// ---- cut models, and updates in turns ----

TEST(Agent, takes_as_many_micro_batches_as_make_steps_faster) {
  Survey survey = survey_of({crew_of(std::vector<double>(4, 1e-4), 1e-3)});
  Agent agent(survey, {.settings = {.batch = 128, .cut = {.pipeline = 4}, .micro_batches = 4, .shares = {1}}});
  // 100 ms of a stage's computing, and 4 ms for each micro-batch.
  const auto look = [](const Settings& s, size_t step) {
    const double m = s.micro_batches, busy = 0.1 + 4e-3 * m, idle = busy / m * (s.cut.pipeline - 1);
    return Observation{.step = step,
                       .steps = 10,
                       .compute_s = std::vector<double>(4, 10 * busy),
                       .exposed_s = std::vector<double>(4, 10 * idle),
                       .samples = std::vector<size_t>(4, 1280),
                       .staleness = {}};
  };
  const auto first = agent.observe(look(agent.settings(), 10));
  ASSERT_TRUE(first);
  EXPECT_EQ(first->seen, "ranks wait for each other for 43 % of a step");
  EXPECT_EQ(first->changed, "micro-batches 4 -> 8");
  size_t decisions = 0;
  for (size_t i = 2; i < 20; ++i) decisions += agent.observe(look(agent.settings(), 10 * i)).has_value();
  EXPECT_EQ(agent.settings().micro_batches, 8) << "16 are as slow as 8";
  EXPECT_LE(decisions, 3u);
  // A replica is lost, the others go on.
  const Decision decision = agent.go_on_with(300, {0, 1, 2, 3}, "rank 5 is lost");
  EXPECT_EQ(decision.changed, "goes on with 4 ranks, samples by replica 128 -> 128");
  EXPECT_THAT(agent.settings().shares, testing::ElementsAre(1.0));
}

struct Turns {  // what asgd shows
  std::vector<double> compute_s, exposed_s;
  std::vector<uint64_t> staleness;
  double loss = 1;
  Observation look(size_t step) const {
    return {.step = step,
            .steps = 10,
            .compute_s = compute_s,
            .exposed_s = exposed_s,
            .samples = std::vector<size_t>(compute_s.size(), 100),
            .loss = loss,
            .staleness = staleness};
  }
};

TEST(Agent, lets_updates_be_later_where_the_bound_holds_up_fast_ranks) {
  Survey survey = survey_of({crew_of({1e-4, 1e-4, 9e-4}, 1e-3)});
  Agent agent(survey, {.settings = {.sync = "asgd", .staleness = 2, .shares = {1 / 3., 1 / 3., 1 / 3.}}});
  Turns held{.compute_s = {0.2, 0.2, 1}, .exposed_s = {0.9, 0.9, 0.1}, .staleness = {5, 5, 5, 2, 1, 1, 1}};
  const auto decision = agent.observe(held.look(10));
  ASSERT_TRUE(decision);
  EXPECT_EQ(decision->changed, "staleness up to 2 -> 4 steps");
  EXPECT_NE(decision->seen.find("6 others late, which is the bound"), std::string::npos) << decision->seen;
  // Faster: it stays. Nobody is held up any more: nothing changes.
  Turns free{.compute_s = {0.6, 0.6, 0.7}, .exposed_s = {0.05, 0.05, 0.02}, .staleness = {5, 5, 5, 2, 1, 1, 1, 1, 1}};
  EXPECT_FALSE(agent.observe(free.look(20)));
  EXPECT_EQ(agent.settings().staleness, 4);
  // Waiting alike is not the bound's doing.
  Turns alike{.compute_s = {0.5, 0.5, 0.5}, .exposed_s = {0.5, 0.5, 0.5}, .staleness = std::vector<uint64_t>(13, 1)};
  EXPECT_FALSE(agent.observe(alike.look(30)));
}

TEST(Agent, keeps_no_bound_that_did_not_help_and_lowers_it_where_the_loss_rises) {
  Survey survey = survey_of({crew_of({1e-4, 9e-4}, 1e-3)});
  Agent agent(survey, {.settings = {.sync = "asgd", .staleness = 4, .shares = {0.5, 0.5}}});
  const Turns held{.compute_s = {0.2, 1}, .exposed_s = {0.9, 0.1}, .staleness = std::vector<uint64_t>(9, 1)};
  ASSERT_TRUE(agent.observe(held.look(10)));
  EXPECT_EQ(agent.settings().staleness, 8);
  const auto back = agent.observe(held.look(20));
  ASSERT_TRUE(back);
  EXPECT_EQ(back->changed, "back: not staleness up to 4 -> 8 steps");
  EXPECT_EQ(agent.settings().staleness, 4);
  EXPECT_FALSE(agent.observe(held.look(30))) << "not twice";
  Turns worse = held;
  worse.loss = 1.3;
  const auto lower = agent.observe(worse.look(40));
  ASSERT_TRUE(lower);
  EXPECT_EQ(lower->changed, "staleness up to 4 -> 2 steps");
  EXPECT_NE(lower->seen.find("the loss is 1.3000, 1.0000 before"), std::string::npos) << lower->seen;
  auto twin = Agent::from_text(agent.to_text());
  ASSERT_TRUE(twin.ok());
  EXPECT_EQ(twin->settings().staleness, 2);
  EXPECT_EQ(twin->to_text(), agent.to_text());
}

TEST(Agent, takes_back_a_codec_with_which_the_loss_rises) {
  World world{.sample_s = std::vector<double>(2, 1e-4), .plain_s = 50e-3, .hiding = 0};
  Survey survey = survey_of({crew_of(world.sample_s, world.plain_s)});
  survey.crews[0].exchange_s = {{"none", 50e-3}, {"int8", 10e-3}};
  Agent agent(survey, {.settings = {.shares = {0.5, 0.5}}});
  Observation seen = world.look(agent.settings(), 50);
  seen.loss = 0.5;
  ASSERT_TRUE(agent.observe(seen));
  EXPECT_EQ(agent.settings().codec, "int8");
  seen = world.look(agent.settings(), 100);  // faster, but
  seen.loss = 0.7;
  const auto back = agent.observe(seen);
  ASSERT_TRUE(back);
  EXPECT_EQ(back->seen, "the loss is 0.7000, 0.5000 before");
  EXPECT_EQ(agent.settings().codec, "none");
}

TEST(Agent, is_the_same_from_what_it_says_of_itself) {
  World world{.sample_s = std::vector<double>(2, 1e-4), .plain_s = 50e-3, .hiding = 0};
  Survey survey = survey_of({crew_of(world.sample_s, world.plain_s)});
  survey.crews[0].exchange_s = {{"none", 50e-3}, {"int8", 10e-3}};
  Agent agent(survey, {.settings = {.shares = {0.5, 0.5}}});
  for (size_t i = 1; i < 12; ++i) {
    auto twin = Agent::from_text(agent.to_text());
    ASSERT_TRUE(twin.ok()) << twin.status().to_string();
    const Observation seen = world.look(agent.settings(), i * 50);
    const auto one = agent.observe(seen), other = twin->observe(seen);
    ASSERT_EQ(one.has_value(), other.has_value());
    if (one) {
      EXPECT_EQ(one->changed + one->outcome, other->changed + other->outcome);
    }
    EXPECT_EQ(agent.to_text(), twin->to_text());
  }
  EXPECT_EQ(Agent::from_text("{}").status().code(), Code::kProtocol);
}

}  // namespace
}  // namespace ringfold::train
