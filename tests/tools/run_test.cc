// `ringfold run` as its users meet it. Ranks are small shell scripts.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>

#include "base/processors.h"
#include "tests/tools/command.h"

namespace ringfold::test {
namespace {

// ringfold run OPTIONS -- sh -c SCRIPT
Words on_ranks(const Words& options, const std::string& script) {
  Words words = {program(), "run"};
  words.insert(words.end(), options.begin(), options.end());
  words.insert(words.end(), {"--", "sh", "-c", script});
  return words;
}

double seconds_of(const std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

std::vector<std::string> sorted(std::vector<std::string> lines) {
  std::sort(lines.begin(), lines.end());
  return lines;
}

TEST(Run, EveryRankIsToldItsPlaceAndGetsAKeyThatOthersCannotRead) {
  const Folder folder;
  const auto result =
      Command(
          on_ranks(
              {"-n", "3"},
              "echo $RINGFOLD_RANK of $RINGFOLD_SIZE, $RINGFOLD_LOCAL_RANK of $RINGFOLD_LOCAL_SIZE here; "
              "echo mode $(stat -c %a $RINGFOLD_KEY_FILE $(dirname $RINGFOLD_KEY_FILE) ${RINGFOLD_RENDEZVOUS#dir:}); "
              "echo bytes $(wc -c <$RINGFOLD_KEY_FILE)"),
          {"TMPDIR=" + folder.path()})
          .wait();
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.err, "");
  Words expected;
  for (const std::string r : {"0", "1", "2"}) {
    for (const std::string& line :
         {r + " of 3, " + r + " of 3 here", std::string("mode 600 700 700"), std::string("bytes 64")}) {
      expected.push_back("[" + r + "] " + line);
    }
  }
  EXPECT_EQ(sorted(result.lines()), sorted(expected));
  EXPECT_TRUE(folder.entries().empty()) << "the job's folder is still there";
}

TEST(Run, EveryJobHasAKeyOfItsOwn) {
  const auto key = [] { return Command(on_ranks({"-n", "1"}, "cat $RINGFOLD_KEY_FILE")).wait().out; };
  const auto first = key(), second = key();
  EXPECT_EQ(first.size(), second.size());
  EXPECT_NE(first, second);
}

std::vector<std::string> processors_of_ranks(const Words& options) {
  const auto result = Command(on_ranks(options, "grep Cpus_allowed_list /proc/self/status | cut -f 2")).wait();
  EXPECT_EQ(result.status, 0) << result.err;
  return sorted(result.lines());
}

TEST(Run, RanksGetProcessorsOfTheirOwnWhereThereAreEnough) {
  if (base::Processors::mine().usable() < 2) GTEST_SKIP() << "one processor";
  const auto bound = processors_of_ranks({"-n", "2", "--no-prefix"});
  ASSERT_EQ(bound.size(), 2u);
  const auto first = base::Processors::parse(bound[0]), second = base::Processors::parse(bound[1]);
  for (size_t i = 0; i < std::min(first.mask.size(), second.mask.size()); ++i) {
    EXPECT_FALSE(first.mask[i] && second.mask[i]) << "both may use processor " << i;
  }
  const auto mine = base::Processors::parse(base::Processors::mine().to_string());
  EXPECT_TRUE(mine.contains(first) && mine.contains(second));
}

TEST(Run, RanksFloatWhereThereAreMoreOfThemOrItIsAskedFor) {
  const auto mine = base::Processors::mine();
  auto text = mine.to_string();
  text = text.substr(0, text.find('/'));
  const std::string more = std::to_string(mine.count() + 1);
  for (const Words& options : {Words{"-n", "2", "--no-prefix", "--no-bind"}, Words{"-n", more, "--no-prefix"}}) {
    for (const auto& line : processors_of_ranks(options)) EXPECT_EQ(line, text);
  }
}

TEST(Run, ALaunchersVariablesAroundItDoNotMatter) {
  const auto result = Command(on_ranks({"-n", "2"}, "exec \"$PROGRAM\" info"),
                              {"PROGRAM=" + program(), "RANK=7", "WORLD_SIZE=9", "MASTER_ADDR=x"})
                          .wait();
  EXPECT_EQ(result.status, 0) << result.out << result.err;
  EXPECT_EQ(count(result.out, "of 2 (from ringfold run)"), 2) << result.out;
}

TEST(Run, LinesOfRanksAreNotMixedAndGoToTheirStream) {
  const auto result =
      Command(
          on_ranks({"-n", "4"},
                   "i=0; while [ $i -lt 200 ]; do echo $RINGFOLD_RANK$RINGFOLD_RANK$RINGFOLD_RANK; i=$((i+1)); done; "
                   "echo complaint >&2; printf 'without an end'"))
          .wait();
  EXPECT_EQ(result.status, 0);
  for (const std::string r : {"0", "1", "2", "3"}) {
    EXPECT_EQ(count(result.out, "[" + r + "] " + r + r + r + "\n"), 200);
    EXPECT_EQ(count(result.out, "[" + r + "] without an end\n"), 1);
    EXPECT_EQ(count(result.err, "[" + r + "] complaint\n"), 1);
  }
  EXPECT_EQ(result.lines().size(), 804u);
}

TEST(Run, WithoutPrefixOutputIsUntouched) {
  const auto result = Command(on_ranks({"-n", "1", "--no-prefix"}, "printf 'a\\tb\\n\\nc'")).wait();
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(result.out, "a\tb\n\nc");
}

TEST(Run, TheFirstFailureEndsAllAndIsTheStatus) {
  const auto begin = std::chrono::steady_clock::now();
  const auto result = Command(on_ranks({"-n", "4"}, "[ $RINGFOLD_RANK = 2 ] && exit 7; sleep 100")).wait();
  EXPECT_EQ(result.status, 7);
  EXPECT_LT(seconds_of(begin), 20);
  EXPECT_EQ(count(result.err, "\n"), 1) << result.err;
  EXPECT_EQ(count(result.err, "ringfold run: rank 2 on "), 1) << result.err;
  EXPECT_EQ(count(result.err, "exited with status 7; ending the others"), 1) << result.err;
}

TEST(Run, ARankThatASignalEndedIsNamedWithIt) {
  const auto result = Command(on_ranks({"-n", "2"}, "[ $RINGFOLD_RANK = 0 ] && kill -SEGV $$; sleep 100")).wait();
  EXPECT_EQ(result.status, 128 + SIGSEGV);
  EXPECT_EQ(count(result.err, "was ended by SIGSEGV"), 1) << result.err;
}

TEST(Run, RanksThatIgnoreTheRequestAreKilledAfterTheGrace) {
  const Folder folder;  // a file in it: that rank ignores requests now
  const auto begin = std::chrono::steady_clock::now();
  const auto result = Command(on_ranks({"-n", "3", "--grace", "0.3"},
                                       "trap '' TERM; touch " + folder.path() +
                                           "/$RINGFOLD_RANK; while [ $RINGFOLD_RANK = 1 ]; do [ -e " + folder.path() +
                                           "/0 ] && [ -e " + folder.path() +
                                           "/2 ] && exit 5; sleep 0.01; done; while :; do sleep 1; done"))
                          .wait();
  EXPECT_EQ(result.status, 5);
  EXPECT_GT(seconds_of(begin), 0.3);
  EXPECT_LT(seconds_of(begin), 20);
}

TEST(Run, WithKeepGoingSurvivorsFinishTheirWork) {
  const auto result =
      Command(on_ranks({"-n", "3", "--keep-going"}, "[ $RINGFOLD_RANK = 1 ] && kill -KILL $$; sleep 0.5; echo done"))
          .wait();
  EXPECT_EQ(result.status, 128 + SIGKILL);
  EXPECT_EQ(count(result.out, "] done\n"), 2);
  EXPECT_EQ(count(result.err, "; the others go on"), 1) << result.err;
}

TEST(Run, TheTimeLimitEndsTheJob) {
  const auto result = Command(on_ranks({"-n", "2", "--timeout", "0.4"}, "sleep 100")).wait();
  EXPECT_EQ(result.status, 124);
  EXPECT_EQ(count(result.err, "did not end within 0.4 s"), 1) << result.err;
}

class PassedOn : public testing::TestWithParam<int> {};

TEST_P(PassedOn, ReachesEveryRankAndTheirAnswerCounts) {
  Command job(
      on_ranks({"-n", "3"}, "trap 'echo got it; exit 0' INT TERM HUP; echo ready; while :; do sleep 0.05; done"));
  ASSERT_TRUE(job.wait_for("ready", 3));
  job.signal(GetParam());
  const auto result = job.wait();
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(count(result.out, "got it"), 3);
}

TEST_P(PassedOn, IsTheStatusWhenRanksEndByIt) {
  Command job(on_ranks({"-n", "2"}, "echo ready; exec sleep 100"));
  ASSERT_TRUE(job.wait_for("ready", 2));
  job.signal(GetParam());
  const auto result = job.wait();
  EXPECT_EQ(result.status, 128 + GetParam());
  EXPECT_EQ(result.err, "");
}

INSTANTIATE_TEST_SUITE_P(Signals, PassedOn, testing::Values(SIGINT, SIGTERM, SIGHUP));

TEST(Run, AUserSignalIsAMessageAndNotTheEnd) {
  Command job(on_ranks({"-n", "2"}, "trap 'echo saved; exit 0' USR1; echo ready; while :; do sleep 0.05; done"));
  ASSERT_TRUE(job.wait_for("ready", 2));
  job.signal(SIGUSR1);
  const auto result = job.wait();
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(count(result.out, "saved"), 2);
}

TEST(Run, WhatARankLeftBehindGoesWithIt) {
  const Folder folder;
  const auto result = Command(on_ranks({"-n", "1"}, "sleep 1000 & echo $! >" + folder.path() + "/pid")).wait();
  EXPECT_EQ(result.status, 0);
  EXPECT_TRUE(gone(std::atoi(read_file(folder.path() + "/pid").c_str())));
}

// Ranks of this host and of fake other ones.
std::vector<pid_t> pids_in(const std::string& out) {
  std::vector<pid_t> pids;
  for (auto at = out.find("pid "); at != std::string::npos; at = out.find("pid ", at + 4))
    pids.push_back(std::atoi(out.c_str() + at + 4));
  return pids;
}

TEST(Run, NothingSurvivesTheLauncherNotEvenItsOwnSuddenEnd) {
  const Folder folder;
  Command job(on_ranks({"-n", "3"}, "sh -c 'echo pid $$; while :; do sleep 1; done' & echo pid $$; wait"),
              {"TMPDIR=" + folder.path()});
  ASSERT_TRUE(job.wait_for("pid ", 6));
  ASSERT_EQ(folder.entries().size(), 1u);
  job.signal(SIGKILL);
  const auto result = job.wait();
  EXPECT_EQ(result.status, 128 + SIGKILL);
  const auto pids = pids_in(result.out);
  ASSERT_EQ(pids.size(), 6u);
  for (const pid_t pid : pids) EXPECT_TRUE(gone(pid)) << pid;
  for (int i = 0; i < 1000 && !folder.entries().empty(); ++i) usleep(5000);
  EXPECT_TRUE(folder.entries().empty()) << "the job's folder with its key is still there";
}

TEST(Run, AProgramThatDoesNotExistIsOneLineAboutTheEnvironment) {
  const auto result = ringfold({"run", "-n", "4", "--", "/nowhere/program"});
  EXPECT_EQ(result.status, 3);
  EXPECT_EQ(result.err, "ringfold run: cannot run /nowhere/program: No such file or directory\n");
}

TEST(Run, UsageErrorsAreStatus2AndSayWhat) {
  EXPECT_EQ(ringfold({"run", "--", "true"}).status, 2);
  EXPECT_EQ(ringfold({"run", "-n", "0", "--", "true"}).status, 2);
  EXPECT_EQ(ringfold({"run", "-n", "2"}).status, 2);
  EXPECT_EQ(ringfold({"walk"}).status, 2);
  const auto full = ringfold({"run", "-n", "4", "--hosts", "localhost:2", "--", "true"});
  EXPECT_EQ(full.status, 2);
  EXPECT_NE(full.err.find("4 ranks do not fit: the hosts have 2 slots"), std::string::npos) << full.err;
  EXPECT_NE(ringfold({"run", "--hosts", "a:zero", "--", "true"}).err.find("\"a:zero\" is not a host"),
            std::string::npos);
}

// ---- other hosts: ssh is a script that runs the command here, in a session of its own as a server would ----

class RunElsewhere : public testing::Test {
 protected:
  Words environment() const {
    return {"RINGFOLD_SSH=" + ssh_, "TMPDIR=" + folder_.path() + "/tmp", "RINGFOLD_INTERFACE=lo"};
  }
  void SetUp() override {
    ASSERT_EQ(system(("mkdir " + folder_.path() + "/tmp").c_str()), 0);
    ssh_ = folder_.write(
        "ssh", "#!/bin/sh\nprintf '%s\\n' \"$*\" >>" + log() + "\nshift\nexec setsid -w sh -c \"$*\"\n", 0755);
  }
  std::string log() const { return folder_.path() + "/commands"; }
  std::string left_over() const { return Command({"ls", folder_.path() + "/tmp"}).wait().out; }
  const Folder folder_;
  std::string ssh_;
};

TEST_F(RunElsewhere, RanksAreSharedOutAndTheKeyIsOnNoCommandLine) {
  const auto result =
      Command(
          on_ranks({"-n", "5", "--hosts", "a,b:3", "--env", "COLOUR=deep blue"},
                   "echo $RINGFOLD_HOST_NAME $RINGFOLD_RANK/$RINGFOLD_SIZE $RINGFOLD_LOCAL_RANK/$RINGFOLD_LOCAL_SIZE "
                   "$COLOUR; echo key $(cat $RINGFOLD_KEY_FILE); echo at $RINGFOLD_RENDEZVOUS"),
          environment())
          .wait();
  EXPECT_EQ(result.status, 0) << result.err;
  for (const char* line : {"[0] a 0/5 0/2 deep blue\n", "[1] a 1/5 1/2 deep blue\n", "[2] b 2/5 0/3 deep blue\n",
                           "[4] b 4/5 2/3 deep blue\n"}) {
    EXPECT_EQ(count(result.out, line), 1) << line << result.out;
  }
  EXPECT_EQ(count(result.out, "at 127.0.0.1:"), 5) << result.out;
  const auto at = result.out.find("key ");
  ASSERT_NE(at, std::string::npos);
  const std::string key = result.out.substr(at + 4, 64);
  EXPECT_EQ(count(result.out, "key " + key), 5) << "one key for all";
  EXPECT_EQ(count(read_file(log()), "export RINGFOLD_RANK="), 5);
  EXPECT_EQ(count(read_file(log()), key), 0);
  EXPECT_EQ(left_over(), "");
}

TEST_F(RunElsewhere, StatusSignalsAndTheEndOfAllWorkAsAtHome) {
  auto result = Command(on_ranks({"-n", "3", "--hosts", "a,b,c"}, "[ $RINGFOLD_RANK = 1 ] && exit 9; exec sleep 100"),
                        environment())
                    .wait();
  EXPECT_EQ(result.status, 9);
  EXPECT_EQ(count(result.err, "rank 1 on b (ssh pid "), 1) << result.err;

  result = Command(on_ranks({"-n", "2", "--hosts", "a,b"}, "[ $RINGFOLD_RANK = 1 ] && kill -KILL $$; exec sleep 100"),
                   environment())
               .wait();
  EXPECT_EQ(result.status, 128 + SIGKILL);
  EXPECT_EQ(count(result.err, "exited with status 137 (SIGKILL)"), 1) << result.err;

  Command job(on_ranks({"-n", "2", "--hosts", "a,b"},
                       "trap 'echo got it; exit 0' INT; echo ready; while :; do sleep 0.05; done"),
              environment());
  ASSERT_TRUE(job.wait_for("ready", 2));
  job.signal(SIGINT);
  result = job.wait();
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(count(result.out, "got it"), 2);
  EXPECT_EQ(left_over(), "");
}

TEST_F(RunElsewhere, NothingSurvivesTheLauncherThereEither) {
  Command job(
      on_ranks({"-n", "2", "--hosts", "a,b"}, "sh -c 'echo pid $$; while :; do sleep 1; done' & echo pid $$; wait"),
      environment());
  ASSERT_TRUE(job.wait_for("pid ", 4));
  job.signal(SIGKILL);
  const auto pids = pids_in(job.wait().out);
  ASSERT_EQ(pids.size(), 4u);
  for (const pid_t pid : pids) EXPECT_TRUE(gone(pid)) << pid;
}

TEST_F(RunElsewhere, RanksMeetAtTheLaunchersAddressAndCompute) {
  const auto result = Command({program(), "perf", "all_reduce", "--hosts", "a,b", "--ranks", "4", "--max", "4K",
                               "--factor", "32", "--iterations", "3"},
                              environment())
                          .wait();
  EXPECT_EQ(result.status, 0) << result.out << result.err;
  EXPECT_EQ(count(result.out, "# wrong elements: 0\n"), 1) << result.out;
  EXPECT_EQ(count(result.out, ": 0-1 on a, 2-3 on b\n"), 1) << result.out;
}

}  // namespace
}  // namespace ringfold::test
