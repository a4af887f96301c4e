// N ranks with batch B/N take the steps that one rank takes with batch B.
#include <gtest/gtest.h>

#include <vector>

#include "tests/train/trained.h"

namespace ringfold::train {
namespace {

using namespace test;

class Ranks : public testing::TestWithParam<const char*> {};

TEST_P(Ranks, FollowOneRankWithTheWholeBatch) {
  use_one_thread();
  // 21 steps: 20 of 60 samples, which 7 ranks cannot share evenly, and one of 5, in which some of the 7 have none.
  const Dataset data{make_images(20 * 60 + 5, 1), make_images(333, 2)};
  Args args;
  args.model = GetParam();
  args.epochs = 1;
  args.batch = 60;
  args.lr = 0.02;
  args.log_every = 4;
  args.check_every = 3;
  args.bucket_kib = 64;
  // Where two pixels of a pool are all but equal, another order of sums may take the other one.
  const double near = args.model == "cnn" ? 1e-3 : 1e-5;
  const Trained one = train_on(1, args, data).front();
  for (int ranks : {2, 4, 7}) {
    for (const Trained& rank : train_on(ranks, args, data)) {
      EXPECT_LT(distance(rank.parameters, one.parameters), near) << ranks << " ranks";
      EXPECT_NEAR(rank.summary.train_loss, one.summary.train_loss, std::max(1e-5, near / 10));
      EXPECT_NEAR(rank.summary.test_loss, one.summary.test_loss, 1e-4);
      EXPECT_NEAR(rank.summary.test_accuracy, one.summary.test_accuracy, 1.5 / 333);
      EXPECT_TRUE(rank.summary.replicas_equal);
    }
  }
  Args other = args;
  other.lr = 0.021;  // the bound can tell a small difference in the update
  EXPECT_GT(distance(train_on(1, other, data).front().parameters, one.parameters), 5 * near);
}

INSTANTIATE_TEST_SUITE_P(Models, Ranks, testing::Values("mlp", "cnn"));

// Model and batches on a device of their own: here the processor, with the copies that a GPU needs.
TEST(Training, OnADeviceDoesTheSame) {
  use_one_thread();
  const Dataset data{make_images(200, 1), make_images(50, 2)};
  for (const char* sync : {"ssgd", "zero1", "local", "asgd"}) {
    Args args;
    args.model = "mlp";
    args.sync = sync;
    args.epochs = 2;
    args.batch = 32;
    args.local_steps = 3;
    const int ranks = args.sync == "asgd" ? 1 : 2;  // two would not take turns in the same order again
    const auto host = train_on(ranks, args, data);
    args.device = "cpu";
    const auto device = train_on(ranks, args, data);
    EXPECT_EQ(device[0].parameters, host[0].parameters) << sync;
    EXPECT_EQ(device[0].summary.replica_hash, host[0].summary.replica_hash) << sync;
    EXPECT_EQ(device[0].summary.test_loss, host[0].summary.test_loss) << sync;
  }
  Args thin;
  thin.model = "mlp";
  thin.epochs = 1;
  thin.power_sgd = 2;
  const auto host = train_on(2, thin, data);
  thin.device = "cpu";
  EXPECT_EQ(train_on(2, thin, data)[1].parameters, host[1].parameters);
}

TEST(Training, OnADeviceThatIsNotThereSaysWhatIsMissing) {
  const Dataset data{make_images(20, 1), make_images(20, 2)};
  Args args;
  args.model = "mlp";
  args.device = "gpu";
  expect_refused(1, args, data, "--device gpu is none of cpu, cuda and cuda:N");
  args.device = "cpu";
  args.pipeline = 2;
  expect_refused(2, args, data, "not with --pipeline");
  args.pipeline = 1;
  args.device = "cuda:99";
  on_ranks(1, [&](Communicator& comm) {
    auto reporter = Reporter::make(args, 1);
    const auto summary = train(comm, args, data, *reporter);
    ASSERT_FALSE(summary.ok());
    const std::string& why = summary.status().message();
    EXPECT_NE(why.find("--device cuda:99"), std::string::npos) << why;
    EXPECT_TRUE(why.find("libtorch without CUDA") != std::string::npos || why.find("no GPU") != std::string::npos ||
                why.find("GPUs") != std::string::npos)
        << why;
  });
}

TEST(Training, WithTheSameSeedGivesTheSameBitsAndWithAnotherOthers) {
  use_one_thread();
  const Dataset data{make_images(200, 1), make_images(50, 2)};
  Args args;
  args.model = "mlp";
  args.epochs = 2;
  args.batch = 32;
  const auto first = train_on(2, args, data), second = train_on(2, args, data);
  EXPECT_EQ(first[0].parameters, first[1].parameters);
  EXPECT_EQ(first[0].parameters, second[0].parameters);
  EXPECT_EQ(first[0].summary.replica_hash, second[1].summary.replica_hash);
  args.seed = 2;
  EXPECT_NE(train_on(2, args, data)[0].summary.replica_hash, first[0].summary.replica_hash);
}

TEST(Training, LearnsAndStopsAtTheTarget) {
  use_one_thread();
  const Dataset data{make_images(1000, 1), make_images(200, 2)};
  for (const char* optimizer : {"sgd", "adam"}) {
    Args args;
    args.model = "mlp";
    args.optimizer = optimizer;
    args.lr = args.optimizer == "sgd" ? 0.02 : 0.001;
    args.schedule = "constant";
    args.epochs = 40;
    args.batch = 50;
    args.target_accuracy = 0.95;
    const auto all = train_on(2, args, data);
    EXPECT_GE(all[0].summary.test_accuracy, 0.95) << optimizer;
    EXPECT_LT(all[0].summary.epochs, 40) << optimizer;
    EXPECT_EQ(all[0].summary.epochs, all[1].summary.epochs) << optimizer;
  }
}

TEST(Training, LearnsFromCodesOnEqualReplicas) {
  use_one_thread();
  const Dataset data{make_images(1000, 1), make_images(200, 2)};
  for (const char* codec : {"int8", "int4+stochastic", "ternary"}) {
    Args args;
    args.model = "cnn";
    args.lr = 0.02;
    args.schedule = "constant";
    args.epochs = 40;
    args.batch = 50;
    args.check_every = 10;
    args.codec = codec;
    args.target_accuracy = 0.95;
    const auto all = train_on(3, args, data);
    EXPECT_GE(all[0].summary.test_accuracy, 0.95) << codec;
    for (const Trained& rank : all) EXPECT_EQ(rank.parameters, all[0].parameters) << codec;
  }
}

// Errors belong to ranks, so N ranks do not take one rank's steps; but each number of ranks learns, on equal
// replicas.
TEST(Training, LearnsFromProductsOfThinMatrices) {
  use_one_thread();
  const Dataset data{make_images(1000, 1), make_images(200, 2)};
  for (const char* model : {"mlp", "cnn"}) {
    for (int ranks : {1, 3}) {
      Args args;
      args.model = model;
      args.lr = 0.02;
      args.schedule = "constant";
      args.epochs = 40;
      args.batch = 50;
      args.check_every = 10;
      args.power_sgd = 1;
      args.target_accuracy = 0.95;
      const auto all = train_on(ranks, args, data);
      EXPECT_GE(all[0].summary.test_accuracy, 0.95) << model << ", " << ranks << " ranks";
      EXPECT_LT(all[0].summary.bytes_per_step, 40000) << model;
      for (const Trained& rank : all) EXPECT_EQ(rank.parameters, all[0].parameters);
    }
  }
}

}  // namespace
}  // namespace ringfold::train
