// What ringfold-train does with replicas of whole models: what it prints and logs, refuses, saves and survives.
#include <algorithm>
#include <cmath>

#include "tests/train/program.h"

namespace ringfold::train {
namespace {

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

TEST_F(RealData, TestsWithinAnEpochChangeNothingAndFindTheTargetBeforeItsEnd) {
  for (const char* sync : {"ssgd", "zero1", "local"}) {
    const Strings args = {"--model", "mlp",    "--epochs",  "2",      "--batch", "60",   "--limit-samples",
                          "1800",    "--json", path("log"), "--sync", sync,      "--lr", "0.03"};
    Strings often = args, soon = args;
    often.insert(often.end(), {"--test-every", "700"});
    soon.insert(soon.end(), {"--test-every", "300", "--target-accuracy", "0.3"});
    start(2, args);
    ASSERT_EQ(wait_all(), (std::vector<int>{0, 0})) << sync << text("out0");
    const Json plain = log("log").back();
    start(2, often);
    ASSERT_EQ(wait_all(), (std::vector<int>{0, 0})) << sync << text("out0");
    std::vector<size_t> tested;
    double before_s = 0;
    for (const Json& e : log("log")) {
      if (e["event"] != "test") continue;
      tested.push_back(e["step"]);
      EXPECT_GT(e["test_accuracy"], 0.15);
      EXPECT_GT(e["trained_s"], before_s);
      EXPECT_GT(e["elapsed_s"], e["trained_s"].get<double>());
      before_s = e["trained_s"];
    }
    EXPECT_EQ(tested, (std::vector<size_t>{12, 24, 42, 54}))
        << sync;  // 700 samples are 12 steps, begun anew each epoch
    EXPECT_EQ(log("log").back()["replica_hash"], plain["replica_hash"]) << sync;
    start(2, soon);
    ASSERT_EQ(wait_all(), (std::vector<int>{0, 0})) << sync << text("out0");
    EXPECT_EQ(log("log").back()["epochs"], 0) << sync;
    EXPECT_EQ(log("log").back()["steps"].get<int>() % 5, 0) << sync;
    EXPECT_GE(log("log").back()["test_accuracy"], 0.3) << sync;
  }
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
  EXPECT_NE(events.front()["considered"].get<std::string>().find("measured"), std::string::npos);
  EXPECT_GT(events.front()["seconds"], 0.0);
  EXPECT_GE(events.back()["test_accuracy"], 0.7);
  const auto tested = std::find_if(events.begin(), events.end(), [](const Json& e) { return e["event"] == "test"; });
  ASSERT_NE(tested, events.end());
  EXPECT_NEAR((*tested)["epochs"].get<double>(), 1 / 3.0, 0.02) << "a goal may be reached within an epoch";
  const int ranks = events.back()["ranks"];
  size_t times = 0;
  for (const auto& event : events) {
    if (event["event"] != "times") continue;
    ++times;
    ASSERT_EQ(event["compute_s"].size(), ranks);
    size_t samples = 0;
    for (const auto& s : event["samples"]) samples += s.get<size_t>();
    EXPECT_EQ(samples, 60 * event["steps"].get<size_t>());
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
  const std::string said = text("out0") + text("out1");
  EXPECT_NE(std::count(codes.begin(), codes.end(), 1), 0) << said;
  EXPECT_TRUE(std::all_of(codes.begin(), codes.end(), [](int c) { return c == 0 || c == 1; }))
      << said;  // 0: left out
  EXPECT_EQ(log("log").back()["event"], "end");
  EXPECT_NE(said.find("was not reached"), std::string::npos) << said;
}

TEST_F(RealData, WhatTheAgentDecidesCannotBeGivenToo) {
  for (const auto& [wrong, why] : std::vector<std::pair<Strings, std::string>>{
           {{"--goal", "accuracy=0.9", "--codec", "int8"}, "--codec with --goal"},
           {{"--goal", "accuracy=0.9", "--sync", "zero1"}, "--sync zero1 with --goal"},
           {{"--goal", "accuracy=9"}, "an accuracy is a share"},
           {{"--goal", "samples=1e5", "--within", "10x"}, "'10x' is no time"},
           {{"--dry-run"}, "--dry-run needs --goal"},
           {{"--elastic", "--sync", "zero1"}, "--elastic has no meaning with --sync zero1"}}) {
    start(1, wrong);
    EXPECT_EQ(wait_all(), std::vector<int>{2});
    EXPECT_NE(text("out0").find(why), std::string::npos) << text("out0");
  }
}

TEST_F(RealData, EveryStrategyTrainsAndSaysHowStaleItWas) {
  const Strings modes[] = {{"--sync", "zero1"},
                           {"--sync", "asgd", "--staleness", "0"},
                           {"--sync", "asgd", "--staleness", "2", "--delay-compensation", "0.1"},
                           {"--sync", "asgd", "--staleness", "inf"},
                           {"--sync", "asgd", "--delay-compensation", "10", "--delay-compensation-gradients", "4"},
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
      {{"--sync", "asgd", "--delay-compensation-gradients", "8"}, "needs --delay-compensation"},
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
