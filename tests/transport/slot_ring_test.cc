// The account that a ring's writer keeps: payloads of different sizes around memory that they share.
#include "transports/shm/slot_ring.h"

#include <gtest/gtest.h>

#include <deque>
#include <random>

namespace ringfold::shm {
namespace {

struct Out {
  uint64_t place, end;
};

// Puts of random sizes, given back in order at random times.
TEST(PayloadSpace, KeepsPayloadsThatAreOutApartAndHasRoomForSoManyLargestOnes) {
  std::mt19937 random(7);
  for (const Geometry& g :
       {Geometry{1, 256, 1}, Geometry{2, 9024, 4}, Geometry{8, 128 << 10, 64}, Geometry{8, 4096, 8}}) {
    PayloadSpace space(g);
    std::deque<Out> out;
    uint64_t released = 0;
    for (int i = 0; i < 20'000; ++i) {
      const bool room = space.room();
      ASSERT_TRUE(room || out.size() >= g.slots) << "no room after " << out.size() << " puts";
      ASSERT_TRUE(!room || out.size() < g.lines);
      if (!room || random() % 3 == 0) {
        const size_t back = random() % (out.size() + 1);
        out.erase(out.begin(), out.begin() + static_cast<long>(back));
        space.release(released += back);
        continue;
      }
      const size_t most = random() % 2 == 0 ? g.slot_bytes : random() % (g.slot_bytes + 1);
      const uint64_t place = space.place(most);
      ASSERT_EQ(space.place(most), place);
      ASSERT_EQ(place % kPageBytes, 0U);
      ASSERT_LE(place + most, g.payload_bytes());
      for (const Out& other : out) {
        ASSERT_TRUE(other.place == other.end || place + most <= other.place || other.end <= place);
      }
      const size_t bytes = random() % 4 == 0 ? 0 : most;
      space.issue(bytes);
      out.push_back({place, place + bytes});
      ASSERT_EQ(space.out(), out.size());
    }
  }
}

TEST(PayloadSpace, GoesToTheBeginningAgainWhenAllIsBack) {
  PayloadSpace space({});
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(space.place(5000), 0U);
    space.issue(5000);
    EXPECT_EQ(space.place(1), 2 * kPageBytes);
    space.issue(1);
    space.release(space.issued());
  }
}

}  // namespace
}  // namespace ringfold::shm
