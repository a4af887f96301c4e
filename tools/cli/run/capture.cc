#include "tools/cli/run/capture.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "base/clock.h"
#include "comm/config.h"
#include "tools/cli/run/process.h"

namespace ringfold::cli {

Result<Captured> capture(const std::vector<std::string>& command, double seconds) {
  std::array<int, 2> fds{};
  if (::pipe2(fds.data(), O_CLOEXEC) != 0) return Status(Code::kIo, "no pipe");
  ProcessSpec spec;
  spec.arguments = command;
  for (const auto& [name, value] : comm::process_environment()) spec.environment.push_back(name + "=" + value);
  spec.out = spec.error = fds[1];
  const auto pid = start_process(spec);
  ::close(fds[1]);
  if (!pid.ok()) {
    ::close(fds[0]);
    return pid.status();
  }
  Captured result;
  const auto deadline = base::Deadline::after(base::duration_of(seconds));
  bool ended = false;
  while (!ended && !deadline.passed()) {
    pollfd wait{fds[0], POLLIN, 0};
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline.left()).count();
    if (::poll(&wait, 1, static_cast<int>(left)) <= 0) continue;
    std::array<char, 4096> buffer;  // NOLINT: written by read
    const ssize_t got = ::read(fds[0], buffer.data(), buffer.size());
    if (got > 0) result.output.append(buffer.data(), static_cast<size_t>(got));
    ended = got == 0 || (got < 0 && errno != EINTR);
  }
  ::close(fds[0]);
  if (!ended) ::kill(-*pid, SIGKILL);
  int status = 0;
  while (::waitpid(*pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (!ended) return Status(Code::kTimeout, fmt::format("{} gave no answer within {} s", command[0], seconds));
  result.status = exit_status_of(status);
  return result;
}

}  // namespace ringfold::cli
