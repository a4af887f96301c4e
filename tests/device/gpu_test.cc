// The same on a real GPU, where there is one: what the double only claims. Skipped, with the reason, where there is
// none.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "device/stream.h"
#include "tests/comm/ranks.h"

namespace ringfold::test {
namespace {

using namespace std::chrono_literals;

class Gpu : public testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    if (device::driver() == nullptr) GTEST_SKIP() << device::why_none();
    const Status started = device::check(device::driver()->init(0), "cuInit");
    if (!started.ok()) GTEST_SKIP() << started.to_string();
    if (device::driver()->device_count(&count) != 0 || count == 0) GTEST_SKIP() << "the driver sees no GPU";
    context_ = *device::primary_context(0);
    current_ = std::make_unique<device::Current>(context_);
  }

  // Streams as programs make them.
  static device::Stream make_stream() {
    device::Stream stream = nullptr;
    EXPECT_TRUE(
        device::check(device::driver()->stream_create(&stream, device::kNonBlockingStream), "cuStreamCreate").ok());
    return stream;
  }
  static bool wait(const device::Moment& moment, std::chrono::seconds most = 20s) {
    for (const auto until = std::chrono::steady_clock::now() + most; std::chrono::steady_clock::now() < until;) {
      auto over = moment.over();
      EXPECT_TRUE(over.ok()) << over.status().to_string();
      if (!over.ok() || *over) return over.ok();
      std::this_thread::sleep_for(100us);
    }
    return false;
  }

  device::Context context_ = nullptr;
  std::unique_ptr<device::Current> current_;
};

TEST_F(Gpu, MemoryIsKnownAndCopiesRunBothWays) {
  constexpr size_t kBytes = 3 << 20;
  auto memory = allocate(kBytes, Device{0});
  ASSERT_TRUE(memory.ok()) << memory.status().to_string();
  auto place = device::place_of(static_cast<std::byte*>(*memory) + kBytes - 1);
  ASSERT_TRUE(place.ok() && *place);
  auto host = device::pin(context_, kBytes), back = device::pin(context_, kBytes);
  ASSERT_TRUE(host.ok() && back.ok());
  auto unknown = device::place_of(host->get());
  EXPECT_TRUE(unknown.ok() && !*unknown);
  for (size_t i = 0; i < kBytes; ++i) (*host)[i] = static_cast<std::byte>(i * 7);
  auto stream = device::OwnStream::make(context_);
  ASSERT_TRUE(stream.ok());
  std::atomic<bool> woken{false};
  auto* device = static_cast<std::byte*>(*memory);
  expect_ok((*stream)->to_host(back->get(), device, kBytes));
  EXPECT_TRUE(wait(*(*stream)->now()));
  EXPECT_EQ((*back)[kBytes - 1], std::byte{0});  // zeroed
  expect_ok((*stream)->to_device(device, host->get(), kBytes));
  expect_ok((*stream)->to_host(back->get(), device, kBytes));
  auto end = (*stream)->mark([&] { woken = true; });
  ASSERT_TRUE(end.ok() && wait(*end));
  EXPECT_EQ(std::memcmp(host->get(), back->get(), kBytes), 0);
  for (int i = 0; i < 1000 && !woken; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_TRUE(woken);
  deallocate(*memory);
}

TEST_F(Gpu, AGateHoldsItsStream) {
  const auto stream = make_stream();
  auto gate = device::Gate::hold(context_, stream);
  ASSERT_TRUE(gate.ok()) << gate.status().to_string();
  auto behind = device::Moment::now(context_, stream);
  ASSERT_TRUE(behind.ok());
  std::this_thread::sleep_for(50ms);
  EXPECT_FALSE(*behind->over());
  gate->open();
  EXPECT_TRUE(wait(*behind));
  device::driver()->stream_destroy(stream);
}

// Training steps that the host never waits for: values to the device, a sum over two ranks of this GPU, the sum back.
TEST_F(Gpu, CallsOnAStreamAreOrderedInIt) {
  constexpr size_t kElems = 1'500'000, kSteps = 10;
  Ranks ranks(2);
  ranks.each([&](Communicator& comm) {
    const device::Current current(context_);
    const auto me = static_cast<float>(comm.rank());
    const auto stream = make_stream();
    auto memory = allocate(kElems * 4, Device{0});
    ASSERT_TRUE(memory.ok());
    std::vector<device::Pinned> in, out;
    for (size_t step = 0; step < kSteps; ++step) {
      in.push_back(*device::pin(context_, kElems * 4));
      out.push_back(*device::pin(context_, kElems * 4));
      auto* values = reinterpret_cast<float*>(in.back().get());
      for (size_t i = 0; i < kElems; ++i) values[i] = static_cast<float>((i + step) % 1000) + me;
    }
    CallOptions on_stream;
    on_stream.stream = stream;
    const auto address = reinterpret_cast<device::Address>(*memory);
    const auto* d = device::driver();
    for (size_t step = 0; step < kSteps; ++step) {
      ASSERT_EQ(d->copy_to_device(address, in[step].get(), kElems * 4, stream), 0);
      comm.all_reduce(*memory, *memory, kElems, DataType::kF32, kSum, on_stream);
      ASSERT_EQ(d->copy_to_host(out[step].get(), address, kElems * 4, stream), 0);
    }
    ASSERT_TRUE(wait(*device::Moment::now(context_, stream)));
    for (size_t step = 0; step < kSteps; ++step) {
      const auto* values = reinterpret_cast<const float*>(out[step].get());
      for (size_t i = 0; i < kElems; ++i) ASSERT_EQ(values[i], 2 * static_cast<float>((i + step) % 1000) + 1);
    }
    deallocate(*memory);
    d->stream_destroy(stream);
  });
}

}  // namespace
}  // namespace ringfold::test
