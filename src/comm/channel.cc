#include "comm/channel.h"

#include <fmt/format.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/write.hpp>
#include <cstring>

#include "comm/wire.h"

namespace ringfold::comm {

using boost::system::error_code;

std::string text_of(const tcp::endpoint& endpoint) {
  return fmt::format(fmt::runtime(endpoint.address().is_v6() ? "[{}]:{}" : "{}:{}"), endpoint.address().to_string(),
                     endpoint.port());
}

namespace {

// A host that vanishes without a word (power, cable) is noticed by the system, not by us: no timer of ours runs for
// it.
void tune(int fd) {
  const int one = 1, idle = 10, interval = 5, count = 4;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

int raw_socket(const tcp& family) { return ::socket(family.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); }

}  // namespace

Channel::Channel(tcp::socket socket, const base::Key& key, base::Handshake::Role role, std::string hello,
                 Events events)
    : socket_(std::move(socket)),
      timer_(socket_.get_executor()),
      handshake_(key, role, std::move(hello)),
      events_(std::move(events)),
      chunk_(16 << 10) {
  error_code ignored;
  local_ = socket_.local_endpoint(ignored);
  remote_ = socket_.remote_endpoint(ignored);
  tune(socket_.native_handle());
}

std::shared_ptr<Channel> Channel::start(tcp::socket socket, const base::Key& key, base::Handshake::Role role,
                                        std::string hello, base::Duration limit, Events events) {
  std::shared_ptr<Channel> channel(new Channel(std::move(socket), key, role, std::move(hello), std::move(events)));
  channel->timer_.expires_after(limit);
  channel->timer_.async_wait([channel](const error_code& error) {
    if (!error && !channel->ready_) {
      channel->fail({Code::kTimeout, fmt::format("{} did not answer as Ringfold does", text_of(channel->remote_))});
    }
  });
  channel->waiting_ = channel->handshake_.take_output();
  channel->write();
  channel->read();
  return channel;
}

void Channel::send(uint8_t type, std::string_view body) { send(type, body, {}); }

void Channel::send(uint8_t type, std::string_view head, std::string_view body) {
  if (!open_ || finishing_) return;
  Writer header;
  header.number(static_cast<uint32_t>(head.size() + body.size() + 1)).number(type);
  waiting_ += header.take();
  waiting_ += head;
  waiting_ += body;
  write();
}

void Channel::finish() {
  finishing_ = true;
  write();
}

void Channel::close() {
  if (!open_) return;
  open_ = false;
  timer_.cancel();
  error_code ignored;
  socket_.close(ignored);
  // The callbacks often own whoever called us: let them go, but not under the caller's feet.
  asio::post(socket_.get_executor(), [self = shared_from_this()] { self->events_ = {}; });
}

void Channel::fail(Status status) {
  if (!open_) return;
  auto closed = std::move(events_.closed);
  close();
  if (closed) closed(status);
}

void Channel::write() {
  if (busy_ || !open_) return;
  if (waiting_.empty()) {
    error_code ignored;
    if (finishing_) socket_.shutdown(tcp::socket::shutdown_send, ignored);
    return;
  }
  busy_ = true;
  writing_.swap(waiting_);
  asio::async_write(socket_, asio::buffer(writing_), [self = shared_from_this()](const error_code& error, size_t) {
    self->busy_ = false;
    self->writing_.clear();
    // A failed write is left to the reader, which first delivers what the peer had still sent.
    if (!error) self->write();
  });
}

void Channel::read() {
  socket_.async_read_some(asio::buffer(chunk_), [self = shared_from_this()](const error_code& error, size_t count) {
    if (!self->open_) return;
    if (!error) {
      self->on_bytes(count);
      if (self->open_) self->read();
      return;
    }
    if (!self->ready_) {
      self->handshake_.end_of_input();
      self->fail(self->handshake_.status());
    } else {
      self->fail({Code::kPeerLost, "its process ended or closed the connection"});
    }
  });
}

void Channel::on_bytes(size_t count) {
  std::span<const char> bytes(chunk_.data(), count);
  if (!ready_) {
    bytes = bytes.subspan(handshake_.consume(std::as_bytes(bytes)));
    waiting_ += handshake_.take_output();
    write();
    if (handshake_.state() == base::Handshake::State::kFailed) return fail(handshake_.status());
    if (handshake_.state() == base::Handshake::State::kPending) return;
    ready_ = true;
    timer_.cancel();
    if (auto ready = events_.ready) ready();
  }
  input_.append(bytes.data(), bytes.size());
  parse();
}

void Channel::parse() {
  size_t at = 0;
  while (open_ && input_.size() - at >= 5) {
    Reader header(std::string_view(input_).substr(at, 5));
    const size_t size = header.number<uint32_t>();
    const auto type = header.number<uint8_t>();
    if (size < 1 || size > kMaxFrame) return fail({Code::kProtocol, "it sent bytes that no Ringfold sends"});
    if (input_.size() - at < size + 4) break;
    const auto body = std::string_view(input_).substr(at + 5, size - 1);
    at += size + 4;
    if (auto frame = events_.frame) frame(type, body);
  }
  input_.erase(0, at);
}

Result<tcp::socket> open_socket(asio::io_context& io, const tcp& family) {
  const int fd = raw_socket(family);
  if (fd < 0) return Status(Code::kIo, fmt::format("socket: {}", std::strerror(errno)));
  tcp::socket socket(io);
  error_code error;
  socket.assign(family, fd, error);
  if (error) return Status(Code::kIo, error.message());
  return socket;
}

Result<tcp::acceptor> listen_on(asio::io_context& io, const tcp::endpoint& endpoint) {
  const int fd = raw_socket(endpoint.protocol());
  if (fd < 0) return Status(Code::kIo, fmt::format("socket: {}", std::strerror(errno)));
  tcp::acceptor acceptor(io);
  error_code error;
  acceptor.assign(endpoint.protocol(), fd, error);
  const int one = 1;
  ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (endpoint.address().is_v6()) ::setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error)
    return Status(Code::kUnavailable, fmt::format("cannot listen on {}: {}", text_of(endpoint), error.message()));
  return acceptor;
}

void accept_all(std::shared_ptr<tcp::acceptor> acceptor, std::function<void(tcp::socket)> on_socket) {
  auto& owner = *acceptor;
  if (!owner.is_open()) return;
  owner.async_wait(tcp::acceptor::wait_read, [acceptor = std::move(acceptor), on_socket](const error_code& error) {
    if (error || !acceptor->is_open()) return;
    for (int i = 0; i < 64; ++i) {  // a few at a time, so that a flood of connections starves nobody
      const int fd = ::accept4(acceptor->native_handle(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)) break;
      if (fd < 0) {  // no descriptors or memory: the connection stays in the queue, so look again later, not at once
        auto pause = std::make_shared<asio::steady_timer>(acceptor->get_executor(), std::chrono::milliseconds(100));
        pause->async_wait([pause, acceptor, on_socket](const error_code&) { accept_all(acceptor, on_socket); });
        return;
      }
      tcp::socket socket(acceptor->get_executor());
      error_code assigned;
      socket.assign(acceptor->local_endpoint(assigned).protocol(), fd, assigned);
      if (!assigned) on_socket(std::move(socket));
      if (!acceptor->is_open()) return;
    }
    accept_all(acceptor, on_socket);
  });
}

}  // namespace ringfold::comm
