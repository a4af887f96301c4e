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
