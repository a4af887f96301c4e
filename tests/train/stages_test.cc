// Chains of libtorch layers cut into stages: gradients and loss curves of every schedule are those of the whole
// chain.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/nn/functional.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/transformerlayer.h>
#include <torch/utils.h>

#include <thread>

#include "ringfold/ringfold.hpp"
#include "train/stages.h"

namespace ringfold::train {
namespace {

using pipeline::Runner;
using pipeline::Schedule;

constexpr int64_t kLength = 6, kWidth = 16, kTokens = 11;

// A small transformer over tokens: embedding, blocks, logits. Weights follow from the seed.
Chain transformer(int blocks, uint64_t seed) {
  torch::manual_seed(seed);
  Chain chain;
  auto add = [&](auto module, auto forward) { chain.push_back({forward, module->parameters()}); };
  torch::nn::Embedding embedding(kTokens, kWidth);
  add(embedding, [embedding](const torch::Tensor& x) mutable { return embedding(x); });
  for (int b = 0; b < blocks; ++b) {
    torch::nn::TransformerEncoderLayer block(
        torch::nn::TransformerEncoderLayerOptions(kWidth, 2).dim_feedforward(32).dropout(0));
    const auto mask = torch::triu(torch::full({kLength, kLength}, -INFINITY), 1);  // no look ahead
    add(block,
        [block, mask](const torch::Tensor& x) mutable { return block(x.transpose(0, 1), mask).transpose(0, 1); });
  }
  torch::nn::Linear out(kWidth, kTokens);
  add(out, [out](const torch::Tensor& x) mutable { return out(x); });
  return chain;
}

// Micro-batches of different sizes, by step.
int64_t samples_of(int micro_batch) { return 1 + micro_batch % 3; }
torch::Tensor tokens_of(int step, int micro_batch) {
  std::vector<int64_t> tokens;
  for (int64_t k = 0; k < samples_of(micro_batch) * (kLength + 1); ++k)
    tokens.push_back((k * (3 + micro_batch) + k / 5 + step) % kTokens);
  return torch::tensor(tokens).view({samples_of(micro_batch), kLength + 1});
}
torch::Tensor inputs_of(int step, int micro_batch) { return tokens_of(step, micro_batch).narrow(1, 0, kLength); }
torch::Tensor loss_of(const torch::Tensor& logits, int step, int micro_batch) {
  const auto targets = tokens_of(step, micro_batch).narrow(1, 1, kLength);
  return torch::nn::functional::cross_entropy(
      logits.reshape({-1, kTokens}), targets.reshape(-1),
      torch::nn::functional::CrossEntropyFuncOptions().reduction(torch::kSum));
}

void descend(const std::vector<torch::Tensor>& parameters) {
  torch::NoGradGuard no_grad;
  for (torch::Tensor p : parameters) {
    if (!p.grad().defined()) continue;
    p.sub_(p.grad(), 0.005);
    p.mutable_grad() = torch::Tensor();
  }
}

// The whole chain on one rank, by backward(): the losses of the steps.
std::vector<double> losses_of_one(const Chain& chain, int steps, int micro_batches) {
  std::vector<torch::Tensor> parameters;
  for (const auto& layer : chain)
    parameters.insert(parameters.end(), layer.parameters.begin(), layer.parameters.end());
  std::vector<double> losses;
  for (int step = 0; step < steps; ++step) {
    double sum = 0;
    for (int i = 0; i < micro_batches; ++i) {
      torch::Tensor x = inputs_of(step, i);
      for (const auto& layer : chain) x = layer.forward(x);
      torch::Tensor loss = loss_of(x, step, i);
      sum += loss.item<double>();
      loss.backward();
    }
    losses.push_back(sum);
    descend(parameters);
  }
  return losses;
}

class OnStages : public testing::TestWithParam<std::string> {};

TEST_P(OnStages, ATransformerHasTheLossCurveAndWeightsOfTheUncutOne) {
  at::set_num_threads(1);
  constexpr int kSteps = 12, kBlocks = 6;
  for (const int p : {1, 2, 4}) {
    const int m = 2 * p;
    const Schedule schedule = *pipeline::make(GetParam(), {p, m});
    const Chain whole = transformer(kBlocks, 7);
    const auto cuts = balanced_cuts(std::vector<double>(whole.size(), 1), schedule.stages());
    ASSERT_TRUE(cuts.ok());
    std::vector<Chain> chains;
    for (int r = 0; r < p; ++r) chains.push_back(transformer(kBlocks, 7));
    const std::vector<double> expected = losses_of_one(whole, kSteps, m);
    EXPECT_LT(expected.back(), 0.9 * expected.front()) << "nothing is learnt";
    auto ranks = Communicator::init_local(p);
    ASSERT_TRUE(ranks.ok());
    std::vector<std::thread> threads;
    for (int r = 0; r < p; ++r) {
      threads.emplace_back([&, r] {
        int step = 0;
        std::map<int, int> completed;  // by stage
        auto stages = ChainStages::make(chains[static_cast<size_t>(r)], *cuts, schedule, r,
                                        tokens_of(0, 0).narrow(1, 0, kLength),
                                        {.input = [&](int i) { return inputs_of(step, i); },
                                         .loss = [&](const torch::Tensor& y, int i) { return loss_of(y, step, i); },
                                         .samples = samples_of,
                                         .complete = [&](int stage) { ++completed[stage]; }});
        ASSERT_TRUE(stages.ok()) << stages.status().to_string();
        auto runner = Runner::make((*ranks)[static_cast<size_t>(r)], schedule, **stages);
        ASSERT_TRUE(runner.ok()) << runner.status().to_string();
        for (; step < kSteps; ++step) {
          const Status status = (*runner)->step();
          ASSERT_TRUE(status.ok()) << status.to_string();
          const double loss = (*stages)->take_loss();
          if (schedule.rank_of.back() == r) {
            EXPECT_NEAR(loss, expected[static_cast<size_t>(step)], 1e-6 * expected[0]) << "step " << step;
          } else {
            EXPECT_EQ(loss, 0);
          }
          for (const int stage : schedule.stages_of(r)) EXPECT_EQ(completed[stage], step + 1) << "stage " << stage;
          descend((*stages)->parameters());
        }
        const Status flushed = (*runner)->flush();
        ASSERT_TRUE(flushed.ok()) << flushed.to_string();
      });
    }
    for (auto& t : threads) t.join();
    // Each layer as its rank has trained it.
    for (int s = 0; s < schedule.stages(); ++s) {
      const size_t end = s + 1 < schedule.stages() ? (*cuts)[static_cast<size_t>(s) + 1] : whole.size();
      const Chain& trained = chains[static_cast<size_t>(schedule.rank_of[static_cast<size_t>(s)])];
      for (size_t i = (*cuts)[static_cast<size_t>(s)]; i < end; ++i) {
        for (size_t k = 0; k < whole[i].parameters.size(); ++k) {
          EXPECT_TRUE(torch::allclose(trained[i].parameters[k], whole[i].parameters[k], 1e-5, 1e-6))
              << schedule.name << " p=" << p << " layer " << i << " parameter " << k;
        }
      }
    }
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Of, OnStages, testing::Values("gpipe", "1f1b", "interleaved-1f1b", "zb-h1", "zb-h2", "zb-v"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

TEST(Stages, AnExceptionOfLibtorchIsAVerdictWithStageAndMicroBatch) {
  const Schedule schedule = *pipeline::make("1f1b", {2, 4});
  std::vector<Chain> chains;
  for (int r = 0; r < 2; ++r) {
    chains.push_back(transformer(1, 3));
    auto good = chains.back().back().forward;
    chains.back().back().forward = [good, calls = 0](const torch::Tensor& x) mutable {
      if (++calls == 4) throw std::runtime_error("out of something");  // the first is of make()
      return good(x);
    };
  }
  auto ranks = Communicator::init_local(2);
  ASSERT_TRUE(ranks.ok());
  std::vector<std::thread> threads;
  for (int r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      auto stages = ChainStages::make(chains[static_cast<size_t>(r)], {0, 1}, schedule, r, inputs_of(0, 0),
                                      {.input = [](int i) { return inputs_of(0, i); },
                                       .loss = [](const torch::Tensor& y, int i) { return loss_of(y, 0, i); },
                                       .samples = samples_of});
      ASSERT_TRUE(stages.ok()) << stages.status().to_string();
      auto runner = Runner::make((*ranks)[static_cast<size_t>(r)], schedule, **stages);
      ASSERT_TRUE(runner.ok());
      const Status status = (*runner)->step();
      ASSERT_NE(status.verdict(), nullptr) << status.to_string();
      EXPECT_EQ(status.verdict()->rank, 1);
      EXPECT_NE(status.message().find("forward of micro-batch 2 on stage 1: out of something"), std::string::npos)
          << status.to_string();
    });
  }
  for (auto& t : threads) t.join();
}

TEST(Stages, RefusesCutsAndChainsThatDoNotFit) {
  const Chain chain = transformer(2, 3);
  const Schedule schedule = *pipeline::make("1f1b", {2, 4});
  auto refused = [&](const Chain& c, const std::vector<size_t>& cuts, const torch::Tensor& example,
                     const std::string& text) {
    auto made = ChainStages::make(c, cuts, schedule, 0, example, {.samples = samples_of});
    ASSERT_FALSE(made.ok()) << text;
    EXPECT_EQ(made.status().code(), Code::kInvalid);
    EXPECT_NE(made.status().message().find(text), std::string::npos) << made.status().message();
  };
  refused(chain, {0}, inputs_of(0, 0), "do not make 2 stages of 4 layers");
  refused(chain, {1, 2}, inputs_of(0, 0), "do not make 2 stages");
  refused(chain, {0, 4}, inputs_of(0, 0), "do not make 2 stages");
  refused(chain, {0, 0}, inputs_of(0, 0), "do not make 2 stages");
  refused(chain, {0, 2}, torch::ones({1, 3}), "does not take the example");
  Chain odd = chain;
  odd[1].forward = [](const torch::Tensor& x) { return x.to(torch::kInt64); };
  refused(odd, {0, 2}, inputs_of(0, 0), "it must be f32 or f64");
  odd[1].forward = [](const torch::Tensor& x) { return x.sum(); };
  refused(odd, {0, 2}, inputs_of(0, 0), "does not keep the samples");
}

TEST(Balance, NoOtherCutsAreBetter) {
  uint64_t state = 1;
  for (int round = 0; round < 300; ++round) {
    auto draw = [&state](uint64_t below) {
      state = state * 6364136223846793005 + 1442695040888963407;
      return (state >> 33) % below;
    };
    std::vector<double> costs(1 + draw(9));
    for (double& c : costs) c = static_cast<double>(draw(10));
    const int stages = 1 + static_cast<int>(draw(costs.size()));
    const auto cuts = balanced_cuts(costs, stages);
    ASSERT_TRUE(cuts.ok());
    ASSERT_EQ(cuts->size(), static_cast<size_t>(stages));
    auto worst_of = [&](const std::vector<size_t>& at) {
      double worst = 0;
      for (size_t k = 0; k < at.size(); ++k) {
        double sum = 0;
        for (size_t i = at[k]; i < (k + 1 < at.size() ? at[k + 1] : costs.size()); ++i) sum += costs[i];
        worst = std::max(worst, sum);
      }
      return worst;
    };
    EXPECT_EQ(cuts->front(), 0u);
    for (size_t k = 1; k < cuts->size(); ++k) EXPECT_GT((*cuts)[k], (*cuts)[k - 1]);
    double best = INFINITY;  // over all ways to cut
    for (uint32_t mask = 0; mask < 1u << (costs.size() - 1); ++mask) {
      if (__builtin_popcount(mask) != stages - 1) continue;
      std::vector<size_t> at = {0};
      for (size_t i = 1; i < costs.size(); ++i) {
        if (mask >> (i - 1) & 1) at.push_back(i);
      }
      best = std::min(best, worst_of(at));
    }
    EXPECT_EQ(worst_of(*cuts), best);
  }
  EXPECT_FALSE(balanced_cuts(std::vector<double>{1, 2}, 3).ok());
  EXPECT_FALSE(balanced_cuts(std::vector<double>{1, 2}, 0).ok());
  EXPECT_FALSE(balanced_cuts(std::vector<double>{1, -2}, 1).ok());
  EXPECT_FALSE(balanced_cuts(std::vector<double>{1, NAN}, 1).ok());
}

TEST(Balance, EveryLayerHasACost) {
  const Chain chain = transformer(3, 1);
  const auto costs = measured_costs(chain, inputs_of(0, 2), false, 3);
  ASSERT_EQ(costs.size(), chain.size());
  for (const double c : costs) EXPECT_GT(c, 0);
}

}  // namespace
}  // namespace ringfold::train
