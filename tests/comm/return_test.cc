// Processes are killed and others come in their place, again and again: each is taken in by those that are left.
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "ringfold/ringfold.hpp"

namespace ringfold::test {
namespace {

constexpr int kRanks = 4;

struct News {  // of a rank that has a communicator
  int rank = 0, size = 0;
  uint32_t epoch = 0;
};

// Sums ones with the others until the file `stop` is there; tells `out` of each communicator. The exit status.
int live(int rank, const std::string& folder, int out) {
  Options options;
  options.rank = rank;
  options.size = kRanks;
  options.rendezvous = "dir:" + folder + "/meet";
  options.key = "a key that nobody else has";
  options.timeout_s = 60;
  options.open = true;
  auto made = Communicator::init(options);
  if (!made.ok()) {
    std::fprintf(stderr, "rank %d: %s\n", rank, made.status().to_string().c_str());
    return 2;
  }
  Communicator comm = std::move(*made);
  if (comm.job_rank() != rank) return 3;
  for (bool fresh = true;;) {
    if (fresh) {
      const News news{rank, comm.size(), comm.epoch()};
      if (::write(out, &news, sizeof news) != sizeof news) return 4;
    }
    fresh = false;
    std::array<int32_t, 2> mine = {1, std::filesystem::exists(folder + "/stop") ? 1 : 0}, sum{};
    const Status status = comm.all_reduce(mine.data(), sum.data(), 2, DataType::kI32).wait();
    if (status.ok()) {
      if (sum[0] != comm.size()) return 5;
      if (sum[1] > 0) return 0;
      if (comm.rank() == 0 && !comm.waiting().empty()) comm.abort("somebody has come back");
      continue;
    }
    if (status.verdict() == nullptr) return 6;
    auto next = comm.reconfigure();
    if (!next.ok()) {
      std::fprintf(stderr, "rank %d: %s\n", rank, next.status().to_string().c_str());
      return 7;
    }
    comm = std::move(*next);
    fresh = true;
  }
}

class Return : public testing::Test {
 protected:
  Return() {
    std::string name = std::filesystem::temp_directory_path() / "ringfold-return-XXXXXX";
    folder_ = mkdtemp(name.data());
    EXPECT_EQ(::pipe(pipe_.data()), 0);
  }
  ~Return() override {
    for (pid_t pid : pids_) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, 0);
    }
    std::filesystem::remove_all(folder_);
  }
  pid_t start(int rank, bool again) {
    const pid_t pid = ::fork();
    if (pid > 0) return pid;
    if (again) ::setenv("RINGFOLD_RESTARTED", "1", 1);
    ::_exit(live(rank, folder_, pipe_[1]));
  }
  // Until `size` ranks say that they are so many, of one epoch.
  bool are(int size) {
    std::vector<News> last(kRanks);
    for (;;) {
      pollfd wait{pipe_[0], POLLIN, 0};
      News news;
      if (::poll(&wait, 1, 60'000) <= 0 || ::read(pipe_[0], &news, sizeof news) != sizeof news) return false;
      last[static_cast<size_t>(news.rank)] = news;
      int agree = 0;
      for (const News& n : last) agree += n.size == size && n.epoch == news.epoch ? 1 : 0;
      if (agree == size) return true;
    }
  }

  std::string folder_;
  std::array<int, 2> pipe_{};
  std::vector<pid_t> pids_;
};

TEST_F(Return, RanksThatWereKilledAreTakenInAgain) {
  for (int r = 0; r < kRanks; ++r) pids_.push_back(start(r, false));
  ASSERT_TRUE(are(kRanks));
  std::mt19937 random(5);
  for (int trial = 0; trial < 12; ++trial) {
    SCOPED_TRACE(trial);
    // One, or two at a time, of which the second may die while the others still agree on the first.
    const int first = static_cast<int>(random() % kRanks);
    std::vector<int> victims = {first};
    if (trial % 3 == 1) victims.push_back((first + 1 + static_cast<int>(random() % (kRanks - 1))) % kRanks);
    for (int v : victims) {
      ::kill(pids_[static_cast<size_t>(v)], SIGKILL);
      ::waitpid(pids_[static_cast<size_t>(v)], nullptr, 0);
      if (random() % 2 == 0) ::usleep(static_cast<useconds_t>(random() % 3000));
    }
    if (trial % 2 == 0) {
      ASSERT_TRUE(are(kRanks - static_cast<int>(victims.size())));
    }
    for (int v : victims) pids_[static_cast<size_t>(v)] = start(v, true);
    ASSERT_TRUE(are(kRanks));
  }
  std::ofstream(folder_ + "/stop") << "now";
  for (pid_t pid : std::exchange(pids_, {})) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    EXPECT_EQ(status, 0);
  }
}

TEST_F(Return, AJobThatHasEndedTakesNobodyIn) {
  for (int r = 0; r < kRanks; ++r) pids_.push_back(start(r, false));
  ASSERT_TRUE(are(kRanks));
  std::vector<pid_t> pids = std::exchange(pids_, {});
  for (pid_t pid : pids) ::kill(pid, SIGKILL);  // their cards stay
  for (pid_t pid : pids) ::waitpid(pid, nullptr, 0);
  int status = 0;
  const pid_t late = start(2, true);
  ::waitpid(late, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 2);
}

}  // namespace
}  // namespace ringfold::test
