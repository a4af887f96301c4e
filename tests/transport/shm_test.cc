// shm: the conformance suite with all ranks in one process, and what only separate processes can show.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "ringfold/memory.h"
#include "tests/transport/shm_ranks.h"

namespace ringfold::transport::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using Bytes = std::vector<std::byte>;

Fabric standard(int n) { return make_shm(n, {}); }
Fabric by_remote_read(int n) { return make_shm(n, {.remote_bytes = 16 << 10, .weigh_reads = false}); }
Fabric two_large_slots(int n) {
  return make_shm(n, {.slots = 2, .slot_bytes = 1 << 20, .remote_bytes = 300, .weigh_reads = false});
}
Fabric as_many_lines_as_slots(int n) { return make_shm(n, {.slots = 4, .slot_bytes = 16 << 10, .lines = 4}); }

INSTANTIATE_TEST_SUITE_P(Shm, Conformance,
                         testing::Values(FabricKind{"standard", standard},
                                         FabricKind{"by_remote_read", by_remote_read},
                                         FabricKind{"two_large_slots", two_large_slots},
                                         FabricKind{"as_many_lines_as_slots", as_many_lines_as_slots}),
                         fabric_name);

// A sender gets that far before a receiver without a processor must have its turn.
TEST(Shm, ALinkTakesMoreSmallPutsThanLargestOnesAheadOfTheReceiver) {
  constexpr size_t kSmall = 2048;
  Fabric fabric = make_shm(
      2, {.slots = 4, .slot_bytes = 64 << 10, .lines = 32, .region_bytes = SIZE_MAX, .remote_bytes = SIZE_MAX});
  Link* const to = fabric.ranks[0]->open(1, 0);
  Link* const from = fabric.ranks[1]->open(0, 0);
  std::vector<std::byte> data(64 << 10);
  const auto fill = [&](uint64_t k) { std::memset(data.data(), static_cast<int>(k), data.size()); };
  for (const auto& [bytes, least] : {std::pair{kSmall, 32}, std::pair{data.size(), 4}, std::pair{kSmall, 32}}) {
    const uint64_t first = to->issued();
    for (; to->writable(); fill(0)) {
      fill(to->issued());
      to->put(data.data(), bytes, nullptr);
    }
    EXPECT_GE(to->issued() - first, static_cast<uint64_t>(least)) << bytes;
    for (uint64_t k = first; k < to->issued(); ++k) {
      Arrival a;
      ASSERT_TRUE(from->arrived(&a, nullptr, bytes));
      fill(k);
      ASSERT_EQ(a.bytes, bytes);
      EXPECT_EQ(std::memcmp(a.data, data.data(), bytes), 0) << "put " << k;
      from->release();
    }
  }
}

// Or it would have nothing to do until the last is released, fall asleep, and be woken by each release.
TEST(Shm, ALinkTakesNoMorePutsByReferenceThanCopies) {
  constexpr size_t kBytes = 64 << 10;
  Fabric fabric = make_shm(2, {.slots = 4, .slot_bytes = kBytes, .lines = 32});
  Link* const to = fabric.ranks[0]->open(1, 0);
  fabric.ranks[1]->open(0, 0);
  auto memory = ringfold::allocate(kBytes);
  ASSERT_TRUE(memory.ok());
  while (to->writable()) to->put(static_cast<const std::byte*>(*memory), kBytes, nullptr);
  EXPECT_EQ(to->retired(), 0U);
  EXPECT_GE(to->issued(), 4U);
  EXPECT_LE(to->issued(), 5U);
  fabric.ranks.clear();
  ringfold::deallocate(*memory);
}

// The owner looks for what has retired before it asks for room: a release that only the second sees may leave no
// room, and still retire a put.
TEST(Shm, AReleaseThatLeavesNoRoomIsNewsAllTheSame) {
  constexpr size_t kSmall = 1024, kLarge = 64 << 10;
  Fabric fabric = make_shm(2, {.slots = 4, .slot_bytes = kLarge, .lines = 64});
  Link* const to = fabric.ranks[0]->open(1, 0);
  Link* const from = fabric.ranks[1]->open(0, 0);
  auto memory = ringfold::allocate(kLarge);
  ASSERT_TRUE(memory.ok());
  const auto* data = static_cast<const std::byte*>(*memory);
  for (int i = 0; i < 3 && to->writable(); ++i) to->put(data, kSmall, nullptr);
  while (to->writable()) to->put(data, kLarge, nullptr);
  (void)fabric.ranks[0]->prepare_to_sleep();
  fabric.ranks[0]->awake();
  ASSERT_EQ(to->retired(), 0U);
  Arrival arrival;
  ASSERT_TRUE(from->arrived(&arrival, nullptr, kSmall));
  from->release();
  ASSERT_FALSE(to->writable()) << "a small put makes no room for a large one";
  EXPECT_FALSE(fabric.ranks[0]->prepare_to_sleep());
  fabric.ranks[0]->awake();
  EXPECT_EQ(to->retired(), 1U);
  fabric.ranks.clear();
  ringfold::deallocate(*memory);
}

// ---- helpers ----

size_t open_fds() {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

bool eventually(const std::function<bool()>& done, milliseconds limit = seconds(10)) {
  const auto end = steady_clock::now() + limit;
  while (!done()) {
    if (steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

// Waits as an engine does, asleep. False at the limit.
bool asleep_until(Transport& transport, const std::function<bool()>& done, milliseconds limit = seconds(10)) {
  const auto end = steady_clock::now() + limit;
  for (;;) {
    transport.progress();
    if (done()) return true;
    const auto left = std::chrono::duration_cast<milliseconds>(end - steady_clock::now());
    if (left.count() <= 0) return false;
    if (transport.prepare_to_sleep()) {
      pollfd p{transport.wake_fd(), POLLIN, 0};
      poll(&p, 1, static_cast<int>(left.count()));
    }
    transport.awake();
  }
}

// Rank 1 of 2 as a child process; the test itself is rank 0. The child's function returns its exit code.
class Child {
 public:
  using Main = std::function<int(Transport&)>;
  explicit Child(const Main& main, const shm::Options& options = {}) {
    int pair[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    pid_ = fork();
    if (pid_ == 0) {
      alarm(60);  // a deadline for everything the child does
      _exit(run_child(main, options, pair[1]));
    }
    close(pair[1]);
    auto transport = shm::make(0, 2, 42, options);
    EXPECT_TRUE(transport.ok()) << transport.status().to_string();
    transport_ = std::move(*transport);
    tell(pair[0], transport_->address());
    const auto status = transport_->add_peer(1, hear(pair[0]));
    EXPECT_TRUE(status.ok()) << status.to_string();
    tell(pair[0], "go");
    close(pair[0]);
  }
  ~Child() {
    transport_.reset();
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
  }

  Transport& transport() { return *transport_; }
  pid_t pid() const { return pid_; }
  void kill() { ::kill(pid_, SIGKILL); }
  int exit_code() {
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
  }

 private:
  static void tell(int fd, const std::string& text) {
    EXPECT_EQ(write(fd, text.data(), text.size()), ssize_t(text.size()));
  }
  static std::string hear(int fd) {
    char text[512];
    const auto n = read(fd, text, sizeof text);
    return n > 0 ? std::string(text, static_cast<size_t>(n)) : std::string();
  }
  static int run_child(const Main& main, const shm::Options& options, int fd) {
    auto transport = shm::make(1, 2, 42, options);
    if (!transport.ok()) return 101;
    tell(fd, (*transport)->address());
    if (!(*transport)->add_peer(0, hear(fd)).ok()) return 102;
    hear(fd);
    return main(**transport);
  }

  pid_t pid_ = -1;
  std::unique_ptr<Transport> transport_;
};

// A child that sends everything back until an empty message comes.
int echo(Transport& transport) {
  Link* link = transport.open(0, 0);
  auto memory = allocate_buffer<std::byte>(transport.capabilities().slot_bytes);
  if (!memory.ok()) return 1;
  for (;;) {
    Arrival arrival;
    if (!asleep_until(transport, [&] { return link->arrived(&arrival, nullptr, 0); })) return 2;
    const size_t bytes = arrival.bytes;
    if (arrival.remote) {
      if (!link->fetch(memory->get()).ok()) return 3;
    } else if (bytes > 0) {
      std::memcpy(memory->get(), arrival.data, bytes);
    }
    link->release();
    if (bytes == 0) return 0;
    if (!asleep_until(transport, [&] { return link->writable(); })) return 4;
    link->put(memory->get(), bytes, nullptr);
    if (!asleep_until(transport, [&] { return link->retired() == link->issued(); })) return 5;
  }
}

// A child that streams without an end.
int stream(Transport& transport) {
  Link* link = transport.open(0, 0);
  auto memory = allocate_buffer<std::byte>(64 << 10);
  if (!memory.ok()) return 1;
  for (uint64_t k = 0;; ++k) {
    if (!asleep_until(transport, [&] { return link->writable() || transport.failure() != nullptr; })) return 2;
    if (transport.failure() != nullptr) return 0;
    link->put(memory->get(), k % 3 == 0 ? 64 << 10 : k % 100, nullptr);
  }
}

// ---- processes ----

TEST(ShmProcesses, EverySizeFromEveryKindOfMemoryComesBackUnchanged) {
  for (size_t remote_bytes : {size_t{16} << 10, SIZE_MAX}) {
    Child child(echo, {.remote_bytes = remote_bytes, .weigh_reads = false});
    Transport& me = child.transport();
    Link* link = me.open(1, 0);
    const size_t largest = me.capabilities().slot_bytes;
    auto shared = allocate_buffer<std::byte>(largest + 64);
    ASSERT_TRUE(shared.ok());
    Bytes ordinary(largest + 64);
    std::mt19937_64 random(5);
    for (int round = 0; round < 120; ++round) {
      const size_t bytes =
          round % 4 == 0 ? largest - random() % 100 : 1 + random() % (round % 4 == 1 ? 200 : largest);
      std::byte* source = (round % 2 == 0 ? shared->get() : ordinary.data()) + random() % 64;
      for (size_t i = 0; i < bytes; ++i) source[i] = static_cast<std::byte>(random());
      ASSERT_TRUE(asleep_until(me, [&] { return link->writable(); }));
      link->put(source, bytes, nullptr);
      Arrival arrival;
      ASSERT_TRUE(asleep_until(me, [&] { return link->arrived(&arrival, nullptr, 0); })) << "round " << round;
      ASSERT_EQ(arrival.bytes, bytes);
      ASSERT_FALSE(arrival.remote) << "the child answers from allocated memory, which is read in place";
      ASSERT_EQ(std::memcmp(arrival.data, source, bytes), 0) << "round " << round << ", " << bytes << " bytes";
      link->release();
      ASSERT_EQ(link->retired(), link->issued());
    }
    ASSERT_TRUE(link->writable());
    link->put(nullptr, 0, nullptr);
    EXPECT_EQ(child.exit_code(), 0);
  }
}

// Gives up at some moment with puts of allocated memory under way, and writes there at once.
int give_up_and_scribble(Transport& transport) {
  constexpr size_t kBytes = 64 << 10;
  Link* link = transport.open(0, 0);
  auto memory = allocate_buffer<std::byte>(kBytes);
  if (!memory.ok()) return 1;
  std::memset(memory->get(), 1, kBytes);
  for (int k = 0; k < 8; ++k) {
    if (!asleep_until(transport, [&] { return link->writable(); })) return 2;
    link->put(memory->get(), kBytes, nullptr);
  }
  const auto until = steady_clock::now() + std::chrono::microseconds(::getpid() % 50);
  while (steady_clock::now() < until) std::this_thread::yield();
  transport.stop();
  std::memset(memory->get(), 2, kBytes);
  return pause();
}

TEST(ShmProcesses, WhatIsConfirmedIsWhatWasPutThoughItsSenderGivesUpMeanwhile) {
  int refused = 0;
  for (int round = 0; round < 40; ++round) {
    Child child(give_up_and_scribble);
    Transport& me = child.transport();
    Link* link = me.open(1, 0);
    Arrival arrival;
    bool good = true;
    // In every other round nothing is read before the sender has given up.
    if (round % 2 == 0) {
      ASSERT_TRUE(asleep_until(me, [&] { return me.failure() != nullptr; }));
    }
    while (good && asleep_until(me, [&] { return link->arrived(&arrival, nullptr, 0) || me.failure() != nullptr; }) &&
           link->arrived(&arrival, nullptr, 0)) {
      ASSERT_TRUE(arrival.referred);
      const Bytes copy(arrival.data, arrival.data + arrival.bytes);
      good = link->confirm().ok();
      if (good) {
        ASSERT_EQ(copy, Bytes(arrival.bytes, std::byte{1})) << "round " << round;
        link->release();
      }
    }
    refused += good ? 0 : 1;
  }
  EXPECT_GE(refused, 20);
}

TEST(ShmProcesses, NoWakeUpIsLostBetweenProcesses) {
  Child child(echo);
  Transport& me = child.transport();
  Link* link = me.open(1, 0);
  for (uint64_t k = 0; k < 3000; ++k) {
    ASSERT_TRUE(asleep_until(me, [&] { return link->writable(); }));
    link->put(reinterpret_cast<const std::byte*>(&k), sizeof k, nullptr);
    Arrival arrival;
    ASSERT_TRUE(asleep_until(me, [&] { return link->arrived(&arrival, nullptr, 0); })) << "round " << k;
    uint64_t value = 0;
    std::memcpy(&value, arrival.data, sizeof value);
    ASSERT_EQ(value, k);
    link->release();
  }
  EXPECT_GT(me.counters().wakeups, 0u) << "nobody ever slept: this shows nothing";
  link->put(nullptr, 0, nullptr);
  EXPECT_EQ(child.exit_code(), 0);
}

TEST(ShmProcesses, AKilledPeerWakesASleeperAndIsNamed) {
  Child child([](Transport&) { return pause(); });
  Transport& me = child.transport();
  Link* link = me.open(1, 0);
  ASSERT_TRUE(link->writable());
  std::thread killer([&] {
    std::this_thread::sleep_for(milliseconds(50));
    child.kill();
  });
  EXPECT_TRUE(asleep_until(
      me, [&] { return me.failure() != nullptr; }, milliseconds(1000)));
  killer.join();
  ASSERT_NE(me.failure(), nullptr);
  EXPECT_EQ(me.failure()->peer, 1);
  EXPECT_EQ(me.failure()->status.code(), Code::kPeerLost);
  EXPECT_NE(me.failure()->status.message().find("process " + std::to_string(child.pid())), std::string::npos)
      << me.failure()->status.message();
  EXPECT_FALSE(link->writable());
}

TEST(ShmProcesses, ARankThatNeverSleepsSeesAKillToo) {
  Child child([](Transport&) { return pause(); });
  Transport& me = child.transport();
  me.open(1, 0);
  child.kill();
  EXPECT_TRUE(eventually(
      [&] {
        me.progress();
        return me.failure() != nullptr;
      },
      milliseconds(1000)));
}

TEST(ShmProcesses, AKillAtAnyMomentOfAStreamIsSeenAndLeavesNothingBehind) {
  std::mt19937_64 random(6);
  size_t fds = 0, maps = 0;
  for (int round = 0; round < 20; ++round) {
    {
      Child child(stream);
      Transport& me = child.transport();
      Link* link = me.open(1, 0);
      const auto kill_at = steady_clock::now() + std::chrono::microseconds(random() % 8000);
      bool killed = false;
      auto drain_and_kill = [&] {
        Arrival arrival;
        while (link->arrived(&arrival, nullptr, 0)) {
          Bytes copy(arrival.bytes);
          if (arrival.data != nullptr && arrival.bytes > 0) std::memcpy(copy.data(), arrival.data, copy.size());
          if (!killed && steady_clock::now() >= kill_at) {  // with an arrival in hand
            killed = true;
            child.kill();
          }
          link->release();
        }
        return me.failure() != nullptr;
      };
      EXPECT_TRUE(asleep_until(me, drain_and_kill, milliseconds(2000))) << "round " << round;
    }
    if (round == 0) {
      fds = open_fds();
      maps = mappings_of("ringfold");
    }
  }
  EXPECT_EQ(open_fds(), fds);
  EXPECT_EQ(mappings_of("ringfold"), maps);
}

TEST(ShmProcesses, AnotherUserIsRefusedWithAReason) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  auto mine = shm::make(0, 2, 42);
  ASSERT_TRUE(mine.ok());
  const pid_t pid = fork();
  if (pid == 0) {
    alarm(30);
    if (setgid(65534) != 0 || setuid(65534) != 0) _exit(1);
    auto other = shm::make(1, 2, 42);
    if (!other.ok()) _exit(2);
    const auto status = (*other)->add_peer(0, (*mine)->address());
    const bool good = status.code() == Code::kDenied && status.message().find("user 0") != std::string::npos;
    _exit(good ? 0 : 3);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

// ---- wiring ----

std::string with_word(const std::string& address, size_t index, const std::string& word) {
  std::istringstream in(address);
  std::string result, w;
  for (size_t i = 0; in >> w; ++i) result += (i == 0 ? "" : " ") + (i == index ? word : w);
  return result;
}

TEST(ShmWiring, EveryRefusalSaysWhy) {
  auto a = shm::make(0, 2, 42);
  auto b = shm::make(1, 2, 42);
  ASSERT_TRUE(a.ok() && b.ok());
  const std::string good = (*b)->address();
  auto refusal = [&](const std::string& address, Code code, const char* part) {
    const auto status = (*a)->add_peer(1, address);
    EXPECT_EQ(status.code(), code) << status.to_string();
    EXPECT_NE(status.message().find(part), std::string::npos) << status.to_string();
  };
  refusal("", Code::kProtocol, "no address");
  refusal("tcp 1.2.3.4", Code::kProtocol, "no address");
  refusal(good.substr(0, good.size() / 2), Code::kProtocol, "damaged");
  refusal(good + " 1", Code::kProtocol, "damaged");
  refusal(with_word(good, 0, "shm/99"), Code::kUnavailable, "layout shm/99");
  refusal(with_word(good, 1, "00000000-0000-0000-0000-000000000000"), Code::kUnavailable, "another host");
  refusal(with_word(good, 2, "pid:[1]"), Code::kUnavailable, "container");
  refusal(with_word(good, 3, "4194304"), Code::kPeerLost, "ended");
  refusal(with_word(good, 5, "999999"), Code::kPeerLost, "closed its segment");
  refusal(with_word(good, 8, "12345"), Code::kProtocol, "not the segment");
  refusal(with_word(good, 5, std::to_string(open("/dev/null", O_RDWR | O_CLOEXEC))), Code::kProtocol, "no segment");

  auto stranger = shm::make(1, 2, 43);
  refusal((*stranger)->address(), Code::kMismatch, "another communicator");
  auto third = shm::make(1, 3, 42);
  refusal((*third)->address(), Code::kMismatch, "rank 1 of 3");
  auto wide = shm::make(1, 2, 42, {.slots = 16});
  refusal((*wide)->address(), Code::kMismatch, "16 slots");
  EXPECT_EQ((*a)->add_peer(0, good).code(), Code::kInvalid);
  EXPECT_EQ((*a)->add_peer(2, good).code(), Code::kInvalid);
  EXPECT_TRUE((*a)->add_peer(1, good).ok());
  EXPECT_EQ((*a)->add_peer(1, good).code(), Code::kInvalid) << "twice";

  EXPECT_EQ(shm::make(2, 2, 1).status().code(), Code::kInvalid);
  EXPECT_EQ(shm::make(0, 2, 1, {.slots = 3}).status().code(), Code::kInvalid);
  EXPECT_EQ(shm::make(0, 2, 1, {.slot_bytes = 100}).status().code(), Code::kInvalid);
}

TEST(ShmWiring, APeerThatStoppedEarlierIsAFailure) {
  auto a = shm::make(0, 2, 42);
  auto b = shm::make(1, 2, 42);
  const std::string address = (*b)->address();
  (*b)->stop();
  ASSERT_TRUE((*a)->add_peer(1, address).ok());
  (*a)->progress();
  EXPECT_NE((*a)->failure(), nullptr);
}

TEST(ShmWiring, ASegmentIsSparseAndEndsWithItsTransports) {
  { standard(2); }
  const size_t fds = open_fds(), maps = mappings_of("ringfold");
  {
    Fabric fabric = standard(3);
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) {
        if (i != j) fabric.ranks[size_t(i)]->open(j, 0);
      }
    }
    EXPECT_GT(open_fds(), fds);
    auto large = shm::make(0, 128, 42);  // 650 MiB of rings, of which nothing is touched
    ASSERT_TRUE(large.ok());
    int segment = -1;
    std::istringstream in((*large)->address());
    std::string word;
    for (int i = 0; i < 5; ++i) in >> word;
    in >> segment;
    struct stat s = {};
    ASSERT_EQ(fstat(segment, &s), 0);
    EXPECT_GT(s.st_size, off_t(600) << 20);
    EXPECT_LT(s.st_blocks * 512, off_t(1) << 20);
  }
  EXPECT_EQ(open_fds(), fds);
  EXPECT_EQ(mappings_of("ringfold"), maps);
}

}  // namespace
}  // namespace ringfold::transport::test
