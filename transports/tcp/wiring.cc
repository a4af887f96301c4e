// Of two ranks the higher one dials and the lower one accepts. A dial that fails, for whatever reason, is repeated
// with growing pauses until the owner gives up: the peer may be late, busy, or its port may for a moment belong to
// somebody else. The side that accepts may get any bytes from anybody: it holds at most Options::half_open
// connections that have not proved the key, the oldest of which makes room for a new one, and each for at most
// Options::handshake_timeout. Whatever goes wrong with them is a line at level info and nothing else. Nothing but the
// handshake reads their bytes.
//
// A lower rank that has opened a link and is not called within a moment knocks: a connection the other way, which
// proves the key, says which lane it is about, and ends. So the higher rank learns that somebody wants to talk to it.
//
// A connection for a link that is not open yet is not turned away: its peer is only earlier. It is handed out like
// any other, and waits in the link.
#include "transports/tcp/wiring.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <cstring>
#include <deque>
#include <set>

#include "base/log.h"
#include "transports/tcp/congestion.h"

namespace ringfold::transport::tcp {
namespace {

namespace ip = boost::asio::ip;
using base::Handshake;
using boost::system::error_code;
using std::chrono::milliseconds;

constexpr milliseconds kFirstPause{10}, kLongestPause{500};
constexpr milliseconds kBeforeKnocking{2};
constexpr int kAcceptsAtOnce = 16;
constexpr int kKnock = 255;  // in place of a stream
constexpr uint64_t kAny = ~uint64_t{0};

// What each side tells the other inside the handshake. The acceptor does not know yet who is there and says kAny.
struct Hello {
  uint64_t nonce, epoch, from, to, lane, stream, slot_bytes, streams;
  static constexpr size_t kWords = 8;

  std::string encode() const {
    std::string text;
    for (uint64_t word : {nonce, epoch, from, to, lane, stream, slot_bytes, streams}) {
      for (int i = 0; i < 8; ++i) text += static_cast<char>(word >> (8 * i));
    }
    return text;
  }
  static std::optional<Hello> decode(std::string_view text) {
    if (text.size() != 8 * kWords) return std::nullopt;
    std::array<uint64_t, kWords> w{};
    for (size_t i = 0; i < text.size(); ++i)
      w[i / 8] |= uint64_t{static_cast<unsigned char>(text[i])} << (8 * (i % 8));
    return Hello{w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]};
  }
};

std::string text_of(const ip::tcp::endpoint& e) {
  return e.address().is_v6() ? fmt::format("[{}]:{}", e.address().to_string(), e.port())
                             : fmt::format("{}:{}", e.address().to_string(), e.port());
}

// A socket on its way to become a Connection.
struct Half {
  explicit Half(ip::tcp::socket s) : socket(std::move(s)) {}
  ip::tcp::socket socket;
  std::optional<Handshake> shake;  // from when it is connected
  std::string out;                 // said, but not taken by the kernel yet
  std::string remote;
  Wiring::Time deadline{};
};

struct Dial {
  int peer, lane, stream;
  std::unique_ptr<Half> half;  // null: pausing until retry_at
  Wiring::Time retry_at{};
  milliseconds pause = kFirstPause;
  std::string trouble;  // told last
  int refused = 0;      // so many times in a row, by the peer's system: nobody listens there
};

class AsioWiring final : public Wiring {
 public:
  AsioWiring(const Identity& identity, const Options& options, int epoll, Counters& counters)
      : identity_(identity), options_(options), epoll_(epoll), counters_(counters), acceptor_(context_) {
    peers_.resize(static_cast<size_t>(identity.size));
  }

  Status listen();
  std::string address() const override { return fmt::format("{} {:016x}", published_, identity_.nonce); }
  Status add_peer(int peer, std::string_view address) override;
  void open(int peer, int lane) override;
  bool busy() const override { return !dials_.empty() || !strangers_.empty() || wanted_ > 0 || accept_again_; }
  std::optional<Time> next_time() const override;
  std::vector<Connection> advance(Time now) override;
  const Failures& failures() const override { return failures_; }

 private:
  enum class Outcome { kPending, kDone, kFailed };

  Hello hello(uint64_t to, uint64_t lane, uint64_t stream) const {
    return {identity_.nonce, identity_.epoch,     static_cast<uint64_t>(identity_.rank),  to, lane,
            stream,          options_.slot_bytes, static_cast<uint64_t>(options_.streams)};
  }
  bool tune_before(int fd, const ip::address& end) const;
  void tune_after(int fd) const;
  void watch(int fd) const;
  void accept(Time now);
  Outcome begin(Dial& dial, std::string* why);
  Outcome shake_hands(Half& half, std::string* why);
  bool check_setup(int peer, const Hello& theirs);
  std::string check(const Dial& dial, const std::string& text);
  std::string check(const std::string& text, Connection* connection);
  Connection hand_out(Half& half, int peer, int lane, int stream);
  bool give_up(const Dial& dial);
  void pause(Dial& dial, Time now, const std::string& why);

  const Identity identity_;
  const Options options_;
  const int epoll_;
  Counters& counters_;
  boost::asio::io_context context_{1};
  ip::tcp::acceptor acceptor_;
  ip::address listen_address_;
  std::string usual_congestion_, listener_congestion_;
  std::vector<Subnet> subnets_;
  std::string published_;
  std::vector<std::optional<ip::tcp::endpoint>> peers_;

  std::vector<Dial> dials_;
  std::deque<std::unique_ptr<Half>> strangers_;  // oldest first
  std::set<std::array<int, 3>> accepted_;        // peer, lane, stream
  std::set<std::array<int, 2>> opened_;          // peer, lane: links whose connections are to be accepted
  int wanted_ = 0;                               // how many connections those still lack
  std::optional<Time> accept_again_;             // more may be waiting, and no event will say so
  Failures failures_;
};

// ---- sockets ----

int set(int fd, int level, int option, int value) { return ::setsockopt(fd, level, option, &value, sizeof value); }

bool set_congestion(int fd, const std::string& control) {
  return ::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, control.data(), static_cast<socklen_t>(control.size())) == 0;
}

// Not what the user asked for, so nobody is told when it cannot be had. Cubic may be for the privileged only; reno,
// which does not pause either, is for all.
void prefer_congestion(int fd, const std::string& control) {
  if (!set_congestion(fd, control) && control == "cubic") set_congestion(fd, "reno");
}

std::string congestion_of(int fd) {
  std::array<char, 32> name{};
  socklen_t length = name.size() - 1;
  return ::getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name.data(), &length) == 0 ? name.data() : "";
}

// Before listen() or connect(), which take buffer sizes for the widest window that the connection may have, and after
// which bbr has paced it. `end`: an address of the connection. False: the control that the user wants is not to be
// had; without a choice the system's remains.
bool AsioWiring::tune_before(int fd, const ip::address& end) const {
  if (options_.send_buffer > 0) set(fd, SOL_SOCKET, SO_SNDBUF, options_.send_buffer);
  if (options_.receive_buffer > 0) set(fd, SOL_SOCKET, SO_RCVBUF, options_.receive_buffer);
  if (!options_.congestion.empty()) return set_congestion(fd, options_.congestion);
  prefer_congestion(fd, congestion_for(end, usual_congestion_, subnets_));
  return true;
}

void AsioWiring::tune_after(int fd) const {
  set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  if (const auto limit = options_.user_timeout.count(); limit > 0) {
    set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(limit));
    const int probe = static_cast<int>(std::max<int64_t>(1, limit / 3000));  // seconds; three fit into the limit
    set(fd, IPPROTO_TCP, TCP_KEEPIDLE, probe);
    set(fd, IPPROTO_TCP, TCP_KEEPINTVL, probe);
  }
}

void AsioWiring::watch(int fd) const {
  ::fcntl(fd, F_SETFD, FD_CLOEXEC);
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  ::epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event);
}

Status AsioWiring::listen() {
  error_code error;
  listen_address_ = ip::make_address(options_.listen_address, error);
  if (error) {
    return Status(Code::kInvalid, fmt::format("'{}' is not the IP address of an interface", options_.listen_address));
  }
  if (listen_address_.is_unspecified() && options_.publish_address.empty()) {
    return Status(Code::kInvalid,
                  fmt::format("listening on every interface ({}) needs the address to tell the other ranks",
                              options_.listen_address));
  }
  const auto problem = [&](std::string_view what) {
    return Status(Code::kUnavailable,
                  fmt::format("cannot {} {}: {}", what, options_.listen_address, error.message()));
  };
  ip::address publish = listen_address_;
  if (!options_.publish_address.empty()) publish = ip::make_address(options_.publish_address, error);
  if (error) return Status(Code::kInvalid, fmt::format("'{}' is not an IP address", options_.publish_address));
  const ip::tcp::endpoint wanted(listen_address_, 0);
  if (acceptor_.open(wanted.protocol(), error); error) return problem("make a socket for");
  const int fd = acceptor_.native_handle();
  usual_congestion_ = congestion_of(fd);
  subnets_ = own_subnets();
  if (!tune_before(fd, publish)) {
    return Status(Code::kUnavailable,
                  fmt::format("this system does not offer the congestion control '{}'; "
                              "/proc/sys/net/ipv4/tcp_allowed_congestion_control lists what it does",
                              options_.congestion));
  }
  listener_congestion_ = congestion_of(fd);
  if (acceptor_.bind(wanted, error); error) return problem("listen on");
  if (acceptor_.listen(ip::tcp::acceptor::max_listen_connections, error); error) return problem("listen on");
  acceptor_.non_blocking(true, error);
  const uint16_t port = acceptor_.local_endpoint(error).port();
  published_ = text_of({publish, port});
  watch(fd);
  return {};
}

// "10.0.0.1:4000 0123456789abcdef" or "[fe80::1%eth0]:4000 ..."
Status AsioWiring::add_peer(int peer, std::string_view address) {
  const auto bad = [&](std::string_view why) {
    return Status(Code::kInvalid, fmt::format("'{}' is not the TCP address of rank {}: {}", address, peer, why));
  };
  if (peer < 0 || peer >= identity_.size || peer == identity_.rank) return bad("there is no such peer");
  const size_t space = address.find(' '), colon = address.substr(0, space).rfind(':');
  if (space == std::string_view::npos || colon == std::string_view::npos)
    return bad("it should be ADDRESS:PORT NONCE");
  std::string host(address.substr(0, colon));
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  error_code error;
  const ip::address parsed = ip::make_address(host, error);
  if (error || parsed.is_unspecified()) return bad("no IP address that can be reached");
  unsigned port = 0;
  for (char c : address.substr(colon + 1, space - colon - 1)) {
    if (c < '0' || c > '9' || port > 65535) return bad("no port");
    port = port * 10 + static_cast<unsigned>(c - '0');
  }
  if (port == 0 || port > 65535) return bad("no port");
  if (address.substr(space + 1) != fmt::format("{:016x}", identity_.nonce)) {
    return Status(Code::kMismatch,
                  fmt::format("rank {} published '{}', the address of another communicator", peer, address));
  }
  if (parsed.is_loopback() != listen_address_.is_loopback() && !listen_address_.is_unspecified()) {
    return Status(Code::kUnavailable,
                  fmt::format("rank {} listens on {} and this rank on {}: only one of them is a loopback address",
                              peer, host, options_.listen_address));
  }
  peers_[static_cast<size_t>(peer)] = ip::tcp::endpoint(parsed, static_cast<uint16_t>(port));
  return {};
}

void AsioWiring::open(int peer, int lane) {
  for (int stream = 0; stream < options_.streams; ++stream) {
    if (identity_.rank > peer) {
      dials_.push_back({peer, lane, stream, nullptr});
    } else if (!accepted_.contains({peer, lane, stream})) {
      ++wanted_;
    }
  }
  if (identity_.rank > peer) return;
  opened_.insert({peer, lane});
  if (!accepted_.contains({peer, lane, 0})) {
    dials_.push_back({peer, lane, kKnock, nullptr, std::chrono::steady_clock::now() + kBeforeKnocking});
  }
}

std::optional<Wiring::Time> AsioWiring::next_time() const {
  std::optional<Time> next;
  const auto consider = [&](Time t) { next = next ? std::min(*next, t) : t; };
  for (const Dial& d : dials_) {
    if (!d.half) consider(d.retry_at);
  }
  for (const auto& s : strangers_) consider(s->deadline);
  if (accept_again_) consider(*accept_again_);
  return next;
}

// ---- the handshake ----

AsioWiring::Outcome AsioWiring::shake_hands(Half& half, std::string* why) {
  for (;;) {
    half.out += half.shake->take_output();
    error_code error;
    if (!half.out.empty()) {
      ++counters_.system_calls;
      const size_t n = half.socket.write_some(boost::asio::buffer(half.out), error);
      half.out.erase(0, n);
      if (!error) continue;
    } else if (half.shake->state() == Handshake::State::kDone) {
      return Outcome::kDone;
    }
    if (half.shake->state() == Handshake::State::kFailed) {
      *why = half.shake->status().message();
      return Outcome::kFailed;
    }
    if (!error) {
      std::array<std::byte, Handshake::kMaxHello + 64> bytes;
      const size_t most = std::min(bytes.size(), half.shake->wanted());  // what follows belongs to the link
      ++counters_.system_calls;
      const size_t n = half.socket.read_some(boost::asio::buffer(bytes.data(), most), error);
      if (!error) {
        half.shake->consume(std::span(bytes.data(), n));
        continue;
      }
      if (error == boost::asio::error::eof) {
        half.shake->end_of_input();
        continue;
      }
    }
    if (error == boost::asio::error::would_block || error == boost::asio::error::try_again) return Outcome::kPending;
    *why = error.message();
    return Outcome::kFailed;
  }
}

// Connects, or looks how connecting has gone: a second connect() on the same socket tells.
AsioWiring::Outcome AsioWiring::begin(Dial& dial, std::string* why) {
  const ip::tcp::endpoint& to = *peers_[static_cast<size_t>(dial.peer)];
  bool fresh = false;
  if (!dial.half) {
    error_code error;
    ip::tcp::socket socket(context_);
    if (socket.open(to.protocol(), error); !error) socket.non_blocking(true, error);
    const bool same_family = to.address().is_v4() == listen_address_.is_v4();
    if (!error && same_family && !listen_address_.is_unspecified()) {
      set(socket.native_handle(), IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
      socket.bind(ip::tcp::endpoint(listen_address_, 0), error);
    }
    if (error) {
      *why = error.message();
      return Outcome::kFailed;
    }
    tune_before(socket.native_handle(), to.address());
    dial.half = std::make_unique<Half>(std::move(socket));
    dial.half->remote = text_of(to);
    fresh = true;
  }
  const int fd = dial.half->socket.native_handle();
  const int result = ::connect(fd, to.data(), static_cast<socklen_t>(to.size()));
  const int error = result == 0 || errno == EISCONN ? 0 : errno;
  ++counters_.system_calls;
  if (fresh) watch(fd);
  if (error == EINPROGRESS || error == EALREADY || error == EINTR) return Outcome::kPending;
  dial.refused = error == ECONNREFUSED ? dial.refused + 1 : 0;
  if (error != 0) {
    *why = std::strerror(error);
    return Outcome::kFailed;
  }
  tune_after(fd);
  dial.half->shake.emplace(
      *options_.key, Handshake::Role::kInitiator,
      hello(static_cast<uint64_t>(dial.peer), static_cast<uint64_t>(dial.lane), static_cast<uint64_t>(dial.stream))
          .encode());
  return Outcome::kDone;
}

bool AsioWiring::check_setup(int peer, const Hello& theirs) {
  if (theirs.slot_bytes == options_.slot_bytes && theirs.streams == static_cast<uint64_t>(options_.streams))
    return true;
  failures_.add(peer, Status(Code::kMismatch,
                             fmt::format("rank {} uses TCP slots of {} bytes and {} streams a link, rank {} slots of "
                                         "{} bytes and {} streams: set them alike on all ranks",
                                         peer, theirs.slot_bytes, theirs.streams, identity_.rank, options_.slot_bytes,
                                         options_.streams)));
  return false;
}

// "" when the acceptor is the rank that was dialled.
std::string AsioWiring::check(const Dial& dial, const std::string& text) {
  const auto theirs = Hello::decode(text);
  if (!theirs || theirs->nonce != identity_.nonce || theirs->epoch != identity_.epoch) {
    return "it belongs to another communicator of this job";
  }
  if (theirs->from != static_cast<uint64_t>(dial.peer)) return fmt::format("it is rank {}", theirs->from);
  return check_setup(dial.peer, *theirs) ? "" : "it is set up in another way";
}

// "" when the initiator has told what the connection is for, and that is in order.
std::string AsioWiring::check(const std::string& text, Connection* connection) {
  const auto theirs = Hello::decode(text);
  if (!theirs || theirs->nonce != identity_.nonce || theirs->epoch != identity_.epoch) {
    return "it belongs to another communicator of this job";
  }
  const auto size = static_cast<uint64_t>(identity_.size), rank = static_cast<uint64_t>(identity_.rank);
  const bool knock = theirs->stream == kKnock;
  if (theirs->to != rank || theirs->from >= size || theirs->from == rank || (theirs->from < rank) != knock) {
    return fmt::format("it says that it goes from rank {} to rank {}", theirs->from, theirs->to);
  }
  const int peer = static_cast<int>(theirs->from);
  if (!check_setup(peer, *theirs)) return "it is set up in another way";
  if (theirs->lane >= kLanes || (!knock && theirs->stream >= theirs->streams)) {
    return fmt::format("it is for lane {}, stream {}", theirs->lane, theirs->stream);
  }
  connection->peer = peer;
  connection->lane = static_cast<int>(theirs->lane);
  connection->stream = static_cast<int>(theirs->stream);
  if (!knock && !accepted_.insert({connection->peer, connection->lane, connection->stream}).second)
    return "there is one like it";
  return "";
}

Connection AsioWiring::hand_out(Half& half, int peer, int lane, int stream) {
  error_code error;
  const std::string local = text_of(half.socket.local_endpoint(error));
  Connection c{peer, lane, stream, -1, fmt::format("{} to {}", local, half.remote)};
  if (stream != kKnock) c.fd = half.socket.release(error);
  return c;
}

// ---- progress ----

void AsioWiring::accept(Time now) {
  accept_again_.reset();
  for (int i = 0; i < kAcceptsAtOnce; ++i) {
    error_code error;
    ip::tcp::socket socket(context_);
    ip::tcp::endpoint remote;
    ++counters_.system_calls;
    acceptor_.accept(socket, remote, error);
    if (error == boost::asio::error::would_block || error == boost::asio::error::try_again) return;
    if (error) {
      log::info("tcp: rank {} cannot accept a connection: {}", identity_.rank, error.message());
      accept_again_ = now + kLongestPause;
      return;
    }
    socket.non_blocking(true, error);
    tune_after(socket.native_handle());
    if (options_.congestion.empty()) {  // it has that of the listener
      const std::string control = congestion_for(remote.address(), usual_congestion_, subnets_);
      if (control != listener_congestion_) prefer_congestion(socket.native_handle(), control);
    }
    if (strangers_.size() >= static_cast<size_t>(std::max(1, options_.half_open))) {
      log::info("tcp: rank {} drops the unproved connection from {}: too many at once", identity_.rank,
                strangers_.front()->remote);
      strangers_.pop_front();
    }
    auto half = std::make_unique<Half>(std::move(socket));
    half->remote = text_of(remote);
    half->deadline = now + options_.handshake_timeout;
    half->shake.emplace(*options_.key, Handshake::Role::kAcceptor, hello(kAny, kAny, kAny).encode());
    watch(half->socket.native_handle());
    strangers_.push_back(std::move(half));
  }
  accept_again_ = now;
}

// A peer listens from before it tells its address until its end. What it may have sent before that comes first.
bool AsioWiring::give_up(const Dial& dial) {
  constexpr int kEnough = 4;
  if (dial.refused < kEnough || !strangers_.empty()) return false;
  failures_.add(dial.peer, Status(Code::kPeerLost,
                                  fmt::format("rank {} does not listen at {} any more: its process ended or left the "
                                              "communicator, or a firewall refuses for it",
                                              dial.peer, text_of(*peers_[static_cast<size_t>(dial.peer)]))));
  return true;
}

void AsioWiring::pause(Dial& dial, Time now, const std::string& why) {
  if (why != dial.trouble) {
    log::info("tcp: rank {} cannot reach rank {} at {} yet: {}", identity_.rank, dial.peer,
              text_of(*peers_[static_cast<size_t>(dial.peer)]), why);
  }
  dial.trouble = why;
  dial.half.reset();
  dial.retry_at = now + dial.pause;
  dial.pause = std::min(2 * dial.pause, kLongestPause);
}

std::vector<Connection> AsioWiring::advance(Time now) {
  std::vector<Connection> made;
  std::string why;
  for (size_t i = 0; i < dials_.size();) {
    Dial& d = dials_[i];
    Outcome outcome = Outcome::kPending;
    if (d.stream == kKnock && accepted_.contains({d.peer, d.lane, 0})) {
      dials_.erase(dials_.begin() + static_cast<ptrdiff_t>(i));
      continue;
    }
    const bool connected = d.half && d.half->shake;
    if (connected) {
      outcome = Outcome::kDone;
    } else if (d.half || now >= d.retry_at) {
      outcome = begin(d, &why);
    }
    if (outcome == Outcome::kDone) outcome = shake_hands(*d.half, &why);
    if (outcome == Outcome::kDone && !(why = check(d, d.half->shake->peer_hello())).empty())
      outcome = Outcome::kFailed;
    if (outcome == Outcome::kDone) {
      if (d.stream != kKnock) made.push_back(hand_out(*d.half, d.peer, d.lane, d.stream));
      dials_.erase(dials_.begin() + static_cast<ptrdiff_t>(i));
      continue;
    }
    if (outcome == Outcome::kFailed) {
      if (give_up(d)) {
        dials_.erase(dials_.begin() + static_cast<ptrdiff_t>(i));
        continue;
      }
      pause(d, now, why);
    }
    ++i;
  }
  accept(now);
  for (auto it = strangers_.begin(); it != strangers_.end();) {
    Half& half = **it;
    Connection c;
    Outcome outcome = shake_hands(half, &why);
    if (outcome == Outcome::kDone) {
      why = check(half.shake->peer_hello(), &c);
      if (!why.empty()) outcome = Outcome::kFailed;
    } else if (outcome == Outcome::kPending && now >= half.deadline) {
      outcome = Outcome::kFailed;
      why = "it did not prove the job's key in time";
    }
    if (outcome == Outcome::kPending) {
      ++it;
      continue;
    }
    if (outcome == Outcome::kDone) {
      made.push_back(hand_out(half, c.peer, c.lane, c.stream));
      if (c.stream != kKnock && opened_.contains({c.peer, c.lane})) --wanted_;
    } else {
      log::info("tcp: rank {} turns away a connection from {}: {}", identity_.rank, half.remote, why);
    }
    it = strangers_.erase(it);
  }
  return made;
}

}  // namespace

Result<std::unique_ptr<Wiring>> Wiring::make(const Identity& identity, const Options& options, int epoll,
                                             Counters& counters) {
  try {
    auto wiring = std::make_unique<AsioWiring>(identity, options, epoll, counters);
    RINGFOLD_TRY(wiring->listen());
    return std::unique_ptr<Wiring>(std::move(wiring));
  } catch (const std::exception& e) {  // the io_context found no descriptors
    return Status(Code::kUnavailable, fmt::format("cannot set up TCP: {}", e.what()));
  }
}

}  // namespace ringfold::transport::tcp
