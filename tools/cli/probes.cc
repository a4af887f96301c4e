#include "tools/cli/probes.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace ringfold::cli {
namespace {

// A child process that waits to be looked at; it goes with this object.
class Subject {
 public:
  Subject() {
    const pid_t parent = ::getpid();
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(0);
    while (true) ::pause();
  }
  Subject(const Subject&) = delete;
  Subject& operator=(const Subject&) = delete;
  ~Subject() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
};

// Runs `look` in a process beside the subject, as ranks are beside each other: an ancestor would be allowed more.
template <typename Look>
int errno_beside(const Look& look) {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(look() ? 0 : errno == 0 ? EIO : errno);
  int status = 0;
  if (pid < 0 || ::waitpid(pid, &status, 0) != pid) return EAGAIN;
  return WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
}

Probe result_of(int error, const char* what) {
  if (error == 0) return {true, ""};
  return {false, fmt::format("{}: {}", what, std::strerror(error))};
}

int yama() {
  int value = 0;
  const int fd = ::open("/proc/sys/kernel/yama/ptrace_scope", O_RDONLY | O_CLOEXEC);
  char digit = '0';
  if (fd >= 0 && ::read(fd, &digit, 1) == 1) value = digit - '0';
  if (fd >= 0) ::close(fd);
  return value;
}

}  // namespace

Probe probe_proc_fd() {
  const int memory = ::memfd_create("ringfold-probe", MFD_CLOEXEC);
  if (memory < 0) return result_of(errno, "memfd_create");
  const Subject subject;  // inherits the descriptor
  const std::string path = fmt::format("/proc/{}/fd/{}", subject.pid(), memory);
  const int error = errno_beside([&] { return ::open(path.c_str(), O_RDWR) >= 0; });
  ::close(memory);
  return result_of(error, "opening /proc/PID/fd of another process of this user");
}

Probe probe_vm_readv() {
  static const int kSecret = 4711;
  const Subject subject;
  const int error = errno_beside([&] {
    int copy = 0;
    iovec here{&copy, sizeof(copy)}, there{const_cast<int*>(&kSecret), sizeof(kSecret)};
    return ::process_vm_readv(subject.pid(), &here, 1, &there, 1, 0) == sizeof(copy) && copy == kSecret;
  });
  Probe probe = result_of(error, "process_vm_readv");
  if (!probe.works && yama() > 0) probe.reason += fmt::format(" (kernel.yama.ptrace_scope is {})", yama());
  return probe;
}

Probe probe_tcp_loopback() {
  const int server = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  auto* any = reinterpret_cast<sockaddr*>(&address);
  if (server < 0 || ::bind(server, any, length) != 0 || ::listen(server, 1) != 0 ||
      ::getsockname(server, any, &length) != 0) {
    const int error = errno;
    if (server >= 0) ::close(server);
    return result_of(error, "listening on 127.0.0.1");
  }
  const int client = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const timeval patience{2, 0};
  ::setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
  const int error = client >= 0 && ::connect(client, any, length) == 0 ? 0 : errno;
  if (client >= 0) ::close(client);
  ::close(server);
  return result_of(error, "connecting to 127.0.0.1");
}

}  // namespace ringfold::cli
