// tools/netns: namespaces that pass for hosts, and that are gone afterwards.
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

#include "tests/tools/command.h"

namespace ringfold::test {
namespace {

class Netns : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "network namespaces need root";
    const auto tried = netns({"with", "1", "none", "true"}).wait();
    if (tried.status != 0) GTEST_SKIP() << "no network namespaces here: " << tried.err;
  }
  ~Netns() override { netns({"down"}).wait(); }

  Command netns(Words words) const {
    const char* tools = std::getenv("RINGFOLD_TOOLS");
    words.insert(words.begin(), (tools == nullptr ? std::string(".") : tools) + "/netns");
    return Command(words, {"RINGFOLD_NETNS=" + prefix_});
  }
  std::string ssh(int host, const std::string& command) const {
    return netns({"ssh", prefix_ + std::to_string(host), command}).wait().out;
  }
  // Is anything of this set there?
  bool there() const { return count(Command({"ip", "netns", "list"}).wait().out, prefix_) > 0; }

  const std::string prefix_ = "rft" + std::to_string(::getpid()) + "x";
};

TEST_F(Netns, EachIsAHostOfItsOwnThatReachesTheOthers) {
  ASSERT_EQ(netns({"up", "3"}).wait().status, 0);
  EXPECT_EQ(ssh(1, "hostname"), prefix_ + "1\n");
  EXPECT_EQ(ssh(2, "cat /proc/sys/kernel/random/boot_id"), ssh(2, "cat /proc/sys/kernel/random/boot_id"));
  EXPECT_NE(ssh(2, "cat /proc/sys/kernel/random/boot_id"), ssh(1, "cat /proc/sys/kernel/random/boot_id"));
  EXPECT_EQ(count(ssh(2, "ip -br addr show dev eth0"), "10.77.0.3/24"), 1);
  EXPECT_NE(netns({"up", "3"}).wait().status, 0) << "they are there already";
  EXPECT_EQ(netns({"down"}).wait().status, 0);
  EXPECT_FALSE(there());
  EXPECT_EQ(netns({"down"}).wait().status, 0) << "nothing to remove is no error";
}

TEST_F(Netns, LinksAreShapedOnBothEndsAndChangeWhileTheyLive) {
  ASSERT_EQ(netns({"up", "2", "100mbit"}).wait().status, 0);
  const auto rates = [&](const std::string& rate) {
    int found = 0;
    for (const auto& where : {prefix_ + "0", prefix_ + "1", prefix_ + "-switch"})
      found += count(Command({"tc", "-n", where, "qdisc", "show"}).wait().out, "rate " + rate);
    return found;
  };
  EXPECT_EQ(rates("100Mbit"), 4);
  EXPECT_EQ(netns({"rate", "20mbit"}).wait().status, 0);
  EXPECT_EQ(rates("20Mbit"), 4);
  EXPECT_EQ(netns({"rate", "none"}).wait().status, 0);
  EXPECT_EQ(rates(""), 0);
}

TEST_F(Netns, WithPassesTheStatusOnAndCleansUpHoweverItEnds) {
  EXPECT_EQ(netns({"with", "2", "1gbit", "sh", "-c", "exit 9"}).wait().status, 9);
  EXPECT_FALSE(there());
  Command job = netns({"with", "2", "1gbit", "sh", "-c", "echo up; sleep 1000"});
  ASSERT_TRUE(job.wait_for("up\n"));
  EXPECT_TRUE(there());
  ::kill(-job.pid(), SIGINT);  // Ctrl-C is for the whole group
  EXPECT_EQ(job.wait().status, 130);
  EXPECT_FALSE(there());
}

TEST_F(Netns, DownEndsWhatRunsInThem) {
  ASSERT_EQ(netns({"up", "1"}).wait().status, 0);
  Command stray = netns({"ssh", prefix_ + "0", "echo $$; exec sleep 1000"});
  ASSERT_TRUE(stray.wait_for("\n"));
  EXPECT_EQ(netns({"down"}).wait().status, 0);
  EXPECT_EQ(stray.wait().status, 128 + SIGKILL);
}

TEST_F(Netns, RingfoldSharesMemoryInsideAHostAndUsesTcpBetween) {
  ASSERT_EQ(netns({"up", "2", "1gbit"}).wait().status, 0);
  const char* tools = std::getenv("RINGFOLD_TOOLS");
  const auto result = Command({"ip",
                               "netns",
                               "exec",
                               prefix_ + "-switch",
                               program(),
                               "run",
                               "-n",
                               "4",
                               "--hosts",
                               prefix_ + "0:2," + prefix_ + "1:2",
                               "--address",
                               "10.77.0.254",
                               "--no-prefix",
                               "--",
                               program(),
                               "perf",
                               "all_reduce",
                               "--max",
                               "64K",
                               "--factor",
                               "64",
                               "--iterations",
                               "3"},
                              {"RINGFOLD_NETNS=" + prefix_, "RINGFOLD_SSH=" + std::string(tools) + "/netns ssh"})
                          .wait();
  EXPECT_EQ(result.status, 0) << result.out << result.err;
  EXPECT_EQ(count(result.out, "# wrong elements: 0\n"), 1) << result.out;
  EXPECT_EQ(count(result.out, " shm+tcp "), 3) << result.out;
}

TEST(NetnsUsage, IsStatus2) {
  const char* tools = std::getenv("RINGFOLD_TOOLS");
  const std::string program = std::string(tools == nullptr ? "." : tools) + "/netns";
  EXPECT_EQ(Command({program}).wait().status, 2);
  EXPECT_EQ(Command({program, "ssh"}).wait().status, 2);
  if (::geteuid() == 0) {
    EXPECT_EQ(Command({program, "up", "many"}).wait().status, 2);
    EXPECT_EQ(Command({program, "dance"}).wait().status, 2);
  }
}

}  // namespace
}  // namespace ringfold::test
