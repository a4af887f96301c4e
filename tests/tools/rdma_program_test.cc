// `ringfold doctor` and `info` where the tests own the machine (tools/rdma-vm): they break what a host gets wrong,
// see it named, and put it back.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <thread>

#include "tests/tools/command.h"

namespace ringfold::test {
namespace {

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

bool owns_machine() {
  const char* setup = std::getenv("RINGFOLD_TEST_RDMA");
  return setup != nullptr && std::string(setup) != "native";
}

int sh(const std::string& text) { return Command({"sh", "-c", text}).wait(60).status; }

class OnMachine : public testing::Test {
 protected:
  void SetUp() override {
    if (!owns_machine()) GTEST_SKIP() << "breaks the machine: only in tools/rdma-vm";
  }
};
using RdmaDoctor = OnMachine;
using NoRdma = OnMachine;
using RdmaCounters = OnMachine;

TEST_F(RdmaCounters, StandBesideTheLeastPossible) {
  const Folder folder;
  const std::string file = folder.path() + "/rows.json";
  const auto result = ringfold({"perf", "sendrecv", "--ranks", "2", "--transport", "verbs", "--min", "8", "--max",
                                "8", "--iterations", "64", "--counters", "--json", file});
  ASSERT_EQ(result.status, 0) << result.out << result.err;
  EXPECT_TRUE(has(result.out, "an operation, out of place: 1.000 puts of 8.000 bytes in all; ")) << result.out;
  EXPECT_TRUE(has(result.out, "work requests (least 2.000), ")) << result.out;
  const auto row = nlohmann::json::parse(read_file(file)).at("rows").at(0);
  EXPECT_NEAR(row.at("work_requests").get<double>(), 2, 0.1) << row;
  EXPECT_NEAR(row.at("doorbells").get<double>(), 1, 0.1) << row;
  EXPECT_NEAR(row.at("completions").get<double>(), 1, 0.1) << row;
}

TEST_F(RdmaDoctor, OnAHealthyDeviceNothingFailsAndVerbsAreTried) {
  const auto result = ringfold({"doctor", "--ranks", "2"});
  EXPECT_EQ(result.status, 0) << result.out << result.err;
  EXPECT_TRUE(has(result.out, "OK    rdma rxe0:1 ") && has(result.out, "10.77.0.1 (RoCE v2)")) << result.out;
  EXPECT_TRUE(has(result.out, "OK    rdma memory ")) << result.out;
  EXPECT_TRUE(has(result.out, "OK    test verbs       all_reduce over 2 ranks is right")) << result.out;
}

TEST_F(RdmaDoctor, WhatIsWrongIsNamedWithWhatMendsIt) {
  struct {
    const char *harm, *undo;
    std::vector<std::string> parts;
    std::vector<std::string> environment;
  } cases[] = {
      {"ip link set d0 mtu 1500",
       "ip link set d0 mtu 9000",
       {"WARN  rdma rxe0:1      packets of 1024 bytes, where the device can do 4096: d0 has an MTU of 1500",
        "mend: ip link set d0 mtu 4200"},
       {}},
      {"ip link set d0 down",
       "ip link set d0 up",
       {"FAIL  rdma rxe0:1      it is down", "mend: ip link set d0 up"},
       {"RINGFOLD_TRANSPORT=verbs"}},
      {"ip addr del 10.77.0.1/24 dev d0",
       "ip addr add 10.77.0.1/24 dev d0",
       {"WARN  rdma rxe0:1      its GIDs are all link-local", "mend: give d0 an IP address"},
       {}},
      {"mv /etc/libibverbs.d /etc/libibverbs.away",
       "mv /etc/libibverbs.away /etc/libibverbs.d",
       {"WARN  rdma rxe0:1      libibverbs has no driver for it", "mend: install its provider"},
       {}},
      {"mv /dev/infiniband/uverbs0 /dev/infiniband/away",
       "mv /dev/infiniband/away /dev/infiniband/uverbs0",
       {"WARN  rdma rxe0:1      /dev/infiniband/uverbs0 is missing", "mend: start the container with --device"},
       {}},
      {"true",
       "true",
       {"WARN  ucx              UCX_UD_VERBS_ETH_DGID_CHECK=y", "mend: unset it"},
       {"UCX_UD_VERBS_ETH_DGID_CHECK=y"}},
  };
  for (const auto& c : cases) {
    ASSERT_EQ(sh(c.harm), 0) << c.harm;
    const auto result = ringfold({"doctor", "--no-self-test"}, c.environment);
    EXPECT_EQ(sh(c.undo), 0) << c.undo;
    for (const std::string& part : c.parts) EXPECT_TRUE(has(result.out, part)) << part << "\n" << result.out;
  }
  const auto result = ringfold({"doctor", "--no-self-test"});
  EXPECT_EQ(result.status, 0) << "not put back: " << result.out;
}

TEST_F(RdmaDoctor, AnOrdinaryUsersLimitOfLockedMemoryIsFound) {
  const std::string program = std::getenv("RINGFOLD_PROGRAM");
  ASSERT_EQ(sh("chmod 666 /dev/infiniband/*"), 0);
  const auto result = Command({"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c",
                               "ulimit -l 64; HOME=/nowhere exec '" + program + "' doctor --no-self-test"})
                          .wait(60);
  EXPECT_TRUE(has(result.out, "FAIL  rdma memory      rxe0 cannot register")) << result.out << result.err;
  EXPECT_TRUE(has(result.out, "the limit of locked memory is 64 KiB")) << result.out;
  EXPECT_TRUE(has(result.out, "mend: ulimit -l unlimited")) << result.out;
}

class RdmaLinkDown : public OnMachine, public testing::WithParamInterface<const char*> {};
INSTANTIATE_TEST_SUITE_P(Over, RdmaLinkDown, testing::Values("verbs", "ucx"),
                         [](const auto& info) { return info.param; });

// The ranks live and reach each other over the control connections. RINGFOLD_LINK_DOWNS: how often (2).
TEST_P(RdmaLinkDown, IsOneCauseOnAllRanksAndNothingIsLeft) {
  const auto left = [] { return Command({"rdma", "resource"}).wait().out; };
  const char* times = std::getenv("RINGFOLD_LINK_DOWNS");
  const std::string before = left();
  for (int k = 0; k < (times == nullptr ? 2 : std::atoi(times)); ++k) {
    // In turns small sums, and large moves, of which verbs write straight to the peers' memory.
    const bool moves = k % 2 == 1;
    const std::string operation = moves ? "all_gather" : "all_reduce", size = moves ? "8M" : "64K";
    // Going on when one has ended: else who ends first has the others killed before they can say anything.
    Command job({program(), "run", "-n", "3", "--keep-going", "--", program(), "perf", operation, "--transport",
                 GetParam(), "--min", size, "--max", size, "--iterations", "100000", "--no-check"},
                {"UCX_TLS=rc_v,ud_v", "RINGFOLD_LOG=debug"});
    EXPECT_TRUE(job.wait_for("all ranks, after a barrier"));
    std::this_thread::sleep_for(std::chrono::milliseconds(300 + 170 * (k % 10)));  // at different moments of the job
    ASSERT_EQ(sh("ip link set d0 down"), 0);
    const auto begin = std::chrono::steady_clock::now();
    const auto result = job.wait(60);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (times != nullptr)
      std::printf("link-down %d of %s over %s: the job ended after %.2f s%s\n", k, operation.c_str(), GetParam(),
                  took.count(), has(result.err, "had been offered a place") ? ", places were offered" : "");
    std::fflush(stdout);
    ASSERT_EQ(sh("ip link set d0 up"), 0);
    EXPECT_NE(result.status, 0) << result.out << result.err;
    std::set<std::string> causes, ranks;
    std::istringstream lines(result.err);
    for (std::string line; std::getline(lines, line);) {
      const auto rank = line.find(": rank "), cause = line.find(": " + operation + " of ");
      if (rank == line.npos || cause == line.npos) continue;
      ranks.insert(line.substr(rank, cause - rank));
      causes.insert(line.substr(cause));
    }
    if (has(result.err, "Work Request Flushed Error")) {
      // UCX 1.13 ends a process whose datagrams are flushed.
      EXPECT_STREQ(GetParam(), "ucx");
      EXPECT_LE(causes.size(), 1u) << result.err;
    } else {
      EXPECT_EQ(ranks.size(), 3u) << result.err;
      ASSERT_EQ(causes.size(), 1u) << result.err;
      EXPECT_TRUE(has(*causes.begin(), " lost its link to it: ")) << *causes.begin();
    }
    EXPECT_EQ(left(), before);
  }
}

TEST_F(NoRdma, InfoSaysWhyAndJobsRunWithoutIt) {
  auto result = ringfold({"info"});
  EXPECT_TRUE(has(result.out, "verbs        unavailable: this host has no RDMA device")) << result.out;
  result = ringfold({"doctor", "--ranks", "2"});
  EXPECT_EQ(result.status, 0) << result.out;
  EXPECT_TRUE(has(result.out, "OK    rdma             none: this host has no RDMA device")) << result.out;
}

TEST_F(NoRdma, WithoutRdmaCoreTheLibraryLoadsAndInfoSaysWhatIsMissing) {
  ASSERT_EQ(sh("mkdir /tmp/away && mv $(ldconfig -p | awk '/libibverbs|libucp/ { print $NF }') /tmp/away"), 0);
  auto result = ringfold({"info"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_TRUE(has(result.out, "verbs        unavailable: libibverbs.so.1 cannot be loaded")) << result.out;
  EXPECT_TRUE(has(result.out, "install rdma-core")) << result.out;
  EXPECT_TRUE(has(result.out, "ucx          unavailable: UCX is not there")) << result.out;
  result = ringfold({"doctor", "--ranks", "2"});
  EXPECT_EQ(result.status, 0) << result.out;
  result = ringfold({"perf", "all_reduce", "--ranks", "2", "--transport", "verbs", "--max", "8"});
  EXPECT_NE(result.status, 0);
  EXPECT_TRUE(has(result.err, "install rdma-core")) << result.err;
}

}  // namespace
}  // namespace ringfold::test
