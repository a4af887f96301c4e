#include "tools/cli/run/guard.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>
#include <system_error>

namespace ringfold::cli {
namespace {

[[noreturn]] void keep_guard(int fd, const std::string& folder) {
  ::setsid();  // what the terminal sends to the launcher is not for us
  sigset_t all;
  ::sigfillset(&all);
  ::sigprocmask(SIG_SETMASK, &all, nullptr);
  const int null = ::open("/dev/null", O_RDWR);
  for (int standard = 0; standard < 3; ++standard) ::dup2(null, standard);  // nobody waits for our end of a pipe
  std::set<pid_t> groups;
  pid_t message = 0;
  for (ssize_t got = 0; (got = ::read(fd, &message, sizeof(message))) != 0;) {
    if (got < 0 && errno == EINTR) continue;
    if (got != sizeof(message)) break;
    if (message > 0) groups.insert(message);
    if (message < 0) groups.erase(-message);
  }
  for (const pid_t group : groups) ::kill(-group, SIGKILL);
  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
  ::_exit(0);
}

}  // namespace

Result<JobGuard> JobGuard::start(const std::string& folder) {
  std::array<int, 2> fds{};
  if (::pipe2(fds.data(), O_CLOEXEC) != 0) return Status(Code::kIo, std::string("pipe: ") + std::strerror(errno));
  const pid_t pid = ::fork();
  if (pid < 0) return Status(Code::kIo, std::string("fork: ") + std::strerror(errno));
  if (pid == 0) {
    ::close(fds[1]);
    keep_guard(fds[0], folder);
  }
  ::close(fds[0]);
  return JobGuard(fds[1], pid);
}

JobGuard::JobGuard(JobGuard&& other) noexcept : fd_(other.fd_), pid_(other.pid_) { other.fd_ = -1; }

JobGuard::~JobGuard() {
  if (fd_ < 0) return;
  ::close(fd_);
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

void JobGuard::tell(pid_t message) const {
  while (::write(fd_, &message, sizeof(message)) < 0 && errno == EINTR) {
  }
}

}  // namespace ringfold::cli
