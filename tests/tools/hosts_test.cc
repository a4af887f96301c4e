// Where ranks go.
#include "tools/cli/run/hosts.h"

#include <gtest/gtest.h>

namespace ringfold::test {
namespace {

using namespace cli;

std::vector<int> per_host(std::string_view text, int ranks) {
  const auto hosts = parse_hosts(text);
  if (!hosts.ok()) return {-1};
  const auto seats = seat_ranks(*hosts, ranks);
  if (!seats.ok()) return {-2};
  std::vector<int> counts(hosts->size());
  int before = 0;
  for (const Seat& seat : *seats) {
    EXPECT_GE(seat.host, before) << "ranks of a host are neighbours";
    before = seat.host;
    EXPECT_EQ(seat.local_rank, counts[static_cast<size_t>(seat.host)]++);
  }
  for (const Seat& seat : *seats) EXPECT_EQ(seat.local_size, counts[static_cast<size_t>(seat.host)]);
  return counts;
}

TEST(Hosts, RanksAreSharedFairlyAndNumbersAreKept) {
  using Counts = std::vector<int>;
  EXPECT_EQ(per_host("", 4), (Counts{4}));
  EXPECT_EQ(per_host("a,b", 4), (Counts{2, 2}));
  EXPECT_EQ(per_host("a,b,c", 4), (Counts{2, 1, 1}));
  EXPECT_EQ(per_host("a,b,c", 2), (Counts{1, 1, 0}));
  EXPECT_EQ(per_host("a:1,b:3", 4), (Counts{1, 3}));
  EXPECT_EQ(per_host("a:3,b", 5), (Counts{3, 2}));
  EXPECT_EQ(per_host("a,b:3", 5), (Counts{2, 3}));
  EXPECT_EQ(per_host("a:4,b:4", 3), (Counts{3, 0}));
  EXPECT_EQ(per_host("a:3,b,c:2", 0), (Counts{3, 1, 2}))
      << "without a number: all slots, and one on each host without";
}

TEST(Hosts, WhatDoesNotFitOrIsNoHostIsRefused) {
  EXPECT_EQ(per_host("a:1,b:2", 4), std::vector<int>{-2});
  for (const char* text : {"a,,b", ":2", "a:", "a:0", "a:-1", "a:2x", "[::1", "[::1]2", "-oProxyCommand=x"}) {
    EXPECT_FALSE(parse_hosts(text).ok()) << text;
  }
}

TEST(Hosts, AddressesOfVersion6NeedNoNames) {
  const auto hosts = parse_hosts("fd00::1,[fd00::2]:4,10.0.0.1:2");
  ASSERT_TRUE(hosts.ok());
  EXPECT_EQ((*hosts)[0].name, "fd00::1");
  EXPECT_EQ((*hosts)[1].name, "fd00::2");
  EXPECT_EQ((*hosts)[1].slots, 4);
  EXPECT_EQ((*hosts)[2].name, "10.0.0.1");
}

TEST(Hosts, TextForTheShellSurvivesIt) {
  EXPECT_EQ(sh_quoted("it's"), "'it'\\''s'");
  EXPECT_EQ(sh_quoted("$(rm) `x` \"y\""), "'$(rm) `x` \"y\"'");
}

}  // namespace
}  // namespace ringfold::test
