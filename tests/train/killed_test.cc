// Ranks are killed at random moments: the run goes on, ends as well as without, and every sample counts once.
//
// RINGFOLD_KILLS: runs of each kind (1 if not set); RINGFOLD_KILLS_SEED: of the first, the others follow.
#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <set>

#include "tests/train/program.h"

namespace ringfold::train {
namespace {

constexpr int kRanks = 4;
constexpr size_t kSamples = 1200, kBatch = 60, kStepsOfEpoch = kSamples / kBatch;

uint64_t number_from(const char* variable, uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text != nullptr && *text != '\0' ? std::strtoull(text, nullptr, 10) : otherwise;
}

class Killed : public RealData {
 protected:
  // What the ranks wrote of their work: by how often the ranks had changed, and by step, the samples.
  using Record = std::map<uint64_t, std::map<size_t, std::vector<uint32_t>>>;
  Record record() const {
    Record all;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(path("samples"), error)) {
      std::ifstream in(entry.path());
      for (std::string line; std::getline(in, line);) {
        std::istringstream words(line);
        uint64_t generation = 0;
        size_t step = 0;
        words >> generation >> step;
        auto& samples = all[generation][step];
        for (uint32_t s = 0; words >> s;) samples.push_back(s);
      }
    }
    return all;
  }
  // Steps that any rank has begun.
  size_t begun() const {
    size_t step = 0;
    for (const auto& [generation, steps] : record()) step = std::max(step, steps.rbegin()->first);
    return step;
  }
  // A generation's steps count up to where the next one began. Those must hold every sample of every epoch once.
  void expect_every_sample_once() const {
    const Record all = record();
    std::vector<std::vector<uint32_t>> epochs(epochs_);
    size_t next = 1;
    for (auto it = all.begin(); it != all.end(); ++it) {
      const auto after = std::next(it);
      const size_t end = after == all.end() ? steps() + 1 : after->second.begin()->first;
      EXPECT_EQ(it->second.begin()->first, next) << "generation " << it->first << " begins elsewhere";
      for (const auto& [step, samples] : it->second) {
        if (step >= end) continue;
        EXPECT_EQ(samples.size(), kBatch) << "step " << step << " of generation " << it->first;
        ASSERT_LE(step, steps());
        auto& epoch = epochs[(step - 1) / kStepsOfEpoch];
        epoch.insert(epoch.end(), samples.begin(), samples.end());
      }
      next = end;
    }
    for (auto& epoch : epochs) {
      EXPECT_EQ(epoch.size(), kSamples);
      EXPECT_EQ(std::set<uint32_t>(epoch.begin(), epoch.end()).size(), epoch.size()) << "a sample came twice";
    }
  }
  // What an asynchronous server holds once may have been computed twice; but all of it has been.
  void expect_every_sample() const {
    std::vector<std::set<uint32_t>> epochs(epochs_);
    for (const auto& [generation, steps_made] : record()) {
      for (const auto& [step, samples] : steps_made) {
        ASSERT_LE(step, steps());
        epochs[(step - 1) / kStepsOfEpoch].insert(samples.begin(), samples.end());
      }
    }
    for (size_t e = 0; e < epochs.size(); ++e) EXPECT_EQ(epochs[e].size(), kSamples) << "epoch " << e + 1;
  }
  Strings arguments(const Strings& mode) const {
    Strings args = {"--model",
                    "mlp",
                    "--epochs",
                    std::to_string(epochs_),
                    "--batch",
                    std::to_string(kBatch),
                    "--limit-samples",
                    std::to_string(kSamples),
                    "--log-every",
                    "5",
                    "--momentum",
                    "0.5",
                    "--lr",
                    "0.05",
                    "--json",
                    path("log"),
                    "--record-samples",
                    path("samples")};
    args.insert(args.end(), mode.begin(), mode.end());
    return args;
  }
  size_t steps() const { return kStepsOfEpoch * epochs_; }
  void forget() const {
    std::error_code error;
    for (const char* name : {"log", "samples", "saved"}) std::filesystem::remove_all(path(name), error);
  }
  // Until some rank has begun `step`; false: the run is over, or stuck.
  bool reaches(size_t step) const {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(120);
    while (begun() < step) {
      if (std::chrono::steady_clock::now() > until) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return true;
  }
  // By epoch; one may be missing, of which a rank 0 was to tell that died.
  std::map<int, double> epoch_losses() const {
    std::map<int, double> losses;
    for (const auto& event : log("log", true))
      if (event["event"] == "epoch") losses[event["epoch"]] = event["train_loss"];
    return losses;
  }
  void kill_rank(int rank) const { kill(running_[static_cast<size_t>(rank)], SIGKILL); }

  // Runs `mode` with random deaths; `spared` ranks are left at least. `recorded`: what counts can be told from what
  // the ranks computed (an asynchronous server knows better: tests/sync/take_over_test.cc).
  void kill_at_random(const Strings& mode, size_t spared = 1, bool recorded = true) {
    forget();
    start(ranks_, arguments(mode));
    ASSERT_EQ(wait_all(), std::vector<int>(static_cast<size_t>(ranks_), 0)) << text("out0");
    if (recorded) expect_every_sample_once();
    const double usual = log("log").back()["test_accuracy"];
    const std::map<int, double> losses = epoch_losses();

    const uint64_t runs = number_from("RINGFOLD_KILLS", 1), first = number_from("RINGFOLD_KILLS_SEED", 1);
    double worst = 1, best = 0;
    for (uint64_t seed = first; seed < first + runs; ++seed) {
      SCOPED_TRACE("RINGFOLD_KILLS_SEED=" + std::to_string(seed) + " " + mode[1]);
      std::mt19937_64 random(seed);
      forget();
      start(ranks_, arguments(mode));
      std::vector<int> ranks(static_cast<size_t>(ranks_));
      for (int r = 0; r < ranks_; ++r) ranks[static_cast<size_t>(r)] = r;
      std::shuffle(ranks.begin(), ranks.end(), random);
      const size_t deaths = 1 + random() % (static_cast<size_t>(ranks_) - spared);
      size_t step = 1 + random() % (steps() - 20);
      for (size_t d = 0; d < deaths; ++d) {
        ASSERT_TRUE(reaches(step)) << "step " << step << "\n" << text("out0") << text("out1");
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 4000));
        kill_rank(ranks[d]);
        // The next one while they still sort out who is left, in the same step, or later.
        const uint64_t when = random() % 3;
        if (when == 0) std::this_thread::sleep_for(std::chrono::milliseconds(random() % 120));
        if (when == 2) step = std::min(steps() - 1, step + random() % 30);
      }
      const auto codes = wait_all(120);
      for (int r = 0; r < ranks_; ++r) {
        const auto name = "out" + std::to_string(r);
        const bool died = std::find(ranks.begin(), ranks.begin() + static_cast<std::ptrdiff_t>(deaths), r) !=
                          ranks.begin() + static_cast<std::ptrdiff_t>(deaths);
        // One that was to die may have been done before.
        if (!died) {
          EXPECT_EQ(codes[static_cast<size_t>(r)], 0) << "rank " << r << ":\n" << text(name);
        }
      }
      if (recorded) expect_every_sample_once();
      const auto events = log("log", true);
      ASSERT_FALSE(events.empty());
      ASSERT_EQ(events.back()["event"], "end");
      EXPECT_TRUE(events.back()["replicas_equal"]);
      EXPECT_EQ(events.back()["epochs"], epochs_);
      size_t last = 0;
      for (const auto& e : events) {
        if (e["event"] != "step") continue;
        EXPECT_GT(e["step"].get<size_t>(), last) << "a step was told twice";
        last = e["step"];
      }
      if (std::find(mode.begin(), mode.end(), "ssgd") != mode.end()) {  // the same steps, so of the same losses
        for (const auto& [epoch, loss] : epoch_losses())
          EXPECT_NEAR(loss, losses.at(epoch), 0.2 * losses.at(epoch)) << "epoch " << epoch;
      }
      const double accuracy = events.back()["test_accuracy"];
      EXPECT_NEAR(accuracy, usual, 0.05);
      worst = std::min(worst, accuracy);
      best = std::max(best, accuracy);
      if (HasFailure()) return;
    }
    std::printf("%s: accuracy %.4f without losses, %.4f to %.4f with\n", mode[1].c_str(), usual, worst, best);
  }

  void what_an_agent_plans_goes_on(const Strings& restricted) {
    epochs_ = 4;
    for (int attempt = 0; attempt < 4; ++attempt) {
      forget();
      Strings args = {"--model",          "cnn",
                      "--goal",           "samples=" + std::to_string(kSamples * epochs_),
                      "--batch",          std::to_string(kBatch),
                      "--limit-samples",  std::to_string(kSamples),
                      "--log-every",      "5",
                      "--json",           path("log"),
                      "--record-samples", path("samples")};
      args.insert(args.end(), restricted.begin(), restricted.end());
      start(kRanks, args);
      ASSERT_TRUE(reaches(3)) << text("out0");
      std::vector<int> members;
      for (int r = 0; r < kRanks; ++r)
        if (std::filesystem::exists(path("samples/rank-" + std::to_string(r)))) members.push_back(r);
      const int victim = members.back();
      if (members.size() > 1) kill_rank(victim);
      const auto codes = wait_all(120);
      SCOPED_TRACE(text("log"));
      for (int r = 0; r < kRanks; ++r) {
        const bool fell = members.size() > 1 && r == victim;
        EXPECT_EQ(codes[static_cast<size_t>(r)], fell ? -SIGKILL : 0) << text("out" + std::to_string(r));
      }
      if (members.size() < 2) continue;
      const auto events = log("log", true);
      const auto start =
          std::find_if(events.begin(), events.end(), [](const Json& e) { return e["event"] == "start"; });
      ASSERT_NE(start, events.end());
      if ((*start)["sync"] == "asgd") {  // the agent may choose that, too
        expect_every_sample();
      } else {
        expect_every_sample_once();
      }
      EXPECT_EQ(events.back()["event"], "end");
      for (const Json& e : events) {  // also of the step that failed
        if (e["event"] != "times") continue;
        for (const double compute_s : e["compute_s"]) EXPECT_GT(compute_s, 0);
      }
      EXPECT_TRUE(std::any_of(events.begin(), events.end(), [&](const Json& e) {
        return e["event"] == "decision" && e["seen"].get<std::string>().find("rank") == 0 &&
               e["changed"].get<std::string>().find("goes on with") == 0;
      })) << text("log");
      return;
    }
    GTEST_SKIP() << "the agent took one rank each time";
  }

  // Ranks are killed and come back, one after another; all are there in the end.
  void come_back(const Strings& mode, bool recorded = true) {
    epochs_ = 100;  // a process takes its time to come
    const uint64_t runs = number_from("RINGFOLD_KILLS", 1), first = number_from("RINGFOLD_KILLS_SEED", 1);
    for (uint64_t seed = first; seed < first + runs; ++seed) {
      SCOPED_TRACE("RINGFOLD_KILLS_SEED=" + std::to_string(seed) + " " + mode[1]);
      std::mt19937_64 random(seed);
      forget();
      start(kRanks, arguments(mode));
      std::vector<pid_t> alive = running_;  // by rank
      std::set<pid_t> killed;
      size_t step = 1 + random() % 100;
      for (size_t returns = 0; returns < 2; ++returns) {
        ASSERT_TRUE(reaches(step)) << text("out0") << text("out1");
        const size_t victim = random() % kRanks;
        kill(alive[victim], SIGKILL);
        killed.insert(alive[victim]);
        start_rank(static_cast<int>(victim), kRanks, arguments(mode), true);
        alive[victim] = running_.back();
        const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(120);
        const auto have_come = [&] {
          size_t count = 0;
          for (const auto& e : log("log", true))
            count += e["event"] == "decision" && e["seen"].get<std::string>().find("come back") != std::string::npos;
          return count;
        };
        while (have_come() <= returns) {
          ASSERT_LT(std::chrono::steady_clock::now(), until) << text("again" + std::to_string(victim)) << text("log");
          std::this_thread::sleep_for(std::chrono::milliseconds(10));
        }
        step = begun() + 1 + random() % 50;
      }
      const auto pids = running_;
      const auto codes = wait_all(200);
      for (size_t i = 0; i < pids.size(); ++i)
        EXPECT_EQ(codes[i], killed.contains(pids[i]) ? -SIGKILL : 0) << text("again" + std::to_string(i));
      if (recorded) expect_every_sample_once();
      const auto events = log("log", true);
      ASSERT_EQ(events.back()["event"], "end");
      EXPECT_EQ(events.back()["ranks"], kRanks);
      EXPECT_TRUE(events.back()["replicas_equal"]);
      EXPECT_GT(events.back()["test_accuracy"], 0.75);
      if (HasFailure()) return;
    }
  }
  size_t epochs_ = 8;
  int ranks_ = kRanks;
};

TEST_F(Killed, SynchronousStepsGoOn) {
  kill_at_random({"--sync", "ssgd", "--elastic", "--checkpoint", path("saved"), "--checkpoint-every", "3"});
}

TEST_F(Killed, CodesGoOn) {
  kill_at_random({"--sync", "ssgd", "--codec", "int8", "--elastic", "--check-every", "7"});
}

TEST_F(Killed, RanksThatStepAloneGoBackToWhereTheyMet) {
  kill_at_random({"--sync", "local", "--local-steps", "5", "--elastic", "--checkpoint", path("saved"),
                  "--checkpoint-every", "7"});
}

TEST_F(Killed, DilocoGoesBackToWhereTheyMet) {
  kill_at_random({"--sync", "diloco", "--local-steps", "8", "--fragments", "2", "--overlap-steps", "2", "--codec",
                  "int8", "--elastic", "--outer-lr", "1", "--outer-momentum", "0.5"});
}

TEST_F(Killed, ReplicasOfShardsTakeOver) {
  kill_at_random({"--sync", "asgd", "--staleness", "4", "--elastic"}, kRanks - 1, false);
}

// Three replicas of two stages. After one death five ranks are left, two replicas and one rank that leaves; so
// another may die at any time.
TEST_F(Killed, ReplicasOfAPipelineGoOn) {
  ranks_ = 6;
  kill_at_random({"--sync", "ssgd", "--pipeline", "2", "--elastic", "--check-every", "7", "--checkpoint",
                  path("saved"), "--checkpoint-every", "3"},
                 4);
}

// The agent may do without some of the ranks from the beginning; of those that train one dies.
TEST_F(Killed, WhatAnAgentHasPlannedGoesOn) { what_an_agent_plans_goes_on({}); }

TEST_F(Killed, UpdatesInTurnsThatAnAgentHasPlannedGoOn) { what_an_agent_plans_goes_on({"--sync", "asgd"}); }

// As many replicas of the pipeline that was asked for as go on without one: the agent takes two, and then one.
TEST_F(Killed, APipelineThatAnAgentHasPlannedGoesOn) {
  epochs_ = 4;
  start(kRanks, {"--model", "mlp", "--goal", "samples=" + std::to_string(kSamples * epochs_), "--pipeline", "2",
                 "--batch", std::to_string(kBatch), "--limit-samples", std::to_string(kSamples), "--log-every", "5",
                 "--json", path("log"), "--record-samples", path("samples")});
  ASSERT_TRUE(reaches(3)) << text("out0");
  kill_rank(3);
  const auto codes = wait_all(120);
  EXPECT_EQ(std::count(codes.begin(), codes.end(), 0), 3) << text("out0") << text("out1");
  EXPECT_EQ(codes[3], -SIGKILL);
  expect_every_sample_once();
  const auto events = log("log", true);
  EXPECT_EQ(events.back()["event"], "end");
  EXPECT_EQ(events.back()["ranks"], 2);
  EXPECT_TRUE(std::any_of(events.begin(), events.end(), [](const Json& e) {
    return e["event"] == "decision" && e["changed"].get<std::string>().find("goes on with 2 ranks") == 0;
  })) << text("log");
}

TEST_F(Killed, RanksThatComeBackGoOnWithTheOthers) {
  come_back({"--sync", "ssgd", "--elastic", "--check-every", "5"});
}

TEST_F(Killed, RanksThatComeBackStepAloneLikeTheOthers) {
  come_back({"--sync", "local", "--local-steps", "5", "--elastic"});
}

TEST_F(Killed, RanksThatComeBackServeShards) { come_back({"--sync", "asgd", "--elastic"}, false); }

}  // namespace
}  // namespace ringfold::train
