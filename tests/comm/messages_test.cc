// Messages through the public interface: any order, any source, tags, sizes, cycles.
#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "tests/comm/ranks.h"

namespace ringfold::test {
namespace {

// What rank `from` puts into its message number `number`.
std::vector<uint32_t> text_of(int from, int number, size_t count) {
  std::vector<uint32_t> data(count);
  std::iota(data.begin(), data.end(), static_cast<uint32_t>(from * 1'000'003 + number * 7919));
  return data;
}

class Messages : public testing::TestWithParam<std::string> {};

TEST_P(Messages, InAnyOrderOnBothSides) {
  const int n = 4, each = 20;
  Ranks ranks(n, patient(GetParam()));
  ranks.each([&](Communicator& comm) {
    const int me = comm.rank();
    std::mt19937 random(static_cast<uint32_t>(me));
    struct Job {
      bool send;
      int peer, number;
    };
    std::vector<Job> jobs;
    for (int peer = 0; peer < n; ++peer) {  // itself, too
      for (int i = 0; i < each; ++i) {
        jobs.push_back({true, peer, i});
        jobs.push_back({false, peer, i});
      }
    }
    std::shuffle(jobs.begin(), jobs.end(), random);
    auto count_of = [](int from, int to, int number) {
      return static_cast<size_t>((from * 31 + to * 17 + number * number * number) % 9001);
    };
    std::vector<std::vector<uint32_t>> data(jobs.size());
    std::vector<Work> works;
    for (size_t j = 0; j < jobs.size(); ++j) {
      const auto& job = jobs[j];
      if (job.send) {
        data[j] = text_of(me, job.number, count_of(me, job.peer, job.number));
        works.push_back(comm.send(data[j].data(), data[j].size(), DataType::kU32, job.peer, job.number));
      } else {
        data[j].resize(count_of(job.peer, me, job.number));
        works.push_back(comm.recv(data[j].data(), data[j].size(), DataType::kU32, job.peer, job.number));
      }
    }
    std::vector<size_t> order(jobs.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::shuffle(order.begin(), order.end(), random);
    for (size_t j : order) {
      expect_ok(works[j]);
      if (jobs[j].send) {
        EXPECT_EQ(works[j].source(), -1);
      } else {
        EXPECT_EQ(data[j], text_of(jobs[j].peer, jobs[j].number, data[j].size()));
        EXPECT_EQ(works[j].source(), jobs[j].peer);
      }
    }
  });
}

TEST_P(Messages, WithOneTagArriveInTheOrderInWhichTheyWereSent) {
  Ranks ranks(2, patient(GetParam()));
  ranks.each([](Communicator& comm) {
    const int count = 200;
    std::vector<int32_t> values(count);
    std::vector<Work> works;
    if (comm.rank() == 0) std::iota(values.begin(), values.end(), 0);
    for (auto& v : values) {
      works.push_back(comm.rank() == 0 ? comm.send(&v, 1, DataType::kI32, 1, -5)
                                       : comm.recv(&v, 1, DataType::kI32, 0, -5));
    }
    for (auto& w : works) expect_ok(w);
    for (int i = 0; i < count; ++i) EXPECT_EQ(values[static_cast<size_t>(i)], i);
  });
}

TEST_P(Messages, FromAnybodyTellTheirSource) {
  const int n = 4;
  Ranks ranks(n, patient(GetParam()));
  ranks.each([](Communicator& comm) {
    if (comm.rank() > 0) {
      const auto data = text_of(comm.rank(), 0, static_cast<size_t>(10));
      expect_ok(comm.send(data.data(), data.size(), DataType::kU32, 0, 3));
      return;
    }
    std::vector<bool> seen(n);
    for (int i = 1; i < n; ++i) {
      std::vector<uint32_t> data(10);
      Work work = comm.recv(data.data(), data.size(), DataType::kU32, Communicator::kAnySource, 3);
      expect_ok(work);
      const int source = work.source();
      ASSERT_GE(source, 1);
      EXPECT_FALSE(seen[static_cast<size_t>(source)]);
      seen[static_cast<size_t>(source)] = true;
      EXPECT_EQ(data, text_of(source, 0, 10));
    }
  });
}

TEST_P(Messages, OfNoBytesArriveLikeOthers) {
  Ranks ranks(2, patient(GetParam()));
  ranks.each([](Communicator& comm) {
    if (comm.rank() == 0) {
      expect_ok(comm.send(nullptr, 0, DataType::kF64, 1, 1));
    } else {
      Work work = comm.recv(nullptr, 0, DataType::kF64, 0, 1);
      expect_ok(work);
      EXPECT_EQ(work.source(), 0);
    }
  });
}

// The sender ends before a receive is posted; the receiver takes them last first.
TEST_P(Messages, MayComeUnexpectedAHundredAtATime) {
  Ranks ranks(2, patient(GetParam()));
  ranks.each([](Communicator& comm) {
    const int count = 100;
    if (comm.rank() == 0) {
      for (int i = 0; i < count; ++i) {
        const auto data = text_of(0, i, static_cast<size_t>(i * 37));
        expect_ok(comm.send(data.data(), data.size(), DataType::kU32, 1, i));
      }
      expect_ok(comm.barrier());
      return;
    }
    expect_ok(comm.barrier());
    for (int i = count; i-- > 0;) {
      std::vector<uint32_t> data(static_cast<size_t>(i * 37));
      expect_ok(comm.recv(data.data(), data.size(), DataType::kU32, 0, i));
      EXPECT_EQ(data, text_of(0, i, data.size()));
    }
  });
}

// Every rank sends 8 MiB to the next one and waits, with no receive posted anywhere.
TEST_P(Messages, InACycleOfBlockingLargeSendsDoNotDeadlock) {
  const int n = 3;
  const size_t count = 2 << 20;
  Ranks ranks(n, patient(GetParam()));
  ranks.each([&](Communicator& comm) {
    const int to = (comm.rank() + 1) % n, from = (comm.rank() + n - 1) % n;
    const auto data = text_of(comm.rank(), 1, count);
    expect_ok(comm.send(data.data(), count, DataType::kU32, to));
    std::vector<uint32_t> got(count);
    expect_ok(comm.recv(got.data(), count, DataType::kU32, from));
    EXPECT_TRUE(got == text_of(from, 1, count));
  });
}

TEST_P(Messages, SwapBothWaysAtOnceAndBetweenCollectives) {
  const int n = 3;
  Ranks ranks(n, patient(GetParam()));
  ranks.each([&](Communicator& comm) {
    const int to = (comm.rank() + 1) % n, from = (comm.rank() + n - 1) % n;
    for (int round = 0; round < 30; ++round) {
      const auto data = text_of(comm.rank(), round, 3000);
      std::vector<uint32_t> got(3000);
      uint32_t one = 1, sum = 0;
      Work swap = comm.send_recv(data.data(), data.size(), to, got.data(), got.size(), from, DataType::kU32, round);
      expect_ok(comm.all_reduce(&one, &sum, 1, DataType::kU32));
      expect_ok(swap);
      EXPECT_EQ(sum, static_cast<uint32_t>(n));
      EXPECT_EQ(got, text_of(from, round, 3000));
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Over, Messages, testing::Values("loopback", "shm", "tcp"),
                         [](const auto& info) { return info.param; });

TEST(MessageBuffer, WhenFullHoldsTheSenderUntilAReceiveTakesOne) {
  const Variable limit("RINGFOLD_MESSAGE_BUFFER", "64K");
  Ranks ranks(2, patient("shm"));
  ranks.each([](Communicator& comm) {
    const size_t count = 8 << 10;  // 32 KiB: the third has no room
    std::vector<std::vector<uint32_t>> data;
    std::vector<Work> works;
    for (int i = 0; i < 64; ++i)
      data.push_back(comm.rank() == 0 ? text_of(0, i, count) : std::vector<uint32_t>(count));
    if (comm.rank() == 0) {
      for (int i = 0; i < 64; ++i)
        works.push_back(comm.send(data[static_cast<size_t>(i)].data(), count, DataType::kU32, 1));
      const Status late = works.back().wait_for(0.2);
      EXPECT_EQ(late.code(), Code::kTimeout) << late.to_string();
      expect_ok(comm.barrier());
      for (auto& w : works) expect_ok(w);
    } else {
      expect_ok(comm.barrier());
      for (int i = 0; i < 64; ++i) {
        expect_ok(comm.recv(data[static_cast<size_t>(i)].data(), count, DataType::kU32, 0));
        EXPECT_TRUE(data[static_cast<size_t>(i)] == text_of(0, i, count));
      }
    }
  });
}

// Ranks wait for their calls on two communicators in opposite orders.
TEST(Waits, InDifferentOrdersOnDifferentCommunicatorsEnd) {
  const int n = 3;
  Ranks ranks(n);
  ranks.each([](Communicator& first) {
    auto second = first.split(0, -first.rank());
    ASSERT_TRUE(second.ok()) << second.status().to_string();
    for (int round = 0; round < 20; ++round) {
      const size_t count = 100'000;
      std::vector<float> a(count, 1), b(count, 2);
      Work one = first.all_reduce(a.data(), a.data(), count, DataType::kF32);
      Work two = second->all_reduce(b.data(), b.data(), count, DataType::kF32);
      if ((first.rank() + round) % 2 == 0) std::swap(one, two);
      expect_ok(one);
      expect_ok(two);
      EXPECT_EQ(a.back(), 3);
      EXPECT_EQ(b.back(), 6);
    }
  });
}

}  // namespace
}  // namespace ringfold::test
