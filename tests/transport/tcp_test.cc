// What TCP links carry, and how they end; how they come about is in tcp_wiring_test.cc.
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "tests/transport/tcp_ranks.h"

namespace ringfold::transport::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

FabricKind kind(std::string name, const tcp::Options& options) {
  FabricKind k{std::move(name), [options](int n) { return fabric(n, options); }};
  k.exact_credit = false;
  return k;
}

// Every put of 64 KiB and more is written and read in many pieces.
tcp::Options tiny_buffers(int streams) {
  tcp::Options options = options_for("127.0.0.1", streams);
  options.send_buffer = options.receive_buffer = 4096;
  options.slots = 3;
  return options;
}

INSTANTIATE_TEST_SUITE_P(Tcp, Conformance,
                         testing::Values(kind("ipv4", options_for("127.0.0.1")), kind("ipv6", options_for("::1")),
                                         kind("ipv4_streams3", options_for("127.0.0.1", 3)),
                                         kind("ipv6_streams3", options_for("::1", 3)),
                                         kind("tiny_buffers", tiny_buffers(1)),
                                         kind("tiny_buffers_streams3", tiny_buffers(3))),
                         fabric_name);

// ---- data ----

// Frames just below and above what is sent as one piece, more of them than the system takes: some are cut anywhere.
TEST(Tcp, SmallFramesAreWholeBehindAFullSocket) {
  tcp::Options options = tiny_buffers(1);
  options.send_buffer = 256 << 10;  // the system gathers what waits there in large pieces, and cuts where one is full
  Pair p(options);
  ASSERT_TRUE(p.connect());
  constexpr size_t kSizes[] = {0, 1, 40, 511, 512, 513, 700};
  constexpr size_t kPuts = 5000;
  std::vector<std::byte> bytes(4096);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 37 >> 3);
  const auto source = [&](size_t k) { return bytes.data() + k % 3000; };
  size_t put = 0, got = 0, full = 0, rounds = 0;
  const auto round = [&](bool read) {
    // In turns one that waits alone and as many as may wait.
    const auto room = [&] { return rounds % 2 == 0 ? p.to_b->retired() == p.to_b->issued() : p.to_b->writable(); };
    for (; put < kPuts && room(); ++put) {
      const Preamble preamble{{put, put + 1, put + 2}};
      p.to_b->put(source(put), kSizes[put % std::size(kSizes)], put % 3 == 0 ? &preamble : nullptr);
    }
    full += put < kPuts;
    ++rounds;
    for (Arrival a; read && p.to_a->arrived(&a, nullptr, 0); ++got) {
      ASSERT_EQ(a.bytes, kSizes[got % std::size(kSizes)]);
      ASSERT_EQ(a.preamble != nullptr, got % 3 == 0);
      if (a.preamble) {
        ASSERT_EQ(*a.preamble, (Preamble{{got, got + 1, got + 2}}));
      }
      if (a.bytes > 0) {
        ASSERT_EQ(std::memcmp(a.data, source(got), a.bytes), 0);
      }
      p.to_a->release();
    }
  };
  round(false);
  EXPECT_LT(put, kPuts) << "the socket never filled";
  ASSERT_TRUE(p.pump([&] { return round(true), got == kPuts || testing::Test::HasFatalFailure(); }));
  EXPECT_EQ(got, kPuts);
  EXPECT_GT(full, 1u);
}

// Both write far more than the kernel takes before either reads.
TEST(TcpData, TwoRanksThatOnlyWriteDoNotBlockEachOther) {
  for (int streams : {1, 3}) {
    Pair p(tiny_buffers(streams));
    ASSERT_TRUE(p.connect());
    const auto data = some_bytes(256 << 10, 5);
    std::vector<std::byte> landing(data.size());
    int sent[2] = {0, 0}, got[2] = {0, 0};
    Link* ends[2] = {p.to_b, p.to_a};
    for (int i : {0, 1}) {
      for (; ends[i]->writable(); ++sent[i]) ends[i]->put(data.data(), data.size(), nullptr);
      EXPECT_EQ(sent[i], 3);
      EXPECT_EQ(ends[i]->retired(), 0u) << "far from being written";
    }
    EXPECT_TRUE(p.pump([&] {
      for (int i : {0, 1}) {
        Arrival arrival;
        if (!ends[i]->arrived(&arrival, i == 0 ? landing.data() : nullptr, i == 0 ? landing.size() : 0)) continue;
        EXPECT_EQ(arrival.data == landing.data(), i == 0);
        EXPECT_EQ(std::memcmp(arrival.data, data.data(), data.size()), 0);
        ends[i]->release();
        ++got[i];
      }
      return got[0] == 3 && got[1] == 3;
    }));
    EXPECT_EQ(p.to_a->retired(), 3u);
  }
}

// Its owner may turn to something else then, or end.
TEST(TcpData, ARetiredPutArrivesWithoutFurtherCallsOnTheSendersSide) {
  auto options = tiny_buffers(1);
  options.slots = 64;
  Pair p(options);
  ASSERT_TRUE(p.connect());
  std::vector<std::vector<std::byte>> sources;
  while (p.to_b->writable()) {
    sources.push_back(some_bytes(1000, static_cast<unsigned>(sources.size())));
    p.to_b->put(sources.back().data(), sources.back().size(), nullptr);
  }
  const uint64_t retired = p.to_b->retired();
  ASSERT_GE(retired, 1u);
  ASSERT_EQ(p.to_b->issued() - retired, 64u);
  uint64_t got = 0;
  const auto receive = [&] {
    Arrival arrival;
    while (p.to_a->arrived(&arrival, nullptr, 0)) {
      EXPECT_EQ(arrival.bytes, 1000u);
      EXPECT_EQ(std::memcmp(arrival.data, sources[got].data(), 1000), 0);
      ++got;
      p.to_a->release();
    }
    return got >= retired;
  };
  EXPECT_TRUE(pump({&p.b}, receive));
  EXPECT_EQ(got, retired);
  p.a.stop();
  EXPECT_TRUE(pump({&p.b}, [&] {
    receive();
    return p.b.failure() != nullptr;
  }));
  EXPECT_NE(p.b.failure()->status.message().find("in the middle of a message"), std::string::npos);
}

// Announcing what comes costs its sender time, and only a sleeper needs it.
TEST(TcpSleep, NothingIsAnnouncedToAnOwnerThatIsAwakeForLongAndItMissesNothing) {
  Pair p(options_for("127.0.0.1"));
  ASSERT_TRUE(p.connect());
  const auto readable = [&](int ms) {
    pollfd wake{p.a.wake_fd(), POLLIN, 0};
    return ::poll(&wake, 1, ms) == 1;
  };
  const auto stay_awake = [&] {  // and be done with connecting, during which events are asked for each time
    return pump({&p.a}, [&] {
      const uint64_t before = p.a.counters().system_calls;
      for (int i = 0; i < 128; ++i) p.a.progress();
      return p.a.counters().system_calls - before <= 8;
    });
  };
  Arrival arrival;
  std::byte bytes[8] = {};
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(stay_awake());
    EXPECT_FALSE(p.to_b->arrived(&arrival, nullptr, 0));
    p.to_a->put(bytes, sizeof bytes, nullptr);
    EXPECT_FALSE(readable(20));
    EXPECT_FALSE(p.a.prepare_to_sleep()) << "what has come since the owner looked would be slept over";
    p.a.awake();
    ASSERT_TRUE(p.to_b->arrived(&arrival, nullptr, 0));
    p.to_b->release();
    EXPECT_FALSE(p.to_b->arrived(&arrival, nullptr, 0));
    ASSERT_TRUE(p.a.prepare_to_sleep());
    EXPECT_FALSE(readable(0));
    p.to_a->put(bytes, sizeof bytes, nullptr);
    EXPECT_TRUE(readable(10000));
    p.a.awake();
    ASSERT_TRUE(p.to_b->arrived(&arrival, nullptr, 0));
    p.to_b->release();
  }
  ASSERT_TRUE(stay_awake());
  p.b.stop();  // on a link that nobody reads
  EXPECT_TRUE(pump({&p.a}, [&] { return p.a.failure() != nullptr; }));
}

TEST(TcpData, LargePutsLandWithoutACopyAndSmallOnesShareReads) {
  Pair p(options_for("127.0.0.1"));
  ASSERT_TRUE(p.connect());
  const auto data = some_bytes(256 << 10, 5);
  std::vector<std::byte> landing(data.size());
  Arrival arrival;
  for (int k = 0; k < 10; ++k) {
    p.to_b->put(data.data(), data.size(), nullptr);
    ASSERT_TRUE(p.pump([&] { return p.to_a->arrived(&arrival, landing.data(), landing.size()); }));
    ASSERT_EQ(arrival.data, landing.data());
    ASSERT_TRUE(landing == data);
    p.to_a->release();
  }
  EXPECT_LT(p.b.counters().copied_bytes, 10 * 32u) << "but for what lay behind a header";
  const uint64_t before = p.b.counters().system_calls;
  for (int k = 0; k < 100; ++k) {
    ASSERT_TRUE(p.pump([&] { return p.to_b->writable(); }));
    p.to_b->put(data.data(), 32, nullptr);
  }
  int got = 0;
  while (p.to_a->arrived(&arrival, nullptr, 0)) {
    ++got;
    p.to_a->release();
  }
  EXPECT_EQ(got, 100);
  EXPECT_LE(p.b.counters().system_calls - before, 10u);
}

TEST(TcpData, AnOddSizedPutDoesNotMisalignTheNextOne) {
  Pair p(options_for("127.0.0.1"));
  ASSERT_TRUE(p.connect());
  const auto data = some_bytes(64, 1);
  for (size_t size : {3, 16, 5, 24, 1, 8}) p.to_b->put(data.data(), size, nullptr);
  for (size_t size : {3, 16, 5, 24, 1, 8}) {
    Arrival arrival;
    ASSERT_TRUE(p.pump([&] { return p.to_a->arrived(&arrival, nullptr, 0); }));
    ASSERT_EQ(arrival.bytes, size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(arrival.data) % 8, 0u);
    EXPECT_EQ(std::memcmp(arrival.data, data.data(), size), 0);
    p.to_a->release();
  }
}

// ---- the end of a peer ----

TEST(TcpEnd, WhatWasSentBeforeTheEndArrivesFirst) {
  Pair p(options_for("127.0.0.1"));
  ASSERT_TRUE(p.connect());
  const auto data = some_bytes(500, 5);
  for (int k = 0; k < 3; ++k) p.to_b->put(data.data(), data.size(), nullptr);
  p.a.stop();
  EXPECT_FALSE(pump(
      {&p.b}, [&] { return p.b.failure() != nullptr; }, milliseconds(100)))
      << "there is unread data";
  int got = 0;
  EXPECT_TRUE(pump({&p.b}, [&] {
    Arrival arrival;
    if (p.to_a->arrived(&arrival, nullptr, 0)) {
      ++got;
      p.to_a->release();
    }
    return p.b.failure() != nullptr;
  }));
  EXPECT_EQ(got, 3);
  const Failure& failure = *p.b.failure();
  EXPECT_EQ(failure.peer, 0);
  EXPECT_EQ(failure.status.code(), Code::kPeerLost);
  const std::string text = failure.status.message();
  EXPECT_NE(text.find("rank 0 closed its links"), std::string::npos) << text;
  EXPECT_NE(text.find("127.0.0.1:"), std::string::npos) << text;
  EXPECT_NE(text.find("1524 bytes received"), std::string::npos) << text;
}

// Two processes; the child is rank 1 and ends in the way given.
template <typename End>
void expect_loss(End end, const char* words) {
  auto a = tcp::make(0, 2, 5, 1, options_for("127.0.0.1")).value();
  const std::string address = a->address();
  const pid_t child = ::fork();
  if (child == 0) {
    auto b = tcp::make(1, 2, 5, 1, options_for("127.0.0.1")).value();
    if (!b->add_peer(0, address).ok()) ::_exit(2);
    Link* link = b->open(0, 0);
    const auto data = some_bytes(100 << 10, 9);
    Arrival arrival;
    const bool talked = pump({b.get()}, [&] {
      if (link->writable() && link->issued() == 0) link->put(data.data(), data.size(), nullptr);
      return link->issued() == 1 && link->retired() == 1 && link->arrived(&arrival, nullptr, 0);
    });
    end(*b);
    ::_exit(talked ? 0 : 3);
  }
  Link* link = a->open(1, 0);
  const auto data = some_bytes(100 << 10, 9);
  bool got = false;
  EXPECT_TRUE(pump({a.get()}, [&] {
    Arrival arrival;
    // Only then may the child end: a reset throws away what is still on its way.
    if (got && link->writable() && link->issued() == 0) link->put(data.data(), data.size(), nullptr);
    if (link->arrived(&arrival, nullptr, 0)) {
      got = arrival.bytes == data.size() && std::memcmp(arrival.data, data.data(), data.size()) == 0;
      link->release();
    }
    return a->failure() != nullptr;
  }));
  EXPECT_TRUE(got);
  ASSERT_NE(a->failure(), nullptr);
  EXPECT_EQ(a->failure()->peer, 1);
  const std::string text = a->failure()->status.message();
  EXPECT_NE(text.find("rank 1"), std::string::npos);
  EXPECT_NE(text.find(words), std::string::npos) << text;
  EXPECT_NE(text.find(address.substr(0, address.find(' '))), std::string::npos) << "no endpoint: " << text;
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) || WEXITSTATUS(status) == 0) << WEXITSTATUS(status);
}

TEST(TcpEnd, AProcessThatStopsItsTransportIsNamed) {
  expect_loss([](Transport& t) { t.stop(); }, "closed its links");
}

TEST(TcpEnd, AKilledProcessIsNamed) {
  expect_loss([](Transport&) { ::raise(SIGKILL); }, "closed its links");
}

TEST(TcpEnd, AResetConnectionIsNamed) {
  expect_loss(
      [](Transport&) {
        const linger hard{1, 0};
        for (int fd = 3; fd < 200; ++fd) {
          if (::setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard) == 0) ::close(fd);
        }
      },
      "Connection reset by peer");
}

TEST(TcpEnd, StopAndDestructionLeaveNoDescriptorsBehind) {
  const auto count = [] {
    int n = 0;
    for (int fd = 0; fd < 1024; ++fd) n += ::fcntl(fd, F_GETFD) >= 0;
    return n;
  };
  const int before = count();
  {
    Pair p(options_for("127.0.0.1", 3));
    Stranger s(p.a);
    ASSERT_TRUE(p.connect());
    ASSERT_GT(count(), before + 6);
  }
  EXPECT_EQ(count(), before);
}

}  // namespace
}  // namespace ringfold::transport::test
