// What the tests of the TCP transport share: ranks of one process over real sockets.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/transport/conformance.h"
#include "transports/tcp/tcp.h"

namespace ringfold::transport::test {

inline base::Key key_of(std::string_view text) { return base::Key::parse(text).value(); }

inline tcp::Options options_for(std::string address, int streams = 1) {
  tcp::Options options;
  options.key = key_of("the key of the tests of TCP links");
  options.listen_address = std::move(address);
  options.streams = streams;
  return options;
}

inline Fabric fabric(int n, const tcp::Options& options) {
  Fabric f;
  for (int r = 0; r < n; ++r) {
    auto made = tcp::make(r, n, 77, 3, options);
    if (!made.ok()) {
      ADD_FAILURE() << made.status().to_string();
      return f;
    }
    f.ranks.push_back(std::move(made).value());
  }
  wire(f.ranks);
  return f;
}

inline bool pump(const std::vector<Transport*>& ranks, const std::function<bool()>& done,
                 std::chrono::milliseconds limit = std::chrono::seconds(20)) {
  const auto end = std::chrono::steady_clock::now() + limit;
  for (;;) {
    for (Transport* r : ranks) r->progress();
    if (done()) return true;
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
}

struct Pair {
  explicit Pair(const tcp::Options& options) : f(fabric(2, options)), a(*f.ranks[0]), b(*f.ranks[1]) {}
  bool pump(const std::function<bool()>& done, std::chrono::milliseconds limit = std::chrono::seconds(20)) {
    return test::pump({&a, &b}, done, limit);
  }
  bool connect(int lane = 0) {
    to_b = a.open(1, lane);
    to_a = b.open(0, lane);
    return pump([&] { return to_b->writable() && to_a->writable(); });
  }
  Fabric f;
  Transport &a, &b;
  Link *to_a = nullptr, *to_b = nullptr;
};

inline std::vector<std::byte> some_bytes(size_t n, unsigned seed) {
  std::vector<std::byte> bytes(n);
  std::mt19937 random(seed);
  for (auto& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

inline sockaddr_in listener_of(const Transport& t) {  // "127.0.0.1:PORT NONCE"
  const std::string text = t.address();
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(std::stoi(text.substr(text.find(':') + 1))));
  return address;
}

// A connection of somebody who is not a rank.
class Stranger {
 public:
  explicit Stranger(const Transport& victim) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const sockaddr_in to = listener_of(victim);
    connected_ = ::connect(fd_, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0;
    ::fcntl(fd_, F_SETFL, O_NONBLOCK);
  }
  Stranger(Stranger&& other) noexcept : fd_(std::exchange(other.fd_, -1)), connected_(other.connected_) {}
  ~Stranger() { close(); }
  bool connected() const { return connected_; }
  void say(std::string_view bytes) { (void)!::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }
  std::string hear() {
    char bytes[4096];
    const ssize_t n = ::recv(fd_, bytes, sizeof bytes, 0);
    return n > 0 ? std::string(bytes, static_cast<size_t>(n)) : "";
  }
  bool turned_away() {
    char byte;
    const ssize_t n = ::recv(fd_, &byte, 1, 0);
    return n == 0 || (n < 0 && errno != EAGAIN);
  }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  // So that close() sends a reset.
  void reset() {
    const linger hard{1, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close();
  }

 private:
  int fd_;
  bool connected_ = false;
};

}  // namespace ringfold::transport::test
