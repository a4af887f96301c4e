// Ranks that share layers, and replicas of these, take the steps that one rank takes.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/train/trained.h"

namespace ringfold::train {
namespace {

using namespace test;

TEST(TensorParallel, RanksThatShareLayersFollowOneRank) {
  use_one_thread();
  const auto data = split_text(make_words(3300), 16, 150);  // 19 steps, the last of 6 samples
  ASSERT_TRUE(data.ok()) << data.status().to_string();
  Args args = small_transformer();
  const Trained one = train_on(1, args, *data).front();
  EXPECT_LT(one.summary.test_loss, std::log(256.0) - 0.5) << "it learns, so there is something to compare";
  for (const auto& [ranks, tensor] : {std::pair{2, 2}, {4, 4}, {4, 2}, {6, 2}}) {
    args.tensor_parallel = tensor;
    for (const Trained& rank : train_on(ranks, args, *data)) {
      EXPECT_LT(distance(rank.parameters, one.parameters), 1e-5) << ranks << " ranks, " << tensor << " share a layer";
      EXPECT_NEAR(rank.summary.train_loss, one.summary.train_loss, 1e-5);
      EXPECT_NEAR(rank.summary.test_loss, one.summary.test_loss, 1e-5);
      EXPECT_TRUE(rank.summary.replicas_equal);
      EXPECT_EQ(rank.summary.ranks, ranks);
    }
  }
  args.tensor_parallel = 1;
  args.lr = 0.051;  // the bound can tell a small difference in the update
  EXPECT_GT(distance(train_on(1, args, *data).front().parameters, one.parameters), 1e-4);
}

TEST(TensorParallel, ReplicasMayBeKeptTogetherInOtherWays) {
  use_one_thread();
  const auto data = split_text(make_words(2400), 16, 100);
  ASSERT_TRUE(data.ok());
  Args args = small_transformer();
  args.tensor_parallel = 2;
  expect_replicas_in_other_ways(args, *data);
}

TEST(TensorParallel, WithTheSameSeedGivesTheSameBitsAndWithAnotherOthers) {
  use_one_thread();
  const auto data = split_text(make_words(1200), 16, 40);
  ASSERT_TRUE(data.ok()) << data.status().to_string();
  Args args = small_transformer();
  args.optimizer = "adamw";
  args.lr = 0.002;
  args.tensor_parallel = 2;
  const auto first = train_on(4, args, *data), second = train_on(4, args, *data);
  for (size_t r = 0; r < 4; ++r) EXPECT_EQ(first[r].parameters, second[r].parameters) << r;
  EXPECT_EQ(first[0].parameters, first[3].parameters);
  args.seed = 2;
  EXPECT_NE(train_on(4, args, *data)[0].parameters, first[0].parameters);
}

TEST(TensorParallel, WhatCannotBeSharedIsRefusedOnAllRanks) {
  use_one_thread();
  const auto data = split_text(make_words(1200), 16, 40);
  ASSERT_TRUE(data.ok());
  Args args = small_transformer();
  args.tensor_parallel = 2;
  expect_refused(3, args, *data, "3 ranks");
  args.heads = 1;
  expect_refused(2, args, *data, "--heads 1");
  args.heads = 3;
  args.tensor_parallel = 1;
  expect_refused(1, args, *data, "--width 32");
  args.model = "mlp";
  args.tensor_parallel = 2;
  expect_refused(2, args, *data, "mlp");
  args = small_transformer();
  args.tensor_parallel = 2;
  args.sync = "asgd";
  expect_refused(2, args, *data, "--sync asgd");
}

}  // namespace
}  // namespace ringfold::train
