// Ranks as processes that meet in a directory.
#include <signal.h>
#include <unistd.h>

#include <fstream>

#include "base/clock.h"
#include "tests/comm/ranks.h"

namespace ringfold::test {
namespace {

struct Way {
  std::string transport;
  int ranks;
};

class Processes : public testing::TestWithParam<Way> {};

TEST_P(Processes, AgreeOnEveryCollectiveAndMessage) {
  const auto [transport, n] = GetParam();
  processes(n, patient(transport), [&](Communicator& comm) {
    EXPECT_EQ(comm.size(), n);
    if (n > 1) {
      EXPECT_EQ(comm.transport_to((comm.rank() + 1) % n), transport == "auto" ? "shm" : transport);
    }
    for (int c = 0; c < kCollectives; ++c) {
      for (uint64_t count : {0, 1, 7, 1009, 300'007}) {
        for (bool in_place : {false, true}) {
          Call call;
          call.shape = {static_cast<Collective>(c), n, 0};
          if (has_root(call.shape.collective)) call.shape.root = n / 2;
          call.count = call.shape.collective == Collective::kBarrier ? 0 : count;
          call.type = count % 2 == 0 ? DataType::kI64 : DataType::kBF16;
          call.op = count % 2 == 0 ? kMax : kAvg;
          call.in_place = in_place && has_in_place_form(call.shape.collective);
          perform(comm, call);
        }
      }
    }
    const int to = (comm.rank() + 1) % n, from = (comm.rank() + n - 1) % n;
    std::vector<int32_t> out(2 << 20, comm.rank()), in(out.size());
    Work send = comm.send(out.data(), out.size(), DataType::kI32, to);
    expect_ok(send);
    expect_ok(comm.recv(in.data(), in.size(), DataType::kI32, from));
    EXPECT_EQ(in, std::vector<int32_t>(in.size(), from));
    auto part = comm.split(comm.rank() % 2);
    ASSERT_TRUE(part.ok()) << part.status().to_string();
    int x = 1, y = 0;
    expect_ok(part->all_reduce(&x, &y, 1, DataType::kI32));
    EXPECT_EQ(y, part->size());
    expect_ok(comm.barrier());
  });
}

INSTANTIATE_TEST_SUITE_P(Of, Processes,
                         testing::Values(Way{"auto", 1}, Way{"auto", 2}, Way{"shm", 4}, Way{"tcp", 4}, Way{"shm", 8}),
                         [](const auto& info) {
                           return info.param.transport + "_" + std::to_string(info.param.ranks);
                         });

// Buffers from ringfold::allocate are read in place by the peers.
TEST(SharedBuffers, GiveTheSameResults) {
  processes(3, patient("shm"), [](Communicator& comm) {
    const size_t count = 1'000'003;
    auto x = allocate_buffer<float>(count), y = allocate_buffer<float>(count);
    ASSERT_TRUE(x.ok() && y.ok());
    for (int round = 1; round < 4; ++round) {
      std::fill_n(x->get(), count, static_cast<float>(round * (comm.rank() + 1)));
      expect_ok(comm.all_reduce(x->get(), y->get(), count, DataType::kF32));
      EXPECT_EQ(std::count(y->get(), y->get() + count, static_cast<float>(6 * round)), static_cast<int64_t>(count));
      expect_ok(comm.broadcast(x->get(), x->get(), count, DataType::kF32, 1));
      EXPECT_EQ(std::count(x->get(), x->get() + count, static_cast<float>(2 * round)), static_cast<int64_t>(count));
    }
  });
}

bool is_stopped(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string number, name, state;
  return file >> number >> name >> state && state == "T";
}

// A rank that the system held up finds what its peer had put, gave up and wrote over since: before it hears of that,
// as its main thread runs first.
TEST(SharedBuffers, OfWhoGaveUpAreNobodysResult) {
  constexpr size_t count = 2000;
  for (const bool message : {false, true}) {
    processes(2, patient("shm"), [&](Communicator& comm) {
      auto x = allocate_buffer<int32_t>(count);
      ASSERT_TRUE(x.ok());
      std::fill_n(x->get(), count, comm.rank() == 0 ? 1 : 0);
      const int32_t mine = ::getpid();
      std::vector<int32_t> pids(2);
      expect_ok(comm.all_gather(&mine, pids.data(), 1, DataType::kI32));
      const auto call = [&](double timeout_s) {
        const CallOptions options{.timeout_s = timeout_s};
        if (!message) return comm.broadcast(x->get(), x->get(), count, DataType::kI32, 0, options);
        return comm.rank() == 0 ? comm.send(x->get(), count, DataType::kI32, 1, 0, options)
                                : comm.recv(x->get(), count, DataType::kI32, 0, 0, options);
      };
      if (comm.rank() == 0) {
        const auto end = base::Clock::now() + std::chrono::seconds(60);
        while (!is_stopped(pids[1])) ASSERT_LT(base::Clock::now(), end);
        EXPECT_FALSE(call(0.3).wait().ok());
        std::fill_n(x->get(), count, 2);
        ::kill(pids[1], SIGCONT);
      } else {
        ::raise(SIGSTOP);
        if (call(60).wait().ok()) {
          EXPECT_EQ(std::count(x->get(), x->get() + count, 1), static_cast<int64_t>(count));
        }
      }
    });
  }
}

class Killed : public testing::TestWithParam<std::string> {};

TEST_P(Killed, IsNamedBySurvivorsWhoThenGoOn) {
  processes(
      4, patient(GetParam()),
      [](Communicator& comm) {
        std::vector<float> x(100'000, 1), y(x.size());
        Status s;
        const auto begun = base::Clock::now();
        for (int i = 0; s.ok(); ++i) {
          if (comm.rank() == 2 && i == 5) ::kill(::getpid(), SIGKILL);
          s = comm.all_reduce(x.data(), y.data(), x.size(), DataType::kF32).wait();
        }
        EXPECT_LT(base::seconds_of(base::Clock::now() - begun), 10);
        ASSERT_NE(s.verdict(), nullptr) << s.to_string();
        EXPECT_EQ(s.verdict()->rank, 2) << s.to_string();
        EXPECT_EQ(s.code(), Code::kPeerLost) << s.to_string();
        auto next = comm.reconfigure();
        ASSERT_TRUE(next.ok()) << next.status().to_string();
        EXPECT_EQ(next->size(), 3);
        EXPECT_EQ(next->epoch(), 1U);
        for (int i = 0; i < 20; ++i) expect_ok(next->all_reduce(x.data(), y.data(), x.size(), DataType::kF32));
        EXPECT_EQ(y.back(), 3);
      },
      2);
}

INSTANTIATE_TEST_SUITE_P(Over, Killed, testing::Values("shm", "tcp"), [](const auto& info) { return info.param; });

}  // namespace
}  // namespace ringfold::test
