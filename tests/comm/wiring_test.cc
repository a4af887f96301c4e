#include "comm/wiring.h"

#include <gtest/gtest.h>

namespace ringfold::comm {
namespace {

PeerInfo on_stack(const std::string& stack, const std::string& my_address) {
  PeerInfo peer;
  peer.host_id = peer.stack_id = stack;
  peer.my_address = my_address;
  for (auto [name, address] :
       {std::pair("eth0", "10.0.0.1"), std::pair("eth0", "fd00::1"), std::pair("lo", "127.0.0.1")})
    peer.candidates.push_back({{name, address, 8, classify(name, address, true)}, 4000});
  return peer;
}

// Two ranks connect by whichever address answers first, and on a busy machine that is not the same one for every
// pair.
TEST(ListenAddress, OnOneStackItDoesNotDependOnWhichAddressWonARace) {
  const PeerInfo me = on_stack("a", "");
  for (auto first : {"127.0.0.1", "10.0.0.1", "fd00::1"}) {
    for (auto second : {"127.0.0.1", "10.0.0.1", "fd00::1"}) {
      const PeerInfo one = on_stack("a", first), two = on_stack("a", second);
      EXPECT_EQ(listen_address(me, {&one, &two}), "127.0.0.1") << first << " " << second;
    }
  }
}

TEST(ListenAddress, OnOneStackItIsOneThatWasOffered) {
  PeerInfo me = on_stack("a", "");
  me.candidates.pop_back();  // RINGFOLD_INTERFACE=eth0
  const PeerInfo one = on_stack("a", "fd00::1");
  EXPECT_EQ(listen_address(me, {&one}), "10.0.0.1");
}

TEST(ListenAddress, OtherStacksDecide) {
  const PeerInfo me = on_stack("a", "");
  const PeerInfo here = on_stack("a", "127.0.0.1"), there = on_stack("b", "10.0.0.1"),
                 by_v6 = on_stack("c", "fd00::1"), also_by_v6 = on_stack("d", "fd00::1");
  EXPECT_EQ(listen_address(me, {&here, &here, &there}), "10.0.0.1");
  EXPECT_EQ(listen_address(me, {&there, &by_v6, &also_by_v6}), "fd00::1");
}

// 65536 less the headers of IPv4, or of IPv6, and of TCP with timestamps.
TEST(Wiring, TilesOverTcpFillWholePacketsOfTheLoopbackInterface) {
  constexpr uint64_t kPacket = 65536 - 40 - 32, kFrame = 32, kMi = 1 << 20;
  for (const auto& [slot, hosts, packets] :
       {std::tuple{kMi, 1, 2}, std::tuple{kMi, 3, 4}, std::tuple{kMi / 8, 2, 2}, std::tuple{kMi / 16, 1, 1}}) {
    const uint64_t tile = most_tile(slot, true, static_cast<size_t>(hosts));
    EXPECT_LE(tile, slot);
    EXPECT_LE(tile + kFrame, static_cast<uint64_t>(packets) * kPacket);
    EXPECT_GT(tile, static_cast<uint64_t>(packets) * kPacket * 9 / 10);
    EXPECT_EQ(tile % 64, 0U);
  }
  EXPECT_EQ(most_tile(4096, true, 1), 4096U);
  EXPECT_EQ(most_tile(128 << 10, false, 1), 128U << 10);
  EXPECT_EQ(most_tile(kMi, false, 2), 256U << 10);
}

}  // namespace
}  // namespace ringfold::comm
