// RDMA links on a real device: run by tests/rdma/on-rdma.
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/transport/conformance.h"
#include "transports/verbs/verbs.h"

namespace ringfold::transport::test {
namespace {

// With a pair of devices, each rank begins with its own: a packet from a device to itself does not come back there.
Fabric on_devices(int n, verbs::Options options) {
  const bool pair = std::filesystem::exists("/sys/class/infiniband/rxe1");
  return make_fabric(n, [&](int r) {
    if (pair) {
      options.devices = {"rxe0", "rxe1"};
      if (r % 2 == 1) std::swap(options.devices[0], options.devices[1]);
    }
    return verbs::make(r, n, 4711, options);
  });
}

FabricKind kind(const std::string& name, const verbs::Options& options) {
  return {name, [=](int n) { return on_devices(n, options); }};
}

// Packets that the devices have sent.
uint64_t packets() {
  uint64_t sum = 0;
  for (const char* device : {"rxe0", "rxe1"}) {
    std::ifstream file(std::string("/sys/class/infiniband/") + device + "/ports/1/hw_counters/sent_pkts");
    uint64_t n = 0;
    if (file >> n) sum += n;
  }
  return sum;
}

// "qp 1 mr 0" and so on, of all devices.
std::string resources() {
  std::string text;
  FILE* out = popen("rdma resource show 2>/dev/null", "r");
  char line[256];
  while (out != nullptr && std::fgets(line, sizeof line, out) != nullptr) text += line;
  if (out != nullptr) pclose(out);
  return text;
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Rdma, Conformance,
                         testing::Values(kind("default", {}), kind("two_rails", {.slots = 4, .rails = 2})),
                         fabric_name);

TEST(RdmaDevice, PacketsMoveWithTheBytesAndNothingIsLeftBehind) {
  const std::string before = resources();
  const uint64_t sent = packets();
  {
    Fabric f = on_devices(2, {});
    ASSERT_EQ(f.ranks.size(), 2u);
    Link* there = f.ranks[0]->open(1, 0);
    Link* here = f.ranks[1]->open(0, 0);
    std::vector<std::byte> data(128 << 10);
    constexpr int kPuts = 20;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    for (int k = 0; k < kPuts;) {
      ASSERT_LT(std::chrono::steady_clock::now(), end) << k << " arrived";
      for (auto& r : f.ranks) ASSERT_EQ(r->failure(), nullptr) << r->failure()->status.to_string();
      for (auto& r : f.ranks) r->progress();
      if (there->issued() == static_cast<uint64_t>(k) && there->writable())
        there->put(data.data(), data.size(), nullptr);
      Arrival a;
      if (here->arrived(&a, nullptr, 0)) {
        here->release();
        ++k;
      }
    }
    EXPECT_GE(packets() - sent, uint64_t{kPuts} * 32) << "128 KiB are 32 packets of 4096 bytes";
  }
  EXPECT_EQ(resources(), before);
}

}  // namespace ringfold::transport::test
