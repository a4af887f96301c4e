// A process beside the launcher that cleans up after it, however it ends.
#pragma once

#include <sys/types.h>

#include <string>

#include "ringfold/status.h"

namespace ringfold::cli {

// Holds the reading end of a pipe whose only writing end is the launcher's. When that closes (because the launcher is
// done, or because somebody has killed it) the guard ends the process groups that are still registered and removes
// the job's folder. So there is one clean-up for all ways to end, and SIGKILL is none too many.
class JobGuard {
 public:
  // Forks: to be made while the process has one thread.
  static Result<JobGuard> start(const std::string& folder);
  JobGuard(JobGuard&& other) noexcept;
  JobGuard& operator=(JobGuard&&) = delete;
  // Cleans up, and waits until that is done.
  ~JobGuard();

  void watch(pid_t group) const { tell(group); }
  // Its leader is about to be reaped: the number may soon belong to somebody else.
  void forget(pid_t group) const { tell(-group); }

 private:
  JobGuard(int fd, pid_t pid) : fd_(fd), pid_(pid) {}
  void tell(pid_t message) const;
  int fd_;
  pid_t pid_;
};

}  // namespace ringfold::cli
