// How two ranks choose the ports that join them, and the text in which they tell each other of theirs.
#include <gtest/gtest.h>

#include "transports/verbs/address.h"

namespace ringfold::transport::test {
namespace {

verbs::Gid gid(std::initializer_list<int> last, verbs::GidKind kind, int prefix) {
  verbs::Gid g;
  g.kind = kind;
  g.prefix = prefix;
  if (last.size() == 4) g.bytes[10] = g.bytes[11] = 0xff;
  size_t i = last.size() == 4 ? 12 : 0;
  for (int b : last) g.bytes[i++] = static_cast<uint8_t>(b);
  return g;
}

verbs::Address with_ports(int rank, std::vector<verbs::Port> ports) {
  verbs::Address a;
  a.rank = rank;
  a.size = 2;
  a.ports = std::move(ports);
  for (auto& p : a.ports) p.queue_pairs.assign(2, 7);
  return a;
}

verbs::Port port(std::string device, std::vector<verbs::Gid> gids, bool ethernet = true, int mbps = 100000) {
  verbs::Port p;
  p.device = std::move(device);
  p.ethernet = ethernet;
  p.mtu = 4096;
  p.mbps = mbps;
  p.gids = std::move(gids);
  return p;
}

TEST(VerbsRoutes, OneSubnetBeforeRoutedV2BeforeV1LinkLocalLastAndBothEndsAgree) {
  using enum verbs::GidKind;
  const auto local = gid({0xfe, 0x80, 0, 0, 0}, kRoceV2, 64), v1 = gid({10, 0, 0, 1}, kRoceV1, 120),
             v2 = gid({10, 0, 0, 1}, kRoceV2, 120), far = gid({10, 9, 0, 1}, kRoceV2, 120);
  const auto peer_local = gid({0xfe, 0x80, 0, 0, 9}, kRoceV2, 64), peer_v1 = gid({10, 0, 0, 2}, kRoceV1, 120),
             peer_v2 = gid({10, 0, 0, 2}, kRoceV2, 120);
  struct {
    std::vector<verbs::Gid> mine, theirs;
    const char* words;
  } cases[] = {{{local, v1, v2}, {peer_local, peer_v1, peer_v2}, "RoCE v2, one subnet"},
               {{local, v1, far}, {peer_local, peer_v1, peer_v2}, "RoCE v2, routed"},
               {{local, v1}, {peer_local, peer_v1}, "RoCE v1, one subnet"},
               {{local}, {peer_local, peer_v2}, "RoCE v2, link-local"}};
  for (const auto& c : cases) {
    const auto a = with_ports(0, {port("a", c.mine)}), b = with_ports(1, {port("b", c.theirs)});
    auto there = verbs::choose_routes(a, b, 1), back = verbs::choose_routes(b, a, 1);
    ASSERT_TRUE(there.ok() && back.ok()) << c.words;
    EXPECT_NE(there->front().why.find(c.words), std::string::npos) << there->front().why;
    EXPECT_EQ(there->front().my_gid, back->front().their_gid);
    EXPECT_EQ(there->front().their_gid, back->front().my_gid);
  }
}

TEST(VerbsRoutes, SeveralPortsAreUsedOnceEachAndBothEndsPairThemAlike) {
  using enum verbs::GidKind;
  const auto v2 = [](int net, int host) { return gid({10, 0, net, host}, kRoceV2, 120); };
  const auto a =
      with_ports(0, {port("a0", {v2(1, 1)}), port("a1", {v2(2, 1)}), port("slow", {v2(1, 3)}, true, 1000)});
  const auto b = with_ports(1, {port("b0", {v2(2, 2)}), port("b1", {v2(1, 2)})});
  auto there = verbs::choose_routes(a, b, 4), back = verbs::choose_routes(b, a, 4);
  ASSERT_TRUE(there.ok() && back.ok());
  ASSERT_EQ(there->size(), 2u);
  ASSERT_EQ(back->size(), 2u);
  for (size_t r = 0; r < 2; ++r) {
    EXPECT_EQ((*there)[r].mine, (*back)[r].theirs);
    EXPECT_EQ((*there)[r].theirs, (*back)[r].mine);
    EXPECT_NE((*there)[r].mine, (*there)[r].theirs) << "a0 and b1 share a subnet, and so do a1 and b0";
  }
}

TEST(VerbsRoutes, WhatDoesNotReachSaysWhatThereIs) {
  const auto a = with_ports(0, {port("mlx5_0", {gid({10, 0, 0, 1}, verbs::GidKind::kRoceV2, 120)})});
  const auto b = with_ports(1, {port("ib0", {gid({0xfe, 0x80}, verbs::GidKind::kInfiniBand, 64)}, false)});
  auto none = verbs::choose_routes(a, b, 1);
  ASSERT_FALSE(none.ok());
  EXPECT_NE(none.status().message().find("mlx5_0:1 (RoCE 10.0.0.1)"), std::string::npos) << none.status().message();
  EXPECT_NE(none.status().message().find("ib0:1 (InfiniBand"), std::string::npos) << none.status().message();
}

TEST(VerbsAddress, SurvivesItsTextAndEveryTruncationIsRefused) {
  auto a = with_ports(1, {port("mlx5_0", {gid({10, 0, 0, 1}, verbs::GidKind::kRoceV2, 120)}), port("mlx5_1", {})});
  a.communicator = ~uint64_t{0};
  a.control = 0x7f0011223344;
  a.slots = 8;
  a.slot_bytes = 131072;
  const std::string text = a.to_string();
  auto back = verbs::Address::parse(text);
  ASSERT_TRUE(back.ok()) << back.status().to_string();
  EXPECT_EQ(back->to_string(), text);
  std::vector<size_t> ends;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == ' ') ends.push_back(i);
  }
  for (size_t end : ends) EXPECT_FALSE(verbs::Address::parse(text.substr(0, end)).ok()) << text.substr(0, end);
  for (const std::string& bad : {std::string(), text + " 1", "x" + text, std::string(1000, '9')})
    EXPECT_FALSE(verbs::Address::parse(bad).ok()) << bad;
}

}  // namespace
}  // namespace ringfold::transport::test
