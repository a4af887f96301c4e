// Links that have no word in memory to look at are asked, for a moment.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "tests/exec/world.h"

namespace ringfold::test {
namespace {

// A link on which one message of 8 bytes has come, which it notices when it is asked for the 20th time.
class AskedLink : public transport::Link {
 public:
  uint64_t value = 77;
  int asks = 0;
  bool writable() override { return true; }
  void put(const std::byte*, size_t, const transport::Preamble*) override {}
  std::byte* reserve(size_t) override { return nullptr; }
  void commit(size_t, const transport::Preamble*) override {}
  uint64_t issued() const override { return 0; }
  uint64_t retired() override { return 0; }
  transport::Watch watch() override { return {.link = this}; }
  bool announced(transport::Arrival* arrival, size_t) override {
    if (++asks < 20) return false;
    arrival->bytes = sizeof value;
    arrival->preamble = &envelope_;
    return true;
  }
  bool arrived(transport::Arrival* arrival, std::byte*, size_t expected) override {
    if (!announced(arrival, expected)) return false;
    arrival->data = reinterpret_cast<const std::byte*>(&value);
    return true;
  }
  Status fetch(std::byte*) override { return {}; }
  void release() override { asks = 0; }

 private:
  const transport::Preamble envelope_{{5, sizeof value, 0x4d53ULL << 48 | static_cast<uint64_t>(DataType::kU64)}};
};

class AskedTransport final : public transport::Transport {
 public:
  explicit AskedTransport(AskedLink& link) : link_(link) {}
  std::string_view name() const override { return "asked"; }
  transport::Capabilities capabilities() const override { return {.slot_bytes = 64, .slots = 8}; }
  std::string address() const override { return {}; }
  Status add_peer(int, std::string_view) override { return {}; }
  transport::Link* open(int, int) override { return &link_; }
  bool wanted(int) const override { return false; }
  void progress() override {}
  const transport::Failures& failures() const override { return failures_; }
  bool prepare_to_sleep() override { return true; }
  void awake() override {}
  int wake_fd() const override { return -1; }
  void stop() override {}
  transport::Counters counters() const override { return {}; }

 private:
  AskedLink& link_;
  transport::Failures failures_;
};

// Rank 1 of 2, joined by `link`.
std::pair<std::shared_ptr<exec::Engine>, std::shared_ptr<exec::Domain>> asked_rank(AskedLink& link) {
  auto engine = std::make_shared<exec::Engine>(exec::Engine::Options{});
  std::vector<std::unique_ptr<transport::Transport>> transports;
  transports.push_back(std::make_unique<AskedTransport>(link));
  auto domain = std::make_shared<exec::Domain>(1, 2, std::move(transports), std::vector<int>{0, 0});
  engine->add(domain);
  return {engine, domain};
}

// Somebody else may have the processor for all of the moment that a receive asks for: then another one will do.
TEST(Engine, AShortReceiveAsksTheLinkForAMomentAndIsOver) {
  AskedLink link;
  const auto [engine, domain] = asked_rank(link);
  uint64_t got = 0;
  bool over = false;
  for (int attempts = 0; attempts < 100'000 && !over; ++attempts) {
    link.asks = 0;
    exec::Transfer receive{.peer = 0, .tag = 5, .format = {.type = DataType::kU64}, .bytes = sizeof got};
    receive.target = reinterpret_cast<std::byte*>(&got);
    exec::Engine::Hold hold(*engine);
    over = engine->attempt(hold, *domain, &receive);
  }
  EXPECT_TRUE(over);
  EXPECT_EQ(got, link.value);
  engine->stop();
}

// What is said to come and does not (a peer's large message that is still to be fetched) holds nobody else up.
TEST(Engine, AnArrivalThatIsOnlyAnnouncedIsAskedForNoLongerThanAMoment) {
  class StuckLink final : public AskedLink {
    bool announced(transport::Arrival* arrival, size_t) override {
      ++asks;
      arrival->bytes = 800;
      return true;
    }
    bool arrived(transport::Arrival*, std::byte*, size_t) override { return false; }
  };
  StuckLink link;
  const auto [engine, domain] = asked_rank(link);
  const Call call{.shape = {Collective::kAllReduce, 2}, .algorithm = "oneshot", .count = 100, .type = DataType::kF32};
  auto plan = bind_plan(call, *domain);
  ASSERT_TRUE(plan.ok()) << plan.status().to_string();
  const_cast<exec::Plan&>(**plan).find_short_moves();
  ASSERT_FALSE((*plan)->short_moves.empty());
  Buffers buffers(call, 1);
  {
    exec::Engine::Hold hold(*engine);
    auto run = domain->take_run();
    EXPECT_FALSE(
        engine->start(hold, *domain, run.get(), *plan, buffers.input(), buffers.output(), std::chrono::minutes(1)));
    EXPECT_LT(link.asks, 1000);
  }
  engine->abort(*domain, Status(Code::kAborted, "the test is over"));
  engine->stop();
}

}  // namespace
}  // namespace ringfold::test
