// tools/rdma-vm from outside: what it says where it cannot run, and that a command inside is as good as one outside.
#include <gtest/gtest.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>

#include "tests/tools/command.h"

namespace ringfold::test {
namespace {

std::string tool() {
  const char* tools = std::getenv("RINGFOLD_TOOLS");
  return (tools == nullptr ? std::string("tools") : std::string(tools)) + "/rdma-vm";
}

Command rdma_vm(Words words, const Words& environment = {}) {
  words.insert(words.begin(), tool());
  return Command(words, environment);
}

std::string path() { return std::getenv("PATH"); }

TEST(RdmaVmUsage, IsStatus2AndSaysWhatIsWrong) {
  for (const auto& [words, part] :
       std::vector<std::pair<Words, std::string>>{{{}, "which command"},
                                                  {{"--setup", "cloud", "true"}, "not 'cloud'"},
                                                  {{"--limit", "soon", "true"}, "not 'soon'"},
                                                  {{"--limit"}, "takes a value"},
                                                  {{"--fast", "true"}, "no option --fast"},
                                                  {{"-c", "true", "false"}, "-c TEXT is the last"}}) {
    const auto result = rdma_vm(words).wait();
    EXPECT_EQ(result.status, 2) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
  }
  const auto help = rdma_vm({"--help"}).wait();
  EXPECT_EQ(help.status, 0);
  EXPECT_EQ(help.out.find("set -euo"), std::string::npos) << "code in the help";
  EXPECT_NE(help.out.find("125 the machine ended"), std::string::npos) << "the help is cut off";
}

TEST(RdmaVmLacks, AMissingProgramIsNamedWithTheWayToGetIt) {
  const Folder bin, cache;
  for (const char* name : {"mkdir", "cat", "flock", "sed", "mktemp", "busybox", "cpio", "python3"})
    std::filesystem::create_symlink(std::string("/usr/bin/") + name, bin.path() + "/" + name);
  const auto result = rdma_vm({"true"}, {"PATH=" + bin.path(), "XDG_CACHE_HOME=" + cache.path()}).wait();
  EXPECT_EQ(result.status, 3);
  EXPECT_NE(result.err.find("qemu-system-x86_64 is missing: tools/install-deps --rdma-vm"), std::string::npos)
      << result.err;
}

class RdmaVm : public testing::Test {
 protected:
  void SetUp() override {
    const auto result = rdma_vm({"prepare"}).wait(540);
    if (result.status == 3) GTEST_SKIP() << result.err;
    ASSERT_EQ(result.status, 0) << result.err;
  }
};

TEST_F(RdmaVm, WithoutAKernelItSaysWhyAndLeavesNothingBehind) {
  const Folder bin, cache;
  const std::string failing = "#!/bin/sh\necho 'E: the mirror is down' >&2\nexit 100\n";
  bin.write("apt-get", failing, 0755);
  bin.write("apt-cache", "#!/bin/sh\necho '  Depends: linux-image-6.1.0-1-amd64'\n", 0755);
  const auto result =
      rdma_vm({"prepare"}, {"PATH=" + bin.path() + ":" + path(), "XDG_CACHE_HOME=" + cache.path()}).wait();
  EXPECT_EQ(result.status, 3);
  EXPECT_NE(result.err.find("linux-image-6.1.0-1-amd64: E: the mirror is down"), std::string::npos) << result.err;
  for (const auto& entry : std::filesystem::directory_iterator(cache.path() + "/ringfold/rdma-vm"))
    EXPECT_EQ(entry.path().filename(), "lock");
}

TEST_F(RdmaVm, AFullDiscIsFoundBeforeItIsWrittenTo) {
  const Folder bin, cache;
  bin.write("df", "#!/bin/sh\necho head\necho /dev/vda 100 95 5 95% /\n", 0755);
  const auto result =
      rdma_vm({"prepare"}, {"PATH=" + bin.path() + ":" + path(), "XDG_CACHE_HOME=" + cache.path()}).wait();
  EXPECT_EQ(result.status, 3);
  EXPECT_NE(result.err.find("5 MB free, 600 are needed"), std::string::npos) << result.err;
}

TEST_F(RdmaVm, OutputStatusAndArgumentsPassAndWritesVanish) {
  const Folder folder;
  const std::string file = folder.path() + "/written";
  const auto result =
      rdma_vm({"bash", "-c", "printf '<%s>' \"$@\"; echo no >&2; echo x >" + file + " && cat " + file + "; exit 7",
               "name", "a b", "$HOME", "'\""})
          .wait(200);
  EXPECT_EQ(result.status, 7) << result.err;
  EXPECT_EQ(result.out, "<a b><$HOME><'\">no\nx\n");
  EXPECT_EQ(result.err, "");
  EXPECT_FALSE(std::filesystem::exists(file));
}

TEST_F(RdmaVm, TheTimeLimitAndACrashAreToldFromTheCommandsOwnStatus) {
  const auto late = rdma_vm({"--limit", "1", "true"}).wait(100);
  EXPECT_EQ(late.status, 124);
  EXPECT_NE(late.err.find("not done after 1 s"), std::string::npos) << late.err;
  const auto crash = rdma_vm({"--setup", "none", "-c", "echo c >/proc/sysrq-trigger"}).wait(200);
  EXPECT_EQ(crash.status, 125);
  EXPECT_NE(crash.err.find("ended before the command did"), std::string::npos) << crash.err;
}

TEST_F(RdmaVm, AnInterruptEndsTheMachineAndKeepStillKeeps) {
  Command run = rdma_vm({"--keep", "-c", "echo inside; sleep 1000"});
  ASSERT_TRUE(run.wait_for("inside\n", 1, 200)) << "output is not shown while the command runs";
  ::kill(-run.pid(), SIGINT);
  const auto result = run.wait(30);
  EXPECT_EQ(result.status, 130);
  const auto at = result.err.find("are in /");
  ASSERT_NE(at, std::string::npos) << result.err;
  const std::string folder = result.err.substr(at + 7, result.err.find('\n', at) - at - 7);
  EXPECT_TRUE(std::filesystem::exists(folder + "/0/console"));
  EXPECT_EQ(Command({"pgrep", "-f", folder}).wait().status, 1) << "QEMU is still there";
  std::filesystem::remove_all(folder);
}

TEST_F(RdmaVm, TwoGuestsReachEachOtherByRdmaAndEitherCanFail) {
  const std::string text =
      "peer=; [ $RDMA_VM_GUEST = 0 ] || { peer=10.77.0.1; sleep 1; }; "
      "timeout 100 ibv_rc_pingpong -d rxe0 -g 1 -e -n 20 $peer || exit 50; "
      "[ $(cat /sys/class/infiniband/rxe0/ports/1/hw_counters/sent_pkts) -ge 20 ] || exit 51; exit $((RDMA_VM_GUEST "
      "* 9))";
  const auto result = rdma_vm({"--setup", "guests", "--cpus", "1", "-c", text}).wait(300);
  EXPECT_EQ(result.status, 9) << result.out << result.err;
  EXPECT_EQ(count(result.out, "20 iters in"), 2) << result.out;
  EXPECT_EQ(count(result.out, "\n[1] 20 iters in"), 1) << result.out;
}

}  // namespace
}  // namespace ringfold::test
