// How schedules look in text and pictures.
#include "schedule/print.h"

#include <gtest/gtest.h>

#include <string_view>

#include "algo/algo.h"
#include "schedule/checker.h"

namespace ringfold::test {
namespace {

using schedule::picture_of;
using schedule::text_of;
using schedule::title_of;

schedule::Schedule made(const char* algorithm, schedule::Shape shape, int lanes = 1) {
  auto schedule = algo::make(algorithm, shape, {.lanes = lanes});
  EXPECT_TRUE(schedule.ok()) << schedule.status().message();
  return *std::move(schedule);
}

size_t count(const std::string& text, std::string_view part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

TEST(Text, OfARing) {
  const auto ring = made("ring", {Collective::kAllReduce, 3, 0}, 2);
  EXPECT_EQ(title_of(ring), "all_reduce ring: 3 ranks, 2 lanes, 6 chunks");
  EXPECT_EQ(text_of(ring, 1), R"(rank 1 lane 0
   0  send c0 -> 2
   1  recv_reduce c2 <- 0 prepend
   2  send c2 -> 2
   3  recv_reduce c1 <- 0 prepend complete
   4  send c1 -> 2
   5  recv c0 <- 0
   6  send c0 -> 2
   7  recv c2 <- 0
rank 1 lane 1
   0  send c3 -> 2
   1  recv_reduce c5 <- 0 prepend
   2  send c5 -> 2
   3  recv_reduce c4 <- 0 prepend complete
   4  send c4 -> 2
   5  recv c3 <- 0
   6  send c3 -> 2
   7  recv c5 <- 0
)");
}

TEST(Text, OfTemporariesCopiesAndEvents) {
  EXPECT_EQ(text_of(made("oneshot", {Collective::kAllReduce, 3, 0}), 1), R"(rank 1 lane 0
   0  copy t0 := c0
   1  send t0 -> 2
   2  send t0 -> 0
   3  recv c0 <- 0
   4  reduce c0 += t0
   5  recv_reduce c0 <- 2 complete
)");
  EXPECT_EQ(text_of(made("chain", {Collective::kReduce, 3, 0}), 2), R"(rank 2 lane 0
   0  recv_reduce c0 <- 1 prepend complete
   1  signal e0
rank 2 lane 1
   0  wait e0
   1  send c0 -> 0
)");
  EXPECT_EQ(title_of(made("chain", {Collective::kReduce, 1, 0})), "reduce chain: 1 rank, root 0, 2 lanes, 1 chunk");
}

TEST(Text, OfRunsOfChunks) {
  EXPECT_EQ(text_of(made("recursive", {Collective::kAllGather, 6, 0}), 5), R"(rank 5 lane 0
   0  send c5 -> 4
   1  recv c0 <- 0
   2  send c5 -> 3
   3  send c0 -> 3
   4  recv c1..2 <- 1
   5  send c5 -> 1
   6  send c0 -> 1
   7  recv c3..4 <- 3
)");
}

TEST(Picture, ShowsEachMessageOnce) {
  for (const char* algorithm : {"ring", "tree", "direct", "oneshot", "chain"}) {
    const auto schedule = made(algorithm, {Collective::kAllReduce, 6, 0}, 2);
    schedule::CheckReport report;
    ASSERT_TRUE(check(schedule, {}, &report).ok());
    const auto picture = picture_of(schedule);
    ASSERT_TRUE(picture.ok()) << picture.status().message();
    EXPECT_EQ(count(*picture, "<path "), report.messages) << algorithm;  // arrow heads
    EXPECT_EQ(count(*picture, ">rank "), 6u);
    EXPECT_EQ(count(*picture, "<svg "), 1u);
    EXPECT_EQ(picture->substr(picture->size() - 7), "</svg>\n");
    EXPECT_EQ(count(*picture, "nan") + count(*picture, "inf"), 0u);
  }
}

TEST(Picture, IsRefusedForManyRanksAndBrokenSchedules) {
  EXPECT_EQ(picture_of(made("ring", {Collective::kAllReduce, 33, 0})).status().message(),
            "a picture shows at most 32 ranks");
  auto broken = made("ring", {Collective::kAllGather, 2, 0});
  broken.rank = [good = broken.rank](int rank) {
    auto steps = good(rank);
    if (rank == 1) steps.lanes[0].erase(steps.lanes[0].begin());
    return steps;
  };
  EXPECT_EQ(picture_of(broken).status().message(),
            "the schedule does not run to its end: (recv c1 <- 1) is never sent");
}

}  // namespace
}  // namespace ringfold::test
