// What every Control promises, over sockets and in memory alike.
#include "comm/control.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

#include "comm/rendezvous.h"

namespace ringfold::comm {
namespace {

using base::Clock;
using base::Deadline;
using std::chrono::milliseconds;
using std::chrono::seconds;
using Controls = std::vector<std::unique_ptr<Control>>;

class AnyControl : public testing::TestWithParam<std::string> {
 protected:
  Controls make(int n) {
    Controls controls(static_cast<size_t>(n));
    if (GetParam() == "local") {
      hub_ = std::make_unique<LocalHub>(n);
      for (int r = 0; r < n; ++r) controls[r] = hub_->control(r);
      return controls;
    }
    const auto key = *base::Key::generate();
    auto server = RendezvousServer::start({"127.0.0.1", 0, 0, n, false}, key);
    std::vector<std::thread> threads;
    for (int r = 0; r < n; ++r) {
      threads.emplace_back([&, r] {
        Launch launch;
        launch.rank = r;
        launch.size = n;
        launch.rendezvous = (*server)->address();
        auto control = Control::connect(launch, Config(), key, Deadline::after(seconds(60)));
        ASSERT_TRUE(control.ok()) << control.status().message();
        controls[r] = *std::move(control);
      });
    }
    for (auto& thread : threads) thread.join();
    return controls;
  }
  std::unique_ptr<LocalHub> hub_;
};

// Collects what a topic brings.
struct Listener {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::string> lines;

  void add(std::string line) {
    std::lock_guard lock(mutex);
    lines.push_back(std::move(line));
    changed.notify_all();
  }
  void attach(Control& control, const std::string& topic) {
    control.subscribe(
        topic, [this](int from, std::string_view bytes) { add(fmt::format("{}:{}", from, bytes)); },
        [this](int peer, const Status& why) { add(fmt::format("lost {}: {}", peer, why.message())); });
  }
  std::vector<std::string> wait_for(size_t count) {
    std::unique_lock lock(mutex);
    changed.wait_for(lock, seconds(20), [&] { return lines.size() >= count; });
    return lines;
  }
};
using Lines = std::vector<std::string>;

std::vector<int> range(int n) {
  std::vector<int> ranks(static_cast<size_t>(n));
  for (int r = 0; r < n; ++r) ranks[r] = r;
  return ranks;
}

TEST_P(AnyControl, PeersKnowEachOther) {
  auto controls = make(3);
  for (int r = 0; r < 3; ++r) {
    EXPECT_EQ(controls[r]->rank(), r);
    EXPECT_EQ(controls[r]->size(), 3);
    for (int p = 0; p < 3; ++p) {
      const auto& peer = controls[r]->peer(p);
      EXPECT_EQ(peer.rank, p);
      EXPECT_EQ(peer.pid, ::getpid());
      EXPECT_FALSE(peer.host.empty());
      EXPECT_EQ(peer.host_id, controls[0]->peer(0).host_id);
      EXPECT_EQ(peer.address, "127.0.0.1");  // ranks on one host use loopback
      EXPECT_EQ(peer.my_address, "127.0.0.1");
    }
    EXPECT_EQ(controls[r]->job(), controls[0]->job());
  }
}

TEST_P(AnyControl, ExchangesGatherInTheOrderOfTheListSeveralAtOnce) {
  auto controls = make(4);
  std::vector<std::thread> threads;
  for (int r = 0; r < 4; ++r) {
    for (const std::string key : {"a", "b"}) {
      threads.emplace_back([&, r, key] {
        const std::vector<int> members = key == "a" ? std::vector<int>{0, 1, 2, 3} : std::vector<int>{3, 1};
        if (key == "b" && r % 2 == 0) return;
        for (int i = 0; i < 20; ++i) {
          auto blobs =
              controls[r]->exchange(key, members, fmt::format("{}{}{}", key, r, i), Deadline::after(seconds(20)));
          ASSERT_TRUE(blobs.ok()) << blobs.status().message();
          for (size_t m = 0; m < members.size(); ++m)
            EXPECT_EQ((*blobs)[m], fmt::format("{}{}{}", key, members[m], i));
        }
      });
    }
  }
  for (auto& thread : threads) thread.join();
}

TEST_P(AnyControl, AnExchangeThatSomebodyDoesNotJoinNamesHim) {
  auto controls = make(3);
  auto one = [&](int r) { return controls[r]->exchange("k", range(3), "x", Deadline::after(milliseconds(200))); };
  auto other = std::async(std::launch::async, one, 2);
  auto result = one(0);
  EXPECT_EQ(result.status().code(), Code::kTimeout);
  EXPECT_TRUE(result.status().message().starts_with("rank 1 of 3 did not join \"k\" within 0.2"))
      << result.status().message();
  EXPECT_EQ(other.get().status().message().substr(0, 14), "rank 1 of 3 di");
  EXPECT_EQ(controls[0]->exchange("k", std::vector<int>{1, 2}, "x", Deadline()).status().code(), Code::kInvalid);
}

TEST_P(AnyControl, AnExchangeFailsAtOnceWhenAMemberLeaves) {
  auto controls = make(3);
  auto begin = Clock::now();
  auto waiting = std::async(std::launch::async,
                            [&] { return controls[0]->exchange("k", range(3), "x", Deadline::after(seconds(30))); });
  controls[2].reset();
  auto result = waiting.get();
  EXPECT_LT(Clock::now() - begin, seconds(10));
  EXPECT_EQ(result.status().code(), Code::kPeerLost);
  EXPECT_NE(result.status().message().find("rank 2 on "), std::string::npos);
  EXPECT_NE(result.status().message().find("left the job"), std::string::npos);
  EXPECT_TRUE(controls[0]->has_left(2));
  EXPECT_FALSE(controls[0]->alive(2).ok());
  EXPECT_TRUE(controls[0]->alive(1).ok());
  // The others go on.
  const std::vector<int> rest = {0, 1};
  auto one = std::async(std::launch::async,
                        [&] { return controls[1]->exchange("l", rest, "y", Deadline::after(seconds(20))); });
  EXPECT_TRUE(controls[0]->exchange("l", rest, "x", Deadline::after(seconds(20))).ok());
  EXPECT_TRUE(one.get().ok());
}

// Of a communicator, and of those that are made of it; not of those that were.
TEST_P(AnyControl, ExchangesEndWithTheirCommunicatorForWhoeverStillWaits) {
  auto controls = make(2);
  const auto both = range(2);
  for (const char* key :
       {"split/a.0/0", "open/a.0/1/x", "wire/a.0/0:1.0/shm", "figures/a.0/0:1.0", "wire/a.0/3:[0,2].0/shm"}) {
    auto control = make(2);
    auto waiting = std::async(std::launch::async,
                              [&] { return control[0]->exchange(key, both, "x", Deadline::after(seconds(300))); });
    control[0]->end_exchanges_of("a.0");
    const Status status = waiting.get().status();
    EXPECT_EQ(status.code(), Code::kPeerLost) << status.to_string();
    EXPECT_NE(status.message().find(key), std::string::npos) << status.message();
    // For good: whom it would wait for will not come.
    EXPECT_EQ(control[0]->exchange(key, both, "x", Deadline::after(seconds(300))).status().code(), Code::kPeerLost);
  }
  for (auto& control : controls) control->end_exchanges_of("a.0");
  for (const char* key : {"split/a.1/0", "split/a.01/0", "split/a.0/0:1.0/0", "open/a.0/0:1.0/1/x",
                          "wire/a.0/0:1.0/2:0.0/shm", "wire/a.0/0:1~7f.1/shm", "figures/a.0/0:1~7f.1",
                          "nvlink/a.0/0:1.0/addresses", "ready/a.0/0:1.0", "guests/b/a.0/0"}) {
    auto other = std::async(std::launch::async,
                            [&] { return controls[1]->exchange(key, both, "y", Deadline::after(seconds(60))); });
    EXPECT_TRUE(controls[0]->exchange(key, both, "x", Deadline::after(seconds(60))).ok()) << key;
    EXPECT_TRUE(other.get().ok()) << key;
  }
}

TEST_P(AnyControl, MessagesArriveInOrderAlsoThoseFromBeforeTheSubscription) {
  auto controls = make(2);
  for (int i = 0; i < 100; ++i) controls[1]->send(0, "t", fmt::format("{}", i));
  controls[1]->send(0, "other", "not for t");
  std::this_thread::sleep_for(milliseconds(50));
  Listener listener;
  listener.attach(*controls[0], "t");
  for (int i = 100; i < 200; ++i) controls[1]->send(0, "t", fmt::format("{}", i));
  auto lines = listener.wait_for(200);
  ASSERT_EQ(lines.size(), 200u);
  for (int i = 0; i < 200; ++i) EXPECT_EQ(lines[i], fmt::format("1:{}", i));
  controls[0]->unsubscribe("t");
}

TEST_P(AnyControl, LargeAndEmptyMessagesArriveWhole) {
  auto controls = make(2);
  Listener listener;
  listener.attach(*controls[0], "t");
  const std::string large(5 << 20, 'x');
  controls[1]->send(0, "t", large);
  controls[1]->send(0, "t", "");
  controls[0]->send(0, "t", "to myself");
  auto lines = listener.wait_for(3);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_TRUE(std::count(lines.begin(), lines.end(), "1:" + large) == 1);
  EXPECT_TRUE(std::count(lines.begin(), lines.end(), "1:") == 1);
  EXPECT_TRUE(std::count(lines.begin(), lines.end(), "0:to myself") == 1);
  controls[0]->unsubscribe("t");
}

TEST_P(AnyControl, ALossComesAfterTheLastMessageAndToLateSubscribersToo) {
  auto controls = make(3);
  Listener early, late;
  early.attach(*controls[0], "early");
  controls[2]->send(0, "early", "last words");
  controls[2]->send(0, "late", "for later");
  controls[2].reset();
  EXPECT_EQ(early.wait_for(2), (Lines{"2:last words", "lost 2: left the job"}));
  late.attach(*controls[0], "late");
  EXPECT_EQ(late.wait_for(2), (Lines{"2:for later", "lost 2: left the job"}));
  controls[0]->send(2, "early", "into the void");
  controls[0]->unsubscribe("early");
  controls[0]->unsubscribe("late");
}

TEST_P(AnyControl, UnsubscribeWaitsForTheRunningCallbackAndDropsTheRest) {
  auto controls = make(2);
  std::atomic<int> begun{0}, ended{0};
  controls[0]->subscribe("t",
                         [&](int, std::string_view) {
                           ++begun;
                           std::this_thread::sleep_for(milliseconds(100));
                           ++ended;
                         },
                         {});
  for (int i = 0; i < 50; ++i) controls[1]->send(0, "t", "x");
  while (begun == 0) std::this_thread::sleep_for(milliseconds(1));
  controls[0]->unsubscribe("t");
  EXPECT_EQ(begun, ended);
  const int seen = begun;
  std::this_thread::sleep_for(milliseconds(150));
  EXPECT_EQ(begun, seen);
}

TEST_P(AnyControl, ACallbackMaySendSubscribeAndUnsubscribe) {
  auto controls = make(2);
  Listener listener;
  listener.attach(*controls[1], "answer");
  Control& zero = *controls[0];
  zero.subscribe("ask",
                 [&](int from, std::string_view bytes) {
                   zero.send(from, "answer", fmt::format("{}!", bytes));
                   zero.subscribe(
                       "more",
                       [&zero](int who, std::string_view b) { zero.send(who, "answer", fmt::format("more {}", b)); },
                       {});
                   zero.unsubscribe("ask");
                 },
                 {});
  controls[1]->send(0, "ask", "once");
  controls[1]->send(0, "ask", "twice");
  controls[1]->send(0, "more", "x");
  EXPECT_EQ(listener.wait_for(2), (Lines{"0:once!", "0:more x"}));
  zero.unsubscribe("more");
  controls[1]->unsubscribe("answer");
}

TEST_P(AnyControl, TimedTasksRunInTimeOnTheControlThreadUnlessUnsubscribed) {
  auto controls = make(2);
  Listener listener;
  listener.attach(*controls[0], "t");
  const auto begin = Clock::now();
  std::atomic<bool> forgotten{false};
  controls[0]->run_at("t", begin + milliseconds(60), [&] { listener.add("second"); });
  controls[0]->run_at("t", begin + milliseconds(30), [&] { listener.add("first"); });
  controls[0]->run_at("t", begin + milliseconds(120), [&] { forgotten = true; });
  EXPECT_EQ(listener.wait_for(2), (Lines{"first", "second"}));
  EXPECT_GE(Clock::now() - begin, milliseconds(60));
  controls[0]->unsubscribe("t");
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_FALSE(forgotten);
}

INSTANTIATE_TEST_SUITE_P(Kinds, AnyControl, testing::Values("local", "mesh"),
                         [](const auto& info) { return info.param; });

TEST(LocalHub, AKilledRankIsLostToTheOthersAndSilent) {
  LocalHub hub(3);
  Controls controls(3);
  for (int r = 0; r < 3; ++r) controls[r] = hub.control(r);
  Listener listener;
  listener.attach(*controls[0], "t");
  hub.kill(1);
  controls[1]->send(0, "t", "from the grave");
  EXPECT_EQ(listener.wait_for(1), (Lines{"lost 1: its process ended or closed the connection"}));
  EXPECT_FALSE(controls[2]->has_left(1));
  auto result = controls[2]->exchange("k", range(3), "x", Deadline::after(seconds(20)));
  EXPECT_EQ(result.status().code(), Code::kPeerLost);
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_EQ(listener.lines.size(), 1u);
  controls[0]->unsubscribe("t");
}

}  // namespace
}  // namespace ringfold::comm
