// What a failed call leaves behind: one verdict on all ranks, a dead communicator, and a new one of the survivors.
#include <fmt/format.h>

#include <array>
#include <atomic>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "tests/comm/ranks.h"

namespace ringfold::test {
namespace {

constexpr double kDeadline = 0.5;

Options brief(const std::string& transport = "") {
  Options options = patient(transport);
  options.timeout_s = 10;
  return options;
}

// Makes the calls, then expects that every rank's communicator has ended with one verdict, that what comes after ends
// the same way, and that the ranks then can form a new communicator that works.
Verdict fail(Ranks& ranks, const std::function<Work(Communicator&)>& call) {
  std::vector<std::optional<Verdict>> verdicts(static_cast<size_t>(ranks.size()));
  ranks.each([&](Communicator& comm) {
    const auto begun = base::Clock::now();
    // A rank whose part was over before the trouble began hears of it in a later call.
    Status s = call(comm).wait();
    for (int later = 0; s.ok() && later < 5; ++later) s = comm.barrier({.timeout_s = kDeadline}).wait();
    EXPECT_LT(base::seconds_of(base::Clock::now() - begun), 2 * kDeadline + 1.5);
    ASSERT_NE(s.verdict(), nullptr) << "rank " << comm.rank() << ": " << s.to_string();
    EXPECT_EQ(s.code(), s.verdict()->code);
    verdicts[static_cast<size_t>(comm.rank())] = *s.verdict();
    // Dead: everything after has the same outcome, at once.
    float x = 1, y = 0;
    for (const Status& later : {comm.status(), comm.all_reduce(&x, &y, 1, DataType::kF32).wait(),
                                comm.send(&x, 1, DataType::kF32, 0).wait(), comm.split(0).status()}) {
      EXPECT_EQ(later.to_string(), s.to_string());
    }
    auto next = comm.reconfigure();
    ASSERT_TRUE(next.ok()) << next.status().to_string();
    EXPECT_EQ(next->epoch(), comm.epoch() + 1);
    EXPECT_EQ(next->size(), comm.size());
    EXPECT_EQ(next->rank(), comm.rank());
    expect_ok(next->all_reduce(&x, &y, 1, DataType::kF32));
    EXPECT_EQ(y, static_cast<float>(comm.size()));
    comm = *std::move(next);
  });
  for (const auto& v : verdicts) {
    if (!v || !verdicts[0]) return {};
    EXPECT_EQ(*v, *verdicts[0]) << v->to_string() << "\n" << verdicts[0]->to_string();
  }
  return *verdicts[0];
}

struct Difference {
  std::string name;
  std::function<Work(Communicator&, float*, float*, bool odd)> call;
  std::vector<std::string> words;  // of the cause
};

const CallOptions kSoon{.timeout_s = kDeadline};

std::vector<Difference> differences() {
  using T = DataType;
  return {
      {"count",
       [](auto& c, auto* x, auto* y, bool odd) { return c.all_reduce(x, y, odd ? 99 : 100, T::kF32, kSum, kSoon); },
       {"x99", "x100"}},
      {"count_zero",
       [](auto& c, auto* x, auto* y, bool odd) { return c.all_reduce(x, y, odd ? 0 : 100, T::kF32, kSum, kSoon); },
       {"x0", "x100"}},
      {"large_count",
       [](auto& c, auto* x, auto* y, bool odd) { return c.all_reduce(x, y, odd ? 20'000 : 1, T::kF32, kSum, kSoon); },
       {"x20000", "x1"}},
      {"type",
       [](auto& c, auto* x, auto* y, bool odd) {
         return c.all_reduce(x, y, 64, odd ? T::kI32 : T::kF32, kSum, kSoon);
       },
       {"i32", "f32"}},
      {"operation",
       [](auto& c, auto* x, auto* y, bool odd) { return c.all_reduce(x, y, 64, T::kF32, odd ? kMax : kSum, kSoon); },
       {"max", "sum"}},
      {"scale",
       [](auto& c, auto* x, auto* y, bool odd) {
         return c.all_reduce(x, y, 64, T::kF32, ReduceOp::scaled_sum(odd ? 2 : 3), kSoon);
       },
       {"scaled_sum"}},
      {"root_of_a_broadcast",
       [](auto& c, auto* x, auto* y, bool odd) { return c.broadcast(x, y, 64, T::kF32, odd ? 2 : 0, kSoon); },
       {"root 2", "root 0"}},
      {"root_of_a_reduce",
       [](auto& c, auto* x, auto* y, bool odd) { return c.reduce(x, y, 64, T::kF32, kSum, odd ? 1 : 2, kSoon); },
       {"root 1", "root 2"}},
      {"root_of_a_gather",
       [](auto& c, auto* x, auto* y, bool odd) { return c.gather(x, y, 64, T::kF32, odd ? 1 : 0, kSoon); },
       {"root 1", "root 0"}},
      {"kind",
       [](auto& c, auto* x, auto* y, bool odd) {
         return odd ? c.all_gather(x, y, 64, T::kF32, kSoon) : c.all_reduce(x, y, 64, T::kF32, kSum, kSoon);
       },
       {"all_gather", "all_reduce"}},
      {"kind_barrier",
       [](auto& c, auto* x, auto* y, bool odd) {
         return odd ? c.barrier(kSoon) : c.all_to_all(x, y, 64, T::kF32, kSoon);
       },
       {"barrier", "all_to_all"}},
      {"sizes",
       [](auto& c, auto* x, auto* y, bool odd) {
         const std::vector<size_t> a = {1, 2, 3, 4}, b = {4, 3, 2, 1};
         return c.all_gather_v(x, y, odd ? a : b, T::kF32, kSoon);
       },
       {"all_gather_v"}},
  };
}

class Mismatch : public testing::TestWithParam<std::tuple<std::string, int>> {};

// One rank of four differs, whichever it is: it is named by all, and no rank's output was written.
TEST_P(Mismatch, IsTheSameVerdictOnEveryRankAndNamesTheOneThatDiffers) {
  const auto& [transport, which] = GetParam();
  const auto difference = differences()[static_cast<size_t>(which)];
  Ranks ranks(4, brief(transport));
  uint64_t sequence = 1;  // a communicator that was reconfigured has made one call already
  for (int culprit : {1, 3, 0}) {
    std::vector<std::vector<float>> x(4, std::vector<float>(20'000, 1)), y(4, std::vector<float>(20'000, -7));
    std::atomic<int> started{0};
    const Verdict v = fail(ranks, [&](Communicator& c) {
      const auto r = static_cast<size_t>(c.rank());
      // Last, so that there is a majority by then: of two ranks that differ nobody can tell which is wrong.
      while (c.rank() == culprit && started < 3) std::this_thread::yield();
      Work work = difference.call(c, x[r].data(), y[r].data(), c.rank() == culprit);
      ++started;
      return work;
    });
    EXPECT_EQ(v.code, Code::kMismatch) << v.to_string();
    EXPECT_EQ(v.rank, culprit) << v.to_string();
    EXPECT_EQ(v.sequence, std::exchange(sequence, 2)) << v.to_string();
    EXPECT_FALSE(v.host.empty());
    EXPECT_FALSE(v.operation.empty());
    for (const auto& word : difference.words) EXPECT_NE(v.cause.find(word), std::string::npos) << v.to_string();
  }
}

INSTANTIATE_TEST_SUITE_P(Of, Mismatch,
                         testing::Combine(testing::Values("loopback", "shm", "tcp"),
                                          testing::Range(0, static_cast<int>(differences().size()))),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" +
                                  differences()[static_cast<size_t>(std::get<1>(info.param))].name;
                         });

TEST(Messages, ThatDoNotFitTheirReceiveEndInOneVerdict) {
  Ranks ranks(3, brief());
  const Verdict v = fail(ranks, [](Communicator& c) {
    static std::array<std::array<float, 10>, 3> data;
    auto& mine = data[static_cast<size_t>(c.rank())];
    if (c.rank() == 0) return c.send(mine.data(), 10, DataType::kF32, 1, 5, kSoon);
    if (c.rank() == 1) return c.recv(mine.data(), 9, DataType::kF32, 0, 5, kSoon);
    return c.barrier(kSoon);
  });
  EXPECT_EQ(v.code, Code::kMismatch) << v.to_string();
  EXPECT_TRUE(v.cause.find("x10") != std::string::npos && v.cause.find("x9") != std::string::npos) << v.to_string();
}

class Deadline : public testing::TestWithParam<std::string> {};

TEST_P(Deadline, NamesTheRankThatNeverCalled) {
  Ranks ranks(4, brief(GetParam()));
  const Verdict v = fail(ranks, [](Communicator& c) {
    static std::array<float, 4> x, y;
    if (c.rank() == 2) {
      while (c.status().ok()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      return Work(c.status());
    }
    return c.all_reduce(&x[static_cast<size_t>(c.rank())], &y[static_cast<size_t>(c.rank())], 1, DataType::kF32, kSum,
                        kSoon);
  });
  EXPECT_EQ(v.code, Code::kTimeout) << v.to_string();
  EXPECT_EQ(v.rank, 2) << v.to_string();
  EXPECT_EQ(v.operation, "all_reduce") << v.to_string();
  EXPECT_EQ(v.sequence, 1U) << v.to_string();
}

TEST_P(Deadline, IsNotAwaitedWhenARankSkippedACall) {
  Ranks ranks(3, brief(GetParam()));
  const Verdict v = fail(ranks, [](Communicator& c) {
    static std::array<std::array<float, 2>, 3> x, y;
    const auto r = static_cast<size_t>(c.rank());
    Work first, second;
    if (c.rank() != 1) first = c.all_reduce(x[r].data(), y[r].data(), 1, DataType::kF32, kSum, kSoon);
    second = c.all_reduce(x[r].data(), y[r].data(), 2, DataType::kF32, kSum, kSoon);
    return Work::all({first, second});
  });
  EXPECT_EQ(v.rank, 1) << v.to_string();
  EXPECT_EQ(v.code, Code::kMismatch) << v.to_string();
}

TEST_P(Deadline, OfAReceiveThatNobodySendsNamesTheSender) {
  Ranks ranks(3, brief(GetParam()));
  const Verdict v = fail(ranks, [](Communicator& c) {
    static float x;
    if (c.rank() == 0) return c.recv(&x, 1, DataType::kF32, 2, 9, kSoon);
    while (c.status().ok()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return Work(c.status());
  });
  EXPECT_EQ(v.code, Code::kTimeout) << v.to_string();
  EXPECT_EQ(v.rank, 2) << v.to_string();
}

INSTANTIATE_TEST_SUITE_P(Over, Deadline, testing::Values("loopback", "shm", "tcp"),
                         [](const auto& info) { return info.param; });

TEST(Abort, EndsTheCallsOfAllRanksAndNamesTheOneThatAsked) {
  Ranks ranks(4, brief());
  const Verdict v = fail(ranks, [](Communicator& c) {
    if (c.rank() != 3) return c.barrier();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    c.abort("loss is NaN");
    return c.barrier();
  });
  EXPECT_EQ(v.code, Code::kAborted) << v.to_string();
  EXPECT_EQ(v.rank, 3) << v.to_string();
  EXPECT_NE(v.cause.find("loss is NaN"), std::string::npos) << v.to_string();
}

TEST(Abort, OfASplitLeavesItsParentAlone) {
  Ranks ranks(3, brief());
  ranks.each([](Communicator& comm) {
    auto part = comm.split(0);
    ASSERT_TRUE(part.ok());
    if (comm.rank() == 1) part->abort("enough");
    EXPECT_EQ(part->barrier().wait().code(), Code::kAborted);
    float x = 1, y = 0;
    expect_ok(comm.all_reduce(&x, &y, 1, DataType::kF32));
    EXPECT_EQ(y, 3);
  });
}

TEST(Abort, CallsBackWithTheVerdict) {
  Ranks ranks(2, brief());
  ranks.each([](Communicator& comm) {
    std::atomic<int> calls{0};
    Work work = comm.rank() == 0 ? comm.barrier() : Work();
    work.then([&](const Status& s) {
      EXPECT_EQ(s.ok(), comm.rank() == 1);
      ++calls;
    });
    if (comm.rank() == 1) comm.abort("stop");
    (void)work.wait();
    while (calls == 0) std::this_thread::yield();
  });
}

// A rank leaves while others still need it: they must not wait for the deadline.
TEST(Leaving, IsALossToThoseWhoStillWait) {
  Ranks ranks(3, brief());
  const auto begun = base::Clock::now();
  ranks.each([](Communicator& comm) {
    if (comm.rank() == 1) {
      comm = Communicator();
      return;
    }
    const Status s = comm.barrier().wait();
    ASSERT_NE(s.verdict(), nullptr) << s.to_string();
    EXPECT_EQ(s.verdict()->rank, 1) << s.to_string();
    EXPECT_EQ(s.code(), Code::kPeerLost) << s.to_string();
    auto next = comm.reconfigure();
    ASSERT_TRUE(next.ok()) << next.status().to_string();
    EXPECT_EQ(next->size(), 2);
    expect_ok(next->barrier());
  });
  EXPECT_LT(base::seconds_of(base::Clock::now() - begun), 5);
}

// Before anything was sent between the two: links that come about when they are needed then never do.
TEST(Leaving, BeforeTheFirstCallIsSeenToo) {
  std::vector<const char*> transports = {"loopback", "shm", "tcp"};
#if !defined(__SANITIZE_THREAD__)  // UCX's hooks in the system's calls and ThreadSanitizer's crash each other
  transports.push_back("ucx");
#endif
  for (const char* transport : transports) {
    auto ranks = Communicator::init_local(2, patient(transport));
    if (!ranks.ok() && transport == std::string("ucx")) continue;  // UCX is not installed
    ASSERT_TRUE(ranks.ok()) << ranks.status().to_string();
    ranks->back() = Communicator();
    const auto begun = base::Clock::now();
    const Status s = ranks->front().barrier().wait();
    ASSERT_NE(s.verdict(), nullptr) << transport << ": " << s.to_string();
    EXPECT_EQ(s.verdict()->rank, 1) << s.to_string();
    EXPECT_EQ(s.code(), Code::kPeerLost) << s.to_string();
    EXPECT_LT(base::seconds_of(base::Clock::now() - begun), 20) << transport << ": only the deadline ended it";
  }
}

// One after the other: the second must not go unseen behind the first.
TEST(Leaving, OfSeveralIsSeenToo) {
  for (const char* transport : {"shm", "tcp"}) {
    for (int first : {1, 2}) {
      Ranks ranks(3, brief(transport));
      const auto begun = base::Clock::now();
      ranks.each([&](Communicator& comm) {
        expect_ok(comm.barrier());
        if (comm.rank() != 0) {
          std::this_thread::sleep_for(std::chrono::milliseconds(comm.rank() == first ? 5 : 60));
          comm = Communicator();
          return;
        }
        char x = 0;
        const Status s = comm.recv(&x, 1, DataType::kU8, 3 - first).wait();
        EXPECT_EQ(s.code(), Code::kPeerLost) << s.to_string();
      });
      EXPECT_LT(base::seconds_of(base::Clock::now() - begun), 3) << transport << ", rank " << first << " first";
    }
  }
}

}  // namespace
}  // namespace ringfold::test
