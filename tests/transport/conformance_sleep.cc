// Sleepers are woken by what concerns them, and by no lost wake-up left asleep.
#include <poll.h>

#include <atomic>
#include <random>
#include <thread>

#include "tests/transport/conformance.h"

namespace ringfold::transport::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using Bytes = std::vector<std::byte>;

bool readable(int fd, milliseconds limit) {
  pollfd p{fd, POLLIN, 0};
  return poll(&p, 1, static_cast<int>(limit.count())) == 1;
}

// What an engine does when nothing moves. False: nobody woke it within 10 s, so a wake-up was lost.
bool sleep_once(Transport& transport) {
  bool woken = true;
  if (transport.prepare_to_sleep()) woken = readable(transport.wake_fd(), std::chrono::seconds(10));
  transport.awake();
  return woken;
}

// Passes up to 60 us, about what waking a thread takes, between finding nothing and going to sleep: so that peers'
// news falls into this gap often. A transport that does not look again in prepare_to_sleep() then hangs at once.
void dally(Transport& transport, uint64_t random) {
  const auto end = steady_clock::now() + std::chrono::nanoseconds(random % 60000);
  while (steady_clock::now() < end) transport.progress();
}

}  // namespace

TEST_P(Conformance, ASleeperIsWokenByAStop) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  if (rank(1).wake_fd() < 0) GTEST_SKIP() << "this transport is polled";
  Link* link = rank(1).open(0, 0);
  rank(0).open(1, 0);
  ASSERT_TRUE(pump_until([&] { return link->writable(); }));
  ASSERT_TRUE(pump_until([&] {
    if (rank(1).prepare_to_sleep()) return true;
    rank(1).awake();
    return false;
  }));
  rank(0).stop();
  EXPECT_TRUE(readable(rank(1).wake_fd(), std::chrono::seconds(5)));
  rank(1).awake();
  EXPECT_TRUE(pump_until([&] { return rank(1).failure() != nullptr; }, std::chrono::seconds(5)));
}

TEST_P(Conformance, ASleeperIsWokenByALaneThatItHasNotOpened) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  if (rank(1).wake_fd() < 0) GTEST_SKIP() << "this transport is polled";
  ASSERT_TRUE(pump_until([&] {
    if (rank(1).prepare_to_sleep()) return true;
    rank(1).awake();
    return false;
  }));
  rank(0).open(1, kMessageLane);
  // The sleeper does nothing but when it is woken: it would otherwise see the lane by its own polling.
  const auto end = steady_clock::now() + std::chrono::seconds(20);
  while (!rank(1).wanted(kMessageLane) && steady_clock::now() < end) {
    rank(0).progress();
    if (fabric_->pass_time) fabric_->pass_time();
    if (!readable(rank(1).wake_fd(), milliseconds(0))) continue;
    do {
      rank(1).awake();
      rank(1).progress();
    } while (!rank(1).wanted(kMessageLane) && !rank(1).prepare_to_sleep());
  }
  EXPECT_TRUE(rank(1).wanted(kMessageLane));
}

// An arrival that the owner has no use for yet must not keep it from sleeping: prepare_to_sleep() reports each event
// once.
TEST_P(Conformance, AnArrivalNobodyAsksForDoesNotForbidSleep) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  if (rank(1).wake_fd() < 0) GTEST_SKIP() << "this transport is polled";
  Link* from = rank(0).open(1, 0);
  Link* to = rank(1).open(0, 0);
  const Bytes data = pattern(1, 2, 50);
  const int sent = std::min(2, rank(0).capabilities().slots);
  for (int k = 0; k < sent; ++k) ASSERT_NO_FATAL_FAILURE(send(from, data));
  int slept = 0;
  EXPECT_TRUE(pump_until(
      [&] {
        const bool sleeps = rank(1).prepare_to_sleep() && !readable(rank(1).wake_fd(), milliseconds(30));
        rank(1).awake();
        slept += sleeps;
        return slept == 3;
      },
      std::chrono::seconds(5)));
  for (int k = 0; k < sent; ++k) EXPECT_EQ(receive(to).data, data);
}

// Two threads that sleep whenever they find nothing: a lost wake-up is a hang, which sleep_once() reports.
TEST_P(Conformance, NoWakeUpIsLostBetweenTwoSleepers) {
  if (!GetParam().threads) GTEST_SKIP() << "one thread drives this fabric";
  ASSERT_NO_FATAL_FAILURE(build(2));
  if (rank(0).wake_fd() < 0) GTEST_SKIP() << "this transport is polled";
  constexpr uint64_t kRounds = 3000;
  Link* links[2] = {rank(0).open(1, 0), rank(1).open(0, 0)};
  const size_t large = std::min<size_t>(30000, rank(0).capabilities().slot_bytes);
  auto size_of_round = [&](uint64_t k) { return k % 50 == 0 ? large : 8; };
  std::atomic<bool> lost = false;
  auto play = [&](int me) {
    Transport& transport = rank(me);
    Link* link = links[me];
    std::mt19937_64 random(static_cast<uint64_t>(me));
    std::vector<Bytes> sources(2);
    for (uint64_t k = 0; k < kRounds && !lost;) {
      transport.progress();
      Arrival arrival;
      const bool my_turn = k % 2 == static_cast<uint64_t>(me);
      if (my_turn && link->writable() && link->retired() == link->issued()) {
        sources[0] = pattern(0, k, size_of_round(k));
        link->put(sources[0].data(), sources[0].size(), nullptr);
        ++k;
      } else if (!my_turn && link->arrived(&arrival, nullptr, 0)) {
        Bytes data(arrival.bytes);
        if (arrival.remote) {
          if (!link->fetch(data.data()).ok()) lost = true;
        } else {
          std::memcpy(data.data(), arrival.data, data.size());
        }
        if (data != pattern(0, k, size_of_round(k))) lost = true;
        link->release();
        ++k;
      } else {
        dally(transport, random());
        if (!sleep_once(transport)) lost = true;
      }
    }
    // The last put may still be referred to.
    const auto end = steady_clock::now() + std::chrono::seconds(10);
    while (link->retired() != link->issued() && steady_clock::now() < end) transport.progress();
  };
  std::thread other(play, 1);
  play(0);
  other.join();
  EXPECT_FALSE(lost) << "a wake-up was lost or a message damaged";
}

// The sender sleeps for credit, the receiver for arrivals, and both at random moments.
TEST_P(Conformance, NoWakeUpIsLostWhenCreditRunsOut) {
  if (!GetParam().threads) GTEST_SKIP() << "one thread drives this fabric";
  ASSERT_NO_FATAL_FAILURE(build(2));
  if (rank(0).wake_fd() < 0) GTEST_SKIP() << "this transport is polled";
  constexpr uint64_t kMessages = 5000;
  std::vector<uint64_t> values(kMessages);  // a put may refer to its source until it is retired
  Link* from = rank(0).open(1, 4);
  Link* to = rank(1).open(0, 4);
  std::atomic<bool> lost = false;
  std::thread sender([&] {
    std::mt19937_64 random_sender(8);
    for (uint64_t k = 0; k < kMessages && !lost;) {
      rank(0).progress();
      if (from->writable()) {
        values[k] = k;
        from->put(reinterpret_cast<const std::byte*>(&values[k]), sizeof k, nullptr);
        ++k;
      } else {
        dally(rank(0), random_sender());
        if (!sleep_once(rank(0))) lost = true;
      }
    }
    const auto end = steady_clock::now() + std::chrono::seconds(10);
    while (from->retired() != kMessages && !lost && steady_clock::now() < end) rank(0).progress();
  });
  std::mt19937_64 random(9);
  for (uint64_t k = 0; k < kMessages && !lost;) {
    rank(1).progress();
    Arrival arrival;
    if (to->arrived(&arrival, nullptr, 0)) {
      uint64_t value = ~k;
      if (!arrival.remote && arrival.bytes == sizeof value) std::memcpy(&value, arrival.data, sizeof value);
      if (value != k) lost = true;
      to->release();
      ++k;
      if (random() % 64 == 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
    } else {
      dally(rank(1), random());
      if (!sleep_once(rank(1))) lost = true;
    }
  }
  sender.join();
  EXPECT_FALSE(lost) << "a wake-up was lost or a message damaged";
}

}  // namespace ringfold::transport::test
