// Asynchronous SGD: what the ranks' model becomes is exactly what one thread computes from the order of updates.
#include "sync/asgd.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <deque>
#include <numeric>
#include <random>

#include "sync/lockstep.h"
#include "tests/support/expect_log.h"
#include "tests/sync/problem.h"

namespace ringfold::sync {
namespace {

OptimizerOptions momentum_sgd() { return {.momentum = 0.8, .nesterov = true, .weight_decay = 1e-3}; }

ServerOptions server_options(uint64_t bound, int replicas = 0) {
  ServerOptions options{.optimizer = momentum_sgd(), .replicas = replicas, .timeout_s = 30};
  options.order.bound = bound;
  return options;
}

MakeStrategy asgd(const ServerOptions& options) {
  return [options](Communicator& comm) { return Asgd::make(comm, kProblemCounts, options); };
}

std::function<void()> random_pause() {
  return [] {
    static std::atomic<uint64_t> threads = 1;
    thread_local std::mt19937_64 random(threads++);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 1500));
  };
}

// The oracle: one thread, which follows the order of tickets. No shards, no messages, no code of the server's.
struct Sequential {
  std::vector<float> model;
  std::vector<uint64_t> histogram;
};
// Of gradients split over n shards, 1/n of lambda C d, the longest that may be added.
std::vector<double> by_covariance(const std::deque<std::vector<double>>& gradients, const std::vector<float>& now,
                                  const std::vector<float>& then, double lambda, size_t n) {
  const size_t elems = now.size(), count = gradients.size();
  std::vector<double> out(elems), mean(elems);
  for (const auto& g : gradients)
    for (size_t i = 0; i < elems; ++i) mean[i] += g[i] / static_cast<double>(count);
  for (size_t shard = 0; shard < n; ++shard) {
    const Part part = part_of(elems, static_cast<int>(shard), static_cast<int>(n));
    double length = 0, own = 0;
    for (const auto& g : gradients) {
      double along = 0;
      for (size_t i = part.begin; i < part.end; ++i) along += (g[i] - mean[i]) * (now[i] - then[i]);
      for (size_t i = part.begin; i < part.end; ++i)
        out[i] += lambda / static_cast<double>(count) * along * (g[i] - mean[i]);
    }
    for (size_t i = part.begin; i < part.end; ++i) {
      length += out[i] * out[i];
      own += gradients.front()[i] * gradients.front()[i];
    }
    const double factor = std::min(1.0, std::sqrt(own / std::max(length, 1e-300)));
    for (size_t i = part.begin; i < part.end; ++i) out[i] *= factor / static_cast<double>(n);
  }
  return out;
}
Sequential follow(const std::vector<int>& order, int workers, const ServerOptions& options, const ProblemOptions& p) {
  const size_t elems = problem_elems(), n = static_cast<size_t>(workers);
  std::vector<float> w(elems), v(elems), mean_square(elems);
  for (size_t i = 0; i < elems; ++i) w[i] = initial_value(i);
  std::vector<std::vector<float>> read(n, w);
  std::vector<uint64_t> read_at(n), histogram;
  std::deque<std::vector<double>> last;
  uint64_t version = 0;
  size_t ticket = 0;
  const float momentum = 0.8F, decay = 1e-3F;
  for (uint64_t epoch = 0; epoch < p.epochs; ++epoch) {
    std::vector<size_t> item(n);
    std::iota(item.begin(), item.end(), 0);
    size_t next = n;
    for (auto& r : read) r = w;
    for (auto& r : read_at) r = version;
    for (size_t done = 0; done < p.steps * n; ++done, ++ticket) {
      const auto worker = static_cast<size_t>(order[ticket]);
      const size_t step = item[worker] / n, stale = version - read_at[worker];
      if (histogram.size() <= stale) histogram.resize(stale + 1);
      ++histogram[stale];
      const auto lr = static_cast<float>(problem_lr(epoch, step));
      const auto gradient = [&](size_t i) {
        return problem_gradient(read[worker][i], i, epoch, step, static_cast<int>(item[worker] % n)) *
               (1.0F / static_cast<float>(n));
      };
      std::vector<double> corrections;
      if (options.compensation.gradients > 0) {
        std::vector<double> newest(elems);
        for (size_t i = 0; i < elems; ++i) newest[i] = gradient(i) * static_cast<double>(n);
        last.push_front(newest);
        if (last.size() > options.compensation.gradients) last.pop_back();
        corrections = by_covariance(last, w, read[worker], options.compensation.lambda, n);
      }
      for (size_t i = 0; i < elems; ++i) {
        float g = gradient(i);
        const auto lambda = static_cast<float>(options.compensation.lambda * workers);
        const float square = g * g, moved = w[i] - read[worker][i];
        if (options.compensation.gradients > 0) {
          g += static_cast<float>(corrections[i]);
        } else if (options.compensation.adaptive) {
          mean_square[i] = 0.95F * mean_square[i] + (1 - 0.95F) * static_cast<float>(workers * workers) * square;
          g += lambda / std::sqrt(mean_square[i] + 1e-7F) * square * moved;
        } else if (lambda != 0) {
          g += lambda * g * g * moved;
        }
        g += decay * w[i];
        v[i] = momentum * v[i] + g;
        w[i] -= lr * (g + momentum * v[i]);
      }
      ++version;
      read[worker] = w;
      read_at[worker] = version;
      item[worker] = next++;
    }
  }
  return {w, histogram};
}

struct Outcome {
  std::vector<std::vector<float>> models;
  std::vector<int> order;
  std::vector<uint64_t> histogram;
};
Outcome run_asgd(int ranks, const ServerOptions& options, const ProblemOptions& problem) {
  Outcome outcome;
  outcome.models = train_on(ranks, asgd(options), problem, [&](Strategy& s, int rank) {
    if (rank != 0) return;
    outcome.order = static_cast<Asgd&>(s).order();
    outcome.histogram = s.stats().staleness;
  });
  return outcome;
}

TEST(Asgd, IsTheSequenceOfItsTicketsBitForBit) {
  for (int ranks : {1, 2, 4, 5}) {
    for (uint64_t bound : {uint64_t{1}, uint64_t{4}, Sequencer::kUnbounded}) {
      for (int compensation : {0, 1, 2}) {
        ServerOptions options = server_options(bound, ranks > 2 ? 1 : 0);
        options.compensation = {.lambda = compensation == 0 ? 0 : 0.5, .adaptive = compensation == 2};
        ProblemOptions problem{.epochs = 2, .steps = 12, .pause = random_pause()};
        const Outcome outcome = run_asgd(ranks, options, problem);
        ASSERT_EQ(outcome.order.size(), 2U * 12 * static_cast<size_t>(ranks));
        const Sequential right = follow(outcome.order, ranks, options, problem);
        for (const auto& model : outcome.models) EXPECT_EQ(model, right.model) << ranks << " ranks, bound " << bound;
        EXPECT_EQ(outcome.histogram, right.histogram);
        if (bound == Sequencer::kUnbounded) continue;
        EXPECT_LE(outcome.histogram.size(), bound * static_cast<uint64_t>(ranks) + 1);
      }
    }
  }
}

TEST(Asgd, CorrectsByTheCovarianceOfTheLastGradients) {
  for (int ranks : {1, 3, 5}) {
    for (double lambda : {0.2, 1e4}) {  // all of the correction is added; it is cut to the gradient's length
      ServerOptions options = server_options(Sequencer::kUnbounded, ranks > 3 ? 1 : 0);
      options.order.seed = 7;
      const ProblemOptions problem{.epochs = 2, .steps = 12};
      const Outcome plain = run_asgd(ranks, options, problem);
      options.compensation = {.lambda = lambda, .gradients = 6};
      const Outcome outcome = run_asgd(ranks, options, problem);
      const Sequential right = follow(outcome.order, ranks, options, problem);
      for (const auto& model : outcome.models) {
        EXPECT_LT(largest_gap(model, right.model), 1e-5) << ranks << " ranks";
        if (ranks == 1) continue;  // nothing is late
        EXPECT_GT(largest_gap(model, plain.models[0]), 1e-3) << ranks << " ranks";
      }
    }
  }
}

// Between two epochs, in a run whose order is drawn, so that it is the same each time.
TEST(Asgd, TakesAnotherBoundBetweenEpochs) {
  constexpr int kRanks = 3;
  ServerOptions options = server_options(1);
  options.order.seed = 11;
  auto comms = Communicator::init_local(kRanks);
  ASSERT_TRUE(comms.ok());
  std::vector<uint64_t> tight, loose;
  std::vector<std::thread> threads;
  for (auto& comm : *comms) {
    threads.emplace_back([&] {
      auto strategy = asgd(options)(comm);
      ASSERT_TRUE(strategy.ok());
      ASSERT_TRUE(train_problem(**strategy, {.epochs = 1, .steps = 40, .finish = false}).ok());
      if (comm.rank() == 0) tight = (*strategy)->stats().staleness;
      (*strategy)->set_staleness(5);
      ASSERT_TRUE(train_problem(**strategy, {.first_epoch = 1, .epochs = 2, .steps = 40, .fresh = false}).ok());
      if (comm.rank() == 0) loose = (*strategy)->stats().staleness;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(tight.size(), kRanks * 1U + 1) << "as late as the bound allows";
  EXPECT_GT(loose.size(), kRanks * 2U);
  EXPECT_LE(loose.size(), kRanks * 5U + 1);
}

TEST(Asgd, WithBoundZeroTakesTheStepsOfSynchronousSgd) {
  for (int ranks : {1, 3, 4}) {
    for (const auto& optimizer : {momentum_sgd(), OptimizerOptions{.kind = OptimizerOptions::Kind::kAdam}}) {
      ServerOptions options = server_options(0);
      options.optimizer = optimizer;
      const ProblemOptions problem{.epochs = 3, .pause = random_pause()};
      const Outcome outcome = run_asgd(ranks, options, problem);
      const auto synchronous = train_on(
          ranks, [&](Communicator& comm) { return Ssgd::make(comm, kProblemCounts, optimizer); }, problem);
      for (const auto& model : outcome.models) EXPECT_LT(largest_gap(model, synchronous[0]), 2e-6) << ranks;
      ASSERT_EQ(outcome.histogram.size(), 1U);
      if (ranks != 4) continue;
      options.order.bound = 4;  // the bound can tell a small difference
      EXPECT_GT(largest_gap(run_asgd(ranks, options, problem).models[0], synchronous[0]), 1e-4);
    }
  }
}

TEST(Asgd, DrawnFromASeedGivesTheSameBitsInEveryRun) {
  ServerOptions options = server_options(4);
  options.order.seed = 5;
  const ProblemOptions problem{.epochs = 2, .steps = 15, .pause = random_pause()};
  const Outcome first = run_asgd(4, options, problem), second = run_asgd(4, options, problem);
  EXPECT_EQ(first.models[0], second.models[3]);
  EXPECT_EQ(first.order, second.order);
  EXPECT_GT(first.histogram.size(), 3U);
  options.order.seed = 6;
  EXPECT_NE(run_asgd(4, options, problem).models[0], first.models[0]);
}

TEST(Asgd, ReplaysARecordedRunBitForBit) {
  ServerOptions options = server_options(Sequencer::kUnbounded);
  const ProblemOptions problem{.epochs = 2, .steps = 15, .pause = random_pause()};
  const Outcome first = run_asgd(3, options, problem);
  options.order.order = first.order;
  EXPECT_EQ(run_asgd(3, options, problem).models[1], first.models[0]);
}

TEST(Asgd, SlowRankDoesLessAndTheOthersMore) {
  ServerOptions options = server_options(4);
  std::atomic<int> ranks = 0;
  const ProblemOptions problem{.epochs = 1, .steps = 40, .pause = [&] {
                                 thread_local const int number = ranks++;
                                 std::this_thread::sleep_for(std::chrono::milliseconds(number == 0 ? 20 : 2));
                               }};
  const Outcome outcome = run_asgd(4, options, problem);
  std::vector<long> updates;
  for (int r = 0; r < 4; ++r) updates.push_back(std::count(outcome.order.begin(), outcome.order.end(), r));
  EXPECT_LT(*std::min_element(updates.begin(), updates.end()), 160 / 8);
}

TEST(Asgd, ThatGoesOnFromItsStateIsTheRunThatWasNotInterrupted) {
  ServerOptions options = server_options(2);
  options.order.seed = 3;
  const ProblemOptions whole{.epochs = 3, .finish = true};
  const auto uninterrupted = run_asgd(3, options, whole).models[0];
  std::vector<State> states(3);
  (void)train_on(3, asgd(options), {.epochs = 2, .finish = false},
                 [&](Strategy& s, int rank) { s.save(states[static_cast<size_t>(rank)]); });
  State all;
  for (auto& s : states) all.merge(std::move(s));
  const auto load = [&](Communicator& comm) {
    auto strategy = Asgd::make(comm, kProblemCounts, options);
    if (strategy.ok()) {
      const Status loaded = (*strategy)->load(all);
      EXPECT_TRUE(loaded.ok()) << loaded.to_string();
    }
    return strategy;
  };
  const ProblemOptions rest{.first_epoch = 2, .epochs = 3, .fresh = false};
  EXPECT_EQ(train_on(3, load, rest)[2], uninterrupted);
  // On another number of ranks it is another run, from the same model.
  EXPECT_LT(largest_gap(train_on(2, load, rest)[0], uninterrupted), 0.5);
}

TEST(Asgd, WorkerThatStopsIsNamedToAll) {
  test::expect_log("has not finished its gradient");
  ServerOptions options = server_options(1);
  options.timeout_s = 1;
  std::atomic<bool> over = false;
  std::atomic<int> verdicts = 0;
  test::on_ranks(3, [&](Communicator& comm) {
    auto strategy = Asgd::make(comm, kProblemCounts, options);
    ASSERT_TRUE(strategy.ok());
    int steps = 0;
    const Status status = train_problem(**strategy, {.epochs = 1, .steps = 1000, .pause = [&] {
                                                       while (comm.rank() == 2 && steps == 5 && !over)
                                                         std::this_thread::sleep_for(std::chrono::milliseconds(5));
                                                       ++steps;
                                                     }});
    if (comm.rank() != 2) over = true;
    ASSERT_FALSE(status.ok());
    EXPECT_NE(status.to_string().find("rank 2 has not finished its gradient"), std::string::npos)
        << status.to_string();
    ++verdicts;
  });
  EXPECT_EQ(verdicts, 3);
}

TEST(Asgd, RankThatLeavesEndsTheOthersWithAVerdict) {
  test::expect_log("");
  std::atomic<int> verdicts = 0;
  test::on_ranks(4, [&](Communicator& comm) {
    auto strategy = Asgd::make(comm, kProblemCounts, server_options(4));
    ASSERT_TRUE(strategy.ok());
    int steps = 0;
    const Status status = train_problem(**strategy, {.epochs = 1, .steps = 5000, .pause = [&] {
                                                       if (comm.rank() == 3 && ++steps == 6) {
                                                         (*strategy)->abort("rank 3 gives up");
                                                       }
                                                     }});
    ASSERT_FALSE(status.ok());
    ASSERT_NE(status.verdict(), nullptr) << status.to_string();
    EXPECT_EQ(status.verdict()->rank, 3);
    ++verdicts;
  });
  EXPECT_EQ(verdicts, 4);
}

TEST(Asgd, RefusesWhatCannotBe) {
  test::on_ranks(2, [](Communicator& comm) {
    for (int replicas : {-1, 2}) {
      auto strategy = Asgd::make(comm, kProblemCounts, server_options(1, replicas));
      EXPECT_EQ(strategy.status().code(), Code::kInvalid);
    }
    ServerOptions both = server_options(1);
    both.order.seed = 1;
    both.order.order = {0, 1};
    EXPECT_EQ(Asgd::make(comm, kProblemCounts, both).status().code(), Code::kInvalid);
  });
}

}  // namespace
}  // namespace ringfold::sync
