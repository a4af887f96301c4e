// A job that is open, through the C interface: rank 0 is killed, the others go on, and take in who comes in its
// place.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>

#include "ringfold/ringfold.h"

namespace {

constexpr int kRanks = 3;

int wrong(int line) {
  std::fprintf(stderr, "line %d: %s\n", line, ringfold_last_error());
  return 1;
}
#define LIVE_CHECK(condition) \
  if (!(condition)) return wrong(__LINE__)

// Sums ones with the others until all are there again; tells `out` when it goes on without rank 0. The exit status.
int live(int rank, bool again, const std::string& folder, int out) {
  const std::string meet = "dir:" + folder + "/meet", key = folder + "/key";
  ringfold_options options = RINGFOLD_OPTIONS_INIT;
  options.rank = rank;
  options.size = kRanks;
  options.rendezvous = meet.c_str();
  options.key_file = key.c_str();
  options.timeout_s = 60;
  options.open = 1;
  ringfold_comm* comm = nullptr;
  LIVE_CHECK(ringfold_comm_init(&comm, &options) == RINGFOLD_OK);
  LIVE_CHECK(again == (ringfold_comm_epoch(comm) > 0));
  for (bool told = false;;) {
    const int32_t size = ringfold_comm_size(comm), one = 1;
    const bool whole = ringfold_comm_epoch(comm) > 0 && size == kRanks;
    int32_t sum = 0;
    const ringfold_code code = ringfold_all_reduce(comm, &one, &sum, 1, RINGFOLD_I32, RINGFOLD_SUM, nullptr, nullptr);
    if (code == RINGFOLD_OK) {
      LIVE_CHECK(sum == size);
      if (whole) break;
      if (size == kRanks && rank == 0) ::kill(::getpid(), SIGKILL);
      if (size < kRanks && !std::exchange(told, true)) LIVE_CHECK(::write(out, "2", 1) == 1);
      int32_t* waiting = nullptr;
      size_t count = 0;
      LIVE_CHECK(ringfold_comm_waiting(comm, &waiting, &count) == RINGFOLD_OK);
      LIVE_CHECK(count == 0 ? waiting == nullptr : count == 1 && waiting[0] == 0);
      ringfold_free(waiting);
      if (count > 0 && ringfold_comm_rank(comm) == 0) ringfold_comm_abort(comm, "somebody has come back");
      continue;
    }
    // Rank 0 went first, and then the lower one of those that are left asked for another communicator.
    ringfold_verdict verdict = RINGFOLD_VERDICT_INIT;
    LIVE_CHECK(ringfold_last_verdict(&verdict) == 1 && verdict.rank == 0);
    LIVE_CHECK(code == (size == kRanks ? RINGFOLD_PEER_LOST : RINGFOLD_ABORTED));
    ringfold_comm* next = nullptr;
    LIVE_CHECK(ringfold_comm_reconfigure(comm, &next) == RINGFOLD_OK);
    ringfold_comm_destroy(comm);
    comm = next;
  }
  LIVE_CHECK(ringfold_comm_job_rank(comm) == rank);
  LIVE_CHECK(ringfold_comm_rank(comm) == (rank + kRanks - 1) % kRanks);  // who comes back is the last
  ringfold_comm_destroy(comm);
  return 0;
}

pid_t start(int rank, bool again, const std::string& folder, int out) {
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  if (again) ::setenv("RINGFOLD_RESTARTED", "1", 1);
  ::_exit(live(rank, again, folder, out));
}

TEST(CInterface, ARankThatWasKilledIsTakenInAgain) {
  std::string folder = std::filesystem::temp_directory_path() / "ringfold-capi-return-XXXXXX";
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  std::FILE* key = std::fopen((folder + "/key").c_str(), "w");
  ASSERT_NE(key, nullptr);
  std::fputs("a key that nobody else has\n", key);
  std::fclose(key);
  std::filesystem::permissions(folder + "/key", std::filesystem::perms::owner_read);
  std::array<int, 2> news{};
  ASSERT_EQ(::pipe(news.data()), 0);
  std::array<pid_t, kRanks> pids{};
  for (int r = 0; r < kRanks; ++r) pids[static_cast<size_t>(r)] = start(r, false, folder, news[1]);
  ::close(news[1]);
  int status = 0;
  ::waitpid(pids[0], &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  // Nobody comes before the others go on without it: so they are asked while nothing has failed.
  char word = 0;
  for (int r = 1; r < kRanks; ++r) EXPECT_EQ(::read(news[0], &word, 1), 1);
  ::close(news[0]);
  pids[0] = start(0, true, folder, -1);
  for (pid_t pid : pids) {
    ::waitpid(pid, &status, 0);
    EXPECT_EQ(status, 0);
    if (status == 0) continue;  // the others would wait for it
    for (pid_t other : pids) ::kill(other, SIGKILL);
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
