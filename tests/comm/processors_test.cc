#include "base/processors.h"

#include <gtest/gtest.h>

namespace ringfold::base {
namespace {

Processors of(std::string_view text) { return Processors::parse(text); }

TEST(Processors, TextRoundTrips) {
  for (const char* text : {"0", "0-3", "0-3,8", "1,3,5-7,63-70", "0-1/1.5", "4095"})
    EXPECT_EQ(of(text).to_string(), text);
}

TEST(Processors, DamagedTextCountsAsOneProcessor) {
  for (const char* text : {"", "x", "3-1", "0-", "0-99999999", "/2", "0/0", "0/-1", "0-3junk", "-1"}) {
    EXPECT_EQ(of(text).usable(), 1) << text;
  }
}

TEST(Processors, ThisProcessHasSome) {
  const auto mine = Processors::mine();
  EXPECT_GE(mine.count(), 1);
  EXPECT_GT(mine.usable(), 0);
  EXPECT_EQ(of(mine.to_string()).count(), mine.count());
}

TEST(Processors, AQuotaLimitsWhatIsUsable) {
  EXPECT_EQ(of("0-7").usable(), 8);
  EXPECT_EQ(of("0-7/1.5").usable(), 1.5);
}

TEST(OneForEach, RanksThatFloatShareAllProcessors) {
  const std::vector<Processors> two(2, of("0-1")), three(3, of("0-1")), slow(2, of("0-1/1.5"));
  EXPECT_TRUE(one_for_each(two, 0));
  EXPECT_FALSE(one_for_each(three, 2));
  EXPECT_FALSE(one_for_each(slow, 0));
}

TEST(OneForEach, PinnedRanksHaveTheirOwn) {
  const std::vector<Processors> apart = {of("0"), of("1"), of("2-3")};
  for (size_t r = 0; r < apart.size(); ++r) EXPECT_TRUE(one_for_each(apart, r));
  const std::vector<Processors> together = {of("0"), of("0"), of("1")};
  EXPECT_FALSE(one_for_each(together, 0));
}

}  // namespace
}  // namespace ringfold::base
