// The layer over the driver: where pointers lead, memory, moments and gates.
#include "device/driver.h"

#include <thread>

#include "device/stream.h"
#include "ringfold/memory.h"
#include "tests/device/device_buffers.h"

namespace ringfold::test {
namespace {

using DeviceDriver = DeviceTest;

device::Stream stream_of_ours() { return reinterpret_cast<device::Stream>(cuda::make_stream()); }
cuda::Stream handle(device::Stream s) { return reinterpret_cast<cuda::Stream>(s); }

TEST_F(DeviceDriver, PointersOfTheDeviceAreKnownFromThoseOfTheHost) {
  cuda::set_device(2);
  void* memory = cuda::allocate(100);
  auto place = device::place_of(memory);
  ASSERT_TRUE(place.ok());
  EXPECT_EQ(place->context, *device::current_context());
  auto inside = device::place_of(static_cast<char*>(memory) + 99);
  EXPECT_TRUE(inside.ok() && *inside == *place);
  int on_stack = 0;
  for (const void* host : {static_cast<const void*>(&on_stack), static_cast<const void*>(nullptr)}) {
    auto found = device::place_of(host);
    EXPECT_TRUE(found.ok() && !*found);
  }
  auto pinned = device::pin(place->context, 5000);
  ASSERT_TRUE(pinned.ok());
  auto found = device::place_of(pinned->get());
  EXPECT_TRUE(found.ok() && !*found);
  cuda::free(memory);
}

TEST_F(DeviceDriver, MemoryOfADeviceIsAllocatedZeroedAndGivenBack) {
  for (int d = 0; d < cuda::kDevices; ++d) {
    auto memory = allocate(5000, Device{d});
    ASSERT_TRUE(memory.ok()) << memory.status().to_string();
    cuda::set_device(d);
    auto place = device::place_of(*memory);
    EXPECT_TRUE(place.ok() && place->context == *device::current_context());
    for (int i = 0; i < 5000; ++i) ASSERT_EQ(cuda::alias(*memory)[i], std::byte{0});
    deallocate(*memory);
  }
  auto none = allocate(1, Device{cuda::kDevices});
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.status().code(), Code::kInvalid);
  cuda::fail("cuMemAlloc", 2);
  auto full = allocate(1, Device{0});
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.status().code(), Code::kUnavailable);
  EXPECT_NE(full.status().message().find("cuMemAlloc"), std::string::npos) << full.status().to_string();
}

// Who touches device memory on the host would not get far in the other tests, either.
TEST_F(DeviceDriver, TheDoublesMemoryCannotBeTouchedByTheHost) {
  void* memory = cuda::allocate(100);
  EXPECT_DEATH({ *static_cast<volatile char*>(memory) = 1; }, "");
  cuda::free(memory);
}

TEST_F(DeviceDriver, AMomentIsOverWhenTheWorkBeforeItIs) {
  const auto context = *device::current_context();
  const auto stream = stream_of_ours();
  std::atomic<bool> go{false};
  cuda::launch(handle(stream), [&] {
    while (!go) std::this_thread::yield();
  });
  auto moment = device::Moment::now(context, stream);
  ASSERT_TRUE(moment.ok());
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(*moment->over());
  go = true;
  ASSERT_TRUE(cuda::synchronize(handle(stream)));
  EXPECT_TRUE(*moment->over());
  cuda::set_capturing(true);
  auto captured = device::Moment::now(context, stream);
  ASSERT_FALSE(captured.ok());
  EXPECT_EQ(captured.status().code(), Code::kInvalid);
  cuda::destroy(handle(stream));
}

TEST_F(DeviceDriver, AGateHoldsItsStreamAndNoOther) {
  const auto context = *device::current_context();
  for (bool waits : {true, false}) {
    cuda::allow_stream_waits(waits);
    const auto held = stream_of_ours(), other = stream_of_ours();
    std::atomic<int> ran{0};
    {
      auto gate = device::Gate::hold(context, held);
      ASSERT_TRUE(gate.ok()) << gate.status().to_string();
      cuda::launch(handle(held), [&] { ++ran; });
      cuda::launch(handle(other), [&] { ran += 10; });
      ASSERT_TRUE(cuda::synchronize(handle(other)));
      EXPECT_FALSE(cuda::synchronize(handle(held), 0.02));
      EXPECT_EQ(ran, 10);
    }  // a gate that goes opens
    ASSERT_TRUE(cuda::synchronize(handle(held)));
    EXPECT_EQ(ran, 11);
    // Words are used again, and hold again.
    auto again = device::Gate::hold(context, held);
    ASSERT_TRUE(again.ok());
    EXPECT_FALSE(cuda::synchronize(handle(held), 0.02));
    again->open();
    ASSERT_TRUE(cuda::synchronize(handle(held)));
    cuda::destroy(handle(held));
    cuda::destroy(handle(other));
  }
}

TEST_F(DeviceDriver, ErrorsNameTheirFunction) {
  const Status s = device::check(700, "cuMemcpyDtoHAsync");
  EXPECT_EQ(s.to_string(), "I/O error: CUDA driver: cuMemcpyDtoHAsync: CUDA_ERROR_700 (700: on order)");
  EXPECT_TRUE(device::check(0, "cuInit").ok());
}

}  // namespace
}  // namespace ringfold::test
