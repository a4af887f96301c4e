// Calls that go straight from device to device, against a transport whose every answer the test gives.
#include "exec/direct.h"

#include <map>
#include <set>

#include "tests/exec/world.h"

namespace ringfold::test {
namespace {

using exec::DirectPlan;

class Wire final : public transport::Direct {
 public:
  Status add(uint64_t, std::byte*, size_t, int) override { return {}; }
  void remove(uint64_t) override {}
  bool offer(int peer, std::byte*, size_t) override { return room && (++offers[peer], true); }
  std::optional<size_t> offered(int peer) override {
    return windows.contains(peer) ? std::optional(windows[peer]) : std::nullopt;
  }
  bool write(int peer, const std::byte* data, size_t bytes, size_t place) override {
    if (!room) return false;
    windows.erase(peer);
    writes[peer].push_back({data, bytes, place});
    return true;
  }
  bool written(int peer) override { return !pending.contains(peer); }
  uint64_t landed(int peer) const override { return landings.contains(peer) ? landings.at(peer) : 0; }

  struct Write {
    const std::byte* data;
    size_t bytes, place;
    friend bool operator==(const Write&, const Write&) = default;
  };
  bool room = true;
  std::map<int, size_t> windows;
  std::map<int, int> offers;
  std::map<int, std::vector<Write>> writes;
  std::map<int, uint64_t> landings;
  std::set<int> pending;
};

class DirectCalls : public testing::Test {
 protected:
  exec::Ref<exec::Direct> start(const DirectPlan& plan) {
    exec::Ref<exec::Direct> call(new exec::Direct(&wire_, plan, in_, out_, sizeof out_));
    call->deadline = base::Deadline::after(kPatience);
    rank().engine->start(rank().domain(), call.get());
    return call;
  }
  Rank& rank() { return world_.rank(0); }
  void move() { rank().engine->poll(); }

  Wire wire_;
  World world_{3};
  std::byte in_[100], out_[300];
};

TEST_F(DirectCalls, OffersWritesAndEndsWhenAllIsThere) {
  wire_.landings[2] = 17;  // of calls before
  wire_.room = false;
  wire_.pending = {1};
  const auto call = start({.writes = {{1, 10, 20, 30}}, .expected = {2}, .text = "a call"});
  move();
  EXPECT_TRUE(wire_.offers.empty());
  wire_.room = true;
  move();
  move();
  EXPECT_EQ(wire_.offers[2], 1) << "once";
  EXPECT_TRUE(wire_.writes.empty()) << "before the peer has offered";
  wire_.windows[1] = 50;
  move();
  move();
  EXPECT_EQ(wire_.writes[1], (std::vector<Wire::Write>{{in_ + 10, 30, 20}}));
  ++wire_.landings[2];
  move();
  EXPECT_FALSE(call->done()) << "its own write is on its way";
  rank().engine->inspect([&] { EXPECT_EQ(call->waits_for(), 1); });
  wire_.pending.clear();
  move();
  ASSERT_TRUE(call->done());
  EXPECT_TRUE(call->status().ok());
}

TEST_F(DirectCalls, PassOnWhatHasLandedFromTheOutput) {
  const auto call = start({.writes = {{1, 40, 40, 30, 2}}, .expected = {1, 2}, .text = "a broadcast"});
  wire_.windows[1] = 300;
  move();
  wire_.landings[1] = 1;
  move();
  EXPECT_TRUE(wire_.writes.empty()) << "what it would write is not there";
  wire_.landings[2] = 1;
  move();
  EXPECT_EQ(wire_.writes[1], (std::vector<Wire::Write>{{out_ + 40, 30, 40}}));
  EXPECT_TRUE(call->done());
}

// Offers have no numbers: two at once would be mistaken for each other.
TEST_F(DirectCalls, GoOneAfterTheOther) {
  const DirectPlan plan{.writes = {{1, 0, 0, 8}}, .expected = {1}, .text = "a call"};
  const auto first = start(plan), second = start(plan);
  wire_.windows[1] = 300;
  move();
  move();
  EXPECT_EQ(wire_.offers[1], 1);
  wire_.windows[1] = 300;  // the peer, which is ahead, has come to the second one
  move();
  EXPECT_EQ(wire_.writes[1].size(), 1u);
  wire_.landings[1] = 1;
  move();
  EXPECT_TRUE(first->done());
  EXPECT_FALSE(second->done());
  EXPECT_EQ(wire_.offers[1], 2);
  EXPECT_EQ(wire_.writes[1].size(), 2u);
  wire_.landings[1] = 2;
  move();
  EXPECT_TRUE(second->done());
}

TEST_F(DirectCalls, AWindowThatIsTooSmallIsAFaultOfItsOwner) {
  const auto call = start({.writes = {{1, 0, 60, 8}}, .expected = {}, .text = "a call"});
  wire_.windows[1] = 67;
  move();
  ASSERT_EQ(rank().fault_count(), 1u);
  EXPECT_EQ(rank().faults[0].peer, 1);
  EXPECT_EQ(rank().faults[0].status.message(), "a call: rank 1 offers 67 bytes, where 68 are to be written");
  EXPECT_TRUE(wire_.writes.empty());
  rank().engine->abort(rank().domain(), Status(Code::kAborted, "over"));
  ASSERT_TRUE(call->done());
  EXPECT_EQ(call->status().message(), "over");
}

}  // namespace
}  // namespace ringfold::test
