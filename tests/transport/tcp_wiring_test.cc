// How TCP links come about, and who is kept out of them.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "tests/transport/tcp_ranks.h"
#include "transports/tcp/congestion.h"

namespace ringfold::transport::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

// ---- strangers ----

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

// On both sides of a link: the one that dials, and the one that is dialled.
TEST(TcpWiring, APeerThatEndedBeforeItsFirstLinkIsMissed) {
  for (int left : {0, 1}) {
    auto f = fabric(2, options_for("127.0.0.1"));
    f.ranks[static_cast<size_t>(left)].reset();
    Transport& other = *f.ranks[static_cast<size_t>(1 - left)];
    other.open(left, 0);
    ASSERT_TRUE(pump(
        {&other}, [&] { return other.failure() != nullptr; }, seconds(20)));
    EXPECT_EQ(other.failure()->peer, left);
    EXPECT_EQ(other.failure()->status.code(), Code::kPeerLost);
  }
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

// The control of each of this process's TCP sockets, and whether it listens.
std::vector<std::pair<std::string, bool>> controls() {
  std::vector<std::pair<std::string, bool>> found;
  for (int fd = 0; fd < 1024; ++fd) {
    char name[16] = {};
    int listens = 0;
    socklen_t length = sizeof name - 1, size = sizeof listens;
    if (getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &length) != 0) continue;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) != 0) continue;
    found.emplace_back(name, listens != 0);
  }
  return found;
}

// A listener hands its control on before anything else can pace the connection.
TEST(TcpWiring, SocketsOfTheLoopbackInterfaceHaveAControlThatDoesNotPace) {
  Pair p(options_for("127.0.0.1"));
  const auto before = controls();
  EXPECT_EQ(std::count(before.begin(), before.end(), std::pair<std::string, bool>("reno", true)), 2);
  ASSERT_TRUE(p.connect());
  const auto after = controls();
  EXPECT_GE(after.size(), before.size() + 2);
  for (const auto& [name, listens] : after) EXPECT_EQ(name, "reno") << (listens ? "listens" : "connected");
}

TEST(TcpWiring, BbrIsLeftToPathsThatLeadThroughRouters) {
  using boost::asio::ip::make_address;
  const std::vector<tcp::Subnet> subnets = {{{10, 1, 2, 3}, {255, 255, 252, 0}},
                                            {{0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7},
                                             {255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0}}};
  const auto control = [&](const char* peer, const char* usual) {
    return tcp::congestion_for(make_address(peer), usual, subnets);
  };
  for (const char* usual : {"bbr", "cubic", "dctcp"}) {
    for (const char* here : {"127.0.0.1", "127.9.9.9", "::1"}) EXPECT_EQ(control(here, usual), "reno");
    for (const char* far : {"10.1.4.1", "10.0.255.255", "192.168.1.1", "fd01:0:0:1::1"}) {
      EXPECT_EQ(control(far, usual), usual);
    }
  }
  for (const char* near : {"10.1.2.3", "10.1.0.1", "10.1.3.255", "fd01::ffff:1"}) {
    EXPECT_EQ(control(near, "bbr"), "cubic");
    EXPECT_EQ(control(near, "dctcp"), "dctcp");
  }
  bool loopback = false;
  for (const auto& subnet : tcp::own_subnets()) loopback |= subnet.contains(make_address("127.0.0.1"));
  EXPECT_TRUE(loopback);
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

}  // namespace
}  // namespace ringfold::transport::test
