// Calls on CUDA tensors, without CUDA: PyTorch's interface to streams and events of a device (c10's DeviceGuardImpl)
// is put on the driver's double, and tensors lie in its memory. Ranks are threads.
#include <c10/core/TensorImpl.h>
#include <gtest/gtest.h>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include <cstdlib>
#include <thread>

#include "ringfold/memory.h"
#include "tests/device/cuda_double.h"
#include "torch/process_group.h"

namespace ringfold::pytorch {
namespace {

namespace cuda = test::cuda;

const bool kChosen = ::setenv("RINGFOLD_CUDA", RF_CUDA_DOUBLE, 1) == 0;

thread_local c10::DeviceIndex current_device = 0;
thread_local std::map<c10::DeviceIndex, c10::StreamId> current_streams;
std::atomic<int> recorded{0};  // memory that was said to be in use on a stream

cuda::Stream driver_stream(const c10::Stream& stream) { return reinterpret_cast<cuda::Stream>(stream.id()); }

// A stream's id is the driver's pointer, an event a count of how often it was recorded and passed.
struct DoubledDevices final : c10::impl::DeviceGuardImplInterface {
  struct Event {
    std::mutex mutex;
    std::condition_variable changed;
    int recorded = 0, passed = 0;
  };
  using Shared = std::shared_ptr<Event>;
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device getDevice() const override { return {c10::kCUDA, current_device}; }
  void setDevice(c10::Device device) const override { uncheckedSetDevice(device); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    current_device = device.index();
    cuda::set_device(device.index());
  }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Stream getStream(c10::Device device) const noexcept override {
    return c10::Stream(c10::Stream::UNSAFE, device, current_streams[device.index()]);
  }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override {
    const auto before = getStream(stream.device());
    current_streams[stream.device_index()] = stream.id();
    return before;
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    const auto before = exchangeDevice(device);
    const auto made = reinterpret_cast<c10::StreamId>(cuda::make_stream());
    setDevice(before);
    return c10::Stream(c10::Stream::UNSAFE, device, made);
  }
  c10::DeviceIndex deviceCount() const noexcept override { return cuda::kDevices; }
  void record(void** event, const c10::Stream& stream, c10::DeviceIndex, c10::EventFlag) const override {
    if (*event == nullptr) *event = new Shared(std::make_shared<Event>());
    Shared shared = *static_cast<Shared*>(*event);
    const std::lock_guard lock(shared->mutex);
    cuda::launch(driver_stream(stream), [shared, number = ++shared->recorded] {
      const std::lock_guard passing(shared->mutex);
      shared->passed = number;
      shared->changed.notify_all();
    });
  }
  void block(void* event, const c10::Stream& stream) const override {
    Shared shared = *static_cast<Shared*>(event);
    cuda::launch(driver_stream(stream), [shared, number = shared->recorded] {
      std::unique_lock lock(shared->mutex);
      shared->changed.wait(lock, [&] { return shared->passed >= number; });
    });
  }
  bool queryEvent(void* event) const override {
    const auto& shared = *static_cast<Shared*>(event);
    const std::lock_guard lock(shared->mutex);
    return shared->passed >= shared->recorded;
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override { delete static_cast<Shared*>(event); }
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override { ++recorded; }
};
C10_REGISTER_GUARD_IMPL(CUDA, DoubledDevices);

// Of int32, in the double's memory: nothing that PyTorch has can touch it.
at::Tensor device_tensor(int64_t elements) {
  const size_t bytes = static_cast<size_t>(elements) * 4;
  c10::DataPtr data(cuda::allocate(bytes), {c10::kCUDA, current_device});
  c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, std::move(data), nullptr, false);
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CUDA), caffe2::TypeMeta::Make<int32_t>());
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous({elements});
  return tensor;
}
int32_t* values(const at::Tensor& tensor) { return reinterpret_cast<int32_t*>(cuda::alias(tensor.data_ptr())); }

class DeviceTensors : public testing::Test {
 protected:
  static constexpr int kRanks = 2;
  void SetUp() override {
    ASSERT_TRUE(kChosen);
    stream_handle() = [](const c10::Stream& stream) -> void* { return driver_stream(stream); };
  }
  void TearDown() override {
    cuda::mend();
    cuda::set_lag(0);
    EXPECT_EQ(cuda::complaints(), std::vector<std::string>());
  }
  // Each rank is a thread with a device, and a current stream that is not the default one.
  static void play(const std::function<void(ProcessGroupRingfold&, cuda::Stream)>& body, double timeout_s = 20) {
    ringfold::Options options;
    options.background = true;
    options.timeout_s = timeout_s;
    auto comms = Communicator::init_local(kRanks, options);
    ASSERT_TRUE(comms.ok()) << comms.status().to_string();
    const auto store = c10::make_intrusive<c10d::HashStore>();
    std::vector<std::thread> ranks;
    for (int r = 0; r < kRanks; ++r) {
      ranks.emplace_back([&, r] {
        DoubledDevices().setDevice({c10::kCUDA, static_cast<c10::DeviceIndex>(r)});
        auto* stream = cuda::make_stream();
        current_streams[current_device] = reinterpret_cast<c10::StreamId>(stream);
        GroupOptions group_options;
        group_options.timeout_s = timeout_s;
        auto group = c10::make_intrusive<ProcessGroupRingfold>(
            store, r, kRanks, group_options, std::make_shared<Communicator>(std::move((*comms)[size_t(r)])));
        body(*group, stream);
        EXPECT_TRUE(cuda::synchronize(stream));
        group.reset();
        cuda::destroy(stream);
      });
    }
    for (auto& rank : ranks) rank.join();
  }
};

TEST_F(DeviceTensors, ACallComesAfterTheCurrentStreamAndWaitHoldsTheStreamOnly) {
  cuda::set_lag(2000);
  play([](ProcessGroupRingfold& group, cuda::Stream stream) {
    const int64_t elements = 1000;
    auto tensor = device_tensor(elements);
    std::atomic<bool> open{false};
    const int before = recorded;
    cuda::launch(stream, [&, data = values(tensor), rank = group.getRank()] {
      while (!open) std::this_thread::yield();
      for (int i = 0; i < elements; ++i) data[i] = 100 * (rank + 1) + i;
    });
    Tensors tensors = {tensor};
    auto work = group.allreduce(tensors);
    EXPECT_TRUE(work->wait());  // or this would hang
    EXPECT_FALSE(work->isCompleted());
    std::vector<int32_t> seen(elements);
    cuda::launch(stream, [&, data = values(tensor)] { std::copy_n(data, elements, seen.begin()); });
    open = true;
    ASSERT_TRUE(cuda::synchronize(stream));
    for (int i = 0; i < elements; ++i) ASSERT_EQ(seen[size_t(i)], 300 + 2 * i) << i;
    EXPECT_GT(recorded, before);
    EXPECT_TRUE(work->wait(std::chrono::seconds(20)));
    EXPECT_TRUE(work->isCompleted());
    EXPECT_EQ(current_streams[current_device], reinterpret_cast<c10::StreamId>(stream));  // as it was
  });
}

TEST_F(DeviceTensors, WorkAfterACallRunsBesideItUntilItIsWaitedFor) {
  play([](ProcessGroupRingfold& group, cuda::Stream stream) {
    auto tensor = device_tensor(8);
    std::fill_n(values(tensor), 8, 1);
    std::atomic<bool> ran{false};
    Tensors tensors = {tensor};
    WorkPtr work;
    if (group.getRank() == 0) {
      work = group.allreduce(tensors);
      cuda::launch(stream, [&] { ran = true; });
      EXPECT_TRUE(cuda::synchronize(stream));  // the other rank has not called, perhaps for long
      EXPECT_TRUE(ran);
      auto go = device_tensor(1);
      Tensors message = {go};
      group.send(message, 1, 0)->wait(std::chrono::seconds(20));
    } else {
      auto go = device_tensor(1);
      Tensors message = {go};
      group.recv(message, 0, 0)->wait(std::chrono::seconds(20));
      work = group.allreduce(tensors);
    }
    work->wait();
    ASSERT_TRUE(cuda::synchronize(stream));
    EXPECT_EQ(values(tensor)[7], 2);
  });
}

TEST_F(DeviceTensors, AFutureIsCompleteAtOnceAndItsUsersWaitOnTheDevice) {
  play([](ProcessGroupRingfold& group, cuda::Stream stream) {
    auto input = device_tensor(4), output = device_tensor(4 * kRanks);
    cuda::launch(stream, [&, data = values(input), rank = group.getRank()] { std::fill_n(data, 4, rank + 5); });
    auto future = group._allgather_base(output, input)->getFuture();
    EXPECT_TRUE(future->completed());
    future->wait();  // has the current stream wait
    std::vector<int32_t> seen(8);
    cuda::launch(stream, [&, data = values(output)] { std::copy_n(data, 8, seen.begin()); });
    ASSERT_TRUE(cuda::synchronize(stream));
    EXPECT_EQ(seen, (std::vector<int32_t>{5, 5, 5, 5, 6, 6, 6, 6}));
  });
}

TEST_F(DeviceTensors, ARankThatNeverCallsIsNamedByTheNextWaitAndHoldsNoStream) {
  play(
      [](ProcessGroupRingfold& group, cuda::Stream stream) {
        if (group.getRank() == 1) {
          std::this_thread::sleep_for(std::chrono::milliseconds(900));
          return;
        }
        auto tensor = device_tensor(8);
        Tensors tensors = {tensor};
        auto work = group.allreduce(tensors);
        EXPECT_TRUE(work->wait());
        EXPECT_TRUE(cuda::synchronize(stream));
        try {
          work->wait(std::chrono::seconds(20));
          ADD_FAILURE() << "it did not fail";
        } catch (const Error& error) {
          EXPECT_NE(std::string(error.what()).find("rank 1"), std::string::npos) << error.what();
        }
        EXPECT_THROW(group.allreduce(tensors)->wait(std::chrono::seconds(20)), Error);
      },
      0.3);
}

TEST_F(DeviceTensors, WhatCannotBeIsRefused) {
  play([](ProcessGroupRingfold& group, cuda::Stream) {
    auto here = device_tensor(4), host = at::zeros({8}, at::kInt);
    EXPECT_THROW(group._allgather_base(host, here), Error);
  });
  stream_handle() = nullptr;  // as in a build for the CPU
  play([](ProcessGroupRingfold& group, cuda::Stream) {
    Tensors tensors = {device_tensor(4)};
    try {
      group.allreduce(tensors);
      ADD_FAILURE() << "it took a tensor of a device";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("without CUDA"), std::string::npos) << error.what();
    }
  });
}

}  // namespace
}  // namespace ringfold::pytorch
