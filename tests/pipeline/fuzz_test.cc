// Random legal schedules on the shipping runner, messages and executor, over the simulated network: whatever the
// order of sends and receives on the two sides, all of it comes to its end, with the right gradients.
//
//   RINGFOLD_PIPELINE_SEEDS=1-100000    which seeds (default: those that the build registers)
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>

#include "comm/impl.h"
#include "exec/engine.h"
#include "pipeline/execution.h"
#include "tests/pipeline/layers.h"
#include "tests/pipeline/random_schedule.h"
#include "transports/sim/sim.h"

namespace ringfold::test {
namespace {

using namespace pipeline;
using std::chrono::microseconds;

// Messages of a simulated process.
class SimulatedPort final : public Port {
 public:
  SimulatedPort(exec::Engine& engine, exec::Domain& domain) : engine_(engine), domain_(domain) {}
  Work send(const void* data, size_t count, DataType type, int peer, int64_t tag, const CallOptions&) override {
    exec::Message* m = make(true, count, type, peer, tag);
    m->source = static_cast<const std::byte*>(data);
    return start(m);
  }
  Work recv(void* data, size_t count, DataType type, int peer, int64_t tag, const CallOptions&) override {
    exec::Message* m = make(false, count, type, peer, tag);
    m->target = static_cast<std::byte*>(data);
    return start(m);
  }

 private:
  exec::Message* make(bool send, size_t count, DataType type, int peer, int64_t tag) {
    exec::Message* m = domain_.take_message().release();
    static_cast<exec::Transfer&>(*m) = {
        .send = send, .peer = peer, .tag = tag, .format = {.type = type}, .bytes = count * size_of(type)};
    m->deadline = base::Deadline::never();
    return m;
  }
  Work start(exec::Message* m) {
    Work work = WorkAccess::make(m);
    engine_.start(domain_, m);
    return work;
  }
  exec::Engine& engine_;
  exec::Domain& domain_;
};

sim::Options network_of(uint64_t seed) {
  std::mt19937_64 random(seed * 7 + 3);
  sim::Options o;
  o.slots = std::array{2, 3, 4, 8}[random() % 4];
  o.slot_bytes = std::array{64, 256, 4096}[random() % 3];
  o.max_delay = microseconds(std::array{2, 50, 500}[random() % 3]);
  o.bytes_per_us = std::array{10.0, 1000.0}[random() % 2];
  return o;
}

struct Outcome {
  std::string wrong;  // empty: it ran to its end
  uint64_t actions = 0, messages = 0;
};

// One schedule on one network, `steps` times.
class Job {
 public:
  Job(uint64_t seed, Schedule schedule, int ahead)
      : seed_(seed), schedule_(std::move(schedule)), world_(seed, network_of(seed)) {
    const int n = schedule_.ranks();
    std::vector<std::unique_ptr<transport::Transport>> transports;
    for (int r = 0; r < n; ++r) transports.push_back(world_.make(r, 0));
    for (int r = 0; r < n; ++r) {
      for (int q = 0; q < n; ++q) {
        if (q == r) continue;
        EXPECT_TRUE(
            transports[static_cast<size_t>(r)]->add_peer(q, transports[static_cast<size_t>(q)]->address()).ok());
      }
    }
    for (int r = 0; r < n; ++r) {
      auto& rank = ranks_.emplace_back(std::make_unique<Rank>(schedule_.stages()));
      exec::Engine::Options o;
      o.now = [this] { return world_.now(); };
      rank->engine = std::make_shared<exec::Engine>(o);
      std::vector<std::unique_ptr<transport::Transport>> one;
      one.push_back(std::move(transports[static_cast<size_t>(r)]));
      rank->domain =
          std::make_shared<exec::Domain>(r, n, std::move(one), std::vector<int>(static_cast<size_t>(n), 0));
      // What the exchange needs unasked is credits, which have no content.
      rank->domain->messages().set_limits(0, std::min<size_t>(100, world_.options().slot_bytes));
      rank->domain->on_fault = [this](const exec::Fault& fault) { wrong(fault.status.to_string()); };
      rank->engine->add(rank->domain);
      Execution::Options options;
      options.rank = r;
      options.runner.ahead = ahead;
      options.now = [this] { return world_.now(); };
      rank->execution = std::make_unique<Execution>(
          schedule_, rank->layers, std::make_shared<SimulatedPort>(*rank->engine, *rank->domain), options);
      if (seed % 5 == 0 && r == static_cast<int>(seed / 5 % static_cast<uint64_t>(n)))
        world_.slow(r, microseconds(200));
    }
  }
  ~Job() {
    for (auto& rank : ranks_) rank->engine->abort(*rank->domain, Status(Code::kAborted, "the simulation ends"));
    for (auto& rank : ranks_) rank->execution.reset();
    for (auto& rank : ranks_) rank->engine->remove(rank->domain);
  }

  Outcome run(int steps) {
    std::mt19937_64 random(seed_ + 99);
    std::vector<size_t> order(ranks_.size());
    std::iota(order.begin(), order.end(), 0);
    for (auto& rank : ranks_) rank->steps_left = steps, rank->idle = true;
    int quiet = 0;
    while (outcome_.wrong.empty() && !finished()) {
      std::shuffle(order.begin(), order.end(), random);
      bool moved = false;
      for (size_t r : order) {
        if (!world_.runnable(static_cast<int>(r)) || !turn(*ranks_[r])) continue;
        world_.ran(static_cast<int>(r));
        moved = true;
      }
      quiet = moved || world_.step() ? 0 : quiet + 1;
      if (quiet < 3) continue;
      std::string text = "deadlock:";
      for (auto& rank : ranks_) text += " [" + rank->execution->position() + "]";
      wrong(text);
    }
    for (auto& violation : world_.violations()) wrong(violation);
    if (outcome_.wrong.empty()) compare(steps);
    return outcome_;
  }

 private:
  struct Rank {
    explicit Rank(int stages) : layers(stages, Numbers::kWhole) {}
    Layers<double> layers;
    std::shared_ptr<exec::Engine> engine;
    std::shared_ptr<exec::Domain> domain;
    std::unique_ptr<Execution> execution;
    int steps_left = 0;
    bool idle = true;  // between steps
  };

  void wrong(const std::string& what) {
    if (outcome_.wrong.empty()) outcome_.wrong = what;
  }
  bool turn(Rank& rank) {
    bool moved = rank.engine->poll();
    if (rank.idle) {
      if (rank.steps_left == 0) return moved;
      --rank.steps_left;
      rank.idle = false;
      rank.execution->begin(base::Deadline::never());
    }
    const auto progress = rank.execution->advance();
    if (!progress.ok()) {
      wrong(progress.status().to_string());
    } else if (*progress == Execution::Progress::kDone) {
      rank.idle = moved = true;
    } else if (*progress == Execution::Progress::kMoved) {
      ++outcome_.actions;
      moved = true;
    }
    return moved;
  }
  bool finished() const {
    return std::all_of(ranks_.begin(), ranks_.end(), [](auto& rank) {
      return rank->idle && rank->steps_left == 0 && rank->execution->exchange().unsent() == 0;
    });
  }
  void compare(int steps) {
    Layers<double> loop(schedule_.stages(), Numbers::kWhole);
    for (int k = 0; k < steps; ++k) loop.run(schedule_.micro_batches);
    CheckReport report;
    if (Status s = check(schedule_, {}, &report); !s.ok()) wrong(s.to_string());
    for (int s = 0; s < schedule_.stages(); ++s) {
      const int r = schedule_.rank_of[static_cast<size_t>(s)];
      if (ranks_[static_cast<size_t>(r)]->layers.gradient(s) != loop.gradient(s))
        wrong(fmt::format("stage {}: wrong gradients", s));
    }
    for (size_t r = 0; r < ranks_.size(); ++r) {
      if (ranks_[r]->execution->peak_activations() != report.peak[r])
        wrong("other activations than the checker counts");
    }
    for (int s = 0; s + 1 < schedule_.stages(); ++s) {
      if (schedule_.rank_of[static_cast<size_t>(s)] != schedule_.rank_of[static_cast<size_t>(s) + 1])
        outcome_.messages += static_cast<uint64_t>(2 * schedule_.micro_batches * steps);
    }
  }

  const uint64_t seed_;
  const Schedule schedule_;
  sim::World world_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  Outcome outcome_;
};

TEST(RandomOrders, OfSendsAndReceivesComeToTheirEndWithTheRightGradients) {
  unsigned long long first = 1, last = 2000;
  if (const char* range = std::getenv("RINGFOLD_PIPELINE_SEEDS")) {
    ASSERT_EQ(std::sscanf(range, "%llu-%llu", &first, &last), 2) << "RINGFOLD_PIPELINE_SEEDS=FIRST-LAST";
  }
  uint64_t actions = 0, messages = 0, crossed = 0;
  int failures = 0;
  for (uint64_t seed = first; seed <= last && failures < 5; ++seed) {
    std::mt19937_64 random(seed);
    const Schedule schedule = random_schedule(random);
    const int ahead = 1 + static_cast<int>(random() % 4);
    const Outcome outcome = Job(seed, schedule, ahead).run(1 + static_cast<int>(random() % 2));
    actions += outcome.actions;
    messages += outcome.messages;
    // Do the two sides of some boundary take its micro-batches in another order?
    bool crosses = false;
    for (int s = 0; s + 1 < schedule.stages() && !crosses; ++s) {
      auto order = [&](int stage) {
        std::vector<int> result;
        for (const Action& a : schedule.actions[static_cast<size_t>(schedule.rank_of[static_cast<size_t>(stage)])]) {
          if (a.kind == ActionKind::kForward && a.stage == stage) result.push_back(a.micro_batch);
        }
        return result;
      };
      crosses = order(s) != order(s + 1);
    }
    crossed += crosses;
    if (outcome.wrong.empty()) continue;
    ++failures;
    ADD_FAILURE() << "seed " << seed << " (" << schedule.ranks() << " ranks, " << schedule.stages() << " stages, "
                  << schedule.micro_batches << " micro-batches, ahead " << ahead << "): " << outcome.wrong
                  << "\n  replay: RINGFOLD_PIPELINE_SEEDS=" << seed << "-" << seed << " pipeline_fuzz_test";
  }
  std::printf("  %llu orders, %llu of them different on two sides, %llu actions, %llu messages\n", last - first + 1,
              static_cast<unsigned long long>(crossed), static_cast<unsigned long long>(actions),
              static_cast<unsigned long long>(messages));
  if (last - first >= 100) {
    EXPECT_GT(crossed, (last - first) / 4) << "the orders are too tame";
  }
}

// The test above could fail: what the checker calls a deadlock is one.
TEST(RandomOrders, ThatTheCheckerCallsADeadlockStandStill) {
  int deadlocks = 0;
  for (uint64_t seed = 1; deadlocks < 100; ++seed) {
    ASSERT_LT(seed, 100'000u);
    std::mt19937_64 random(seed);
    Schedule schedule = random_schedule(random);
    auto& list = schedule.actions[random() % schedule.actions.size()];
    if (list.size() < 2) continue;
    std::swap(list[random() % list.size()], list[random() % list.size()]);
    CheckReport report;
    if (check(schedule, {}, &report).ok() || report.property != Property::kDeadlock) continue;
    ++deadlocks;
    const Outcome outcome = Job(seed, schedule, 4).run(1);
    const bool alone = outcome.wrong.find("comes later in the list") != std::string::npos;  // a rank with itself
    EXPECT_TRUE(alone || outcome.wrong.starts_with("deadlock:")) << "seed " << seed << ": " << outcome.wrong;
  }
}

// The named schedules, too, on networks of all kinds.
TEST(RandomNetworks, RunTheNamedSchedules) {
  uint64_t seed = 1;
  for (const Recipe& recipe : recipes()) {
    for (int p : {2, 3, 5}) {
      for (int m : {p, 2 * p, 3 * p}) {
        for (int ahead : {1, 3}) {
          const auto schedule = make(recipe.name, {p, m});
          ASSERT_TRUE(schedule.ok());
          const Outcome outcome = Job(++seed, *schedule, ahead).run(2);
          EXPECT_EQ(outcome.wrong, "") << recipe.name << " p=" << p << " m=" << m << " ahead " << ahead;
        }
      }
    }
  }
}

}  // namespace
}  // namespace ringfold::test
