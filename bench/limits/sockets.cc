#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <thread>
#include <utility>

#include "bench/limits/figures.h"

namespace ringfold::limits {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

class Socket {
 public:
  explicit Socket(int fd = -1) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket() {
    if (fd_ >= 0) ::close(fd_);
  }
  int fd() const { return fd_; }
  bool open() const { return fd_ >= 0; }

 private:
  int fd_;
};

void at_once(const Socket& socket) {
  const int one = 1;
  ::setsockopt(socket.fd(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

sockaddr_in place(const std::string& address, int port) {
  sockaddr_in result{};
  result.sin_family = AF_INET;
  result.sin_port = htons(static_cast<uint16_t>(port));
  ::inet_pton(AF_INET, address.c_str(), &result.sin_addr);
  return result;
}

Socket listen_at(const std::string& address, int port, int* chosen) {
  Socket socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int one = 1;
  ::setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  sockaddr_in where = place(address, port);
  socklen_t length = sizeof(where);
  if (::bind(socket.fd(), reinterpret_cast<sockaddr*>(&where), sizeof(where)) != 0 || ::listen(socket.fd(), 1) != 0 ||
      ::getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&where), &length) != 0) {
    return Socket();
  }
  *chosen = ntohs(where.sin_port);
  return socket;
}

Socket accept_one(const Socket& listener) {
  Socket socket(::accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC));
  if (socket.open()) at_once(socket);
  return socket;
}

// The other side may not be there yet.
Socket connect_to(const std::string& address, int port, double patience_s) {
  const sockaddr_in where = place(address, port);
  for (const auto begin = Clock::now(); seconds_since(begin) < patience_s;) {
    Socket socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(socket.fd(), reinterpret_cast<const sockaddr*>(&where), sizeof(where)) == 0) {
      at_once(socket);
      return socket;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return Socket();
}

bool send_all(const Socket& socket, const void* data, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t sent = ::send(socket.fd(), static_cast<const char*>(data) + done, bytes - done, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    done += static_cast<size_t>(sent);
  }
  return true;
}

bool receive_all(const Socket& socket, void* data, size_t bytes, bool spins = false) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t got = ::recv(socket.fd(), static_cast<char*>(data) + done, bytes - done, spins ? MSG_DONTWAIT : 0);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got <= 0) return false;
    done += static_cast<size_t>(got);
  }
  return true;
}

// Words of 8 bytes there and back: the median of half a round trip. The other side echoes as many.
double ping(const Socket& socket, int rounds, bool spins) {
  std::vector<double> times;
  for (int i = 0; i < rounds; ++i) {
    uint64_t word = static_cast<uint64_t>(i);
    const auto begin = Clock::now();
    if (!send_all(socket, &word, sizeof(word)) || !receive_all(socket, &word, sizeof(word), spins)) return 0;
    times.push_back(1e6 * seconds_since(begin) / 2);
  }
  std::nth_element(times.begin(), times.begin() + rounds / 2, times.end());
  return times[static_cast<size_t>(rounds / 2)];
}

void echo(const Socket& socket, int rounds, bool spins) {
  uint64_t word = 0;
  for (int i = 0; i < rounds; ++i) {
    if (!receive_all(socket, &word, sizeof(word), spins) || !send_all(socket, &word, sizeof(word))) return;
  }
}

void pour(const Socket& socket, size_t chunk, double seconds) {
  const std::vector<char> data(chunk, 7);
  for (const auto begin = Clock::now(); seconds_since(begin) < seconds;) {
    if (!send_all(socket, data.data(), data.size())) break;
  }
  ::shutdown(socket.fd(), SHUT_WR);
}

// Bytes per second from the first to the last that come.
double drain(const Socket& socket, size_t chunk) {
  std::vector<char> data(chunk);
  ssize_t got = ::recv(socket.fd(), data.data(), data.size(), 0);
  const auto begin = Clock::now();
  double bytes = 0;
  while ((got = ::recv(socket.fd(), data.data(), data.size(), 0)) > 0) bytes += static_cast<double>(got);
  return bytes / seconds_since(begin);
}

// Two threads joined by a connection over loopback.
void joined(const std::function<void(const Socket&)>& here, const std::function<void(const Socket&)>& there) {
  int port = 0;
  const Socket listener = listen_at("127.0.0.1", 0, &port);
  if (!listener.open()) return;
  const auto cpus = processors();
  std::thread other([&] {
    pin(cpus.back());
    there(accept_one(listener));
  });
  std::thread first([&] {
    pin(cpus.front());
    here(connect_to("127.0.0.1", port, 5));
  });
  first.join();
  other.join();
}

constexpr int kPings = 400;

}  // namespace

void add_sockets(Figures* figures) {
  constexpr int kRounds = 5000;
  for (const bool spins : {true, false}) {
    if (spins && processors().size() < 2) continue;
    double best = 1e9;
    for (int attempt = 0; attempt < 3; ++attempt) {
      joined([&](const Socket& s) { best = std::min(best, ping(s, kRounds, spins)); },
             [&](const Socket& s) { echo(s, kRounds, spins); });
    }
    figures->push_back(
        {std::string("TCP over loopback, 8 bytes, ") + (spins ? "spinning" : "blocking") + ", one way", "us", best});
  }
  for (const size_t chunk : {size_t{64} << 10, size_t{256} << 10, size_t{1} << 20}) {
    double best = 0;
    for (int attempt = 0; attempt < 3; ++attempt) {
      joined([&](const Socket& s) { pour(s, chunk, 0.15); },
             [&](const Socket& s) { best = std::max(best, drain(s, chunk)); });
    }
    figures->push_back(
        {"TCP over loopback, one stream, writes of " + std::to_string(chunk >> 10) + " KiB", "GB/s", best / 1e9});
  }
}

int serve(const std::string& address, int port) {
  const Socket listener = listen_at(address, port, &port);
  if (!listener.open()) {
    std::fprintf(stderr, "limits: cannot listen at %s port %d: %s\n", address.c_str(), port, std::strerror(errno));
    return 3;
  }
  const Socket partner = accept_one(listener);
  echo(partner, kPings, false);
  const double rate = drain(partner, size_t{1} << 20);
  return send_all(partner, &rate, sizeof(rate)) ? 0 : 1;
}

int reach(const std::string& address, int port, double seconds, Figures* figures) {
  const Socket partner = connect_to(address, port, 10);
  if (!partner.open()) {
    std::fprintf(stderr, "limits: nobody answers at %s port %d\n", address.c_str(), port);
    return 3;
  }
  const double one_way = ping(partner, kPings, false);
  double rate = 0;
  pour(partner, size_t{256} << 10, seconds);
  if (one_way == 0 || !receive_all(partner, &rate, sizeof(rate))) {
    std::fprintf(stderr, "limits: the connection to %s broke\n", address.c_str());
    return 1;
  }
  figures->push_back({"link, 8 bytes, blocking, one way", "us", one_way});
  figures->push_back({"link, one stream", "GB/s", rate / 1e9});
  return 0;
}

}  // namespace ringfold::limits
