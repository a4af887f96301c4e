#include <fmt/format.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "base/log.h"
#include "comm/rendezvous.h"
#include "comm/rendezvous_frames.h"
#include "comm/text.h"
#include "comm/thread.h"
#include "comm/wire.h"

namespace ringfold::comm {
namespace {

using base::Clock;
using base::Deadline;
using boost::system::error_code;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr size_t kMaxStrangers = 256;  // connections that have not proved the key yet

std::string missing_text(const std::vector<int>& missing, int size, double waited, std::string_view where) {
  return fmt::format("rank{} {} of {} {} not arrived after {:.3g} s at {}", missing.size() == 1 ? "" : "s",
                     list_ranks(missing), size, missing.size() == 1 ? "has" : "have", waited, where);
}

}  // namespace

class RendezvousServer::Impl {
 public:
  Impl(const Options& options, const base::Key& key) : options_(options), key_(key) {}

  Result<std::string> start() {
    error_code error;
    auto endpoints = resolve(io_, options_.host, 0, error);
    if (error)
      return Status(Code::kUnavailable, fmt::format("cannot resolve {}: {}", options_.host, error.message()));
    if (options_.listen_any) endpoints = {tcp::endpoint(tcp::v6(), 0), tcp::endpoint(tcp::v4(), 0)};
    Status last;
    for (uint32_t port = options_.first_port; port <= options_.last_port && acceptors_.empty(); ++port) {
      for (auto endpoint : endpoints) {
        endpoint.port(acceptors_.empty() ? static_cast<uint16_t>(port) : acceptors_[0]->local_endpoint().port());
        auto acceptor = listen_on(io_, endpoint);
        last = acceptor.status();
        if (acceptor.ok()) acceptors_.push_back(std::make_shared<tcp::acceptor>(*std::move(acceptor)));
      }
    }
    if (acceptors_.empty()) return last.ok() ? Status(Code::kUnavailable, options_.host + " has no address") : last;
    for (const auto& acceptor : acceptors_)
      accept_all(acceptor, [this](tcp::socket socket) { welcome(std::move(socket)); });
    address_ = fmt::format(fmt::runtime(options_.host.find(':') == std::string::npos ? "{}:{}" : "[{}]:{}"),
                           options_.host, acceptors_[0]->local_endpoint().port());
    thread_ = start_thread("rf-rendezvous", [this] { io_.run(); });
    return address_;
  }

  ~Impl() {
    asio::post(io_, [this] {
      for (const auto& acceptor : acceptors_) acceptor->close();
      stopping_ = true;
      stop_if_idle();
    });
    if (thread_.joinable()) {
      std::unique_lock lock(mutex_);
      idle_.wait_for(lock, seconds(2), [this] { return idle_now_; });
      lock.unlock();
      io_.stop();
      thread_.join();
    }
  }

 private:
  using TimePoint = base::TimePoint;
  struct Guest {
    int rank = -1;  // -1: has not said
    std::string card;
    TimePoint patience = TimePoint::max();
  };

  void welcome(tcp::socket socket) {
    if (strangers_ >= kMaxStrangers) return;  // closes it
    ++strangers_;
    auto id = std::make_shared<Channel*>(nullptr);
    auto channel = Channel::start(std::move(socket), key_, base::Handshake::Role::kAcceptor,
                                  std::string(kRendezvousHello), seconds(5),
                                  {[this, id] {
                                     --strangers_;
                                     if ((*id)->peer_hello() != kRendezvousHello) drop(*id);
                                   },
                                   [this, id](uint8_t type, std::string_view body) { on_frame(*id, type, body); },
                                   [this, id](const Status& status) {
                                     if (!(*id)->ready()) {
                                       --strangers_;
                                       refuse((*id)->remote(), status);
                                     }
                                     drop(*id);
                                   }});
    *id = channel.get();
    guests_.emplace(channel, Guest());
  }

  // Somebody without the key may be a rank with another one, which people must be told; or a port scanner.
  void refuse(const tcp::endpoint& from, const Status& status) {
    if (status.code() == Code::kDenied) ++refused_[from.address().to_string()];
    if (status.code() == Code::kDenied && refused_[from.address().to_string()] == 1 && refused_.size() <= 16) {
      log::warn("rendezvous at {}: refused a connection from {}: {}", address_, text_of(from), status.message());
    } else {
      log::debug("rendezvous at {}: dropped a connection from {}: {}", address_, text_of(from), status.to_string());
    }
  }

  std::map<std::shared_ptr<Channel>, Guest>::iterator find(Channel* channel) {
    auto it = guests_.begin();
    while (it != guests_.end() && it->first.get() != channel) ++it;
    return it;
  }

  void drop(Channel* channel) {
    auto it = find(channel);
    if (it == guests_.end()) return;
    it->first->close();
    guests_.erase(it);
    stop_if_idle();
  }

  void stop_if_idle() {
    if (!stopping_) return;
    for (const auto& [channel, guest] : guests_) {
      if (channel->queued() > 0) return;  // it will close the connection once it has read all
    }
    std::lock_guard lock(mutex_);
    idle_now_ = true;
    idle_.notify_all();
  }

  void answer(const std::shared_ptr<Channel>& channel, Code code, const std::string& text) {
    channel->send(kRefused, Writer().number(static_cast<uint8_t>(code)).text(text).take());
    channel->finish();
  }

  void on_frame(Channel* from, uint8_t type, std::string_view body) {
    auto it = find(from);
    Reader reader(body);
    const int rank = reader.number<int>(), size = reader.number<int>();
    const auto patience = reader.number<uint32_t>();
    std::string card(reader.text(64 << 10));
    if (it == guests_.end() || (type != kRegister && type != kReturn) || !reader.done() || it->second.rank != -1)
      return drop(from);
    const auto where = text_of(from->remote());
    if (size != options_.size || rank < 0 || rank >= size) {
      return answer(it->first, Code::kInvalid,
                    fmt::format("the rendezvous at {} is for {} ranks, but {} came as rank {} of {}", address_,
                                options_.size, where, rank, size));
    }
    if (type == kReturn) return welcome_back(it->first, rank, std::move(card));
    for (const auto& [channel, guest] : guests_) {
      if (guest.rank != rank) continue;
      const auto text =
          fmt::format("rank {} came twice to the rendezvous at {}: from {} and from {}; was the job started twice?",
                      rank, address_, text_of(channel->remote()), where);
      return answer(it->first, Code::kInvalid, text);
    }
    it->second = {rank, std::move(card), Clock::now() + milliseconds(patience)};
    complete_or_wait();
  }

  void complete_or_wait() {
    std::vector<std::string> cards(static_cast<size_t>(options_.size));
    std::set<int> present;
    auto soonest = TimePoint::max();
    for (const auto& [channel, guest] : guests_) {
      if (guest.rank < 0) continue;
      present.insert(guest.rank);
      cards[guest.rank] = guest.card;
      soonest = std::min(soonest, guest.patience);
    }
    if (present.size() < cards.size()) {
      timer_.expires_at(soonest);
      timer_.async_wait([this](const error_code& error) {
        if (!error) give_up();
      });
      return;
    }
    timer_.cancel();
    job_ = random_name();
    cards_ = std::move(cards);
    const auto body = table();
    for (auto& [channel, guest] : guests_) {
      if (guest.rank < 0) continue;
      channel->send(kRoster, body);
      channel->finish();
      guest.rank = -2;  // served: no longer part of a roster that is being collected
    }
    begin_ = Clock::now();
  }

  std::string table() const {
    Writer table;
    table.text(job_);
    for (const auto& card : cards_) table.text(card);
    return table.take();
  }

  void welcome_back(const std::shared_ptr<Channel>& channel, int rank, std::string card) {
    if (cards_.empty()) {
      return answer(channel, Code::kUnavailable,
                    fmt::format("rank {} comes back to {}, where no job has met yet", rank, address_));
    }
    cards_[static_cast<size_t>(rank)] = std::move(card);
    channel->send(kRoster, table());
    channel->finish();
  }

  // The first rank that gives up ends the meeting: without it there is no job. All hear the same reason.
  void give_up() {
    std::vector<bool> here(static_cast<size_t>(options_.size));
    bool any = false;
    for (const auto& [channel, guest] : guests_) {
      if (guest.rank >= 0) any = here[guest.rank] = true;
    }
    std::vector<int> missing;
    for (int r = 0; r < options_.size; ++r) {
      if (!here[r]) missing.push_back(r);
    }
    auto text = missing_text(missing, options_.size, base::seconds_of(Clock::now() - begin_), address_);
    for (const auto& [address, count] : refused_) {
      text +=
          fmt::format("; {} connection{} from {} did not prove the job's key", count, count == 1 ? "" : "s", address);
    }
    if (!any) return;
    for (auto& [channel, guest] : guests_) {
      if (guest.rank < 0) continue;
      answer(channel, Code::kTimeout, text);
      guest.rank = -2;
    }
  }

  const Options options_;
  const base::Key key_;
  asio::io_context io_{1};
  std::string address_;
  std::vector<std::shared_ptr<tcp::acceptor>> acceptors_;
  std::map<std::shared_ptr<Channel>, Guest> guests_;
  std::map<std::string, int> refused_;  // by address, how often
  size_t strangers_ = 0;
  asio::steady_timer timer_{io_};
  TimePoint begin_ = Clock::now();
  std::string job_;                 // of the roster that was given last
  std::vector<std::string> cards_;  // and it; empty: none was
  bool stopping_ = false;
  std::mutex mutex_;
  std::condition_variable idle_;
  bool idle_now_ = false;
  std::thread thread_;
};

RendezvousServer::RendezvousServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RendezvousServer::~RendezvousServer() = default;

Result<std::unique_ptr<RendezvousServer>> RendezvousServer::start(const Options& options, const base::Key& key) {
  auto impl = std::make_unique<Impl>(options, key);
  auto address = impl->start();
  if (!address.ok()) return address.status();
  std::unique_ptr<RendezvousServer> server(new RendezvousServer(std::move(impl)));
  server->address_ = *std::move(address);
  return server;
}

}  // namespace ringfold::comm
