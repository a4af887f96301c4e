// A small training problem whose gradients anybody can compute: each task pulls every parameter, a little
// nonlinearly, to a point of its own.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "sync/strategy.h"
#include "tests/train/ranks.h"

namespace ringfold::sync {

inline const std::vector<size_t> kProblemCounts = {700, 7, 0, 1500, 31, 1};

inline size_t problem_elems() {
  size_t elems = 0;
  for (size_t c : kProblemCounts) elems += c;
  return elems;
}

inline float problem_noise(uint64_t a, uint64_t b) {
  uint64_t x = (a + 1) * 0x9e3779b97f4a7c15ULL ^ (b + 1) * 0xc2b2ae3d27d4eb4fULL;
  x = (x ^ x >> 29) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ x >> 32) * 0x94d049bb133111ebULL;
  return static_cast<float>((x >> 40) % 2001) / 1000.0F - 1.0F;
}

inline float initial_value(size_t i) { return 2 * problem_noise(77, i); }

// Of the mean over the task's own samples.
inline float problem_gradient(float w, size_t i, uint64_t epoch, size_t step, int part) {
  const float target = problem_noise(epoch * 10'007 + step * 101 + static_cast<uint64_t>(part), i);
  return std::tanh(w - target);
}

inline double problem_lr(uint64_t epoch, size_t step) {
  return 0.05 / (1 + 0.1 * static_cast<double>(epoch + step % 3));
}

// Trains on the calling rank; parameters are the model afterwards, in order without gaps. `pause` is called where a
// rank computes.
struct ProblemOptions {
  uint64_t first_epoch = 0, epochs = 2;
  size_t steps = 9;
  bool fresh = true;   // start(); otherwise the strategy was loaded
  bool finish = true;  // the last merge is the last
  std::function<void()> pause = [] {};
};

inline std::vector<float> parameters_of(Strategy& s) {
  std::vector<float> all;
  for (size_t p = 0; p < s.parameters(); ++p) all.insert(all.end(), s.parameter(p).begin(), s.parameter(p).end());
  return all;
}

inline Status train_problem(Strategy& s, const ProblemOptions& options) {
  if (options.fresh) {
    size_t i = 0;
    for (size_t p = 0; p < s.parameters(); ++p) {
      for (float& w : s.parameter(p)) w = initial_value(i++);
    }
    RINGFOLD_TRY(s.start());
  }
  for (uint64_t epoch = options.first_epoch; epoch < options.epochs; ++epoch) {
    RINGFOLD_TRY(s.begin_epoch(options.steps));
    for (;;) {
      auto task = s.next();
      if (!task.ok()) return task.status();
      if (!task->has_value()) break;
      const Task t = **task;
      options.pause();
      const float scale = s.scale() == Scale::kOwnMean ? 1.0F : 1.0F / static_cast<float>(t.parts);
      size_t end = s.elems();
      for (size_t p = s.parameters(); p-- > 0;) {
        const auto w = s.parameter(p), g = s.gradient(p);
        end -= w.size();
        for (size_t i = 0; i < w.size(); ++i) g[i] += scale * problem_gradient(w[i], end + i, epoch, t.step, t.part);
        s.ready(p);
      }
      RINGFOLD_TRY(s.step({.lr = problem_lr(epoch, t.step), .loss = 1, .samples = 1}));
    }
    RINGFOLD_TRY(s.merge(options.finish && epoch + 1 == options.epochs));
  }
  return {};
}

using MakeStrategy = std::function<Result<std::unique_ptr<Strategy>>(Communicator&)>;

// Trains on `ranks` threads; each rank's parameters.
inline std::vector<std::vector<float>> train_on(int ranks, const MakeStrategy& make,
                                                const ProblemOptions& options = {},
                                                const std::function<void(Strategy&, int)>& look = {},
                                                const Options& communicator = {}) {
  std::vector<std::vector<float>> all(static_cast<size_t>(ranks));
  Options with_deadline = communicator;
  with_deadline.timeout_s = 60;
  auto comms = Communicator::init_local(ranks, with_deadline);
  EXPECT_TRUE(comms.ok()) << comms.status().to_string();
  if (!comms.ok()) return all;
  std::vector<std::thread> threads;
  for (auto& comm : *comms) {
    threads.emplace_back([&] {
      auto strategy = make(comm);
      ASSERT_TRUE(strategy.ok()) << strategy.status().to_string();
      const Status status = train_problem(**strategy, options);
      ASSERT_TRUE(status.ok()) << status.to_string();
      all[static_cast<size_t>(comm.rank())] = parameters_of(**strategy);
      if (look) look(**strategy, comm.rank());
    });
  }
  for (auto& thread : threads) thread.join();
  return all;
}

inline double largest_gap(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = a.size() == b.size() && !a.empty() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return largest;
}

}  // namespace ringfold::sync
