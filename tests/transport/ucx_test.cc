// What UCX adds to the suite of all transports. Which of UCX's own transports is tested is UCX's choice by UCX_TLS,
// as for its users: the build runs this program several times.
#include <gtest/gtest.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

#include "tests/transport/conformance.h"
#include "transports/ucx/header.h"
#include "transports/ucx/ucx.h"

namespace ringfold::transport::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using Bytes = std::vector<std::byte>;

Fabric make_ucx(int n, const ucx::Options& options) {
  return make_fabric(n, [&](int r) { return ucx::make(r, n, 42, 1, options); });
}

Fabric standard(int n) { return make_ucx(n, {}); }
Fabric small_slots(int n) { return make_ucx(n, {.slot_bytes = 9000, .slots = 3}); }
Fabric one_slot(int n) { return make_ucx(n, {.slot_bytes = 256 << 10, .slots = 1}); }

INSTANTIATE_TEST_SUITE_P(Ucx, Conformance,
                         testing::Values(FabricKind{"standard", standard, true, false},
                                         FabricKind{"small_slots", small_slots, true, false},
                                         FabricKind{"one_slot", one_slot, true, false}),
                         fabric_name);

TEST(Ucx, WhatWasRetiredArrivesThoughItsSenderHasStopped) {
  for (size_t size : {size_t{8}, size_t{3000}, size_t{60000}}) {
    Fabric fabric = standard(2);
    Link* from = fabric.ranks[0]->open(1, 0);
    Link* to = fabric.ranks[1]->open(0, 0);
    ASSERT_TRUE(pump(fabric, [&] { return from->writable(); }));
    const Bytes data(size, std::byte{7});
    uint64_t sent = 0;
    const auto end = steady_clock::now() + seconds(10);
    while (sent < 10 && steady_clock::now() < end) {  // the receiver does nothing
      fabric.ranks[0]->progress();
      if (!from->writable()) continue;
      from->put(data.data(), data.size(), nullptr);
      ++sent;
    }
    ASSERT_EQ(sent, 10u);
    // Large puts wait for the receiver; small ones must not need it.
    uint64_t retired = 0;
    for (const auto limit = steady_clock::now() + milliseconds(300); steady_clock::now() < limit;) {
      fabric.ranks[0]->progress();
      retired = from->retired();
    }
    if (size == 8) {
      EXPECT_EQ(retired, sent) << size;
    }
    fabric.ranks[0]->stop();
    for (uint64_t k = 0; k < retired; ++k) {
      Arrival arrival;
      ASSERT_TRUE(pump(
          fabric, [&] { return to->arrived(&arrival, nullptr, 0); }, seconds(5)))
          << k << " of " << retired << " of " << size << " bytes";
      ASSERT_EQ(arrival.bytes, size);
      ASSERT_EQ(std::memcmp(arrival.data, data.data(), size), 0);
      EXPECT_EQ(fabric.ranks[1]->failure(), nullptr) << "the end is reported after what came before";
      to->release();
    }
    EXPECT_TRUE(pump(
        fabric, [&] { return fabric.ranks[1]->failure() != nullptr; }, seconds(5)));
  }
}

// Compared bit by bit with what was put, over every pattern of words that stay, change, and change back.
TEST(UcxHeader, PreamblesComeBackAsTheyWereAndRepeatedOnesCostNothing) {
  using ucx::Header;
  ucx::Preambles from, to;
  std::mt19937_64 random(7);
  Preamble preamble;
  for (int k = 0; k < 2000; ++k) {
    size_t changed = 0;
    for (uint64_t& word : preamble.words) {
      if (random() % 2 == 0) continue;
      word += 1 + random() % 3;
      ++changed;
    }
    Header header;
    from.encode(preamble, &header);
    ASSERT_NE(header.preamble, 0);
    ASSERT_EQ(header.bytes(), Header::kPlainBytes + 8 * changed);
    Preamble there;
    std::memcpy(&there, header.words, 8 * changed);
    to.decode(header.preamble, &there);
    ASSERT_TRUE(there == preamble) << k;
  }
  Header header;
  from.encode(preamble, &header);
  EXPECT_EQ(header.bytes(), Header::kPlainBytes);  // with 8 bytes it lies in one line of UCX's shared memory
  EXPECT_LE(Header::kPlainBytes + 8, 20u);
}

TEST(Ucx, ATurnThatFindsNothingLooksOnceForAllLinks) {
  Fabric fabric = standard(3);
  std::vector<Link*> links;
  for (int peer : {0, 2}) {
    fabric.ranks[static_cast<size_t>(peer)]->open(1, 0);
    links.push_back(fabric.ranks[1]->open(peer, 0));
  }
  ASSERT_TRUE(pump(fabric, [&] { return links[0]->writable() && links[1]->writable(); }));
  // UCX has work of its own at times, and is then asked again; so the least of many turns.
  uint64_t least = 1000;
  EXPECT_TRUE(pump(fabric, [&] {
    const uint64_t before = fabric.ranks[1]->counters().polls;
    fabric.ranks[1]->progress();
    Arrival a;
    for (Link* link : links) EXPECT_FALSE(link->announced(&a, 0));
    least = std::min(least, fabric.ranks[1]->counters().polls - before);
    return least == 1;
  })) << least;
}

// So small that the sender's retired() tells what has been fetched; lane 1 tells when all announcements are there.
TEST(Ucx, AnnouncedPutsAreFetchedTogether) {
  ::setenv("UCX_RNDV_THRESH", "1k", 1);
  Fabric fabric = standard(2);
  ::unsetenv("UCX_RNDV_THRESH");
  if (fabric.ranks[0]->capabilities().in_memory) GTEST_SKIP() << "only where fetching takes a round trip";
  Link *from = fabric.ranks[0]->open(1, 0), *small = fabric.ranks[0]->open(1, 1);
  Link *to = fabric.ranks[1]->open(0, 0), *there = fabric.ranks[1]->open(0, 1);
  ASSERT_TRUE(pump(fabric, [&] { return from->writable() && small->writable(); }));
  constexpr size_t kPuts = 4;
  std::vector<Bytes> data;
  for (size_t k = 0; k < kPuts; ++k) data.emplace_back(8000, static_cast<std::byte>(k + 1));
  for (const Bytes& d : data) from->put(d.data(), d.size(), nullptr);
  small->put(data[0].data(), 8, nullptr);
  Arrival a;
  ASSERT_TRUE(pump(fabric, [&] { return there->arrived(&a, nullptr, 0); }));
  EXPECT_EQ(from->retired(), 0u) << "not by announcements: this tests nothing";
  ASSERT_TRUE(pump(fabric, [&] { return to->arrived(&a, nullptr, 0); }));
  EXPECT_TRUE(pump(fabric, [&] { return from->retired() == kPuts; })) << from->retired();
  for (const Bytes& d : data) {
    ASSERT_TRUE(pump(fabric, [&] { return to->arrived(&a, nullptr, 0); }));
    ASSERT_EQ(a.bytes, d.size());
    EXPECT_EQ(std::memcmp(a.data, d.data(), d.size()), 0);
    to->release();
  }
}

// Fetched before its turn it would be copied once more.
TEST(Ucx, WhatIsReadFromAPeersMemoryLandsWhereItIsWanted) {
  const char* tls = std::getenv("UCX_TLS");
  std::byte one{1}, other{};
  const iovec here{&other, 1}, there{&one, 1};
  if ((tls != nullptr && std::strstr(tls, "shm") == nullptr) ||
      ::process_vm_readv(::getpid(), &here, 1, &there, 1, 0) != 1) {
    GTEST_SKIP() << "only where UCX can read another process's memory";
  }
  ::setenv("UCX_RNDV_THRESH", "1k", 1);
  Fabric fabric = standard(2);
  ::unsetenv("UCX_RNDV_THRESH");
  Link *from = fabric.ranks[0]->open(1, 0), *to = fabric.ranks[1]->open(0, 0);
  ASSERT_TRUE(pump(fabric, [&] { return from->writable(); }));
  const Bytes data(60000, std::byte{7});
  Bytes landing(data.size());
  constexpr int kPuts = 4;
  for (int k = 0; k < kPuts; ++k) from->put(data.data(), data.size(), nullptr);
  for (int k = 0; k < kPuts; ++k) {
    Arrival a;
    ASSERT_TRUE(pump(fabric, [&] { return to->arrived(&a, landing.data(), landing.size()); }));
    EXPECT_EQ(a.data, landing.data()) << k;
    EXPECT_EQ(landing, data);
    std::fill(landing.begin(), landing.end(), std::byte{});
    to->release();
  }
}

// It has its memory back then, and the receiver needs nobody to read it.
TEST(Ucx, WhatASenderHasWrittenSinceItGaveUpIsNoArrival) {
  for (const size_t size : {size_t{60000}, ucx::Options{}.slot_bytes}) {
    Bytes data(size, std::byte{7}), landing(size);
    Fabric fabric = standard(2);
    Link *from = fabric.ranks[0]->open(1, 0), *to = fabric.ranks[1]->open(0, 0);
    ASSERT_TRUE(pump(fabric, [&] { return from->writable(); }));
    from->put(data.data(), size, nullptr);
    Arrival a;
    ASSERT_TRUE(pump(fabric, [&] { return to->announced(&a, size); }));
    const bool retired = from->retired() == 1;
    fabric.ranks[0]->abandon();
    std::fill(data.begin(), data.end(), std::byte{9});
    const auto until = steady_clock::now() + milliseconds(50);
    bool arrived = false;
    while (!arrived && steady_clock::now() < until) {
      fabric.ranks[1]->progress();
      arrived = to->arrived(&a, landing.data(), size);
    }
    EXPECT_TRUE(arrived || !retired);
    EXPECT_TRUE(!arrived || std::memcmp(a.data, Bytes(size, std::byte{7}).data(), size) == 0);
  }
}

TEST(Ucx, AStopInTheMiddleOfLargePutsLeavesAllBuffersAlone) {
  std::mt19937_64 random(4);
  for (int round = 0; round < 12; ++round) {
    const size_t size = ucx::Options{}.slot_bytes;
    const Bytes data(size, std::byte{7});  // both outlive the transport that is not stopped, and may fetch to the end
    Bytes landing(size);
    Fabric fabric = standard(2);
    ASSERT_EQ(fabric.ranks[0]->capabilities().slot_bytes, size);
    Link* from = fabric.ranks[0]->open(1, 0);
    Link* to = fabric.ranks[1]->open(0, 0);
    ASSERT_TRUE(pump(fabric, [&] { return from->writable(); }));
    for (int k = 0; k < 4; ++k) {
      if (from->writable()) from->put(data.data(), data.size(), nullptr);
    }
    Arrival arrival;
    const auto turns = random() % 40;
    for (uint64_t i = 0; i < turns; ++i) {
      fabric.ranks[0]->progress();
      if (to->arrived(&arrival, landing.data(), landing.size())) to->release();
    }
    Transport& stopped = *fabric.ranks[round % 2];
    const auto begin = steady_clock::now();
    stopped.stop();
    EXPECT_LT(steady_clock::now() - begin, seconds(5));
    if (round % 2 == 1) {  // the receiver: nobody writes there any more
      std::fill(landing.begin(), landing.end(), std::byte{1});
      const auto until = steady_clock::now() + milliseconds(50);
      while (steady_clock::now() < until) fabric.ranks[0]->progress();
      EXPECT_EQ(landing, Bytes(size, std::byte{1}));
    }
    EXPECT_FALSE(to->arrived(&arrival, landing.data(), landing.size()) && stopped.failure() != nullptr);
  }
}

std::string with_word(const std::string& address, size_t index, const std::string& word) {
  std::istringstream in(address);
  std::string result, w;
  for (size_t i = 0; in >> w; ++i) result += (i == 0 ? "" : " ") + (i == index ? word : w);
  return result;
}

TEST(UcxWiring, EveryRefusalSaysWhy) {
  auto a = ucx::make(0, 2, 42, 1), b = ucx::make(1, 2, 42, 1);
  ASSERT_TRUE(a.ok() && b.ok());
  const std::string good = (*b)->address();
  const auto refusal = [&](const std::string& address, Code code, const char* part) {
    const auto status = (*a)->add_peer(1, address);
    EXPECT_EQ(status.code(), code) << status.to_string();
    EXPECT_NE(status.message().find(part), std::string::npos) << status.to_string();
  };
  refusal("", Code::kUnavailable, "no address for UCX");
  refusal(with_word(good, 0, "ucx/9"), Code::kMismatch, "ucx/9");
  refusal(good.substr(0, good.size() / 2 * 2 - 101), Code::kProtocol, "damaged");
  refusal(good + " 1", Code::kProtocol, "damaged");
  refusal(with_word(good, 1, "43"), Code::kMismatch, "another communicator");
  refusal(with_word(good, 2, "0"), Code::kMismatch, "rank 0 of 2");
  refusal(with_word(good, 4, "64"), Code::kMismatch, "64 slots");
  refusal(with_word(good, 6, "0.9.0"), Code::kMismatch, "UCX 0.9.0");
  EXPECT_EQ((*a)->add_peer(0, good).code(), Code::kInvalid);
  EXPECT_EQ((*a)->add_peer(2, good).code(), Code::kInvalid);
  EXPECT_TRUE((*a)->add_peer(1, good).ok());
  EXPECT_EQ((*a)->add_peer(1, good).code(), Code::kInvalid) << "twice";
  EXPECT_EQ(ucx::make(2, 2, 1, 1).status().code(), Code::kInvalid);
  EXPECT_EQ(ucx::make(0, 2, 1, 1, {.slot_bytes = 8}).status().code(), Code::kInvalid);
  EXPECT_EQ(ucx::make(0, 2, 1, 1, {.slots = 0}).status().code(), Code::kInvalid);
}

TEST(UcxWiring, ItsFilesAndMemoryGoWithTheTransports) {
  const auto open_fds = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator());
  };
  const auto connected = [](int n) {
    Fabric fabric = standard(n);
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) {
        if (i == j) continue;
        Link* there = fabric.ranks[size_t(i)]->open(j, 0);
        Link* here = fabric.ranks[size_t(j)]->open(i, 0);
        EXPECT_TRUE(pump(fabric, [&] { return there->writable() && here->writable(); }));
      }
    }
  };
  connected(2);
  const auto before = open_fds();
  for (int round = 0; round < 5; ++round) connected(3);
  EXPECT_EQ(open_fds(), before);
}

TEST(UcxSettings, TellWhatTheUserSetAndWhatIsAdded) {
  const char* tls = std::getenv("UCX_TLS");
  bool found = false, added = false;
  for (const auto& s : ucx::settings()) {
    found |= s.name == "UCX_TLS" && tls != nullptr && s.value == tls && s.why == "environment";
    added |= s.name == "UCX_KEEPALIVE_INTERVAL" && s.value == "1s";
  }
  EXPECT_EQ(found, tls != nullptr);
  EXPECT_TRUE(added);
  EXPECT_TRUE(ucx::presence().there) << ucx::presence().text;
}

}  // namespace
}  // namespace ringfold::transport::test
