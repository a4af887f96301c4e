// What verbs write straight to where the receiver wants it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "ringfold/memory.h"
#include "tests/transport/on_verbs_double.h"

namespace ringfold::transport::test {
namespace {

class VerbsPlaces : public OnVerbsDouble {
 protected:
  static constexpr size_t kPiece = 64 << 10;
  void SetUp() override {
    for (auto* buffer : {&source_, &target_}) {
      auto made = allocate_buffer<std::byte>(64 * kPiece);
      ASSERT_TRUE(made.ok());
      *buffer = *std::move(made);
    }
    for (size_t i = 0; i < 64 * kPiece; ++i) source_.get()[i] = static_cast<std::byte>(i * 31 ^ i >> 9);
  }
  // Sends `pieces` of the source as the link takes them, and takes them to the target. How many came by a slot.
  uint64_t move(uint64_t pieces) {
    uint64_t put = 0, taken = 0, by_slot = 0;
    EXPECT_TRUE(pump([&] {
      for (; put < pieces && there_->writable(); ++put) there_->put(source_.get() + put * kPiece, kPiece, nullptr);
      Arrival a;
      for (; here_->arrived(&a, target_.get() + taken * kPiece, kPiece); ++taken) {
        EXPECT_EQ(a.bytes, kPiece);
        std::byte* const place = target_.get() + taken * kPiece;
        if (a.data != place) ++by_slot, std::memcpy(place, a.data, a.bytes);
        here_->release();
      }
      return taken == pieces;
    }));
    EXPECT_EQ(std::memcmp(source_.get(), target_.get(), pieces * kPiece), 0);
    std::memset(target_.get(), 0, 64 * kPiece);
    return by_slot;
  }
  Buffer<std::byte> source_, target_;
};

TEST_F(VerbsPlaces, WhatIsExpectedInTimeComesByNoSlotForOneWorkRequestMore) {
  for (const int devices : {1, 2}) {
    for (const int inlined : {512, 0}) {
      ASSERT_NO_FATAL_FAILURE(build(2, {.devices = devices, .most_inline = inlined}, {.rails = devices}));
      ASSERT_NO_FATAL_FAILURE(open());
      move(40);  // registers, and counts what it costs without
      auto before = rank(1).counters().work_requests;
      EXPECT_EQ(move(40), 40u);
      const auto plain = rank(1).counters().work_requests - before;
      before = rank(1).counters().work_requests;
      here_->expect(0, target_.get(), 40 * kPiece, kPiece);
      EXPECT_EQ(rank(1).counters().work_requests - before, 1u);
      rank(0).progress();
      EXPECT_EQ(move(40), 0u);
      EXPECT_LE(rank(1).counters().work_requests - before, plain + 1 + 16) << "receives are posted 16 at a time";
      EXPECT_EQ(rank(0).counters().copied_bytes + rank(1).counters().copied_bytes, 0u);
      fabric_.reset();
      EXPECT_EQ(network_->live(), VerbsDouble::Live());
      network_.reset();
    }
  }
}

// Before it has heard of the offer the sender may use what credit it has.
TEST_F(VerbsPlaces, WhatIsSentBeforeTheOfferIsThereComesBySlots) {
  for (const int slots : {1, 3, 8}) {
    for (const unsigned lag : {0u, 300u}) {
      ASSERT_NO_FATAL_FAILURE(build(2, {.lag_us = static_cast<int>(lag)}, {.slots = slots}));
      ASSERT_NO_FATAL_FAILURE(open());
      for (int round = 0; round < 5; ++round) {
        here_->expect(0, target_.get(), 64 * kPiece, kPiece);
        const uint64_t by_slot = move(64);
        EXPECT_LE(by_slot, 2u * static_cast<unsigned>(slots) + 2) << slots << " slots, lag " << lag;
      }
      fabric_.reset();
      network_.reset();
    }
  }
}

TEST_F(VerbsPlaces, NothingIsOfferedThatMayBeOnItsWayOrIsNotRegistered) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  ASSERT_NO_FATAL_FAILURE(open());
  const auto before = rank(1).counters().work_requests;
  const auto regions = network_->live().regions;
  here_->expect(0, target_.get(), 8 * kPiece, kPiece);
  here_->expect(8, data_.data(), data_.size(), data_.size() / 20);
  EXPECT_EQ(rank(1).counters().work_requests, before);
  EXPECT_EQ(network_->live().regions, regions);
}

// A whole queue of offers, of which the sender reads one at a time, and the control block holds one.
TEST_F(VerbsPlaces, OffersFollowEachOtherAsTheyAreRead) {
  for (const int rails : {1, 2}) {
    ASSERT_NO_FATAL_FAILURE(build(2, {.devices = rails, .lag_us = 100}, {.rails = rails}));
    ASSERT_NO_FATAL_FAILURE(open());
    for (int round = 0; round < 20; ++round) {
      for (size_t i = 0; i < 4; ++i) here_->expect(16 * i, target_.get() + 16 * i * kPiece, 16 * kPiece, kPiece);
      here_->expect(64, target_.get(), kPiece, kPiece);  // no room to remember it
      EXPECT_LE(move(64), 24u);
    }
    EXPECT_EQ(rank(0).failure(), nullptr);
    EXPECT_EQ(rank(1).failure(), nullptr);
    fabric_.reset();
    network_.reset();
  }
}

// A rank that stops reads on until the peers' devices have confirmed what it sent: what it reads would make it offer
// the next place, and give credit back, to peers that it has told that nothing more comes.
TEST_F(VerbsPlaces, NothingIsOfferedOrGivenBackBehindTheWordThatThisIsTheEnd) {
  ASSERT_NO_FATAL_FAILURE(build(2, {}, {.drain = std::chrono::seconds(20)}));
  ASSERT_NO_FATAL_FAILURE(open());
  here_->expect(0, target_.get(), 16 * kPiece, kPiece);
  here_->expect(16, target_.get() + 16 * kPiece, 16 * kPiece, kPiece);
  rank(0).progress();
  while (there_->writable()) there_->put(source_.get(), kPiece, nullptr);
  EXPECT_EQ(there_->issued(), 8u);
  const auto before = rank(1).counters().work_requests;
  rank(1).stop();
  EXPECT_EQ(rank(1).counters().work_requests - before, 1u) << "the word itself";
}

// When abandon() has returned the memory is its owner's, whatever is still on its way to it.
TEST_F(VerbsPlaces, NothingIsWrittenAfterTheEnd) {
  for (const bool orderly : {false, true}) {
    ASSERT_NO_FATAL_FAILURE(build(2, {.lag_us = 100}));
    ASSERT_NO_FATAL_FAILURE(open());
    here_->expect(0, target_.get(), 64 * kPiece, kPiece);
    Arrival a;
    bool placed = false;
    uint64_t taken = 0;
    auto put_all = [&] {
      while (there_->writable() && there_->issued() < 64) there_->put(source_.get(), kPiece, nullptr);
    };
    ASSERT_TRUE(pump([&] {
      if (!placed) put_all();
      for (; !placed && here_->arrived(&a, target_.get() + taken * kPiece, kPiece); ++taken) {
        placed = a.data == target_.get() + taken * kPiece;
        here_->release();
      }
      return placed && there_->retired() == there_->issued() && there_->writable();
    }));
    network_->hold(true);
    put_all();
    EXPECT_LT(there_->retired(), there_->issued()) << "some are on their way";
    orderly ? rank(1).stop() : rank(1).abandon();
    std::memset(target_.get(), 0x77, 64 * kPiece);
    network_->hold(false);
    ASSERT_TRUE(pump([&] { return rank(0).failure() != nullptr; }));
    EXPECT_TRUE(
        std::all_of(target_.get(), target_.get() + 64 * kPiece, [](std::byte b) { return b == std::byte{0x77}; }));
    fabric_.reset();
    EXPECT_EQ(network_->live(), VerbsDouble::Live());
    network_.reset();
  }
}

}  // namespace
}  // namespace ringfold::transport::test
