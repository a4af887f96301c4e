// Strangers at the ports of a live job: nobody without the key disturbs it, and nothing listens where it need not.
#include <arpa/inet.h>
#include <dirent.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <random>
#include <set>
#include <sstream>
#include <thread>

#include "base/handshake.h"
#include "tests/fault/job.h"

namespace ringfold::chaos {
namespace {

constexpr double kPatience = 25;
constexpr size_t kGreeting = 44, kProof = 34;  // what a side says before the other has proved anything, at most

// ---- sockets ----

struct Listener {
  sockaddr_storage address{};
  socklen_t size = 0;
  bool wildcard = false;
  std::string text;  // as the system lists it
};

std::vector<Listener> listeners_of(pid_t pid) {
  std::set<std::string> inodes;
  const std::string folder = fmt::format("/proc/{}/fd", pid);
  if (DIR* dir = ::opendir(folder.c_str())) {
    while (const dirent* entry = ::readdir(dir)) {
      char link[128];
      const auto n = ::readlink(fmt::format("{}/{}", folder, entry->d_name).c_str(), link, sizeof link);
      const std::string_view name(link, static_cast<size_t>(std::max<ssize_t>(n, 0)));
      if (name.starts_with("socket:[")) inodes.emplace(name.substr(8, name.size() - 9));
    }
    ::closedir(dir);
  }
  std::vector<Listener> result;
  for (const char* table : {"tcp", "tcp6"}) {
    std::ifstream in(fmt::format("/proc/{}/net/{}", pid, table));
    std::string line, slot, local, remote, state, queue, timer, retransmits, user, timeout, inode;
    std::getline(in, line);
    while (std::getline(in, line)) {
      std::istringstream(line) >> slot >> local >> remote >> state >> queue >> timer >> retransmits >> user >>
          timeout >> inode;
      if (state != "0A" || !inodes.contains(inode)) continue;  // listening
      Listener l;
      l.text = local;
      const auto colon = local.find(':');
      const auto port = htons(static_cast<uint16_t>(std::stoul(local.substr(colon + 1), nullptr, 16)));
      uint32_t words[4] = {};
      for (size_t w = 0; w * 8 < colon; ++w)
        words[w] = static_cast<uint32_t>(std::stoul(local.substr(w * 8, 8), nullptr, 16));
      l.wildcard = words[0] == 0 && words[1] == 0 && words[2] == 0 && words[3] == 0;
      if (colon == 8) {
        auto* v4 = reinterpret_cast<sockaddr_in*>(&l.address);
        *v4 = {.sin_family = AF_INET, .sin_port = port, .sin_addr = {words[0]}, .sin_zero = {}};
        l.size = sizeof *v4;
      } else {
        auto* v6 = reinterpret_cast<sockaddr_in6*>(&l.address);
        v6->sin6_family = AF_INET6;
        v6->sin6_port = port;
        std::memcpy(&v6->sin6_addr, words, sizeof words);
        l.size = sizeof *v6;
      }
      result.push_back(l);
    }
  }
  return result;
}

std::vector<Listener> listeners_of(const Job& job, std::initializer_list<int> ranks) {
  std::vector<Listener> all;
  for (int r : ranks) {
    for (const auto& l : listeners_of(job.pid(r))) all.push_back(l);
  }
  return all;
}

// A connection of a stranger; -1 when the port has gone meanwhile.
int dial(const Listener& to) {
  const int fd = ::socket(to.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&to.address), to.size) == 0) return fd;
  ::close(fd);
  return -1;
}

void say(int fd, std::string_view bytes) {
  [[maybe_unused]] auto n = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
}

// What comes within `seconds`, until `most` bytes or the end; *ended says whether that came.
std::string hear(int fd, double seconds, size_t most, bool* ended) {
  std::string heard;
  *ended = false;
  for (const double until = now_s() + seconds; heard.size() < most;) {
    pollfd p{fd, POLLIN, 0};
    if (::poll(&p, 1, static_cast<int>(std::max(0.0, until - now_s()) * 1000)) <= 0) break;
    char buffer[4096];
    const auto n = ::recv(fd, buffer, std::min(sizeof buffer, most - heard.size()), 0);
    if (n <= 0) {
      *ended = true;
      break;
    }
    heard.append(buffer, static_cast<size_t>(n));
  }
  return heard;
}

Listener loopback_listener(int* fd) {
  Listener l;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&l.address);
  *v4 = {.sin_family = AF_INET, .sin_port = 0, .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_zero = {}};
  l.size = sizeof *v4;
  *fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_EQ(::bind(*fd, reinterpret_cast<sockaddr*>(v4), l.size), 0);
  EXPECT_EQ(::listen(*fd, 8), 0);
  EXPECT_EQ(::getsockname(*fd, reinterpret_cast<sockaddr*>(v4), &l.size), 0);
  l.text = fmt::format("127.0.0.1:{}", ntohs(v4->sin_port));
  return l;
}

// A place for the rendezvous that is free now.
Listener free_place() {
  int fd;
  const Listener l = loopback_listener(&fd);
  ::close(fd);
  return l;
}

// ---- a job ----

bool all(Job& job, const std::string& kind, std::initializer_list<int> ranks, double seconds = kPatience) {
  return job.wait(seconds, [&] {
    return std::all_of(ranks.begin(), ranks.end(), [&](int r) { return job.find(r, kind) != nullptr; });
  });
}

// Rank 0 has a place where the others can meet it.
bool listens(Job& job, const Listener& place) {
  return job.wait(kPatience, [&] {
    const int fd = dial(place);
    if (fd >= 0) ::close(fd);
    return fd >= 0;
  });
}

void expect_undisturbed_end(Job& job) {
  ASSERT_TRUE(all(job, "twenty", {0, 1, 2})) << job.logs();
  job.ask_to_end();
  for (int r = 0; r < 3; ++r) {
    ASSERT_TRUE(job.wait_for_exit(r, kPatience)) << job.logs();
    EXPECT_EQ(job.exit_status(r), 0) << job.logs();
    EXPECT_EQ(job.find(r, "verdict"), nullptr) << job.logs();
    EXPECT_EQ(job.find(r, "wrong"), nullptr) << job.logs();
  }
}

std::string log_of(const Job& job, int rank) {
  std::ifstream in(fmt::format("{}/log-{}", job.folder(), rank));
  return {std::istreambuf_iterator<char>(in), {}};
}

// What strangers do at a port; connections that say nothing stay open in *open.
void annoy(const Listener& port, std::mt19937_64& dice, std::vector<int>* open) {
  std::string garbage(1 + dice() % 4096, '\0');
  for (char& c : garbage) c = static_cast<char>(dice());
  const std::string greeting = std::string("RINGFOLD\1\0\0\0", 12) + garbage.substr(0, 20);
  for (const std::string& bytes : {std::string(), garbage, std::string("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), greeting,
                                   std::string("RINGFOLD\xff\xff\0\0", 12), std::string("\x16\x03\x01\x02\x00", 5)}) {
    const int fd = dial(port);
    if (fd < 0) return;
    say(fd, bytes);
    if (open->size() < 60 && dice() % 3 == 0) {
      open->push_back(fd);
    } else {
      if (dice() % 2 == 0) {
        const linger reset{1, 0};
        ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
      }
      ::close(fd);
    }
  }
}

TEST(Security, NothingListensOnAWildcardAddress) {
  for (const bool directory : {true, false}) {
    const Listener place = free_place();
    Job job({.size = 3, .seed = 1, .transport = "tcp", .rendezvous = directory ? "" : place.text, .late = {2}});
    if (!directory) {
      ASSERT_TRUE(listens(job, place));
    }
    ASSERT_TRUE(
        job.wait(kPatience, [&] { return !listeners_of(job.pid(0)).empty() && !listeners_of(job.pid(1)).empty(); }));
    for (const auto& l : listeners_of(job, {0, 1}))
      EXPECT_FALSE(l.wildcard) << l.text << " before the job is complete";
    job.start(2);
    ASSERT_TRUE(all(job, "twenty", {0, 1, 2})) << job.logs();
    for (const auto& l : listeners_of(job, {0, 1, 2})) EXPECT_FALSE(l.wildcard) << l.text << " while the job runs";
    expect_undisturbed_end(job);
  }
}

TEST(Security, StrangersAtEveryPortDisturbNobody) {
  const Listener place = free_place();
  Job job({.size = 3, .seed = 2, .transport = "tcp", .rendezvous = place.text, .late = {2}});
  std::mt19937_64 dice(1);
  std::vector<int> open;
  ASSERT_TRUE(listens(job, place));
  size_t ports = 0;
  for (int round = 0; round < 10; ++round) {
    const auto all_ports = listeners_of(job, {0, 1});
    ports = std::max(ports, all_ports.size());
    for (const auto& l : all_ports) annoy(l, dice, &open);
  }
  EXPECT_GE(ports, 2u) << "there was nothing to scan";
  job.start(2);
  ASSERT_TRUE(all(job, "ready", {0, 1, 2})) << job.logs();
  ports = 0;
  for (const double until = now_s() + 1; now_s() < until; job.wait(0.02, [] { return false; })) {
    const auto all_ports = listeners_of(job, {0, 1, 2});
    ports = std::max(ports, all_ports.size());
    for (const auto& l : all_ports) annoy(l, dice, &open);
  }
  EXPECT_GE(ports, 1u) << "there was nothing to scan";
  expect_undisturbed_end(job);
  for (int fd : open) ::close(fd);
}

TEST(Security, AWrongKeyIsRefusedOnBothSidesAndBothSaySo) {
  for (const bool directory : {true, false}) {
    const Listener place = free_place();
    Job job({.size = 3,
             .seed = 3,
             .transport = "tcp",
             .timeout_s = 4,
             .rendezvous = directory ? "" : place.text,
             .late = {2}});
    ASSERT_TRUE(base::Key::generate()->save(job.folder() + "/own-key").ok());
    job.start(2, job.folder() + "/own-key");
    ASSERT_TRUE(all(job, "refused", {0, 1, 2})) << job.logs();
    for (int r : {0, 2}) {
      const std::string& text = job.find(r, "refused")->text;
      EXPECT_NE(text.find(directory ? "another key" : "key"), std::string::npos) << text;
    }
    EXPECT_TRUE(job.find(2, "refused")->text.starts_with("denied")) << job.find(2, "refused")->text;
    EXPECT_NE(job.find(0, "refused")->text.find("rank 2 of 3 has not arrived"), std::string::npos)
        << job.find(0, "refused")->text;
    if (!directory) {
      EXPECT_NE(log_of(job, 0).find("refused a connection"), std::string::npos) << job.logs();
    }
  }
}

// Stands between one rank and another and writes down what the two say.
class Tap {
 public:
  explicit Tap(const Listener& to) : to_(to), at_(loopback_listener(&fd_)), thread_([this] { run(); }) {}
  ~Tap() {
    stop_ = true;
    thread_.join();
    ::close(fd_);
  }
  const std::string& place() const { return at_.text; }
  // To be read when the tapped connection has ended.
  const std::string& said() const { return said_; }
  const std::string& answered() const { return answered_; }
  bool ended() const { return ended_; }

 private:
  void run() {
    pollfd p{fd_, POLLIN, 0};
    while (!stop_ && ::poll(&p, 1, 20) <= 0) {
    }
    if (stop_) return;
    const int here = ::accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC), there = dial(to_);
    while (!stop_) {
      pollfd both[2] = {{here, POLLIN, 0}, {there, POLLIN, 0}};
      ::poll(both, 2, 20);
      bool open = true;
      for (int side = 0; side < 2 && open; ++side) {
        if (both[side].revents == 0) continue;
        char buffer[4096];
        const auto n = ::recv(both[side].fd, buffer, sizeof buffer, 0);
        open = n > 0;
        if (!open) break;
        const std::string_view bytes(buffer, static_cast<size_t>(n));
        (side == 0 ? said_ : answered_) += bytes;
        say(both[1 - side].fd, bytes);
      }
      if (!open) break;
    }
    ::close(here);
    ::close(there);
    ended_ = true;
  }

  const Listener to_;
  int fd_ = -1;
  const Listener at_;
  std::string said_, answered_;
  std::atomic<bool> stop_{false}, ended_{false};
  std::thread thread_;
};

TEST(Security, ReplayedAndForgedHandshakesAreRefused) {
  const Listener place = free_place();
  // A first job, whose rank 1 is overheard.
  auto tap = std::make_unique<Tap>(place);
  Job job({.size = 3,
           .seed = 4,
           .transport = "tcp",
           .rendezvous = place.text,
           .rendezvouses = {{1, tap->place()}},
           .late = {1, 2}});
  ASSERT_TRUE(listens(job, place));
  job.start(1);
  job.start(2);
  ASSERT_TRUE(job.wait(kPatience, [&] { return tap->ended(); })) << job.logs();
  ASSERT_TRUE(all(job, "ready", {0, 1, 2})) << job.logs();
  const std::string said = tap->said();
  ASSERT_GT(tap->answered().size(), kGreeting + kProof + 10) << "the overheard rank was not let in";

  // The same key at the same place for a second job; it lacks its last rank, so that the port stays open.
  const Listener next = free_place();
  Job second({.size = 3,
              .seed = 5,
              .transport = "tcp",
              .rendezvous = next.text,
              .keys = {{0, job.folder() + "/key"}, {1, job.folder() + "/key"}, {2, job.folder() + "/key"}},
              .late = {2}});
  ASSERT_TRUE(listens(second, next));
  auto attempt = [&](const Listener& port, bool reflect) {
    const int fd = dial(port);
    ASSERT_GE(fd, 0) << port.text;
    bool ended = false;
    std::string heard;
    if (!reflect) {
      say(fd, said);
    } else {
      // Says what the acceptor says of itself, as if it were its own.
      say(fd, said.substr(0, kGreeting));
      heard = hear(fd, 5, kGreeting + kProof, &ended);
      ASSERT_EQ(heard.size(), kGreeting + kProof) << port.text;
      say(fd, heard.substr(kGreeting) + heard.substr(kGreeting));
    }
    heard += hear(fd, 8, 1 << 20, &ended);
    EXPECT_TRUE(ended) << port.text << " keeps the connection";
    EXPECT_LE(heard.size(), kGreeting + kProof) << port.text << " answered";
    ::close(fd);
  };
  // At a rendezvous that waits, and at a job that runs (which stands still unless somebody reads what it says).
  std::vector<Listener> ports = listeners_of(job, {0, 1, 2});
  EXPECT_GE(ports.size(), 1u);
  ports.push_back(next);
  std::atomic<bool> done{false};
  std::thread stranger([&] {
    for (const auto& port : ports) {
      attempt(port, false);
      attempt(port, true);
    }
    done = true;
  });
  job.wait(60, [&] { return done.load(); });
  stranger.join();
  EXPECT_NE(log_of(second, 0).find("does not hold this job's key"), std::string::npos) << second.logs();
  second.start(2);
  expect_undisturbed_end(second);
  expect_undisturbed_end(job);
}

}  // namespace
}  // namespace ringfold::chaos
