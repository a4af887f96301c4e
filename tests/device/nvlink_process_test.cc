// Collectives from GPU to GPU between processes: their memory goes from one to the other as file descriptors.
// Processes are forked, so nothing here may start the driver before.
#include <csignal>
#include <cstring>

#include "tests/device/device_buffers.h"

namespace ringfold::test {
namespace {

int through_the_host() { return cuda::calls("cuMemcpyHtoDAsync"); }

Call sum_of(int ranks, uint64_t count, uint64_t salt) {
  Call call;
  call.shape = {Collective::kAllReduce, ranks, 0};
  call.count = count;
  call.salt = salt;
  return call;
}

void expect_exact(Communicator& comm, const Call& call) {
  DeviceBuffers buffers(call, comm.rank());
  expect_ok(start(comm, call, buffers.input(), buffers.output()));
  EXPECT_EQ(buffers.check(), "") << call.to_string();
}

// By kernels that wait, and by copies alone.
class OnGpusOfProcesses : public testing::TestWithParam<const char*> {
  const Variable nvlink_{"RINGFOLD_NVLINK", GetParam()};
};

TEST_P(OnGpusOfProcesses, CollectivesAreExactAndDoNotPassThroughTheHost) {
  for (const int n : {2, 3}) {
    processes(n, patient(), [n](Communicator& comm) {
      cuda::set_device(comm.rank());
      cuda::set_lag(100, static_cast<unsigned>(comm.rank()));
      for (uint64_t salt = 1; salt <= 3; ++salt) {
        for (const uint64_t count : {1, 1000, 3'000'017}) expect_exact(comm, sum_of(n, count, salt));
      }
      for (const auto c : {Collective::kReduceScatter, Collective::kAllGather, Collective::kBroadcast}) {
        Call call;
        call.shape = {c, n, 0};
        call.count = 100'003;
        expect_exact(comm, call);
      }
      EXPECT_EQ(through_the_host(), 0);
      for (const auto& complaint : cuda::complaints()) ADD_FAILURE() << complaint;
    });
  }
}

// Memory that has fabric handles needs no sockets; where one rank's has none, or cannot be imported, all are sent
// descriptors, and nothing of what was tried is left.
TEST_P(OnGpusOfProcesses, MeetByFabricHandlesWhereTheyReallyAllocate) {
  constexpr int kRanks = 3;
  enum Case { kWorks, kOnOneRankOnly, kNotAllocated, kNotExported, kNotImported };
  for (const Case how : {kWorks, kOnOneRankOnly, kNotAllocated, kNotExported, kNotImported}) {
    processes(kRanks, patient(), [how](Communicator& comm) {
      cuda::set_device(comm.rank());
      const bool one = comm.rank() == 1;
      cuda::let_have_fabric(how != kOnOneRankOnly || one, how != kNotAllocated || !one);
      if (how == kNotExported && one) cuda::fail("cuMemExportToShareableHandle", 987);
      if (how == kNotImported && one) cuda::fail("import by fabric", 987, 1);
      expect_exact(comm, sum_of(kRanks, 100, 1));
      EXPECT_EQ(through_the_host(), 0);
      EXPECT_EQ(cuda::calls("import by descriptor"), how == kWorks ? 0 : kRanks - 1) << how;
      EXPECT_EQ(cuda::calls("import by fabric"), how == kWorks || how == kNotImported ? kRanks - 1 : 0) << how;
      // Its own memory and the others', and for copies the scratch.
      EXPECT_EQ(cuda::live().shared, kRanks + (GetParam() == std::string("copies") ? 1 : 0)) << how;
      expect_exact(comm, sum_of(kRanks, 300'000, 2));
      for (const auto& complaint : cuda::complaints()) ADD_FAILURE() << complaint;
    });
  }
}

// The object for sums in the switch goes from rank 0 to the others as their memory does.
TEST_P(OnGpusOfProcesses, AddInTheSwitchWhereAllRanksAre) {
  constexpr int kRanks = 3;
  enum Case { kByDescriptor, kByFabric, kOneWillNot, kOneCannotImport, kOneCannotBind };
  if (GetParam() == std::string("copies")) return;
  for (const Case how : {kByDescriptor, kByFabric, kOneWillNot, kOneCannotImport, kOneCannotBind}) {
    const Variable on("RINGFOLD_MULTICAST", "on");
    processes(kRanks, patient(), [how](Communicator& comm) {
      cuda::set_device(comm.rank());
      cuda::let_multicast(how != kOneWillNot || comm.rank() != 1);
      cuda::let_have_fabric(how == kByFabric, how == kByFabric);
      if (how == kOneCannotImport && comm.rank() == 2) cuda::fail("import by descriptor", 987, kRanks - 1);
      if (how == kOneCannotBind && comm.rank() == 1) cuda::fail("cuMulticastBindMem", 987);
      for (uint64_t salt = 1; salt <= 3; ++salt) expect_exact(comm, sum_of(kRanks, 100'003, salt));
      const bool works = how == kByDescriptor || how == kByFabric;
      EXPECT_EQ(cuda::calls("multicast"), works ? 3 : 0) << how;
      EXPECT_EQ(cuda::live().bound, works ? 1 : 0) << how;
      EXPECT_EQ(through_the_host(), 0);
      // Its own memory and the others'; the object and its memory, or for copies the scratch.
      EXPECT_EQ(cuda::live().shared, kRanks + (works ? 2 : 1)) << how;
      EXPECT_TRUE(how != kByFabric || cuda::calls("import by descriptor") == 0);
      for (const auto& complaint : cuda::complaints()) ADD_FAILURE() << complaint;
    });
  }
}

// Memory that users have made and told of is used where it lies: nothing is copied for a sum there.
class InUsersMemory : public testing::Test {
 protected:
  static constexpr size_t kElems = 900'001, kBytes = 4 * (kElems + 4);  // more than is shared for kernels
  // A sum from one place to another, by one kernel without a copy or not; exact in both.
  static void sum(Communicator& comm, std::byte* in, std::byte* out, bool straight) {
    auto* from = reinterpret_cast<float*>(cuda::alias(in));
    auto* to = reinterpret_cast<float*>(cuda::alias(out));
    for (size_t i = 0; i < kElems; ++i) from[i] = static_cast<float>(i % 1000) + static_cast<float>(comm.rank());
    expect_ok(comm.barrier());
    const int copies = cuda::calls("cuMemcpyDtoDAsync"), kernels = cuda::calls("two_shot");
    expect_ok(comm.all_reduce(in, out, kElems, DataType::kF32));
    EXPECT_EQ(cuda::calls("two_shot") - kernels, straight ? 1 : 0);
    EXPECT_EQ(cuda::calls("cuMemcpyDtoDAsync") == copies, straight);
    for (size_t i = 0; i < kElems; ++i) ASSERT_EQ(to[i], 2 * static_cast<float>(i % 1000) + 1) << i;
    expect_ok(comm.barrier());
  }
  static std::byte* make(size_t bytes = kBytes) { return static_cast<std::byte*>(cuda::allocate(bytes)); }
  static void expect_nothing_left() {
    EXPECT_EQ(cuda::live().opened, 0);
    EXPECT_EQ(through_the_host(), 0);
    for (const auto& complaint : cuda::complaints()) ADD_FAILURE() << complaint;
  }
  const Variable nvlink_{"RINGFOLD_NVLINK", "auto"};
};

TEST_F(InUsersMemory, SumsAreNotCopied) {
  processes(2, patient(), [](Communicator& comm) {
    cuda::set_device(comm.rank());
    cuda::set_lag(100, static_cast<unsigned>(comm.rank()));
    std::byte *one = make(), *other = make(2 * kBytes), *third = make();
    sum(comm, one, one, false);
    expect_ok(comm.share_memory(one, kBytes));
    expect_ok(comm.share_memory(other + kBytes, kBytes));  // a part of its allocation
    EXPECT_EQ(cuda::live().opened, 2);
    sum(comm, one, one, true);
    sum(comm, one, other + kBytes, true);
    sum(comm, other + kBytes + 4, one, true);
    sum(comm, one, other, false);  // not that part
    sum(comm, third, one, false);
    // Ranks have it at different places, and one has other memory.
    sum(comm, one + 4 * comm.rank(), other + kBytes, false);
    sum(comm, comm.rank() == 0 ? one : third, other + kBytes, false);
    EXPECT_EQ(comm.unshare_memory(third).code(), Code::kInvalid);
    expect_ok(comm.unshare_memory(one));
    EXPECT_EQ(cuda::live().opened, 1);
    sum(comm, one, one, false);
    sum(comm, other + kBytes, other + kBytes, true);
    expect_ok(comm.unshare_memory(other + kBytes));
    for (std::byte* memory : {one, other, third}) cuda::free(memory);
    expect_nothing_left();
  });
}

// What ranks do not all do nobody does, and all are told at once.
TEST_F(InUsersMemory, IsGivenUpByAllOrNone) {
  processes(2, patient(), [](Communicator& comm) {
    cuda::set_device(comm.rank());
    std::byte *one = make(), *other = make();
    sum(comm, one, one, false);
    expect_ok(comm.share_memory(one, kBytes));
    expect_ok(comm.share_memory(other, kBytes));
    const bool first = comm.rank() == 0;
    EXPECT_EQ(comm.unshare_memory(first ? one : other).code(), Code::kMismatch);
    EXPECT_EQ(comm.unshare_memory(first ? one : one + 4).code(), Code::kInvalid);
    EXPECT_EQ(cuda::live().opened, 2);
    sum(comm, one, other, true);
    // A rank with a call in flight takes part, and says so.
    Work late;
    if (!first) late = comm.recv(other, 4, DataType::kU8, 0);
    std::byte* more = make();
    const Status s = comm.share_memory(more, kBytes);
    EXPECT_EQ(s.code(), Code::kInvalid) << s.to_string();
    EXPECT_NE(s.message().find("rank 1: calls are in flight"), std::string::npos) << s.message();
    if (first) expect_ok(comm.send(one, 4, DataType::kU8, 1));
    if (!first) expect_ok(late);
    expect_ok(comm.share_memory(more, kBytes));
    sum(comm, more, one, true);
    for (std::byte* memory : {more, other, one}) {
      expect_ok(comm.unshare_memory(memory));
      cuda::free(memory);
    }
    EXPECT_EQ(cuda::live().opened, 0);
    for (const auto& complaint : cuda::complaints()) ADD_FAILURE() << complaint;
  });
}

TEST_F(InUsersMemory, OtherMemoryAtItsAddressIsNotTakenForIt) {
  processes(2, patient(), [](Communicator& comm) {
    cuda::set_device(comm.rank());
    std::byte* memory = make();
    sum(comm, memory, memory, false);
    expect_ok(comm.share_memory(memory, kBytes));
    sum(comm, memory, memory, true);
    std::byte* const before = memory;
    if (comm.rank() == 1) {
      cuda::free(memory);
      memory = cuda::allocate_at(memory, kBytes);
      EXPECT_EQ(memory, before);
    }
    sum(comm, memory, memory, false);
    expect_ok(comm.unshare_memory(before));
    expect_ok(comm.share_memory(memory, kBytes));
    sum(comm, memory, memory, true);
    expect_ok(comm.unshare_memory(memory));
    cuda::free(memory);
    expect_nothing_left();
  });
}

TEST_F(InUsersMemory, WhatOneRankCannotShareNoneDoes) {
  for (const char* function : {"cuIpcGetMemHandle", "cuIpcOpenMemHandle", "its size", "its end", "the host's", ""}) {
    processes(2, patient(), [function](Communicator& comm) {
      cuda::set_device(comm.rank());
      std::byte* memory = make();
      EXPECT_EQ(comm.share_memory(memory, kBytes).code(), Code::kUnavailable);  // before the first call
      sum(comm, memory, memory, false);
      const std::string what = function;
      const bool one = comm.rank() == 1;
      if (one && what.starts_with("cu")) cuda::fail(function, 987);
      const size_t bytes = what == "its end" ? 2 * kBytes : what == "its size" && one ? kBytes - 4 : kBytes;
      std::vector<std::byte> host(kBytes);
      const Status s = comm.share_memory(what == "the host's" && one ? host.data() : memory, bytes);
      EXPECT_EQ(s.code(), what.empty() ? Code::kOk : Code::kUnavailable) << what << ": " << s.to_string();
      EXPECT_TRUE(!what.starts_with("cu") || s.message().find("rank 1: CUDA driver: " + what) != std::string::npos)
          << s.to_string();
      EXPECT_EQ(cuda::live().opened, what.empty() ? 1 : 0) << what;
      sum(comm, memory, memory, what.empty());
      if (what.empty()) expect_ok(comm.unshare_memory(memory));
      cuda::free(memory);
      expect_nothing_left();
    });
  }
}

TEST_P(OnGpusOfProcesses, ADeadRankIsNamedAndHoldsNoStream) {
  constexpr int kVictim = 1;
  processes(
      3, patient(),
      [](Communicator& comm) {
        cuda::set_device(comm.rank());
        expect_exact(comm, sum_of(3, 100'000, 1));
        auto stream = cuda::make_stream();
        auto* memory = cuda::allocate(400'000);
        CallOptions on;
        on.stream = stream;
        // The others' streams wait for what the victim's never sends: it dies when the call is on all GPUs.
        if (comm.rank() == kVictim) cuda::launch(stream, [] { ::raise(SIGKILL); });
        const Status s = comm.all_reduce(memory, memory, 100'000, DataType::kF32, kSum, on).wait();
        EXPECT_EQ(s.code(), Code::kPeerLost) << s.to_string();
        EXPECT_NE(s.message().find("rank 1"), std::string::npos) << s.to_string();
        EXPECT_TRUE(cuda::synchronize(stream, 20));
        auto rest = comm.reconfigure();
        ASSERT_TRUE(rest.ok()) << rest.status().to_string();
        expect_exact(*rest, sum_of(2, 100'000, 2));
        EXPECT_EQ(through_the_host(), 0);
      },
      kVictim);
}

INSTANTIATE_TEST_SUITE_P(By, OnGpusOfProcesses, testing::Values("auto", "copies"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace ringfold::test
