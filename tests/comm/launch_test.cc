#include "comm/launch.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "comm/rendezvous.h"

namespace ringfold::comm {
namespace {

// A server of PMIx that knows this job, or nothing.
Pmix server(Result<PmixJob> job) {
  return {.job = [job](double) { return job; },
          .exchange =
              [](const std::string& mine, double) {
                return std::vector<std::string>{mine, "others"};
              }};
}

Result<Launch> read(Environment environment, const Pmix& pmix = server(Status(Code::kUnavailable, "no library"))) {
  auto config = Config::from_environment(environment);
  if (!config.ok()) return config.status();
  return read_launch(environment, *config, pmix);
}

const Environment kTorchrun = {{"RANK", "3"},
                               {"WORLD_SIZE", "4"},
                               {"LOCAL_RANK", "1"},
                               {"LOCAL_WORLD_SIZE", "2"},
                               {"MASTER_ADDR", "node7"},
                               {"MASTER_PORT", "29500"}};

Environment with(Environment environment, const Environment& more) {
  for (const auto& [name, value] : more) environment[name] = value;
  return environment;
}

TEST(Launch, WithoutALauncherThereIsOneRank) {
  auto launch = read({});
  ASSERT_TRUE(launch.ok());
  EXPECT_EQ(launch->rank, 0);
  EXPECT_EQ(launch->size, 1);
}

TEST(Launch, RingfoldRunIsUnderstood) {
  auto launch = read(
      {{"RINGFOLD_RANK", "1"}, {"RINGFOLD_SIZE", "3"}, {"RINGFOLD_LOCAL_RANK", "0"}, {"RINGFOLD_RENDEZVOUS", "h:1"}});
  ASSERT_TRUE(launch.ok());
  EXPECT_EQ(launch->rank, 1);
  EXPECT_EQ(launch->size, 3);
  EXPECT_EQ(launch->local_rank, 0);
  EXPECT_EQ(launch->rendezvous, "h:1");
  EXPECT_EQ(launch->source, "ringfold run");
}

TEST(Launch, TorchrunIsUnderstoodAndItsStoreIsLeftAlone) {
  auto launch = read(kTorchrun);
  ASSERT_TRUE(launch.ok());
  EXPECT_EQ(launch->rank, 3);
  EXPECT_EQ(launch->local_size, 2);
  EXPECT_EQ(launch->rendezvous, "node7:29500-29515");
  launch = read(with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "True"}}));
  ASSERT_TRUE(launch.ok());
  EXPECT_EQ(launch->rendezvous, "node7:29501-29516");
  EXPECT_TRUE(parse_place(launch->rendezvous).ok());
}

TEST(Launch, SlurmIsUnderstoodOnlyInsideAStep) {
  const Environment slurm = {{"SLURM_PROCID", "5"},
                             {"SLURM_NTASKS", "8"},
                             {"SLURM_LOCALID", "1"},
                             {"SLURM_JOB_ID", "4711"},
                             {"SLURM_STEP_NODELIST", "gpu[07-10,12]"}};
  auto launch = read(slurm);  // a batch script
  ASSERT_TRUE(launch.ok());
  EXPECT_EQ(launch->size, 1);
  launch = read(with(slurm, {{"SLURM_STEP_ID", "0"}}));
  ASSERT_TRUE(launch.ok());
  EXPECT_EQ(launch->rank, 5);
  auto place = parse_place(launch->rendezvous);
  ASSERT_TRUE(place.ok());
  EXPECT_EQ(place->host, "gpu07");
}

TEST(Launch, TorchrunStartedBySrunPerNodeIsNoContradiction) {
  const Environment outer = {
      {"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "2"}, {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NODELIST", "a,b"}};
  auto launch = read(with(with(kTorchrun, outer), {{"GROUP_RANK", "1"}, {"GROUP_WORLD_SIZE", "2"}}));
  ASSERT_TRUE(launch.ok()) << launch.status().message();
  EXPECT_EQ(launch->source, "torchrun");
  EXPECT_EQ(read(with(kTorchrun, outer)).status().code(), Code::kInvalid);
}

TEST(Launch, MpirunOnOneHostMeetsInADirectoryOfTheUser) {
  const Environment mpi = {{"OMPI_COMM_WORLD_RANK", "2"},
                           {"OMPI_COMM_WORLD_SIZE", "4"},
                           {"OMPI_COMM_WORLD_LOCAL_RANK", "2"},
                           {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                           {"PMIX_NAMESPACE", "../7/8"}};
  auto launch = read(mpi);
  ASSERT_TRUE(launch.ok()) << launch.status().message();
  EXPECT_TRUE(launch->rendezvous.starts_with("dir:/"));
  EXPECT_EQ(launch->rendezvous.find("../"), std::string::npos);  // the name of the job is no path
  launch = read({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}});
  ASSERT_TRUE(launch.ok()) << launch.status().message();
  EXPECT_EQ(launch->source, "MPICH");
  launch = read(with(mpi, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}}));
  EXPECT_EQ(launch.status().code(), Code::kInvalid);
  EXPECT_NE(launch.status().message().find("RINGFOLD_RENDEZVOUS"), std::string::npos);
  launch = read(with(mpi, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}, {"RINGFOLD_RENDEZVOUS", "head:7000"}}));
  ASSERT_TRUE(launch.ok());
  EXPECT_EQ(launch->rendezvous, "head:7000");
}

TEST(Launch, SourcesThatAgreeAreFineAndTheFirstIsUsed) {
  auto launch =
      read(with(kTorchrun, {{"RINGFOLD_RANK", "3"}, {"RINGFOLD_SIZE", "4"}, {"RINGFOLD_RENDEZVOUS", "dir:/x"}}));
  ASSERT_TRUE(launch.ok());
  EXPECT_EQ(launch->source, "ringfold run");
}

TEST(Launch, ContradictingLaunchersAreRefusedAndBothNamed) {
  const auto both = with(kTorchrun, {{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "4"}});
  auto launch = read(both);
  ASSERT_FALSE(launch.ok());
  EXPECT_EQ(launch.status().code(), Code::kInvalid);
  for (auto part : {"torchrun says rank 3 of 4 (RANK=3, WORLD_SIZE=4)", "Open MPI says rank 0 of 4",
                    "RINGFOLD_LAUNCHER=openmpi"}) {
    EXPECT_NE(launch.status().message().find(part), std::string::npos) << launch.status().message();
  }
  launch = read(with(both, {{"RINGFOLD_LAUNCHER", "torchrun"}}));
  ASSERT_TRUE(launch.ok());
  EXPECT_EQ(launch->rank, 3);
}

TEST(Launch, PodsOfAnIndexedJobMeetAtTheFirstOne) {
  const Environment pod = {{"JOB_COMPLETION_INDEX", "2"},
                           {"JOB_COMPLETIONS", "4"},
                           {"HOSTNAME", "train-2"},
                           {"RINGFOLD_SERVICE", "train-svc"}};
  auto launch = read(pod);
  ASSERT_TRUE(launch.ok()) << launch.status().message();
  EXPECT_EQ(launch->rank, 2);
  EXPECT_EQ(launch->size, 4);
  EXPECT_EQ(launch->rendezvous, "train-0.train-svc:29400-29415");
  EXPECT_TRUE(parse_place(launch->rendezvous).ok());
  launch = read(with(pod, {{"RINGFOLD_SERVICE", ""}}));
  EXPECT_EQ(launch.status().code(), Code::kInvalid);
  EXPECT_NE(launch.status().message().find("RINGFOLD_SERVICE"), std::string::npos);
  EXPECT_EQ(read(with(pod, {{"JOB_COMPLETIONS", ""}})).status().code(), Code::kInvalid);
  EXPECT_EQ(read(with(pod, {{"JOB_COMPLETIONS", "2"}})).status().code(), Code::kInvalid);
  launch = read(with(pod, {{"HOSTNAME", "other"}, {"RINGFOLD_RENDEZVOUS", "head:7000"}}));
  ASSERT_TRUE(launch.ok());
  EXPECT_EQ(launch->rendezvous, "head:7000");
  launch = read(with(pod, kTorchrun));  // torchrun in a pod: the pod's number is that of an agent
  ASSERT_TRUE(launch.ok()) << launch.status().message();
  EXPECT_EQ(launch->source, "torchrun");
}

TEST(Launch, PmixIsUnderstoodByItsVariablesAndAddsNothingToOpenMpis) {
  const Environment pmix = {{"PMIX_RANK", "1"}, {"PMIX_SIZE", "2"}, {"PMIX_NAMESPACE", "prte-7"}};
  auto launch = read(pmix);
  ASSERT_TRUE(launch.ok()) << launch.status().message();
  EXPECT_EQ(launch->source, "PMIx");
  EXPECT_EQ(launch->rank, 1);
  launch = read({{"PMIX_RANK", "1"}});  // the size is nowhere: no job of one rank by mistake
  EXPECT_EQ(launch.status().code(), Code::kInvalid);
  EXPECT_NE(launch.status().message().find("PMIX_SIZE"), std::string::npos);
  launch = read({{"PMIX_RANK", "3"},
                 {"OMPI_COMM_WORLD_RANK", "3"},
                 {"OMPI_COMM_WORLD_SIZE", "4"},
                 {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}});
  ASSERT_TRUE(launch.ok()) << launch.status().message();
  EXPECT_EQ(launch->source, "Open MPI");
  launch = read(with(pmix, {{"PMI_RANK", "0"}, {"PMI_SIZE", "2"}}));
  EXPECT_EQ(launch.status().code(), Code::kInvalid);
  EXPECT_NE(launch.status().message().find("PMIx says rank 1 of 2"), std::string::npos) << launch.status().message();
}

TEST(Launch, PmixsServerIsAskedWhereVariablesSayTooLittle) {
  const Environment prrte = {{"PMIX_RANK", "1"}, {"PMIX_SERVER_URI41", "prte.0;tcp4://10.0.0.1:4711"}};
  const auto two = server(PmixJob{.rank = 1, .size = 2, .local_rank = 0, .local_size = 1});
  auto launch = read(prrte, two);
  ASSERT_TRUE(launch.ok()) << launch.status().message();
  EXPECT_EQ(launch->to_string(), "rank 1 of 2 (from PMIx), meeting through PMIx");
  EXPECT_EQ(launch->local_rank, 0);
  EXPECT_EQ(launch->local_size, 1);
  ASSERT_TRUE(launch->exchange);
  EXPECT_EQ(launch->exchange("mine", 1).value()[0], "mine");
  launch = read(with(prrte, {{"RINGFOLD_RENDEZVOUS", "h:1"}}), two);
  ASSERT_TRUE(launch.ok());
  EXPECT_FALSE(launch->exchange);

  // What it says must agree with what the variables say.
  for (const auto& wrong : {Environment{{"PMIX_RANK", "0"}}, Environment{{"PMIX_SIZE", "3"}}}) {
    launch = read(with(prrte, wrong), two);
    EXPECT_EQ(launch.status().code(), Code::kInvalid);
    EXPECT_NE(launch.status().message().find("PMIx's server says rank 1 of 2"), std::string::npos)
        << launch.status().message();
  }
  // It is not asked where another launcher, inside of one of its tasks, has said all.
  launch = read(with(prrte, {{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "h"}, {"MASTER_PORT", "7"}}), two);
  ASSERT_TRUE(launch.ok()) << launch.status().message();
  EXPECT_EQ(launch->rank, 0);
  EXPECT_EQ(launch->source, "torchrun");

  // Without its library: what is missing, or what the variables alone are enough for.
  launch = read(prrte);
  EXPECT_EQ(launch.status().code(), Code::kInvalid);
  EXPECT_NE(launch.status().message().find("no library"), std::string::npos) << launch.status().message();
  EXPECT_NE(launch.status().message().find("libpmix2"), std::string::npos) << launch.status().message();
  launch = read(with(prrte, {{"PMIX_SIZE", "2"}}));
  ASSERT_TRUE(launch.ok()) << launch.status().message();
  EXPECT_TRUE(launch->rendezvous.starts_with("dir:"));
}

// Nor is it then met anywhere else: other ranks' servers may have answered theirs.
TEST(Launch, AServerOfPmixThatDoesNotAnswerIsSaidToBeThat) {
  const Environment prrte = {{"PMIX_RANK", "1"}, {"PMIX_SERVER_URI41", "prte.0;tcp4://10.0.0.1:4711"}};
  const auto silent = server(Status(Code::kTimeout, "PMIx's server has not answered within 3 s"));
  for (const auto& environment : {prrte, with(prrte, {{"PMIX_SIZE", "2"}})}) {
    const auto launch = read(environment, silent);
    EXPECT_EQ(launch.status().code(), Code::kTimeout) << launch.status().to_string();
    EXPECT_EQ(launch.status().message().find("libpmix2"), std::string::npos) << launch.status().message();
  }
}

TEST(Launch, RanksOfOpenMpiOnSeveralHostsMeetThroughPmix) {
  const Environment rank0 = {{"OMPI_COMM_WORLD_RANK", "0"},
                             {"OMPI_COMM_WORLD_SIZE", "2"},
                             {"OMPI_COMM_WORLD_LOCAL_SIZE", "1"},
                             {"PMIX_RANK", "0"},
                             {"PMIX_SERVER_URI41", "1.0;tcp4://10.0.0.1:4711"}};
  auto launch = read(rank0, server(PmixJob{.rank = 0, .size = 2}));
  ASSERT_TRUE(launch.ok()) << launch.status().message();
  EXPECT_EQ(launch->to_string(), "rank 0 of 2 (from Open MPI), meeting through PMIx");
  launch = read(rank0, server(PmixJob{.rank = 0, .size = 3}));
  EXPECT_NE(launch.status().message().find("OMPI_COMM_WORLD_SIZE=2 but PMIx's server says rank 0 of 3"),
            std::string::npos)
      << launch.status().message();
  launch = read(rank0);
  EXPECT_EQ(launch.status().code(), Code::kInvalid);
  EXPECT_NE(launch.status().message().find("RINGFOLD_RENDEZVOUS"), std::string::npos);
  EXPECT_NE(launch.status().message().find("through PMIx: no library"), std::string::npos)
      << launch.status().message();
  // Of two launchers that speak, the one that is asked for.
  launch = read(with(rank0, {{"RINGFOLD_LAUNCHER", "pmix"}}), server(PmixJob{.rank = 0, .size = 2}));
  ASSERT_TRUE(launch.ok()) << launch.status().message();
  EXPECT_EQ(launch->source, "PMIx");
}

TEST(Launch, NonsenseIsRefused) {
  const std::vector<Environment> nonsense = {{{"RANK", "1"}},
                                             {{"RINGFOLD_SIZE", "2"}},
                                             {{"RINGFOLD_RANK", "2"}, {"RINGFOLD_SIZE", "2"}},
                                             {{"RINGFOLD_RANK", "-1"}, {"RINGFOLD_SIZE", "2"}},
                                             {{"RINGFOLD_RANK", "one"}, {"RINGFOLD_SIZE", "2"}},
                                             {{"RINGFOLD_RANK", "0"}, {"RINGFOLD_SIZE", "2"}},
                                             {{"RINGFOLD_LAUNCHER", "slurm"}},
                                             {{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_PORT", "x"}}};
  for (const auto& environment : nonsense) EXPECT_EQ(read(environment).status().code(), Code::kInvalid);
}

TEST(Launch, TheFirstHostOfANodeListIsFound) {
  EXPECT_EQ(first_host("a"), "a");
  EXPECT_EQ(first_host("a,b"), "a");
  EXPECT_EQ(first_host("n[03-07,9],m1"), "n03");
  EXPECT_EQ(first_host("n[3,4]-ib,m"), "n3-ib");
  EXPECT_EQ(first_host("a,n[1-2]"), "a");
  EXPECT_EQ(first_host("broken[1"), "broken[1");
  EXPECT_EQ(first_host(""), "");
}

TEST(Key, RanksThatStartAtOnceCreateOneKeyThatOnlyTheUserReads) {
  const auto folder = std::filesystem::temp_directory_path() / ("ringfold-key-" + random_name());
  const Environment environment = {{"XDG_STATE_HOME", folder.string()}};
  std::vector<std::string> keys(8);
  std::vector<std::thread> threads;
  for (auto& text : keys) {
    threads.emplace_back([&] {
      auto key = load_key(Config(), environment);
      if (key.ok()) text = key->text();
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_GE(keys[0].size(), 32u);
  for (const auto& key : keys) EXPECT_EQ(key, keys[0]);
  const auto path = folder / "ringfold" / "key";
  struct stat info {};
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder / "ringfold"), {}), 1);  // nothing left over
  ::chmod(path.c_str(), 0644);
  auto refused = load_key(Config(), environment);
  EXPECT_EQ(refused.status().code(), Code::kDenied) << refused.status().to_string();
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace ringfold::comm
