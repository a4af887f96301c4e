// Which ports are used, whether bytes get through them, and who is turned away: on a network in the process.
#include <gtest/gtest.h>

#include <cerrno>
#include <chrono>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/transport/verbs_double.h"
#include "transports/verbs/verbs.h"

namespace ringfold::transport::test {
namespace {

TEST(VerbsPorts, WhatCannotBeUsedSaysWhy) {
  struct {
    VerbsDouble::Settings settings;
    verbs::Options options;
    const char* words;
  } cases[] = {{{.iwarp = true}, {}, "iWARP has no write with immediate data"},
               {{.state = IBV_PORT_DOWN}, {}, "it is down"},
               {{.devices = 0}, {}, "this host has no RDMA device"},
               {{}, {.devices = {"mlx5_7"}}, "there is no mlx5_7; there is double0"},
               {{}, {.devices = {"double0:2"}}, "double0 has no port 2"},
               {{}, {.gid_index = 9}, "it has no GID 9"}};
  for (const auto& c : cases) {
    VerbsDouble network(c.settings);
    auto made = verbs::make(0, 2, 1, options_on(network, c.options));
    ASSERT_FALSE(made.ok()) << c.words;
    EXPECT_EQ(made.status().code(), Code::kUnavailable);
    EXPECT_NE(made.status().message().find(c.words), std::string::npos) << made.status().message();
  }
  VerbsDouble network({});
  for (const char* bad : {"double0:", "double0:0", "double0:x"}) {
    auto made = verbs::make(0, 2, 1, options_on(network, {.devices = {bad}}));
    ASSERT_FALSE(made.ok());
    EXPECT_EQ(made.status().code(), Code::kInvalid) << made.status().message();
  }
}

TEST(VerbsPorts, GpuMemoryIsForDevicesThatTakeDmaBuf) {
  for (const auto& [error, takes] :
       {std::pair{EBADF, true}, {EOPNOTSUPP, false}, {EPROTONOSUPPORT, false}, {EINVAL, false}, {0, false}}) {
    VerbsDouble network({.dma_buf_error = error});
    const verbs::Survey survey = verbs::survey(options_on(network));
    ASSERT_EQ(survey.ports.size(), 1u);
    EXPECT_TRUE(survey.ports[0].usable);
    EXPECT_EQ(survey.ports[0].dma_buf, takes) << error;
  }
}

TEST(VerbsProbe, GreetingsGetThroughOrAreMissed) {
  for (bool cut : {false, true}) {
    VerbsDouble network({});
    auto a = verbs::make(0, 2, 5, options_on(network)), b = verbs::make(1, 2, 5, options_on(network));
    ASSERT_TRUE(a.ok() && b.ok());
    ASSERT_TRUE((*a)->add_peer(1, (*b)->address()).ok());
    ASSERT_TRUE((*b)->add_peer(0, (*a)->address()).ok());
    EXPECT_NE((*a)->route(1).find("double0:1 to double0:1"), std::string::npos);
    if (cut) network.cut();
    std::vector<std::string> of_b;
    std::thread other([&] { of_b = (*b)->probe(std::chrono::steady_clock::now() + std::chrono::seconds(5)); });
    const auto of_a = (*a)->probe(std::chrono::steady_clock::now() + std::chrono::seconds(5));
    other.join();
    EXPECT_EQ(of_a[1].empty(), !cut) << of_a[1];
    EXPECT_EQ(of_b[0].empty(), !cut) << of_b[0];
  }
}

TEST(VerbsAddPeer, RanksOfOtherOptionsOrCommunicatorsAreTurnedAway) {
  VerbsDouble network({});
  auto a = verbs::make(0, 2, 5, options_on(network)), other = verbs::make(1, 2, 6, options_on(network)),
       small = verbs::make(1, 2, 5, options_on(network, {.slots = 4}));
  ASSERT_TRUE(a.ok() && other.ok() && small.ok());
  EXPECT_EQ((*a)->add_peer(1, (*other)->address()).code(), Code::kMismatch);
  EXPECT_EQ((*a)->add_peer(1, (*small)->address()).code(), Code::kMismatch);
  EXPECT_EQ((*a)->add_peer(0, (*a)->address()).code(), Code::kInvalid);
  EXPECT_EQ((*a)->add_peer(1, "nonsense").code(), Code::kProtocol);
}

}  // namespace
}  // namespace ringfold::transport::test
