// What a short call waits for, for a moment: a word in memory, or a link that is asked because it has none.
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
std::pair<std::shared_ptr<exec::Engine>, std::shared_ptr<exec::Domain>> asked_rank(AskedLink& link,
                                                                                   exec::WaitPolicy wait = {}) {
  auto engine = std::make_shared<exec::Engine>(exec::Engine::Options{.wait = wait});
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

// Its message comes when somebody has begun to look for it.
class SeenLink final : public AskedLink {
 public:
  transport::Watch watch() override {
    word_ = 1;
    return {.word = &word_, .value = 1};
  }
  bool announced(transport::Arrival* arrival, size_t expected) override {
    asks = 100;
    return word_ == 1 && AskedLink::announced(arrival, expected);
  }

 private:
  uint64_t word_ = 0;
};

bool receive_at_once(exec::Engine& engine, exec::Domain& domain, uint64_t* got) {
  exec::Transfer receive{.peer = 0, .tag = 5, .format = {.type = DataType::kU64}, .bytes = sizeof *got};
  receive.target = reinterpret_cast<std::byte*>(got);
  exec::Engine::Hold hold(engine);
  return engine.attempt(hold, domain, &receive);
}

TEST(Engine, AShortReceiveOfARankThatTakesTurnsLetsOthersHaveATurnAndIsOver) {
  SeenLink link;
  const auto [engine, domain] = asked_rank(link, exec::WaitPolicy::for_host(false));
  uint64_t got = 0;
  EXPECT_TRUE(receive_at_once(*engine, *domain, &got));
  EXPECT_EQ(got, link.value);
  EXPECT_EQ(engine->counters(*domain).yields, 1U);
  engine->stop();
}

TEST(Engine, AMessageThatCameBeforeItsReceiveIsNotWaitedFor) {
  World world(2, {.wait = exec::WaitPolicy::for_host(false)});
  std::vector<uint64_t> data = {42};
  auto sent = world.rank(0).message(true, 1, 5, data);
  auto& rank = world.rank(1);
  auto other = rank.message(true, 0, 6, data);  // its first message: from now on it listens to others'
  for (int i = 0; i < 10 && rank.domain().messages().buffered_bytes() == 0; ++i) rank.engine->poll();
  ASSERT_EQ(rank.domain().messages().buffered_bytes(), sizeof(uint64_t));
  uint64_t got = 0;
  EXPECT_FALSE(receive_at_once(*rank.engine, rank.domain(), &got));  // it is in another place
  EXPECT_EQ(rank.engine->counters(rank.domain()).yields, 0U);
  std::vector<uint64_t> taken(1);
  rank.finish(*rank.message(false, 0, 5, taken));
  EXPECT_EQ(taken, data);
  world.rank(0).finish(*sent);
  rank.finish(*other);
}

}  // namespace
}  // namespace ringfold::test
