#include "tools/cli/run/process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <signal.h>
#include <string.h>  // NOLINT: sigabbrev_np
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>

namespace ringfold::cli {
namespace {

std::vector<char*> pointers(const std::vector<std::string>& words) {
  std::vector<char*> result;
  result.reserve(words.size() + 1);
  for (const std::string& word : words) result.push_back(const_cast<char*>(word.c_str()));
  result.push_back(nullptr);
  return result;
}

// Only what is allowed between fork and exec in a process with threads: system calls.
[[noreturn]] void become(const ProcessSpec& spec, const std::vector<unsigned long>& processors, char** arguments,
                         char** environment, pid_t parent, int report) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(127);  // it ended before it could be watched
  struct sigaction standard {};
  standard.sa_handler = SIG_DFL;
  ::sigaction(SIGPIPE, &standard, nullptr);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  const int in = spec.in >= 0 ? spec.in : ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (in >= 0) ::dup2(in, 0);
  if (spec.out >= 0) ::dup2(spec.out, 1);
  if (spec.error >= 0) ::dup2(spec.error, 2);
  // A rank that cannot be bound runs unbound.
  if (!processors.empty()) {
    ::sched_setaffinity(0, processors.size() * sizeof(unsigned long),
                        reinterpret_cast<const cpu_set_t*>(processors.data()));
  }
  ::execvpe(arguments[0], arguments, environment);
  const int reason = errno;
  [[maybe_unused]] const ssize_t sent = ::write(report, &reason, sizeof(reason));
  ::_exit(127);
}

}  // namespace

Result<pid_t> start_process(const ProcessSpec& spec) {
  const auto arguments = pointers(spec.arguments), environment = pointers(spec.environment);
  constexpr size_t kBits = 8 * sizeof(unsigned long);
  std::vector<unsigned long> processors((spec.processors.size() + kBits - 1) / kBits);
  for (size_t i = 0; i < spec.processors.size(); ++i) {
    if (spec.processors[i]) processors[i / kBits] |= 1UL << (i % kBits);
  }
  std::array<int, 2> report{};
  if (::pipe2(report.data(), O_CLOEXEC) != 0) return Status(Code::kIo, fmt::format("pipe: {}", ::strerror(errno)));
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid == 0) {
    become(spec, processors, const_cast<char**>(arguments.data()), const_cast<char**>(environment.data()), parent,
           report[1]);
  }
  const int fork_error = errno;
  ::close(report[1]);
  int reason = 0;
  ssize_t got = 0;
  if (pid > 0) {
    ::setpgid(pid, pid);  // both sides, so that neither can act before it is so
    while ((got = ::read(report[0], &reason, sizeof(reason))) < 0 && errno == EINTR) {
    }
  }
  ::close(report[0]);
  if (pid < 0) return Status(Code::kUnavailable, fmt::format("cannot start a process: {}", ::strerror(fork_error)));
  if (got > 0) {
    ::waitpid(pid, nullptr, 0);
    return Status(Code::kUnavailable, fmt::format("cannot run {}: {}", spec.arguments[0], ::strerror(reason)));
  }
  return pid;
}

int exit_status_of(int wait_status) {
  return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

std::string signal_name(int signal) {
  const char* name = ::sigabbrev_np(signal);
  return name == nullptr ? "" : name;
}

std::string ending_in_words(int wait_status) {
  if (WIFSIGNALED(wait_status)) return fmt::format("was ended by SIG{}", signal_name(WTERMSIG(wait_status)));
  const int status = WEXITSTATUS(wait_status);
  const std::string name = status > 128 ? signal_name(status - 128) : "";  // a shell reports its child's end so
  return fmt::format("exited with status {}{}", status, name.empty() ? "" : fmt::format(" (SIG{})", name));
}

}  // namespace ringfold::cli
