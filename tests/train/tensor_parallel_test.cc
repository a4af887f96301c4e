// Ranks that share layers, and replicas of these, take the steps that one rank takes.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "tests/train/ranks.h"
#include "train/trainer.h"

namespace ringfold::train {
namespace {

// Words of a small vocabulary: something to learn within a few steps.
std::string make_words(size_t bytes) {
  constexpr const char* kWords[] = {"ring ", "fold ", "rank ", "reduce ", "gather ", "\n"};
  std::mt19937 random(7);
  std::string text;
  while (text.size() < bytes) text += kWords[random() % std::size(kWords)];
  return text;
}

struct Outcome {
  Summary summary;
  std::vector<float> parameters;
};

std::vector<Outcome> outcomes(int ranks, const Args& args, const Dataset& data) {
  std::vector<Outcome> all(static_cast<size_t>(ranks));
  test::on_ranks(ranks, [&](Communicator& comm) {
    auto reporter = Reporter::make(args, 1);  // a silent one
    ASSERT_TRUE(reporter.ok());
    Outcome& mine = all[static_cast<size_t>(comm.rank())];
    auto summary = train(comm, args, data, *reporter, &mine.parameters);
    ASSERT_TRUE(summary.ok()) << summary.status().to_string();
    mine.summary = *summary;
  });
  return all;
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return largest;
}

Args small_transformer() {
  Args args;
  args.model = "transformer";
  args.layers = 2;
  args.width = 32;
  args.heads = 4;
  args.context = 16;
  args.epochs = 1;
  args.batch = 8;
  args.lr = 0.05;
  args.weight_decay = 0;
  args.check_every = 3;
  args.log_every = 4;
  return args;
}

TEST(TensorParallel, RanksThatShareLayersFollowOneRank) {
  use_one_thread();
  const auto data = split_text(make_words(3300), 16, 150);  // 19 steps, the last of 6 samples
  ASSERT_TRUE(data.ok()) << data.status().to_string();
  Args args = small_transformer();
  const Outcome one = outcomes(1, args, *data).front();
  EXPECT_LT(one.summary.test_loss, std::log(256.0) - 0.5) << "it learns, so there is something to compare";
  for (const auto& [ranks, tensor] : {std::pair{2, 2}, {4, 4}, {4, 2}, {6, 2}}) {
    args.tensor_parallel = tensor;
    for (const Outcome& rank : outcomes(ranks, args, *data)) {
      EXPECT_LT(distance(rank.parameters, one.parameters), 1e-5) << ranks << " ranks, " << tensor << " share a layer";
      EXPECT_NEAR(rank.summary.train_loss, one.summary.train_loss, 1e-5);
      EXPECT_NEAR(rank.summary.test_loss, one.summary.test_loss, 1e-5);
      EXPECT_TRUE(rank.summary.replicas_equal);
      EXPECT_EQ(rank.summary.ranks, ranks);
    }
  }
  args.tensor_parallel = 1;
  args.lr = 0.051;  // the bound can tell a small difference in the update
  EXPECT_GT(distance(outcomes(1, args, *data).front().parameters, one.parameters), 1e-4);
}

// Every way of keeping replicas together that lets the ranks of a replica step together.
TEST(TensorParallel, ReplicasMayBeKeptTogetherInOtherWays) {
  use_one_thread();
  const auto data = split_text(make_words(2400), 16, 100);
  ASSERT_TRUE(data.ok());
  for (const char* sync : {"zero1", "local", "diloco"}) {
    Args args = small_transformer();
    args.sync = sync;
    args.local_steps = 3;
    if (args.sync != "zero1") args.check_every = 0;
    const auto whole = outcomes(2, args, *data);
    args.tensor_parallel = 2;
    for (const Outcome& rank : outcomes(4, args, *data)) {
      EXPECT_LT(distance(rank.parameters, whole[0].parameters), 1e-5) << sync;
      EXPECT_NEAR(rank.summary.test_loss, whole[0].summary.test_loss, 1e-5) << sync;
    }
  }
}

TEST(TensorParallel, WithTheSameSeedGivesTheSameBitsAndWithAnotherOthers) {
  use_one_thread();
  const auto data = split_text(make_words(1200), 16, 40);
  ASSERT_TRUE(data.ok()) << data.status().to_string();
  Args args = small_transformer();
  args.optimizer = "adamw";
  args.lr = 0.002;
  args.tensor_parallel = 2;
  const auto first = outcomes(4, args, *data), second = outcomes(4, args, *data);
  for (size_t r = 0; r < 4; ++r) EXPECT_EQ(first[r].parameters, second[r].parameters) << r;
  EXPECT_EQ(first[0].parameters, first[3].parameters);
  args.seed = 2;
  EXPECT_NE(outcomes(4, args, *data)[0].parameters, first[0].parameters);
}

TEST(TensorParallel, WhatCannotBeSharedIsRefusedOnAllRanks) {
  use_one_thread();
  const auto data = split_text(make_words(1200), 16, 40);
  ASSERT_TRUE(data.ok());
  const auto refused = [&](int ranks, const Args& args, const std::string& word) {
    test::on_ranks(ranks, [&](Communicator& comm) {
      auto reporter = Reporter::make(args, 1);
      const auto summary = train(comm, args, *data, *reporter);
      ASSERT_FALSE(summary.ok());
      EXPECT_EQ(summary.status().code(), Code::kInvalid);
      EXPECT_NE(summary.status().message().find(word), std::string::npos) << summary.status().message();
    });
  };
  Args args = small_transformer();
  args.tensor_parallel = 2;
  refused(3, args, "3 ranks");
  args.heads = 1;
  refused(2, args, "--heads 1");
  args.heads = 3;
  args.tensor_parallel = 1;
  refused(1, args, "--width 32");
  args.model = "mlp";
  args.tensor_parallel = 2;
  refused(2, args, "mlp");
  args = small_transformer();
  args.tensor_parallel = 2;
  args.sync = "asgd";
  refused(2, args, "--sync asgd");
  args.sync = "ssgd";
  args.checkpoint = "/nowhere";
  refused(2, args, "--checkpoint");
}

}  // namespace
}  // namespace ringfold::train
