// info, doctor, explain, train, and help.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/processors.h"
#include "tests/tools/command.h"

namespace ringfold::test {
namespace {

using nlohmann::json;

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(Help, EveryVerbTeachesByExample) {
  const auto all = ringfold({"--help"});
  EXPECT_EQ(all.status, 0);
  EXPECT_TRUE(has(all.out, "Exit status: 0 ")) << all.out;
  for (const std::string verb : {"run", "perf", "info", "doctor", "explain", "pipeline", "tune", "train"}) {
    EXPECT_TRUE(has(all.out, "  " + verb + " ")) << verb;
    const auto help = ringfold({verb, "--help"});
    EXPECT_EQ(help.status, 0);
    EXPECT_TRUE(has(help.out, "Examples:\n") && has(help.out, "  ringfold " + verb)) << help.out;
  }
  EXPECT_TRUE(has(ringfold({"--version"}).out, "ringfold 0."));
}

TEST(Pipeline, ComparesAllSchedulesWithTheirFormulas) {
  const auto result = ringfold({"pipeline", "-p", "4", "-m", "8"});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_TRUE(has(result.out, "rank 3 |         F0 B0 F1 B1 F2 B2 F3 B3 W0")) << result.out;
  EXPECT_TRUE(has(result.out, "1f1b                     33        9   27.3%  (p-1)(F+B+W) = 9"));
  EXPECT_TRUE(has(result.out, "zb-v                     24        0    0.0%  0, if F = B = W"));
  const auto odd = ringfold({"pipeline", "-p", "4", "-m", "7"});
  EXPECT_EQ(odd.status, 0);
  EXPECT_TRUE(has(odd.out, "7 is no multiple of 4")) << odd.out;
  EXPECT_FALSE(has(odd.out, "\033")) << "colours in a file";
}

TEST(Pipeline, JsonHasFiguresFormulasAndLists) {
  const auto result =
      ringfold({"pipeline", "--schedule", "zb-h1", "-p", "4", "-m", "8", "--times", "1,1.2,0.8", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  const json all = json::parse(result.out);
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].at("schedule"), "zb-h1");
  EXPECT_NEAR(all[0].at("bubble"), 4.2, 1e-9);
  EXPECT_NEAR(all[0].at("bubble_formula"), 4.2, 1e-9);
  EXPECT_EQ(all[0].at("peak_activations"), 4.0);
  ASSERT_EQ(all[0].at("actions").size(), 4u);
  EXPECT_EQ(all[0].at("actions")[3].size(), 24u);
  EXPECT_EQ(all[0].at("actions")[3][1],
            json({{"kind", "backward_input"}, {"stage", 3}, {"chunk", 0}, {"micro_batch", 0}}));
  const json every = json::parse(ringfold({"pipeline", "--json"}).out);
  EXPECT_EQ(every.size(), 6u);
}

TEST(Pipeline, WritesATrace) {
  const Folder folder;
  const std::string path = folder.path() + "/trace.json";
  ASSERT_EQ(ringfold({"pipeline", "--schedule", "1f1b", "--trace", path}).status, 0);
  EXPECT_GE(json::parse(read_file(path)).at("traceEvents").size(), 64u);
  EXPECT_EQ(ringfold({"pipeline", "--schedule", "1f1b", "--trace", folder.path() + "/none/trace.json"}).status, 3);
}

TEST(Pipeline, SaysWhatIsWrongWithTheCommandLine) {
  const std::pair<std::vector<std::string>, const char*> bad[] = {
      {{"--schedule", "zb"}, "there is no pipeline schedule \"zb\"; there are: gpipe"},
      {{"--times", "1,1"}, "--times 1,1: it takes three times"},
      {{"--times", "1,1,x"}, "it takes three times"},
      {{"--times", "1,-1,1"}, "it takes three times"},
      {{"--times", "0,0,0"}, "it takes three times"},
      {{"--transfer", "-1"}, "--transfer"},
      {{"-p", "0"}, "--ranks"},
      {{"--trace", "x.json"}, "name it with --schedule"},
      {{"--schedule", "1f1b", "-v", "2"}, "takes 1 stage"},
      {{"--schedule", "interleaved-1f1b", "-m", "7"}, "7 is no multiple of 4"},
  };
  for (const auto& [arguments, text] : bad) {
    std::vector<std::string> words = {"pipeline"};
    words.insert(words.end(), arguments.begin(), arguments.end());
    const auto result = ringfold(words);
    EXPECT_EQ(result.status, 2) << text;
    EXPECT_TRUE(has(result.err, text)) << result.err;
  }
}

TEST(Info, SaysWhereEverySettingComesFrom) {
  const auto result = ringfold({"info", "--json"}, {"RINGFOLD_TIMEOUT=12.5", "RINGFOLD_RANK=1", "RINGFOLD_SIZE=3",
                                                    "RINGFOLD_RENDEZVOUS=dir:/x"});
  ASSERT_EQ(result.status, 0) << result.err;
  const json all = json::parse(result.out);
  EXPECT_GE(all.at("host").at("cpus").get<int>(), 1);
  EXPECT_GT(all.at("host").at("memory").get<int64_t>(), 0);
  EXPECT_FALSE(all.at("interfaces").empty());
  EXPECT_EQ(all.at("launch").at("source"), "ringfold run");
  EXPECT_EQ(all.at("launch").at("rank"), 1);
  int seen = 0;
  for (const json& row : all.at("settings")) {
    if (row.at("name") == "RINGFOLD_TIMEOUT") {
      EXPECT_EQ(row.at("value"), "12.5");
      EXPECT_EQ(row.at("source"), "environment");
      ++seen;
    }
    if (row.at("name") == "RINGFOLD_TRANSPORT") {
      EXPECT_EQ(row.at("source"), "default");
      ++seen;
    }
  }
  EXPECT_EQ(seen, 2);
  std::vector<std::string> names;
  for (const json& row : all.at("transports")) names.push_back(row.at("name"));
  EXPECT_EQ(names, (std::vector<std::string>{"shm", "verbs", "tcp", "ucx", "nvlink", "loopback"}));
}

TEST(Info, ForPeopleItHasTheSameParts) {
  const auto result = ringfold({"info"});
  EXPECT_EQ(result.status, 0);
  for (const char* part :
       {"Host\n", "Interfaces", "Transports\n", "Launcher\n", "Settings\n", "RINGFOLD_ALGORITHM", "lo "}) {
    EXPECT_TRUE(has(result.out, part)) << part << "\n" << result.out;
  }
}

TEST(Info, AnImpossibleSettingIsTheEnvironmentsFault) {
  const auto result = ringfold({"info"}, {"RINGFOLD_TIMEOUT=soon"});
  EXPECT_EQ(result.status, 3);
  EXPECT_TRUE(has(result.out, "RINGFOLD_TIMEOUT=\"soon\" is not valid")) << result.out;
}

TEST(Doctor, OnAHealthyMachineNothingFails) {
  const auto result = ringfold({"doctor", "--ranks", "2"});
  EXPECT_EQ(result.status, 0) << result.out;
  EXPECT_EQ(count(result.out, "FAIL"), 0) << result.out;
  for (const char* test : {"OK    test shm", "OK    test tcp", "OK    test loopback", "OK    key"})
    EXPECT_TRUE(has(result.out, test)) << result.out;
  EXPECT_TRUE(has(result.out, "\n0 failures, ")) << result.out;
}

TEST(Doctor, SaysHowToMendAKeyThatOthersCanRead) {
  const Folder folder;
  const auto key = folder.write("key", "0123456789abcdef0123456789abcdef\n", 0644);
  const auto result = ringfold({"doctor", "--no-self-test"}, {"RINGFOLD_KEY_FILE=" + key});
  EXPECT_EQ(result.status, 1);
  EXPECT_EQ(count(result.out, "FAIL"), 1) << result.out;
  EXPECT_TRUE(has(result.out, "FAIL  key ")) << result.out;
  EXPECT_TRUE(has(result.out, "mend: chmod 600")) << result.out;
}

TEST(Doctor, FindsWhatAJobWouldStumbleOver) {
  auto result = Command({"sh", "-c", "ulimit -S -n 100; exec '" + program() + "' doctor --no-self-test"}).wait();
  EXPECT_EQ(result.status, 1);
  EXPECT_TRUE(has(result.out, "FAIL  open files       100 allowed")) << result.out;
  EXPECT_TRUE(has(result.out, "mend: ulimit -n ")) << result.out;

  result = ringfold({"doctor", "--no-self-test"}, {"TMPDIR=/nowhere"});
  EXPECT_TRUE(has(result.out, "FAIL  job folder       /nowhere is not writable")) << result.out;

  result = ringfold({"doctor", "--no-self-test"}, {"RINGFOLD_INTERFACE=nonsense0"});
  EXPECT_TRUE(has(result.out, "RINGFOLD_INTERFACE=nonsense0 matches no address")) << result.out;

  const Folder folder;
  const auto ssh = folder.write("ssh", "#!/bin/sh\necho Permission denied >&2; exit 255\n", 0755);
  result = ringfold({"doctor", "--no-self-test", "--hosts", "far-away"}, {"RINGFOLD_SSH=" + ssh});
  EXPECT_EQ(result.status, 1);
  EXPECT_TRUE(has(result.out, "FAIL  host far-away    status 255: Permission denied")) << result.out;
}

TEST(Explain, ShowsTheScheduleAndWhatIsProvedOfIt) {
  const Folder folder;
  const std::string picture = folder.path() + "/ring.svg";
  const auto result = ringfold({"explain", "all_reduce", "--ranks", "4", "--size", "1M", "--algorithm", "ring",
                                "--lanes", "1", "--svg", picture});
  ASSERT_EQ(result.status, 0) << result.err;
  for (const char* part : {"all_reduce ring: 4 ranks, 1 lane, 4 chunks", "coding depth  4", "not the rank order",
                           "checked       values, replicas", "6 on the longest path", "predicted  ",
                           "rank 3 lane 0\n", "recv_reduce c0 <- 3 prepend complete"}) {
    EXPECT_TRUE(has(result.out, part)) << part << "\n" << result.out;
  }
  EXPECT_TRUE(has(read_file(picture), "rank 3</text>"));
}

TEST(Explain, EveryCollectiveAndAlgorithmIsCompared) {
  for (const std::string name : {"all_reduce", "reduce", "reduce_scatter", "all_gather", "broadcast", "gather",
                                 "scatter", "all_to_all", "barrier"}) {
    const auto result = ringfold({"explain", name, "--ranks", "6", "--hosts-of", "3,3,3,8,8,8", "--rank", "5"});
    EXPECT_EQ(result.status, 0) << name << result.err;
    EXPECT_TRUE(has(result.out, "6 ranks on 2 hosts")) << result.out;
    EXPECT_TRUE(has(result.out, "rank 5 lane 0\n") && !has(result.out, "rank 4 lane 0\n")) << result.out;
    EXPECT_FALSE(has(result.out, "REFUSES")) << result.out;
  }
}

TEST(Explain, AnUnknownAlgorithmIsRefusedWithTheKnownOnes) {
  const auto result = ringfold({"explain", "all_reduce", "--algorithm", "spiral"});
  EXPECT_EQ(result.status, 2);
  EXPECT_TRUE(has(result.err, "ring")) << result.err;
  EXPECT_EQ(ringfold({"explain", "all_reduce", "--ranks", "3", "--hosts-of", "0,1"}).status, 2);
  EXPECT_EQ(ringfold({"explain", "juggle"}).status, 2);
}

// A copy of the program with a ringfold-train of ours beside it.
TEST(Train, HandsItsArgumentsToTheProgramBesideIt) {
  const Folder folder;
  const char* library = std::getenv("RINGFOLD_LIBRARY");
  ASSERT_NE(library, nullptr);
  const Words environment = {std::string("LD_LIBRARY_PATH=") + library};
  ASSERT_EQ(Command({"cp", program(), folder.path() + "/ringfold"}).wait().status, 0);
  auto result = Command({folder.path() + "/ringfold", "train", "--model", "mlp"}, environment).wait();
  EXPECT_EQ(result.status, 3);
  EXPECT_TRUE(has(result.err, "libtorch")) << result.err;

  folder.write("ringfold-train", "#!/bin/sh\necho rank ${RINGFOLD_RANK-none} args \"$@\"\nexit ${STATUS-0}\n", 0755);
  auto train = [&](const Words& arguments, const std::string& status) {
    Words words = {folder.path() + "/ringfold", "train"};
    words.insert(words.end(), arguments.begin(), arguments.end());
    return Command(words, {environment[0], "STATUS=" + status}).wait();
  };
  result = train({"--model", "mlp", "--seed", "3"}, "4");
  EXPECT_EQ(result.status, 4) << result.err;
  EXPECT_EQ(result.out, "rank none args --model mlp --seed 3\n");
  // The launcher's options are found wherever they stand.
  result = train({"--lr=1", "-n", "2", "--model", "mlp"}, "0");
  EXPECT_EQ(result.status, 0) << result.err;
  for (const char* rank : {"0", "1"})
    EXPECT_TRUE(has(result.out, std::string("rank ") + rank + " args --lr=1 --model mlp\n")) << result.out;
  // What is wrong is said once, and no rank starts for it; nor for the help, which is of both programs.
  for (const Words& wrong :
       {Words{"--ranks", "none"}, {"--lr"}, {"--resume", "-n", "2"}, {"--steps", "9", "-n", "2"}}) {
    result = train(wrong, "0");
    EXPECT_EQ(result.status, 2) << result.err;
    EXPECT_TRUE(has(result.err, wrong[0])) << result.err;
    EXPECT_EQ(result.out, "");
  }
  // An agent chooses among as many ranks as there are processors, unless somebody says how many.
  const int processors = std::min(64, std::max(1, static_cast<int>(base::Processors::mine().usable())));
  for (const auto& [words, ranks] :
       std::vector<std::pair<Words, int>>{{{"--goal", "accuracy=0.9"}, processors},
                                          {{"--goal", "accuracy=0.9", "-n", "3"}, 3},
                                          {{"--goal", "accuracy=0.9", "--max-ranks", "1"}, 1}}) {
    result = train(words, "0");
    EXPECT_EQ(result.status, 0) << result.err;
    EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), ranks) << result.out;
  }
  result = Command({program(), "run", "-n", "3", "--no-prefix", "--", folder.path() + "/ringfold", "train", "--goal",
                    "accuracy=0.9"},
                   environment)
               .wait();
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 3) << result.out;
  result = train({"--ranks", "2", "--help"}, "0");
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_TRUE(has(result.out, "--hosts") && has(result.out, "--pipeline-schedule") && !has(result.out, "args"))
      << result.out;
}

}  // namespace
}  // namespace ringfold::test
