#include "transports/tcp/tcp.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <thread>

#include "tests/transport/conformance.h"

namespace ringfold::transport::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

base::Key key_of(std::string_view text) { return base::Key::parse(text).value(); }

tcp::Options options_for(std::string address, int streams = 1) {
  tcp::Options options;
  options.key = key_of("the key of the tests of TCP links");
  options.listen_address = std::move(address);
  options.streams = streams;
  return options;
}

Fabric fabric(int n, const tcp::Options& options) {
  Fabric f;
  for (int r = 0; r < n; ++r) {
    auto made = tcp::make(r, n, 77, 3, options);
    if (!made.ok()) {
      ADD_FAILURE() << made.status().to_string();
      return f;
    }
    f.ranks.push_back(std::move(made).value());
  }
  wire(f.ranks);
  return f;
}

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

// ---- helpers ----

bool pump(const std::vector<Transport*>& ranks, const std::function<bool()>& done, milliseconds limit = seconds(20)) {
  const auto end = steady_clock::now() + limit;
  for (;;) {
    for (Transport* r : ranks) r->progress();
    if (done()) return true;
    if (steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
}

struct Pair {
  explicit Pair(const tcp::Options& options) : f(fabric(2, options)), a(*f.ranks[0]), b(*f.ranks[1]) {}
  bool pump(const std::function<bool()>& done, milliseconds limit = seconds(20)) {
    return test::pump({&a, &b}, done, limit);
  }
  bool connect(int lane = 0) {
    to_b = a.open(1, lane);
    to_a = b.open(0, lane);
    return pump([&] { return to_b->writable() && to_a->writable(); });
  }
  Fabric f;
  Transport &a, &b;
  Link *to_a = nullptr, *to_b = nullptr;
};

sockaddr_in listener_of(const Transport& t) {  // "127.0.0.1:PORT NONCE"
  const std::string text = t.address();
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(std::stoi(text.substr(text.find(':') + 1))));
  return address;
}

// A connection of somebody who is not a rank.
class Stranger {
 public:
  explicit Stranger(const Transport& victim) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const sockaddr_in to = listener_of(victim);
    connected_ = ::connect(fd_, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0;
    ::fcntl(fd_, F_SETFL, O_NONBLOCK);
  }
  Stranger(Stranger&& other) noexcept : fd_(std::exchange(other.fd_, -1)), connected_(other.connected_) {}
  ~Stranger() { close(); }
  bool connected() const { return connected_; }
  void say(std::string_view bytes) { (void)!::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }
  std::string hear() {
    char bytes[4096];
    const ssize_t n = ::recv(fd_, bytes, sizeof bytes, 0);
    return n > 0 ? std::string(bytes, static_cast<size_t>(n)) : "";
  }
  bool turned_away() {
    char byte;
    const ssize_t n = ::recv(fd_, &byte, 1, 0);
    return n == 0 || (n < 0 && errno != EAGAIN);
  }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  // So that close() sends a reset.
  void reset() {
    const linger hard{1, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close();
  }

 private:
  int fd_;
  bool connected_ = false;
};

std::vector<std::byte> some_bytes(size_t n, unsigned seed) {
  std::vector<std::byte> bytes(n);
  std::mt19937 random(seed);
  for (auto& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

// ---- strangers ----

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

TEST(TcpStrangers, GarbagePortScansAndResetsDoNotDisturbALink) {
  Pair p(options_for("127.0.0.1"));
  std::mt19937 random(1);
  std::vector<Stranger> strangers;
  for (int i = 0; i < 60; ++i) {
    Stranger s(p.a);
    ASSERT_TRUE(s.connected());
    if (i % 5 == 0) s.close();
    if (i % 5 == 1) s.reset();
    if (i % 5 == 2) s.say("GET / HTTP/1.1\r\n\r\n");
    if (i % 5 == 3) {
      const auto bytes = some_bytes(random() % 3000, random());
      s.say({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    }
    strangers.push_back(std::move(s));
  }
  ASSERT_TRUE(p.connect());
  const auto data = some_bytes(1000, 1);
  p.to_b->put(data.data(), data.size(), nullptr);
  Arrival arrival;
  ASSERT_TRUE(p.pump([&] { return p.to_a->arrived(&arrival, nullptr, 0); }));
  EXPECT_EQ(std::memcmp(arrival.data, data.data(), data.size()), 0);
  EXPECT_EQ(p.a.failure(), nullptr);
  EXPECT_EQ(p.b.failure(), nullptr);
}

TEST(TcpStrangers, AWrongKeyOrARankOfAnotherCommunicatorIsTurnedAwayAndTheRightOneServed) {
  Pair p(options_for("127.0.0.1"));
  auto other_key = options_for("127.0.0.1");
  other_key.key = key_of("the key of somebody else's job");
  auto impostor = tcp::make(1, 2, 77, 3, other_key).value();
  auto other_epoch = tcp::make(1, 2, 77, 4, options_for("127.0.0.1")).value();
  for (Transport* t : {impostor.get(), other_epoch.get()}) {
    ASSERT_TRUE(t->add_peer(0, p.a.address()).ok());
    Link* link = t->open(0, 0);
    EXPECT_FALSE(pump(
        {&p.a, t}, [&] { return link->writable() || p.a.failure() || t->failure(); }, milliseconds(300)));
  }
  EXPECT_FALSE(p.a.wanted(0));
  EXPECT_TRUE(p.connect());
  EXPECT_EQ(p.a.failure(), nullptr);
}

TEST(TcpStrangers, SlowOnesAreBoundedInNumberAndTimeAndKeepNobodyOut) {
  auto options = options_for("127.0.0.1");
  options.half_open = 4;
  options.handshake_timeout = milliseconds(600);
  Pair p(options);
  std::vector<Stranger> slow;
  for (int i = 0; i < 12; ++i) {
    slow.emplace_back(p.a);
    slow.back().say("RING");  // and then nothing
  }
  const auto gone = [&] {
    int n = 0;
    for (auto& s : slow) n += s.turned_away();
    return n;
  };
  ASSERT_TRUE(p.pump([&] { return gone() >= 8; }, milliseconds(500))) << "more than 4 are held";
  EXPECT_TRUE(p.pump([&] { return gone() == 12; }, seconds(10))) << "they are held for ever";
  // One that drips a byte now and then is held no longer, and honest ranks come through meanwhile.
  Stranger drip(p.a);
  const auto begin = steady_clock::now();
  EXPECT_TRUE(p.connect());
  EXPECT_TRUE(p.pump(
      [&] {
        drip.say("R");
        return drip.turned_away();
      },
      seconds(10)));
  EXPECT_LT(steady_clock::now() - begin, seconds(5));
}

// The sleeping owner is woken by its timer to end a stranger's time.
TEST(TcpStrangers, DeadlinesPassWhileTheOwnerSleeps) {
  auto options = options_for("127.0.0.1");
  options.handshake_timeout = milliseconds(100);
  auto t = tcp::make(0, 2, 1, 1, options).value();
  Stranger s(*t);
  const auto end = steady_clock::now() + seconds(5);
  while (!s.turned_away() && steady_clock::now() < end) {
    t->progress();
    pollfd wake{t->wake_fd(), POLLIN, 0};
    if (t->prepare_to_sleep() && !s.turned_away()) {
      EXPECT_EQ(::poll(&wake, 1, 3000), 1);
    }
    t->awake();
  }
  EXPECT_TRUE(s.turned_away());
}

// ---- wiring ----

TEST(TcpWiring, TheListenerIsOnTheGivenAddressOnly) {
  auto t = tcp::make(0, 2, 1, 1, options_for("127.0.0.1")).value();
  sockaddr_in to = listener_of(*t);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1);  // 127.0.0.2 is this host, too
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_NE(::connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to), 0);
  ::close(fd);
}

TEST(TcpWiring, ImpossibleOptionsAndAddressesAreRefusedInWords) {
  auto refused = [](auto change) {
    auto options = options_for("127.0.0.1");
    change(options);
    auto made = tcp::make(0, 2, 1, 1, options);
    EXPECT_FALSE(made.ok());
    EXPECT_FALSE(made.status().message().empty());
  };
  refused([](auto& o) { o.key.reset(); });
  refused([](auto& o) { o.listen_address = "eth0"; });
  refused([](auto& o) { o.listen_address = "192.0.2.1"; });  // nobody's address
  refused([](auto& o) { o.listen_address = "0.0.0.0"; });    // a wildcard without an address to publish
  refused([](auto& o) { o.slot_bytes = 64 << 20; });
  refused([](auto& o) { o.streams = 0; });
  refused([](auto& o) { o.slots = 0; });
  refused([](auto& o) { o.congestion = "no-such-control"; });
  auto t = tcp::make(0, 2, 1, 1, options_for("127.0.0.1")).value();
  const std::string nonce = t->address().substr(t->address().find(' '));
  EXPECT_TRUE(t->add_peer(1, "127.0.0.1:4000" + nonce).ok());
  for (const std::string& bad :
       {std::string(), nonce, "127.0.0.1:4000" + std::string(), "127.0.0.1:" + nonce, "127.0.0.1:70000" + nonce,
        "127.0.0.1:0" + nonce, "host:40" + nonce, "0.0.0.0:40" + nonce,
        std::string("127.0.0.1:4000 00000000000000ff"), "10.0.0.1:40" + nonce}) {
    EXPECT_FALSE(t->add_peer(1, bad).ok()) << bad;
  }
}

TEST(TcpWiring, AWildcardWorksWhenAskedForWithAnAddressToPublish) {
  auto options = options_for("0.0.0.0");
  options.publish_address = "127.0.0.1";
  Pair p(options);
  EXPECT_EQ(p.a.address().substr(0, 10), "127.0.0.1:");
  EXPECT_TRUE(p.connect());
}

TEST(TcpWiring, APeerThatOpensLateIsConnectedThen) {
  Pair p(options_for("127.0.0.1"));
  p.to_a = p.b.open(0, 2);
  EXPECT_TRUE(p.pump([&] { return p.a.wanted(2); }));
  EXPECT_FALSE(p.a.wanted(1));
  EXPECT_TRUE(p.connect(2));
}

TEST(TcpWiring, ALowerRankThatOpensALaneIsNoticedByTheHigherOne) {
  Pair p(options_for("127.0.0.1", 2));
  p.to_b = p.a.open(1, kMessageLane);
  EXPECT_TRUE(p.pump([&] { return p.b.wanted(kMessageLane); }));
  EXPECT_FALSE(p.b.wanted(0));
  EXPECT_TRUE(p.connect(kMessageLane));
  EXPECT_EQ(p.a.failure(), nullptr);
}

// The port of a rank that is not there yet refuses connections, or belongs to somebody who does not know the key.
TEST(TcpWiring, DiallingGoesOnUntilTheRightPeerIsThere) {
  auto b = tcp::make(1, 2, 77, 3, options_for("127.0.0.1")).value();
  auto other_options = options_for("127.0.0.1");
  other_options.key = key_of("the key of somebody else's job");
  auto wrong = tcp::make(0, 2, 77, 3, other_options).value();
  ASSERT_TRUE(b->add_peer(0, wrong->address()).ok());
  Link* link = b->open(0, 0);
  EXPECT_FALSE(pump(
      {b.get(), wrong.get()}, [&] { return link->writable() || b->failure(); }, milliseconds(100)));
  wrong->stop();
  EXPECT_FALSE(pump(
      {b.get()}, [&] { return link->writable() || b->failure(); }, milliseconds(100)));
  auto a = tcp::make(0, 2, 77, 3, options_for("127.0.0.1")).value();
  ASSERT_TRUE(b->add_peer(0, a->address()).ok());
  Link* back = a->open(1, 0);
  EXPECT_TRUE(pump({a.get(), b.get()}, [&] { return link->writable() && back->writable(); }));
}

TEST(TcpWiring, AnotherSetUpIsAMismatchThatNamesBoth) {
  auto a = tcp::make(0, 2, 77, 3, options_for("127.0.0.1")).value();
  auto other = options_for("127.0.0.1");
  other.slot_bytes = 64 << 10;
  auto b = tcp::make(1, 2, 77, 3, other).value();
  ASSERT_TRUE(b->add_peer(0, a->address()).ok());
  a->open(1, 0);
  b->open(0, 0);
  ASSERT_TRUE(pump({a.get(), b.get()}, [&] { return a->failure() && b->failure(); }));
  EXPECT_EQ(a->failure()->peer, 1);
  EXPECT_EQ(b->failure()->status.code(), Code::kMismatch);
  for (const std::string& size :
       {std::to_string(options_for("127.0.0.1").slot_bytes), std::to_string(other.slot_bytes)}) {
    EXPECT_NE(a->failure()->status.message().find(size), std::string::npos);
  }
}

// ---- data ----

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
