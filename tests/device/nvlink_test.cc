// Collectives from GPU to GPU: that they go there, what has all ranks stage them instead, and what goes wrong on the
// way. (That they are exact is what the tests of all calls on device memory show once more, device_nvlink.)
#include <barrier>
#include <cstring>
#include <thread>

#include "base/clock.h"
#include "tests/device/device_buffers.h"
#include "transports/nvlink/survey.h"

namespace ringfold::test {
namespace {

constexpr size_t kManyTiles = 20'000;

// By kernels that wait where there are any, or by copies alone, with slots of 4 KiB: calls of several tiles and
// passes.
class OnGpus : public DeviceTest, public testing::WithParamInterface<const char*> {
 protected:
  // (What a kernel has to say comes to the host in four bytes.)
  static int through_the_host() { return cuda::calls("cuMemcpyHtoDAsync"); }
  static int kernels() { return cuda::calls("one_shot") + cuda::calls("two_shot"); }
  static int between_gpus() { return cuda::calls("cuMemcpyDtoDAsync") + kernels(); }
  static bool copies() { return GetParam() == std::string("copies"); }
  // Does it once more, in a way that shows which way it went.
  static void expect_exact(Communicator& comm, uint64_t salt = 1) {
    Call call;
    call.shape = {Collective::kAllReduce, comm.size(), 0};
    call.count = kManyTiles;
    call.salt = salt;
    perform(comm, call);
  }
  const Variable nvlink_{"RINGFOLD_NVLINK", GetParam()};
  const Variable slot_{"RINGFOLD_SLOT", "4K"};
  const Variable slots_{"RINGFOLD_SLOTS", "2"};
};

TEST_P(OnGpus, CallsDoNotPassThroughTheHost) {
  for (const int n : {2, 3, 4}) {
    const int before = through_the_host(), between = between_gpus();
    Ranks ranks(n);
    each(ranks, [&](Communicator& comm) {
      for (const auto c : {Collective::kAllReduce, Collective::kReduceScatter, Collective::kAllGather,
                           Collective::kBroadcast, Collective::kReduce, Collective::kAllToAll}) {
        for (const uint64_t count : {uint64_t{1}, uint64_t{5000}}) {
          Call call;
          call.shape = {c, n, has_root(c) ? n - 1 : 0};
          call.count = count;
          perform(comm, call);
        }
      }
    });
    EXPECT_EQ(through_the_host(), before);
    EXPECT_GT(between_gpus(), between);
  }
}

TEST_P(OnGpus, CallsOfRanksOnOneDeviceGoThereToo) {
  const int before = through_the_host();
  Ranks ranks(3);
  ranks.each([&](Communicator& comm) {
    cuda::set_device(1);
    expect_exact(comm);
  });
  EXPECT_EQ(through_the_host(), before);
}

TEST_P(OnGpus, OtherAlgorithmsArePlayedWhereTheyAreAskedFor) {
  const int before = through_the_host(), waiting = kernels();
  for (const char* algorithm : {"ring", "recursive", "star", "direct"}) {
    for (const int n : {2, 3, 4}) {
      Ranks ranks(n, patient("", algorithm));
      each(ranks, [&](Communicator& comm) {
        for (const auto c : {Collective::kAllReduce, Collective::kReduceScatter, Collective::kAllGather,
                             Collective::kBroadcast, Collective::kReduce}) {
          for (const uint64_t count : {uint64_t{7}, uint64_t{30'001}}) {
            Call call;
            call.shape = {c, n, has_root(c) ? n - 1 : 0};
            call.count = count;
            perform(comm, call);
          }
        }
      });
      EXPECT_EQ(through_the_host(), before) << algorithm << " of " << n;
    }
  }
  EXPECT_EQ(kernels(), waiting);
}

TEST_P(OnGpus, SubsetsAndSplitsHaveTheirOwnMemory) {
  Ranks ranks(4);
  each(ranks, [&](Communicator& comm) {
    auto half = comm.split(comm.rank() % 2, -comm.rank());
    ASSERT_TRUE(half.ok()) << half.status().to_string();
    for (uint64_t salt = 1; salt <= 3; ++salt) {
      expect_exact(comm, salt);
      expect_exact(*half, salt);
    }
  });
}

TEST_P(OnGpus, AreSurveyedForPeople) {
  const auto all = nvlink::survey();
  ASSERT_EQ(all.none, "");
  ASSERT_EQ(all.rows.size(), static_cast<size_t>(cuda::kDevices));
  EXPECT_EQ(all.rows[2].gpu.name, "Double 2");
  EXPECT_EQ(all.rows[2].reaches, (std::vector<int>{0, 1, 3}));
  EXPECT_EQ(all.rows[2].why_not, "");
  EXPECT_NE(all.rows[2].why_no_multicast.find("is on no switch that adds"), std::string::npos);
  cuda::let_multicast(true);
  EXPECT_EQ(nvlink::survey().rows[2].why_no_multicast, "");
  cuda::let_peers_reach(false);
  cuda::let_share(false);
  const auto none = nvlink::survey();
  EXPECT_TRUE(none.rows[2].reaches.empty());
  ASSERT_EQ(none.rows[2].why_no_reach.size(), 3U);
  EXPECT_NE(none.rows[2].why_no_reach[0].find("GPU 2 (Double 2) cannot use the memory of GPU 0"), std::string::npos);
  EXPECT_NE(none.rows[2].why_not.find("file descriptors"), std::string::npos) << none.rows[2].why_not;
}

// ---- kernels that wait ----

TEST_P(OnGpus, SmallSumsAreOneKernelWhereEveryRankHasAGpu) {
  for (const int n : {2, 3, 4}) {
    const int before = kernels(), host = through_the_host();
    int expected = 0;
    Ranks ranks(n);
    for (const auto type : {DataType::kF32, DataType::kF16, DataType::kBF16}) {
      for (const auto op : {kSum, kAvg, kMax, ReduceOp::scaled_sum(0.25)}) {
        for (const uint64_t count : {uint64_t{1}, uint64_t{1001}, uint64_t{4096}, uint64_t{30'000}}) {
          Call call;
          call.shape = {Collective::kAllReduce, n, 0};
          call.type = type;
          call.op = op;
          call.count = count;
          call.in_place = count % 2 == 0;
          each(ranks, [&](Communicator& comm) { perform(comm, call); });
          if (count * size_of(type) <= 16384 || n != 3) expected += n;
        }
      }
    }
    EXPECT_EQ(kernels() - before, copies() ? 0 : expected);
    EXPECT_EQ(through_the_host(), host);
  }
}

TEST_P(OnGpus, RanksOnOneGpuDoNotWaitInKernels) {
  const int before = kernels();
  Ranks ranks(2);
  ranks.each([&](Communicator& comm) {
    cuda::set_device(2);
    expect_exact(comm);
  });
  EXPECT_EQ(kernels(), before);
}

TEST_P(OnGpus, ManyMayBeInFlight) {
  constexpr int kCalls = 200;  // more than have room for their arguments
  cuda::set_lag(50);
  Ranks ranks(2);
  each(ranks, [&](Communicator& comm) {
    Call call;
    call.shape = {Collective::kAllReduce, 2, 0};
    std::vector<std::unique_ptr<DeviceBuffers>> buffers;
    std::vector<Work> works;
    for (int i = 0; i < kCalls; ++i) {
      call.count = static_cast<uint64_t>(1 + 37 * i);
      buffers.push_back(std::make_unique<DeviceBuffers>(call, comm.rank()));
      works.push_back(start(comm, call, buffers.back()->input(), buffers.back()->output()));
    }
    for (int i = 0; i < kCalls; ++i) {
      expect_ok(works[static_cast<size_t>(i)]);
      EXPECT_EQ(buffers[static_cast<size_t>(i)]->check(), "");
    }
  });
}

// ---- graphs ----

TEST_P(OnGpus, GraphsWithCallsMayBeReplayed) {
  if (copies()) return;
  constexpr int kReplays = 20;
  for (const int n : {2, 4}) {
    cuda::set_lag(200, static_cast<unsigned>(n));
    Ranks ranks(n);
    each(ranks, [&](Communicator& comm) {
      expect_exact(comm);
      auto stream = cuda::make_stream();
      auto* memory = static_cast<std::byte*>(cuda::allocate(4 * kManyTiles));
      auto* values = reinterpret_cast<float*>(cuda::alias(memory));
      CallOptions on;
      on.stream = stream;
      // What a replay does: the sum of all, then of the first hundred once more.
      cuda::begin_capture(stream);
      expect_ok(comm.all_reduce(memory, memory, kManyTiles, DataType::kF32, kSum, on));
      expect_ok(comm.all_reduce(memory, memory, 100, DataType::kF32, kSum, on));
      const auto graph = cuda::end_capture(stream);
      for (int i = 0; i < kReplays; ++i) {
        std::fill(values, values + kManyTiles, static_cast<float>(comm.rank() + i));
        cuda::replay(graph, stream);
        if (i % 3 == 0) expect_exact(comm, static_cast<uint64_t>(i) + 2);  // beside it
        ASSERT_TRUE(cuda::synchronize(stream));
        const auto sum = static_cast<float>(n * (n - 1) / 2 + n * i);
        for (size_t k = 0; k < kManyTiles; ++k) ASSERT_EQ(values[k], k < 100 ? n * sum : sum) << i << ", " << k;
      }
      expect_ok(comm.barrier());
      cuda::free(memory);
      cuda::destroy(stream);
    });
  }
}

TEST_P(OnGpus, WhatCannotBeReplayedIsRefusedWithTheReason) {
  Ranks ranks(2);
  each(ranks, [&](Communicator& comm) {
    auto stream = cuda::make_stream();
    auto* memory = cuda::allocate(4 * kManyTiles);
    CallOptions on;
    on.stream = stream;
    const auto refused = [&](const std::string& why, auto call) {
      cuda::begin_capture(stream);
      const Status s = call().wait();
      cuda::end_capture(stream);
      EXPECT_EQ(s.code(), Code::kInvalid);
      EXPECT_NE(s.message().find(why), std::string::npos) << s.to_string();
    };
    refused("make one before the capture",
            [&] { return comm.all_reduce(memory, memory, 9, DataType::kF32, kSum, on); });
    expect_exact(comm);
    refused("graphs hold all_reduce", [&] { return comm.broadcast(memory, memory, 9, DataType::kF32, 0, on); });
    refused("graphs hold all_reduce", [&] { return comm.all_reduce(memory, memory, 9, DataType::kI32, kSum, on); });
    if (copies()) {
      refused("not all ranks", [&] { return comm.all_reduce(memory, memory, 9, DataType::kF32, kSum, on); });
    }
    expect_exact(comm, 2);
    cuda::free(memory);
    cuda::destroy(stream);
  });
}

TEST_P(OnGpus, AReplayThatWaitsInVainEndsTheCommunicatorWithTheRanksName) {
  if (copies()) return;
  Options options = patient();
  options.timeout_s = 2;
  Ranks ranks(2, options);
  each(ranks, [&](Communicator& comm) {
    expect_exact(comm);
    auto stream = cuda::make_stream();
    auto* memory = cuda::allocate(400);
    CallOptions on;
    on.stream = stream;
    cuda::begin_capture(stream);
    expect_ok(comm.all_reduce(memory, memory, 100, DataType::kF32, kSum, on));
    const auto graph = cuda::end_capture(stream);
    if (comm.rank() == 0) {
      cuda::replay(graph, stream);  // and rank 1 does not
      EXPECT_TRUE(cuda::synchronize(stream, 30));
    }
    while (comm.status().ok()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    EXPECT_NE(comm.status().message().find("waited for rank 1"), std::string::npos) << comm.status().to_string();
    cuda::free(memory);
    cuda::destroy(stream);
  });
}

// ---- what sends all ranks through the host ----

TEST_P(OnGpus, WhereDevicesDoNotReachEachOtherAllRanksStage) {
  cuda::let_peers_reach(false);
  const int between = between_gpus();
  Ranks ranks(3);
  each(ranks, [&](Communicator& comm) {
    for (uint64_t salt = 1; salt <= 3; ++salt) expect_exact(comm, salt);
  });
  EXPECT_EQ(between_gpus(), between);
}

TEST_P(OnGpus, WhereMemoryCannotBeSharedAllRanksStage) {
  cuda::let_share(false);
  Ranks ranks(2);
  each(ranks, [&](Communicator& comm) { expect_exact(comm); });
}

TEST_P(OnGpus, ACallWithMemoryOfAnotherDeviceOnOneRankIsStagedByAll) {
  Ranks ranks(3);
  each(ranks, [&](Communicator& comm) {
    expect_exact(comm, 1);
    const int before = between_gpus();
    if (comm.rank() == 1) cuda::set_device(3);
    expect_exact(comm, 2);
    expect_ok(comm.barrier());
    EXPECT_EQ(between_gpus(), before);
    expect_ok(comm.barrier());
    cuda::set_device(comm.rank());
    expect_exact(comm, 3);
  });
}

// Each function that sharing needs fails once, on one rank.
TEST_P(OnGpus, WhatFailsBeforeTheFirstCallHasAllRanksStage) {
  const char* const functions[] = {"cuDeviceGetName",
                                   "cuDeviceGetUuid",
                                   "cuDeviceGetAttribute",
                                   "cuMemGetAllocationGranularity",
                                   "cuMemCreate",
                                   "cuMemAddressReserve",
                                   "cuMemMap",
                                   "cuMemSetAccess",
                                   "cuStreamWriteValue32",
                                   "cuDeviceCanAccessPeer",
                                   "cuMemExportToShareableHandle"};
  for (const char* function : functions) {
    const int between = between_gpus();
    cuda::fail(function, 987);
    Ranks ranks(2);
    each(ranks, [&](Communicator& comm) {
      expect_exact(comm, 1);
      expect_exact(comm, 2);
    });
    EXPECT_EQ(between_gpus(), between) << function;
    cuda::mend();
  }
}

// ---- what ends calls ----

TEST_P(OnGpus, WhatFailsInACallHasItsName) {
  Options options = patient();
  options.timeout_s = 20;
  for (const char* function :
       {"cuMemcpyDtoDAsync", "cuStreamWriteValue32", copies() ? "fold" : "two_shot", "cuEventRecord"}) {
    for (const int after : {0, 1}) {
      Ranks ranks(2, options);
      Status ends[2];
      std::barrier ready(2, [&]() noexcept { cuda::fail(function, 987, after); });
      each(ranks, [&](Communicator& comm) {
        auto stream = cuda::make_stream();
        void* memory = cuda::allocate(4 * kManyTiles);
        expect_exact(comm);
        CallOptions on;
        on.stream = stream;
        ready.arrive_and_wait();
        ends[comm.rank()] = comm.all_reduce(memory, memory, kManyTiles, DataType::kF32, kSum, on).wait();
        if (!ends[comm.rank()].ok() && comm.status().ok()) comm.abort(ends[comm.rank()].message());
        EXPECT_TRUE(cuda::synchronize(stream, 20));
        cuda::free(memory);
        cuda::destroy(stream);
      });
      cuda::mend();
      bool named = false;
      for (const Status& s : ends) named |= s.message().find(function) != std::string::npos;
      EXPECT_TRUE(named) << function << ": " << ends[0].to_string() << " / " << ends[1].to_string();
    }
  }
}

// A peer's stream stands still for as long as the test wants.
class Held {
 public:
  explicit Held(cuda::Stream stream) {
    cuda::launch(stream, [this] { open_.wait(false); });
  }
  ~Held() { let_go(); }
  void let_go() {
    open_ = true;
    open_.notify_all();
  }

 private:
  std::atomic<bool> open_{false};
};

TEST_P(OnGpus, AStreamThatWaitsForAPeersStreamGoesOnWhenTheRanksGiveUp) {
  for (const bool by_deadline : {false, true}) {
    Options options = patient();
    if (by_deadline) options.timeout_s = 2;
    Ranks ranks(2, options);
    std::barrier over(2);
    each(ranks, [&](Communicator& comm) {
      auto stream = cuda::make_stream();
      auto* memory = cuda::allocate(4 * kManyTiles);
      expect_exact(comm);
      over.arrive_and_wait();  // an abort ends whatever a rank still has in flight
      CallOptions on;
      on.stream = stream;
      std::optional<Held> held;
      if (comm.rank() == 1) held.emplace(stream);
      Work work = comm.all_reduce(memory, memory, kManyTiles, DataType::kF32, kSum, on);
      EXPECT_FALSE(cuda::idle(stream));
      over.arrive_and_wait();  // an abort lets the streams go
      if (!by_deadline && comm.rank() == 1) comm.abort("enough");
      const Status s = work.wait_for(50);
      ASSERT_TRUE(work.done());
      EXPECT_EQ(s.code(), by_deadline ? Code::kTimeout : Code::kAborted) << s.to_string();
      if (comm.rank() == 0) {
        EXPECT_TRUE(cuda::synchronize(stream, 20));
      }
      over.arrive_and_wait();
      if (held) held->let_go();
      EXPECT_TRUE(cuda::synchronize(stream, 20));
      // The call of the rank whose stream stood still was given up, but what it has on streams may touch its memory.
      for (const auto until = base::Deadline::after(std::chrono::seconds(30));
           !cuda::all_idle() && !until.passed();) {
        std::this_thread::yield();
      }
      EXPECT_TRUE(cuda::all_idle());
      over.arrive_and_wait();
      cuda::free(memory);
      cuda::destroy(stream);
    });
  }
}

TEST_P(OnGpus, ARankThatDoesNotComeIsNamed) {
  Options options = patient();
  options.timeout_s = 2;
  Ranks ranks(3, options);
  each(ranks, [&](Communicator& comm) {
    expect_exact(comm);
    if (comm.rank() == 2) {
      while (comm.status().ok()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      return;
    }
    auto* memory = cuda::allocate(4 * kManyTiles);
    const Status s = comm.all_reduce(memory, memory, kManyTiles, DataType::kF32).wait();
    EXPECT_NE(s.message().find("rank 2"), std::string::npos) << s.to_string();
    cuda::free(memory);
  });
}

TEST_P(OnGpus, CallsThatDifferAreRefusedBeforeAnythingIsWritten) {
  Ranks ranks(2);
  each(ranks, [&](Communicator& comm) {
    expect_exact(comm);
    auto* memory = cuda::allocate(4 * kManyTiles);
    std::memset(cuda::alias(memory), 7, 4 * kManyTiles);
    const size_t count = kManyTiles - static_cast<size_t>(comm.rank());
    const Status s = comm.all_reduce(memory, memory, count, DataType::kF32).wait();
    EXPECT_EQ(s.code(), Code::kMismatch) << s.to_string();
    for (size_t i = 0; i < 4 * kManyTiles; ++i) ASSERT_EQ(cuda::alias(memory)[i], std::byte{7});
    cuda::free(memory);
  });
}

INSTANTIATE_TEST_SUITE_P(By, OnGpus, testing::Values("auto", "copies"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace ringfold::test
