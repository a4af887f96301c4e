// Ranks that share a model's layers, as processes of ringfold-train: parts of layers, and pipelines. A transformer,
// whose text needs no package.
#include <algorithm>
#include <cmath>

#include "tests/train/program.h"

namespace ringfold::train {
namespace {

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
      {transformer({"--pipeline", "2", "--goal", "tokens=100"}), "--goal on 1 rank with --pipeline 2"},
      {transformer({"--pipeline", "2", "--micro-batches", "2", "--goal", "tokens=100"}),
       "--micro-batches with --goal"},
      {transformer({"--pipeline", "2", "--slow-rank", "1:2"}), "--slow-rank with --pipeline"},
      {transformer({"--pipeline", "2", "--pipeline-balance", "1,,2"}), "'1,,2'"},
      {transformer({"--pipeline", "2", "--pipeline-schedule", "2f2b"}), "2f2b"},
      {transformer({"--micro-batches", "2"}), "--micro-batches needs --pipeline"},
      {{"--model", "transformer", "--pipeline", "2", "--sync", "local", "--elastic"}, "--elastic with --pipeline"},
  };
  for (const auto& [args, word] : bad) {
    start(1, args);
    ASSERT_NE(wait_all(), std::vector<int>{0}) << word;
    EXPECT_NE(text("out0").find(word), std::string::npos) << text("out0");
  }
}

}  // namespace
}  // namespace ringfold::train
