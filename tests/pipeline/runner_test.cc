// The runner over real communicators: every schedule computes what one loop computes, bit for bit, in the order and
// memory that its list says; and what goes wrong ends on all ranks with one verdict.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "base/clock.h"
#include "pipeline/clocks.h"
#include "tests/comm/ranks.h"
#include "tests/pipeline/layers.h"

namespace ringfold::test {
namespace {

using namespace pipeline;

const std::vector<std::string>& schedule_names() {
  static const std::vector<std::string> names = {"gpipe", "1f1b", "interleaved-1f1b", "zb-h1", "zb-h2", "zb-v"};
  return names;
}

std::string test_name(std::string name) {
  for (char& c : name) c = c == '-' ? '_' : c;
  return name;
}

// One rank: some steps, and what must have come of them.
template <typename T>
void run_rank(Communicator& comm, const Schedule& schedule, int steps, const RunnerOptions& options = {}) {
  Layers<T> layers(schedule.stages(), Numbers::kReal);
  auto runner = Runner::make(comm, schedule, layers, options);
  ASSERT_TRUE(runner.ok()) << runner.status().to_string();
  for (int k = 0; k < steps; ++k) expect_ok((*runner)->step());
  expect_ok((*runner)->flush());
  const auto& list = schedule.actions[static_cast<size_t>(comm.rank())];
  ASSERT_EQ(layers.order.size(), list.size() * static_cast<size_t>(steps));
  for (size_t k = 0; k < layers.order.size(); ++k) ASSERT_EQ(layers.order[k], list[k % list.size()]) << k;
  CheckReport report;
  expect_ok(check(schedule, {}, &report));
  EXPECT_EQ((*runner)->peak_activations(), report.peak[static_cast<size_t>(comm.rank())]);
  Layers<T> loop(schedule.stages(), Numbers::kReal);
  for (int k = 0; k < steps; ++k) loop.run(schedule.micro_batches);
  for (int s : schedule.stages_of(comm.rank())) {
    EXPECT_EQ(layers.gradient(s), loop.gradient(s)) << schedule.name << " stage " << s;
    EXPECT_NE(layers.gradient(s), std::vector<T>(layers.gradient(s).size(), 0)) << "a test of nothing";
  }
}

class EverySchedule : public testing::TestWithParam<std::string> {};

TEST_P(EverySchedule, OnThreadsGivesTheGradientsOfOneLoopInItsOrderAndMemory) {
  for (int p = 1; p <= 5; ++p) {
    Ranks ranks(p);
    for (int m : {1, 2, p, 2 * p, 3 * p + 1}) {
      for (int v : {1, 2, 3}) {
        const auto schedule = make(GetParam(), {p, m, v});
        if (!schedule.ok()) continue;
        ranks.each([&](Communicator& comm) {
          run_rank<double>(comm, *schedule, 2, {.ahead = 1 + (m + v) % 4});
          run_rank<float>(comm, *schedule, 1);
        });
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(EverySchedule, OnProcessesGivesTheGradientsOfOneLoop) {
  for (const char* transport : {"shm", "tcp"}) {
    processes(4, patient(transport), [](Communicator& comm) {
      run_rank<float>(comm, *make(GetParam(), {4, 8}), 3);
      run_rank<double>(comm, *make(GetParam(), {4, 4}), 2, {.ahead = 1});
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Of, EverySchedule, testing::ValuesIn(schedule_names()),
                         [](const auto& info) { return test_name(info.param); });

// Copies large values through the pipeline: they are cut into many tiles, and wait for credits.
class Relay final : public Stages {
 public:
  Relay(int stages, size_t count) : stages_(stages), count_(count) {}
  Boundary boundary(int, int) const override { return {count_, DataType::kF32}; }
  void set_count(size_t count) { count_ = count; }
  Status forward(const Pass& pass) override {
    const auto in = floats(pass.input);
    const std::span<float> out(reinterpret_cast<float*>(pass.output.data()), pass.output.size() / sizeof(float));
    for (size_t k = 0; k < out.size(); ++k)
      out[k] = (in.empty() ? value(pass.action.micro_batch, k) : in[k]) + (in.empty() ? 0.0f : 1.0f);
    if (pass.action.stage == stages_ - 1) compare(in, pass.action.micro_batch, static_cast<float>(stages_ - 2));
    return {};
  }
  Status backward_input(const Pass& pass) override {
    const auto in = floats(pass.output_gradient);
    const std::span<float> out(reinterpret_cast<float*>(pass.input_gradient.data()),
                               pass.input_gradient.size() / sizeof(float));
    for (size_t k = 0; k < out.size(); ++k) out[k] = in.empty() ? value(pass.action.micro_batch, k) : in[k] + 1;
    if (pass.action.stage == 0) compare(in, pass.action.micro_batch, static_cast<float>(stages_ - 2));
    return {};
  }
  Status backward_weight(const Pass&) override { return {}; }
  double worst = 0;  // difference
  int compared = 0;

 private:
  static std::span<const float> floats(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const float*>(bytes.data()), bytes.size() / sizeof(float)};
  }
  static float value(int micro_batch, size_t k) {
    return static_cast<float>((k * 31 + static_cast<size_t>(micro_batch) * 7) % 1009);
  }
  void compare(std::span<const float> in, int micro_batch, float added) {
    ++compared;
    EXPECT_EQ(in.size(), count_);
    for (size_t k = 0; k < in.size(); ++k)
      worst = std::max(worst, std::abs(static_cast<double>(in[k]) - value(micro_batch, k) - added));
  }
  const int stages_;
  size_t count_;
};

TEST_P(EverySchedule, TakesMessagesOfAnotherSizeInEveryStepAmongThemEmptyOnes) {
  const Schedule schedule = *make(GetParam(), {3, 6});
  Ranks ranks(3);
  ranks.each([&](Communicator& comm) {
    Relay relay(schedule.stages(), 1);
    auto runner = Runner::make(comm, schedule, relay, {.ahead = 3});
    ASSERT_TRUE(runner.ok()) << runner.status().to_string();
    for (const size_t count : {5, 0, 20'000, 0, 1}) {  // without a barrier in between
      relay.set_count(count);
      expect_ok((*runner)->step());
    }
    expect_ok((*runner)->flush());
    EXPECT_EQ(relay.worst, 0);
    const bool ends = comm.rank() == 0 || comm.rank() == schedule.rank_of.back();
    EXPECT_EQ(relay.compared > 0, ends);
  });
}

class Large : public testing::TestWithParam<std::string> {};

TEST_P(Large, MessagesArriveWholeInBoundedMemory) {
  constexpr size_t kCount = 300'000;
  Ranks ranks(3, patient(GetParam()));
  for (const auto& name : schedule_names()) {
    const Schedule schedule = *make(name, {3, 6});
    ranks.each([&](Communicator& comm) {
      Relay relay(schedule.stages(), kCount);
      auto runner = Runner::make(comm, schedule, relay, {.ahead = 2});
      ASSERT_TRUE(runner.ok()) << runner.status().to_string();
      for (int k = 0; k < 2; ++k) expect_ok((*runner)->step());
      expect_ok((*runner)->flush());
      EXPECT_EQ(relay.worst, 0);
      const bool ends = comm.rank() == 0 || comm.rank() == schedule.rank_of.back();
      EXPECT_EQ(relay.compared > 0, ends);
      // Of each activation held, the input and the gradient of the output; receives that are posted; and what has
      // been made and is not yet taken: the receivers' next `ahead` come at once.
      CheckReport report;
      expect_ok(check(schedule, {}, &report));
      const auto held = static_cast<size_t>(report.peak[static_cast<size_t>(comm.rank())]);
      const size_t unsent = 2 * static_cast<size_t>(schedule.micro_batches) * schedule.stages_of(comm.rank()).size();
      EXPECT_LE((*runner)->peak_bytes(), (2 * held + 2 + unsent) * kCount * sizeof(float)) << name;
    });
  }
}

TEST_P(Large, MessagesTravelAsCodes) {
  constexpr size_t kCount = 50'000;
  Ranks ranks(3, patient(GetParam()));
  const Schedule schedule = *make("zb-h1", {3, 4});
  ranks.each([&](Communicator& comm) {
    for (const char* codec : {"bf16", "int8"}) {
      Relay relay(schedule.stages(), kCount);
      const RunnerOptions options{.activations = *parse_codec(codec), .gradients = *parse_codec(codec)};
      auto runner = Runner::make(comm, schedule, relay, options);
      ASSERT_TRUE(runner.ok()) << runner.status().to_string();
      expect_ok((*runner)->step());
      expect_ok((*runner)->flush());
      EXPECT_LT(relay.worst, 2 * 1011 * error_bound(options.activations) + 1e-3) << codec;
      if (comm.rank() != 1) {
        EXPECT_GT(relay.worst, 0) << "nothing was encoded";
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Over, Large, testing::Values("loopback", "shm", "tcp"),
                         [](const auto& info) { return info.param; });

// ---- what goes wrong ----

// Layers that fail, or stop, at one action.
class Faulty final : public Stages {
 public:
  Faulty(int stages, Action at, std::function<Status()> act)
      : layers_(stages, Numbers::kReal), at_(at), act_(std::move(act)) {}
  Boundary boundary(int stage, int i) const override {
    Boundary b = layers_.boundary(stage, i);
    b.count += grow;
    return b;
  }
  Status forward(const Pass& p) override { return at(p, &Stages::forward); }
  Status backward_input(const Pass& p) override { return at(p, &Stages::backward_input); }
  Status backward_weight(const Pass& p) override { return at(p, &Stages::backward_weight); }
  size_t grow = 0;

 private:
  Status at(const Pass& pass, Status (Stages::*call)(const Pass&)) {
    if (act_ && pass.action == at_) RINGFOLD_TRY(act_());
    return (layers_.*call)(pass);
  }
  Layers<float> layers_;
  const Action at_;
  const std::function<Status()> act_;
};

// Runs steps until they fail; all ranks must have one verdict.
Verdict verdict_of(Ranks& ranks, const Schedule& schedule, const RunnerOptions& options,
                   const std::function<void(Communicator&, std::unique_ptr<Faulty>&)>& spoil) {
  std::vector<Verdict> verdicts(static_cast<size_t>(ranks.size()));
  ranks.each([&](Communicator& comm) {
    auto stages = std::make_unique<Faulty>(schedule.stages(), Action{}, nullptr);
    spoil(comm, stages);
    auto runner = Runner::make(comm, schedule, *stages, options);
    ASSERT_TRUE(runner.ok()) << runner.status().to_string();
    Status status;
    for (int k = 0; k < 20 && status.ok(); ++k) status = (*runner)->step();
    if (status.ok()) status = comm.barrier().wait();
    ASSERT_NE(status.verdict(), nullptr) << "rank " << comm.rank() << ": " << status.to_string();
    verdicts[static_cast<size_t>(comm.rank())] = *status.verdict();
    EXPECT_FALSE((*runner)->flush().ok());
  });
  for (const Verdict& v : verdicts) EXPECT_EQ(v, verdicts[0]) << v.to_string() << "\n" << verdicts[0].to_string();
  return verdicts[0];
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(Runner, AFailedActionEndsTheStepOnAllRanksWithItsRankStageAndMicroBatch) {
  for (const auto& name : schedule_names()) {
    const Schedule schedule = *make(name, {3, 6});
    const bool parts = name.starts_with("zb");
    Ranks ranks(3);
    for (const ActionKind kind : {ActionKind::kForward, ActionKind::kBackwardInput, ActionKind::kBackwardWeight}) {
      if (!parts && kind != ActionKind::kForward) continue;
      const Action bad{kind, 1, 3};
      Ranks fresh(3);
      const Verdict v = verdict_of(fresh, schedule, {}, [&](Communicator&, auto& stages) {
        stages =
            std::make_unique<Faulty>(schedule.stages(), bad, [] { return Status(Code::kIo, "the disk is full"); });
      });
      EXPECT_EQ(v.rank, 1) << v.to_string();
      EXPECT_EQ(v.code, Code::kAborted);
      EXPECT_TRUE(has(v.cause, to_string(bad)) && has(v.cause, "the disk is full")) << v.to_string();
    }
  }
}

TEST(Runner, ARankThatStandsStillIsNamedWithWhatTheOthersNeedOfIt) {
  for (const char* name : {"gpipe", "zb-v"}) {
    const Schedule schedule = *make(name, {3, 6});
    Ranks ranks(3);
    const Verdict v = verdict_of(ranks, schedule, {.timeout_s = 0.5}, [&](Communicator& comm, auto& stages) {
      if (comm.rank() != 1) return;
      stages = std::make_unique<Faulty>(schedule.stages(), Action{ActionKind::kForward, 1, 3}, [] {
        std::this_thread::sleep_for(std::chrono::seconds(2));
        return Status();
      });
    });
    EXPECT_EQ(v.rank, 1) << name << ": " << v.to_string();
    EXPECT_EQ(v.code, Code::kTimeout) << name << ": " << v.to_string();
    EXPECT_TRUE(has(v.cause, "of micro-batch") && has(v.cause, "stage")) << name << ": " << v.to_string();
  }
}

TEST(Runner, AProcessThatDiesIsNamed) {
  processes(
      3, patient("shm"),
      [](Communicator& comm) {
        const Schedule schedule = *make("zb-v", {3, 6});
        Faulty stages(schedule.stages(), {ActionKind::kBackwardInput, 1, 2}, [&]() -> Status {
          if (comm.rank() == 1) ::_exit(9);
          return {};
        });
        auto runner = Runner::make(comm, schedule, stages);
        ASSERT_TRUE(runner.ok());
        Status status = (*runner)->step();
        if (status.ok()) status = comm.barrier().wait();
        ASSERT_NE(status.verdict(), nullptr) << status.to_string();
        EXPECT_EQ(status.verdict()->rank, 1);
        EXPECT_EQ(status.code(), Code::kPeerLost);
        auto survivors = comm.reconfigure();
        ASSERT_TRUE(survivors.ok()) << survivors.status().to_string();
        run_rank<float>(*survivors, *make("1f1b", {2, 6}), 1);
      },
      1);
}

TEST(Runner, EndsThatDisagreeOnAShapeAreNamedWithTheMessage) {
  const Schedule schedule = *make("1f1b", {3, 6});
  Ranks ranks(3);
  const Verdict v = verdict_of(ranks, schedule, {.timeout_s = 10}, [](Communicator& comm, auto& stages) {
    if (comm.rank() == 2) stages->grow = 1;
  });
  EXPECT_EQ(v.code, Code::kMismatch) << v.to_string();
  EXPECT_TRUE(has(v.cause, "of micro-batch 0 from stage")) << v.to_string();
}

TEST(Runner, RanksWithOtherSchedulesOrCodecsAreRefusedByAll) {
  Ranks ranks(3);
  ranks.each([&](Communicator& comm) {
    Layers<float> layers(3, Numbers::kReal);
    auto other = Runner::make(comm, *make(comm.rank() == 2 ? "zb-h1" : "1f1b", {3, 6}), layers);
    EXPECT_EQ(other.status().code(), Code::kMismatch);
    EXPECT_TRUE(has(other.status().message(), "rank 2 has another schedule")) << other.status().to_string();
    RunnerOptions options;
    if (comm.rank() == 1) options.gradients = CodecKind::kBF16;
    auto codecs = Runner::make(comm, *make("1f1b", {3, 6}), layers, options);
    EXPECT_TRUE(has(codecs.status().message(), "rank 1 has other codecs")) << codecs.status().to_string();
    run_rank<float>(comm, *make("1f1b", {3, 6}), 1);  // nothing is broken
  });
}

TEST(Runner, RefusesWhatCannotRun) {
  Ranks ranks(2);
  Layers<double> layers(2, Numbers::kReal);
  Layers<float> four(4, Numbers::kReal);
  Communicator& comm = ranks[0];
  auto refused = [&](Schedule schedule, Stages& stages, const RunnerOptions& options, const std::string& text) {
    auto runner = Runner::make(comm, std::move(schedule), stages, options);
    ASSERT_FALSE(runner.ok()) << text;
    EXPECT_EQ(runner.status().code(), Code::kInvalid);
    EXPECT_TRUE(has(runner.status().message(), text)) << runner.status().message();
  };
  const Schedule good = *make("1f1b", {2, 4});
  refused(*make("1f1b", {3, 4}), layers, {}, "a schedule for 3 ranks on a communicator of 2");
  refused(good, layers, {.ahead = 0}, "ahead is 0");
  refused(good, layers, {.timeout_s = -1}, "timeout_s is -1");
  refused(good, layers, {.activations = CodecKind::kInt8}, "codecs are for f32; stage 0 hands on f64");
  Codec faster = CodecKind::kInt8;
  faster.when_faster = true;
  refused(good, four, {.gradients = faster}, "for collectives");
  Schedule bad = good;
  std::swap(bad.actions[0].front(), bad.actions[0].back());
  refused(bad, layers, {}, "order");
}

// ---- timelines ----

TEST(Timeline, HasEveryActionOfEveryRankByOneClock) {
  Ranks ranks(4);
  for (const auto& name : schedule_names()) {
    const Schedule schedule = *make(name, {4, 8});
    ranks.each([&](Communicator& comm) {
      Layers<float> layers(schedule.stages(), Numbers::kReal);
      auto runner = Runner::make(comm, schedule, layers);
      ASSERT_TRUE(runner.ok());
      for (int k = 0; k < 3; ++k) expect_ok((*runner)->step());
      EXPECT_EQ((*runner)->timeline(4).status().code(), Code::kInvalid);
      auto timing = (*runner)->timeline(2);
      ASSERT_TRUE(timing.ok()) << timing.status().to_string();
      size_t actions = 0;
      for (const auto& list : schedule.actions) actions += list.size();
      ASSERT_EQ(timing->spans.size(), 2 * actions);
      std::vector<std::vector<Span>> by_rank(4);
      for (const Span& span : timing->spans) by_rank[static_cast<size_t>(span.rank)].push_back(span);
      // In order on each rank, and nothing begins before what it needs has ended.
      std::map<std::tuple<size_t, bool, int, int>, double> ends;  // by step
      for (const auto& spans : by_rank) {
        double end = 0;
        for (size_t k = 0; k < spans.size(); ++k) {
          const auto& list = schedule.actions[static_cast<size_t>(spans[k].rank)];
          EXPECT_EQ(spans[k].action, list[k % list.size()]);
          EXPECT_GE(spans[k].begin, end);
          EXPECT_GE(spans[k].end, spans[k].begin);
          end = spans[k].end;
          const Action& a = spans[k].action;
          if (a.kind != ActionKind::kBackwardWeight)
            ends[{k / list.size(), a.kind != ActionKind::kForward, a.stage, a.micro_batch}] = end;
        }
      }
      for (const auto& spans : by_rank) {
        for (size_t k = 0; k < spans.size(); ++k) {
          const Action& a = spans[k].action;
          const size_t step = k / schedule.actions[static_cast<size_t>(spans[k].rank)].size();
          if (a.kind == ActionKind::kForward && a.stage > 0) {
            EXPECT_GE(spans[k].begin, (ends.at({step, false, a.stage - 1, a.micro_batch})));
          }
          if ((a.kind == ActionKind::kBackward || a.kind == ActionKind::kBackwardInput) &&
              a.stage + 1 < schedule.stages()) {
            EXPECT_GE(spans[k].begin, (ends.at({step, true, a.stage + 1, a.micro_batch})));
          }
        }
      }
    });
    if (HasFailure()) return;
  }
}

TEST(Timeline, KeepsTheLastStepsOfManyIfThatIsAskedFor) {
  const Schedule schedule = *make("1f1b", {2, 4});
  Ranks ranks(2);
  ranks.each([&](Communicator& comm) {
    Layers<float> layers(schedule.stages(), Numbers::kReal);
    auto runner = Runner::make(comm, schedule, layers, {.keep_steps = 3});
    ASSERT_TRUE(runner.ok());
    double begin = 0;
    for (int k = 0; k < 50; ++k) {
      if (k == 47) begin = base::seconds_of(base::Clock::now().time_since_epoch());
      expect_ok((*runner)->step());
    }
    EXPECT_EQ((*runner)->timeline(7).status().code(), Code::kInvalid) << "more than twice as many are kept";
    auto timing = (*runner)->timeline(3);
    ASSERT_TRUE(timing.ok()) << timing.status().to_string();
    EXPECT_EQ(timing->spans.size(), 3U * 2 * 8);
    for (const Span& span : timing->spans) {
      if (span.rank == comm.rank()) {
        EXPECT_GE(span.begin, begin) << "of an earlier step";
      }
    }
  });
}

TEST(Timeline, ClocksThatDifferAreBroughtTogether) {
  Ranks ranks(3);
  ranks.each([](Communicator& comm) {
    const double ahead = 1000.0 * comm.rank();  // seconds; a round trip is much shorter
    auto offset = clock_offset(
        comm, [&] { return base::seconds_of(base::Clock::now().time_since_epoch()) + ahead; }, true);
    ASSERT_TRUE(offset.ok()) << offset.status().to_string();
    EXPECT_NEAR(*offset, ahead, 1.0);
    auto one_host = clock_offset(comm, [] { return 0.0; });
    ASSERT_TRUE(one_host.ok());
    EXPECT_EQ(*one_host, 0);
  });
}

}  // namespace
}  // namespace ringfold::test
