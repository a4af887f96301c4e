// The control mesh between processes and network namespaces.
#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <thread>

#include "comm/card.h"
#include "comm/control.h"
#include "comm/rendezvous.h"
#include "tests/comm/place.h"
#include "tests/support/expect_log.h"

namespace ringfold::comm {
namespace {

using base::Clock;
using base::Deadline;
using base::Key;
using std::chrono::milliseconds;
using std::chrono::seconds;

Launch make_launch(int rank, int size, const std::string& where) {
  Launch launch;
  launch.rank = rank;
  launch.size = size;
  launch.rendezvous = where;
  return launch;
}

// Ranks as threads; results by rank.
std::vector<Result<std::unique_ptr<Control>>> connect_all(
    int n, const Config& config, const std::string& where, Deadline deadline,
    std::function<Key(int)> key_of = [](int) { return key(); }) {
  std::vector<Result<std::unique_ptr<Control>>> controls;
  for (int r = 0; r < n; ++r) controls.emplace_back(Status(Code::kInternal, "did not run"));
  std::vector<std::thread> threads;
  for (int r = 0; r < n; ++r) {
    threads.emplace_back(
        [&, r] { controls[r] = Control::connect(make_launch(r, n, where), config, key_of(r), deadline); });
  }
  for (auto& thread : threads) thread.join();
  return controls;
}

class ByFamily : public testing::TestWithParam<const char*> {};

TEST_P(ByFamily, SixteenRanksConnectAndReachEachOther) {
  Config config;
  config.interfaces = std::vector<std::string>{GetParam()};
  auto controls = connect_all(16, config, free_place(), Deadline::after(seconds(60)));
  std::vector<int> everybody;
  for (int r = 0; r < 16; ++r) everybody.push_back(r);
  std::vector<std::thread> threads;
  for (int r = 0; r < 16; ++r) {
    threads.emplace_back([&, r] {
      ASSERT_TRUE(controls[r].ok()) << controls[r].status().message();
      auto blobs = (*controls[r])->exchange("all", everybody, fmt::format("{}", r), Deadline::after(seconds(30)));
      ASSERT_TRUE(blobs.ok()) << blobs.status().message();
      for (int p = 0; p < 16; ++p) EXPECT_EQ((*blobs)[p], fmt::format("{}", p));
      for (int p = 0; p < 16; ++p) EXPECT_EQ((*controls[r])->peer(p).address, GetParam());
    });
  }
  for (auto& thread : threads) thread.join();
}
INSTANTIATE_TEST_SUITE_P(Families, ByFamily, testing::Values("127.0.0.1", "::1"),
                         [](const auto& info) { return std::string(info.param)[0] == ':' ? "v6" : "v4"; });

TEST(Mesh, ASingleRankNeedsNobody) {
  auto control = Control::connect(make_launch(0, 1, ""), Config(), Deadline::after(seconds(5)));
  ASSERT_TRUE(control.ok());
  EXPECT_EQ((*control)->size(), 1);
  auto blobs = (*control)->exchange("k", std::vector<int>{0}, "x", Deadline::after(seconds(5)));
  ASSERT_TRUE(blobs.ok());
  EXPECT_EQ(blobs->at(0), "x");
}

TEST(Mesh, ARankWithAnotherKeyIsRefused) {
  test::expect_log("refused a connection from 127.0.0.1");
  auto controls = connect_all(2, Config(), free_place(), Deadline::after(milliseconds(3500)),
                              [](int r) { return r == 0 ? key() : *Key::generate(); });
  EXPECT_EQ(controls[1].status().code(), Code::kDenied) << controls[1].status().message();
  EXPECT_NE(controls[0].status().message().find("did not prove the job's key"), std::string::npos)
      << controls[0].status().message();
}

TEST(Mesh, AnInterfaceThatDoesNotExistIsRefusedWithWhatThereIs) {
  Config config;
  config.interfaces = std::vector<std::string>{"eth77"};
  auto control = Control::connect(make_launch(0, 2, free_place()), config, key(), Deadline::after(seconds(5)));
  EXPECT_EQ(control.status().code(), Code::kInvalid);
  EXPECT_NE(control.status().message().find("lo 127.0.0.1 (loopback)"), std::string::npos)
      << control.status().message();
}

TEST(Mesh, AnotherBuildIsRefusedAndBothAreNamed) {
  const auto me = describe_self(0);
  auto newer = me;
  newer.rank = 1;
  newer.host = "hostb";
  newer.version = "9.9.9";
  PeerInfo peer;
  peer.rank = 1;
  const auto status = read_card(write_card(newer), me, &peer);
  EXPECT_EQ(status.code(), Code::kMismatch);
  for (const auto& part : {std::string("rank 1 on hostb runs Ringfold 9.9.9"), "runs " + me.version}) {
    EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
  }
  EXPECT_EQ(read_card(write_card(me).substr(0, 30), me, &peer).code(), Code::kProtocol);
  EXPECT_TRUE(read_card(write_card(me), me, &peer).ok());
}

// Ports on which this process listens, from the system's table.
std::vector<int> listening_ports() {
  std::vector<int> ports;
  std::ifstream table("/proc/self/net/tcp");
  std::string line;
  while (std::getline(table, line)) {
    std::istringstream fields(line);
    std::string number, local, remote, state;
    fields >> number >> local >> remote >> state;
    if (state == "0A" && local.starts_with("0100007F:")) ports.push_back(std::stoi(local.substr(9), nullptr, 16));
  }
  return ports;
}

TEST(Mesh, APortScannerDoesNotDisturb) {
  const auto place = free_place();
  std::atomic<bool> stop{false};
  std::atomic<int> hits{0};
  std::thread scanner([&] {
    while (!stop) {
      for (int port : listening_ports()) {
        const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_in to{};
        to.sin_family = AF_INET;
        to.sin_port = htons(static_cast<uint16_t>(port));
        ::inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
        if (::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0)
          hits += ::send(fd, "\0\1\2HELO", 7, MSG_NOSIGNAL) == 7;
        ::close(fd);
      }
      std::this_thread::sleep_for(milliseconds(1));
    }
  });
  for (int round = 0; round < 10 || (hits < 20 && round < 500); ++round) {
    auto late = [](int r) {  // so that the others listen for a while
      std::this_thread::sleep_for(milliseconds(10 * r));
      return key();
    };
    for (const auto& control : connect_all(4, Config(), place, Deadline::after(seconds(30)), late)) {
      EXPECT_TRUE(control.ok()) << control.status().message();
    }
  }
  stop = true;
  scanner.join();
  EXPECT_GE(hits, 20);
}

TEST(Mesh, NothingListensOnAWildcardAddressAndNothingIsInherited) {
  const auto before = std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
  {
    auto server = RendezvousServer::start({"127.0.0.1", 0, 0, 2, false}, key());
    auto controls = connect_all(2, Config(), (*server)->address(), Deadline::after(seconds(30)));
    int sockets = 0;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      const int fd = std::stoi(entry.path().filename().string());
      struct stat info {};
      if (::fstat(fd, &info) != 0 || !S_ISSOCK(info.st_mode)) continue;
      sockaddr_storage address{};
      socklen_t size = sizeof address;
      ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
      if (address.ss_family == AF_INET) {
        EXPECT_NE(reinterpret_cast<sockaddr_in&>(address).sin_addr.s_addr, INADDR_ANY);
      }
      if (address.ss_family == AF_INET || address.ss_family == AF_INET6) {
        ++sockets;
        EXPECT_TRUE(::fcntl(fd, F_GETFD) & FD_CLOEXEC) << fd;
      }
    }
    EXPECT_GE(sockets, 3);
  }
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}), before);  // all were closed
}

TEST(Mesh, AnIdleMeshUsesNoProcessorTime) {
  auto controls = connect_all(4, Config(), free_place(), Deadline::after(seconds(30)));
  const auto used_in = [](milliseconds window) {
    timespec before{}, after{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    std::this_thread::sleep_for(window);
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    return (after.tv_sec - before.tv_sec) * 1'000'000'000 + after.tv_nsec - before.tv_nsec;
  };
  // What the start left to do takes its time, more of it under a sanitizer; a mesh that is never idle stays busy.
  auto least = used_in(milliseconds(500));
  for (int i = 0; i < 5 && least >= 2'000'000; ++i) least = std::min(least, used_in(milliseconds(500)));
  EXPECT_LT(least, 2'000'000);
}

// ---- processes ----

// A child process that runs `body` and whose lines can be read. Killed with its parent, and by the destructor.
class Child {
 public:
  explicit Child(const std::function<void(Child&)>& body) {
    std::array<int, 2> up{}, down{};
    if (::pipe2(up.data(), O_CLOEXEC) != 0 || ::pipe2(down.data(), O_CLOEXEC) != 0) return;
    pid_ = ::fork();
    const bool child = pid_ == 0;
    in_ = child ? down[0] : up[0];
    out_ = child ? up[1] : down[1];
    ::close(child ? down[1] : up[1]);
    ::close(child ? up[0] : down[0]);
    if (!child) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    body(*this);
    ::_exit(0);
  }
  ~Child() {
    kill();
    ::close(in_);
    ::close(out_);
  }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  pid_t pid() const { return pid_; }
  void say(std::string line) const {
    line += "\n";
    (void)!::write(out_, line.data(), line.size());
  }
  // "" at the end.
  std::string hear() const {
    std::string line;
    for (char c = 0; ::read(in_, &c, 1) == 1 && c != '\n';) line += c;
    return line;
  }

 private:
  int pid_ = -1, in_ = -1, out_ = -1;
};
using Children = std::vector<std::unique_ptr<Child>>;

TEST(Mesh, AKilledProcessIsNoticedByAllOthersAtOnce) {
  const auto place = free_place();
  Children ranks;
  for (int r = 0; r < 4; ++r) {
    ranks.push_back(std::make_unique<Child>([&](Child& self) {
      auto control = Control::connect(make_launch(r, 4, place), Config(), key(), Deadline::after(seconds(30)));
      if (!control.ok()) return self.say(control.status().message());
      (*control)->subscribe(
          "t", {}, [&](int peer, const Status& why) { self.say(fmt::format("{} {}", peer, why.message())); });
      self.say("up");
      self.hear();
    }));
  }
  for (auto& rank : ranks) ASSERT_EQ(rank->hear(), "up");
  const auto begin = Clock::now();
  ranks[2]->kill();
  for (int r : {0, 1, 3}) EXPECT_EQ(ranks[r]->hear(), "2 its process ended or closed the connection");
  EXPECT_LT(Clock::now() - begin, seconds(1));
  ranks[0]->say("leave");
  for (int r : {1, 3}) EXPECT_EQ(ranks[r]->hear(), "0 left the job");
}

TEST(Mesh, ARankThatDiesDuringTheBootstrapIsNamed) {
  const auto place = free_place();
  Child doomed([&](Child& self) {
    // Comes to the rendezvous with a card, and is gone afterwards.
    Launch launch = make_launch(1, 3, place);
    std::thread([&] {
      auto control = Control::connect(launch, Config(), key(), Deadline::after(seconds(30)));
      self.say("up");
    }).detach();
    self.hear();
  });
  Result<std::unique_ptr<Control>> zero = Status(Code::kInternal, "");
  std::thread thread(
      [&] { zero = Control::connect(make_launch(0, 3, place), Config(), key(), Deadline::after(seconds(3))); });
  std::this_thread::sleep_for(milliseconds(500));
  doomed.kill();
  thread.join();
  EXPECT_EQ(zero.status().code(), Code::kTimeout);
  EXPECT_TRUE(zero.status().message().starts_with("ranks 1,2 of 3 have not arrived")) << zero.status().message();
}

// ---- network namespaces ----

bool shell(const std::string& command) { return ::system(("(" + command + ") >/dev/null 2>&1").c_str()) == 0; }

// `n` network namespaces, each with a process, joined by a switch that lives in one of its own. Each has eth0 with
// 10.77.0.<rank + 1>, and what `extra` adds.
class Network {
 public:
  Network(int n, const std::function<std::string(int)>& extra, const std::function<void(Child&, int)>& body) {
    for (int r = 0; r < n; ++r) {
      ranks_.push_back(std::make_unique<Child>([&](Child& self) {
        // The decoys come first, so that they are the first in the system's list, too.
        self.say(::unshare(CLONE_NEWNET) == 0 && shell(extra(r) + "true") ? "yes" : "no");
        self.hear();
        const auto good = shell(
            fmt::format("ip link set lo up && ip addr add 10.77.0.{}/24 dev eth0 && ip link set eth0 up", r + 1));
        self.say(good ? "yes" : "no");
        self.hear();
        body(self, r);
      }));
    }
    for (auto& rank : ranks_) usable_ = usable_ && rank->hear() == "yes";
    std::string plug = "ip link add br0 type bridge && ip link set br0 up";
    for (int r = 0; r < n; ++r) {
      plug += fmt::format(
          " && ip link add p{0} type veth peer name eth0 netns {1} && ip link set p{0} master br0 && ip link set "
          "p{0} up",
          r, ranks_[r]->pid());
    }
    switch_ = std::make_unique<Child>([&](Child& self) {
      self.say(usable_ && ::unshare(CLONE_NEWNET) == 0 && shell(plug) ? "yes" : "no");
      self.hear();
    });
    usable_ = switch_->hear() == "yes" && usable_;
    for (auto& rank : ranks_) rank->say("configure");
    for (auto& rank : ranks_) usable_ = rank->hear() == "yes" && usable_;
  }
  bool usable() const { return usable_; }
  void begin() {
    for (auto& rank : ranks_) rank->say("begin");
  }
  Child& rank(int r) { return *ranks_[r]; }

 private:
  Children ranks_;
  std::unique_ptr<Child> switch_;
  bool usable_ = true;
};

// Two decoys on every host: docker0 with one address everywhere, and one that looks like a shared network but leads
// nowhere; and a link that is down. The one that works has the last number.
std::string decoys(int r) {
  auto pair = [](std::string_view name, std::string_view address) {
    return fmt::format("ip link add {0} type veth peer name {0}-peer && ip addr add {1} dev {0} && ", name, address);
  };
  return pair("docker0", "172.17.0.1/16") + pair("ens9", fmt::format("192.168.77.{}/24", r + 1)) +
         pair("eth9", fmt::format("10.99.0.{}/24", r + 1)) +
         "ip link set docker0 up && ip link set docker0-peer up && ip link set ens9 up && ip link set ens9-peer up "
         "&& ";
}

TEST(MeshNetwork, DecoysAndDownLinksArePassedOver) {
  if (::geteuid() != 0) GTEST_SKIP() << "network namespaces need root";
  key();
  Network network(4, decoys, [](Child& self, int r) {
    auto control =
        Control::connect(make_launch(r, 4, "10.77.0.1:4711"), Config(), key(), Deadline::after(seconds(30)));
    if (!control.ok()) return self.say(control.status().message());
    std::string line;
    for (int p = 0; p < 4; ++p)
      line += fmt::format("{}>{} ", (*control)->peer(p).my_address, (*control)->peer(p).address);
    self.say(line);
    self.hear();
  });
  if (!network.usable()) GTEST_SKIP() << "this system does not let us make network namespaces with ip(8)";
  const auto begin = Clock::now();
  network.begin();
  for (int r = 0; r < 4; ++r) {
    std::string expected;
    for (int p = 0; p < 4; ++p) expected += fmt::format("10.77.0.{}>10.77.0.{} ", r + 1, p + 1);
    EXPECT_EQ(network.rank(r).hear(), expected);
  }
  EXPECT_LT(Clock::now() - begin, seconds(10));
}

TEST(MeshNetwork, LoopbackOfAnotherHostIsNeverTaken) {
  if (::geteuid() != 0) GTEST_SKIP() << "network namespaces need root";
  key();
  const auto folder = std::filesystem::temp_directory_path() / ("ringfold-trap-" + random_name());
  {
    Network network(
        2, [](int) { return ""; },
        [&](Child& self, int r) {
          Config config;
          config.interfaces = std::vector<std::string>{"lo"};  // all that a rank offers is its own 127.0.0.1
          auto control = Control::connect(make_launch(r, 2, "dir:" + folder.string()), config, key(),
                                          Deadline::after(seconds(2)));
          self.say(control.ok() ? "connected" : control.status().message());
          self.hear();
        });
    if (!network.usable()) GTEST_SKIP() << "this system does not let us make network namespaces with ip(8)";
    network.begin();
    const auto zero = network.rank(0).hear(), one = network.rank(1).hear();
    EXPECT_NE(one.find("cannot be reached (lo 127.0.0.1:"), std::string::npos) << one;
    EXPECT_NE(zero.find("rank 1 on "), std::string::npos) << zero;
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace ringfold::comm
