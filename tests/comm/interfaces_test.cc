#include "comm/interfaces.h"

#include <gtest/gtest.h>

namespace ringfold::comm {
namespace {

Interface make(std::string name, std::string address, int prefix, bool up = true) {
  return {name, address, prefix, classify(name, address, up)};
}

const std::vector<Interface> kHost = {make("eth0", "10.0.0.1", 24),      make("eth0", "fd00::1", 64),
                                      make("docker0", "172.17.0.1", 16), make("lo", "127.0.0.1", 8),
                                      make("eth0", "fe80::1", 64),       make("eth1", "10.9.0.1", 24, false)};

std::vector<std::string> names(const std::vector<Interface>& list) {
  std::vector<std::string> result;
  for (const auto& i : list) result.push_back(i.to_string());
  return result;
}
std::vector<std::string> addresses(const DialOrder& order) {
  std::vector<std::string> result;
  for (const auto& c : order.tries) result.push_back(c.interface.address);
  return result;
}
using Names = std::vector<std::string>;

TEST(Interfaces, AddressesAreClassified) {
  EXPECT_EQ(classify("eth0", "10.0.0.1", true), AddressKind::kNetwork);
  EXPECT_EQ(classify("eth0", "10.0.0.1", false), AddressKind::kDown);
  EXPECT_EQ(classify("anything", "127.3.2.1", true), AddressKind::kLoopback);
  EXPECT_EQ(classify("lo", "::1", true), AddressKind::kLoopback);
  EXPECT_EQ(classify("eth0", "169.254.1.1", true), AddressKind::kLinkLocal);
  EXPECT_EQ(classify("eth0", "fe80::1", true), AddressKind::kLinkLocal);
  EXPECT_EQ(classify("virbr0", "192.168.122.1", true), AddressKind::kVirtual);
}

TEST(Interfaces, ThisHostHasALoopbackAddress) {
  auto all = list_interfaces();
  ASSERT_TRUE(all.ok());
  EXPECT_TRUE(std::any_of(all->begin(), all->end(), [](const auto& i) { return i.kind == AddressKind::kLoopback; }));
}

TEST(Interfaces, WithoutAWishDownAndLinkLocalAreLeftOut) {
  auto selected = select_interfaces(kHost, {});
  ASSERT_TRUE(selected.ok());
  EXPECT_EQ(names(*selected), (Names{"eth0 10.0.0.1", "eth0 fd00::1", "docker0 172.17.0.1", "lo 127.0.0.1"}));
}

TEST(Interfaces, AWishNamesAnInterfaceAnAddressOrABlock) {
  EXPECT_EQ(names(*select_interfaces(kHost, {"docker0"})), (Names{"docker0 172.17.0.1"}));
  EXPECT_EQ(names(*select_interfaces(kHost, {"fd00::1"})), (Names{"eth0 fd00::1"}));
  EXPECT_EQ(names(*select_interfaces(kHost, {"10.0.0.0/8"})), (Names{"eth0 10.0.0.1"}));
  EXPECT_EQ(names(*select_interfaces(kHost, {"lo", "fd00::/16"})), (Names{"eth0 fd00::1", "lo 127.0.0.1"}));
}

TEST(Interfaces, AWishThatMatchesNothingListsWhatThereIs) {
  for (auto wish : {"eth7", "10.9.0.1", "192.168.0.0/16", "10.0.0.0/", "10.0.0.0/x", "10.0.0.0/64"}) {
    auto selected = select_interfaces(kHost, {wish});
    ASSERT_EQ(selected.status().code(), Code::kInvalid) << wish;
    for (auto part : {wish, "eth0 10.0.0.1 (network)", "docker0 172.17.0.1 (virtual)", "eth1 10.9.0.1 (down)"}) {
      EXPECT_NE(selected.status().message().find(part), std::string::npos) << selected.status().message();
    }
  }
}

TEST(Interfaces, RanksOnOneStackTryLoopbackFirst) {
  std::vector<Candidate> theirs;
  const auto selected = select_interfaces(kHost, {});
  for (const auto& i : *selected) theirs.push_back({i, 4000});
  EXPECT_EQ(addresses(dial_order(kHost, theirs, true)), (Names{"127.0.0.1", "10.0.0.1", "fd00::1", "172.17.0.1"}));
}

TEST(Interfaces, BetweenHostsSharedSubnetsComeFirstAndOwnAddressesAreSkipped) {
  const std::vector<Candidate> theirs = {{make("eth1", "192.168.5.2", 24), 1},
                                         {make("eth0", "10.0.0.2", 24), 2},
                                         {make("docker0", "172.17.0.1", 16), 3},
                                         {make("lo", "127.0.0.1", 8), 4}};
  auto order = dial_order(kHost, theirs, false);
  EXPECT_EQ(addresses(order), (Names{"10.0.0.2", "192.168.5.2", "127.0.0.1"}));
  ASSERT_EQ(order.skipped.size(), 1u);
  EXPECT_EQ(order.skipped[0], "docker0 172.17.0.1: also an address of this host");
}

TEST(Interfaces, TheChoiceIsExplained) {
  const std::vector<Interface> mine = {make("eth0", "10.0.0.1", 24), make("eth1", "fd00::1", 64),
                                       make("docker0", "172.17.0.1", 16), make("lo", "127.0.0.1", 8)};
  std::vector<Candidate> offered = {{mine[0], 1}, {mine[1], 2}, {mine[3], 3}};
  EXPECT_EQ(
      explain_choice(mine, offered, {{"10.0.0.1", {1, 2, 3}}, {"127.0.0.1", {4}}},
                     {{offered[1].to_string(), "not reachable (no answer) from rank 2"}}),
      "eth0 10.0.0.1 for ranks 1-3, lo 127.0.0.1 for rank 4; not eth1 fd00::1 (not reachable (no answer) from rank "
      "2), docker0 172.17.0.1 (not in RINGFOLD_INTERFACE)");
  offered.push_back({mine[2], 4});
  EXPECT_EQ(explain_choice({mine[0], mine[2]}, offered, {{"10.0.0.1", {1}}}, {}),
            "eth0 10.0.0.1 for rank 1; not docker0 172.17.0.1 (not needed)");
  EXPECT_EQ(explain_choice({mine[0]}, offered, {{"10.0.0.1", {1}}}, {}), "eth0 10.0.0.1 for rank 1");
}

TEST(Interfaces, SubnetsAreComparedBitByBit) {
  EXPECT_TRUE(same_subnet("10.0.0.1", "10.0.0.254", 24));
  EXPECT_FALSE(same_subnet("10.0.0.1", "10.0.1.1", 24));
  EXPECT_TRUE(same_subnet("10.0.0.1", "10.0.1.1", 23));
  EXPECT_TRUE(same_subnet("fd00::1", "fd00::2", 126));
  EXPECT_FALSE(same_subnet("10.0.0.1", "::1", 0));
  EXPECT_FALSE(same_subnet("x", "10.0.0.1", 8));
  EXPECT_FALSE(same_subnet("10.0.0.1", "10.0.0.1", 33));
}

}  // namespace
}  // namespace ringfold::comm
