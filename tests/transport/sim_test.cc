// The simulated network: the conformance suite in virtual time, that its faults are what they say, that a seed
// replays, and that the referee sees what breaks the rules.
#include <cstring>

#include "tests/transport/conformance.h"
#include "transports/sim/sim.h"

namespace ringfold::transport::test {
namespace {

Fabric simulated(int n, uint64_t seed, const sim::Options& options) {
  auto world = std::make_shared<sim::World>(seed, options);
  Fabric fabric;
  for (int r = 0; r < n; ++r) fabric.ranks.push_back(world->make(100 + r, 7));
  wire(fabric.ranks);
  fabric.pass_time = [world = world.get()] { world->step(); };
  fabric.keep = std::shared_ptr<void>(world.get(),
                                      [world](void*) { EXPECT_EQ(world->violations(), std::vector<std::string>{}); });
  return fabric;
}

INSTANTIATE_TEST_SUITE_P(
    Sim, Conformance,
    testing::Values(FabricKind{"seed1", [](int n) { return simulated(n, 1, {}); }, false},
                    FabricKind{"seed2_slow",
                               [](int n) {
                                 return simulated(
                                     n, 2, {.slots = 2, .max_delay = std::chrono::seconds(1), .bytes_per_us = 0.1});
                               },
                               false},
                    FabricKind{"seed3_one_slot",
                               [](int n) { return simulated(n, 3, {.slots = 1, .slot_bytes = 512}); }, false}),
    fabric_name);

struct TwoRanks {
  sim::World world;
  std::unique_ptr<Transport> a, b;
  Link *there, *here;
  explicit TwoRanks(uint64_t seed) : world(seed), a(world.make(0, 1)), b(world.make(1, 1)) {
    EXPECT_TRUE(a->add_peer(1, b->address()).ok());
    EXPECT_TRUE(b->add_peer(0, a->address()).ok());
    there = a->open(1, 0);
    here = b->open(0, 0);
    while (world.step()) {
    }
  }
};

TEST(Sim, ASeedReplays) {
  auto arrivals = [](uint64_t seed) {
    TwoRanks pair(seed);
    std::vector<int64_t> times;
    uint64_t value = 0;
    for (int k = 0; k < 4; ++k) pair.there->put(reinterpret_cast<std::byte*>(&value), 8, nullptr);
    Arrival arrival;
    while (pair.world.step()) {
      if (!pair.here->arrived(&arrival, nullptr, 0)) continue;
      times.push_back(pair.world.now().time_since_epoch().count());
      pair.here->release();
    }
    return times;
  };
  EXPECT_EQ(arrivals(5), arrivals(5));
  EXPECT_NE(arrivals(5), arrivals(6));
}

TEST(Sim, AKilledPeerIsNoticedWithinTheDetectionDelayAndNothingOfItMovesAfterwards) {
  TwoRanks pair(3);
  const auto killed = pair.world.now();
  pair.world.kill(0);
  EXPECT_FALSE(pair.world.runnable(0));
  EXPECT_FALSE(pair.there->writable());
  while (pair.b->failure() == nullptr && pair.world.step()) pair.b->progress();
  ASSERT_NE(pair.b->failure(), nullptr);
  EXPECT_EQ(pair.b->failure()->peer, 0);
  EXPECT_EQ(pair.b->failure()->status.code(), Code::kPeerLost);
  EXPECT_GE(pair.world.now() - killed, pair.world.options().min_detection);
  EXPECT_LE(pair.world.now() - killed, pair.world.options().max_detection);
}

TEST(Sim, WhatIsCutIsNoticedAtBothEndsAndBothLiveOn) {
  TwoRanks pair(6);
  pair.world.cut(1, 0);
  while (pair.world.step()) {
    pair.a->progress();
    pair.b->progress();
  }
  for (auto* end : {pair.a.get(), pair.b.get()}) {
    ASSERT_NE(end->failure(), nullptr);
    EXPECT_EQ(end->failure()->status.code(), Code::kIo);
  }
  EXPECT_FALSE(pair.there->writable() || pair.here->writable());
  bool got = false;
  pair.world.post(0, 1, std::chrono::milliseconds(1), [&] { got = true; });
  while (pair.world.step()) {
  }
  EXPECT_TRUE(got && pair.world.runnable(0));
}

TEST(Sim, AStoppedPeerFailsNothingAndGetsItsMessagesWhenItResumes) {
  TwoRanks pair(4);
  pair.world.stop(1);
  EXPECT_FALSE(pair.world.runnable(1));
  bool got = false;
  pair.world.post(0, 1, std::chrono::milliseconds(1), [&] { got = true; });
  while (pair.world.step()) pair.a->progress();
  EXPECT_EQ(pair.a->failure(), nullptr);
  EXPECT_FALSE(got);
  pair.world.resume(1);
  EXPECT_TRUE(got);
  EXPECT_TRUE(pair.world.runnable(1));
}

TEST(Sim, ASlowPeerIsBusyAfterItsTurn) {
  TwoRanks pair(5);
  pair.world.slow(1, std::chrono::milliseconds(5));
  int busy = 0;
  for (int k = 0; k < 10; ++k) {
    pair.world.ran(1);
    busy += !pair.world.runnable(1);
    while (pair.world.step()) {
    }
    EXPECT_TRUE(pair.world.runnable(1));
  }
  EXPECT_GE(busy, 8);
}

TEST(Sim, TheRefereeSeesAChangedSource) {
  bool seen = false;
  for (uint64_t seed = 1; seed < 20; ++seed) {  // not when the put was copied
    TwoRanks pair(seed);
    uint64_t value = 1;
    pair.there->put(reinterpret_cast<std::byte*>(&value), 8, nullptr);
    value = 2;
    while (pair.world.step()) {
    }
    Arrival arrival;
    ASSERT_TRUE(pair.here->arrived(&arrival, nullptr, 0));
    pair.here->release();
    seen |= !pair.world.violations().empty();
  }
  EXPECT_TRUE(seen);
}

TEST(Sim, TheRefereeSeesAPutWithoutCreditAndAChangedLanding) {
  TwoRanks pair(7);
  for (int k = 0; k < 5; ++k) pair.there->put(nullptr, 0, nullptr);
  ASSERT_EQ(pair.world.violations().size(), 1u);
  EXPECT_NE(pair.world.violations()[0].find("credit"), std::string::npos);
  std::byte landing[8];
  Arrival arrival;
  pair.here->arrived(&arrival, landing, 8);
  pair.here->arrived(&arrival, nullptr, 0);
  EXPECT_EQ(pair.world.violations().size(), 2u);
}

}  // namespace
}  // namespace ringfold::transport::test
