// The example programs under the launchers themselves, as far as they are installed here.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "tests/tools/command.h"

namespace ringfold::test {
namespace {

bool installed(const char* name) {
  return Command({"sh", "-c", std::string("command -v ") + name}).wait().status == 0;
}

// `ringfold info` on 3 ranks, which says where it has its place from.
void check(const Words& launcher, const std::string& name, const Words& environment = {}) {
  const std::string average = std::getenv("RINGFOLD_AVERAGE");
  Words info = launcher, words = launcher;
  info.insert(info.end(), {program(), "info"});
  words.push_back(average);
  auto result = Command(info, environment).wait();
  EXPECT_EQ(result.status, 0) << result.out << result.err;
  for (const char* rank : {"0", "1", "2"}) {
    EXPECT_EQ(count(result.out, std::string("rank ") + rank + " of 3 (from " + name), 1) << result.out << result.err;
  }
  result = Command(words, environment).wait();
  EXPECT_EQ(result.status, 0) << result.out << result.err;
  auto lines = result.lines();
  std::sort(lines.begin(), lines.end());
  EXPECT_EQ(lines, (Words{"rank 0 of 3: 2", "rank 1 of 3: 2", "rank 2 of 3: 2"})) << result.err;
}

TEST(Launchers, MpirunOfOpenMpi) {
  if (!installed("mpirun.openmpi")) GTEST_SKIP() << "no mpirun.openmpi here (Debian: openmpi-bin)";
  check({"mpirun.openmpi", "--oversubscribe", "-np", "3"}, "Open MPI",
        {"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"});
}

TEST(Launchers, MpirunOfMpich) {
  if (!installed("mpirun.mpich")) GTEST_SKIP() << "no mpirun.mpich here (Debian: mpich)";
  check({"mpirun.mpich", "-np", "3"}, "MPICH");
}

TEST(Launchers, SrunOfSlurm) {
  const std::string cluster = std::getenv("RINGFOLD_WITH_SLURM");
  const auto can = Command({cluster, "true"}).wait();
  if (can.status == 77) GTEST_SKIP() << can.err;
  ASSERT_EQ(can.status, 0) << can.err;
  check({cluster, "srun", "-n", "3", "--overcommit"}, "Slurm");
}

TEST(Launchers, TorchrunOfPyTorch) {
  const std::string python = std::getenv("RINGFOLD_TORCH_PYTHON");
  const auto can =
      Command({python, "-c", "import torch.distributed as d; d.TCPStore('127.0.0.1', 0, 1, True)"}).wait();
  if (can.status != 0)
    GTEST_SKIP() << python << " has no PyTorch (Debian: python3-torch), or one without what "
                 << "torchrun needs: " << can.err;
  // Debian's torchrun takes these options, or fails: docs/torch.md.
  check({python, "-m", "torch.distributed.run", "-r", "9:1", "-t", "9:1", "--standalone", "--monitor_interval", "0.1",
         "--nproc_per_node", "3", "--no_python"},
        "torchrun");
}

TEST(Launchers, PrterunOfPrrte) {
  if (!installed("prterun")) GTEST_SKIP() << "no prterun here (Debian 13: openmpi-bin)";
  check({"prterun", "--allow-run-as-root", "--map-by", ":OVERSUBSCRIBE", "-x", "PMIX_SIZE=3", "-np", "3"}, "PMIx");
}

const Words kAsRoot = {"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"};

Words asking_pmix() {
  Words environment = kAsRoot;
  environment.insert(environment.end(), {"RINGFOLD_LAUNCHER=pmix", "RINGFOLD_TIMEOUT=20"});
  return environment;
}

// mpirun of Open MPI is a server of PMIx.
TEST(Launchers, PmixsOwnInterface) {
  if (!installed("mpirun.openmpi")) GTEST_SKIP() << "no mpirun.openmpi here (Debian: openmpi-bin)";
  const Words mpirun = {"mpirun.openmpi", "--oversubscribe", "-np", "3"};
  check(mpirun, "PMIx), meeting through PMIx", asking_pmix());
  Words wrong = mpirun;
  wrong.insert(wrong.end(), {"env", "PMIX_SIZE=4", std::getenv("RINGFOLD_AVERAGE")});
  const auto result = Command(wrong, asking_pmix()).wait();
  EXPECT_NE(result.status, 0);
  EXPECT_GE(count(result.out + result.err, "PMIX_SIZE=4 but PMIx's server says rank"), 1) << result.out << result.err;
}

TEST(Launchers, PmixCarriesTheCardsOfRanksThatOpenMpiHasOnSeveralHosts) {
  if (!installed("mpirun.openmpi")) GTEST_SKIP() << "no mpirun.openmpi here (Debian: openmpi-bin)";
  check({"mpirun.openmpi", "--oversubscribe", "-np", "3", "env", "OMPI_COMM_WORLD_LOCAL_SIZE=1"},
        "Open MPI), meeting through PMIx", kAsRoot);
}

TEST(Launchers, PmixOfSlurm) {
  const std::string cluster = std::getenv("RINGFOLD_WITH_SLURM");
  const auto can = Command({cluster, "srun", "--mpi=list"}).wait();
  if (can.status == 77) GTEST_SKIP() << can.err;
  if (count(can.out + can.err, "pmix") == 0) GTEST_SKIP() << "this Slurm has no PMIx: " << can.out << can.err;
  check({cluster, "srun", "--mpi=pmix", "-n", "3", "--overcommit"}, "PMIx), meeting through PMIx", asking_pmix());
}

TEST(Launchers, ARankThatNeverComesToPmixIsWaitedForUntilTheDeadline) {
  if (!installed("mpirun.openmpi")) GTEST_SKIP() << "no mpirun.openmpi here (Debian: openmpi-bin)";
  Words environment = asking_pmix();
  environment.back() = "RINGFOLD_TIMEOUT=4";  // of asking the server, too
  const auto result =
      Command({"mpirun.openmpi", "--oversubscribe", "-np", "2", "sh", "-c",
               "[ $PMIX_RANK = 1 ] && exec sleep 60; exec " + std::string(std::getenv("RINGFOLD_AVERAGE"))},
              environment)
          .wait();
  EXPECT_NE(result.status, 0);
  EXPECT_GE(count(result.out + result.err, "timeout: PMIx"), 1) << result.out << result.err;
}

TEST(Launchers, ALauncherInsideAnotherIsRefusedAndBothAreNamed) {
  if (!installed("mpirun.mpich")) GTEST_SKIP() << "no mpirun.mpich here (Debian: mpich)";
  const auto result = Command({"mpirun.mpich", "-np", "2", std::getenv("RINGFOLD_AVERAGE")},
                              {"RANK=1", "WORLD_SIZE=4", "MASTER_ADDR=localhost", "MASTER_PORT=29500"})
                          .wait();
  EXPECT_NE(result.status, 0);
  EXPECT_GE(count(result.out + result.err, "launchers disagree: torchrun says rank 1 of 4"), 1)
      << result.out << result.err;
}

}  // namespace
}  // namespace ringfold::test
