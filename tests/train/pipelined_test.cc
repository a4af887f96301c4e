// Ranks that have some of the layers each, replicas of these, and parts of layers on each of them, take the steps
// that one rank takes.
#include <gtest/gtest.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "ringfold/pipeline.h"
#include "tests/train/trained.h"

namespace ringfold::train {
namespace {

using namespace test;

// 8 layers: enough for two stages on each of four ranks.
Args deep_transformer() {
  Args args = small_transformer();
  args.layers = 6;
  return args;
}

void expect_same(const std::vector<Trained>& all, const Trained& one, const std::string& what) {
  for (const Trained& rank : all) {
    EXPECT_LT(distance(rank.parameters, one.parameters), 1e-5) << what;
    EXPECT_NEAR(rank.summary.train_loss, one.summary.train_loss, 1e-5) << what;
    EXPECT_NEAR(rank.summary.test_loss, one.summary.test_loss, 1e-5) << what;
    EXPECT_EQ(rank.summary.test_accuracy, one.summary.test_accuracy) << what;
    EXPECT_TRUE(rank.summary.replicas_equal) << what;
    EXPECT_EQ(rank.summary.ranks, static_cast<int>(all.size())) << what;
    EXPECT_EQ(rank.summary.epochs, one.summary.epochs) << what;
  }
}

class Pipelined : public testing::Test {
 protected:
  void SetUp() override {
    use_one_thread();
    auto data = split_text(make_words(3300), 16, 150);  // 19 steps, the last of 6 samples: fewer than micro-batches
    ASSERT_TRUE(data.ok()) << data.status().to_string();
    data_.emplace(std::move(*data));
  }
  std::optional<Dataset> data_;
};

TEST_F(Pipelined, EveryScheduleTakesTheStepsOfOneRank) {
  Args args = deep_transformer();
  const Trained one = train_on(1, args, *data_).front();
  EXPECT_LT(one.summary.test_loss, std::log(256.0) - 0.5) << "it learns, so there is something to compare";
  for (const auto& recipe : pipeline::recipes()) {
    for (const int ranks : {2, 4}) {
      args.pipeline = ranks;
      args.pipeline_schedule = recipe.name;
      expect_same(train_on(ranks, args, *data_), one, args.pipeline_schedule + " on " + std::to_string(ranks));
      if (HasFailure()) return;
    }
  }
  args.pipeline = 1;
  args.lr = 0.051;  // the bounds can tell a small difference in the update
  const Trained other = train_on(1, args, *data_).front();
  EXPECT_GT(distance(other.parameters, one.parameters), 1e-4);
  EXPECT_GT(std::abs(other.summary.test_loss - one.summary.test_loss), 1e-4);
}

TEST_F(Pipelined, ReplicasAndPartsOfLayersTakeTheStepsOfOneRank) {
  Args args = deep_transformer();
  const Trained one = train_on(1, args, *data_).front();
  struct Cut {
    int data, pipeline, tensor;
    const char* schedule;
  };
  for (const Cut& cut :
       {Cut{2, 2, 2, "1f1b"}, {2, 2, 2, "zb-v"}, {1, 2, 2, "zb-h1"}, {3, 2, 1, "interleaved-1f1b"}}) {
    args.pipeline = cut.pipeline;
    args.tensor_parallel = cut.tensor;
    args.pipeline_schedule = cut.schedule;
    args.micro_batches = cut.data == 3 ? 2 : 0;
    args.pipeline_balance = cut.data == 1 ? "time" : "parameters";
    expect_same(train_on(cut.data * cut.pipeline * cut.tensor, args, *data_), one,
                std::to_string(cut.data) + " replicas, " + cut.schedule);
    if (HasFailure()) return;
  }
}

TEST_F(Pipelined, ReplicasMayBeKeptTogetherInOtherWays) {
  Args args = small_transformer();
  args.pipeline = 2;
  expect_replicas_in_other_ways(args, *data_);
}

TEST_F(Pipelined, GradientsMayTravelAsCodes) {
  Args args = small_transformer();
  args.epochs = 3;
  args.pipeline = 2;
  args.codec = "int8";
  const auto all = train_on(4, args, *data_);
  EXPECT_LT(all[0].summary.test_loss, std::log(256.0) - 1);
  for (const Trained& rank : all) EXPECT_EQ(rank.parameters, all[0].parameters);
}

TEST_F(Pipelined, LayersMayBeBalancedInEveryWay) {
  Args args = deep_transformer();
  const Trained one = train_on(1, args, *data_).front();
  args.pipeline = 2;
  for (const char* balance : {"parameters", "time", "layers", "1,7", "6,2"}) {
    args.pipeline_balance = balance;
    expect_same(train_on(2, args, *data_), one, balance);
  }
}

TEST_F(Pipelined, ClassifiersOfImagesAreChainsToo) {
  const Dataset images{make_images(20 * 60 + 5, 1), make_images(1333, 2)};  // tests of 3 batches
  for (const char* model : {"mlp", "cnn"}) {
    Args args;
    args.model = model;
    args.epochs = 1;
    args.batch = 60;
    args.lr = 0.02;
    const Trained one = train_on(1, args, images).front();
    args.pipeline = 3;
    args.micro_batches = 5;
    for (const Trained& rank : train_on(3, args, images)) {
      // Of a convolution, rounding decides which of two equal values is the larger, and so where a gradient goes.
      EXPECT_LT(distance(rank.parameters, one.parameters), args.model == "mlp" ? 1e-5 : 1e-3) << model;
      EXPECT_NEAR(rank.summary.test_loss, one.summary.test_loss, 1e-4) << model;
      EXPECT_NEAR(rank.summary.test_accuracy, one.summary.test_accuracy, 1.5 / 1333) << model;
    }
  }
}

TEST_F(Pipelined, WithTheSameSeedGivesTheSameBitsAndWithAnotherOthers) {
  Args args = small_transformer();
  args.optimizer = "adamw";
  args.lr = 0.002;
  args.pipeline = 2;
  const auto first = train_on(4, args, *data_), second = train_on(4, args, *data_);
  for (size_t r = 0; r < 4; ++r) EXPECT_EQ(first[r].parameters, second[r].parameters) << r;
  EXPECT_EQ(first[0].parameters, first[3].parameters);
  args.seed = 2;
  EXPECT_NE(train_on(4, args, *data_)[0].parameters, first[0].parameters);
}

// From a checkpoint in the middle of the second epoch: on the same ranks with the same bits, on others with the same
// steps.
class PipelinedCheckpoints : public Pipelined {
 protected:
  void SetUp() override {
    Pipelined::SetUp();
    folder_ = std::filesystem::temp_directory_path() / "ringfold-pipelined-XXXXXX";
    ASSERT_NE(mkdtemp(folder_.data()), nullptr);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // What 4 ranks come to, and come to again from a checkpoint in the middle; leaves `args` such that they resume.
  std::vector<Trained> expect_resumed(Args& args) {
    args.epochs = 2;
    args.checkpoint_every = 25;  // of 38 steps, and at the end of the first epoch none is due
    auto whole = train_on(4, args, *data_);
    EXPECT_TRUE(std::filesystem::exists(args.checkpoint + "/step-00000025/manifest.json"));
    args.checkpoint_every = 1000;
    args.resume = true;
    const auto again = train_on(4, args, *data_);
    EXPECT_EQ(again[0].parameters, whole[0].parameters);
    EXPECT_NEAR(again[0].summary.train_loss, whole[0].summary.train_loss, 1e-12) << "the epoch's first steps count";
    return whole;
  }

  std::string folder_;
};

TEST_F(PipelinedCheckpoints, ARunGoesOnFromACheckpointOnOtherRanks) {
  for (const char* sync : {"ssgd", "zero1", "diloco"}) {
    Args args = deep_transformer();
    args.sync = sync;
    args.local_steps = 4;
    if (args.sync == "diloco") args.check_every = 0;
    args.optimizer = "adamw";
    args.lr = 0.002;
    args.pipeline = 2;
    args.pipeline_schedule = "interleaved-1f1b";
    args.checkpoint = folder_ + "/" + sync;
    const auto whole = expect_resumed(args);
    args.pipeline_schedule = "zb-h1";
    // Replicas that step alone have a state each, so there must be two of them again.
    using Ranks = std::vector<std::pair<int, int>>;
    for (const auto& [ranks, pipeline] :
         args.sync == "diloco" ? Ranks{{8, 4}, {2, 1}} : Ranks{{4, 4}, {1, 1}, {6, 2}}) {
      args.pipeline = pipeline;
      args.micro_batches = ranks == 6 ? 2 : 0;
      const auto other = train_on(ranks, args, *data_);
      EXPECT_LT(distance(other[0].parameters, whole[0].parameters), 2e-4) << sync << " on " << ranks;
      EXPECT_NEAR(other.back().summary.train_loss, whole[0].summary.train_loss, 1e-5) << sync << " on " << ranks;
      EXPECT_NEAR(other.back().summary.test_loss, whole[0].summary.test_loss, 1e-4) << sync << " on " << ranks;
    }
  }
}

TEST_F(PipelinedCheckpoints, WhatCodesHaveMissedIsInACheckpoint) {
  Args args = small_transformer();
  args.codec = "int4";
  args.pipeline = 2;
  args.checkpoint = folder_;
  const auto whole = expect_resumed(args);
  args.pipeline_balance = "1,3";  // other layers on a rank: it begins without
  EXPECT_NEAR(train_on(4, args, *data_)[0].summary.test_loss, whole[0].summary.test_loss, 0.05);
}

TEST_F(PipelinedCheckpoints, SoDoRanksThatSharePartsOfLayers) {
  Args args = small_transformer();
  args.tensor_parallel = 2;
  args.checkpoint = folder_;
  const auto whole = expect_resumed(args);
  args.pipeline = 2;
  for (const Trained& rank : train_on(4, args, *data_)) {
    EXPECT_LT(distance(rank.parameters, whole[0].parameters), 1e-5);
    EXPECT_NEAR(rank.summary.train_loss, whole[0].summary.train_loss, 1e-5);
  }
  args.pipeline = 1;
  args.tensor_parallel = 1;
  expect_refused(2, args, *data_, "--tensor-parallel 2");
}

TEST_F(Pipelined, WhatDoesNotFitIsRefusedOnAllRanks) {
  Args args = small_transformer();
  args.pipeline = 2;
  expect_refused(3, args, *data_, "3 ranks cannot be cut into 2 stages");
  args.pipeline_schedule = "zb-v";
  args.pipeline = 4;
  expect_refused(4, args, *data_, "makes 8 stages, and the model has 4 layers");
  args.pipeline_schedule = "1f1b";
  args.pipeline_chunks = 2;
  expect_refused(4, args, *data_, "1f1b");
  args.pipeline_chunks = 0;
  args.pipeline = 2;
  args.micro_batches = 9;
  expect_refused(2, args, *data_, "--micro-batches 9");
  args.micro_batches = 5;
  expect_refused(4, args, *data_, "each of 2 replicas has 4");
  args.micro_batches = 3;
  args.pipeline_schedule = "interleaved-1f1b";
  expect_refused(2, args, *data_, "interleaved-1f1b");
  args = small_transformer();
  args.pipeline = 2;
  args.pipeline_balance = "1,2";
  expect_refused(2, args, *data_, "--pipeline-balance 1,2");
  args.pipeline_balance = "1,2,1";
  expect_refused(2, args, *data_, "--pipeline-balance 1,2,1");
  args = small_transformer();
  args.pipeline = 2;
  args.sync = "asgd";
  expect_refused(2, args, *data_, "--sync asgd");
  args.sync = "ssgd";
  args.pipeline_schedule = "2f2b";
  expect_refused(2, args, *data_, "2f2b");
}

}  // namespace
}  // namespace ringfold::train
