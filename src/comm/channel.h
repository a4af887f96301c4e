// One TCP connection between two processes that prove the job's key to each other and then exchange frames. The
// bootstrap and the control mesh are made of these. Internal: the only header that shows Boost.Asio.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/handshake.h"
#include "ringfold/status.h"

namespace ringfold::comm {

namespace asio = boost::asio;
using asio::ip::tcp;

std::string text_of(const tcp::endpoint& endpoint);  // "10.0.0.1:80", "[::1]:80"

// All calls and callbacks on the io_context's thread. The io_context's pending operations keep a channel alive. After
// close(), or once `closed` was called, no callback comes any more.
class Channel : public std::enable_shared_from_this<Channel> {
 public:
  static constexpr size_t kMaxFrame = 32 << 20;

  struct Events {
    std::function<void()> ready;                                // the peer has proved the key; see peer_hello()
    std::function<void(uint8_t type, std::string_view)> frame;  // the view is valid during the call
    std::function<void(const Status&)> closed;                  // the end of the connection, with the reason
  };

  // `socket` is connected. The handshake must be over in `limit`.
  static std::shared_ptr<Channel> start(tcp::socket socket, const base::Key& key, base::Handshake::Role role,
                                        std::string hello, base::Duration limit, Events events);
  void send(uint8_t type, std::string_view body);  // any time after `ready`; body.size() < kMaxFrame
  void send(uint8_t type, std::string_view head, std::string_view body);  // the body in two pieces
  void finish();  // no more frames will be sent: the peer sees the end after the last one
  void close();   // at once
  // Replaces the callbacks; used when a channel gets another owner.
  void set_events(Events events) { events_ = std::move(events); }

  bool ready() const { return ready_; }
  size_t queued() const { return waiting_.size() + writing_.size(); }  // bytes not yet with the system
  const std::string& peer_hello() const { return handshake_.peer_hello(); }
  const tcp::endpoint& local() const { return local_; }
  const tcp::endpoint& remote() const { return remote_; }

 private:
  Channel(tcp::socket socket, const base::Key& key, base::Handshake::Role role, std::string hello, Events events);
  void read();
  void write();
  void on_bytes(size_t count);
  void shake();
  void parse();
  void fail(Status status);

  tcp::socket socket_;
  asio::steady_timer timer_;
  base::Handshake handshake_;
  Events events_;
  tcp::endpoint local_, remote_;
  std::vector<char> chunk_;
  std::string input_, waiting_, writing_;
  bool ready_ = false, open_ = true, finishing_ = false, busy_ = false;
};

// Sockets that children of this process do not inherit.
Result<tcp::socket> open_socket(asio::io_context& io, const tcp& family);
// Listens on `endpoint`; port 0: the system chooses one. The code is kUnavailable when the address or port is taken
// or does not belong to this host.
Result<tcp::acceptor> listen_on(asio::io_context& io, const tcp::endpoint& endpoint);
// Calls `on_socket` for every connection until the acceptor is closed or destroyed, which must happen on its thread.
void accept_all(std::shared_ptr<tcp::acceptor> acceptor, std::function<void(tcp::socket)> on_socket);

}  // namespace ringfold::comm
