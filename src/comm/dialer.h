// Connects to one rank that may be reached at several addresses. They are tried in order, the next one 100 ms after
// the last or as soon as that has failed. An address wins when its handshake proves the key and the owner takes who
// answers there; the other attempts are closed then. So what is used is what works, not what a name suggests.
//
// Internal to the control mesh. All calls and callbacks on the io_context's thread; it must be stopped, or the
// io_context must, before it goes.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>

#include "comm/channel.h"
#include "comm/interfaces.h"

namespace ringfold::comm {

class Dialer {
 public:
  // What the owner says of an attempt that has proved the key (`proved`) or sent a frame (`frame`). Ok: it has taken
  // the channel (and called stop()), or waits for a frame. Otherwise the attempt has failed, for the reason given.
  struct Events {
    std::function<Status(const std::shared_ptr<Channel>&)> proved;
    std::function<Status(const std::shared_ptr<Channel>&, uint8_t type, std::string_view body)> frame;
    std::function<bool()> exhausted;  // all have failed: again, after a pause?
  };

  Dialer(asio::io_context& io, const base::Key& key, std::string hello, DialOrder order, Events events)
      : io_(io),
        key_(key),
        hello_(std::move(hello)),
        order_(std::move(order)),
        events_(std::move(events)),
        timer_(io) {}

  void start() { next(); }
  // No more attempts; those under way are closed, but for `winner`.
  void stop(const std::shared_ptr<Channel>& winner = nullptr);

  // Candidates that failed, and why; with those that were not tried at all: everything about an unreachable rank.
  const std::map<std::string, std::string>& failures() const { return failures_; }
  std::vector<std::string> explain() const;

 private:
  void next();
  void next_after(base::Duration pause);
  void dial(const Candidate& candidate);
  void shake(const std::string& candidate, tcp::socket socket);
  void failed(const std::string& candidate, std::string_view why);

  asio::io_context& io_;
  const base::Key& key_;
  const std::string hello_;
  const DialOrder order_;
  const Events events_;
  asio::steady_timer timer_;
  size_t tried_ = 0;  // of order_.tries, in this turn
  base::Duration pause_ = std::chrono::milliseconds(100);
  std::set<std::string> under_way_;                           // candidates whose connect or handshake is going on
  std::map<std::shared_ptr<Channel>, std::string> attempts_;  // of those, which have connected
  std::map<std::string, std::string> failures_;
  bool stopped_ = false;
};

}  // namespace ringfold::comm
