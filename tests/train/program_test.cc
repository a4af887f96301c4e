// The program ringfold-train, as its users start it: one process per rank.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace ringfold::train {
namespace {

using Json = nlohmann::json;
using Strings = std::vector<std::string>;

const char* const kData = "/usr/share/datasets/fashion-mnist";

class Program : public testing::Test {
 protected:
  Program() {
    std::string name = std::filesystem::temp_directory_path() / "ringfold-train-XXXXXX";
    dir_ = mkdtemp(name.data());
    std::ofstream(path("key")) << "0123456789abcdef0123456789abcdef";
    std::filesystem::permissions(path("key"), std::filesystem::perms::owner_read);
  }
  ~Program() override {
    for (pid_t pid : running_) {
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
    std::filesystem::remove_all(dir_);
  }

  std::string path(const std::string& name) const { return dir_ + "/" + name; }

  std::string text(const std::string& name) const {
    std::stringstream all;
    all << std::ifstream(path(name)).rdbuf();
    return all.str();
  }

  // Rank r's output goes to the file "out<r>".
  void start(int ranks, Strings args) {
    args.insert(args.begin(), std::getenv("RINGFOLD_TRAIN_PROGRAM"));
    for (int r = 0; r < ranks; ++r) {
      const pid_t pid = fork();
      ASSERT_GE(pid, 0);
      if (pid > 0) {
        running_.push_back(pid);
        continue;
      }
      if (!freopen(path("out" + std::to_string(r)).c_str(), "w", stdout) || dup2(1, 2) < 0) _exit(126);
      setenv("RINGFOLD_RANK", std::to_string(r).c_str(), 1);
      setenv("RINGFOLD_SIZE", std::to_string(ranks).c_str(), 1);
      setenv("RINGFOLD_RENDEZVOUS", ("dir:" + dir_).c_str(), 1);
      setenv("RINGFOLD_KEY_FILE", path("key").c_str(), 1);
      setenv("RINGFOLD_TIMEOUT", "60", 1);
      std::vector<char*> argv;
      for (auto& a : args) argv.push_back(a.data());
      argv.push_back(nullptr);
      execv(argv[0], argv.data());
      _exit(127);
    }
  }

  // Exit codes, or minus the signal; a program that has not ended in time is killed.
  std::vector<int> wait_all(int seconds = 200) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
    std::vector<int> codes;
    for (pid_t pid : std::exchange(running_, {})) {
      int status = 0;
      while (waitpid(pid, &status, WNOHANG) == 0) {
        if (std::chrono::steady_clock::now() > until) kill(pid, SIGKILL);
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
      codes.push_back(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
    }
    return codes;
  }

  // `cut`: whoever writes it may have been stopped, or still be writing, in the middle of a line.
  std::vector<Json> log(const std::string& name, bool cut = false) const {
    std::vector<Json> events;
    std::ifstream in(path(name));
    for (std::string line; std::getline(in, line);) {
      if (cut && !Json::accept(line)) continue;
      events.push_back(Json::parse(line));
    }
    return events;
  }
  bool logged(const std::string& name, size_t step, double seconds) const;

  std::string dir_;
  std::vector<pid_t> running_;
};

class RealData : public Program {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kData)) GTEST_SKIP() << kData << " is missing: install dataset-fashion-mnist";
  }
};

TEST_F(RealData, TwoRanksTrainAndLogEveryEvent) {
  start(2, {"--model", "mlp", "--epochs", "2", "--batch", "64", "--limit-samples", "3000", "--log-every", "10",
            "--json", path("log"), "--save", path("model.pt")});
  ASSERT_EQ(wait_all(), (std::vector<int>{0, 0})) << text("out0") << text("out1");
  const auto events = log("log");
  ASSERT_GE(events.size(), 2U + 9 + 2);
  EXPECT_EQ(events.front()["event"], "start");
  EXPECT_EQ(events.front()["ranks"], 2);
  EXPECT_EQ(events.front()["steps"], 2 * 47);
  int steps = 0, epochs = 0;
  for (const Json& e : events) {
    if (e["event"] == "step") {
      EXPECT_EQ(e["step"], ++steps * 10);
      EXPECT_GT(e["loss"], 0.0);
    }
    if (e["event"] == "epoch") {
      EXPECT_EQ(e["epoch"], ++epochs);
      EXPECT_TRUE(e["replicas_equal"]);
    }
  }
  EXPECT_EQ(steps, 9);
  EXPECT_EQ(epochs, 2);
  const Json& end = events.back();
  EXPECT_EQ(end["event"], "end");
  EXPECT_TRUE(end["replicas_equal"]);
  EXPECT_GT(end["test_accuracy"], 0.7);
  EXPECT_GT(end["samples_per_s"], 0.0);
  EXPECT_GT(end["seconds"], 0.0);
  EXPECT_GT(end["comm_share"], 0.0);
  EXPECT_LT(end["comm_share"], 1.0);
  EXPECT_GT(std::filesystem::file_size(path("model.pt")), 235146 * sizeof(float));
  EXPECT_NE(text("out0").find("test accuracy 0."), std::string::npos) << text("out0");
  EXPECT_EQ(text("out1"), "");
}

TEST_F(RealData, OneRankNeedsNoLauncherAndAMissedTargetIsAFailure) {
  start(1, {"--model", "mlp", "--epochs", "1", "--limit-samples", "500", "--target-accuracy", "0.999", "--json",
            path("log")});
  ASSERT_EQ(wait_all(), std::vector<int>{1}) << text("out0");
  EXPECT_NE(text("out0").find("was not reached"), std::string::npos) << text("out0");
  EXPECT_EQ(log("log").back()["event"], "end");
}

TEST_F(RealData, TrainingThatDivergesIsAnErrorAtOnce) {
  start(2, {"--model", "mlp", "--epochs", "5", "--limit-samples", "2000", "--batch", "100", "--lr", "1e20"});
  EXPECT_EQ(wait_all(60), (std::vector<int>{1, 1}));
  const std::string said = text("out0") + text("out1");
  EXPECT_NE(said.find("training has diverged"), std::string::npos) << said;
  EXPECT_NE(said.find("Take a smaller --lr than 1e+20"), std::string::npos) << said;
}

TEST_F(RealData, TwoRanksTrainOnProductsOfThinMatrices) {
  start(2, {"--model", "mlp", "--epochs", "2", "--batch", "64", "--limit-samples", "3000", "--power-sgd", "2",
            "--power-sgd-warm-up", "5", "--check-every", "20", "--json", path("log")});
  ASSERT_EQ(wait_all(), (std::vector<int>{0, 0})) << text("out0") << text("out1");
  const auto events = log("log");
  const double whole = 4 * 235146, thin = 4 * (2 * (256 + 784 + 128 + 256 + 10 + 128) + 256 + 128 + 10);
  EXPECT_EQ(events.front()["power_sgd"], 2);
  EXPECT_EQ(events.front()["bytes_per_step"], thin);
  EXPECT_NEAR(events.back()["bytes_per_step"], (5 * whole + 89 * thin) / 94, 1);
  EXPECT_TRUE(events.back()["replicas_equal"]);
  EXPECT_GT(events.back()["test_accuracy"], 0.7);
}

TEST_F(RealData, TwoRanksTrainOnCodes) {
  start(2, {"--model", "mlp", "--epochs", "2", "--batch", "64", "--limit-samples", "3000", "--codec", "int4",
            "--check-every", "20", "--json", path("log")});
  ASSERT_EQ(wait_all(), (std::vector<int>{0, 0})) << text("out0") << text("out1");
  const auto events = log("log");
  EXPECT_EQ(events.front()["codec"], "int4");
  const double whole = 4 * 235146;
  EXPECT_NEAR(static_cast<double>(events.front()["bytes_per_step"]) / whole, 4.5 / 32, 0.01);
  EXPECT_EQ(events.back()["bytes_per_step"], events.front()["bytes_per_step"]);
  EXPECT_TRUE(events.back()["replicas_equal"]);
  EXPECT_GT(events.back()["test_accuracy"], 0.7);
}

TEST_F(RealData, ARankThatSavesNothingIsRefusedAndTheLargestIsSaid) {
  start(1, {"--model", "mlp", "--power-sgd", "193", "--limit-samples", "100"});
  ASSERT_EQ(wait_all(), std::vector<int>{1});
  EXPECT_NE(text("out0").find("--power-sgd 193"), std::string::npos) << text("out0");
  EXPECT_NE(text("out0").find("is 192"), std::string::npos) << text("out0");
}

TEST_F(RealData, AKilledPeerIsNamedByTheVerdict) {
  start(3, {"--model", "mlp", "--epochs", "1000", "--batch", "60", "--limit-samples", "600", "--log-every", "10",
            "--json", path("log")});
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(120);
  while (text("log").find("\"step\"") == std::string::npos) {
    ASSERT_LT(std::chrono::steady_clock::now(), until) << text("out0");
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  kill(running_[1], SIGKILL);
  EXPECT_EQ(wait_all(30), (std::vector<int>{1, -SIGKILL, 1})) << text("out0");
  for (const char* out : {"out0", "out2"}) EXPECT_NE(text(out).find("rank 1"), std::string::npos) << text(out);
  const Json last = log("log").back();
  EXPECT_EQ(last["event"], "error");
  EXPECT_EQ(last["verdict"]["rank"], 1) << last;
}

// Waits until the log has come so far.
bool Program::logged(const std::string& name, size_t step, double seconds) const {
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  for (;;) {
    for (const auto& event : log(name, true)) {
      if (event["event"] == "step" && event["step"].get<size_t>() >= step) return true;
    }
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

TEST_F(RealData, AnElasticRunGoesOnWithoutTheRanksThatWereKilled) {
  const Strings args = {"--model",         "mlp",  "--epochs",    "4",  "--batch",       "60",
                        "--limit-samples", "6000", "--log-every", "10", "--check-every", "10"};
  Strings alone = args, elastic = args;
  alone.insert(alone.end(), {"--json", path("alone")});
  start(1, alone);
  ASSERT_EQ(wait_all(), std::vector<int>{0}) << text("out0");
  elastic.insert(elastic.end(), {"--elastic", "--json", path("log")});
  start(4, elastic);
  ASSERT_TRUE(logged("log", 60, 120)) << text("out0");
  kill(running_[2], SIGKILL);
  ASSERT_TRUE(logged("log", 150, 60)) << text("out0");
  kill(running_[0], SIGKILL);  // the one that writes
  ASSERT_TRUE(logged("log", 250, 60)) << text("out1");
  kill(running_[3], SIGKILL);
  EXPECT_EQ(wait_all(), (std::vector<int>{-SIGKILL, 0, -SIGKILL, -SIGKILL})) << text("out1");

  const auto one = log("alone"), all = log("log", true);
  std::vector<Json> decisions;
  size_t last = 0;
  std::vector<int> epochs;
  for (const auto& event : all) {
    if (event["event"] == "decision") decisions.push_back(event);
    if (event["event"] == "epoch") epochs.push_back(event["epoch"]);
    if (event["event"] == "step") {
      EXPECT_GT(event["step"].get<size_t>(), last) << "a step was counted twice";
      last = event["step"];
    }
  }
  EXPECT_EQ(epochs, (std::vector<int>{1, 2, 3, 4}));
  ASSERT_EQ(decisions.size(), 3u);
  const char* const left_over[] = {"3 ranks", "2 ranks", "1 rank,"};
  for (size_t i = 0; i < 3; ++i) {
    const std::string seen = decisions[i]["seen"], changed = decisions[i]["changed"], left = left_over[i];
    EXPECT_NE(seen.find("rank "), std::string::npos) << seen;
    EXPECT_NE(changed.find(left), std::string::npos) << changed;
  }
  // The same steps as alone, but for rounding.
  EXPECT_EQ(all.back()["event"], "end");
  EXPECT_EQ(all.back()["ranks"], 1);
  EXPECT_NEAR(all.back()["train_loss"].get<double>(), one.back()["train_loss"].get<double>(), 0.02);
  EXPECT_NEAR(all.back()["test_accuracy"].get<double>(), one.back()["test_accuracy"].get<double>(), 0.01);
}

TEST_F(RealData, AnAgentPlansWatchesAndSaysWhatItDid) {
  start(3, {"--model", "mlp", "--goal", "accuracy=0.7", "--limit-samples", "6000", "--batch", "60", "--log-every",
            "20", "--slow-rank", "1:6", "--json", path("log")});
  ASSERT_EQ(wait_all(), (std::vector<int>{0, 0, 0})) << text("out0") << text("out1");
  const auto events = log("log");
  EXPECT_EQ(events.front()["event"], "plan");
  EXPECT_NE(events.front()["considered"].get<std::string>().find("all 3"), std::string::npos);
  EXPECT_GE(events.back()["test_accuracy"], 0.7);
  const int ranks = events.back()["ranks"];
  size_t times = 0;
  for (const auto& event : events) {
    if (event["event"] != "times") continue;
    ++times;
    ASSERT_EQ(event["compute_s"].size(), ranks);
    size_t samples = 0;
    for (const auto& s : event["samples"]) samples += s.get<size_t>();
    EXPECT_EQ(samples, 60 * event["steps"].get<size_t>());
    if (ranks == 3) {
      EXPECT_LT(event["samples"][1], 0.7 * event["samples"][0].get<double>()) << "the slow rank has less to do";
    }
  }
  EXPECT_GT(times, 0u);
}

TEST_F(RealData, AnAgentOnlyPlansWhenAskedTo) {
  start(2, {"--model", "mlp", "--goal", "samples=1e6", "--dry-run", "--max-ranks", "1", "--json", path("log")});
  ASSERT_EQ(wait_all(), (std::vector<int>{0, 0})) << text("out0");
  ASSERT_EQ(log("log").size(), 1u);
  EXPECT_NE(text("out0").find("plans for samples=1e6"), std::string::npos) << text("out0");
  EXPECT_EQ(text("out0").find("all 2"), std::string::npos) << text("out0");
}

TEST_F(RealData, TimeThatIsOverEndsTrainingAndAMissedGoalIsAFailure) {
  start(2, {"--model", "mlp", "--goal", "accuracy=0.9999", "--within", "1s", "--limit-samples", "3000", "--log-every",
            "5", "--json", path("log")});
  const auto codes = wait_all();
  EXPECT_TRUE(codes == (std::vector<int>{1, 1}) || codes == (std::vector<int>{1, 0}))
      << text("out0");  // 0: it was left out
  EXPECT_EQ(log("log").back()["event"], "end");
  EXPECT_NE(text("out0").find("was not reached"), std::string::npos) << text("out0");
}

TEST_F(RealData, WhatTheAgentDecidesCannotBeGivenToo) {
  for (const auto& [wrong, why] : std::vector<std::pair<Strings, std::string>>{
           {{"--goal", "accuracy=0.9", "--codec", "int8"}, "--codec with --goal"},
           {{"--goal", "accuracy=9"}, "an accuracy is a share"},
           {{"--goal", "samples=1e5", "--within", "10x"}, "'10x' is no time"},
           {{"--dry-run"}, "--dry-run needs --goal"},
           {{"--elastic", "--sync", "asgd"}, "--elastic has no meaning with --sync asgd"}}) {
    start(1, wrong);
    EXPECT_NE(wait_all(), std::vector<int>{0});
    EXPECT_NE(text("out0").find(why), std::string::npos) << text("out0");
  }
}

// ---- a transformer, whose text needs no package ----

class SharedLayers : public Program {
 protected:
  Strings transformer(Strings more) const {
    std::ofstream text(path("text"));
    for (int i = 0; i < 300; ++i) text << "rank " << i % 13 << " sends to rank " << (i + 1) % 13 << "\n";
    text.close();
    Strings all = {"--model",     "transformer", "--data", path("text"), "--layers",    "2",       "--width",
                   "32",          "--heads",     "4",      "--context",  "16",          "--batch", "8",
                   "--optimizer", "sgd",         "--lr",   "0.05",       "--log-every", "5"};
    for (size_t i = 0; i + 1 < more.size(); i += 2) {  // in place of what is there
      const auto there = std::find(all.begin(), all.end(), more[i]);
      if (there != all.end()) all.erase(there, there + 2);
      all.insert(all.end(), {more[i], more[i + 1]});
    }
    return all;
  }
};

TEST_F(SharedLayers, FourRanksReachWhatOneDoesAndSaveTheWholeModel) {
  start(1, transformer({"--json", path("one"), "--save", path("one.rf")}));
  ASSERT_EQ(wait_all(), std::vector<int>{0}) << text("out0");
  start(4, transformer({"--tensor-parallel", "2", "--json", path("four"), "--save", path("four.rf")}));
  ASSERT_EQ(wait_all(), (std::vector<int>{0, 0, 0, 0})) << text("out0");
  const auto one = log("one"), four = log("four");
  ASSERT_EQ(one.size(), four.size());
  EXPECT_EQ(four.front()["ranks"], 4);
  EXPECT_EQ(four.front()["tensor_parallel"], 2);
  EXPECT_EQ(four.front()["parameters"], one.front()["parameters"]);
  EXPECT_LT(four.front()["bytes_per_step"], 0.6 * one.front()["bytes_per_step"].get<double>());
  for (size_t i = 0; i < one.size(); ++i) {
    ASSERT_EQ(one[i]["event"], four[i]["event"]);
    if (one[i]["event"] != "step") continue;
    EXPECT_NEAR(one[i]["loss"].get<double>(), four[i]["loss"].get<double>(), 1e-4);
  }
  const double bits = one.back()["bits_per_byte"];
  EXPECT_LT(bits, 7) << "it learns";
  EXPECT_NEAR(four.back()["bits_per_byte"].get<double>(), bits, 1e-4);
  EXPECT_NEAR(one.back()["test_loss"].get<double>() / std::log(2.0), bits, 1e-9);
  EXPECT_NE(text("out0").find("bits per byte"), std::string::npos) << text("out0");
  const auto size = [&](const char* name) { return static_cast<double>(std::filesystem::file_size(path(name))); };
  EXPECT_NEAR(size("four.rf"), size("one.rf"), 0.02 * size("one.rf"));
}

TEST_F(SharedLayers, WhenAPeerIsKilledAllOthersEnd) {
  const std::pair<int, Strings> cuts[] = {{4, {"--tensor-parallel", "2"}},
                                          {4, {"--pipeline", "2"}},
                                          {4, {"--pipeline", "4"}},
                                          {8, {"--pipeline", "2", "--tensor-parallel", "2", "--micro-batches", "2"}}};
  for (const auto& [ranks, how] : cuts) {
    std::filesystem::remove(path("log"));
    Strings more = {"--epochs", "100000", "--json", path("log")};
    more.insert(more.begin(), how.begin(), how.end());
    start(ranks, transformer(more));
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(120);
    while (text("log").find("\"step\"") == std::string::npos) {
      ASSERT_LT(std::chrono::steady_clock::now(), until) << text("out0");
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    kill(running_[3], SIGKILL);
    std::vector<int> codes(static_cast<size_t>(ranks), 1);
    codes[3] = -SIGKILL;
    EXPECT_EQ(wait_all(30), codes) << how[0] << text("out0");
    EXPECT_EQ(log("log").back()["event"], "error");
    EXPECT_EQ(log("log").back()["verdict"]["rank"], 3) << "its number in the job, not in its line of the mesh";
    for (const char* out : {"out0", "out1", "out2"})
      EXPECT_NE(text(out).find("rank 3"), std::string::npos) << how[0] << text(out);
  }
}

TEST_F(SharedLayers, PipelinesHaveTheLossCurveOfOneRankAndSaveTheWholeModel) {
  const Strings every_step = {"--layers", "6", "--log-every", "1"};
  const auto with = [&](Strings more) {
    more.insert(more.end(), every_step.begin(), every_step.end());
    return transformer(more);
  };
  start(1, with({"--json", path("one"), "--save", path("one.rf")}));
  ASSERT_EQ(wait_all(), std::vector<int>{0}) << text("out0");
  const auto one = log("one");
  EXPECT_LT(one.back()["bits_per_byte"], 7) << "it learns";
  const struct {
    int ranks;
    Strings how;
  } cuts[] = {{2, {"--pipeline", "2"}},
              {4, {"--pipeline", "4", "--pipeline-schedule", "zb-h1"}},
              {8, {"--pipeline", "2", "--tensor-parallel", "2", "--micro-batches", "4"}}};
  for (const auto& [ranks, how] : cuts) {
    Strings more = {"--json", path("cut"), "--save", path("cut.rf")};
    more.insert(more.end(), how.begin(), how.end());
    start(ranks, with(more));
    ASSERT_EQ(wait_all(), std::vector<int>(static_cast<size_t>(ranks), 0)) << text("out0");
    auto cut = log("cut");
    const auto timeline =
        std::find_if(cut.begin(), cut.end(), [](const Json& event) { return event["event"] == "timeline"; });
    ASSERT_NE(timeline, cut.end());
    const size_t kinds = ranks == 4 ? 3 : 2;  // zb-h1 has the backward pass in two parts
    EXPECT_EQ((*timeline)["spans"].size(),
              2 * cut.front()["pipeline"].get<size_t>() * cut.front()["micro_batches"].get<size_t>() * kinds)
        << "of two steps";
    cut.erase(timeline);
    ASSERT_EQ(one.size(), cut.size());
    EXPECT_EQ(cut.front()["ranks"], ranks);
    EXPECT_EQ(std::to_string(cut.front()["pipeline"].get<int>()), how[1]);
    EXPECT_EQ(cut.front()["parameters"], one.front()["parameters"]);
    size_t layers = 0;
    for (const size_t of_stage : cut.front()["layers_of_stages"]) layers += of_stage;
    EXPECT_EQ(layers, 8U) << cut.front();
    EXPECT_EQ(cut.front()["layers_of_stages"].size(), cut.front()["pipeline"].get<size_t>());
    EXPECT_EQ(cut.front()["micro_batches"], ranks == 8 ? 4 : 8);
    for (size_t i = 0; i < one.size(); ++i) {
      ASSERT_EQ(one[i]["event"], cut[i]["event"]);
      if (one[i]["event"] == "step") {
        EXPECT_NEAR(one[i]["loss"].get<double>(), cut[i]["loss"].get<double>(), 1e-5) << one[i]["step"];
      }
      if (one[i]["event"] == "times") {
        EXPECT_EQ(cut[i]["compute_s"].size(), static_cast<size_t>(ranks));
      }
    }
    EXPECT_NEAR(cut.back()["bits_per_byte"].get<double>(), one.back()["bits_per_byte"].get<double>(), 1e-5);
    const auto size = [&](const char* name) { return static_cast<double>(std::filesystem::file_size(path(name))); };
    EXPECT_NEAR(size("cut.rf"), size("one.rf"), 0.02 * size("one.rf"));
    EXPECT_NE(text("out0").find("layers on " + how[1] + " ranks"), std::string::npos) << text("out0");
  }
}

TEST_F(SharedLayers, SigtermAtAStageSavesAndTheRestOfTheRunHasTheSameBits) {
  const auto args = [&](Strings more) {
    more.insert(more.end(), {"--pipeline", "2", "--epochs", "8", "--json", path("log")});
    return transformer(more);
  };
  start(4, args({}));
  ASSERT_EQ(wait_all(), (std::vector<int>{0, 0, 0, 0})) << text("out0");
  const Json whole = log("log").back();
  const Strings saved = {"--checkpoint", path("saved"), "--checkpoint-every", "1000000"};
  const auto resume = [&](Strings args) {
    args.push_back("--resume");
    return args;
  };
  std::filesystem::remove(path("log"));
  start(4, resume(args(saved)));
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(120);
  while (text("log").find("\"step\"") == std::string::npos) {
    ASSERT_LT(std::chrono::steady_clock::now(), until) << text("out0");
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  kill(running_[3], SIGTERM);  // of the last stage
  ASSERT_EQ(wait_all(60), (std::vector<int>{143, 143, 143, 143})) << text("out0") << text("out3");
  EXPECT_TRUE(log("log").back()["stopped"]);
  start(4, resume(args(saved)));
  ASSERT_EQ(wait_all(), (std::vector<int>{0, 0, 0, 0})) << text("out0");
  EXPECT_GT(log("log").front()["resumed_at"], 0);
  EXPECT_EQ(log("log").back()["replica_hash"], whole["replica_hash"]);
  EXPECT_EQ(log("log").back()["test_loss"], whole["test_loss"]);
  EXPECT_EQ(log("log").back()["train_loss"], whole["train_loss"]);
}

TEST_F(SharedLayers, SettingsThatDoNotFitAreRefused) {
  const std::pair<Strings, const char*> bad[] = {
      {transformer({"--heads", "3"}), "--width 32"},
      {transformer({"--tensor-parallel", "3"}), "--tensor-parallel 3"},
      {transformer({"--context", "0"}), "--context 0"},
      {transformer({"--context", "5000"}), "too few"},
      {transformer({"--data", "/nowhere"}), "/nowhere"},
      {{"--model", "cnn", "--tensor-parallel", "2"}, "--model transformer"},
      {{"--model", "cnn", "--layers", "2"}, "--layers"},
      {transformer({"--pipeline", "2"}), "1 ranks cannot be cut into 2 stages"},
      {transformer({"--pipeline", "2", "--sync", "asgd"}), "--sync asgd with --pipeline"},
      {transformer({"--pipeline", "2", "--goal", "accuracy=0.5"}), "--pipeline with --goal"},
      {transformer({"--pipeline", "2", "--slow-rank", "1:2"}), "--slow-rank with --pipeline"},
      {transformer({"--pipeline", "2", "--pipeline-balance", "1,,2"}), "'1,,2'"},
      {transformer({"--pipeline", "2", "--pipeline-schedule", "2f2b"}), "2f2b"},
      {transformer({"--micro-batches", "2"}), "--micro-batches needs --pipeline"},
      {{"--model", "transformer", "--pipeline", "2", "--elastic"}, "--elastic with --pipeline"},
  };
  for (const auto& [args, word] : bad) {
    start(1, args);
    ASSERT_NE(wait_all(), std::vector<int>{0}) << word;
    EXPECT_NE(text("out0").find(word), std::string::npos) << text("out0");
  }
}

TEST_F(RealData, EveryStrategyTrainsAndSaysHowStaleItWas) {
  const Strings modes[] = {{"--sync", "zero1"},
                           {"--sync", "asgd", "--staleness", "0"},
                           {"--sync", "asgd", "--staleness", "2", "--delay-compensation", "0.1"},
                           {"--sync", "asgd", "--staleness", "inf"},
                           {"--sync", "local", "--local-steps", "5"},
                           {"--sync", "diloco", "--local-steps", "8", "--fragments", "2", "--codec", "int8"}};
  for (const Strings& mode : modes) {
    Strings args = {"--model",     "mlp", "--epochs", "2",         "--batch", "60",   "--limit-samples", "3000",
                    "--log-every", "10",  "--json",   path("log"), "--lr",    "0.03", "--momentum",      "0.5"};
    args.insert(args.end(), mode.begin(), mode.end());
    start(3, args);
    ASSERT_EQ(wait_all(), (std::vector<int>{0, 0, 0})) << mode[1] << text("out0") << text("out1");
    const auto events = log("log");
    EXPECT_EQ(events.front()["sync"], mode[1]);
    const Json& end = events.back();
    EXPECT_GT(end["test_accuracy"], 0.6) << mode[1];
    EXPECT_TRUE(end["replicas_equal"]);
    EXPECT_GT(end["sent_bytes"], 0);
    uint64_t updates = 0;
    for (const Json& n : end["staleness"]) updates += n.get<uint64_t>();
    EXPECT_EQ(updates, mode[1] == "asgd" ? 2 * 50 * 3 : 2 * 50) << mode[1];
    const std::string bound = mode[1] == "asgd" ? mode[3] : "0";
    if (bound != "inf") {
      EXPECT_LE(end["staleness"].size(), std::stoul(bound) * 3 + 1) << mode[1];
    }
  }
}

TEST_F(RealData, ARecordedOrderIsReplayedToTheSameBits) {
  const Strings args = {"--model", "mlp",  "--epochs",   "1",   "--batch", "60",   "--limit-samples", "1500",
                        "--sync",  "asgd", "--momentum", "0.5", "--lr",    "0.03", "--json",          path("log")};
  Strings recording = args, replaying = args;
  recording.insert(recording.end(), {"--record-order", path("order"), "--slow-rank", "1:3"});
  replaying.insert(replaying.end(), {"--replay-order", path("order")});
  start(3, recording);
  ASSERT_EQ(wait_all(), (std::vector<int>{0, 0, 0})) << text("out0");
  const Json first = log("log").back();
  start(3, replaying);
  ASSERT_EQ(wait_all(), (std::vector<int>{0, 0, 0})) << text("out0");
  EXPECT_EQ(log("log").back()["replica_hash"], first["replica_hash"]);
  EXPECT_EQ(log("log").back()["staleness"], first["staleness"]);
}

TEST_F(RealData, AKilledRunGoesOnFromItsCheckpointOnOtherRanks) {
  for (const char* sync : {"ssgd", "diloco", "asgd"}) {
    const Strings args = {"--model",
                          "mlp",
                          "--epochs",
                          "30",
                          "--batch",
                          "60",
                          "--limit-samples",
                          "1200",
                          "--sync",
                          sync,
                          "--momentum",
                          "0.5",
                          "--lr",
                          "0.03",
                          "--json",
                          path("log"),
                          "--checkpoint",
                          path(sync),
                          "--checkpoint-every",
                          "7",
                          "--log-every",
                          "10",
                          "--resume"};
    start(3, args);
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(120);
    const auto has = [&] {
      std::error_code error;
      for (const auto& entry : std::filesystem::directory_iterator(path(sync), error))
        if (entry.path().extension() != ".part" && std::filesystem::exists(entry.path() / "manifest.json"))
          return true;
      return false;
    };
    while (!has()) {
      ASSERT_LT(std::chrono::steady_clock::now(), until) << text("out0");
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    for (pid_t pid : running_) kill(pid, SIGKILL);
    ASSERT_EQ(wait_all(30), (std::vector<int>{-SIGKILL, -SIGKILL, -SIGKILL})) << sync << text("out0");
    start(2, args);
    ASSERT_EQ(wait_all(), (std::vector<int>{0, 0})) << sync << text("out0") << text("out1");
    const auto events = log("log");
    EXPECT_GT(events.front()["resumed_at"], 0) << sync;
    EXPECT_EQ(events.back()["epochs"], 30);
    EXPECT_GT(events.back()["test_accuracy"], 0.7) << sync;
  }
}

TEST_F(RealData, SigtermSavesAndTheRestOfTheRunHasTheSameBits) {
  Strings args = {"--model",         "mlp",  "--epochs",    "40", "--batch", "60",
                  "--limit-samples", "1200", "--log-every", "10", "--json",  path("log")};
  start(2, args);
  ASSERT_EQ(wait_all(), (std::vector<int>{0, 0})) << text("out0");
  const Json whole = log("log").back();
  args.insert(args.end(), {"--checkpoint", path("saved"), "--checkpoint-every", "1000000", "--resume"});
  std::filesystem::remove(path("log"));
  start(2, args);
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(120);
  while (text("log").find("\"step\"") == std::string::npos) {
    ASSERT_LT(std::chrono::steady_clock::now(), until) << text("out0");
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  kill(running_[1], SIGTERM);  // one is enough
  ASSERT_EQ(wait_all(60), (std::vector<int>{143, 143})) << text("out0") << text("out1");
  EXPECT_TRUE(log("log").back()["stopped"]);
  start(2, args);
  ASSERT_EQ(wait_all(), (std::vector<int>{0, 0})) << text("out0");
  EXPECT_GT(log("log").front()["resumed_at"], 0);
  EXPECT_EQ(log("log").back()["replica_hash"], whole["replica_hash"]);
  EXPECT_EQ(log("log").back()["test_accuracy"], whole["test_accuracy"]);
}

TEST_F(Program, RefusesOptionsThatContradictEachOther) {
  const std::pair<Strings, const char*> bad[] = {
      {{"--staleness", "3"}, "it is for --sync asgd"},
      {{"--sync", "asgd", "--local-steps", "3"}, "it is for --sync local or diloco"},
      {{"--sync", "asgd", "--codec", "int8"}, "--codec has no meaning with --sync asgd"},
      {{"--sync", "local", "--outer-lr", "0.5"}, "it is for --sync diloco"},
      {{"--sync", "asgd", "--optimizer", "adam"}, "n times as far"},
      {{"--sync", "asgd", "--staleness", "-1"}, "neither a number of steps nor inf"},
      {{"--sync", "asgd", "--staleness", "0", "--delay-compensation", "1"}, "nothing is late"},
      {{"--sync", "asgd", "--order-seed", "1", "--replay-order", "x"}, "give one of them"},
      {{"--sync", "diloco", "--local-steps", "2", "--fragments", "3"}, "--fragments can be at most"},
      {{"--sync", "zero1", "--power-sgd", "1"}, "it is for --sync ssgd"},
      {{"--sync", "perhaps"}, "--sync"},
      {{"--slow-rank", "1"}, "RANK:FACTOR"},
      {{"--resume"}, "needs --checkpoint"},
  };
  for (const auto& [args, why] : bad) {
    start(1, args);
    ASSERT_NE(wait_all(), std::vector<int>{0}) << args[0];
    EXPECT_NE(text("out0").find(why), std::string::npos) << text("out0");
  }
}

TEST_F(Program, WithoutDataSaysWhichPackageHasIt) {
  start(1, {"--data", dir_});
  ASSERT_EQ(wait_all(), std::vector<int>{1});
  EXPECT_NE(text("out0").find("dataset-fashion-mnist"), std::string::npos) << text("out0");
}

TEST_F(Program, RefusesCompressionThatCannotBe) {
  const Strings bad[] = {{"--power-sgd", "-1"},        {"--power-sgd", "two"},
                         {"--power-sgd", "1025"},      {"--power-sgd"},
                         {"--codec", "int9"},          {"--codec", "topk:2"},
                         {"--power-sgd-warm-up", "5"}, {"--power-sgd", "1", "--power-sgd-warm-up", "-1"}};
  for (const Strings& args : bad) {
    start(1, args);
    ASSERT_NE(wait_all(), std::vector<int>{0});
    EXPECT_NE(text("out0").find(args[args.size() < 3 ? 0 : 2]), std::string::npos) << text("out0");
  }
}

TEST_F(Program, RefusesAModelThatItDoesNotKnow) {
  start(1, {"--model", "oracle"});
  ASSERT_NE(wait_all(), std::vector<int>{0});
  EXPECT_NE(text("out0").find("--model"), std::string::npos) << text("out0");
}

}  // namespace
}  // namespace ringfold::train
