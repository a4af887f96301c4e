// Watching. An owner sleeps on one epoll set, edge-triggered for reading and writing: a socket is announced once when
// bytes come and once when room comes back, and Stream remembers it until it has read or written all there is.
//
// Polling costs no more than it must. With many connections all stay in the set, and one epoll_wait per progress()
// tells which are worth a try. With few an owner that waits for an arrival tries the one socket that it waits for.
// Then nothing is gained by the set, and all that comes would first be announced to it (5 to 8 % of a small call's
// time): the sockets are in it while the owner sleeps, and until it turns out to be awake for longer. Meanwhile
// poll(2) tells now and then of hang-ups on links that nobody reads, and each time of room, while puts wait for that.
//
// The end of a peer. A link's end is reported when everything that came before it has been taken, never earlier: a
// rank that has finished may close while its last bytes are still unread here. On links that nobody reads the end is
// found through its hang-up event, if nothing lies unread in front of it.
#include "transports/tcp/tcp.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "transports/tcp/link.h"
#include "transports/tcp/stream.h"
#include "transports/tcp/wiring.h"

namespace ringfold::transport::tcp {
namespace {

using std::chrono::steady_clock;

constexpr size_t kFewStreams = 4;        // up to here a read per connection is cheaper than epoll_wait and a read
constexpr uint64_t kPollsPerEpoll = 64;  // how often epoll is asked when nothing calls for it
constexpr uint16_t kTag = 0x5246;

// Announces what is there already. False: the system has no room for one more.
bool enter(int epoll, int how, Stream& stream) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  event.data.ptr = &stream;
  return ::epoll_ctl(epoll, how, stream.fd(), &event) == 0 || (errno != ENOMEM && errno != ENOSPC);
}

class Tcp final : public Transport {
 public:
  Tcp(const Identity& identity, const Options& options, int epoll, int timer)
      : rank_(identity.rank), epoll_(epoll), timer_(timer) {
    shared_.slot_bytes = options.slot_bytes;
    shared_.slots = options.slots;
    shared_.streams = options.streams;
    shared_.stripe_bytes = options.stripe_bytes;
    shared_.tag = static_cast<uint16_t>(kTag ^ (identity.epoch * 0x9e37u & 0xffff));
    links_.resize(static_cast<size_t>(identity.size) * kLanes);
  }
  ~Tcp() override {
    stop();
    ::close(timer_);
    ::close(epoll_);
  }

  Status listen(const Identity& identity, const Options& options);

  std::string_view name() const override { return "tcp"; }
  Capabilities capabilities() const override { return {shared_.slot_bytes, shared_.slots, false}; }
  std::string address() const override { return wiring_ ? wiring_->address() : ""; }
  Status add_peer(int peer, std::string_view address) override { return wiring_->add_peer(peer, address); }
  transport::Link* open(int peer, int lane) override;
  bool wanted(int lane) const override { return (wanted_ >> lane & 1) != 0; }
  void progress() override;
  const Failures& failures() const override { return shared_.failures; }
  bool prepare_to_sleep() override;
  void awake() override {
    ++shared_.round;
    seen_ = shared_.moved;
    polls_ = 0;
  }
  int wake_fd() const override { return epoll_; }
  void stop() override;
  Counters counters() const override { return shared_.counters; }

 private:
  struct Entry {
    std::unique_ptr<Link> link;
    bool opened = false;
  };

  Entry& entry(int peer, int lane);
  void ask_epoll();
  void ask_streams();
  bool watch();
  void unwatch();
  void on_events(Stream& stream, uint32_t events);
  void wire();
  void adopt(Connection connection);
  void look_for_ends();

  Shared shared_;
  const int rank_;
  const int epoll_, timer_;
  std::unique_ptr<Wiring> wiring_;  // null once stopped
  std::vector<Entry> links_;        // peer * kLanes + lane; made when opened here or connected from there
  std::vector<Stream*> streams_;    // all connected ones
  std::vector<Stream*> hung_up_;    // of which the end was announced
  unsigned wanted_ = 0;             // a bit for each lane on which some peer has opened its end
  bool wiring_event_ = true;
  bool watched_ = true;  // all streams are in the epoll set, or none
  uint64_t polls_ = 0;
  uint64_t seen_ = 0;  // Shared::moved when the owner last woke
};

Status Tcp::listen(const Identity& identity, const Options& options) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  if (::epoll_ctl(epoll_, EPOLL_CTL_ADD, timer_, &event) != 0) return Status(Code::kIo, "epoll refuses a timer");
  auto wiring = Wiring::make(identity, options, epoll_, shared_.counters);
  if (!wiring.ok()) return wiring.status();
  wiring_ = std::move(wiring).value();
  return {};
}

Tcp::Entry& Tcp::entry(int peer, int lane) {
  Entry& e = links_[static_cast<size_t>(peer) * kLanes + static_cast<size_t>(lane)];
  if (!e.link) e.link = std::make_unique<Link>(shared_, peer, lane);
  return e;
}

transport::Link* Tcp::open(int peer, int lane) {
  Entry& e = entry(peer, lane);
  if (!e.opened && wiring_) wiring_->open(peer, lane);
  e.opened = true;
  wiring_event_ = true;
  return e.link.get();
}

void Tcp::adopt(Connection c) {
  if (c.peer > rank_ || c.fd < 0) {  // that we could dial a lower rank says nothing about what it has opened
    wanted_ |= 1u << c.lane;
    ++shared_.moved;
  }
  if (c.fd < 0) return;
  Link& link = *entry(c.peer, c.lane).link;
  auto stream = std::make_unique<Stream>(shared_, link, c.lane, c.stream, c.fd, std::move(c.ends));
  watch();
  enter(epoll_, EPOLL_CTL_MOD, *stream);
  streams_.push_back(stream.get());
  shared_.edges = streams_.size() > kFewStreams;
  link.adopt(c.stream, std::move(stream));
}

void Tcp::wire() {
  if (!wiring_event_ && !wiring_->busy()) return;
  const auto now = steady_clock::now();
  const auto next = wiring_->next_time();
  if (!wiring_event_ && !(next && *next <= now)) return;
  wiring_event_ = false;
  for (Connection& c : wiring_->advance(now)) adopt(std::move(c));
  for (const Failure& f : wiring_->failures()) shared_.moved += shared_.failures.add(f.peer, f.status);
}

// False: the system has no room for them.
bool Tcp::watch() {
  if (watched_) return true;
  watched_ = true;
  for (Stream* stream : streams_) watched_ &= enter(epoll_, EPOLL_CTL_ADD, *stream);
  shared_.counters.system_calls += streams_.size();
  return watched_;
}

void Tcp::unwatch() {
  if (!std::exchange(watched_, false)) return;
  for (Stream* stream : streams_) ::epoll_ctl(epoll_, EPOLL_CTL_DEL, stream->fd(), nullptr);
  shared_.counters.system_calls += streams_.size();
}

void Tcp::on_events(Stream& stream, uint32_t events) {
  const bool before = stream.hung_up();
  stream.on_events(events);
  if (stream.broken()) stream.link().failed(stream);
  if (!before && stream.hung_up()) hung_up_.push_back(&stream);
}

// What epoll would announce, where no stream is in its set; arrivals apart, for which the owner looks.
void Tcp::ask_streams() {
  std::array<pollfd, kFewStreams> fds;
  for (size_t i = 0; i < streams_.size(); ++i) {
    const Stream& s = *streams_[i];
    const int room = s.pending() ? POLLOUT : 0;
    fds[i] = {s.broken() || (s.hung_up() && room == 0) ? -1 : s.fd(), static_cast<short>(POLLRDHUP | room), 0};
  }
  const int n = ::poll(fds.data(), streams_.size(), 0);
  ++shared_.counters.system_calls;
  for (size_t i = 0; n > 0 && i < streams_.size(); ++i) {
    if (fds[i].revents != 0) on_events(*streams_[i], static_cast<uint32_t>(fds[i].revents));
  }
}

void Tcp::ask_epoll() {
  std::array<epoll_event, 64> events;
  int n;
  do {
    n = ::epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), 0);
    ++shared_.counters.system_calls;
    for (int i = 0; i < n; ++i) {
      auto* stream = static_cast<Stream*>(events[static_cast<size_t>(i)].data.ptr);
      if (!stream) {
        wiring_event_ = true;
        continue;
      }
      on_events(*stream, events[static_cast<size_t>(i)].events);
    }
  } while (n == static_cast<int>(events.size()));
}

void Tcp::look_for_ends() {
  for (Stream* stream : hung_up_) {
    stream->check_end();
    if (stream->broken()) stream->link().failed(*stream);
  }
}

void Tcp::progress() {
  if (!wiring_) return;  // a failed link does not stop the others: its peer may have left in order
  const bool now_and_then = ++polls_ % kPollsPerEpoll == 0, wiring = wiring_->busy();
  if (now_and_then && !shared_.edges && !wiring) unwatch();
  if (shared_.edges || (watched_ && shared_.blocked > 0) || wiring || now_and_then) ask_epoll();
  if (!watched_ && (shared_.blocked > 0 || now_and_then)) ask_streams();
  wire();
  if (!hung_up_.empty()) look_for_ends();
}

bool Tcp::prepare_to_sleep() {
  if (!wiring_ || !watch()) return false;
  ask_epoll();
  wire();
  look_for_ends();
  // What progress() did since the owner last went round counts, too: it may have looked before that.
  if (shared_.moved != seen_) return false;
  if (std::any_of(streams_.begin(), streams_.end(), [](Stream* s) { return s->wants_attention(); })) return false;
  if (const auto next = wiring_->next_time()) {
    const auto wait = std::max<std::chrono::nanoseconds>(*next - steady_clock::now(), std::chrono::microseconds(1));
    itimerspec when{};
    when.it_value.tv_sec = static_cast<time_t>(wait.count() / 1'000'000'000);
    when.it_value.tv_nsec = static_cast<long>(wait.count() % 1'000'000'000);
    ::timerfd_settime(timer_, 0, &when, nullptr);
    ++shared_.counters.system_calls;
  }
  return true;
}

void Tcp::stop() {
  if (!wiring_) return;
  wiring_.reset();
  hung_up_.clear();
  streams_.clear();
  for (Entry& e : links_) {
    if (e.link) e.link->close();
  }
}

}  // namespace

Result<std::unique_ptr<Transport>> make(int rank, int size, uint64_t communicator_nonce, uint32_t epoch,
                                        const Options& options) {
  const auto invalid = [](std::string why) { return Status(Code::kInvalid, "tcp: " + std::move(why)); };
  if (size < 1 || rank < 0 || rank >= size) return invalid(fmt::format("there is no rank {} of {}", rank, size));
  if (!options.key) return invalid("no key");
  if (options.slot_bytes < 64 || options.slot_bytes > 4 << 20) {
    return invalid(fmt::format("slots of {} bytes; 64 bytes to 4 MiB are possible", options.slot_bytes));
  }
  if (options.slots < 1 || options.slots > 1024)
    return invalid(fmt::format("{} slots; 1 to 1024 are possible", options.slots));
  if (options.streams < 1 || options.streams > 16) {
    return invalid(fmt::format("{} streams a link; 1 to 16 are possible", options.streams));
  }
  const int epoll = ::epoll_create1(EPOLL_CLOEXEC);
  const int timer = ::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  if (epoll < 0 || timer < 0) {
    if (epoll >= 0) ::close(epoll);
    return Status(Code::kUnavailable, "tcp: no file descriptors are left; raise the limit (ulimit -n)");
  }
  const Identity identity{rank, size, communicator_nonce, epoch};
  auto tcp = std::make_unique<Tcp>(identity, options, epoll, timer);
  RINGFOLD_TRY(tcp->listen(identity, options));
  return std::unique_ptr<Transport>(std::move(tcp));
}

}  // namespace ringfold::transport::tcp
