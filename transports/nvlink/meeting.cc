#include "transports/nvlink/meeting.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace ringfold::nvlink {
namespace {

constexpr size_t kNameBytes = 32;

Status failed(const char* what) {
  return {Code::kIo, fmt::format("unix socket between ranks of this host: {}: {}", what, std::strerror(errno))};
}

// A name without a place in the file system: it ends with its socket.
std::pair<sockaddr_un, socklen_t> address_of(const std::string& name) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = std::string(1, '\0') + "ringfold-" + name;
  std::memcpy(address.sun_path, path.data(), path.size());
  return {address, static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size())};
}

base::Fd new_socket() { return base::Fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)); }

bool same_user(int socket) {
  ucred who{};
  socklen_t size = sizeof who;
  return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0 && who.uid == ::geteuid();
}

// A byte, and room for a descriptor beside it.
struct Parcel {
  Parcel() {
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
  }
  Parcel(const Parcel&) = delete;
  char byte = 1;
  iovec data{&byte, 1};
  msghdr message{};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
};

bool give(int socket, int fd) {
  Parcel parcel;
  cmsghdr* header = CMSG_FIRSTHDR(&parcel.message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  return ::sendmsg(socket, &parcel.message, MSG_NOSIGNAL) == 1;
}

base::Fd take(int socket) {
  Parcel parcel;
  int fd = -1;
  if (::recvmsg(socket, &parcel.message, MSG_CMSG_CLOEXEC) == 1) {
    const cmsghdr* header = CMSG_FIRSTHDR(&parcel.message);
    if (header != nullptr && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
      std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
    }
  }
  return base::Fd(fd);
}

}  // namespace

std::string unique_name() {
  std::array<unsigned char, kNameBytes / 2> random{};
  if (::getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size())) return "";
  std::string name;
  for (const unsigned char b : random) name += fmt::format("{:02x}", b);
  return name;
}

Result<std::unique_ptr<Meeting>> Meeting::make() {
  const std::string name = unique_name();
  if (name.empty()) return failed("no random numbers");
  base::Fd socket = new_socket();
  const auto [address, size] = address_of(name);
  if (!socket.ok() || ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
      ::listen(socket.get(), SOMAXCONN) != 0) {
    return failed("cannot listen");
  }
  return std::unique_ptr<Meeting>(new Meeting(name, std::move(socket)));
}

Result<std::vector<base::Fd>> Meeting::exchange(const base::Fd& mine, const std::vector<std::string>& peers,
                                                base::Deadline deadline) {
  const auto takes_part = [&](const std::string& peer) { return !peer.empty() && peer != name_; };
  std::vector<base::Fd> asked(peers.size()), theirs(peers.size());
  std::vector<std::string> to_serve;
  size_t to_come = 0;
  for (size_t p = 0; p < peers.size(); ++p) {
    if (!takes_part(peers[p])) continue;
    if (peers[p].size() != kNameBytes) return Status(Code::kProtocol, "a rank's socket has a name that is none");
    to_serve.push_back(peers[p]);
    ++to_come;
    asked[p] = new_socket();
    const auto [address, size] = address_of(peers[p]);
    // They all listen already, so that connecting waits for nobody.
    if (!asked[p].ok() || ::connect(asked[p].get(), reinterpret_cast<const sockaddr*>(&address), size) != 0) {
      return failed("cannot connect (ranks in containers with networks of their own cannot share GPU memory)");
    }
    if (!same_user(asked[p].get())) return Status(Code::kDenied, "a rank's socket belongs to another user");
    if (::send(asked[p].get(), name_.data(), name_.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(name_.size())) {
      return failed("send");
    }
  }
  std::vector<base::Fd> guests;  // who have not said yet who they are
  while (to_come > 0 || !to_serve.empty()) {
    std::vector<pollfd> fds{{listening_.get(), POLLIN, 0}};
    for (const auto& guest : guests) fds.push_back({guest.get(), POLLIN, 0});
    const size_t first = fds.size();
    std::vector<size_t> whose;
    for (size_t p = 0; p < peers.size(); ++p) {
      if (!takes_part(peers[p]) || theirs[p].ok()) continue;
      fds.push_back({asked[p].get(), POLLIN, 0});
      whose.push_back(p);
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline.left()).count();
    const int ready = ::poll(fds.data(), fds.size(), static_cast<int>(std::min<int64_t>(left, 1 << 30)));
    if (ready < 0 && errno != EINTR) return failed("poll");
    if (ready == 0 && deadline.passed()) {
      return Status(Code::kTimeout, "ranks of this host did not hand over their GPU memory in time");
    }
    for (size_t i = first; i < fds.size(); ++i) {
      if (fds[i].revents == 0) continue;
      theirs[whose[i - first]] = take(fds[i].fd);
      if (!theirs[whose[i - first]].ok()) {
        return Status(Code::kPeerLost, "a rank of this host went away while it handed over its GPU memory");
      }
      --to_come;
    }
    std::vector<base::Fd> left_over;
    for (size_t g = 0; g < guests.size(); ++g) {
      if (fds[1 + g].revents == 0) {
        left_over.push_back(std::move(guests[g]));
        continue;
      }
      std::array<char, kNameBytes> name{};
      const ssize_t got = ::recv(guests[g].get(), name.data(), name.size(), 0);
      const auto who = std::find(to_serve.begin(), to_serve.end(), std::string(name.data(), name.size()));
      if (got != static_cast<ssize_t>(name.size()) || who == to_serve.end()) continue;  // a stranger
      if (!give(guests[g].get(), mine.get())) return failed("cannot hand over a file descriptor");
      to_serve.erase(who);
    }
    guests = std::move(left_over);
    if (fds[0].revents != 0) {
      base::Fd guest(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (guest.ok() && same_user(guest.get())) guests.push_back(std::move(guest));
    }
  }
  return theirs;
}

}  // namespace ringfold::nvlink
