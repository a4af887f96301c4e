#include "comm/rendezvous.h"
#include "comm/text.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <barrier>
#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <thread>

#include "tests/comm/place.h"
#include "tests/support/expect_log.h"

namespace ringfold::comm {
namespace {

using base::Deadline;
using base::Key;
using std::chrono::milliseconds;
using std::chrono::seconds;

std::string card(int rank) { return fmt::format("card of {}", rank); }

struct Outcome {
  std::vector<Result<Roster>> ranks;
};

// The given ranks as threads, each `delay(rank)` late.
template <typename Delay>
std::vector<Result<Roster>> meet(const std::string& where, const std::vector<int>& ranks, int size, Deadline deadline,
                                 Delay delay) {
  std::vector<Result<Roster>> results(ranks.size(), Status(Code::kInternal, "did not run"));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < ranks.size(); ++i) {
    threads.emplace_back([&, i] {
      std::this_thread::sleep_for(delay(ranks[i]));
      Launch launch;
      launch.rank = ranks[i];
      launch.size = size;
      launch.rendezvous = where;
      results[i] = rendezvous(launch, key(), card(ranks[i]), false, deadline);
    });
  }
  for (auto& thread : threads) thread.join();
  return results;
}

std::vector<int> all(int n) {
  std::vector<int> ranks(static_cast<size_t>(n));
  for (int r = 0; r < n; ++r) ranks[r] = r;
  return ranks;
}
milliseconds at_once(int) { return {}; }

// As meet(), through an exchange in memory; `change` may alter what rank r hands in.
std::vector<Result<Roster>> meet_by_exchange(int size, const std::function<std::string(int, std::string)>& change,
                                             const std::function<Key(int)>& key_of) {
  std::vector<Result<Roster>> results(static_cast<size_t>(size), Status(Code::kInternal, "did not run"));
  std::vector<std::string> records(static_cast<size_t>(size));
  std::barrier all_here(size);
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&, r] {
      Launch launch;
      launch.rank = r;
      launch.size = size;
      launch.exchange = [&, r](const std::string& mine, double) -> Result<std::vector<std::string>> {
        records[r] = change(r, mine);
        all_here.arrive_and_wait();
        return records;
      };
      results[r] = rendezvous(launch, key_of(r), card(r), false, Deadline::after(seconds(5)));
    });
  }
  for (auto& thread : threads) thread.join();
  return results;
}

void expect_table(const std::vector<Result<Roster>>& results) {
  for (const auto& roster : results) {
    ASSERT_TRUE(roster.ok()) << roster.status().message();
    EXPECT_EQ(roster->job, results[0]->job);
    ASSERT_EQ(roster->cards.size(), results.size());
    for (size_t r = 0; r < results.size(); ++r) EXPECT_EQ(roster->cards[r], card(static_cast<int>(r)));
  }
}

bool has_ipv6() {
  const int fd = ::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in6 at{};
  at.sin6_family = AF_INET6;
  at.sin6_addr = in6addr_loopback;
  const bool there = fd >= 0 && ::bind(fd, reinterpret_cast<sockaddr*>(&at), sizeof at) == 0;
  if (fd >= 0) ::close(fd);
  return there;
}

class TemporaryFolder {
 public:
  TemporaryFolder() : path_(std::filesystem::temp_directory_path() / ("ringfold-test-" + random_name())) {}
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  std::string place() const { return "dir:" + path_.string(); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// Sends arbitrary bytes to a port, again and again, and keeps some connections open without a word.
class Scanner {
 public:
  explicit Scanner(const std::string& place) : place_(*parse_place(place)) {
    thread_ = std::thread([this] {
      std::mt19937 random(1);
      std::vector<int> open;
      while (!stop_) {
        const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_in to{};
        to.sin_family = AF_INET;
        to.sin_port = htons(place_.first);
        ::inet_pton(AF_INET, place_.host.c_str(), &to.sin_addr);
        if (::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0) {
          ++hits_;
          std::string bytes = random() % 2 ? "GET / HTTP/1.1\r\n\r\n" : std::string(random() % 4000, '\0');
          for (char& c : bytes) {
            if (random() % 4 == 0) c = static_cast<char>(random());
          }
          if (random() % 3 != 0) (void)!::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        }
        if (random() % 3 == 0 && open.size() < 50) {
          open.push_back(fd);
        } else {
          ::close(fd);
        }
        std::this_thread::sleep_for(milliseconds(2));
      }
      for (int fd : open) ::close(fd);
    });
  }
  ~Scanner() {
    stop_ = true;
    thread_.join();
  }
  int hits() const { return hits_; }

 private:
  Place place_;
  std::atomic<bool> stop_{false};
  std::atomic<int> hits_{0};
  std::thread thread_;
};

TEST(Rendezvous, PlacesAreParsedOrRefused) {
  auto place = parse_place("host.example:80-90");
  ASSERT_TRUE(place.ok());
  EXPECT_EQ(place->host, "host.example");
  EXPECT_EQ(place->first, 80);
  EXPECT_EQ(place->last, 90);
  EXPECT_EQ(parse_place("[::1]:80")->host, "::1");
  for (auto text :
       {"", "host", "host:", ":80", "host:0", "host:70000", "host:90-80", "host:80-", "[]:80", "[:80", "host:8x"}) {
    EXPECT_EQ(parse_place(text).status().code(), Code::kInvalid) << text;
  }
}

TEST(Rendezvous, RanksAreListedAsPeopleWriteThem) {
  EXPECT_EQ(list_ranks({2, 3}), "2,3");
  EXPECT_EQ(list_ranks({1, 2, 3, 7, 9, 10}), "1-3,7,9,10");
  EXPECT_EQ(list_ranks({}), "");
}

TEST(Rendezvous, RanksMeetAtAnAddressInAnyOrder) {
  for (const std::string host : {"127.0.0.1", "localhost", "::1"}) {
    if (host == "::1" && !has_ipv6()) continue;
    expect_table(meet(free_place(host), all(6), 6, Deadline::after(seconds(30)),
                      [&](int r) { return milliseconds((r * 37) % 50); }));
  }
}

TEST(Rendezvous, RankZeroMayBeLate) {
  expect_table(meet(free_place(), all(3), 3, Deadline::after(seconds(30)),
                    [](int r) { return milliseconds(r == 0 ? 700 : 0); }));
}

TEST(Rendezvous, ALauncherHostsItAndServesTheNextStartToo) {
  auto server = RendezvousServer::start({"127.0.0.1", 0, 0, 3, false}, key());
  ASSERT_TRUE(server.ok());
  auto first = meet((*server)->address(), all(3), 3, Deadline::after(seconds(30)), at_once);
  expect_table(first);
  auto second = meet((*server)->address(), all(3), 3, Deadline::after(seconds(30)), at_once);
  expect_table(second);
  EXPECT_NE(first[0]->job, second[0]->job);
}

TEST(Rendezvous, AForeignServiceOnTheFirstPortOfARangeIsPassedOver) {
  const auto place = *parse_place(free_place());
  if (place.first > 65000) GTEST_SKIP() << "the system chose a port too near to the end";
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);  // accepts in the kernel, and never says a word
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = htons(place.first);
  ::inet_pton(AF_INET, "127.0.0.1", &at.sin_addr);
  ASSERT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
  ASSERT_EQ(::listen(fd, 16), 0);
  expect_table(meet(fmt::format("127.0.0.1:{}-{}", place.first, place.first + 5), all(2), 2,
                    Deadline::after(seconds(60)), at_once));
  ::close(fd);
}

TEST(Rendezvous, APortScannerDoesNotDisturb) {
  const auto place = free_place();
  Scanner scanner(place);
  expect_table(meet(place, all(4), 4, Deadline::after(seconds(30)), [](int r) { return milliseconds(r * 150); }));
  EXPECT_GT(scanner.hits(), 10);
}

TEST(Rendezvous, MissingRanksAreNamedToAll) {
  const auto place = free_place();
  for (const auto& result : meet(place, {0, 1}, 4, Deadline::after(milliseconds(800)), at_once)) {
    EXPECT_EQ(result.status().code(), Code::kTimeout);
    EXPECT_TRUE(result.status().message().starts_with("ranks 2,3 of 4 have not arrived after 0."))
        << result.status().message();
    EXPECT_TRUE(result.status().message().ends_with(" s at " + place)) << result.status().message();
  }
}

TEST(Rendezvous, WithoutRankZeroTheAddressIsNamed) {
  const auto place = free_place();
  auto result = meet(place, {1}, 2, Deadline::after(milliseconds(300)), at_once)[0];
  EXPECT_EQ(result.status().code(), Code::kTimeout);
  for (const auto& part :
       {std::string("rank 1 of 2"), place, std::string("Connection refused"), std::string("is rank 0 started")}) {
    EXPECT_NE(result.status().message().find(part), std::string::npos) << result.status().message();
  }
}

TEST(Rendezvous, ANameThatDoesNotResolveIsRetriedAndNamed) {
  auto result = meet("no-such-host.invalid:4000", {1}, 2, Deadline::after(milliseconds(300)), at_once)[0];
  EXPECT_EQ(result.status().code(), Code::kTimeout);
  EXPECT_NE(result.status().message().find("cannot resolve no-such-host.invalid"), std::string::npos)
      << result.status().message();
}

TEST(Rendezvous, AWrongKeyIsRefusedAndNamedOnBothSides) {
  test::expect_log("refused a connection from 127.0.0.1");
  const auto place = free_place();
  Launch launch;
  launch.rank = 1;
  launch.size = 2;
  launch.rendezvous = place;
  Result<Roster> intruder = Status(Code::kInternal, "");
  std::thread thread(
      [&] { intruder = rendezvous(launch, *Key::generate(), "x", false, Deadline::after(seconds(20))); });
  auto honest = meet(place, {0}, 2, Deadline::after(milliseconds(3500)), at_once)[0];
  thread.join();
  EXPECT_EQ(intruder.status().code(), Code::kDenied) << intruder.status().message();
  EXPECT_NE(intruder.status().message().find(place), std::string::npos) << intruder.status().message();
  EXPECT_NE(honest.status().message().find("rank 1 of 2 has not arrived"), std::string::npos)
      << honest.status().message();
  EXPECT_NE(honest.status().message().find("from 127.0.0.1 did not prove the job's key"), std::string::npos)
      << honest.status().message();
}

TEST(Rendezvous, ARankThatComesTwiceIsRefused) {
  const auto place = free_place();
  auto results = meet(place, {0, 1, 1}, 3, Deadline::after(seconds(2)), [](int) { return milliseconds(0); });
  int refused = 0;
  for (const auto& result : results)
    refused += result.status().code() == Code::kInvalid && result.status().message().find("rank 1 came twice") == 0;
  EXPECT_EQ(refused, 1);
}

TEST(Rendezvous, AnotherSizeIsRefused) {
  const auto place = free_place();
  Launch launch;
  launch.rank = 2;
  launch.size = 3;
  launch.rendezvous = place;
  Result<Roster> other = Status(Code::kInternal, "");
  std::thread thread([&] { other = rendezvous(launch, key(), "x", false, Deadline::after(seconds(20))); });
  meet(place, {0}, 2, Deadline::after(seconds(1)), at_once);
  thread.join();
  EXPECT_EQ(other.status().code(), Code::kInvalid) << other.status().message();
}

TEST(RendezvousDirectory, RanksMeetInAnyOrderAndLeaveNothing) {
  TemporaryFolder folder;
  auto results = meet(folder.place(), all(6), 6, Deadline::after(seconds(30)),
                      [](int r) { return milliseconds((r * 37) % 90); });
  expect_table(results);
  results[0]->clean_up();
  EXPECT_FALSE(std::filesystem::exists(folder.path()));
}

TEST(RendezvousDirectory, FilesOfAnEarlierJobDoNotConfuse) {
  TemporaryFolder folder;
  std::set<std::string> jobs;
  for (int round = 0; round < 5; ++round) {  // clean_up is not called: rank-0 and table stay
    auto results = meet(folder.place(), all(3), 3, Deadline::after(seconds(30)),
                        [&](int r) { return milliseconds(((r + round) % 3) * 30); });
    expect_table(results);
    EXPECT_TRUE(jobs.insert(results[0]->job).second);
    // What a rank that was killed at that moment would have left behind.
    if (round == 0) meet(folder.place(), {1, 2}, 3, Deadline::after(milliseconds(100)), at_once);
    std::filesystem::copy(folder.path() / "rank-0", folder.path() / "rank-2",
                          std::filesystem::copy_options::overwrite_existing);
    test::expect_log("rank-2 was not written with this job's key");  // a file under another name proves nothing
  }
}

TEST(RendezvousDirectory, AStaleRankThatNeverComesBackIsMissed) {
  TemporaryFolder folder;
  std::thread ghost([&] { meet(folder.place(), {1}, 2, Deadline::after(milliseconds(150)), at_once); });
  std::this_thread::sleep_for(milliseconds(50));
  std::filesystem::copy(folder.path() / "rank-1", folder.path() / "kept");
  ghost.join();
  std::filesystem::rename(folder.path() / "kept", folder.path() / "rank-1");  // it died without removing its file
  auto result = meet(folder.place(), {0}, 2, Deadline::after(milliseconds(400)), at_once)[0];
  EXPECT_EQ(result.status().code(), Code::kTimeout);
  EXPECT_TRUE(result.status().message().starts_with("rank 1 of 2 has not arrived")) << result.status().message();
}

std::string as_it_is(int, std::string record) { return record; }
const Key& same_key(int) { return key(); }

TEST(RendezvousExchange, GivesEveryRankTheCardsOfAllAndOneName) {
  expect_table(meet_by_exchange(4, as_it_is, same_key));
  EXPECT_NE(meet_by_exchange(2, as_it_is, same_key)[0]->job, meet_by_exchange(2, as_it_is, same_key)[0]->job);
}

TEST(RendezvousExchange, BelievesNothingThatTheKeyDidNotSeal) {
  static const Key kOther = *Key::generate();
  for (const auto& r : meet_by_exchange(3, as_it_is, [](int rank) { return rank == 1 ? kOther : key(); })) {
    EXPECT_EQ(r.status().code(), Code::kDenied);
    EXPECT_NE(r.status().message().find("RINGFOLD_KEY_FILE"), std::string::npos) << r.status().message();
  }
  for (size_t flip : {size_t{25}, size_t{60}, size_t{100}}) {
    auto flipped = meet_by_exchange(
        2,
        [flip](int rank, std::string record) {
          if (rank == 1) record[flip] = static_cast<char>(record[flip] ^ 1);
          return record;
        },
        same_key);
    EXPECT_EQ(flipped[0].status().code(), Code::kDenied) << flip;
  }
  for (const auto& r : meet_by_exchange(
           2, [](int rank, std::string record) { return rank == 0 ? "" : record; }, same_key)) {
    EXPECT_EQ(r.status().code(), Code::kProtocol);
    EXPECT_NE(r.status().message().find("rank 0"), std::string::npos) << r.status().message();
  }
}

TEST(RendezvousDirectory, MissingRanksAreNamed) {
  TemporaryFolder folder;
  for (const auto& result : meet(folder.place(), {0, 2}, 4, Deadline::after(milliseconds(300)), at_once)) {
    EXPECT_TRUE(result.status().message().starts_with("ranks 1,3 of 4 have not arrived after 0."))
        << result.status().message();
  }
}

TEST(RendezvousDirectory, FilesWithAnotherKeyAreRefusedAndNamed) {
  test::expect_log("was not written with this job's key");
  TemporaryFolder folder;
  Launch launch;
  launch.rank = 1;
  launch.size = 2;
  launch.rendezvous = folder.place();
  Result<Roster> intruder = Status(Code::kInternal, "");
  std::thread thread(
      [&] { intruder = rendezvous(launch, *Key::generate(), "x", false, Deadline::after(milliseconds(600))); });
  auto honest = meet(folder.place(), {0}, 2, Deadline::after(milliseconds(500)), at_once)[0];
  thread.join();
  EXPECT_EQ(honest.status().code(), Code::kDenied);
  EXPECT_NE(honest.status().message().find("rank-1 was written with another key"), std::string::npos)
      << honest.status().message();
  EXPECT_EQ(intruder.status().code(), Code::kDenied);
}

TEST(RendezvousDirectory, ArbitraryFilesAreSurvived) {
  TemporaryFolder folder;
  std::filesystem::create_directories(folder.path());
  std::ofstream(folder.path() / "table") << "x";
  std::ofstream(folder.path() / "rank-0") << std::string(100, '\0');
  std::filesystem::create_symlink("/dev/zero", folder.path() / "rank-1");
  std::filesystem::create_directory(folder.path() / "rank-x");
  expect_table(meet(folder.place(), all(2), 2, Deadline::after(seconds(30)), at_once));
}

}  // namespace
}  // namespace ringfold::comm
