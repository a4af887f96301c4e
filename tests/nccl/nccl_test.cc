// libringfold_nccl.so: its functions as nccl-tests and PyTorch use them, by ranks that are threads, devices of one
// thread, and processes; what it refuses; and that it needs no driver.
#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <thread>

#include "tests/nccl/perf.h"

namespace ringfold::test {
namespace {

using namespace std::chrono_literals;

const bool kChosen = [] {
  ::setenv("RINGFOLD_STAGE", "4K", 1);  // five pieces of the larger buffers
  return ::setenv("RINGFOLD_CUDA", RF_CUDA_DOUBLE, 0) == 0;
}();

class Nccl : public testing::Test {
 protected:
  Nccl() {
    EXPECT_TRUE(kChosen);
    cuda::set_device(0);
  }
  void TearDown() override {
    for (const auto& complaint : cuda::complaints()) ADD_FAILURE() << complaint;
  }
};

// This program once more, for one test, with these variables besides its own.
class Self {
 public:
  Self(const std::string& test, const std::vector<std::string>& variables) : output_(::memfd_create("output", 0)) {
    // Put together before the fork: other threads may hold what a child would need for that.
    const std::string filter = "--gtest_filter=" + test;
    std::vector<const char*> argv = {"nccl_test", filter.c_str(), "--gtest_also_run_disabled_tests", nullptr}, all;
    for (const auto& v : variables) all.push_back(v.c_str());
    for (char** v = environ; *v != nullptr; ++v) all.push_back(*v);  // the first of a name counts
    all.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::dup2(output_, STDOUT_FILENO);
    ::execve("/proc/self/exe", const_cast<char**>(argv.data()), const_cast<char**>(all.data()));
    ::_exit(127);
  }
  void expect_success() {
    int status = -1;
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    char text[8192];
    const auto bytes = ::pread(output_, text, sizeof text, 0);
    EXPECT_EQ(status, 0) << std::string(text, static_cast<size_t>(std::max<ssize_t>(bytes, 0)));
    ::close(output_);
  }

 private:
  int output_;
  pid_t pid_ = -1;
};

std::string last() { return ncclGetLastError(nullptr); }

// As nccl-tests starts: one thread makes the communicators of all its devices.
std::vector<ncclComm_t> join(const ncclUniqueId& id, int size, int first, int count) {
  std::vector<ncclComm_t> comms(static_cast<size_t>(count));
  EXPECT_EQ(ncclGroupStart(), ncclSuccess);
  for (int i = 0; i < count; ++i) {
    cuda::set_device((first + i) % cuda::kDevices);
    EXPECT_EQ(ncclCommInitRankConfig(&comms[static_cast<size_t>(i)], size, id, first + i, nullptr), ncclSuccess)
        << last();
  }
  EXPECT_EQ(ncclGroupEnd(), ncclSuccess) << last();
  return comms;
}

TEST_F(Nccl, DevicesOfOneThreadPlayEverything) {
  for (int size : {1, 3}) {
    std::vector<ncclComm_t> comms(static_cast<size_t>(size));
    NCCL_OK(ncclCommInitAll(comms.data(), size, nullptr));
    auto ranks = make_ranks(comms, 0);
    play_everything(ranks, size);
    give_back(ranks);
  }
}

TEST_F(Nccl, ThreadsWithTwoDevicesEachPlayEverything) {
  ncclUniqueId id;
  NCCL_OK(ncclGetUniqueId(&id));
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      auto ranks = make_ranks(join(id, 4, 2 * t, 2), 2 * t, t == 1);
      play_everything(ranks, 4);
      give_back(ranks);
    });
  }
  for (auto& t : threads) t.join();
}

// A rank of the test below, in a process of its own.
TEST_F(Nccl, DISABLED_PlaysARank) {
  const char *text = std::getenv("NCCL_TEST_ID"), *rank = std::getenv("NCCL_TEST_RANK"),
             *size = std::getenv("NCCL_TEST_SIZE");
  ASSERT_TRUE(text != nullptr && rank != nullptr && size != nullptr);
  ncclUniqueId id{};
  std::strncpy(id.internal, text, sizeof id.internal - 1);
  const int n = std::atoi(size), me = std::atoi(rank);
  auto ranks = make_ranks(join(id, n, me, 1), me);
  play_everything(ranks, n);
  give_back(ranks);
}

TEST_F(Nccl, ProcessesPlayEverything) {
  constexpr int kSize = 2;
  ncclUniqueId id;
  NCCL_OK(ncclGetUniqueId(&id));
  std::vector<Self> children;
  for (int r = 0; r < kSize; ++r) {
    children.emplace_back("Nccl.DISABLED_PlaysARank", std::vector{std::string("NCCL_TEST_ID=") + id.internal,
                                                                  "NCCL_TEST_RANK=" + std::to_string(r),
                                                                  "NCCL_TEST_SIZE=" + std::to_string(kSize)});
  }
  for (Self& child : children) child.expect_success();
}

// Calls on two communicators and one stream, in another order on the two ranks: a group has no order. And large
// messages both ways, more than is kept for a receiver who is late.
TEST_F(Nccl, CallsOfAGroupBeginTogether) {
  ::setenv("RINGFOLD_MESSAGE_BUFFER", "64K", 1);
  ncclUniqueId ids[2];
  for (auto& id : ids) NCCL_OK(ncclGetUniqueId(&id));
  std::vector<std::thread> threads;
  for (int r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      ncclComm_t comms[2] = {join(ids[0], 2, r, 1)[0], join(ids[1], 2, r, 1)[0]};
      auto ranks = make_ranks({comms[0]}, r);
      NcclRank& rank = ranks[0];
      auto stream = reinterpret_cast<cudaStream_t>(rank.stream);
      for (int round = 0; round < 3; ++round) {
        NCCL_OK(ncclGroupStart());
        for (int i = 0; i < 2; ++i) {
          const int c = i ^ r;
          void* part = static_cast<std::byte*>(rank.receive) + c * 4096;
          NCCL_OK(ncclAllReduce(part, part, 1000, ncclFloat32, ncclSum, comms[c], stream));
        }
        NCCL_OK(ncclSend(rank.send, kMostBytes, ncclInt8, 1 - r, comms[0], stream));
        NCCL_OK(ncclRecv(rank.receive, kMostBytes, ncclInt8, 1 - r, comms[0], stream));
        EXPECT_TRUE(cuda::idle(rank.stream));  // nothing before the end of the group
        NCCL_OK(ncclGroupEnd());
        synchronize(rank);
      }
      NCCL_OK(ncclCommDestroy(comms[1]));
      give_back(ranks);
    });
  }
  for (auto& t : threads) t.join();
  ::unsetenv("RINGFOLD_MESSAGE_BUFFER");
}

TEST_F(Nccl, CommunicatorsSplitAndShrink) {
  std::vector<ncclComm_t> comms(4);
  NCCL_OK(ncclCommInitAll(comms.data(), 4, nullptr));
  std::vector<ncclComm_t> halves(4), rest(3);
  NCCL_OK(ncclGroupStart());
  for (int r = 0; r < 4; ++r) NCCL_OK(ncclCommSplit(comms[r], r == 3 ? -1 : r % 2, -r, &halves[r], nullptr));
  NCCL_OK(ncclGroupEnd());
  EXPECT_EQ(halves[3], nullptr);
  int excluded = 1;
  NCCL_OK(ncclGroupStart());
  for (int r = 0, k = 0; r < 4; ++r) {
    if (r == excluded) continue;
    NCCL_OK(ncclCommShrink(comms[r], &excluded, 1, &rest[k++], nullptr, 0));
  }
  NCCL_OK(ncclGroupEnd());
  int number = -1;
  NCCL_OK(ncclCommUserRank(halves[0], &number));
  EXPECT_EQ(number, 1);  // by key
  NCCL_OK(ncclCommCount(halves[1], &number));
  EXPECT_EQ(number, 1);
  NCCL_OK(ncclCommUserRank(rest[2], &number));
  EXPECT_EQ(number, 2);
  NCCL_OK(ncclCommCuDevice(rest[2], &number));
  EXPECT_EQ(number, 3);
  auto ranks = make_ranks(rest, 0);
  play_everything(ranks, 3);
  give_back(ranks);
  for (ncclComm_t comm : halves) NCCL_OK(ncclCommDestroy(comm));
  for (ncclComm_t comm : comms) NCCL_OK(ncclCommDestroy(comm));
}

// Rank 1 does not come: rank 0 gives up from another thread, and its stream goes on.
TEST_F(Nccl, AnAbortFreesTheStreamAndTellsTheOther) {
  std::vector<ncclComm_t> comms(2);
  NCCL_OK(ncclCommInitAll(comms.data(), 2, nullptr));
  auto ranks = make_ranks(comms, 0);
  NCCL_OK(ncclAllReduce(ranks[0].send, ranks[0].receive, 1000, ncclFloat32, ncclSum, ranks[0].comm,
                        reinterpret_cast<cudaStream_t>(ranks[0].stream)));
  EXPECT_FALSE(cuda::synchronize(ranks[0].stream, 0.05));
  std::thread([&] { NCCL_OK(ncclCommAbort(ranks[0].comm)); }).join();
  EXPECT_TRUE(cuda::synchronize(ranks[0].stream, 10));
  ncclResult_t error = ncclSuccess;
  for (int i = 0; i < 5000 && error == ncclSuccess; ++i) {
    NCCL_OK(ncclCommGetAsyncError(ranks[1].comm, &error));
    std::this_thread::sleep_for(1ms);
  }
  EXPECT_EQ(error, ncclRemoteError) << last();
  EXPECT_NE(last().find("ncclCommAbort"), std::string::npos) << last();
  ranks[0].comm = nullptr;  // NULL is allowed
  give_back(ranks);
}

TEST_F(Nccl, RanksThatDisagreeGetAnAsynchronousError) {
  std::vector<ncclComm_t> comms(2);
  NCCL_OK(ncclCommInitAll(comms.data(), 2, nullptr));
  auto ranks = make_ranks(comms, 0);
  for (size_t r = 0; r < 2; ++r) {
    cuda::set_device(static_cast<int>(r));
    const auto called = ncclAllReduce(ranks[r].send, ranks[r].receive, 1000 + r, ncclFloat32, ncclSum, ranks[r].comm,
                                      reinterpret_cast<cudaStream_t>(ranks[r].stream));
    if (r == 1 && called == ncclInvalidUsage) continue;  // the first rank's call had come: it was told at once
    EXPECT_EQ(called, ncclSuccess) << last();
  }
  for (auto& rank : ranks) {
    EXPECT_TRUE(cuda::synchronize(rank.stream, 10));
    ncclResult_t error = ncclSuccess;
    NCCL_OK(ncclCommGetAsyncError(rank.comm, &error));
    EXPECT_EQ(error, ncclInvalidUsage) << last();
    EXPECT_NE(last().find("x1001"), std::string::npos) << last();
  }
  give_back(ranks);
}

TEST_F(Nccl, WhatIsNotSupportedOrWrongIsSaid) {
  ncclComm_t comm = nullptr;
  NCCL_OK(ncclCommInitAll(&comm, 1, nullptr));
  auto ranks = make_ranks({comm}, 0);
  void* memory = ranks[0].send;
  auto stream = reinterpret_cast<cudaStream_t>(ranks[0].stream);
  auto expect = [&](ncclResult_t result, ncclResult_t wanted, const char* part) {
    EXPECT_EQ(result, wanted) << last();
    EXPECT_NE(last().find(part), std::string::npos) << last();
  };
  ncclWindow_t window = nullptr;
  ncclRedOp_t op = ncclSum;
  ncclUniqueId id{};
  ncclComm_t other = nullptr;
  expect(ncclCommWindowRegister(comm, memory, 4, &window, 0), ncclInvalidUsage, "windows");
  expect(ncclCommWindowDeregister(comm, window), ncclInvalidUsage, "windows");
  expect(ncclDevCommCreate(comm, nullptr, nullptr), ncclInvalidUsage, "ncclDevCommCreate");
  expect(ncclDevCommDestroy(comm, nullptr), ncclInvalidUsage, "ncclDevCommDestroy");
  expect(ncclGroupSimulateEnd(nullptr), ncclInvalidUsage, "ncclGroupSimulateEnd");
  expect(ncclRedOpCreatePreMulSum(&op, memory, ncclFloat32, ncclScalarDevice, comm), ncclInvalidUsage,
         "HostImmediate");
  expect(ncclAllReduce(memory, memory, 4, ncclFloat8e4m3, ncclSum, comm, stream), ncclInvalidUsage, "8-bit floats");
  expect(ncclGroupEnd(), ncclInvalidUsage, "ncclGroupStart");
  expect(ncclAllReduce(memory, memory, 4, ncclFloat32, static_cast<ncclRedOp_t>(77), comm, stream),
         ncclInvalidArgument, "no operation");
  expect(ncclAllReduce(memory, memory, 4, static_cast<ncclDataType_t>(77), ncclSum, comm, stream),
         ncclInvalidArgument, "no data type");
  expect(ncclAllReduce(nullptr, memory, 4, ncclFloat32, ncclSum, comm, stream), ncclInvalidArgument, "null");
  expect(ncclAllReduce(memory, memory, 4, ncclFloat32, ncclSum, nullptr, stream), ncclInvalidArgument, "NULL");
  expect(ncclBroadcast(memory, memory, 4, ncclFloat32, 5, comm, stream), ncclInvalidArgument, "root 5");
  expect(ncclCommInitRank(&other, 2, id, 0), ncclInvalidArgument, "ncclUniqueId");
  expect(ncclCommInitRank(&other, 2, id, 2), ncclInvalidArgument, "rank 2 of 2");
  EXPECT_EQ(other, nullptr);
  // 8-bit floats may be moved.
  NCCL_OK(ncclBroadcast(memory, memory, 4, ncclFloat8e5m2, 0, comm, stream));
  synchronize(ranks[0]);
  give_back(ranks);
}

TEST_F(Nccl, MemoryIsTheDevices) {
  ncclComm_t comm = nullptr;
  NCCL_OK(ncclCommInitAll(&comm, 1, nullptr));
  void *memory = nullptr, *handle = nullptr;
  NCCL_OK(ncclMemAlloc(&memory, 1000));
  EXPECT_NE(cuda::alias(memory), nullptr);
  NCCL_OK(ncclCommRegister(comm, memory, 1000, &handle));
  NCCL_OK(ncclCommDeregister(comm, handle));
  NCCL_OK(ncclMemFree(memory));
  NCCL_OK(ncclCommFinalize(comm));
  NCCL_OK(ncclCommDestroy(comm));
}

// What nccl-tests 2.19 asks the linker for, when built with the headers of NCCL 2.28.
constexpr const char* kAskedByNcclTests[] = {"ncclAllGather",
                                             "ncclAllReduce",
                                             "ncclAlltoAll",
                                             "ncclBroadcast",
                                             "ncclCommAbort",
                                             "ncclCommCount",
                                             "ncclCommDeregister",
                                             "ncclCommDestroy",
                                             "ncclCommGetAsyncError",
                                             "ncclCommInitRankConfig",
                                             "ncclCommRegister",
                                             "ncclCommUserRank",
                                             "ncclCommWindowDeregister",
                                             "ncclCommWindowRegister",
                                             "ncclDevCommCreate",
                                             "ncclDevCommDestroy",
                                             "ncclGather",
                                             "ncclGetErrorString",
                                             "ncclGetUniqueId",
                                             "ncclGetVersion",
                                             "ncclGroupEnd",
                                             "ncclGroupStart",
                                             "ncclMemAlloc",
                                             "ncclMemFree",
                                             "ncclRecv",
                                             "ncclRedOpCreatePreMulSum",
                                             "ncclRedOpDestroy",
                                             "ncclReduce",
                                             "ncclReduceScatter",
                                             "ncclScatter",
                                             "ncclSend"};

TEST_F(Nccl, TheLibraryExportsWhatIsListedAndNothingElse) {
  std::set<std::string> listed, exported;
  std::ifstream list(RF_SOURCE_ROOT "/src/nccl/symbols.txt");
  for (std::string name; list >> name;) listed.insert(name);
  FILE* table = ::popen("nm -D --defined-only " RF_NCCL_LIBRARY, "r");
  ASSERT_NE(table, nullptr);
  char address[64], kind[8], name[256];
  while (std::fscanf(table, "%63s %7s %255s", address, kind, name) == 3) exported.insert(name);
  ASSERT_EQ(::pclose(table), 0);
  EXPECT_EQ(exported, listed);
  for (const char* asked : kAskedByNcclTests) EXPECT_TRUE(listed.contains(asked)) << asked;
  EXPECT_EQ(std::size(kAskedByNcclTests), 31U);
}

// A process without a driver, as a machine that only builds or looks at versions has it.
TEST_F(Nccl, DISABLED_WorksWithoutADriver) {
  int version = 0;
  NCCL_OK(ncclGetVersion(&version));
  EXPECT_EQ(version, 22600);
  ncclUniqueId id;
  NCCL_OK(ncclGetUniqueId(&id));
  void* memory = nullptr;
  EXPECT_EQ(ncclMemAlloc(&memory, 4), ncclUnhandledCudaError);
  EXPECT_NE(last().find("no CUDA driver"), std::string::npos) << last();
  ncclComm_t comm = nullptr;
  NCCL_OK(ncclCommInitRank(&comm, 1, id, 0));
  float value = 1;
  EXPECT_EQ(ncclAllReduce(&value, &value, 1, ncclFloat32, ncclSum, comm, nullptr), ncclUnhandledCudaError);
  EXPECT_NE(last().find("no CUDA driver"), std::string::npos) << last();
  NCCL_OK(ncclCommDestroy(comm));
}

TEST_F(Nccl, TheLibraryLoadsWithoutADriver) {
  Self("Nccl.DISABLED_WorksWithoutADriver", {"RINGFOLD_CUDA=/nowhere/libcuda.so.1"}).expect_success();
}

}  // namespace
}  // namespace ringfold::test
