// How much pipeline ranks idle when computing takes exactly known times: stages wait instead of computing, so that
// two cores do for any number of ranks; everything else is the shipping runner. Beside the figure of the simulator
// and the formula.
//
//   build/bench/pipeline_idle [RANKS MICRO_BATCHES UNIT_US STEPS ELEMS]      ranks as threads, over loopback
//   ringfold run -n 4 -- build/bench/pipeline_idle [...]                     ranks as processes, over shm or TCP
//
// F = B = W = UNIT_US of a rank (2 UNIT_US for a whole backward pass). Steps follow each other without waiting for
// anybody. Exit status 1 when a schedule idles 2 points more than its formula.
#include <fmt/format.h>
#include <sys/prctl.h>
#include <time.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "ringfold/pipeline_runner.h"

namespace {

using namespace ringfold;
using namespace ringfold::pipeline;

// Until a moment, not for a time: the way into and out of sleep is no part of the length.
void wait_us(double us) {
  timespec at{};
  clock_gettime(CLOCK_MONOTONIC, &at);
  const auto ns = static_cast<long long>(us * 1e3) + at.tv_nsec;
  at.tv_sec += ns / 1'000'000'000;
  at.tv_nsec = ns % 1'000'000'000;
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, nullptr) != 0) {
  }
}

class WaitingStages final : public Stages {
 public:
  WaitingStages(double unit_us, int chunks, size_t elems) : unit_us_(unit_us / chunks), elems_(elems) {}
  Boundary boundary(int, int) const override { return {elems_, DataType::kF32}; }
  Status forward(const Pass&) override { return wait(1); }
  Status backward_input(const Pass&) override { return wait(1); }
  Status backward_weight(const Pass&) override { return wait(1); }
  Status backward(const Pass&) override { return wait(2); }

 private:
  Status wait(double units) {
    wait_us(units * unit_us_);
    return {};
  }
  const double unit_us_;
  const size_t elems_;
};

struct Question {
  int ranks = 4, micro_batches = 8;
  double unit_us = 20'000;
  int steps = 4;
  size_t elems = 4096;
};

Status measure(Communicator& comm, const Question& q, const Recipe& recipe, Timing* timing, int* peak) {
  const Shape shape{q.ranks, q.micro_batches, recipe.chunks};
  auto schedule = make(recipe.name, shape);
  if (!schedule.ok()) return schedule.status();
  WaitingStages stages(q.unit_us, recipe.chunks, q.elems);
  auto runner = Runner::make(comm, *schedule, stages);
  if (!runner.ok()) return runner.status();
  for (int k = 0; k < q.steps; ++k) RINGFOLD_TRY((*runner)->step());
  RINGFOLD_TRY((*runner)->flush());
  auto measured = (*runner)->timeline(q.steps);
  if (!measured.ok()) return measured.status();
  *timing = *std::move(measured);
  *peak = (*runner)->peak_activations();
  RINGFOLD_TRY(comm.all_reduce(peak, peak, 1, DataType::kI32, kMax).wait());
  return {};
}

int play(Communicator& comm, const Question& q) {
  ::prctl(PR_SET_TIMERSLACK, 1UL);  // 50 us else, which the system may add to each wait
  const bool prints = comm.rank() == 0;
  int failures = 0;
  if (prints)
    fmt::print(
        "{} ranks over {}, {} micro-batches, F = B = W = {} us, {} steps, messages of {} bytes\n{:<18}{:>10}{:>10}"
        "{:>10}{:>10}{:>14}{:>10}\n",
        q.ranks, q.ranks > 1 ? comm.transport_to(1) : "self", q.micro_batches, q.unit_us, q.steps,
        q.elems * sizeof(float), "", "step, ms", "ideal", "idle", "formula", "activations", "formula");
  for (const Recipe& recipe : recipes()) {
    Timing timing;
    int peak = 0;
    if (Status s = measure(comm, q, recipe, &timing, &peak); !s.ok()) {
      if (prints) fmt::print("{:<18}{}\n", recipe.name, s.to_string());
      if (comm.status().ok()) continue;  // it does not take the shape
      return 1;
    }
    const Shape shape{q.ranks, q.micro_batches, recipe.chunks};
    const auto bubble = recipe.bubble(shape, {});
    const double ideal_units = 3.0 * q.micro_batches + bubble.value_or(NAN);
    const double formula = bubble.value_or(NAN) / ideal_units;
    // What a rank should have computed, of the time that a step took: waits that were too long count as idle.
    const double idle = 1 - 3.0 * q.micro_batches * q.unit_us / (timing.step * 1e6);
    failures += idle > formula + 0.02;
    if (prints)
      fmt::print("{:<18}{:>10.1f}{:>10.1f}{:>9.1f}%{:>9.1f}%{:>14.4g}{:>10.4g}{}\n", recipe.name, timing.step * 1e3,
                 ideal_units * q.unit_us * 1e-3, 100 * idle, 100 * formula, static_cast<double>(peak) / recipe.chunks,
                 static_cast<double>(recipe.peak(shape, 0).value_or(0)) / recipe.chunks,
                 idle > formula + 0.02 ? "  more than 2 points off" : "");
    std::fflush(stdout);
  }
  return failures > 0 ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  Question q;
  if (argc > 1) q.ranks = std::atoi(argv[1]);
  if (argc > 2) q.micro_batches = std::atoi(argv[2]);
  if (argc > 3) q.unit_us = std::atof(argv[3]);
  if (argc > 4) q.steps = std::atoi(argv[4]);
  if (argc > 5) q.elems = static_cast<size_t>(std::atoll(argv[5]));
  if (q.ranks < 1 || q.micro_batches < 1 || !(q.unit_us > 0) || q.steps < 2) {
    fmt::print(stderr, "usage: pipeline_idle [RANKS MICRO_BATCHES UNIT_US STEPS(2 or more) ELEMS]\n");
    return 2;
  }
  Options options;
  options.background = true;  // messages move while stages "compute"
  if (std::getenv("RINGFOLD_RANK") != nullptr) {
    auto comm = Communicator::init(options);
    if (!comm.ok()) return fmt::print(stderr, "pipeline_idle: {}\n", comm.status().to_string()), 1;
    q.ranks = comm->size();
    return play(*comm, q);
  }
  auto ranks = Communicator::init_local(q.ranks, options);
  if (!ranks.ok()) return fmt::print(stderr, "pipeline_idle: {}\n", ranks.status().to_string()), 1;
  std::vector<std::thread> threads;
  std::vector<int> results(ranks->size(), 0);
  for (size_t r = 0; r < ranks->size(); ++r) threads.emplace_back([&, r] { results[r] = play((*ranks)[r], q); });
  for (auto& t : threads) t.join();
  return results[0];
}
