// base/stores.h: the choice follows what is faster, and costs little while it watches.
#include "base/stores.h"

#include <gtest/gtest.h>

namespace ringfold::test {
namespace {

using base::Stores;

// Writes `pieces` pieces that cost as given with either kind; how many were streaming?
int run(Stores& stores, int pieces, float ordinary, float streaming) {
  int streamed = 0;
  for (int i = 0; i < pieces; ++i) {
    const bool kind = stores.next();
    stores.took(kind, kind ? streaming : ordinary);
    streamed += kind ? 1 : 0;
  }
  return streamed;
}

TEST(Stores, StreamsWhereThatIsMuchFasterAndWatchesTheOtherKindForLittle) {
  struct Case {
    bool cached;
    float ordinary, streaming;
    bool streams;
  };
  for (const Case& c :
       {Case{true, 12, 1, true}, Case{true, 3.5F, 1, true}, Case{true, 2.5F, 1, false}, Case{true, 1, 1, false},
        Case{true, 1, 2, false}, Case{true, 1, 12, false}, Case{false, 1.3F, 1, true}, Case{false, 12, 1, true},
        Case{false, 1, 1, false}, Case{false, 1, 1.3F, false}}) {
    Stores stores(c.cached);
    run(stores, 6, c.ordinary, c.streaming);
    EXPECT_EQ(stores.streaming(), c.streams) << c.ordinary << " against " << c.streaming;
    constexpr int kPieces = 20000;
    const int streamed = run(stores, kPieces, c.ordinary, c.streaming);
    const int other = c.streams ? kPieces - streamed : streamed;
    EXPECT_GT(other, 0) << "the other kind is never tried again";
    // What the tries cost beyond the better kind, as a share of all time.
    const float best = std::min(c.ordinary, c.streaming), worst = std::max(c.ordinary, c.streaming);
    EXPECT_LT(static_cast<float>(other) * (worst - best), 0.03F * kPieces * best)
        << c.ordinary << " against " << c.streaming;
  }
}

// Two processors that share a cache may stop doing so at any time, under a hypervisor.
TEST(Stores, FollowsWhenTheWorldChangesAndChangesBack) {
  Stores stores;
  run(stores, 1000, 1, 2);
  ASSERT_FALSE(stores.streaming());
  for (int round = 0; round < 5; ++round) {
    run(stores, 200, 12, 0.7F);
    EXPECT_TRUE(stores.streaming()) << "round " << round;
    // The chosen kind's own cost hardly changes on the way back, so only the tries tell.
    run(stores, 3000, 1, 2);
    EXPECT_FALSE(stores.streaming()) << "round " << round;
  }
}

TEST(Stores, OnePieceThatWasInterruptedChangesNothing) {
  Stores stores;
  run(stores, 1000, 1, 2);
  for (int i = 0; i < 100; ++i) {
    stores.took(stores.next(), 5000);
    run(stores, 300, 1, 2);
    EXPECT_FALSE(stores.streaming());
  }
}

TEST(Stores, OfSmallPiecesFewAreTimedWhileOrdinaryStoresAreGood) {
  Stores stores;
  const auto write = [&stores](int pieces, size_t bytes, float ordinary, float streaming) {
    int timed = 0;
    for (int i = 0; i < pieces; ++i) {
      if (!stores.timed(bytes)) continue;
      ++timed;
      run(stores, 1, ordinary, streaming);
    }
    return timed;
  };
  EXPECT_EQ(write(6, Stores::kLeast, 1, 2), 6) << "the first choice waits";
  ASSERT_FALSE(stores.streaming());
  constexpr int kOf = Stores::kTimedBytes / Stores::kLeast + 1;
  EXPECT_EQ(write(1000 * kOf, Stores::kLeast, 1, 2), 1000);
  EXPECT_EQ(write(1000, 2 * Stores::kTimedBytes, 1, 2), 1000) << "a look costs large ones nothing";
  write(200 * kOf, Stores::kLeast, 12, 0.7F);
  EXPECT_TRUE(stores.streaming()) << "a change was not seen";
  EXPECT_EQ(write(1000, Stores::kLeast, 12, 0.7F), 1000);
  write(3000, Stores::kLeast, 1, 2);
  EXPECT_FALSE(stores.streaming());
}

TEST(Stores, SmallPiecesAreNotTimed) {
  Stores stores;
  run(stores, 100, 12, 1);
  ASSERT_TRUE(stores.streaming());
  for (int i = 0; i < 1000; ++i) {
    stores.write(Stores::kLeast - 1, [](bool streaming) { EXPECT_FALSE(streaming); });
  }
  EXPECT_TRUE(stores.streaming());
  stores.write(Stores::kLeast, [](bool streaming) { EXPECT_TRUE(streaming); });
}

}  // namespace
}  // namespace ringfold::test
