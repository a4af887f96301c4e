// `ringfold train --ranks N`, launcher and all: how the job ends when ranks die.
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/tools/command.h"

namespace ringfold::test {
namespace {

class Launched : public testing::Test {
 protected:
  // A job of ranks that make so many passes over a small text.
  Words words(int epochs, const Words& more, const std::string& ranks = "3") const {
    std::string text;
    for (int i = 0; i < 200; ++i) text += "rank " + std::to_string(i % 7) + " folds the ring\n";
    Words all = {program(),     "train",
                 "--ranks",     ranks,
                 "--model",     "transformer",
                 "--data",      folder_.write("text", text, 0600),
                 "--layers",    "1",
                 "--width",     "16",
                 "--heads",     "2",
                 "--context",   "16",
                 "--batch",     "6",
                 "--log-every", "5",
                 "--epochs",    std::to_string(epochs),
                 "--json",      log()};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  std::string log() const { return folder_.path() + "/log"; }
  // Until the log has this so often; false: not within a minute.
  bool logs(const char* text, int times = 1) const {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (count(read_file(log()), text) < times) {
      if (std::chrono::steady_clock::now() > until) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return true;
  }
  bool trains(int losses) const { return logs("\"event\":\"step\"", losses); }
  // The process of a rank of the job that `launcher` runs.
  static pid_t rank_of(pid_t launcher, int rank) {
    const std::string at = "/proc/" + std::to_string(launcher);
    std::istringstream children(read_file(at + "/task/" + std::to_string(launcher) + "/children"));
    const std::string wanted = std::string("RINGFOLD_RANK=") + std::to_string(rank) + '\0';
    for (pid_t pid = 0; children >> pid;) {
      if (read_file("/proc/" + std::to_string(pid) + "/environ").find(wanted) != std::string::npos) return pid;
    }
    return -1;
  }
  static void kill_rank(const Command& job, int rank) {
    const pid_t pid = rank_of(job.pid(), rank);
    ASSERT_GT(pid, 0) << "no process of rank " << rank;
    ASSERT_EQ(::kill(pid, SIGKILL), 0);
  }
  std::vector<nlohmann::json> events() const {
    std::vector<nlohmann::json> all;
    std::istringstream in(read_file(log()));
    for (std::string line; std::getline(in, line);)
      if (nlohmann::json::accept(line)) all.push_back(nlohmann::json::parse(line));
    return all;
  }
  const Folder folder_;
};

TEST_F(Launched, AnElasticJobSucceedsWhenOneRankComesToTheEnd) {
  Command job(words(150, {"--elastic"}));
  ASSERT_TRUE(trains(1));
  kill_rank(job, 0);  // which writes the log
  ASSERT_TRUE(trains(40));
  kill_rank(job, 2);
  const Outcome outcome = job.wait(120);
  EXPECT_EQ(outcome.status, 0) << outcome.out << outcome.err;
  const auto all = events();
  ASSERT_FALSE(all.empty());
  EXPECT_EQ(all.back()["event"], "end");
  EXPECT_EQ(all.back()["ranks"], 1);
  EXPECT_EQ(all.back()["epochs"], 150);
  EXPECT_EQ(count(read_file(log()), "\"event\":\"decision\""), 2);
}

TEST_F(Launched, ARankOfAnElasticJobIsStartedAgainAndJoinsTheOthers) {
  Command job(words(200, {"--elastic", "--restarts", "2"}));
  for (int victim : {0, 2}) {
    ASSERT_TRUE(trains(count(read_file(log()), "\"event\":\"step\"") + 1));
    const int before = count(read_file(log()), "come back");
    kill_rank(job, victim);
    ASSERT_TRUE(logs("come back", before + 1)) << read_file(log());
  }
  const Outcome outcome = job.wait(200);
  EXPECT_EQ(outcome.status, 0) << outcome.out << outcome.err;
  EXPECT_NE(outcome.err.find("starting it again"), std::string::npos) << outcome.err;
  const auto all = events();
  ASSERT_FALSE(all.empty());
  EXPECT_EQ(all.back()["event"], "end");
  EXPECT_EQ(all.back()["ranks"], 3);
  EXPECT_EQ(all.back()["replicas_equal"], true);
}

TEST_F(Launched, AJobThatIsNotElasticIsStartedAgainFromItsCheckpoint) {
  // zero1 cuts its state over the ranks: the others cannot go on without the one that died.
  Command job(words(40, {"--sync", "zero1", "--restarts", "1", "--checkpoint", folder_.path() + "/saved",
                         "--checkpoint-every", "20", "--resume"}));
  ASSERT_TRUE(trains(20));
  kill_rank(job, 1);
  const Outcome outcome = job.wait(200);
  EXPECT_EQ(outcome.status, 0) << outcome.out << outcome.err;
  EXPECT_NE(outcome.err.find("starting all again"), std::string::npos) << outcome.err;
  int resumed_at = -1;
  const auto all = events();
  for (const auto& e : all)
    if (e["event"] == "start") resumed_at = e["resumed_at"];
  EXPECT_GE(resumed_at, 20);
  ASSERT_FALSE(all.empty());
  EXPECT_EQ(all.back()["event"], "end");
  EXPECT_EQ(all.back()["epochs"], 40);
  EXPECT_EQ(all.back()["ranks"], 3);
}

TEST_F(Launched, WhenAllRanksOfAnElasticJobDieItFails) {
  Command job(words(100'000, {"--elastic"}));
  ASSERT_TRUE(trains(1));
  for (const int rank : {0, 1, 2}) kill_rank(job, rank);
  EXPECT_NE(job.wait(60).status, 0);
}

TEST_F(Launched, AJobThatIsNotElasticFailsWithItsRankAndSaysWhich) {
  Command job(words(100'000, {}));
  ASSERT_TRUE(trains(1));
  kill_rank(job, 1);
  const Outcome outcome = job.wait(60);
  EXPECT_NE(outcome.status, 0);
  EXPECT_NE((outcome.out + outcome.err).find("rank 1"), std::string::npos) << outcome.out << outcome.err;
  EXPECT_NE(outcome.err.find("with --elastic the others go on"), std::string::npos) << outcome.err;
}

TEST_F(Launched, ARecordingThatLosesARankIsNotToldOfElastic) {
  Command job(words(100'000, {"--sync", "asgd", "--optimizer", "sgd", "--record-order", folder_.path() + "/order"}));
  ASSERT_TRUE(trains(1));
  kill_rank(job, 1);
  const Outcome outcome = job.wait(60);
  EXPECT_NE(outcome.status, 0);
  EXPECT_NE(outcome.err.find("needs all its ranks; with --checkpoint FOLDER"), std::string::npos) << outcome.err;
  EXPECT_EQ(outcome.err.find("--elastic"), std::string::npos) << outcome.err;
}

TEST_F(Launched, APipelineThatLosesARankSaysHowToGoOn) {
  Command job(words(100'000, {"--pipeline", "3", "--checkpoint", folder_.path() + "/saved"}));
  ASSERT_TRUE(trains(1));
  kill_rank(job, 0);
  const Outcome outcome = job.wait(60);
  EXPECT_NE(outcome.status, 0);
  EXPECT_NE(outcome.err.find("rank 0"), std::string::npos) << outcome.err;
  EXPECT_EQ(count(outcome.err, "others go on when a rank is lost, if they make a whole replica; with --resume"), 1)
      << outcome.err;
}

TEST_F(Launched, AnElasticPipelineGoesOnWithAWholeReplicaAndIsStartedAgainWithoutOne) {
  Command job(words(40,
                    {"--pipeline", "2", "--elastic", "--restarts", "1", "--checkpoint", folder_.path() + "/saved",
                     "--checkpoint-every", "10", "--resume"},
                    "4"));
  ASSERT_TRUE(trains(4));
  kill_rank(job, 1);
  ASSERT_TRUE(logs("goes on with 2 ranks, 1 x 2 x 1 (data x pipeline x tensor), without rank 3")) << read_file(log());
  kill_rank(job, 0);  // which alone had its stage
  const Outcome outcome = job.wait(200);
  EXPECT_EQ(outcome.status, 0) << outcome.out << outcome.err;
  EXPECT_EQ(count(outcome.err, "was ended by SIGKILL; the others go on"), 2) << outcome.err;
  EXPECT_EQ(count(outcome.err, "1 of 2 ranks are left, and a replica of the model takes 2"), 1) << outcome.err;
  EXPECT_EQ(count(outcome.err, "; starting all again"), 1) << outcome.err;
  EXPECT_EQ(count(outcome.err, "rank 3"), 0) << "it is not needed, which is no failure: " << outcome.err;
  const auto all = events();
  ASSERT_FALSE(all.empty());
  EXPECT_EQ(all.back()["event"], "end");
  EXPECT_EQ(all.back()["epochs"], 40);
  EXPECT_EQ(all.back()["ranks"], 4);
}

// Of ranks that leave since no replica is left for them none counts as having come to the end.
TEST_F(Launched, WhenNoReplicaIsLeftTheJobFails) {
  Command job(words(100'000, {"--pipeline", "2", "--elastic"}, "4"));
  ASSERT_TRUE(trains(1));
  kill_rank(job, 1);
  ASSERT_TRUE(logs("without rank 3")) << read_file(log());
  kill_rank(job, 2);
  EXPECT_NE(job.wait(60).status, 0);
}

}  // namespace
}  // namespace ringfold::test
