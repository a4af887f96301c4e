// `ringfold perf`: what it writes, and that it notices what is wrong.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "tests/tools/command.h"

namespace ringfold::test {
namespace {

using nlohmann::json;

Words perf(const std::string& op, const Words& more) {
  Words words = {"perf", op, "--iterations", "2", "--warmup", "1"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

class PerfOver : public testing::TestWithParam<std::string> {};

TEST_P(PerfOver, EveryOperationIsRightAndEveryRowHasItsFigures) {
  const Folder folder;
  const std::string file = folder.path() + "/rows.json", picture = folder.path() + "/rows.svg";
  const auto result = ringfold(perf("all", {"--ranks", "3", "--transport", GetParam(), "--max", "40K", "--factor",
                                            "64", "--json", file, "--plot", picture}));
  ASSERT_EQ(result.status, 0) << result.out << result.err;
  EXPECT_EQ(count(result.out, "# wrong elements: 0\n"), 1) << result.out;

  const json all = json::parse(read_file(file));
  const std::set<std::string> keys = {"op",          "type",       "redop",      "ranks",    "transport",
                                      "algorithm",   "codec",      "bytes",      "in_place", "time_us_p50",
                                      "time_us_p99", "algbw_GBps", "busbw_GBps", "wrong"};
  std::set<std::string> operations;
  for (const json& row : all.at("rows")) {
    for (const auto& key : keys) EXPECT_TRUE(row.contains(key)) << key;
    operations.insert(row.at("op"));
    EXPECT_EQ(row.at("wrong"), 0) << row;
    EXPECT_EQ(row.at("checked"), true) << row;
    EXPECT_EQ(row.at("ranks"), 3);
    EXPECT_EQ(row.at("transport"), GetParam());
    EXPECT_GT(row.at("time_us_p50").get<double>(), 0) << row;
    EXPECT_GE(row.at("time_us_p99").get<double>(), row.at("time_us_p50").get<double>()) << row;
    if (row.at("op") == "all_reduce") {
      const double bytes = row.at("bytes"), time = row.at("time_us_p50");
      EXPECT_NEAR(row.at("algbw_GBps").get<double>(), bytes / time / 1e3, 1e-9);
      EXPECT_NEAR(row.at("busbw_GBps").get<double>(), bytes / time / 1e3 * 4 / 3, 1e-9);
    }
  }
  EXPECT_EQ(operations,
            (std::set<std::string>{"all_reduce", "reduce", "reduce_scatter", "reduce_scatter_v", "all_gather",
                                   "all_gather_v", "broadcast", "gather", "scatter", "all_to_all", "all_to_all_v",
                                   "barrier", "sendrecv", "hot_sendrecv", "stream", "hot_stream"}));
  const std::string svg = read_file(picture);
  EXPECT_TRUE(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
  EXPECT_EQ(count(svg, "<path "), 2 * (static_cast<int>(operations.size()) - 1))
      << "a curve in each panel, but for the barrier";
}

TEST(Perf, RowsAreWrittenAsTheyComeAndTheLastLineSaysThatThereAreNoMore) {
  const Folder folder;
  const std::string lines = folder.path() + "/rows.jsonl", whole = folder.path() + "/rows.json";
  const auto result = ringfold(
      perf("all_gather", {"--ranks", "2", "--max", "4K", "--factor", "64", "--rows", lines, "--json", whole}));
  ASSERT_EQ(result.status, 0) << result.err;
  json rows = json::array();
  std::istringstream text(read_file(lines));
  for (std::string line; std::getline(text, line);) rows.push_back(json::parse(line));
  ASSERT_FALSE(rows.empty());
  EXPECT_EQ(rows.back(), json({{"end", true}}));
  rows.erase(rows.size() - 1);
  EXPECT_EQ(rows, json::parse(read_file(whole)).at("rows"));
}

TEST(Perf, ADashIsStandardOutputAndNothingElseIsWrittenThere) {
  const Words two_ranks = {"--ranks", "2", "--max", "4K", "--factor", "64"};
  for (const std::string option : {"--json", "--rows"}) {
    Words words = two_ranks;
    words.insert(words.end(), {option, "-"});
    const auto result = ringfold(perf("all_gather", words));
    ASSERT_EQ(result.status, 0) << result.err;
    std::istringstream text(result.out);
    int rows = 0;
    if (option == "--json") {
      rows = static_cast<int>(json::parse(text).at("rows").size());
    } else {
      for (std::string line; std::getline(text, line);) rows += json::parse(line).contains("bytes");
    }
    EXPECT_GT(rows, 2) << result.out;
  }
  const auto both = ringfold(perf("all_gather", {"--ranks", "2", "--json", "-", "--plot", "-"}));
  EXPECT_EQ(both.status, 2);
  EXPECT_NE(both.err.find("only one of them can be -"), std::string::npos) << both.err;
}

// Counted, since times would not tell on every machine: memory from ringfold::allocate is read where it lies, once,
// and other memory goes through a slot.
TEST(Perf, CountersTellThatLargePutsAreReadInPlace) {
  for (const bool allocated : {true, false}) {
    const Folder folder;
    const std::string file = folder.path() + "/rows.json";
    const auto result = ringfold(
        perf("broadcast", {"--ranks", "2", "--transport", "shm", "--min", "256K", "--max", "256K", "--in-place", "in",
                           "--counters", "--memory", allocated ? "ringfold" : "malloc", "--json", file}));
    ASSERT_EQ(result.status, 0) << result.out << result.err;
    const json row = json::parse(read_file(file)).at("rows").at(0);
    // Mean of the two ranks: one copy is a read and a write of every byte.
    EXPECT_DOUBLE_EQ(row.at("touched_per_byte").get<double>(), allocated ? 1 : 2) << row;
    for (const char* key : {"cpu_us", "system_calls", "wakeups", "switches", "faults"}) {
      EXPECT_GE(row.at(key).get<double>(), 0) << key;
    }
  }
}

TEST(Perf, CountersTellWhatTheSystemCopies) {
  const Folder folder;
  const std::string file = folder.path() + "/rows.json";
  const auto result = ringfold(perf("broadcast", {"--ranks", "2", "--transport", "tcp", "--min", "256K", "--max",
                                                  "256K", "--in-place", "in", "--counters", "--json", file}));
  ASSERT_EQ(result.status, 0) << result.out << result.err;
  const json row = json::parse(read_file(file)).at("rows").at(0);
  EXPECT_GE(row.at("touched_per_byte").get<double>(), 2) << "into the socket and out of it, headers and all: " << row;
  EXPECT_LT(row.at("touched_per_byte").get<double>(), 2.2) << row;
  EXPECT_GT(row.at("system_calls").get<double>(), 0) << row;
  EXPECT_EQ(row.at("put_bytes").get<double>(), 256 << 10) << row;
  EXPECT_GE(row.at("puts").get<double>(), 1) << row;
  EXPECT_EQ(row.at("work_requests").get<double>(), 0) << row;
}

INSTANTIATE_TEST_SUITE_P(Transports, PerfOver, testing::Values("shm", "tcp", "loopback"),
                         [](const auto& info) { return info.param; });

TEST(Perf, OtherTypesAndOperationsAreRight) {
  for (const Words& more : {Words{"--type", "bf16", "--op", "avg"}, Words{"--type", "f16", "--op", "prod"},
                            Words{"--type", "i8", "--op", "sum"}, Words{"--type", "u64", "--op", "max"},
                            Words{"--type", "f64", "--op", "scaled_sum", "--scale", "0.125"},
                            Words{"--type", "f32", "--op", "sum", "--fresh"}}) {
    Words words = {"--ranks", "4", "--transport", "loopback", "--max", "8K", "--factor", "1024"};
    words.insert(words.end(), more.begin(), more.end());
    const auto result = ringfold(perf("all", words));
    EXPECT_EQ(result.status, 0) << more[1] << " " << more[3] << "\n" << result.out << result.err;
  }
}

// Large blocks are read from where they are, if that pays on this machine, while their owners go on.
TEST(Perf, OrdinaryMemoryIsRightOverSharedMemory) {
  const auto result = ringfold(perf("all", {"--ranks", "3", "--transport", "shm", "--memory", "malloc", "--fresh",
                                            "--min", "768K", "--max", "3M", "--factor", "4"}));
  EXPECT_EQ(result.status, 0) << result.out << result.err;
}

class Spoiled : public testing::TestWithParam<std::string> {};

TEST_P(Spoiled, OneChangedElementIsFoundAndIsTheExitStatus) {
  const Folder folder;
  const std::string file = folder.path() + "/rows.json";
  const auto result = ringfold(perf(
      GetParam(), {"--ranks", "2", "--transport", "shm", "--min", "1K", "--max", "1K", "--spoil", "--json", file}));
  EXPECT_EQ(result.status, 1) << result.out << result.err;
  const json all = json::parse(read_file(file));
  for (const json& row : all.at("rows"))
    EXPECT_EQ(row.at("wrong"), 2) << "one in each of the two checked calls: " << row;
  EXPECT_FALSE(all.at("rows").empty());
}

INSTANTIATE_TEST_SUITE_P(Every, Spoiled,
                         testing::Values("all_reduce", "reduce", "reduce_scatter", "all_gather", "broadcast",
                                         "gather", "scatter", "all_to_all", "all_gather_v", "reduce_scatter_v",
                                         "all_to_all_v", "sendrecv"),
                         [](const auto& info) { return info.param; });

TEST(Perf, WithoutTheCheckNothingIsWrongAndItSaysSo) {
  const auto result = ringfold(perf("all_reduce", {"--ranks", "2", "--max", "8", "--no-check", "--spoil"}));
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(count(result.out, "# wrong elements: not checked\n"), 1) << result.out;
}

TEST(Perf, OneRankOfALaunchedJobNeedsNoRanksOption) {
  const auto result = Command({program(), "run", "-n", "2", "--no-prefix", "--", program(), "perf", "all_gather",
                               "--max", "64", "--factor", "8"})
                          .wait();
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(count(result.out, "# wrong elements: 0\n"), 1) << result.out;
}

TEST(Perf, SizesAndAlgorithmsAreAsAskedFor) {
  const Folder folder;
  const std::string file = folder.path() + "/rows.json";
  const auto result =
      ringfold(perf("all_reduce", {"--ranks", "4", "--min", "16", "--max", "1K", "--factor", "8", "--algorithm",
                                   "ring", "--type", "f64", "--in-place", "in", "--json", file}));
  ASSERT_EQ(result.status, 0) << result.err;
  std::vector<int> bytes;
  const json all = json::parse(read_file(file));
  for (const json& row : all.at("rows")) {
    bytes.push_back(row.at("bytes"));
    EXPECT_EQ(row.at("algorithm"), "ring");
    EXPECT_EQ(row.at("in_place"), true);
    EXPECT_EQ(row.at("type"), "f64");
  }
  EXPECT_EQ(bytes, (std::vector<int>{16, 128, 1024}));
}

TEST(Perf, UsageErrorsAreStatus2AndListWhatThereIs) {
  auto result = ringfold({"perf", "all_reduce_all", "--ranks", "2"});
  EXPECT_EQ(result.status, 2);
  EXPECT_NE(result.err.find("there are: all all_reduce reduce"), std::string::npos) << result.err;
  EXPECT_EQ(ringfold({"perf", "all_reduce", "--ranks", "2", "--type", "f31"}).status, 2);
  EXPECT_EQ(ringfold({"perf", "all_reduce", "--ranks", "2", "--min", "1X"}).status, 2);
  EXPECT_EQ(ringfold({"perf", "all_reduce", "--ranks", "2", "--type", "i32", "--op", "scaled_sum"}).status, 2);
  EXPECT_EQ(ringfold({"perf", "all_reduce", "--transport", "loopback"}).status, 2);
  EXPECT_EQ(ringfold({"perf", "all_reduce", "--transport", "pigeon"}).status, 2);
}

}  // namespace
}  // namespace ringfold::test
