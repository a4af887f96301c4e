// RDMA links on a network in the process: the suite of all transports, and every way in which verbs can fail.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <random>

#include "ringfold/memory.h"
#include "tests/transport/on_verbs_double.h"
#include "transports/verbs/link.h"

namespace ringfold::transport::test {
namespace {

using verbs::Note;
using Settings = VerbsDouble::Settings;

FabricKind kind(const std::string& name, const Settings& settings, const verbs::Options& options = {}) {
  return {name, [=](int n) { return fabric_on(std::make_shared<VerbsDouble>(settings), n, options); }};
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Verbs, Conformance,
                         testing::Values(kind("at_once", {}), kind("lagging", {.lag_us = 200}),
                                         kind("two_rails", {.devices = 2, .lag_us = 200}, {.rails = 2}),
                                         kind("no_inline", {.most_inline = 0, .lag_us = 50}),
                                         kind("one_slot", {.lag_us = 20}, {.slots = 1, .slot_bytes = 4096}),
                                         kind("many_slots", {.lag_us = 100}, {.slots = 200, .slot_bytes = 8192})),
                         fabric_name);

namespace {

class VerbsFaults : public OnVerbsDouble {};

class EveryStatus : public VerbsFaults, public testing::WithParamInterface<int> {};

TEST_P(EveryStatus, OfAFailedWriteNamesThePeerAndLeavesNothing) {
  ASSERT_NO_FATAL_FAILURE(build(3, {.lag_us = 30}));
  ASSERT_NO_FATAL_FAILURE(open());
  Link* other = rank(0).open(2, 0);
  Link* others = rank(2).open(0, 0);
  ASSERT_TRUE(pump([&] { return other->writable(); }));
  network_->end_write_with(static_cast<ibv_wc_status>(GetParam()), 2);
  for (int k = 0; k < 4 && there_->writable(); ++k) there_->put(data_.data(), data_.size(), nullptr);
  ASSERT_TRUE(pump([&] { return rank(0).failure() != nullptr; }));
  EXPECT_EQ(rank(0).failure()->peer, 1);
  const std::string& words = rank(0).failure()->status.message();
  EXPECT_NE(words.find("a write to it failed"), std::string::npos) << words;
  EXPECT_NE(words.find("status " + std::to_string(GetParam()) + ","), std::string::npos) << words;
  EXPECT_NE(words.find("double0:1"), std::string::npos) << words;
  EXPECT_FALSE(there_->writable());
  // Another peer's link is none the worse.
  ASSERT_TRUE(other->writable());
  other->put(data_.data(), 1000, nullptr);
  Arrival a;
  EXPECT_TRUE(pump([&] { return others->arrived(&a, nullptr, 0); }));
  for (auto& r : fabric_->ranks) r->stop();
  EXPECT_EQ(network_->live(), VerbsDouble::Live());
}

INSTANTIATE_TEST_SUITE_P(Verbs, EveryStatus,
                         testing::Range(static_cast<int>(IBV_WC_LOC_LEN_ERR),
                                        static_cast<int>(IBV_WC_TM_RNDV_INCOMPLETE) + 1));

TEST_F(VerbsFaults, APeerThatIsCutOffIsLostInWords) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  ASSERT_NO_FATAL_FAILURE(open());
  network_->cut();
  there_->put(data_.data(), 8, nullptr);
  expect_failure(0, 1, Code::kPeerLost, "transport retry counter exceeded (status 12");
}

TEST_F(VerbsFaults, ARefusedWriteIsAFailure) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  ASSERT_NO_FATAL_FAILURE(open());
  network_->refuse_sends(ENOMEM);
  there_->put(data_.data(), 8, nullptr);
  expect_failure(0, 1, Code::kIo, "takes no more work: Cannot allocate memory");
}

TEST_F(VerbsFaults, AListOfReceivesThatIsTakenInPartIsAFailure) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  ASSERT_NO_FATAL_FAILURE(open());
  network_->refuse_receives(ENOMEM, 5);
  Arrival a;
  for (int k = 0; k < 40 && rank(1).failure() == nullptr; ++k) {
    ASSERT_TRUE(pump([&] { return there_->writable() || rank(1).failure() != nullptr; }));
    if (rank(1).failure() != nullptr) break;
    there_->put(data_.data(), 8, nullptr);
    if (pump([&] { return here_->arrived(&a, nullptr, 0) || rank(1).failure() != nullptr; }) &&
        rank(1).failure() == nullptr)
      here_->release();
  }
  expect_failure(1, 0, Code::kIo, "takes no receives: Cannot allocate memory");
}

TEST_F(VerbsFaults, MemoryThatCannotBeRegisteredForALinkIsAFailure) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  network_->refuse_registration(ENOMEM, 0);
  EXPECT_FALSE(rank(0).open(1, 0)->writable());
  expect_failure(0, 1, Code::kUnavailable, "cannot register");
}

// The thread that drives holds its rank's lock, for which others wait.
TEST_F(VerbsFaults, LinksRegisterTheirMemoryOneAtATimeAndOutsideOfOpen) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  const int before = network_->live().regions;
  for (int lane = 0; lane < kLanes; ++lane) rank(0).open(1, lane);
  EXPECT_EQ(network_->live().regions, before);
  EXPECT_FALSE(rank(0).prepare_to_sleep()) << "there is work";
  rank(0).awake();
  for (int lane = 1; lane <= kLanes; ++lane) {
    rank(0).progress();
    EXPECT_EQ(network_->live().regions, before + lane);
  }
}

TEST_F(VerbsFaults, WhatCannotBeMadeIsSaidAndNothingIsLeft) {
  VerbsDouble network({});
  auto expect = [&](const char* words) {
    auto made = verbs::make(0, 4, 1, options_on(network));
    ASSERT_FALSE(made.ok());
    EXPECT_EQ(made.status().code(), Code::kUnavailable);
    EXPECT_NE(made.status().message().find(words), std::string::npos) << made.status().message();
    EXPECT_EQ(network.live(), VerbsDouble::Live());
  };
  network.refuse_registration(EPERM, 0);
  expect("cannot register");
  network.refuse_registration(0, -1);
  for (int k = 0; k < 3; ++k) {
    network.refuse_queue_pairs(ENOMEM, k);
    expect("no queue pair of");
  }
  network.refuse_queue_pairs(0, -1);
  network.refuse_receives(EINVAL, 3);
  expect("a queue pair cannot be set up");
}

TEST_F(VerbsFaults, ADeviceTooSmallForSoManyPeersSaysSo) {
  VerbsDouble network({.most_completions = 1000});
  auto made = verbs::make(0, 8, 1, options_on(network));
  ASSERT_FALSE(made.ok());
  EXPECT_NE(made.status().message().find("holds 1000 completions"), std::string::npos) << made.status().message();
}

TEST_F(VerbsFaults, ARemovedDeviceIsAFailureAndStopDoesNotHang) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  ASSERT_NO_FATAL_FAILURE(open());
  ASSERT_TRUE(pump([&] {
    if (rank(1).prepare_to_sleep()) return true;
    rank(1).awake();
    return false;
  }));
  network_->remove_devices();
  rank(1).awake();  // the event wakes a sleeper
  ASSERT_NE(rank(1).failure(), nullptr);
  EXPECT_NE(rank(1).failure()->status.message().find("local catastrophic error"), std::string::npos);
  const auto begin = std::chrono::steady_clock::now();
  for (auto& r : fabric_->ranks) r->stop();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
  EXPECT_EQ(network_->live(), VerbsDouble::Live());
}

TEST_F(VerbsFaults, OfSeveralPeersThatAreLostEachIsReported) {
  ASSERT_NO_FATAL_FAILURE(build(4));
  for (int peer : {1, 2}) rank(0).open(peer, 0), rank(peer).open(0, 0);
  ASSERT_TRUE(pump([&] { return rank(0).open(1, 0)->writable() && rank(0).open(2, 0)->writable(); }));
  network_->remove_devices();
  rank(0).awake();
  for (int peer : {1, 2}) {
    const Failure* f = rank(0).failures().of(peer);
    ASSERT_NE(f, nullptr) << peer;
    EXPECT_EQ(f->peer, peer);
  }
  EXPECT_EQ(rank(0).failures().of(3), nullptr) << "nothing was opened to it";
}

TEST_F(VerbsFaults, HarmlessEventsOfADeviceAreNoFailure) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  ASSERT_NO_FATAL_FAILURE(open());
  for (auto type : {IBV_EVENT_PORT_ERR, IBV_EVENT_PORT_ACTIVE, IBV_EVENT_GID_CHANGE, IBV_EVENT_SM_CHANGE})
    network_->event(type);
  rank(0).awake();
  rank(1).awake();
  EXPECT_EQ(rank(0).failure(), nullptr);
  there_->put(data_.data(), 8, nullptr);
  Arrival a;
  EXPECT_TRUE(pump([&] { return here_->arrived(&a, nullptr, 0); }));
}

// A rank that only receives has nothing under way that could fail; it learns of it all the same, at any moment.
TEST_F(VerbsFaults, WhoOnlyReceivesLearnsThatItsPortIsCutOff) {
  for (unsigned seed = 1; seed <= 20; ++seed) {
    std::mt19937 dice(seed);
    ASSERT_NO_FATAL_FAILURE(build(2, {.lag_us = seed % 2 == 0 ? 0 : 100, .seed = seed}));
    ASSERT_NO_FATAL_FAILURE(open());
    Arrival a;
    for (unsigned puts = dice() % 40; puts > 0; --puts) {
      ASSERT_TRUE(pump([&] { return there_->writable(); }));
      there_->put(data_.data(), dice() % data_.size(), nullptr);
      ASSERT_TRUE(pump([&] { return here_->arrived(&a, nullptr, 0); }));
      here_->release();
    }
    network_->cut();
    network_->event(IBV_EVENT_PORT_ERR);
    rank(1).awake();
    ASSERT_NO_FATAL_FAILURE(
        expect_failure(1, 0, Code::kPeerLost, "a write to it failed: transport retry counter exc"))
        << seed;
    fabric_.reset();
    network_.reset();
  }
}

TEST_F(VerbsFaults, APortThatComesBackCostsOneSilentWriteToEachPeerOverIt) {
  ASSERT_NO_FATAL_FAILURE(build(2, {.devices = 2}, {.rails = 2}));
  ASSERT_NO_FATAL_FAILURE(open());
  const auto before = rank(1).counters(), others = rank(0).counters();
  network_->event(IBV_EVENT_PORT_ERR, 1);
  rank(1).awake();
  network_->event(IBV_EVENT_PORT_ACTIVE, 1);
  rank(1).awake();
  rank(0).awake();
  rank(0).progress();
  rank(1).progress();
  EXPECT_EQ(rank(1).counters().work_requests - before.work_requests, 1u);
  EXPECT_EQ(rank(1).counters().completions - before.completions, 1u);
  EXPECT_EQ(rank(0).counters().completions - others.completions, 1u) << "of its own, nothing of the other's";
  EXPECT_EQ(rank(0).failure(), nullptr);
  EXPECT_EQ(rank(1).failure(), nullptr);
}

// The last puts fill the queue: the question waits for room, and is asked.
TEST_F(VerbsFaults, AFullQueueDelaysTheQuestionAndIsNotOverrun) {
  ASSERT_NO_FATAL_FAILURE(build(2, {.lag_us = 20000}, {.slots = 1, .slot_bytes = 4096}));
  for (int lane = 0; lane < kLanes; ++lane) rank(0).open(1, lane), rank(1).open(0, lane);
  ASSERT_TRUE(pump([&] {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!rank(0).open(1, lane)->writable() || !rank(1).open(0, lane)->writable()) return false;
    }
    return true;
  }));
  const auto before = rank(0).counters();
  constexpr unsigned kEvents = 100;  // more than the queue has room for
  for (unsigned k = 0; k < kEvents; ++k) {
    network_->event(IBV_EVENT_PORT_ERR);
    rank(0).awake();
  }
  EXPECT_LT(rank(0).counters().work_requests - before.work_requests, kEvents);
  const auto posted = rank(0).counters().work_requests;
  ASSERT_TRUE(pump([&] { return rank(0).counters().work_requests > posted; })) << "the last question is never asked";
  EXPECT_EQ(rank(0).failure(), nullptr);
}

TEST_F(VerbsFaults, NotesThatMakeNoSenseAreRefused) {
  const Note bad[] = {{.kind = 15},
                      {.kind = Note::kPlace},   // of an offer that was not written
                      {.kind = Note::kPlaced},  // where nothing was offered
                      {.kind = Note::kPlace, .lane = 3},
                      {.kind = Note::kLanded},  // where nothing was offered
                      {.kind = Note::kPut, .lane = 7},
                      {.kind = Note::kPut, .lane = 3},
                      {.kind = Note::kOpen, .lane = 6},
                      {.kind = Note::kCredit, .lane = 2},
                      {.kind = Note::kPut, .number = 100},
                      {.kind = Note::kPut, .preamble = 1, .number = 0}};
  for (const Note& note : bad) {
    ASSERT_NO_FATAL_FAILURE(build(2));
    ASSERT_NO_FATAL_FAILURE(open());
    network_->replace_note(note.encode());
    there_->put(data_.data(), 8, nullptr);
    ASSERT_TRUE(pump([&] { return rank(1).failure() != nullptr; })) << note.encode();
    EXPECT_EQ(rank(1).failure()->status.code(), Code::kProtocol);
    fabric_.reset();
    network_.reset();
  }
}

// Memory as of a GPU: at an address that only devices know, and as a file.
struct OfAnother {
  explicit OfAnother(size_t size) : bytes(size), fd(memfd_create("of-another", MFD_CLOEXEC)) {
    EXPECT_EQ(ftruncate(fd, static_cast<off_t>(size)), 0);
    base = static_cast<std::byte*>(mmap(nullptr, size, PROT_NONE, MAP_SHARED, fd, 0));
    seen = static_cast<std::byte*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  }
  ~OfAnother() {
    munmap(base, bytes);
    munmap(seen, bytes);
    close(fd);
  }
  const size_t bytes;
  const int fd;
  std::byte *base = nullptr, *seen = nullptr;
};

TEST_F(VerbsFaults, WritesGoStraightFromMemoryOfDevicesIntoWhatAPeerOffers) {
  OfAnother from(3 * 4096), to(2 * 4096);
  for (const int devices : {1, 2}) {
    ASSERT_NO_FATAL_FAILURE(build(2, {.devices = devices, .lag_us = 300}, {.rails = devices}));
    Direct &a = *rank(0).direct(), &b = *rank(1).direct();
    ASSERT_TRUE(a.add(7, from.base, from.bytes, from.fd).ok());
    ASSERT_TRUE(b.add(9, to.base, to.bytes, to.fd).ok());
    EXPECT_EQ(network_->dma_bufs(), 2 * devices);
    EXPECT_FALSE(b.offer(0, from.base, 100)) << "of memory that was not added here";
    for (uint64_t round = 0; round < 3; ++round) {
      for (size_t i = 0; i < 5000; ++i) from.seen[1000 + i] = static_cast<std::byte>(i * 7 + round);
      EXPECT_FALSE(a.offered(1).has_value());
      ASSERT_TRUE(pump([&] { return b.offer(0, to.base + 64, 6000); }));
      ASSERT_TRUE(pump([&] { return a.offered(1).has_value(); }));
      EXPECT_EQ(*a.offered(1), 6000u);
      ASSERT_TRUE(pump([&] { return a.write(1, from.base + 1000, 5000, 11); }));
      EXPECT_FALSE(a.offered(1).has_value()) << "an offer is for one write";
      ASSERT_TRUE(pump([&] { return b.landed(0) == round + 1 && a.written(1); }));
      EXPECT_EQ(std::memcmp(to.seen + 75, from.seen + 1000, 5000), 0);
      EXPECT_EQ(to.seen[74], std::byte{0});
      EXPECT_EQ(to.seen[5075], std::byte{0});
    }
    // What it overlaps is gone.
    ASSERT_TRUE(b.add(10, to.base, 4096, to.fd).ok());
    EXPECT_EQ(network_->dma_bufs(), 2 * devices);
    b.remove(10);
    EXPECT_EQ(network_->dma_bufs(), devices);
    EXPECT_FALSE(b.offer(0, to.base, 100));
    std::memset(to.seen, 0, to.bytes);
    fabric_.reset();
    network_.reset();
  }
}

// A rank that stops has still delivered what it put before, and its peers take that before they hear of the end.
TEST_F(VerbsFaults, WhatWasPutBeforeAStopArrives) {
  ASSERT_NO_FATAL_FAILURE(build(2, {.lag_us = 3000}));
  ASSERT_NO_FATAL_FAILURE(open());
  for (int k = 0; k < 8; ++k) there_->put(data_.data(), k % 2 == 0 ? 8 : data_.size(), nullptr);
  rank(0).stop();
  for (int k = 0; k < 8; ++k) {
    Arrival a;
    ASSERT_TRUE(pump([&] { return here_->arrived(&a, nullptr, 0); })) << k;
    EXPECT_EQ(rank(1).failure(), nullptr) << k;
    here_->release();
  }
  expect_failure(1, 0, Code::kPeerLost, "stopped its links");
}

// What a rank still posts to one that has stopped fails, before or after it has taken what came: that is no news.
TEST_F(VerbsFaults, AnErrorAfterAStopDoesNotOvertakeWhatCameBefore) {
  ASSERT_NO_FATAL_FAILURE(build(2, {}, {.slots = 2}));
  ASSERT_NO_FATAL_FAILURE(open());
  for (int k = 0; k < 2; ++k) there_->put(data_.data(), 8, nullptr);
  Arrival a;
  ASSERT_TRUE(pump([&] { return here_->arrived(&a, nullptr, 0); }));
  rank(0).stop();
  here_->release();  // its credit finds nobody
  for (int k = 0; k < 3; ++k) rank(1).progress();
  EXPECT_EQ(rank(1).failure(), nullptr);
  EXPECT_TRUE(here_->arrived(&a, nullptr, 0));
  here_->release();
  expect_failure(1, 0, Code::kPeerLost, "stopped its links");
}

TEST_F(VerbsFaults, AbandoningWaitsForNobodyAndLeavesNothing) {
  ASSERT_NO_FATAL_FAILURE(build(2, {.lag_us = 100000}, {.drain = std::chrono::hours(1)}));
  there_ = rank(0).open(1, 0);
  rank(0).abandon();
  EXPECT_FALSE(there_->writable());
  rank(1).abandon();
  EXPECT_EQ(network_->live(), VerbsDouble::Live());
}

TEST_F(VerbsFaults, AllocatedMemoryIsSentFromWhereItLiesAndItsKeysEndWithIt) {
  ASSERT_NO_FATAL_FAILURE(build(2, {.lag_us = 500}));
  ASSERT_NO_FATAL_FAILURE(open());
  const auto regions = network_->live().regions;
  const auto copied = rank(0).counters().copied_bytes;
  for (int k = 0; k < 20; ++k) {  // freed and allocated anew, often at the same address
    auto buffer = allocate_buffer<std::byte>(256 << 10);
    ASSERT_TRUE(buffer.ok());
    std::byte* data = buffer->get() + 1000;
    std::fill_n(data, 100 << 10, static_cast<std::byte>(k + 1));
    const Preamble p{{7, 8, 9}};
    there_->put(data, 100 << 10, k % 2 == 0 ? &p : nullptr);
    EXPECT_LT(there_->retired(), there_->issued()) << "the device has not read it yet";
    Arrival a;
    ASSERT_TRUE(pump([&] { return here_->arrived(&a, nullptr, 0); }));
    ASSERT_EQ(a.bytes, size_t{100} << 10);
    EXPECT_TRUE(
        std::all_of(a.data, a.data + a.bytes, [&](std::byte b) { return b == static_cast<std::byte>(k + 1); }));
    EXPECT_EQ(a.preamble != nullptr, k % 2 == 0);
    here_->release();
    ASSERT_TRUE(pump([&] { return there_->retired() == there_->issued(); }));
    EXPECT_LE(network_->live().regions, regions + 1) << "of freed memory";
  }
  EXPECT_EQ(rank(0).counters().copied_bytes, copied);
  // Memory that cannot be registered is copied.
  network_->refuse_registration(ENOMEM, 0);
  auto buffer = allocate_buffer<std::byte>(256 << 10);
  there_->put(buffer->get(), 100 << 10, nullptr);
  EXPECT_EQ(there_->retired(), there_->issued());
  EXPECT_EQ(rank(0).counters().copied_bytes, copied + (100 << 10));
}

// ---- costs that do not depend on the machine ----

TEST_F(VerbsFaults, APutIsOneWorkRequestAndPingPongNeedsNoCredits) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  ASSERT_NO_FATAL_FAILURE(open());
  const auto before = rank(0).counters();
  constexpr int kRounds = 640;
  for (int k = 0; k < kRounds; ++k) {
    for (auto [from, to] : {std::pair(there_, here_), std::pair(here_, there_)}) {
      ASSERT_TRUE(pump([&] { return from->writable(); }));
      const Preamble p{{1, 2, 3}};
      from->put(data_.data(), k % 3 == 0 ? data_.size() : 8, k % 2 == 0 ? &p : nullptr);
      Arrival a;
      ASSERT_TRUE(pump([&] { return to->arrived(&a, nullptr, 0); }));
      to->release();
    }
  }
  const auto after = rank(0).counters();
  EXPECT_EQ(after.work_requests - before.work_requests, 2u * kRounds)
      << "a write for each put, a receive for each arrival";
  EXPECT_EQ(after.doorbells - before.doorbells, kRounds + kRounds / 16u) << "receives go in batches";
  EXPECT_EQ(after.completions - before.completions, kRounds + kRounds / 32u)
      << "one in a fourth of the queue is asked for";
}

TEST_F(VerbsFaults, ATurnThatFindsNothingPollsOnceForAllLinks) {
  ASSERT_NO_FATAL_FAILURE(build(3));
  std::vector<Link*> links;
  for (int peer : {0, 2}) links.push_back((rank(peer).open(1, 0), rank(1).open(peer, 0)));
  ASSERT_TRUE(pump([&] { return links[0]->writable() && links[1]->writable(); }));
  Arrival a;
  const auto turn = [&] {
    rank(1).progress();
    for (Link* link : links) EXPECT_FALSE(link->announced(&a, 0));
  };
  turn();
  const auto before = network_->polls();
  for (int k = 0; k < 10; ++k) turn();
  EXPECT_EQ(network_->polls() - before, 10u);
  // Who looks again and again without turns of the engine polls every time.
  for (int k = 0; k < 10; ++k) EXPECT_FALSE(links[0]->announced(&a, 0));
  EXPECT_GE(network_->polls() - before, 19u);
}

TEST_F(VerbsFaults, OneWayTrafficCostsACreditForHalfTheSlots) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  ASSERT_NO_FATAL_FAILURE(open());
  const auto before = rank(1).counters();
  constexpr int kPuts = 640;
  for (int k = 0; k < kPuts; ++k) {
    ASSERT_TRUE(pump([&] { return there_->writable(); }));
    there_->put(data_.data(), 8, nullptr);
    Arrival a;
    ASSERT_TRUE(pump([&] { return here_->arrived(&a, nullptr, 0); }));
    here_->release();
  }
  const auto after = rank(1).counters();
  EXPECT_EQ(after.work_requests - before.work_requests, kPuts + kPuts / 4u);
}

}  // namespace
}  // namespace ringfold::transport::test
