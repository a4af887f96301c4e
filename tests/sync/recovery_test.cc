// Ranks are lost in the middle of steps; those that are left go on, and end where they would have ended anyway: no
// step is left out, and none is made twice.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <string>

#include "sync/local_sgd.h"
#include "sync/lockstep.h"
#include "sync/shard.h"
#include "tests/sync/problem.h"

namespace ringfold::sync {
namespace {

// Every step's gradient is the mean over so many parts, whoever computes them; so the number of ranks does not
// matter.
constexpr int kWork = 12;
constexpr size_t kSteps = 40;

struct Fall {
  int rank = 0;
  size_t step = 0;
  bool after = false;  // the step's gradients were given to be summed; otherwise before some of them were
};

OptimizerOptions optimizer() { return {.momentum = 0.9, .nesterov = true, .weight_decay = 1e-3}; }

using Make = std::function<Result<std::unique_ptr<Strategy>>(Communicator&)>;

Make ssgd(const Codec& codec = {}) {
  BucketOptions buckets{.bucket_bytes = 3000, .first_bucket_bytes = 1000};
  buckets.codec = codec;
  return [buckets](Communicator& comm) { return Ssgd::make(comm, kProblemCounts, optimizer(), buckets); };
}

Make meeting(LocalOptions options) {
  options.inner = optimizer();
  options.keep_meetings = true;
  return [options](Communicator& comm) { return LocalSgd::make(comm, kProblemCounts, options); };
}

// One step of this rank; false: it fell.
Result<bool> make_step(Strategy& s, const Communicator& comm, size_t step, const Fall* fall) {
  const Part part = part_of(kWork, comm.rank(), comm.size());
  size_t end = s.elems();
  for (size_t p = s.parameters(); p-- > 0;) {
    if (fall && !fall->after && p == 1) return false;
    const auto w = s.parameter(p), g = s.gradient(p);
    end -= w.size();
    for (size_t i = 0; i < w.size(); ++i) {
      double sum = 0;
      for (size_t k = part.begin; k < part.end; ++k)
        sum += problem_gradient(w[i], end + i, 0, step, static_cast<int>(k));
      g[i] += static_cast<float>(sum / kWork);
    }
    s.ready(p);
  }
  if (fall) return false;
  RINGFOLD_TRY(s.step({.lr = problem_lr(0, step), .loss = 1, .samples = 1}));
  return true;
}

struct Ended {
  std::vector<float> model;
  size_t steps = 0;  // that this rank saw through
  int ranks = 0;
  Status status;
};

// `together`: no rank begins a step before all are through with the one before.
Ended train_through(Communicator comm, const std::vector<Fall>& falls, const Make& make, bool together) {
  const int me = comm.rank();  // at the beginning
  auto made = make(comm);
  if (!made.ok()) return {.status = made.status()};
  auto strategy = std::move(*made);
  size_t i = 0;
  for (size_t p = 0; p < strategy->parameters(); ++p) {
    for (float& w : strategy->parameter(p)) w = initial_value(i++);
  }
  Ended out;
  const auto train = [&]() -> Status {
    for (;;) {
      auto task = strategy->next();
      if (!task.ok()) return task.status();
      if (!task->has_value()) {
        RINGFOLD_TRY(strategy->merge(true));
        return comm.barrier().wait();  // nobody leaves before all have what they need
      }
      if (together) RINGFOLD_TRY(comm.barrier().wait());
      const Fall* fall = nullptr;
      for (const Fall& f : falls) {
        if (f.rank == me && f.step <= (*task)->step) fall = &f;
      }
      auto stayed = make_step(*strategy, comm, (*task)->step, fall);
      if (!stayed.ok()) return stayed.status();
      if (!*stayed) return Status(Code::kAborted, "fell");
      ++out.steps;
    }
  };
  out.status = strategy->start();
  if (out.status.ok()) out.status = strategy->begin_epoch(kSteps, 0);
  if (out.status.ok()) out.status = train();
  while (out.status.verdict()) {
    auto done = recover(comm, strategy, make, strategy->steps_done());
    if (!done.ok()) return {.status = done.status()};
    out.status = strategy->begin_epoch(kSteps, *done);
    if (out.status.ok()) out.status = train();
  }
  if (!out.status.ok()) {
    strategy.reset();
    return out;  // with its communicator: it is gone
  }
  out.model = parameters_of(*strategy);
  out.ranks = comm.size();
  strategy.reset();
  return out;
}

std::vector<Ended> train_with(int ranks, const std::vector<Fall>& falls, const Make& make = ssgd(),
                              bool together = false) {
  std::vector<Ended> all(static_cast<size_t>(ranks));
  Options options;
  options.timeout_s = 60;
  auto comms = Communicator::init_local(ranks, options);
  EXPECT_TRUE(comms.ok()) << comms.status().to_string();
  if (!comms.ok()) return all;
  std::vector<std::thread> threads;
  for (size_t r = 0; r < all.size(); ++r)
    threads.emplace_back([&, r] { all[r] = train_through(std::move((*comms)[r]), falls, make, together); });
  for (auto& thread : threads) thread.join();
  return all;
}

std::string text(const std::vector<Fall>& falls) {
  std::string text;
  for (const Fall& f : falls)
    text +=
        "rank " + std::to_string(f.rank) + (f.after ? " after" : " in") + " step " + std::to_string(f.step) + "; ";
  return text;
}

TEST(Recovery, EndsWhereARunWithoutLossesEnds) {
  const std::vector<float> right = train_with(1, {})[0].model;
  std::mt19937_64 random(3);
  for (int trial = 0; trial < 60; ++trial) {
    const int ranks = 2 + static_cast<int>(random() % 4);
    std::vector<Fall> falls;
    for (int r = 0; r < ranks; ++r) {
      if (static_cast<int>(falls.size()) < ranks - 1 && random() % 3 != 0)
        falls.push_back({r, random() % kSteps, random() % 2 == 0});
    }
    if (trial % 5 == 0) {  // at the same moment
      for (Fall& f : falls) f.step = falls[0].step;
    }
    SCOPED_TRACE(std::to_string(ranks) + " ranks; " + text(falls));
    const auto all = train_with(ranks, falls);
    const std::vector<float>* first = nullptr;
    for (int r = 0; r < ranks; ++r) {
      const Ended& o = all[static_cast<size_t>(r)];
      if (std::any_of(falls.begin(), falls.end(), [&](const Fall& f) { return f.rank == r; })) {
        EXPECT_EQ(o.status.code(), Code::kAborted) << o.status.to_string();
        continue;
      }
      ASSERT_TRUE(o.status.ok()) << "rank " << r << ": " << o.status.to_string();
      EXPECT_EQ(o.ranks, ranks - static_cast<int>(falls.size()));
      EXPECT_LE(o.steps, kSteps);
      EXPECT_GE(o.steps + falls.size(), kSteps);  // it takes over a step that others made, one for each loss at most
      EXPECT_LT(largest_gap(o.model, right), 1e-5);
      if (first != nullptr) {
        EXPECT_EQ(o.model, *first) << "rank " << r;
      }
      first = &o.model;
    }
  }
}

TEST(Recovery, CodesGoOnWithTheirErrorFeedback) {
  Codec codec;
  codec.kind = CodecKind::kInt4;
  const std::vector<float> right = train_with(1, {})[0].model;
  const double usual = largest_gap(train_with(4, {}, ssgd(codec))[0].model, right);
  const auto all = train_with(4, {{1, 11, true}, {3, 23, false}}, ssgd(codec));
  ASSERT_TRUE(all[0].status.ok()) << all[0].status.to_string();
  EXPECT_EQ(all[0].model, all[2].model);
  EXPECT_GT(usual, 0);
  EXPECT_LT(largest_gap(all[0].model, right), 4 * usual) << "beside " << usual << " without losses";
}

// Wherever between two meetings a rank is lost, the others go on from the first of the two: what it had done alone
// since is lost with it, and what they had done is done again.
TEST(Recovery, RanksThatStepAloneGoBackToTheirLastMeeting) {
  const struct {
    LocalOptions options;
    std::vector<size_t> meetings;  // the model is kept after so many steps
  } ways[] = {{{.local_steps = 10}, {0, 10, 20, 30, 40}},
              {{.local_steps = 10, .outer_lr = 0.7, .outer_momentum = 0.9, .fragments = 2}, {0, 5, 10, 15, 20, 25}},
              {{.local_steps = 10, .outer_lr = 0.7, .outer_momentum = 0.5, .fragments = 2, .overlap = 3, .mix = 0.5},
               {0, 8, 13, 18, 23, 28}}};
  for (const auto& way : ways) {
    for (size_t m = 0; m + 1 < way.meetings.size(); ++m) {
      std::vector<float> first;
      // (What it has given to an average that is on its way may arrive, or not.)
      for (size_t step = way.meetings[m]; step < way.meetings[m + 1] - way.options.overlap; ++step) {
        SCOPED_TRACE(std::to_string(way.options.fragments) + " fragments, step " + std::to_string(step));
        const auto all = train_with(3, {{1, step, step % 2 == 0}}, meeting(way.options), true);
        for (int r : {0, 2}) {
          const Ended& o = all[static_cast<size_t>(r)];
          ASSERT_TRUE(o.status.ok()) << "rank " << r << ": " << o.status.to_string();
          EXPECT_EQ(o.ranks, 2);
          if (first.empty()) first = o.model;
          EXPECT_EQ(o.model, first) << "rank " << r;
        }
      }
    }
  }
}

TEST(Recovery, AMeetingToGoBackToMustExist) {
  Options options;
  auto comms = Communicator::init_local(1, options);
  ASSERT_TRUE(comms.ok());
  LocalOptions always{.local_steps = 10, .fragments = 5, .overlap = 4, .mix = 0.5};
  EXPECT_EQ(meeting(always)((*comms)[0]).status().code(), Code::kInvalid);
  always.overlap = 1;
  EXPECT_TRUE(meeting(always)((*comms)[0]).ok());
}

TEST(Recovery, IsRefusedWhereALostRankTookStateWithIt) {
  Options options;
  options.timeout_s = 60;
  auto comms = Communicator::init_local(2, options);
  ASSERT_TRUE(comms.ok());
  const auto make = [](Communicator& on) { return Zero1::make(on, kProblemCounts, optimizer()); };
  std::thread other([comm = std::move((*comms)[1])]() mutable { comm = Communicator(); });
  auto& comm = (*comms)[0];
  auto strategy = std::move(*make(comm));
  EXPECT_FALSE(comm.barrier().wait().ok());
  auto done = recover(comm, strategy, make, 0);
  other.join();
  ASSERT_FALSE(done.ok());
  EXPECT_EQ(done.status().code(), Code::kUnavailable);
  EXPECT_NE(done.status().message().find("checkpoints"), std::string::npos);
}

}  // namespace
}  // namespace ringfold::sync
