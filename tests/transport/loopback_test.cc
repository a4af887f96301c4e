// loopback: the conformance suite, and what is particular to threads that read each other's memory.
#include <cstring>
#include <thread>

#include "tests/transport/conformance.h"
#include "transports/loopback/loopback.h"

namespace ringfold::transport::test {
namespace {

Fabric make_loopback(int n, const loopback::Options& options) {
  Fabric fabric;
  auto hub = loopback::Hub::create(n, options);
  EXPECT_TRUE(hub.ok()) << hub.status().to_string();
  for (int r = 0; r < n; ++r) {
    auto transport = (*hub)->make(r);
    EXPECT_TRUE(transport.ok()) << transport.status().to_string();
    fabric.ranks.push_back(std::move(*transport));
  }
  wire(fabric.ranks);
  return fabric;
}

Fabric by_reference(int n) { return make_loopback(n, {}); }
Fabric by_copy(int n) { return make_loopback(n, {.slots = 4, .slot_bytes = 64 << 10, .reference_bytes = SIZE_MAX}); }
Fabric one_slot(int n) { return make_loopback(n, {.slots = 1, .slot_bytes = 1 << 20, .reference_bytes = 1024}); }

INSTANTIATE_TEST_SUITE_P(Loopback, Conformance,
                         testing::Values(FabricKind{"by_reference", by_reference}, FabricKind{"by_copy", by_copy},
                                         FabricKind{"one_slot", one_slot}),
                         fabric_name);

TEST(Loopback, ALargePutIsReadInPlaceAndRetiredByItsRelease) {
  Fabric fabric = by_reference(2);
  Link* from = fabric.ranks[0]->open(1, 0);
  Link* to = fabric.ranks[1]->open(0, 0);
  std::vector<std::byte> small(100), large(64 << 10);
  from->put(small.data(), small.size(), nullptr);
  from->put(large.data(), large.size(), nullptr);
  from->put(small.data(), small.size(), nullptr);
  EXPECT_EQ(from->retired(), 1u);
  Arrival arrival;
  ASSERT_TRUE(to->arrived(&arrival, nullptr, 0));
  EXPECT_NE(arrival.data, small.data());
  to->release();
  EXPECT_EQ(from->retired(), 1u);
  ASSERT_TRUE(to->arrived(&arrival, nullptr, 0));
  EXPECT_EQ(arrival.data, large.data());
  to->release();
  EXPECT_EQ(from->retired(), 3u) << "the third was copied";
  EXPECT_EQ(fabric.ranks[0]->counters().copied_bytes, 200u);
}

TEST(Loopback, CreditIsExactlyTheSlots) {
  Fabric fabric = by_copy(2);
  Link* from = fabric.ranks[0]->open(1, 0);
  int accepted = 0;
  for (; accepted < 100 && from->writable(); ++accepted) from->put(nullptr, 0, nullptr);
  EXPECT_EQ(accepted, 4);
}

TEST(Loopback, NobodyReadsTheMemoryOfAStoppedRank) {
  Fabric fabric = by_reference(2);
  Link* from = fabric.ranks[0]->open(1, 0);
  Link* to = fabric.ranks[1]->open(0, 0);
  auto source = std::make_unique<std::vector<std::byte>>(64 << 10);
  from->put(source->data(), source->size(), nullptr);
  fabric.ranks[0]->stop();
  source.reset();
  Arrival arrival;
  EXPECT_FALSE(to->arrived(&arrival, nullptr, 0));
}

TEST(Loopback, AStopWaitsForAReader) {
  Fabric fabric = by_reference(2);
  Link* from = fabric.ranks[0]->open(1, 0);
  Link* to = fabric.ranks[1]->open(0, 0);
  auto source = std::make_unique<std::vector<std::byte>>(64 << 10, std::byte{7});
  from->put(source->data(), source->size(), nullptr);
  Arrival arrival;
  ASSERT_TRUE(to->arrived(&arrival, nullptr, 0));
  std::thread sender([&] {
    fabric.ranks[0]->stop();
    source.reset();  // AddressSanitizer sees a read after this
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_EQ(arrival.data[arrival.bytes - 1], std::byte{7});
  to->release();
  sender.join();
}

TEST(Loopback, AStopDoesNotWaitForEver) {
  Fabric fabric = by_reference(2);
  std::vector<std::byte> source(64 << 10);
  fabric.ranks[0]->open(1, 0)->put(source.data(), source.size(), nullptr);
  Arrival arrival;
  ASSERT_TRUE(fabric.ranks[1]->open(0, 0)->arrived(&arrival, nullptr, 0));
  const auto begin = std::chrono::steady_clock::now();
  fabric.ranks[0]->stop();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(3));
}

TEST(Loopback, RanksOfOneNonceMeet) {
  auto a = loopback::make(0, 2, 77);
  auto b = loopback::make(1, 2, 77);
  auto stranger = loopback::make(1, 2, 78);
  ASSERT_TRUE(a.ok() && b.ok() && stranger.ok());
  EXPECT_TRUE((*a)->add_peer(1, (*b)->address()).ok());
  EXPECT_EQ((*a)->add_peer(1, (*stranger)->address()).code(), Code::kUnavailable);
  EXPECT_EQ((*a)->add_peer(0, (*a)->address()).code(), Code::kInvalid);
  EXPECT_EQ(loopback::make(1, 2, 77).status().code(), Code::kInvalid) << "twice";
  EXPECT_EQ(loopback::make(0, 3, 77).status().code(), Code::kMismatch);
  EXPECT_EQ(loopback::make(0, 2, 79, {.slots = 3}).status().code(), Code::kInvalid);
}

}  // namespace
}  // namespace ringfold::transport::test
