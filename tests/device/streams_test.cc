// Calls on streams: they begin after the stream's work before them, later work waits for them, and no end of theirs
// leaves a stream standing.
#include <cstring>
#include <thread>

#include "tests/device/device_buffers.h"

namespace ringfold::test {
namespace {

using namespace std::chrono_literals;

constexpr size_t kCount = 5000;     // with pieces of 4 KiB: five
constexpr auto kDefaultStream = 1;  // CU_STREAM_LEGACY

class DeviceStreams : public DeviceTest, public testing::WithParamInterface<bool> {
 protected:
  DeviceStreams() { cuda::allow_stream_waits(GetParam()); }
  static CallOptions on(cuda::Stream stream) {
    CallOptions options;
    options.stream = stream;
    return options;
  }
  const Variable stage_{"RINGFOLD_STAGE", "4K"};
};

float* floats(void* device) { return reinterpret_cast<float*>(cuda::alias(device)); }

void fill(float* values, float value) { std::fill(values, values + kCount, value); }

// What a training step does, and never waits for on the host: compute, reduce, use the result, again and again.
TEST_P(DeviceStreams, OrderCallsAmongTheirOtherWork) {
  constexpr int kSteps = 12;
  for (unsigned seed = 1; seed <= 4; ++seed) {
    cuda::set_lag(400, seed);
    Ranks ranks(3);
    each(ranks, [&](Communicator& comm) {
      auto stream = cuda::make_stream();
      void* memory = cuda::allocate(kCount * 4);
      float* values = floats(memory);
      std::vector<std::vector<float>> seen;
      for (int step = 0; step < kSteps; ++step) {
        seen.emplace_back(kCount);
        cuda::launch(stream, [=, &comm] { fill(values, static_cast<float>(step + comm.rank())); });
        Work work = comm.all_reduce(memory, memory, kCount, DataType::kF32, kSum, on(stream));
        cuda::launch(stream, [=, to = seen.back().data()] { std::copy(values, values + kCount, to); });
      }
      ASSERT_TRUE(cuda::synchronize(stream));
      for (int step = 0; step < kSteps; ++step) {
        for (float value : seen[static_cast<size_t>(step)]) ASSERT_EQ(value, static_cast<float>(3 * step + 3));
      }
      cuda::free(memory);
      cuda::destroy(stream);
    });
  }
}

TEST_P(DeviceStreams, TakeCallsOnHostMemoryAndMessagesAndTheDefaultStream) {
  Ranks ranks(2);
  each(ranks, [&](Communicator& comm) {
    auto stream = reinterpret_cast<cuda::Stream>(uintptr_t{kDefaultStream});
    const int peer = 1 - comm.rank();
    std::vector<float> out(kCount), in(kCount), sum(kCount), kept(kCount);
    void* memory = cuda::allocate(kCount * 4);
    float* values = floats(memory);
    cuda::launch(stream, [&] {
      std::this_thread::sleep_for(10ms);
      fill(out.data(), static_cast<float>(comm.rank() + 1));
      fill(values, static_cast<float>(comm.rank() + 10));
    });
    comm.all_reduce(out.data(), sum.data(), kCount, DataType::kF32, kSum, on(stream));
    comm.barrier(on(stream));
    comm.send(memory, kCount, DataType::kF32, peer, 3, on(stream));
    comm.recv(in.data(), kCount, DataType::kF32, peer, 3, on(stream));
    cuda::launch(stream, [&] { kept = in; });
    ASSERT_TRUE(cuda::synchronize(stream));
    for (float v : sum) ASSERT_EQ(v, 3);
    for (float v : kept) ASSERT_EQ(v, static_cast<float>(peer + 10));
    cuda::free(memory);
  });
}

// Two streams that wait for each other's calls, by program order.
TEST_P(DeviceStreams, OfOneCommunicatorMayBeMany) {
  cuda::set_lag(300, 5);
  Ranks ranks(2);
  each(ranks, [&](Communicator& comm) {
    cuda::Stream streams[3];
    void* memory[3];
    for (int s = 0; s < 3; ++s) {
      streams[s] = cuda::make_stream();
      memory[s] = cuda::allocate(kCount * 4);
    }
    for (int i = 0; i < 12; ++i) {
      const int s = i % 3;
      float* values = floats(memory[s]);
      cuda::launch(streams[s], [=] { fill(values, static_cast<float>(i)); });
      comm.all_reduce(memory[s], memory[s], kCount, DataType::kF32, kSum, on(streams[s]));
    }
    for (int s = 0; s < 3; ++s) {
      ASSERT_TRUE(cuda::synchronize(streams[s]));
      EXPECT_EQ(floats(memory[s])[kCount - 1], static_cast<float>(2 * (9 + s)));
      cuda::free(memory[s]);
      cuda::destroy(streams[s]);
    }
  });
}

TEST_P(DeviceStreams, AreRefusedWhileTheyAreCaptured) {
  Ranks ranks(1);
  each(ranks, [&](Communicator& comm) {
    auto stream = cuda::make_stream();
    cuda::set_capturing(true);
    const Status s = comm.barrier(on(stream)).wait();
    EXPECT_EQ(s.code(), Code::kInvalid);
    EXPECT_NE(s.message().find("captured"), std::string::npos) << s.to_string();
    cuda::set_capturing(false);
    EXPECT_TRUE(cuda::idle(stream));
    cuda::destroy(stream);
  });
}

// Rank 1 never makes the call; another thread of rank 0 gives up.
TEST_P(DeviceStreams, GoOnAfterAnAbortFromAnotherThread) {
  Ranks ranks(2);
  each(ranks, [&](Communicator& comm) {
    if (comm.rank() == 1) {
      while (comm.status().ok()) std::this_thread::sleep_for(1ms);
      return;
    }
    auto stream = cuda::make_stream();
    void* memory = cuda::allocate(kCount * 4);
    std::vector<Work> works;
    for (int i = 0; i < 6; ++i) {
      works.push_back(comm.all_reduce(memory, memory, kCount, DataType::kF32, kSum, on(stream)));
    }
    works.push_back(comm.recv(memory, kCount, DataType::kF32, 1, 0, on(stream)));
    EXPECT_FALSE(cuda::synchronize(stream, 0.05));
    std::thread other([&] { comm.abort("enough"); });
    EXPECT_TRUE(cuda::synchronize(stream, 10));
    for (auto& work : works) {
      const Status s = work.wait_for(10);
      ASSERT_NE(s.verdict(), nullptr) << s.to_string();
      EXPECT_NE(s.message().find("enough"), std::string::npos) << s.to_string();
    }
    // And so does one that is called now.
    EXPECT_FALSE(comm.all_reduce(memory, memory, kCount, DataType::kF32, kSum, on(stream)).wait().ok());
    EXPECT_TRUE(cuda::synchronize(stream, 10));
    other.join();
    cuda::free(memory);
    cuda::destroy(stream);
  });
}

TEST_P(DeviceStreams, GoOnWhenTheCommunicatorIsDestroyed) {
  auto made = Communicator::init_local(2, patient());
  ASSERT_TRUE(made.ok());
  cuda::set_device(0);
  auto stream = cuda::make_stream();
  void* memory = cuda::allocate(kCount * 4);
  Work work = (*made)[0].all_reduce(memory, memory, kCount, DataType::kF32, kSum, on(stream));
  EXPECT_FALSE(cuda::synchronize(stream, 0.02));
  made->clear();
  EXPECT_TRUE(cuda::synchronize(stream, 10));
  EXPECT_EQ(work.wait().code(), Code::kAborted);
  cuda::free(memory);
  cuda::destroy(stream);
}

// Work before the call that never ends holds it up only until its deadline, on all ranks.
TEST_P(DeviceStreams, ThatDoNotMoveEndTheirCallsByTheDeadline) {
  Options options = patient();
  options.timeout_s = 0.5;
  Ranks ranks(2, options);
  std::atomic<bool> go{false};
  each(ranks, [&](Communicator& comm) {
    auto stream = cuda::make_stream();
    void* memory = cuda::allocate(kCount * 4);
    if (comm.rank() == 0) {
      cuda::launch(stream, [&] {
        while (!go) std::this_thread::sleep_for(1ms);
      });
    }
    const auto begin = std::chrono::steady_clock::now();
    Work work = comm.all_reduce(memory, memory, kCount, DataType::kF32, kSum, on(stream));
    const Status s = work.wait();
    EXPECT_EQ(s.code(), Code::kTimeout) << s.to_string();
    EXPECT_LT(std::chrono::steady_clock::now() - begin, 15s);
    if (comm.rank() == 0) go = true;
    EXPECT_TRUE(cuda::synchronize(stream, 10));
    while (!cuda::all_idle()) std::this_thread::sleep_for(1ms);  // the copies that the call gave up run now
    cuda::free(memory);
    cuda::destroy(stream);
  });
}

INSTANTIATE_TEST_SUITE_P(By, DeviceStreams, testing::Bool(),
                         [](const auto& info) { return info.param ? "StreamWaits" : "HostFunctions"; });

}  // namespace
}  // namespace ringfold::test
