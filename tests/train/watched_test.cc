// Runs that an agent changes while they go on: what is changed takes effect, and what is learned stays the same.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tests/train/trained.h"
#include "train/layout.h"
#include "train/plan.h"

namespace ringfold::train {
namespace {

using namespace test;
using WatchedJson = nlohmann::json;

struct Watched {
  Summary summary;
  std::vector<float> parameters;
};

// Ranks as threads whose agent has planned `settings`; by rank. The log is rank 0's.
std::vector<Watched> watch(int ranks, Args args, const Settings& settings, const Dataset& data,
                           std::vector<WatchedJson>* log) {
  apply(settings, args);
  std::vector<Watched> all(static_cast<size_t>(ranks));
  on_ranks(ranks, [&](Communicator& comm) {
    auto reporter = Reporter::make(args, comm.rank());
    ASSERT_TRUE(reporter.ok());
    auto layout = Layout::make(comm, args);
    ASSERT_TRUE(layout.ok()) << layout.status().to_string();
    const auto make = [&](const Args& now) { return (*layout)->make_passes(now, data); };
    Loop loop((*layout)->axes(), make, args, data, *reporter, comm.rank() == 0);
    Status status = loop.prepare();
    ASSERT_TRUE(status.ok()) << status.to_string();
    Crew crew{.name = "all"};
    for (int r = 0; r < ranks; ++r) crew.ranks.push_back(r);
    crew.sample_s.assign(crew.ranks.size(), 1e-3);
    crew.own_sample_s = crew.sample_s;
    ASSERT_TRUE(loop.watched_by(Agent({.crews = {crew}, .gradient_bytes = 1 << 20}, {.settings = settings})).ok());
    auto summary = loop.run();
    ASSERT_TRUE(summary.ok()) << summary.status().to_string();
    Watched& mine = all[static_cast<size_t>(comm.rank())];
    mine.summary = *summary;
    loop.copy_parameters(mine.parameters);
    ASSERT_TRUE(reporter->close().ok());
  });
  std::ifstream lines(args.json);
  for (std::string line; std::getline(lines, line);) log->push_back(WatchedJson::parse(line));
  return all;
}

std::vector<std::string> changes(const std::vector<WatchedJson>& log) {
  std::vector<std::string> all;
  for (const auto& event : log)
    if (event["event"] == "decision") all.push_back(event["changed"]);
  return all;
}

class WatchedRun : public testing::Test {
 protected:
  void SetUp() override {
    use_one_thread();
    ASSERT_NE(mkdtemp(folder_.data()), nullptr);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string log() const { return folder_ + "/log"; }
  std::string folder_ = (std::filesystem::temp_directory_path() / "watched-XXXXXX").string();
};

TEST_F(WatchedRun, OtherMicroBatchesAreTheSameSteps) {
  const auto data = split_text(make_words(3300), 16, 150);
  ASSERT_TRUE(data.ok());
  Args args = small_transformer();
  args.epochs = 2;
  const Trained one = train_on(1, args, *data).front();
  args.json = log();
  args.elastic = true;  // as what an agent plans is
  const Settings settings{.batch = args.batch, .cut = {.pipeline = 2}, .micro_batches = 2, .shares = {1}};
  std::vector<WatchedJson> log;
  const auto all = watch(2, args, settings, *data, &log);
  ASSERT_FALSE(changes(log).empty()) << "a pipeline of two with two micro-batches idles for a third of its time";
  EXPECT_EQ(changes(log)[0], "micro-batches 2 -> 4");
  for (const Watched& rank : all) {
    EXPECT_LT(distance(rank.parameters, one.parameters), 1e-5);
    EXPECT_NEAR(rank.summary.test_loss, one.summary.test_loss, 1e-5);
    EXPECT_TRUE(rank.summary.replicas_equal);
  }
}

// Rank 1 computes 12 times as long.
Args images_on_unequal_ranks(const std::string& log) {
  Args args;
  args.model = "mlp";
  args.epochs = 3;
  args.batch = 20;
  args.lr = 0.01;
  args.momentum = 0;
  args.test_every = 200;
  args.log_every = 10;
  args.slow_rank = 1;
  args.slow_factor = 12;
  args.json = log;
  return args;
}

TEST_F(WatchedRun, ASlowRankGetsLessOfEachBatch) {
  const Dataset data{make_images(600, 1), make_images(100, 2)};
  const Args args = images_on_unequal_ranks(log());
  std::vector<WatchedJson> log;
  const auto all = watch(2, args, {.batch = args.batch, .shares = {0.5, 0.5}}, data, &log);
  ASSERT_FALSE(changes(log).empty());
  EXPECT_EQ(changes(log)[0].find("samples by rank 10/10 -> 1"), 0u) << changes(log)[0];
  size_t least = SIZE_MAX, epoch_samples = 0;
  for (const auto& event : log) {
    if (event["event"] != "times") continue;
    least = std::min(least, event["samples"][1].get<size_t>());
    epoch_samples += event["samples"][0].get<size_t>() + event["samples"][1].get<size_t>();
  }
  EXPECT_LT(least, 10u * 10 / 2) << "of ten steps";
  EXPECT_EQ(epoch_samples, 3u * 600);
  EXPECT_EQ(all[0].parameters, all[1].parameters);
}

TEST_F(WatchedRun, ALargerBoundLetsUpdatesBeLater) {
  const Dataset data{make_images(600, 1), make_images(100, 2)};
  const Args args = images_on_unequal_ranks(log());
  const Settings settings{.sync = "asgd", .batch = args.batch, .staleness = 1, .shares = {0.5, 0.5}};
  std::vector<WatchedJson> log;
  const auto all = watch(2, args, settings, data, &log);
  ASSERT_FALSE(changes(log).empty());
  EXPECT_EQ(changes(log)[0], "staleness up to 1 -> 2 steps");
  int64_t bound = 1;
  for (const auto& event : log) {
    if (event["event"] == "decision")
      bound = std::max<int64_t>(
          bound,
          std::stol(event["changed"].get<std::string>().substr(event["changed"].get<std::string>().find("-> ") + 3)));
  }
  EXPECT_LE(log.back()["staleness"].size(), static_cast<size_t>(bound) * 2 + 1);
  EXPECT_GT(all[0].summary.test_accuracy, 0.5);
  EXPECT_EQ(all[0].parameters, all[1].parameters);
}

}  // namespace
}  // namespace ringfold::train
