#include "tests/transport/conformance.h"

#include <poll.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <random>
#include <thread>

#include "ringfold/memory.h"

namespace ringfold::transport::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using Bytes = std::vector<std::byte>;

Preamble preamble_of(uint64_t k) { return {{k, ~k, k * 31}}; }

// Sizes at which transports change their ways: nothing, inline, a cache line, pages, thresholds, a whole slot.
std::vector<size_t> interesting_sizes(size_t slot_bytes) {
  std::vector<size_t> sizes = {0, 1, 2, 3, 7, 8, 9, 31, 32, 33};
  for (size_t edge : {24, 40, 64, 88, 104, 112, 128, 256, 1024, 1460, 4096, 16384, 32768, 65536}) {
    for (size_t size : {edge - 1, edge, edge + 1}) sizes.push_back(size);
  }
  sizes.insert(sizes.end(), {slot_bytes - 1, slot_bytes});
  std::erase_if(sizes, [&](size_t size) { return size > slot_bytes; });
  return sizes;
}

}  // namespace

Bytes pattern(uint64_t stream, uint64_t k, size_t bytes) {
  Bytes data(bytes);
  uint64_t x = (stream * 1000003 + k) * 0x9e3779b97f4a7c15u + 1;
  for (size_t i = 0; i < bytes; ++i) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    data[i] = static_cast<std::byte>(x >> 56);
  }
  return data;
}

void wire(const std::vector<std::unique_ptr<Transport>>& ranks) {
  for (size_t i = 0; i < ranks.size(); ++i) {
    for (size_t j = 0; j < ranks.size(); ++j) {
      if (i == j) continue;
      auto status = ranks[i]->add_peer(static_cast<int>(j), ranks[j]->address());
      ASSERT_TRUE(status.ok()) << i << " -> " << j << ": " << status.to_string();
    }
  }
}

bool pump(Fabric& fabric, const std::function<bool()>& done, milliseconds limit) {
  const auto end = steady_clock::now() + limit;
  for (;;) {
    for (auto& r : fabric.ranks) r->progress();
    if (done()) return true;
    if (steady_clock::now() > end) return false;
    if (fabric.pass_time) {
      fabric.pass_time();
    } else {
      std::this_thread::yield();
    }
  }
}

void Conformance::build(int n) {
  fabric_ = std::make_unique<Fabric>(GetParam().make(n));
  ASSERT_EQ(fabric_->ranks.size(), static_cast<size_t>(n));
}

void Conformance::send(Link* link, const Bytes& data, const Preamble* preamble) {
  ASSERT_TRUE(pump_until([&] { return link->writable(); }))
      << "no credit after " << link->issued() << " puts, the next of " << data.size() << " bytes";
  link->put(data.data(), data.size(), preamble);
}

Conformance::Message Conformance::receive(Link* link) {
  Arrival arrival;
  Message message;
  if (!pump_until([&] { return link->arrived(&arrival, nullptr, 0); })) {
    ADD_FAILURE() << "nothing arrived";
    return message;
  }
  message.data.resize(arrival.bytes);
  if (arrival.remote) {
    EXPECT_EQ(arrival.data, nullptr);
    auto status = link->fetch(message.data.data());
    EXPECT_TRUE(status.ok()) << status.to_string();
  } else if (arrival.bytes > 0) {
    EXPECT_NE(arrival.data, nullptr);
    std::memcpy(message.data.data(), arrival.data, arrival.bytes);
  }
  if (arrival.preamble != nullptr) message.preamble = *arrival.preamble;
  link->release();
  return message;
}

TEST_P(Conformance, EverySizeArrivesUnchangedAndInOrder) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  Link* there = rank(0).open(1, 0);
  Link* here = rank(1).open(0, 0);
  Link* ends[2][2] = {{there, here}, {here, there}};
  for (auto& [from, to] : ends) {
    std::deque<Bytes> sources;  // a put may refer to its source until it is retired
    uint64_t k = 0;
    for (size_t size : interesting_sizes(rank(0).capabilities().slot_bytes)) {
      for (bool with_preamble : {false, true}) {
        sources.push_back(pattern(7, k, size));
        const Preamble preamble = preamble_of(k);
        ASSERT_NO_FATAL_FAILURE(send(from, sources.back(), with_preamble ? &preamble : nullptr));
        auto message = receive(to);
        ASSERT_EQ(message.data.size(), size);
        ASSERT_TRUE(message.data == sources.back()) << "size " << size;
        ASSERT_EQ(message.preamble.has_value(), with_preamble) << "size " << size;
        if (with_preamble) {
          ASSERT_EQ(*message.preamble, preamble);
        }
        ++k;
      }
    }
    ASSERT_TRUE(pump_until([&] { return from->retired() == from->issued(); }));
    EXPECT_EQ(from->issued(), k);
  }
}

// A transport whose arrivals show in memory says so in its capabilities, and where.
TEST_P(Conformance, AWatchedWordHasItsValueWhileAndOnlyWhileThereIsAnArrival) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  Link* from = rank(0).open(1, 0);
  Link* to = rank(1).open(0, 0);
  const auto shows = [to] {
    const Watch watch = to->watch();
    return watch.word != nullptr &&
           std::atomic_ref(const_cast<uint64_t&>(*watch.word)).load(std::memory_order_acquire) == watch.value;
  };
  if (to->watch().word == nullptr) GTEST_SKIP() << "arrivals do not show in memory";
  EXPECT_TRUE(rank(1).capabilities().in_memory);
  const Bytes data = pattern(1, 2, 8);
  for (int k = 0; k < 3 * rank(0).capabilities().slots; ++k) {  // every slot, several times
    EXPECT_FALSE(shows());
    ASSERT_NO_FATAL_FAILURE(send(from, data));
    EXPECT_TRUE(pump_until(shows));
    EXPECT_EQ(receive(to).data, data);
  }
  rank(1).stop();
  EXPECT_EQ(to->watch().word, nullptr);
}

// Where no word tells, the link that is named does, without anybody calling progress() on its side.
TEST_P(Conformance, AWatchedLinkFindsItsArrivalsWhenItIsAskedAgainAndAgain) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  Link* from = rank(0).open(1, 0);
  Link* to = rank(1).open(0, 0);
  ASSERT_TRUE(pump_until([&] { return from->writable() && to->writable(); }));
  if (to->watch().link == nullptr) GTEST_SKIP() << "there is a word for it, or nothing";
  EXPECT_EQ(to->watch().link, to);
  EXPECT_EQ(to->watch().word, nullptr);
  for (int k = 0; k < 3 * rank(0).capabilities().slots; ++k) {
    Arrival arrival;
    EXPECT_FALSE(to->announced(&arrival, 0));
    const Bytes data = pattern(1, static_cast<uint64_t>(k), 8);
    ASSERT_TRUE(pump_until([&] { return from->writable(); }));
    from->put(data.data(), data.size(), nullptr);
    const auto end = steady_clock::now() + std::chrono::seconds(20);
    while (!to->announced(&arrival, 0)) {
      ASSERT_LT(steady_clock::now(), end) << "put " << k;
      rank(0).progress();
    }
    EXPECT_EQ(receive(to).data, data);
  }
  rank(1).stop();
  EXPECT_FALSE(to->watch());
}

TEST_P(Conformance, ManyPutsInFlightStayInOrder) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  Link* from = rank(0).open(1, 2);
  Link* to = rank(1).open(0, 2);
  constexpr uint64_t kMessages = 300;
  const size_t largest = rank(0).capabilities().slot_bytes;
  std::mt19937_64 random(1);
  std::deque<Bytes> sources;
  uint64_t received = 0;
  ASSERT_TRUE(pump_until([&] {
    while (sources.size() < kMessages && from->writable()) {
      const size_t size = random() % (random() % 4 == 0 ? largest + 1 : 200);
      sources.push_back(pattern(3, sources.size(), size));
      const Preamble preamble = preamble_of(sources.size());
      if (random() % 3 == 0) {
        std::byte* slot = from->reserve(size);
        if (size > 0) std::memcpy(slot, sources.back().data(), size);
        from->commit(size, &preamble);
      } else {
        from->put(sources.back().data(), size, &preamble);
      }
    }
    const uint64_t budget = 1 + random() % 5;
    for (uint64_t i = 0; i < budget; ++i) {
      Arrival arrival;
      if (!to->arrived(&arrival, nullptr, 0)) break;
      const Bytes& expected = sources[received++];
      EXPECT_EQ(arrival.bytes, expected.size());
      EXPECT_TRUE(arrival.preamble != nullptr && *arrival.preamble == preamble_of(received));
      Bytes data(expected.size());
      if (arrival.remote) {
        EXPECT_TRUE(to->fetch(data.data()).ok());
      } else if (!data.empty()) {
        std::memcpy(data.data(), arrival.data, data.size());
      }
      EXPECT_TRUE(data == expected) << "message " << received - 1;
      to->release();
    }
    return received == kMessages || HasFailure();
  }));
  EXPECT_EQ(from->issued(), kMessages);
  EXPECT_TRUE(pump_until([&] { return from->retired() == kMessages; }));
}

TEST_P(Conformance, WhatIsBuiltInTheLinkArrives) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  Link* from = rank(0).open(1, 1);
  Link* to = rank(1).open(0, 1);
  uint64_t k = 0;
  for (size_t size : interesting_sizes(rank(0).capabilities().slot_bytes)) {
    const Bytes data = pattern(5, k, size);
    ASSERT_TRUE(pump_until([&] { return from->writable(); }));
    std::byte* slot = from->reserve(size);
    if (size > 0) {
      ASSERT_NE(slot, nullptr);
      std::memcpy(slot, data.data(), size);
    }
    const Preamble preamble = preamble_of(k);
    from->commit(size, k % 2 == 0 ? &preamble : nullptr);
    ++k;
    EXPECT_EQ(from->issued(), k);
    if (GetParam().exact_credit) {
      EXPECT_EQ(from->retired(), k) << "a commit has no source and is retired at once";
    }
    auto message = receive(to);
    ASSERT_TRUE(pump_until([&] { return from->retired() == k; }));
    ASSERT_TRUE(message.data == data) << "size " << size;
    ASSERT_EQ(message.preamble.has_value(), k % 2 == 1);
  }
}

TEST_P(Conformance, ASourceIsLeftAloneOnceRetiredAndRetirementIsMonotone) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  Link* from = rank(0).open(1, 0);
  Link* to = rank(1).open(0, 0);
  const size_t slot_bytes = rank(0).capabilities().slot_bytes;
  uint64_t retired = 0;
  std::mt19937_64 random(2);
  for (int round = 0; round < 40; ++round) {
    const size_t size = round % 3 == 0 ? slot_bytes : random() % slot_bytes;
    const Bytes expected = pattern(11, static_cast<uint64_t>(round), size);
    Bytes source = expected;
    ASSERT_NO_FATAL_FAILURE(send(from, source));
    const uint64_t now = from->retired();
    ASSERT_GE(now, retired);
    ASSERT_LE(now, from->issued());
    retired = now;
    if (retired == from->issued()) std::fill(source.begin(), source.end(), std::byte{0xEE});  // it is ours again
    Arrival arrival;
    ASSERT_TRUE(pump_until([&] { return to->arrived(&arrival, nullptr, 0); }));
    ASSERT_EQ(arrival.bytes, size);
    Bytes seen(size);
    if (arrival.remote) {
      ASSERT_LT(from->retired(), from->issued()) << "retired, but the peer still has to read it";
      ASSERT_TRUE(to->fetch(seen.data()).ok());
    } else if (size > 0) {
      std::memcpy(seen.data(), arrival.data, size);
    }
    ASSERT_TRUE(seen == expected) << "round " << round << " size " << size;
    to->release();
    ASSERT_TRUE(pump_until([&] { return from->retired() == from->issued(); }));
    retired = from->retired();
  }
}

TEST_P(Conformance, CreditIsAtLeastTheSlotsAndComesBackByRelease) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  Link* from = rank(0).open(1, 3);
  Link* to = rank(1).open(0, 3);
  const auto slots = static_cast<uint64_t>(rank(0).capabilities().slots);
  ASSERT_GE(slots, 1u);
  const Bytes data = pattern(1, 1, GetParam().exact_credit ? 16 : 8192);
  for (uint64_t k = 0; k < slots; ++k) ASSERT_NO_FATAL_FAILURE(send(from, data)) << k << " of " << slots;
  // Without a release a link accepts only so much.
  uint64_t accepted = slots;
  auto full = [&] {
    if (!from->writable()) return true;
    from->put(data.data(), data.size(), nullptr);
    return ++accepted > 100000;
  };
  ASSERT_TRUE(pump_until(full));
  ASSERT_LE(accepted, 100000u);
  for (uint64_t k = 0; k < accepted; ++k) {
    ASSERT_EQ(receive(to).data, data) << k;
    if (!GetParam().exact_credit && k + 1 < accepted) continue;  // the last release, at the latest, gives some
    ASSERT_TRUE(pump_until([&] { return from->writable(); })) << "no credit came back after release " << k;
    EXPECT_TRUE(from->writable()) << "stays true until the next put";
  }
}

TEST_P(Conformance, LandingHoldsThePayloadOrIsNotTouched) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  Link* from = rank(0).open(1, 0);
  Link* to = rank(1).open(0, 0);
  uint64_t k = 0;
  for (size_t size : interesting_sizes(rank(0).capabilities().slot_bytes)) {
    for (bool fits : {true, false}) {
      const Bytes source = pattern(13, k++, size);
      Bytes landing(fits ? size : size + 8, std::byte{0x5A});
      const Bytes untouched = landing;
      Arrival arrival;
      to->arrived(&arrival, landing.data(), landing.size());  // the receiver may be first
      ASSERT_NO_FATAL_FAILURE(send(from, source));
      ASSERT_TRUE(pump_until([&] { return to->arrived(&arrival, landing.data(), landing.size()); }));
      ASSERT_EQ(arrival.bytes, size);
      ASSERT_TRUE(to->arrived(&arrival, landing.data(), landing.size())) << "an arrival stays until its release";
      ASSERT_EQ(arrival.bytes, size);
      if (!fits) {
        ASSERT_EQ(landing, untouched) << "a payload of another size touched the landing";
      }
      if (arrival.remote) {
        ASSERT_TRUE(to->fetch(landing.data()).ok());
        landing.resize(size);
        ASSERT_EQ(landing, source);
      } else if (size > 0) {
        ASSERT_EQ(std::memcmp(arrival.data, source.data(), size), 0);
        if (!fits) {
          ASSERT_NE(arrival.data, landing.data());
        }
      }
      to->release();
      ASSERT_TRUE(pump_until([&] { return from->retired() == from->issued(); }));
    }
  }
}

// The receiver says ahead where it wants some of what comes, sooner or later, in memory that devices may know or not.
// Some of it has another size then, or a preamble.
TEST_P(Conformance, WhatIsExpectedLandsInItsPlaceAndNothingElseTouchesIt) {
  const size_t piece = std::min<size_t>(GetParam().make(1).ranks.at(0)->capabilities().slot_bytes, 9000);
  for (const bool allocated : {true, false}) {
    ASSERT_NO_FATAL_FAILURE(build(2));
    Link* from = rank(0).open(1, 0);
    Link* to = rank(1).open(0, 0);
    constexpr uint64_t kArrivals = 400;
    const size_t bytes = (kArrivals + 2) * piece;
    auto region = allocate_buffer<std::byte>(bytes);
    ASSERT_TRUE(region.ok());
    Bytes ordinary(bytes);
    std::byte* const memory = allocated ? region->get() : ordinary.data();
    std::fill_n(memory, bytes, std::byte{0x5A});
    Bytes should(memory, memory + bytes);

    struct Sent {
      std::byte* place = nullptr;  // where it is expected, to have `size` bytes
      size_t size = 0;
      Bytes data;
      bool preamble = false;
    };
    struct Told {
      uint64_t first = 0;
      std::byte* memory = nullptr;
      size_t bytes = 0;
    };
    std::vector<Sent> all;
    std::vector<Told> stretches;
    std::mt19937_64 random(allocated ? 1 : 2);
    for (size_t offset = piece; all.size() < kArrivals;) {
      for (uint64_t gap = random() % 3; gap > 0; --gap)
        all.push_back({.data = pattern(19, all.size(), random() % piece)});
      const size_t pieces = 1 + random() % 14, last = 1 + random() % piece;
      if (all.size() + pieces > kArrivals) break;
      stretches.push_back({all.size(), memory + offset, (pieces - 1) * piece + last});
      for (size_t i = 0; i < pieces; ++i, offset += piece) {
        Sent s{.place = memory + offset, .size = i + 1 < pieces ? piece : last};
        const bool other = random() % 10 == 0;
        s.preamble = random() % 10 == 0;
        s.data = pattern(19, all.size(), other ? random() % piece : s.size);
        if (!s.preamble && s.data.size() == s.size) {
          std::copy(s.data.begin(), s.data.end(), should.begin() + (s.place - memory));
        }
        all.push_back(std::move(s));
      }
    }

    uint64_t put = 0, received = 0, told = 0;
    ASSERT_TRUE(pump_until([&] {
      for (uint64_t budget = random() % 8; budget > 0 && put < all.size() && from->writable(); --budget) {
        const Preamble preamble = preamble_of(put);
        from->put(all[put].data.data(), all[put].data.size(), all[put].preamble ? &preamble : nullptr);
        ++put;
      }
      for (uint64_t budget = random() % 8; budget > 0 && received < all.size(); --budget) {
        const uint64_t sight = received + random() % 30;
        for (; told < stretches.size() && stretches[told].first <= sight; ++told) {
          const Told& t = stretches[told];
          to->expect(t.first - received, t.memory, t.bytes, piece);
        }
        const Sent& s = all[received];
        Arrival a;
        if (!to->arrived(&a, s.preamble ? nullptr : s.place, s.size)) break;
        EXPECT_EQ(a.bytes, s.data.size()) << received;
        EXPECT_EQ(a.preamble != nullptr, s.preamble) << received;
        const bool fits = s.place != nullptr && !s.preamble && a.bytes == s.size;
        Bytes data(a.bytes);
        if (a.remote) {
          EXPECT_TRUE(to->fetch(data.data()).ok());
        } else if (a.bytes > 0) {
          std::memcpy(data.data(), a.data, a.bytes);
          EXPECT_TRUE(fits || a.data < memory || a.data >= memory + bytes) << received;
        }
        EXPECT_TRUE(data == s.data) << received;
        if (fits && a.data != s.place) std::copy(data.begin(), data.end(), s.place);
        to->release();
        ++received;
      }
      return received == all.size() || HasFailure();
    }));
    EXPECT_TRUE(std::equal(should.begin(), should.end(), memory)) << "allocated " << allocated;
    fabric_.reset();
  }
}

// A preamble in the midst of what is expected begins another call, which the receiver has not looked at yet.
TEST_P(Conformance, NothingLandsBehindAPreambleInTheMidstOfWhatIsExpected) {
  for (const int lane : {0, kMessageLane}) {
    ASSERT_NO_FATAL_FAILURE(build(2));
    const size_t piece = std::min<size_t>(rank(0).capabilities().slot_bytes, 100000);
    Link* from = rank(0).open(1, lane);
    Link* to = rank(1).open(0, lane);
    constexpr uint64_t kPieces = 60, kPreamble = 30;
    auto region = allocate_buffer<std::byte>(kPieces * piece);
    ASSERT_TRUE(region.ok());
    std::byte* const memory = region->get();
    std::fill_n(memory, kPieces * piece, std::byte{0x5A});
    to->expect(0, memory, kPieces * piece, piece);
    const Preamble preamble = preamble_of(1);
    std::vector<Bytes> sent;
    for (uint64_t k = 0; k < kPieces; ++k) sent.push_back(pattern(23, k, piece));
    uint64_t put = 0, received = 0;
    ASSERT_TRUE(pump_until([&] {
      for (; put < kPieces && from->writable(); ++put) {
        from->put(sent[put].data(), piece, put == kPreamble ? &preamble : nullptr);
      }
      Arrival a;
      while (received < kPieces &&
             to->arrived(&a, received < kPreamble ? memory + received * piece : nullptr, piece)) {
        Bytes data(a.bytes);
        if (a.remote) {
          EXPECT_TRUE(to->fetch(data.data()).ok());
        } else {
          std::memcpy(data.data(), a.data, a.bytes);
        }
        EXPECT_TRUE(data == sent[received]) << received;
        to->release();
        ++received;
      }
      return received == kPieces || HasFailure();
    }));
    EXPECT_TRUE(std::all_of(memory + kPreamble * piece, memory + kPieces * piece,
                            [](std::byte b) { return b == std::byte{0x5A}; }))
        << "lane " << lane;
    fabric_.reset();
  }
}

TEST_P(Conformance, AllLanesOfAllPeersRunAtOnceAndDoNotMix) {
  constexpr int kRanks = 4;
  constexpr uint64_t kMessages = 25;
  ASSERT_NO_FATAL_FAILURE(build(kRanks));
  struct Stream {
    Link *from, *to;
    uint64_t id = 0, received = 0;
    std::vector<Bytes> sources;
  };
  std::vector<Stream> streams;
  for (int i = 0; i < kRanks; ++i) {
    for (int j = 0; j < kRanks; ++j) {
      for (int lane = 0; i != j && lane < kLanes; ++lane) {
        Link* from = rank(i).open(j, lane);
        ASSERT_EQ(from, rank(i).open(j, lane)) << "a link is opened once";
        streams.push_back({from, rank(j).open(i, lane), streams.size()});
      }
    }
  }
  const size_t largest = std::min<size_t>(rank(0).capabilities().slot_bytes, 40000);
  std::mt19937_64 random(3);
  for (auto& s : streams) {
    for (uint64_t k = 0; k < kMessages; ++k) {
      s.sources.push_back(pattern(s.id, k, random() % (random() % 8 == 0 ? largest : 100)));
    }
  }
  ASSERT_TRUE(pump_until([&] {
    bool done = true;
    for (auto& s : streams) {
      if (s.from->issued() < kMessages && s.from->writable()) {
        const Bytes& source = s.sources[s.from->issued()];
        s.from->put(source.data(), source.size(), nullptr);
      }
      Arrival arrival;
      if (s.to->arrived(&arrival, nullptr, 0)) {
        Bytes data(arrival.bytes);
        if (arrival.remote) {
          EXPECT_TRUE(s.to->fetch(data.data()).ok());
        } else if (!data.empty()) {
          std::memcpy(data.data(), arrival.data, data.size());
        }
        EXPECT_TRUE(data == s.sources[s.received]) << "stream " << s.id << " message " << s.received;
        ++s.received;
        s.to->release();
      }
      done &= s.received == kMessages && s.from->retired() == kMessages;
    }
    return done || HasFailure();
  }));
}

TEST_P(Conformance, AnOpenedLaneIsWantedByThePeerOnly) {
  ASSERT_NO_FATAL_FAILURE(build(3));
  EXPECT_FALSE(rank(1).wanted(kMessageLane));
  Link* from = rank(0).open(1, kMessageLane);
  ASSERT_TRUE(pump_until([&] { return rank(1).wanted(kMessageLane); }));
  EXPECT_FALSE(rank(1).wanted(0));
  EXPECT_FALSE(rank(0).wanted(kMessageLane));
  EXPECT_FALSE(rank(2).wanted(kMessageLane));
  Link* to = rank(1).open(0, kMessageLane);
  const Bytes data = pattern(17, 0, 300);
  ASSERT_NO_FATAL_FAILURE(send(from, data));
  EXPECT_EQ(receive(to).data, data);
  EXPECT_TRUE(pump_until([&] { return rank(0).wanted(kMessageLane); }));
  EXPECT_TRUE(rank(1).wanted(kMessageLane)) << "sticky";
}

TEST_P(Conformance, CountersTellWhatWasPut) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  Link* from = rank(0).open(1, 0);
  Link* to = rank(1).open(0, 0);
  std::deque<Bytes> sources;
  uint64_t bytes = 0;
  for (size_t size : {size_t{0}, size_t{100}, rank(0).capabilities().slot_bytes}) {
    sources.push_back(pattern(1, 1, size));
    ASSERT_NO_FATAL_FAILURE(send(from, sources.back()));
    receive(to);
    bytes += size;
  }
  EXPECT_EQ(rank(0).counters().puts, 3u);
  EXPECT_EQ(rank(0).counters().put_bytes, bytes);
  EXPECT_EQ(rank(1).counters().puts, 0u);
}

TEST_P(Conformance, AStopIsSeenByThePeers) {
  ASSERT_NO_FATAL_FAILURE(build(3));
  Link* gone = rank(1).open(0, 0);
  Link* back = rank(0).open(1, 0);
  Link* other = rank(0).open(2, 4);
  Link* gone_too = rank(2).open(0, 4);
  Link* alive = rank(1).open(2, 0);
  rank(2).open(1, 0);
  // All have met rank 0: of those that have not, the control connections tell.
  for (Link* l : {gone, back, other, gone_too, alive}) ASSERT_TRUE(pump_until([&] { return l->writable(); }));
  EXPECT_EQ(rank(1).failure(), nullptr);
  rank(0).stop();
  rank(0).stop();  // idempotent
  for (int r : {1, 2}) {
    ASSERT_TRUE(pump_until([&] { return rank(r).failure() != nullptr; }, std::chrono::seconds(5))) << "rank " << r;
    EXPECT_EQ(rank(r).failure()->peer, 0);
    EXPECT_FALSE(rank(r).failure()->status.ok());
    EXPECT_FALSE(rank(r).failure()->status.message().empty());
  }
  Arrival arrival;
  EXPECT_FALSE(gone->writable());
  EXPECT_FALSE(gone->arrived(&arrival, nullptr, 0));
}

// As after a failure, when the memory that was put goes back to its owner.
TEST_P(Conformance, AbandoningEndsAllTrafficAtOnce) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  Link* from = rank(0).open(1, 0);
  Link* to = rank(1).open(0, 0);
  ASSERT_TRUE(pump_until([&] { return from->writable() && to->writable(); }));
  const Bytes data = pattern(1, 2, 50);
  from->put(data.data(), data.size(), nullptr);
  to->put(data.data(), data.size(), nullptr);
  for (int r : {0, 1}) {
    rank(r).abandon();
    rank(r).abandon();  // idempotent, as stop() is
    rank(r).stop();
    EXPECT_FALSE((r == 0 ? from : to)->writable()) << r;
    EXPECT_FALSE(rank(r).open(1 - r, 2)->writable()) << r;
  }
}

// A rank may leave when its own part is done, while the others still read what it sent last, and sleep meanwhile.
TEST_P(Conformance, WhatWasPutBeforeAStopArrives) {
  ASSERT_NO_FATAL_FAILURE(build(2));
  Link* from = rank(0).open(1, 0);
  Link* to = rank(1).open(0, 0);
  const Bytes data = pattern(1, 2, 50);
  const int sent = std::min(2, rank(0).capabilities().slots);
  for (int k = 0; k < sent; ++k) {
    ASSERT_TRUE(pump_until([&] { return from->writable(); }));
    std::memcpy(from->reserve(data.size()), data.data(), data.size());  // no memory of the leaver's is needed
    from->commit(data.size(), nullptr);
  }
  Arrival arrival;
  ASSERT_TRUE(pump_until([&] { return to->announced(&arrival, data.size()); }));
  auto doze = [&] {
    for (int i = 0; i < 3; ++i) {
      rank(1).progress();
      rank(1).prepare_to_sleep();
      rank(1).awake();
    }
  };
  doze();
  rank(0).stop();
  doze();
  for (int k = 0; k < sent; ++k) EXPECT_EQ(receive(to).data, data);
  EXPECT_TRUE(pump_until([&] { return rank(1).failure() != nullptr; }, std::chrono::seconds(5)));
}

}  // namespace ringfold::transport::test
