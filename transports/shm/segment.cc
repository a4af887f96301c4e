#include "transports/shm/segment.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <sstream>

namespace ringfold::shm {

Result<Address> Address::here() {
  Address a;
  char text[64] = {};
  const Fd boot(::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
  if (!boot.ok() || read(boot.get(), text, 36) != 36) {
    return Status(Code::kUnavailable, "no boot id in /proc/sys/kernel/random: is /proc mounted?");
  }
  a.host = text;
  const auto n = readlink("/proc/self/ns/pid", text, sizeof text - 1);
  if (n <= 0) return Status(Code::kUnavailable, "no PID namespace in /proc/self/ns: is /proc mounted?");
  a.pid_space.assign(text, static_cast<size_t>(n));
  a.pid = getpid();
  a.uid = geteuid();
  return a;
}

std::string Address::to_string() const {
  return fmt::format("shm/{} {} {} {} {} {} {} {} {}", kLayoutVersion, host, pid_space, pid, uid, segment_fd, pipe_fd,
                     directory_fd, nonce);
}

Result<Address> Address::parse(std::string_view text) {
  std::istringstream in{std::string(text)};
  std::string tag;
  Address a;
  in >> tag;
  if (!tag.starts_with("shm/")) return Status(Code::kProtocol, "this is no address of the shm transport");
  if (tag != fmt::format("shm/{}", kLayoutVersion)) {
    return Status(Code::kUnavailable,
                  fmt::format("the peer has layout {}, this rank shm/{}: use one version of Ringfold "
                              "everywhere",
                              tag, kLayoutVersion));
  }
  in >> a.host >> a.pid_space >> a.pid >> a.uid >> a.segment_fd >> a.pipe_fd >> a.directory_fd >> a.nonce;
  if (in.fail() || !(in >> std::ws).eof() || a.pid <= 0 || a.segment_fd < 0 || a.pipe_fd < 0 || a.directory_fd < 0) {
    return Status(Code::kProtocol, "the peer's shm address is damaged");
  }
  return a;
}

Result<Fd> Address::open(int fd, int flags) const {
  Fd opened(::open(fmt::format("/proc/{}/fd/{}", pid, fd).c_str(), flags | O_CLOEXEC));
  if (opened.ok()) return opened;
  switch (errno) {
    case EACCES:
    case EPERM:
      return Status(Code::kDenied,
                    fmt::format("no permission to open memory of process {} of user {} (this is user {}; "
                                "the processes need one user, and no hidepid on /proc)",
                                pid, uid, geteuid()));
    case ENOENT: return Status(Code::kPeerLost, fmt::format("process {} has ended or closed its segment", pid));
    default: return Status(Code::kIo, fmt::format("opening memory of process {}: {}", pid, std::strerror(errno)));
  }
}

}  // namespace ringfold::shm
