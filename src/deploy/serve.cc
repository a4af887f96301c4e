// One thread moves bytes, `threads` others compute. A connection is a coroutine: read a header, refuse what can be
// refused by it alone (a wrong key, before anything of the body is looked at), read the body, compute, reply, and
// again. Each stretch of waiting for the peer has one deadline, so that a client that sends a byte now and then holds
// its connection no longer than one that sends nothing.
#include "deploy/serve.h"

#include <fmt/format.h>
#include <openssl/crypto.h>
#include <sys/stat.h>

#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <memory>
#include <set>

#include "deploy/api.h"

namespace ringfold::deploy {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using tcp = asio::ip::tcp;
using Error = boost::system::error_code;
constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);

constexpr uint32_t kHeaderBytes = 8192;
constexpr size_t kPieceBytes = size_t{64} << 10;
constexpr double kLingerSeconds = 1;  // for what a refused client was still sending
constexpr size_t kLingerBytes = size_t{4} << 20;
constexpr double kStopSeconds = 5;

std::chrono::steady_clock::duration duration(double seconds) {
  return std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(seconds));
}

struct Connection : std::enable_shared_from_this<Connection> {
  explicit Connection(tcp::socket s) : socket(std::move(s)), timer(socket.get_executor()) {}
  tcp::socket socket;
  asio::steady_timer timer;
  uint64_t round = 0;  // tells a timer that ran out late from the present one
  bool late = false;
  bool idle = true;  // nothing of a request has come

  // What waits for the peer from now on ends after `seconds`.
  void arm(double seconds) {
    late = false;
    timer.expires_after(duration(seconds));
    timer.async_wait([self = shared_from_this(), mine = ++round](Error error) {
      if (error || mine != self->round) return;
      self->late = true;
      self->socket.cancel(error);
    });
  }
  void disarm() {
    ++round;
    timer.cancel();
  }
};

class Server {
 public:
  Server(const train::Predictor& predictor, const ServeOptions& options)
      : predictor_(predictor), options_(options), workers_(static_cast<size_t>(options.threads)) {}

  Status listen(const tcp::endpoint& endpoint);
  void run(const std::function<void(const std::string&)>& ready);

 private:
  using Response = http::response<http::string_body>;

  asio::awaitable<void> accept();
  asio::awaitable<void> converse(std::shared_ptr<Connection> c, bool full);
  asio::awaitable<bool> take(Connection& c, boost::beast::flat_buffer& buffer);  // true: another may follow
  asio::awaitable<bool> send(Connection& c, Reply reply, bool keep, unsigned version = 11);
  asio::awaitable<void> linger(Connection& c);
  Reply refuse(const http::request<http::string_body>& request) const;
  Reply broken(const Connection& c, Error error) const;
  void stop();

  const train::Predictor& predictor_;
  const ServeOptions& options_;
  asio::io_context io_{1};
  tcp::acceptor acceptor_{io_};
  asio::steady_timer end_{io_};
  asio::thread_pool workers_;
  std::atomic<bool> stop_ = false;
  std::set<Connection*> connections_;
  size_t computing_ = 0;  // requests with the workers, or waiting for one
};

Status Server::listen(const tcp::endpoint& endpoint) {
  Error error;
  acceptor_.open(endpoint.protocol(), error);
  if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor_.bind(endpoint, error);
  if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
  if (!error) return {};
  return Status(Code::kIo, fmt::format("cannot listen at {}: {}", options_.address, error.message()));
}

void Server::run(const std::function<void(const std::string&)>& ready) {
  asio::signal_set signals(io_, SIGTERM, SIGINT);
  signals.async_wait([this](Error error, int) {
    if (!error) stop();
  });
  asio::co_spawn(io_, accept(), asio::detached);
  const auto at = acceptor_.local_endpoint();
  const std::string host = at.address().to_string();
  ready(fmt::format("http://{}:{}", at.address().is_v6() ? "[" + host + "]" : host, at.port()));
  io_.run();
  workers_.join();
}

void Server::stop() {
  Error ignored;
  stop_ = true;
  acceptor_.close(ignored);
  for (Connection* c : connections_) {
    if (c->idle) c->socket.cancel(ignored);
  }
  if (connections_.empty()) return;
  end_.expires_after(duration(kStopSeconds));
  end_.async_wait([this](Error error) {
    if (!error) io_.stop();
  });
}

asio::awaitable<void> Server::accept() {
  while (!stop_) {
    auto [error, socket] = co_await acceptor_.async_accept(kTuple);
    if (stop_) co_return;
    if (error) {  // out of descriptors, or a peer that has already gone: not again at once
      asio::steady_timer pause(io_, std::chrono::milliseconds(50));
      co_await pause.async_wait(kTuple);
      continue;
    }
    auto c = std::make_shared<Connection>(std::move(socket));
    const bool full = connections_.size() >= options_.max_connections;
    connections_.insert(c.get());
    asio::co_spawn(io_, converse(std::move(c), full), asio::detached);
  }
}

asio::awaitable<void> Server::converse(std::shared_ptr<Connection> c, bool full) {
  boost::beast::flat_buffer buffer(kPieceBytes);
  try {
    if (full) {
      if (connections_.size() < 2 * options_.max_connections)
        co_await send(*c, error_reply(503, "too many connections: try again later"), false);
    } else {
      while (!stop_ && co_await take(*c, buffer)) {
      }
    }
    co_await linger(*c);
  } catch (const std::exception&) {  // out of memory: this connection ends, the others go on
  }
  c->disarm();
  connections_.erase(c.get());
  if (stop_ && connections_.empty()) end_.cancel();
}

asio::awaitable<bool> Server::take(Connection& c, boost::beast::flat_buffer& buffer) {
  http::request_parser<http::string_body> parser;
  parser.header_limit(kHeaderBytes);
  parser.body_limit(options_.max_body_bytes);
  c.idle = buffer.size() == 0;
  c.arm(options_.timeout_s);
  while (!parser.is_header_done()) {
    auto [error, count] = co_await http::async_read_some(c.socket, buffer, parser, kTuple);
    if (error && (stop_ || c.idle) && !parser.got_some() && buffer.size() == 0)
      co_return false;  // nobody asked anything
    if (error) co_return co_await send(c, broken(c, error), false);
    c.idle = false;
  }
  const auto& request = parser.get();
  const unsigned version = request.version();
  if (const Reply refused = refuse(request); refused.status != 200) {
    // A body that has not been read would be taken for the next request.
    const bool keep = parser.is_done() && request.keep_alive();
    co_return co_await send(c, refused, keep, version);
  }
  if (const auto expect = request.find(http::field::expect); expect != request.end()) {
    if (!boost::beast::iequals(expect->value(), "100-continue"))
      co_return co_await send(c, error_reply(417, "the only expectation known is 100-continue"), false, version);
    http::response<http::empty_body> go(http::status::continue_, version);
    auto [error, count] = co_await http::async_write(c.socket, go, kTuple);
    if (error) co_return false;
  }
  while (!parser.is_done()) {
    auto [error, count] = co_await http::async_read_some(c.socket, buffer, parser, kTuple);
    if (error) co_return co_await send(c, broken(c, error), false, version);
  }
  c.disarm();

  if (computing_ >= options_.max_connections)
    co_return co_await send(c, error_reply(503, "too many requests are waiting: try again later"),
                            request.keep_alive(), version);
  ++computing_;
  Reply reply = error_reply(500, "out of memory");
  try {
    reply = co_await asio::co_spawn(
        workers_,
        [&]() -> asio::awaitable<Reply> {
          const std::string_view method = {request.method_string().data(), request.method_string().size()};
          const std::string_view target = {request.target().data(), request.target().size()};
          co_return answer(predictor_, method, target, request.body(), stop_);
        },
        asio::use_awaitable);
  } catch (const std::exception& e) {
    reply = error_reply(500, e.what());
  }
  --computing_;
  co_return co_await send(c, std::move(reply), request.keep_alive(), version);
}

// By the header alone.
Reply Server::refuse(const http::request<http::string_body>& request) const {
  if (!options_.key.empty()) {
    const std::string expected = "Bearer " + options_.key;
    const auto given = request[http::field::authorization];
    // The time that this takes does not tell how much of the key is right.
    if (given.size() != expected.size() || CRYPTO_memcmp(given.data(), expected.data(), expected.size()) != 0)
      return error_reply(401, "this server wants its key: \"Authorization: Bearer KEY\"");
  }
  const auto method = request.method_string(), target = request.target();
  Reply early = refuse_early({method.data(), method.size()}, {target.data(), target.size()});
  if (early.status != 200) return early;
  const auto type = request[http::field::content_type];
  constexpr std::string_view kJson = "application/json";
  const bool json = type.size() >= kJson.size() && boost::beast::iequals(type.substr(0, kJson.size()), kJson) &&
                    (type.size() == kJson.size() || type[kJson.size()] == ';');
  if (request.method() == http::verb::post && !type.empty() && !json)
    return error_reply(415, "the body is to be of the type application/json");
  return {};
}

Reply Server::broken(const Connection& c, Error error) const {
  if (c.late) return error_reply(408, fmt::format("the request did not arrive within {} s", options_.timeout_s));
  if (error == http::error::body_limit)
    return error_reply(413, fmt::format("the body has more than {} bytes", options_.max_body_bytes));
  if (error == http::error::header_limit || error == http::error::buffer_overflow)
    return error_reply(431, fmt::format("the header has more than {} bytes", kHeaderBytes));
  if (error.category() == http::make_error_code(http::error::bad_method).category() &&
      error != http::error::end_of_stream && error != http::error::partial_message)
    return error_reply(400, "this is no HTTP request: " + error.message());
  return error_reply(400, "the connection ended in the middle of a request");
}

asio::awaitable<bool> Server::send(Connection& c, Reply reply, bool keep, unsigned version) {
  keep = keep && !stop_;
  Response response(static_cast<http::status>(reply.status), version, std::move(reply.body));
  response.set(http::field::content_type, "application/json");
  response.set(http::field::cache_control, "no-store");
  if (!reply.allow.empty()) response.set(http::field::allow, reply.allow);
  if (reply.status == 401) response.set(http::field::www_authenticate, "Bearer");
  if (reply.status == 503) response.set(http::field::retry_after, "1");
  response.keep_alive(keep);
  response.prepare_payload();
  c.arm(options_.timeout_s);
  auto [error, count] = co_await http::async_write(c.socket, response, kTuple);
  c.disarm();
  co_return keep && !error;
}

// Closing a socket with unread bytes resets the connection, and the peer may lose the reply: so read on for a moment.
asio::awaitable<void> Server::linger(Connection& c) {
  Error error;
  c.socket.shutdown(tcp::socket::shutdown_send, error);
  if (error) co_return;
  c.arm(kLingerSeconds);
  std::array<char, 4096> unread;  // NOLINT: written by reads
  for (size_t total = 0; total < kLingerBytes && !stop_;) {
    auto [failed, count] = co_await c.socket.async_read_some(asio::buffer(unread), kTuple);
    if (failed) break;
    total += count;
  }
}

Result<tcp::endpoint> parse_endpoint(const std::string& text) {
  const auto bad = [&](const std::string& why) {
    return Status(Code::kInvalid,
                  fmt::format("the address \"{}\" {}; take one like 127.0.0.1:8000 or [::1]:8000", text, why));
  };
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos) return bad("has no port");
  std::string host = text.substr(0, colon);
  const std::string port = text.substr(colon + 1);
  uint16_t number = 0;
  const auto [end, problem] = std::from_chars(port.data(), port.data() + port.size(), number);
  if (problem != std::errc() || end != port.data() + port.size()) return bad("has no port between 0 and 65535");
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  if (host == "localhost") host = "127.0.0.1";
  Error error;
  const auto address = asio::ip::make_address(host, error);
  if (error) return bad("is not numeric");
  return tcp::endpoint(address, number);
}

}  // namespace

Status serve(const train::Predictor& predictor, const ServeOptions& options,
             const std::function<void(const std::string& url)>& ready) {
  const auto endpoint = parse_endpoint(options.address);
  if (!endpoint.ok()) return endpoint.status();
  if (options.threads < 1 || options.max_connections < 1 || options.max_body_bytes < 1 || !(options.timeout_s > 0))
    return Status(Code::kInvalid, "threads, connections, bytes of a body and seconds must be more than 0");
  if (!endpoint->address().is_loopback() && options.key.empty() && !options.open) {
    return Status(Code::kInvalid,
                  fmt::format("{} can be reached from other hosts: give a key (--key-file), or say --open if "
                              "anybody may ask",
                              options.address));
  }
  Server server(predictor, options);
  RINGFOLD_TRY(server.listen(*endpoint));
  server.run(ready);
  return {};
}

Result<std::string> read_key(const std::string& path) {
  struct stat facts {};
  std::ifstream file(path);
  std::string key;
  if (!file || ::stat(path.c_str(), &facts) != 0)
    return Status(Code::kIo, fmt::format("cannot read the key {}: {}", path, std::strerror(errno)));
  if ((facts.st_mode & (S_IRWXG | S_IRWXO)) != 0)
    return Status(Code::kDenied, fmt::format("others may read the key {}: chmod 600 {}", path, path));
  std::getline(file, key);
  if (key.size() < 16) return Status(Code::kInvalid, fmt::format("the key {} is shorter than 16 bytes", path));
  return key;
}

}  // namespace ringfold::deploy
