// Sums in the switch between GPUs: which go there, what has all ranks do without it, and what ends them on the way.
#include <barrier>
#include <cstring>
#include <thread>
#include <tuple>

#include "tests/device/device_buffers.h"

namespace ringfold::test {
namespace {

constexpr uint64_t kMany = 20'000;  // more than go at once

int added() { return cuda::calls("multicast"); }

class OnASwitch : public DeviceTest {
 protected:
  OnASwitch() { cuda::let_multicast(true); }

  static Call sum_of(int ranks, uint64_t count, uint64_t salt = 0) {
    Call call;
    call.shape = {Collective::kAllReduce, ranks, 0};
    call.count = count;
    call.salt = salt;
    return call;
  }
  // How many kernels of the switch a few sums of that many ranks make, on all of them together.
  int added_by(int n, const Options& options = patient()) {
    const int before = added();
    Ranks ranks(n, options);
    each(ranks, [&](Communicator& comm) {
      for (uint64_t salt = 1; salt <= 2; ++salt) perform(comm, sum_of(n, kMany, salt));
    });
    return added() - before;
  }

 private:
  const Variable nvlink_{"RINGFOLD_NVLINK", "auto"};
};

TEST_F(OnASwitch, SumsOfFourAreAddedThereWhateverTheirSize) {
  constexpr int kRanks = 4;
  int expected = 0;
  const int before = added();
  Ranks ranks(kRanks);
  for (const auto type : {DataType::kF32, DataType::kF16, DataType::kBF16}) {
    for (const auto op : {kSum, kAvg, ReduceOp::scaled_sum(0.25)}) {
      if (type == DataType::kF16 && op.kind != ReduceKind::kSum) continue;  // the sum may be too large
      for (const uint64_t count : {uint64_t{8193}, uint64_t{30'003}, uint64_t{700'001}}) {
        Call call = sum_of(kRanks, count);
        call.type = type;
        call.op = op;
        call.in_place = count % 2 == 0;
        each(ranks, [&](Communicator& comm) { perform(comm, call); });
        expected += kRanks;
      }
    }
  }
  EXPECT_EQ(added() - before, expected);
  // Of more than fits its memory, in pieces.
  each(ranks, [&](Communicator& comm) { perform(comm, sum_of(kRanks, (16 << 20) / 4 + 4099)); });
  expected += 2 * kRanks;
  EXPECT_EQ(added() - before, expected);
  // Nothing else goes there: what it cannot add, and what is sooner done at once.
  for (const auto& [type, op, count] :
       {std::tuple{DataType::kF32, kMax, kMany}, std::tuple{DataType::kI32, kSum, kMany},
        std::tuple{DataType::kF16, kAvg, kMany}, std::tuple{DataType::kF32, kSum, uint64_t{4096}}}) {
    Call call = sum_of(kRanks, count);
    call.type = type;
    call.op = op;
    each(ranks, [&](Communicator& comm) { perform(comm, call); });
  }
  EXPECT_EQ(added() - before, expected);
}

TEST_F(OnASwitch, FewerRanksUseItWhenTheyAreTold) {
  EXPECT_EQ(added_by(2), 0);
  EXPECT_EQ(added_by(3), 0);
  const Variable on("RINGFOLD_MULTICAST", "on");
  EXPECT_EQ(added_by(2), 4);
  EXPECT_EQ(added_by(3), 6);
}

TEST_F(OnASwitch, NotInDeterministicModeNorWhereItIsOffNorWithoutKernels) {
  Options options = patient();
  options.deterministic = true;
  EXPECT_EQ(added_by(4, options), 0);
  {
    const Variable off("RINGFOLD_MULTICAST", "off");
    EXPECT_EQ(added_by(4), 0);
  }
  {
    const Variable copies("RINGFOLD_NVLINK", "copies");
    EXPECT_EQ(added_by(4), 0);
  }
  EXPECT_EQ(added_by(4), 8);
}

TEST_F(OnASwitch, RanksOnOneGpuDoWithoutIt) {
  const Variable on("RINGFOLD_MULTICAST", "on");
  const int before = added();
  Ranks ranks(2);
  ranks.each([&](Communicator& comm) {
    cuda::set_device(1);
    perform(comm, sum_of(2, kMany));
  });
  EXPECT_EQ(added(), before);
}

// Every function of the driver that it needs fails on one rank: none uses it then, calls are as right as before, and
// nothing is left behind (nor does anything wait in the driver for a rank that does not come, which it would tell).
TEST_F(OnASwitch, WhatFailsOnTheWayThereHasAllRanksDoWithout) {
  constexpr int kRanks = 4;
  // Calls of each function before those that are for the switch.
  const std::pair<const char*, int> functions[] = {
      {"cuMulticastGetGranularity", 0},
      {"cuMulticastCreate", 0},
      {"cuMemExportToShareableHandle", kRanks},
      {"cuMemCreate", kRanks},
      {"cuMulticastAddDevice", 0},
      {"cuMulticastBindMem", 0},
      {"cuMemAddressReserve", kRanks * kRanks},
      {"cuMemMap", kRanks * kRanks},
      {"cuMemSetAccess", kRanks * kRanks},
  };
  for (const auto& [function, before] : functions) {
    for (const int after : {0, 1}) {
      const int calls = cuda::calls(function);
      cuda::fail(function, 987, before + after);
      const int by_switch = added_by(kRanks);
      // Rank 0 alone asks for the size, makes the object, and hands it over.
      const bool only_once = after == 1 && cuda::calls(function) - calls == before + 1;
      EXPECT_EQ(by_switch, only_once ? 8 : 0) << function << ", " << after;
      cuda::mend();
    }
  }
  EXPECT_EQ(added_by(kRanks), 8);
}

TEST_F(OnASwitch, WithoutOneTheRanksDoWithout) {
  cuda::let_multicast(false);
  EXPECT_EQ(added_by(4), 0);
}

TEST_F(OnASwitch, GraphsHoldSumsOfAnySize) {
  constexpr int kRanks = 4, kReplays = 5;
  constexpr size_t kElems = 600'000;  // more than a two-shot takes
  Ranks ranks(kRanks);
  each(ranks, [&](Communicator& comm) {
    perform(comm, sum_of(kRanks, kMany));
    auto stream = cuda::make_stream();
    auto* memory = cuda::allocate(4 * kElems);
    auto* values = reinterpret_cast<float*>(cuda::alias(memory));
    CallOptions on;
    on.stream = stream;
    cuda::begin_capture(stream);
    expect_ok(comm.all_reduce(memory, memory, kElems, DataType::kF32, kSum, on));
    const auto graph = cuda::end_capture(stream);
    for (int i = 0; i < kReplays; ++i) {
      std::fill(values, values + kElems, static_cast<float>(comm.rank() + i));
      cuda::replay(graph, stream);
      ASSERT_TRUE(cuda::synchronize(stream));
      for (size_t k = 0; k < kElems; ++k) ASSERT_EQ(values[k], static_cast<float>(6 + kRanks * i)) << i << ", " << k;
    }
    expect_ok(comm.barrier());
    cuda::free(memory);
    cuda::destroy(stream);
  });
}

TEST_F(OnASwitch, KernelsThatWaitForARankEndByDeadlineAndByAbort) {
  constexpr int kRanks = 4, kLate = 2;
  for (const bool by_deadline : {false, true}) {
    Ranks ranks(kRanks);
    std::barrier all(kRanks);
    std::atomic<bool> open{false};
    each(ranks, [&](Communicator& comm) {
      auto stream = cuda::make_stream();
      auto* memory = cuda::allocate(4 * kMany);
      perform(comm, sum_of(kRanks, kMany));
      all.arrive_and_wait();  // an abort ends whatever a rank still has in flight
      CallOptions on;
      on.stream = stream;
      if (by_deadline) on.timeout_s = 2;
      if (comm.rank() == kLate) cuda::launch(stream, [&] { open.wait(false); });
      Work work = comm.all_reduce(memory, memory, kMany, DataType::kF32, kSum, on);
      all.arrive_and_wait();
      if (!by_deadline && comm.rank() == kLate) comm.abort("enough");
      if (comm.rank() == kLate) {
        all.arrive_and_wait();  // the others' are over
        open = true;
        open.notify_all();
      }
      // Who waited in vain says so to all.
      const Status s = work.wait_for(50);
      EXPECT_NE(s.message().find(by_deadline ? "rank" : "enough"), std::string::npos) << s.to_string();
      EXPECT_EQ(s.message().find("gave up"), std::string::npos) << s.to_string();
      EXPECT_TRUE(cuda::synchronize(stream, 20));
      if (comm.rank() != kLate) all.arrive_and_wait();
      // What is on streams may touch the memory.
      while (!cuda::all_idle()) std::this_thread::yield();
      all.arrive_and_wait();
      cuda::free(memory);
      cuda::destroy(stream);
    });
  }
}

TEST_F(OnASwitch, WhatFailsInACallHasItsName) {
  Options options = patient();
  options.timeout_s = 20;
  Ranks ranks(4, options);
  std::barrier ready(4, [&]() noexcept { cuda::fail("multicast", 987, 1); });
  std::string said[4];
  each(ranks, [&](Communicator& comm) {
    const auto rank = static_cast<size_t>(comm.rank());
    perform(comm, sum_of(4, kMany));
    auto* memory = cuda::allocate(4 * kMany);
    ready.arrive_and_wait();
    said[rank] = comm.all_reduce(memory, memory, kMany, DataType::kF32).wait().to_string();
    cuda::free(memory);
  });
  cuda::mend();
  for (const auto& text : said) EXPECT_NE(text.find("multicast: CUDA_ERROR_987"), std::string::npos) << text;
}

}  // namespace
}  // namespace ringfold::test
