// Several threads of one rank: each with a communicator of its own, and all on one.
#include <sched.h>

#include <atomic>
#include <future>
#include <mutex>
#include <thread>

#include "tests/comm/ranks.h"

namespace ringfold::test {
namespace {

void together(int threads, const std::function<void(int)>& play) {
  std::vector<std::thread> all;
  for (int t = 0; t < threads; ++t) all.emplace_back([&play, t] { play(t); });
  for (auto& t : all) t.join();
}

// Runs this thread only on a processor that nobody else wants.
void give_way() {
  const sched_param none{};
  sched_setscheduler(0, SCHED_IDLE, &none);
}

class Threads : public testing::TestWithParam<std::string> {
 protected:
  static Options options() {
    Options options = patient(GetParam() == "background" ? "" : GetParam());
    options.background = GetParam() == "background";
    return options;
  }
};

TEST_P(Threads, EachWithACommunicatorOfItsOwnDoNotDisturbEachOther) {
  const int threads = 4, n = 3;
  Ranks ranks(n, options());
  ranks.each([&](Communicator& comm) {
    std::vector<Communicator> own;
    for (int t = 0; t < threads; ++t) {
      auto part = comm.split(0, t % 2 == 0 ? comm.rank() : -comm.rank());
      ASSERT_TRUE(part.ok());
      own.push_back(*std::move(part));
    }
    together(threads, [&](int t) {
      Communicator& c = own[static_cast<size_t>(t)];
      for (int i = 0; i < 60; ++i) {
        std::vector<int32_t> x(static_cast<size_t>(1 + i * i * 7), t + i), y(x.size());
        expect_ok(c.all_reduce(x.data(), y.data(), x.size(), DataType::kI32));
        ASSERT_EQ(y.front(), n * (t + i));
        ASSERT_EQ(y.back(), n * (t + i));
        int out = 100 * t + c.rank(), in = -1;
        expect_ok(c.send_recv(&out, 1, (c.rank() + 1) % n, &in, 1, (c.rank() + n - 1) % n, DataType::kI32));
        ASSERT_EQ(in, 100 * t + (c.rank() + n - 1) % n);
      }
    });
  });
}

// Whoever completes the call: a waiter, the background thread, or the one that hears of another rank's end.
TEST_P(Threads, ACallbackMayDropTheLastHandle) {
  for (int i = 0; i < 10; ++i) {
    auto ranks = Communicator::init_local(2, options());
    ASSERT_TRUE(ranks.ok());
    auto first = std::make_shared<Communicator>(std::move(ranks->front())),
         second = std::make_shared<Communicator>(std::move(ranks->back()));
    ranks->clear();
    const auto perform = [](std::shared_ptr<Communicator> comm) {
      std::vector<float> data(1000, 1);
      std::promise<Status> called;
      Work work = comm->all_reduce(data.data(), data.data(), data.size(), DataType::kF32);
      work.then([comm, &called](const Status& status) mutable {
        comm.reset();
        called.set_value(status);
      });
      comm.reset();
      const Status status = work.wait();
      EXPECT_EQ(called.get_future().get().ok(), status.ok());
      return status;
    };
    std::thread other([&, second = std::move(second)]() mutable {
      if (i % 2 == 0) expect_ok(perform(std::move(second)));
    });
    const Status status = perform(std::move(first));
    EXPECT_EQ(status.ok(), i % 2 == 0) << status.to_string();
    other.join();
  }
}

// The order of collectives is agreed by taking turns; the waits overlap.
TEST_P(Threads, OnOneCommunicatorInAnAgreedOrder) {
  const int threads = 4, n = 2, rounds = 50;
  Ranks ranks(n, options());
  ranks.each([&](Communicator& comm) {
    std::atomic<int> turn{0};
    together(threads, [&](int t) {
      for (int i = 0; i < rounds; ++i) {
        std::vector<float> x(static_cast<size_t>(1000 * t + 1), static_cast<float>(t)), y(x.size());
        while (turn != i * threads + t) std::this_thread::yield();
        Work work = comm.all_reduce(x.data(), y.data(), x.size(), DataType::kF32);
        ++turn;
        expect_ok(work);
        ASSERT_EQ(y.back(), static_cast<float>(n * t));
      }
    });
  });
}

TEST_P(Threads, MessagesOfOneCommunicatorNeedNoOrder) {
  const int threads = 4, n = 2, rounds = 40;
  Ranks ranks(n, options());
  ranks.each([&](Communicator& comm) {
    together(threads, [&](int t) {
      const int peer = 1 - comm.rank();
      for (int i = 0; i < rounds; ++i) {
        std::vector<int32_t> out(static_cast<size_t>(i * 100 + 1), 1000 * t + i), in(out.size());
        Work receive = comm.recv(in.data(), in.size(), DataType::kI32, peer, t);
        Work send = comm.send(out.data(), out.size(), DataType::kI32, peer, t);
        expect_ok(send);
        expect_ok(receive);
        ASSERT_EQ(in, out);
      }
    });
  });
}

TEST_P(Threads, MayAllWaitForOneCall) {
  Ranks ranks(2, options());
  ranks.each([](Communicator& comm) {
    for (int i = 0; i < 20; ++i) {
      std::vector<float> x(100'000, 1);
      Work work = comm.all_reduce(x.data(), x.data(), x.size(), DataType::kF32);
      std::atomic<int> calls{0};
      together(3, [&](int t) {
        Work copy = work;
        copy.then([&](const Status& s) {
          expect_ok(s);
          ++calls;
        });
        if (t == 0) {
          while (!copy.test()) std::this_thread::yield();
        }
        expect_ok(copy);
        EXPECT_EQ(x.back(), 2);
      });
      while (calls < 3) std::this_thread::yield();
    }
  });
}

// Whoever tests takes news from the transport; a waiter asleep in the kernel must hear of it all the same. One that
// does not would return well in the end, at its deadline: only the time tells.
TEST_P(Threads, OneThatTestsDoesNotLeaveAnotherAsleep) {
  using Clock = std::chrono::steady_clock;
  const auto begun = Clock::now();
  Ranks ranks(2, options());
  ranks.each([begun](Communicator& comm) {
    int32_t ball = 0;
    for (int i = 0; ball == i && i < 200; ++i) {
      if (comm.rank() == 1) {
        std::this_thread::sleep_for(std::chrono::microseconds(200 + i % 20 * 50));
        expect_ok(comm.send(&ball, 1, DataType::kI32, 0));
        expect_ok(comm.recv(&ball, 1, DataType::kI32, 0));
        continue;
      }
      Work work = comm.recv(&ball, 1, DataType::kI32, 1);
      together(4, [&](int t) {
        Work copy = work;
        if (t < 2) {
          std::this_thread::sleep_for(std::chrono::microseconds(500));  // the others sleep, or nearly
          while (!copy.test()) std::this_thread::yield();
        } else {
          give_way();  // so that those who test take the news before the one it wakes
        }
        expect_ok(copy);
      });
      EXPECT_EQ(ball, i);
      // Beside other load those that give way take their time; that is no loss.
      ball = Clock::now() - begun < std::chrono::seconds(2) ? i + 1 : -1;
      expect_ok(comm.send(&ball, 1, DataType::kI32, 1));
    }
  });
  EXPECT_LT(Clock::now() - begun, std::chrono::seconds(20)) << "a wake-up was lost";
}

TEST_P(Threads, AnAbortReachesAllOfThem) {
  Ranks ranks(2, options());
  ranks.each([](Communicator& comm) {
    together(3, [&](int t) {
      float x;
      if (comm.rank() == 1 && t == 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
        return comm.abort("enough");
      }
      const Status s = comm.recv(&x, 1, DataType::kF32, 1 - comm.rank(), t).wait();
      EXPECT_EQ(s.code(), Code::kAborted) << s.to_string();
      ASSERT_NE(s.verdict(), nullptr);
      EXPECT_EQ(s.verdict()->rank, 1);
    });
  });
}

INSTANTIATE_TEST_SUITE_P(With, Threads, testing::Values("loopback", "shm", "tcp", "background"),
                         [](const auto& info) { return info.param; });

TEST(Background, MovesCallsThatNobodyWaitsFor) {
  Options options = patient();
  options.background = true;
  Ranks ranks(2, options);
  ranks.each([](Communicator& comm) {
    std::vector<float> x(1'000'000, 1);
    std::atomic<bool> done{false};
    Work work = comm.all_reduce(x.data(), x.data(), x.size(), DataType::kF32);
    work.then([&](const Status& s) {
      expect_ok(s);
      done = true;
    });
    for (int ms = 0; !done && ms < 30'000; ++ms) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_TRUE(done);
    expect_ok(work);
    EXPECT_EQ(x.back(), 2);
  });
}

}  // namespace
}  // namespace ringfold::test
