#include "tests/device/device_buffers.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "ringfold/memory.h"

namespace ringfold::test {
namespace {

// Before anything looks for a driver.
const bool kChosen = [] { return ::setenv("RINGFOLD_CUDA", RF_CUDA_DOUBLE, 1) == 0; }();

constexpr std::byte kFill{0x5a};

}  // namespace

DeviceBuffers::Copy::Copy(const std::byte* host, size_t size)
    : memory(static_cast<std::byte*>(cuda::allocate(size + 2 * kGuard))), bytes(size) {
  std::byte* seen = cuda::alias(memory);
  std::fill(seen, seen + bytes + 2 * kGuard, kFill);
  if (bytes > 0) std::memcpy(seen + kGuard, host, bytes);
}
DeviceBuffers::Copy::~Copy() { cuda::free(memory); }
std::byte* DeviceBuffers::Copy::data() const { return memory + kGuard; }
bool DeviceBuffers::Copy::guarded() const {
  const std::byte* seen = cuda::alias(memory);
  auto filled = [](const std::byte* from) {
    return std::all_of(from, from + kGuard, [](std::byte b) { return b == kFill; });
  };
  return filled(seen) && filled(seen + kGuard + bytes);
}

DeviceBuffers::DeviceBuffers(const Call& call, int rank, OnDevice where)
    : host_(call, rank), input_(host_.input()), output_(host_.output()) {
  const auto layout = call.layout(rank);
  const size_t in = layout.input_elems() * size_of(call.type), out = layout.output_elems() * size_of(call.type);
  output_bytes_ = out;
  if (call.in_place && in > 0 && out > 0) {
    if (!where.input && !where.output) return;
    const std::byte* low = std::min<const std::byte*>(input_, output_);
    first_ = std::make_unique<Copy>(low, std::max(in, out));
    input_ = first_->data() + (input_ - low);
    output_ = first_->data() + (output_ - low);
    return;
  }
  if (where.input && in > 0) {
    first_ = std::make_unique<Copy>(input_, in);
    input_ = first_->data();
  }
  if (where.output && out > 0) {
    second_ = std::make_unique<Copy>(output_, out);
    output_ = second_->data();
  }
}

DeviceBuffers::~DeviceBuffers() = default;

std::string DeviceBuffers::check() {
  for (const auto& copy : {first_.get(), second_.get()}) {
    if (copy != nullptr && !copy->guarded()) return "wrote outside of the device's buffers";
  }
  if (output_ != host_.output() && output_bytes_ > 0) {
    std::memcpy(host_.output(), cuda::alias(output_), output_bytes_);
  }
  return host_.check();
}

DeviceTest::DeviceTest()
    : nvlink_("RINGFOLD_NVLINK", std::getenv("RINGFOLD_TEST_NVLINK") ? std::getenv("RINGFOLD_TEST_NVLINK") : "off") {
  EXPECT_TRUE(kChosen);
  cuda::set_device(0);
  cuda::mend();
  cuda::set_lag(0);
  cuda::allow_stream_waits(true);
  cuda::let_peers_reach(true);
  cuda::let_share(true);
  cuda::let_multicast(false);
  cuda::let_export(true);
  cuda::let_see_writes(true);
  cuda::set_capturing(false);
  // The page of words that gates use stays for good: it is there from here on.
  static const bool kWarm = [] {
    Ranks one(1);
    auto* stream = cuda::make_stream();
    CallOptions options;
    options.stream = stream;
    expect_ok(one[0].barrier(options));
    cuda::synchronize(stream);
    cuda::destroy(stream);
    return true;
  }();
  EXPECT_TRUE(kWarm);
  before_ = cuda::live();
  cuda::complaints();
}

void DeviceTest::TearDown() {
  const auto now = cuda::live();
  EXPECT_EQ(now.streams, before_.streams);
  EXPECT_EQ(now.events, before_.events);
  EXPECT_EQ(now.allocations, before_.allocations);
  EXPECT_EQ(now.pinned, before_.pinned);
  EXPECT_EQ(now.shared, before_.shared);
  EXPECT_EQ(now.ranges, before_.ranges);
  EXPECT_EQ(now.bound, before_.bound);
  EXPECT_EQ(now.opened, before_.opened);
  for (const auto& complaint : cuda::complaints()) ADD_FAILURE() << complaint;
}

void DeviceTest::each(Ranks& ranks, const std::function<void(Communicator&)>& play) {
  ranks.each([&](Communicator& comm) {
    cuda::set_device(comm.rank() % cuda::kDevices);
    play(comm);
  });
}

void DeviceTest::perform(Communicator& comm, const Call& call, OnDevice where) {
  DeviceBuffers buffers(call, comm.rank(), where);
  const Status s = start(comm, call, buffers.input(), buffers.output()).wait();
  ASSERT_TRUE(s.ok()) << call.to_string() << ": " << s.to_string();
  EXPECT_EQ(buffers.check(), "");
}

}  // namespace ringfold::test
