// Control over TCP. How the mesh comes up:
//
//   1. Every rank listens on each of its usable addresses, on ports of the system's choice, and brings them to the
//      rendezvous as candidates.
//   2. With the table in hand, the higher rank of each pair dials the lower one. It tries the candidates in the order
//   of
//      dial_order, the next one 100 ms after the last or as soon as that has failed, all of them again after a pause.
//      A candidate wins when its handshake proves the key and says that it is this job and that rank: an address that
//      leads to another host, to ourselves or to a stranger cannot win, however well it connects. The winner gets
//      kSelect, the other attempts are closed. So what is used is what works, not what a name suggests.
//   3. One exchange tells everybody that everybody is connected, and which candidates failed, for the one line that
//   says
//      what was chosen and why.
//
// A rank that leaves sends kGoodbye first; an end without it is a death.
//
// In a job that is open ranks go on listening, and a process may come in the place of a lost rank: it dials all whose
// cards it finds, each candidate once, and gives its own card with kReturn; who takes it in answers kWelcome with its
// card, and what was left of the process before is closed. When all have answered or failed it says kReady. Of two
// that come back and dial each other the higher rank's connection counts.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "base/log.h"
#include "comm/card.h"
#include "comm/channel.h"
#include "comm/control.h"
#include "comm/rendezvous.h"
#include "comm/text.h"
#include "comm/thread.h"
#include "comm/wire.h"

namespace ringfold::comm {
namespace {

using base::Deadline;
using boost::system::error_code;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr size_t kMaxQueued = 256 << 20;
constexpr size_t kMaxStrangers = 1024;
constexpr auto kStagger = milliseconds(100);
constexpr auto kAttemptLimit = seconds(3);

enum Frame : uint8_t { kSelect = 1, kMessage, kGoodbye, kReturn, kWelcome, kReady };

class MeshControl : public Control {
 public:
  MeshControl(const Launch& launch, const Config& config, const base::Key& key)
      : Control(launch.rank, std::vector<PeerInfo>(static_cast<size_t>(launch.size))),
        launch_(launch),
        config_(config),
        key_(key),
        links_(peers_.size()) {}

  ~MeshControl() override {
    if (left_card_) take_card_away(launch_, key_);
    leave("left the job");
  }

  bool open() const override { return launch_.open; }
  bool came_back() const override { return launch_.comes_back; }

  Status connect(Deadline deadline) {
    auto& me = peers_[rank_];
    me = describe_self(rank_);
    if (launch_.comes_back && size() > 1) return come_back(deadline);
    std::function<void()> clean_up;
    if (size() > 1) {
      RINGFOLD_TRY(listen());
      auto roster = rendezvous(launch_, key_, write_card(me), config_.listen_any, deadline);
      if (!roster.ok()) return roster.status();
      job_ = roster->job;
      clean_up = roster->clean_up;
      for (int r = 0; r < size(); ++r) {
        if (r == rank_) continue;
        peers_[r].rank = r;
        RINGFOLD_TRY(read_card(roster->cards[r], me, &peers_[r]));
      }
    } else {
      job_ = random_name();
    }
    thread_ = start_thread("rf-control", [this] { io_.run(); });
    auto status = size() > 1 ? come_up(deadline) : Status();
    if (status.ok() && launch_.open && size() > 1) {
      status = leave_card(launch_, key_, job_, write_card(me));
      left_card_ = status.ok();
    }
    if (!status.ok()) leave(status.message());
    if (clean_up) clean_up();
    return status;
  }

 private:
  struct Link {
    std::shared_ptr<Channel> channel;  // null before it is connected, and after it is lost
    bool up = false;                   // was connected
    // Dialling, towards lower ranks only:
    DialOrder order;
    size_t next = 0;
    std::set<std::shared_ptr<Channel>> attempts;
    std::set<std::string> in_flight;  // candidates whose connect or handshake is going on
    bool tried = false;               // all candidates, once
    milliseconds pause{100};
    std::unique_ptr<asio::steady_timer> timer;
    std::map<std::string, std::string> failures;  // candidate, reason
  };

  // Runs `f` on the control thread and waits for it.
  template <typename F>
  auto run_here(F f) {
    std::optional<decltype(f())> result;
    std::mutex mutex;
    std::condition_variable done;
    asio::post(io_, [&] {
      auto value = f();
      std::lock_guard lock(mutex);
      result = std::move(value);
      done.notify_all();
    });
    std::unique_lock lock(mutex);
    done.wait(lock, [&] { return result.has_value(); });
    return *std::move(result);
  }

  // ---- bringing the mesh up ----

  Status listen() {
    auto all = list_interfaces();
    if (!all.ok()) return all.status();
    interfaces_ = *std::move(all);
    auto selected = select_interfaces(interfaces_, config_.interfaces);
    if (!selected.ok()) return selected.status();
    Status last;
    for (const auto& interface : *selected) {
      auto address = asio::ip::make_address(interface.address);
      if (config_.listen_any)
        address = address.is_v6() ? asio::ip::address(asio::ip::address_v6::any()) : asio::ip::address_v4::any();
      auto known = std::find_if(acceptors_.begin(), acceptors_.end(),
                                [&](const auto& a) { return a->local_endpoint().address() == address; });
      if (known == acceptors_.end()) {
        auto acceptor = listen_on(io_, tcp::endpoint(address, 0));
        last = acceptor.status();
        if (!acceptor.ok()) {
          log::debug("{}: {}", interface.to_string(), last.message());
          continue;
        }
        known = acceptors_.insert(acceptors_.end(), std::make_shared<tcp::acceptor>(*std::move(acceptor)));
      }
      peers_[rank_].candidates.push_back({interface, (*known)->local_endpoint().port()});
    }
    return acceptors_.empty() ? last : Status();
  }

  Status come_up(Deadline deadline) {
    asio::post(io_, [this] {
      for (const auto& acceptor : acceptors_)
        accept_all(acceptor, [this](tcp::socket socket) { welcome(std::move(socket)); });
      for (int r = 0; r < rank_; ++r) {
        links_[r].order = dial_order(interfaces_, peers_[r].candidates, peers_[r].stack_id == peers_[rank_].stack_id);
        links_[r].timer = std::make_unique<asio::steady_timer>(io_);
        dial_next(r);
      }
    });
    {
      std::unique_lock lock(up_mutex_);
      while (up_count_ + 1 < size() && failure_.ok() && !deadline.passed())
        up_changed_.wait_for(lock, deadline.left());
      if (!failure_.ok()) return failure_;
    }
    std::vector<int> everybody(peers_.size());
    for (int r = 0; r < size(); ++r) everybody[r] = r;
    Writer report;
    auto missing = run_here([this, &report] {
      std::vector<std::string> parts;
      for (int r = 0; r < size(); ++r) {
        if (r == rank_ || links_[r].up) {
          report.number(static_cast<uint16_t>(links_[r].failures.size()));
          for (const auto& [candidate, reason] : links_[r].failures)
            report.text(fmt::format("{}: {} from rank {}", candidate, reason, rank_));
          continue;
        }
        auto tried = links_[r].order.skipped;
        for (const auto& [candidate, reason] : links_[r].failures)
          tried.push_back(fmt::format("{}: {}", candidate, reason));
        parts.push_back(
            r > rank_ ? fmt::format("rank {} on {} has not connected to this rank", r, peers_[r].host)
                      : fmt::format("rank {} on {} cannot be reached ({})", r, peers_[r].host, join(tried, "; ")));
      }
      return parts;
    });
    if (!missing.empty())
      return {Code::kTimeout, fmt::format("rank {} on {}: {}", rank_, peers_[rank_].host, join(missing, "; "))};
    auto reports = exchange("mesh", everybody, report.take(), deadline);
    if (!reports.ok()) return reports.status();
    settle(*reports);
    return run_here([this] {
      settled_ = true;
      return Status();
    });
  }

  // In the place of a rank that was lost.
  Status come_back(Deadline deadline) {
    auto& me = peers_[rank_];
    RINGFOLD_TRY(listen());
    auto roster = rendezvous_again(launch_, key_, write_card(me), deadline);
    if (!roster.ok()) return roster.status();
    left_card_ = true;
    job_ = roster->job;
    std::vector<int> known;
    for (int r = 0; r < size(); ++r) {
      peers_[r].rank = r;
      if (r == rank_ || roster->cards[r].empty()) continue;
      RINGFOLD_TRY(read_card(roster->cards[r], me, &peers_[r]));
      known.push_back(r);
    }
    thread_ = start_thread("rf-control", [this] { io_.run(); });
    asio::post(io_, [this, known] {
      for (int r : known) {
        links_[r].order = dial_order(interfaces_, peers_[r].candidates, peers_[r].stack_id == peers_[rank_].stack_id);
        links_[r].timer = std::make_unique<asio::steady_timer>(io_);
      }
      for (const auto& acceptor : acceptors_)
        accept_all(acceptor, [this](tcp::socket socket) { welcome(std::move(socket)); });
      for (int r : known) dial_next(r);
    });
    {
      std::unique_lock lock(up_mutex_);
      while (tried_count_ < known.size() && !deadline.passed()) up_changed_.wait_for(lock, deadline.left());
    }
    const int found = run_here([this] {
      int count = 0;
      settled_ = true;
      (void)choose_address();
      for (int r = 0; r < size(); ++r) {
        if (r == rank_) continue;
        if (links_[r].channel) {
          links_[r].channel->send(kReady, {});
          ++count;
        } else if (!links_[r].up) {
          lose(r, Status(Code::kPeerLost, "it was gone when this rank came back"), false);
        }
      }
      return count;
    });
    if (found > 0) return {};
    leave("nobody answered");
    return {Code::kPeerLost, fmt::format("rank {} comes back, and none of the {} ranks that it knows of answers: the "
                                         "job has ended",
                                         rank_, known.size())};
  }

  // Of those that come back: this one is through with its candidates.
  void have_tried(int r) {
    if (std::exchange(links_[r].tried, true)) return;
    std::lock_guard lock(up_mutex_);
    ++tried_count_;
    up_changed_.notify_all();
  }

  // Decides this rank's own address: the one that most peers use. By address, who uses it.
  std::map<std::string, std::vector<int>> choose_address() {
    std::map<std::string, std::vector<int>> used;
    for (int r = 0; r < size(); ++r) {
      if (r != rank_ && links_[r].up) used[peers_[r].my_address].push_back(r);
    }
    const auto most = std::max_element(
        used.begin(), used.end(), [](const auto& a, const auto& b) { return a.second.size() < b.second.size(); });
    if (most != used.end()) peers_[rank_].my_address = peers_[rank_].address = most->first;
    return used;
  }

  // And writes the line that explains it.
  void settle(const std::vector<std::string>& reports) {
    const auto used = choose_address();
    std::vector<std::string> chosen, rejected;
    for (const auto& [address, ranks] : used) {
      auto it =
          std::find_if(interfaces_.begin(), interfaces_.end(), [&](const auto& i) { return i.address == address; });
      chosen.push_back(fmt::format("{} for rank{} {}", it == interfaces_.end() ? address : it->to_string(),
                                   ranks.size() == 1 ? "" : "s", list_ranks(ranks)));
    }
    std::map<std::string, std::string> why;  // of this rank's candidates, from those who tried them
    for (int r = 0; r < size(); ++r) {
      Reader reader(reports[r]);
      for (int to = 0; to < size(); ++to) {
        for (int n = reader.number<uint16_t>(); n > 0 && reader.ok(); --n) {
          std::string text(reader.text());
          if (to == rank_) why.emplace(text.substr(0, text.find(": ")), text.substr(text.find(": ") + 2));
        }
      }
    }
    for (const auto& interface : interfaces_) {
      if (used.contains(interface.address) || interface.kind == AddressKind::kLinkLocal) continue;
      auto it = std::find_if(why.begin(), why.end(), [&](const auto& w) {
        return w.first.starts_with(interface.to_string() + ":") ||
               w.first.starts_with(fmt::format("{} [{}]:", interface.name, interface.address));
      });
      std::string reason = "not needed";
      if (it != why.end()) {
        reason = it->second;
      } else if (interface.kind == AddressKind::kDown) {
        reason = "the link is down";
      } else if (std::none_of(peers_[rank_].candidates.begin(), peers_[rank_].candidates.end(),
                              [&](const auto& c) { return c.interface.address == interface.address; })) {
        reason = "not in RINGFOLD_INTERFACE";
      }
      rejected.push_back(fmt::format("{} ({})", interface.to_string(), reason));
    }
    log::info("rank {} uses {}{}{}", rank_, join(chosen, ", "), rejected.empty() ? "" : "; not ",
              join(rejected, ", "));
  }

  std::string hello() const { return Writer().text("mesh").text(job_).number(static_cast<uint32_t>(rank_)).take(); }
  // The rank that the other side says it is; -1: of another job or kind.
  int rank_in(const std::string& hello) const {
    Reader reader(hello);
    const bool ours = reader.text() == "mesh" && reader.text() == job_;
    const auto rank = reader.number<uint32_t>();
    return ours && reader.done() && rank < static_cast<uint32_t>(size()) ? static_cast<int>(rank) : -1;
  }

  void dial_next(int r) {
    auto& link = links_[r];
    if (link.up || leaving_ || settled_) return;
    if (link.order.tries.empty()) {
      link.failures.emplace("nothing to try", "it published no address that is not also this host's");
      if (launch_.comes_back) have_tried(r);
      return;
    }
    if (link.next == link.order.tries.size()) {
      if (!link.in_flight.empty()) return;  // the last one to fail comes back here
      if (launch_.comes_back) return have_tried(r);
      link.next = 0;
      link.pause = std::min(link.pause * 2, milliseconds(2000));
      return dial_after(r, link.pause);
    }
    const Candidate candidate = link.order.tries[link.next++];
    link.in_flight.insert(candidate.to_string());
    dial(r, candidate);
    dial_after(r, kStagger);
  }

  void dial_after(int r, milliseconds pause) {
    links_[r].timer->expires_after(pause);
    links_[r].timer->async_wait([this, r](const error_code& error) {
      if (!error) dial_next(r);
    });
  }

  void dial_failed(int r, const Candidate& candidate, std::string_view why) {
    auto& link = links_[r];
    link.in_flight.erase(candidate.to_string());
    link.failures[candidate.to_string()] = why;
    if (!link.up && (link.in_flight.empty() || link.next < link.order.tries.size())) dial_next(r);
  }

  void dial(int r, const Candidate& candidate) {
    error_code error;
    const tcp::endpoint endpoint(asio::ip::make_address(candidate.interface.address, error), candidate.port);
    auto opened = error ? Result<tcp::socket>(Status(Code::kProtocol, "not an address"))
                        : open_socket(io_, endpoint.protocol());
    if (!opened.ok()) {
      asio::post(io_, [this, r, candidate, why = opened.status().message()] { dial_failed(r, candidate, why); });
      return;
    }
    auto socket = std::make_shared<tcp::socket>(*std::move(opened));
    auto limit = std::make_shared<asio::steady_timer>(io_, kAttemptLimit);
    limit->async_wait([socket](const error_code& cancelled) {
      if (!cancelled) socket->close();
    });
    socket->async_connect(endpoint, [this, r, candidate, socket, limit](const error_code& failed) {
      limit->cancel();
      if (failed) {
        return dial_failed(r, candidate,
                           failed == asio::error::operation_aborted ? "not reachable (no answer)"
                                                                    : "not reachable (" + failed.message() + ")");
      }
      if (links_[r].up || leaving_) return;
      shake(r, candidate, std::move(*socket));
    });
  }

  void shake(int r, const Candidate& candidate, tcp::socket socket) {
    auto self = std::make_shared<std::weak_ptr<Channel>>();
    auto channel = Channel::start(
        std::move(socket), key_, base::Handshake::Role::kInitiator, hello(), kAttemptLimit,
        {[this, r, candidate, self] {
           auto winner = self->lock();
           links_[r].attempts.erase(winner);
           const int who = rank_in(winner->peer_hello());
           if (who != r) {
             winner->close();
             return dial_failed(r, candidate,
                                who < 0 ? "leads to another job" : fmt::format("leads to rank {}", who));
           }
           if (launch_.comes_back) {
             links_[r].attempts.insert(winner);
             return winner->send(kReturn, write_card(peers_[rank_]));
           }
           links_[r].in_flight.erase(candidate.to_string());
           winner->send(kSelect, {});
           adopt(r, winner);
         },
         [this, r, candidate, self](uint8_t type, std::string_view body) {
           auto winner = self->lock();
           PeerInfo peer{.rank = r};
           if (type != kWelcome || !read_card(body, peers_[rank_], &peer).ok() || links_[r].up) {
             links_[r].attempts.erase(winner);
             winner->close();
             return dial_failed(r, candidate, "does not take this rank in");
           }
           links_[r].in_flight.erase(candidate.to_string());
           peers_[r] = std::move(peer);
           adopt(r, winner);
           have_tried(r);
         },
         [this, r, candidate, self](const Status& why) {
           links_[r].attempts.erase(self->lock());
           dial_failed(r, candidate, "no proof of the key (" + why.message() + ")");
         }});
    *self = channel;
    links_[r].attempts.insert(std::move(channel));
  }

  void welcome(tcp::socket socket) {
    if (strangers_.size() >= kMaxStrangers) return;
    auto self = std::make_shared<std::weak_ptr<Channel>>();
    auto channel = Channel::start(std::move(socket), key_, base::Handshake::Role::kAcceptor, hello(), seconds(10),
                                  {{},
                                   [this, self](uint8_t type, std::string_view body) {
                                     auto channel = self->lock();
                                     strangers_.erase(channel);
                                     const int who = rank_in(channel->peer_hello());
                                     if (type == kReturn) return welcome_back(who, channel, body);
                                     if (type != kSelect || who <= rank_ || links_[who].up) return channel->close();
                                     adopt(who, channel);
                                   },
                                   [this, self](const Status& why) {
                                     auto channel = self->lock();
                                     strangers_.erase(channel);
                                     log::debug("rank {} dropped a connection from {}: {}", rank_,
                                                text_of(channel->remote()), why.message());
                                   }});
    *self = channel;
    strangers_.insert(std::move(channel));
  }

  void welcome_back(int who, const std::shared_ptr<Channel>& channel, std::string_view card) {
    PeerInfo peer{.rank = who};
    const bool may = launch_.open && who >= 0 && who != rank_ && (settled_ || launch_.comes_back);
    if (!may || !read_card(card, peers_[rank_], &peer).ok()) return channel->close();
    // Two that dial each other: the other one has this rank's card, and answers.
    const bool crossed = !settled_ && !links_[who].tried && who < rank_ && peers_[who].pid == peer.pid;
    if (crossed) return channel->close();
    down(who, Status(Code::kPeerLost, "another process has come in its place"), false);
    channel->send(kWelcome, write_card(peers_[rank_]));
    peer.my_address = channel->local().address().to_string();
    peer.address = channel->remote().address().to_string();
    if (settled_) {
      hold(who, channel);
      log::info("rank {} on {} has come back (pid {})", who, peer.host, peer.pid);
      return arrive(who, std::move(peer));
    }
    peers_[who] = std::move(peer);
    adopt(who, channel);
    have_tried(who);
  }

  void hold(int r, const std::shared_ptr<Channel>& channel) {
    links_[r].channel = channel;
    links_[r].up = true;
    channel->set_events({{},
                         [this, r](uint8_t type, std::string_view body) { on_frame(r, type, body); },
                         [this, r](const Status& why) { down(r, why, false); }});
  }

  // From here on the channel is the connection with that rank.
  void adopt(int r, const std::shared_ptr<Channel>& channel) {
    auto& link = links_[r];
    link.attempts.erase(channel);
    for (const auto& attempt : link.attempts) attempt->close();
    link.attempts.clear();
    for (const auto& other : link.in_flight)
      link.failures.emplace(other, "no answer before another address had answered");
    if (link.timer) link.timer->cancel();
    peers_[r].my_address = channel->local().address().to_string();
    peers_[r].address = channel->remote().address().to_string();
    hold(r, channel);
    std::lock_guard lock(up_mutex_);
    if (++up_count_ + 1 == size() && !launch_.open) {
      for (const auto& acceptor : acceptors_) acceptor->close();  // nobody else is to come
    }
    up_changed_.notify_all();
  }

  // ---- running ----

  void on_frame(int from, uint8_t type, std::string_view body) {
    Reader reader(body);
    if (type == kMessage) {
      auto topic = reader.text(1024);
      auto bytes = reader.rest();
      if (reader.ok()) return deliver(from, topic, bytes);
    } else if (type == kReady) {
      return ready(from);
    } else if (type == kGoodbye) {
      return down(from, Status(Code::kPeerLost, std::string(body.substr(0, 4096))), true);
    }
    down(from, Status(Code::kProtocol, "it sent bytes that no Ringfold sends"), false);
  }

  void down(int r, Status why, bool left) {
    auto& link = links_[r];
    if (!link.channel) return;
    link.channel->close();
    link.channel = nullptr;
    {
      std::lock_guard lock(up_mutex_);
      if (failure_.ok() && up_count_ + 1 < size() && !launch_.comes_back) {
        failure_ = Status(Code::kPeerLost, fmt::format("rank {} on {} was lost while the job started: {}", r,
                                                       peers_[r].host, why.message()));
      }
      up_changed_.notify_all();
    }
    lose(r, std::move(why), left);
  }

  void transmit(int peer, std::string_view topic, std::string_view bytes) override {
    auto head = Writer().text(topic).take();
    asio::post(io_, [this, peer, head = std::move(head), body = std::string(bytes)] {
      auto& channel = links_[peer].channel;
      if (!channel) return;
      channel->send(kMessage, head, body);
      if (channel->queued() > kMaxQueued) {
        down(peer, Status(Code::kPeerLost, fmt::format("it does not read: {} MiB wait for it", kMaxQueued >> 20)),
             false);
      }
    });
  }
  void post(std::function<void()> task) override { asio::post(io_, std::move(task)); }
  void post_at(base::TimePoint when, std::function<void()> task) override {
    asio::post(io_, [this, when, task = std::move(task)]() mutable {
      auto timer = std::make_shared<asio::steady_timer>(io_, when);
      timer->async_wait([timer, task = std::move(task)](const error_code& error) {
        if (!error) task();
      });
    });
  }
  bool on_control_thread() const override { return std::this_thread::get_id() == thread_.get_id(); }

  // Says goodbye and ends the thread. The peers close their side when they have read it; a connection that we closed
  // with unread bytes would be reset, and could take the goodbye with it.
  void leave(std::string reason) {
    if (!thread_.joinable()) return;
    asio::post(io_, [this, reason = std::move(reason)] {
      leaving_ = true;
      for (const auto& acceptor : acceptors_) acceptor->close();
      for (const auto& stranger : strangers_) stranger->close();
      for (auto& link : links_) {
        if (link.timer) link.timer->cancel();
        for (const auto& attempt : link.attempts) attempt->close();
        if (!link.channel) continue;
        link.channel->send(kGoodbye, reason);
        link.channel->finish();
      }
      auto timer = std::make_shared<asio::steady_timer>(io_, seconds(1));
      timer->async_wait([this, timer](const error_code&) { io_.stop(); });
      stop_when_alone();
    });
    thread_.join();
  }
  void stop_when_alone() {
    if (std::none_of(links_.begin(), links_.end(), [](const Link& l) { return l.channel != nullptr; }))
      return io_.stop();
    auto timer = std::make_shared<asio::steady_timer>(io_, milliseconds(1));
    timer->async_wait([this, timer](const error_code&) { stop_when_alone(); });
  }

  const Launch launch_;
  const Config config_;
  const base::Key key_;
  bool left_card_ = false;  // for those that come back
  std::vector<Interface> interfaces_;

  asio::io_context io_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_{io_.get_executor()};
  // The control thread's own:
  std::vector<std::shared_ptr<tcp::acceptor>> acceptors_;
  std::set<std::shared_ptr<Channel>> strangers_;  // have not said who they are
  std::vector<Link> links_;
  bool leaving_ = false;
  bool settled_ = false;  // all are connected that are to be: who comes now comes back

  std::mutex up_mutex_;
  std::condition_variable up_changed_;
  int up_count_ = 0;
  size_t tried_count_ = 0;  // of those that this rank dials as it comes back
  Status failure_;

  std::thread thread_;
};

}  // namespace

Result<std::unique_ptr<Control>> Control::connect(const Launch& launch, const Config& config, const base::Key& key,
                                                  Deadline deadline) {
  auto mesh = std::make_unique<MeshControl>(launch, config, key);
  RINGFOLD_TRY(mesh->connect(deadline));
  return std::unique_ptr<Control>(std::move(mesh));
}

Result<std::unique_ptr<Control>> Control::connect(const Launch& launch, const Config& config, Deadline deadline) {
  auto key = launch.size > 1 ? load_key(config, process_environment()) : base::Key::generate();
  if (!key.ok()) return key.status();
  return connect(launch, config, *key, deadline);
}

}  // namespace ringfold::comm
