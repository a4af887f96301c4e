// Control over TCP. How the mesh comes up:
//
//   1. Every rank listens on each of its usable addresses, on ports of the system's choice, and brings them to the
//      rendezvous as candidates.
//   2. With the table in hand, the higher rank of each pair dials the lower one (dialer.h). A candidate wins when its
//      handshake proves the key and says that it is this job and that rank: an address that leads to another host, to
//      ourselves or to a stranger cannot win, however well it connects. The winner gets kSelect.
//   3. One exchange tells everybody that everybody is connected, and which candidates failed, for the one line that
//      says what was chosen and why.
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
#include "comm/dialer.h"
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
    std::unique_ptr<Dialer> dialer;    // of the ranks that this one dials
    bool tried = false;                // all candidates, by one that comes back
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
      for (int r = 0; r < rank_; ++r) dial(r);
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
        const auto& link = links_[r];
        if (r == rank_ || link.up) {
          const auto failures = link.dialer ? link.dialer->failures() : std::map<std::string, std::string>();
          report.number(static_cast<uint16_t>(failures.size()));
          for (const auto& [candidate, reason] : failures)
            report.text(fmt::format("{}: {} from rank {}", candidate, reason, rank_));
          continue;
        }
        parts.push_back(link.dialer ? fmt::format("rank {} on {} cannot be reached ({})", r, peers_[r].host,
                                                  join(link.dialer->explain(), "; "))
                                    : fmt::format("rank {} on {} has not connected to this rank", r, peers_[r].host));
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
      for (const auto& acceptor : acceptors_)
        accept_all(acceptor, [this](tcp::socket socket) { welcome(std::move(socket)); });
      for (int r : known) dial(r);
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
        if (links_[r].dialer) links_[r].dialer->stop(links_[r].channel);
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
    std::map<std::string, std::string> failures;  // of this rank's candidates, from those who tried them
    for (int r = 0; r < size(); ++r) {
      Reader reader(reports[r]);
      for (int to = 0; to < size(); ++to) {
        for (int n = reader.number<uint16_t>(); n > 0 && reader.ok(); --n) {
          std::string text(reader.text());
          if (to == rank_) failures.emplace(text.substr(0, text.find(": ")), text.substr(text.find(": ") + 2));
        }
      }
    }
    log::info("rank {} uses {}", rank_,
              explain_choice(interfaces_, peers_[rank_].candidates, choose_address(), failures));
  }

  std::string hello() const { return Writer().text("mesh").text(job_).number(static_cast<uint32_t>(rank_)).take(); }
  // The rank that the other side says it is; -1: of another job or kind.
  int rank_in(const std::string& hello) const {
    Reader reader(hello);
    const bool ours = reader.text() == "mesh" && reader.text() == job_;
    const auto rank = reader.number<uint32_t>();
    return ours && reader.done() && rank < static_cast<uint32_t>(size()) ? static_cast<int>(rank) : -1;
  }

  void dial(int r) {
    const bool returning = launch_.comes_back;
    Dialer::Events events;
    events.proved = [this, r, returning](const std::shared_ptr<Channel>& channel) -> Status {
      const int who = rank_in(channel->peer_hello());
      if (who < 0) return {Code::kMismatch, "leads to another job"};
      if (who != r) return {Code::kMismatch, fmt::format("leads to rank {}", who)};
      if (returning) {
        channel->send(kReturn, write_card(peers_[rank_]));
        return {};
      }
      channel->send(kSelect, {});
      adopt(r, channel);
      return {};
    };
    events.frame = [this, r](const std::shared_ptr<Channel>& channel, uint8_t type, std::string_view body) -> Status {
      PeerInfo peer{.rank = r};
      if (type != kWelcome || !read_card(body, peers_[rank_], &peer).ok() || links_[r].up)
        return {Code::kPeerLost, "does not take this rank in"};
      peers_[r] = std::move(peer);
      adopt(r, channel);
      have_tried(r);
      return {};
    };
    events.exhausted = [this, r, returning] {
      if (returning) have_tried(r);
      return !returning;
    };
    links_[r].dialer = std::make_unique<Dialer>(
        io_, key_, hello(),
        dial_order(interfaces_, peers_[r].candidates, peers_[r].stack_id == peers_[rank_].stack_id),
        std::move(events));
    links_[r].dialer->start();
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
    if (links_[r].dialer) links_[r].dialer->stop(channel);
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
      for (const auto& acceptor : acceptors_) acceptor->close();
      for (const auto& stranger : strangers_) stranger->close();
      for (auto& link : links_) {
        if (link.dialer) link.dialer->stop(link.channel);
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
