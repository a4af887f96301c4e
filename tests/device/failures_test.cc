// What goes wrong: ranks that disagree about memory, drivers that fail. Every rank's calls end, with a cause that can
// be read, and nothing is left behind.
#include <barrier>
#include <cstring>

#include "tests/device/device_buffers.h"
#include "tests/support/expect_log.h"

namespace ringfold::test {
namespace {

constexpr size_t kElems = 5000;

class DeviceFailures : public DeviceTest {
 protected:
  const Variable stage_{"RINGFOLD_STAGE", "4K"};
};

TEST_F(DeviceFailures, RanksThatDisagreeAboutTheMemoryAreTold) {
  for (size_t count : {size_t{1}, kElems}) {
    Ranks ranks(2);
    each(ranks, [&](Communicator& comm) {
      Call call;
      call.shape = {Collective::kAllReduce, 2, 0};
      call.count = count;
      const bool device = comm.rank() == 0;
      DeviceBuffers buffers(call, comm.rank(), {device, device});
      const Status s = start(comm, call, buffers.input(), buffers.output()).wait();
      EXPECT_EQ(s.code(), Code::kMismatch);
      EXPECT_NE(s.message().find("of device memory (one piece)"), std::string::npos) << s.to_string();
    });
  }
}

TEST_F(DeviceFailures, WrongArgumentsAreRefusedAtOnce) {
  Ranks ranks(1);
  cuda::set_device(0);
  auto* memory = static_cast<std::byte*>(cuda::allocate(4096));
  auto refused = [](Work work) {
    ASSERT_TRUE(work.done());
    EXPECT_EQ(work.wait().code(), Code::kInvalid) << work.wait().to_string();
  };
  refused(ranks[0].all_reduce(memory, memory + 4, 100, DataType::kF32));
  refused(ranks[0].all_reduce(memory, nullptr, 100, DataType::kF32));
  refused(ranks[0].all_reduce(memory, memory, 100, static_cast<DataType>(99)));
  refused(ranks[0].all_reduce(memory, memory, 100, DataType::kI32, ReduceOp::scaled_sum(2)));
  refused(ranks[0].broadcast(memory, memory, 100, DataType::kF32, 7));
  cuda::free(memory);
}

// Each function of the driver that a call needs fails once, at its first, second, ... call.
TEST_F(DeviceFailures, OfEachFunctionOfTheDriverHaveItsName) {
  const char* const functions[] = {"cuPointerGetAttributes", "cuStreamCreate",      "cuMemHostRegister",
                                   "cuMemcpyDtoHAsync",      "cuMemcpyHtoDAsync",   "cuLaunchHostFunc",
                                   "cuEventCreate",          "cuEventRecord",       "cuEventQuery",
                                   "cuStreamWaitEvent",      "cuStreamWaitValue32", "cuStreamIsCapturing",
                                   "cuStreamGetCtx",         "cuCtxPushCurrent",    "cuMemHostGetDevicePointer"};
  Options options = patient();
  options.timeout_s = 20;
  int named = 0;
  for (const char* function : functions) {
    int failed = 0;
    for (int after : {0, 1, 2, 5, 9}) {
      Ranks ranks(2, options);
      Status first[2];
      std::barrier ready(2, [&]() noexcept { cuda::fail(function, 987, after); });
      std::barrier over(2);
      each(ranks, [&](Communicator& comm) {
        const auto me = static_cast<size_t>(comm.rank());
        auto stream = cuda::make_stream();
        void* memory = cuda::allocate(4 * kElems);
        ready.arrive_and_wait();
        CallOptions on_stream;
        on_stream.stream = stream;
        first[me] = comm.all_reduce(memory, memory, kElems, DataType::kF32, kSum, on_stream).wait();
        // A rank whose call did not even start has to tell the other, as with any refused call.
        if (!first[me].ok() && comm.status().ok()) comm.abort(first[me].message());
        EXPECT_TRUE(cuda::synchronize(stream, 10));
        over.arrive_and_wait();
        cuda::mend();
        cuda::free(memory);
        cuda::destroy(stream);
      });
      if (first[0].ok() && first[1].ok()) continue;
      ++failed;
      // The rank where it happened knows; the other may have had its result by then.
      for (const Status& s : first) {
        if (s.ok()) continue;
        EXPECT_NE(s.message().find(function), std::string::npos) << after << ": " << s.to_string();
      }
    }
    EXPECT_GT(failed, 0) << function;
    named += failed;
  }
  EXPECT_GT(named, 40);
}

TEST_F(DeviceFailures, OfTheWholeDeviceEndEveryCall) {
  Options options = patient();
  options.timeout_s = 20;
  for (int after : {0, 3, 8}) {
    Ranks ranks(2, options);
    each(ranks, [&](Communicator& comm) {
      auto stream = cuda::make_stream();
      void* memory = cuda::allocate(4 * kElems);
      CallOptions on_stream;
      on_stream.stream = stream;
      if (comm.rank() == 0) cuda::break_copy(700, after);
      std::vector<Work> works;
      for (int i = 0; i < 4; ++i) {
        works.push_back(comm.all_reduce(memory, memory, kElems, DataType::kF32, kSum, on_stream));
      }
      bool failed = false;
      for (auto& work : works) {
        Status s = work.wait_for(15);
        EXPECT_TRUE(work.done());
        failed |= !s.ok();
      }
      EXPECT_TRUE(failed);
    });
    cuda::mend();
  }
  // What a broken device still had is kept, since nobody knows when it lets go of it: so nothing is compared here.
  forget_what_is_left();
}

}  // namespace
}  // namespace ringfold::test
