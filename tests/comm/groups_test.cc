// Handles on calls, groups of calls, persistent calls, and groups of ranks.
#include <atomic>
#include <numeric>
#include <thread>

#include "tests/comm/ranks.h"

namespace ringfold::test {
namespace {

TEST(Work, IsSharedByItsCopiesAndCompletesOnce) {
  Ranks ranks(2);
  ranks.each([](Communicator& comm) {
    float x = 1, sum = 0;
    Work work = comm.all_reduce(&x, &sum, 1, DataType::kF32);
    Work copy = work, other;
    other = copy;
    expect_ok(copy);
    EXPECT_TRUE(work.test());
    EXPECT_TRUE(other.test());
    expect_ok(work);
    expect_ok(other.wait_for(0));
    EXPECT_EQ(sum, 2);
    work = Work();
    EXPECT_TRUE(work.test());
    expect_ok(work);
  });
}

TEST(Work, IsDrivenByTestAlone) {
  Ranks ranks(2);
  ranks.each([](Communicator& comm) {
    std::vector<float> data(500'000, 1);
    Work work = comm.all_reduce(data.data(), data.data(), data.size(), DataType::kF32);
    while (!work.test()) std::this_thread::yield();
    expect_ok(work);
    EXPECT_EQ(data.back(), 2);
  });
}

TEST(Work, WaitForGivesUpAndTheCallGoesOn) {
  Ranks ranks(2);
  std::atomic<bool> late{false};
  ranks.each([&](Communicator& comm) {
    float x = 1, sum = 0;
    if (comm.rank() == 1) {
      while (!late) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    Work work = comm.all_reduce(&x, &sum, 1, DataType::kF32);
    if (comm.rank() == 0) {
      const Status s = work.wait_for(0.02);
      EXPECT_EQ(s.code(), Code::kTimeout);
      EXPECT_FALSE(work.test());
      late = true;
    }
    expect_ok(work);
    EXPECT_EQ(sum, 2);
  });
}

TEST(Work, CallsBackOnceWithTheFinalStatus) {
  Ranks ranks(2);
  ranks.each([](Communicator& comm) {
    std::atomic<int> calls{0};
    float x = 1, sum = 0, again = 0;
    Work inner;
    Work work = comm.all_reduce(&x, &sum, 1, DataType::kF32);
    // A callback may make further calls.
    work.then([&](const Status& s) {
      expect_ok(s);
      inner = comm.all_reduce(&x, &again, 1, DataType::kF32);
      ++calls;
    });
    expect_ok(work);
    while (calls == 0) std::this_thread::yield();  // it may run on another thread
    expect_ok(inner);
    EXPECT_EQ(again, 2);
    work.then([&](const Status& s) {  // complete already
      expect_ok(s);
      ++calls;
    });
    EXPECT_EQ(calls, 2);
    Work(Status(Code::kInvalid, "no")).then([&](const Status& s) {
      EXPECT_EQ(s.code(), Code::kInvalid);
      ++calls;
    });
    EXPECT_EQ(calls, 3);
  });
}

TEST(Work, MayBeDroppedWithItsCallStillRunning) {
  Ranks ranks(3);
  ranks.each([](Communicator& comm) {
    std::vector<std::vector<float>> data(50, std::vector<float>(2000, 1));
    for (auto& d : data) (void)comm.all_reduce(d.data(), d.data(), d.size(), DataType::kF32);
    expect_ok(comm.barrier());  // calls take effect in order
    float x = 1, y = 0;
    expect_ok(comm.all_reduce(&x, &y, 1, DataType::kF32));
    for (auto& d : data) ASSERT_EQ(d.back(), 3);
  });
}

TEST(Work, MayOutliveItsCommunicator) {
  Work work;
  float x = 1, y = 0;
  {
    Ranks ranks(1);
    work = ranks[0].all_reduce(&x, &y, 1, DataType::kF32);
  }
  expect_ok(work);
  EXPECT_TRUE(work.test());
  {
    Ranks ranks(2);
    work = ranks[0].all_reduce(&x, &y, 1, DataType::kF32);  // rank 1 never calls
  }
  EXPECT_TRUE(work.test());
  EXPECT_EQ(work.wait().code(), Code::kAborted);
}

TEST(Work, AHundredInFlightCompleteInAnyOrderOfWaits) {
  Ranks ranks(4);
  ranks.each([](Communicator& comm) {
    std::vector<std::vector<int64_t>> data;
    std::vector<Work> works;
    for (int i = 0; i < 100; ++i) data.emplace_back(static_cast<size_t>(i * 53), comm.rank() + i);
    for (auto& d : data) works.push_back(comm.all_reduce(d.data(), d.data(), d.size(), DataType::kI64));
    for (size_t i = 0; i < works.size(); ++i)
      expect_ok(works[(i * 37 + static_cast<size_t>(comm.rank())) % works.size()]);
    for (int i = 0; i < 100; ++i) {
      for (int64_t v : data[static_cast<size_t>(i)]) ASSERT_EQ(v, 6 + 4 * i);
    }
  });
}

TEST(Group, CompletesWhenAllOfItsCallsHave) {
  Ranks ranks(3);
  ranks.each([](Communicator& comm) {
    const int n = comm.size(), me = comm.rank();
    std::vector<int> out(static_cast<size_t>(n)), in(static_cast<size_t>(n), -1);
    float x = 1, sum = 0;
    Group group;
    group.add(comm.all_reduce(&x, &sum, 1, DataType::kF32));
    for (int p = 0; p < n; ++p) {
      out[static_cast<size_t>(p)] = 10 * me + p;
      group.add(comm.send(&out[static_cast<size_t>(p)], 1, DataType::kI32, p));
      group.add(comm.recv(&in[static_cast<size_t>(p)], 1, DataType::kI32, p));
    }
    Work all = group.submit();
    std::atomic<int> calls{0};
    all.then([&](const Status& s) {
      expect_ok(s);
      ++calls;
    });
    expect_ok(Work::all({all, comm.barrier()}));
    while (calls == 0) std::this_thread::yield();
    EXPECT_EQ(calls, 1);
    EXPECT_TRUE(all.test());
    EXPECT_EQ(sum, 3);
    for (int p = 0; p < n; ++p) EXPECT_EQ(in[static_cast<size_t>(p)], 10 * p + me);
    expect_ok(group.wait());  // empty now
  });
}

TEST(Group, ReportsTheFirstOfItsCallsThatFailed) {
  Ranks ranks(1);
  Group group;
  group.add(ranks[0].barrier());
  group.add(ranks[0].send(nullptr, 0, DataType::kU8, 9));
  group.add(ranks[0].broadcast(nullptr, nullptr, 0, DataType::kU8, 7));
  const Status s = group.wait();
  EXPECT_EQ(s.code(), Code::kInvalid);
  EXPECT_NE(s.message().find("peer 9"), std::string::npos) << s.to_string();
}

TEST(Persistent, StartsAgainAndAgainOnTheSameBuffers) {
  Ranks ranks(3);
  ranks.each([](Communicator& comm) {
    const size_t count = 1000;
    const auto me = static_cast<size_t>(comm.rank());
    std::vector<int32_t> x(count), sum(count), all(3 * count), mine(count), from(count);
    auto reduce = comm.persistent_all_reduce(x.data(), sum.data(), count, DataType::kI32);
    auto gather = comm.persistent_all_gather(x.data(), all.data(), count, DataType::kI32);
    auto scatter = comm.persistent_reduce_scatter(all.data(), mine.data(), count, DataType::kI32, kMax);
    auto spread = comm.persistent_broadcast(x.data(), from.data(), count, DataType::kI32, 1);
    ASSERT_TRUE(reduce.ok() && gather.ok() && scatter.ok() && spread.ok());
    for (int round = 0; round < 20; ++round) {
      std::fill(x.begin(), x.end(), comm.rank() * 100 + round);
      expect_ok(reduce->start());
      expect_ok(gather->start());
      expect_ok(scatter->start());
      expect_ok(spread->start());
      ASSERT_EQ(sum[7], 300 + 3 * round);
      for (size_t r = 0; r < 3; ++r) ASSERT_EQ(all[r * count], static_cast<int32_t>(r) * 100 + round);
      ASSERT_EQ(mine[count - 1], static_cast<int32_t>(me) * 100 + round);
      ASSERT_EQ(from[0], 100 + round);
    }
  });
}

TEST(Persistent, RefusesWhatTheCallWouldRefuse) {
  Ranks ranks(1);
  float x = 0;
  EXPECT_EQ(ranks[0].persistent_all_reduce(nullptr, &x, 1, DataType::kF32).status().code(), Code::kInvalid);
  EXPECT_EQ(ranks[0].persistent_broadcast(&x, &x, 1, DataType::kF32, 2).status().code(), Code::kInvalid);
}

// The members of a split by `color` in the expected order must see each other.
void check_group(Communicator& comm, const std::vector<int>& parents, int parent_rank) {
  ASSERT_EQ(comm.size(), static_cast<int>(parents.size()));
  ASSERT_EQ(parents[static_cast<size_t>(comm.rank())], parent_rank);
  std::vector<int32_t> all(parents.size());
  expect_ok(comm.all_gather(&parent_rank, all.data(), 1, DataType::kI32));
  EXPECT_EQ(all, std::vector<int32_t>(parents.begin(), parents.end()));
}

class Split : public testing::TestWithParam<std::string> {};

TEST_P(Split, GroupsByColorAndOrdersByKeyThenRank) {
  Ranks ranks(6, patient(GetParam()));
  ranks.each([](Communicator& comm) {
    const int me = comm.rank();
    auto halves = comm.split(me % 2);
    ASSERT_TRUE(halves.ok()) << halves.status().to_string();
    check_group(*halves, me % 2 == 0 ? std::vector<int>{0, 2, 4} : std::vector<int>{1, 3, 5}, me);
    auto backward = comm.split(0, -me);
    ASSERT_TRUE(backward.ok());
    check_group(*backward, {5, 4, 3, 2, 1, 0}, me);
    auto keyed = comm.split(7, me / 3 == 0 ? 1 : 0);  // equal keys: by rank
    ASSERT_TRUE(keyed.ok());
    check_group(*keyed, {3, 4, 5, 0, 1, 2}, me);
    // All of them work at the same time as their parent.
    std::vector<int32_t> x(5000, 1), a(5000), b(5000), c(5000), d(5000);
    Work w = comm.all_reduce(x.data(), a.data(), x.size(), DataType::kI32);
    Work y = backward->all_reduce(x.data(), b.data(), x.size(), DataType::kI32);
    Work z = halves->all_reduce(x.data(), c.data(), x.size(), DataType::kI32);
    Work k = keyed->all_reduce(x.data(), d.data(), x.size(), DataType::kI32);
    for (Work* work : {&k, &z, &y, &w}) expect_ok(*work);
    EXPECT_EQ(a.back() + b.back() + c.back() + d.back(), 6 + 6 + 3 + 6);
  });
}

TEST_P(Split, MayLeaveRanksOutBeNestedAndBeOfOneRank) {
  Ranks ranks(5, patient(GetParam()));
  ranks.each([](Communicator& comm) {
    const int me = comm.rank();
    auto some = comm.split(me < 4 ? 3 : -1);
    ASSERT_TRUE(some.ok());
    if (me == 4) {
      EXPECT_EQ(some->impl(), nullptr);
    } else {
      auto pair = some->split(me / 2);
      ASSERT_TRUE(pair.ok());
      check_group(*pair, me < 2 ? std::vector<int>{0, 1} : std::vector<int>{2, 3}, me);
      auto alone = pair->split(pair->rank());
      ASSERT_TRUE(alone.ok());
      check_group(*alone, {me}, me);
      int x = me, y = -1;
      expect_ok(alone->send_recv(&x, 1, 0, &y, 1, 0, DataType::kI32));
      EXPECT_EQ(y, me);
    }
    expect_ok(comm.barrier());
  });
}

TEST_P(Split, OutlivesItsParent) {
  Ranks ranks(4, patient(GetParam()));
  ranks.each([](Communicator& comm) {
    const int me = comm.rank();
    auto pair = comm.split(me % 2);
    ASSERT_TRUE(pair.ok());
    comm = Communicator();
    check_group(*pair, {me % 2, me % 2 + 2}, me);
  });
}

// Whoever does not come because it has heard of the failure is not waited for. What was made before goes on.
TEST_P(Split, EndsWithItsCommunicator) {
  Ranks ranks(3, patient(GetParam()));
  std::atomic<int> have{0};
  ranks.each([&](Communicator& comm) {
    auto pair = comm.split(comm.rank() < 2 ? 0 : 1);
    ASSERT_TRUE(pair.ok());
    ++have;
    while (comm.rank() == 2 && have < 3) std::this_thread::yield();
    if (comm.rank() == 2) return comm.abort("tired of this");
    const Status status = comm.split(0).status();
    EXPECT_TRUE(status.code() == Code::kPeerLost || status.code() == Code::kAborted) << status.to_string();
    EXPECT_FALSE(comm.barrier().wait().ok());
    auto again = pair->split(0, -pair->rank());
    ASSERT_TRUE(again.ok()) << again.status().to_string();
    check_group(*again, {1, 0}, comm.rank());
  });
}

TEST_P(Split, MayBeReconfiguredWhenItsParentHasFailed) {
  Ranks ranks(3, patient(GetParam()));
  std::atomic<int> have{0};
  ranks.each([&](Communicator& comm) {
    auto child = comm.split(0, -comm.rank());
    ASSERT_TRUE(child.ok());
    ++have;
    while (have < 3) std::this_thread::yield();
    if (comm.rank() == 0) {
      comm.abort("tired of both");
      child->abort("tired of both");
    }
    EXPECT_FALSE(comm.barrier().wait().ok());
    EXPECT_FALSE(child->barrier().wait().ok());
    auto again = child->reconfigure();
    ASSERT_TRUE(again.ok()) << again.status().to_string();
    check_group(*again, {2, 1, 0}, comm.rank());
  });
}

TEST_P(Split, ASubsetEndsWithTheCommunicatorThatItIsToBeMadeOf) {
  Ranks ranks(3, patient(GetParam()));
  ranks.each([](Communicator& comm) {
    const std::vector<int> all = {0, 1, 2}, two = {1, 0};
    Communicator pair;
    if (comm.rank() < 2) {
      auto made = comm.subset(two);
      ASSERT_TRUE(made.ok()) << made.status().to_string();
      pair = std::move(*made);
    }
    (void)comm.barrier().wait();  // or whoever comes out of it first has ended it
    if (comm.rank() == 2) return comm.abort("tired of this");
    const Status status = comm.subset(all).status();
    EXPECT_TRUE(status.code() == Code::kPeerLost || status.code() == Code::kAborted) << status.to_string();
    auto again = pair.subset(two);
    ASSERT_TRUE(again.ok()) << again.status().to_string();
    check_group(*again, {0, 1}, comm.rank());  // turned twice
  });
}

// The ranks that are not named make no call, and are busy with another one meanwhile.
TEST_P(Split, ASubsetNeedsNobodyElse) {
  Ranks ranks(5, patient(GetParam()));
  ranks.each([](Communicator& comm) {
    const int me = comm.rank();
    float x = 1, sum = 0;
    Work all = comm.all_reduce(&x, &sum, 1, DataType::kF32);
    const std::vector<int> some = {3, 0, 4}, pair = {1, 4};
    for (int again = 0; again < 2; ++again) {
      for (const auto& list : {some, pair}) {
        if (std::find(list.begin(), list.end(), me) == list.end()) continue;
        auto made = comm.subset(list);
        ASSERT_TRUE(made.ok()) << made.status().to_string();
        check_group(*made, list, me);
      }
    }
    expect_ok(all);
    EXPECT_EQ(sum, 5);
    for (const auto& wrong : {std::vector<int>{}, {(me + 1) % 5}, {me, me}, {me, 5}, {-1, me}}) {
      auto made = comm.subset(wrong);
      EXPECT_EQ(made.status().code(), Code::kInvalid);
      EXPECT_NE(made.status().message().find("ranks of 0..4"), std::string::npos) << made.status().message();
    }
  });
}

TEST(Subset, NamesWhoDidNotComeAfterItsOwnTime) {
  Ranks ranks(3);
  ranks.each([](Communicator& comm) {
    if (comm.rank() == 2) return;
    auto made = comm.subset(std::vector<int>{0, 1, 2}, 0.2);
    EXPECT_EQ(made.status().code(), Code::kTimeout);
    EXPECT_NE(made.status().message().find('2'), std::string::npos) << made.status().message();
  });
}

INSTANTIATE_TEST_SUITE_P(Over, Split, testing::Values("loopback", "shm", "tcp"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace ringfold::test
