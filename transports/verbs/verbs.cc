// The end of a peer. A rank that stops says so on every queue pair, behind everything that it had sent, and waits
// until its peers' devices have confirmed all of that: only then are its queue pairs flushed and its memory
// deregistered. A peer that has heard it reports the end when everything that came before is taken, and treats errors
// from then on as what they are, the echo of that end. A rank that dies says nothing: who writes to it learns of it
// when the device has given up trying; others from the control connections.
//
// Sleeping. The completion queue is armed and then looked at once more. It stays armed until a completion comes, so a
// sleeper that was woken by something else does not arm it again.
#include "transports/verbs/verbs.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <thread>

#include "base/log.h"
#include "transports/verbs/link.h"

namespace ringfold::verbs {
namespace {

using std::chrono::steady_clock;
using transport::kLanes;

constexpr size_t kMostPorts = 4;  // that a rank offers: each costs a queue pair per peer until one is chosen
constexpr uint64_t kEventPollInterval = 4096;  // progress() asks for events of devices once in so many calls
constexpr int kPollBatch = 32;

uint32_t psn_of(uint64_t communicator, int from, int to, int rail) {
  uint64_t h = communicator;
  for (int v : {from, to, rail}) h = (h ^ static_cast<uint64_t>(v + 1)) * 0x9e3779b97f4a7c15u, h ^= h >> 29;
  return static_cast<uint32_t>(h & 0xffffff);
}

struct Peer {
  std::vector<std::unique_ptr<QueuePair>> queue_pairs;  // by port; those that are not used are gone
  std::vector<QueuePair*> rails;
  std::string route;
  uint64_t control = 0;
  uint32_t control_key = 0;
  std::array<std::unique_ptr<Link>, kLanes> links;
  unsigned opened = 0;   // lanes that it has opened
  unsigned stopped = 0;  // rails on which it has said that it stops
  bool greeted = false;
  bool failed = false;
  Status why;  // of a failure before any link was opened

  bool connected() const { return !rails.empty(); }
  bool left() const { return connected() && stopped == (1u << rails.size()) - 1; }
  bool has_links() const {
    return std::any_of(links.begin(), links.end(), [](auto& l) { return l != nullptr; });
  }
  bool pending() const {
    return std::any_of(links.begin(), links.end(), [](auto& l) { return l && l->pending(); });
  }
  bool quiet() const {
    return std::all_of(rails.begin(), rails.end(), [](auto* q) { return q->completed() == q->posted(); });
  }
};

class VerbsTransport final : public Transport, public Hub {
 public:
  VerbsTransport(int rank, int size, uint64_t communicator, const Options& options)
      : rank_(rank), options_(options), peers_(static_cast<size_t>(size)) {
    slots = static_cast<uint64_t>(options.slots);
    slot_bytes = options.slot_bytes;
    stride = kHeadBytes + options.slot_bytes;
    region_bytes = options.region_bytes;
    address_.communicator = communicator;
    address_.rank = rank;
    address_.size = size;
    address_.slots = options.slots;
    address_.slot_bytes = options.slot_bytes;
  }
  ~VerbsTransport() override {
    stop();
    if (epoll_ >= 0) ::close(epoll_);
  }
  Status create(const Library& library);

  std::string_view name() const override { return "verbs"; }
  transport::Capabilities capabilities() const override { return {slot_bytes, static_cast<int>(slots), false, true}; }
  std::string address() const override { return address_.to_string(); }
  Status add_peer(int peer, std::string_view address) override;
  transport::Link* open(int peer, int lane) override;
  bool wanted(int lane) const override { return (wanted_ >> lane & 1) != 0; }
  void progress() override;
  const transport::Failures& failures() const override { return failures_; }
  bool prepare_to_sleep() override;
  void awake() override;
  int wake_fd() const override { return epoll_; }
  void stop() override {
    if (stopped_) return;
    drain();
    abandon();
  }
  void abandon() override;
  transport::Counters counters() const override { return Hub::counters; }
  std::string route(int peer) const override { return at(peer).route; }
  std::vector<std::string> probe(steady_clock::time_point until) override;

 private:
  Peer& at(int peer) { return peers_[static_cast<size_t>(peer)]; }
  const Peer& at(int peer) const { return peers_[static_cast<size_t>(peer)]; }
  RingPlace& control(int peer, int lane, bool outgoing) {
    const size_t index = static_cast<size_t>(peer) * kLanes + static_cast<size_t>(lane);
    return reinterpret_cast<RingPlace*>(control_.data())[index + (outgoing ? peers_.size() * kLanes : 0)];
  }

  // ---- Hub ----
  void poll() override;
  void fail(int peer, Status status) override;
  const Memory* registered(const std::byte* data, size_t bytes) override;

  void handle(const ibv_wc& wc);
  void handle_note(int peer, QueuePair& rail, const ibv_wc& wc);
  void handle_error(int peer, QueuePair& rail, const ibv_wc& wc);
  void poll_events(Device& device);
  bool say(Peer& peer, QueuePair& rail, Note::Kind kind);
  void announce(int peer, int lane);
  void repay_all();
  void bury();
  void drain();

  const int rank_;
  const Options options_;
  Address address_;
  Host host_;
  std::vector<Device*> devices_;  // with usable ports
  std::vector<Peer> peers_;
  Memory control_;  // where peers put the places of their rings, then where this rank's are sent from
  region::Finder finder_;
  std::vector<std::pair<uint64_t, std::unique_ptr<Memory>>> regions_;  // by id; no memory: cannot be registered
  int epoll_ = -1;
  unsigned wanted_ = 0;
  bool leaving_ = false;  // a peer has stopped and is not buried
  bool stopped_ = false;
  uint64_t ticks_ = 0, seen_ = 0;
  transport::Failures failures_;
};

// ---- wiring ----

Status VerbsTransport::create(const Library& library) {
  auto host = look_around(library, options_);
  if (!host.ok()) return host.status();
  host_ = *std::move(host);
  if (!host_.why_none.empty()) return {Code::kUnavailable, "no RDMA port can be used: " + host_.why_none};
  std::vector<LocalPort*> ports;
  for (LocalPort& p : host_.ports) {
    if (p.unusable.empty()) ports.push_back(&p);
  }
  if (options_.devices.empty()) {
    std::stable_sort(ports.begin(), ports.end(), [](auto* a, auto* b) { return a->port.mbps > b->port.mbps; });
  }
  if (ports.size() > kMostPorts) ports.resize(kMostPorts);

  const int n = static_cast<int>(peers_.size());
  const Depth depth{2 * kLanes * options_.slots + 48, 2 * kLanes * options_.slots + 32};
  for (LocalPort* p : ports) {
    if (std::find(devices_.begin(), devices_.end(), p->device) == devices_.end()) devices_.push_back(p->device);
  }
  for (Device* device : devices_) {
    const auto used = std::count_if(ports.begin(), ports.end(), [&](auto* p) { return p->device == device; });
    RINGFOLD_TRY(device->make_queue(static_cast<int>(used) * std::max(1, n - 1) * (depth.send + depth.receive)));
  }
  RINGFOLD_TRY(control_.allocate(2 * peers_.size() * kLanes * sizeof(RingPlace), devices_));
  address_.control = reinterpret_cast<uint64_t>(control_.data());
  for (size_t i = 0; i < ports.size(); ++i) {
    Port port = ports[i]->port;
    port.control_key = control_.remote_key(ports[i]->device);
    port.queue_pairs.assign(peers_.size(), 0);
    for (int m = 0; m < n; ++m) {
      if (m == rank_) continue;
      const auto tag = static_cast<uint32_t>(static_cast<size_t>(m) * kMostPorts + i);
      auto made = QueuePair::make(*ports[i]->device, port.number, tag, depth, options_, Hub::counters);
      if (!made.ok()) return made.status();
      port.queue_pairs[static_cast<size_t>(m)] = (*made)->number();
      at(m).queue_pairs.push_back(*std::move(made));
    }
    address_.ports.push_back(std::move(port));
  }

  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_ < 0) return {Code::kUnavailable, "verbs: no file descriptors are left; raise the limit (ulimit -n)"};
  for (Device* device : devices_) {
    epoll_event event{.events = EPOLLIN, .data = {.ptr = device}};
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, device->event_fd(), &event) != 0 ||
        epoll_ctl(epoll_, EPOLL_CTL_ADD, device->context()->async_fd, &event) != 0) {
      return {Code::kUnavailable, fmt::format("verbs: events cannot be waited for: {}", std::strerror(errno))};
    }
  }
  return {};
}

Status VerbsTransport::add_peer(int rank, std::string_view text) {
  if (rank < 0 || static_cast<size_t>(rank) >= peers_.size() || rank == rank_ || at(rank).connected()) {
    return {Code::kInvalid, fmt::format("{} is not a peer to add", rank)};
  }
  auto parsed = Address::parse(text);
  if (!parsed.ok()) return parsed.status();
  const Address& theirs = *parsed;
  if (theirs.communicator != address_.communicator)
    return {Code::kMismatch, "the address is of another communicator"};
  if (theirs.rank != rank || theirs.size != address_.size) {
    return {Code::kMismatch, fmt::format("the address is of rank {} of {}, expected rank {} of {}", theirs.rank,
                                         theirs.size, rank, address_.size)};
  }
  if (theirs.slots != address_.slots || theirs.slot_bytes != address_.slot_bytes) {
    return {Code::kMismatch, fmt::format("rank {} has {} slots of {} bytes, this rank {} of {}: ranks need the same "
                                         "options",
                                         rank, theirs.slots, theirs.slot_bytes, address_.slots, address_.slot_bytes)};
  }
  auto routes = choose_routes(address_, theirs, options_.rails);
  if (!routes.ok()) return routes.status();
  Peer& peer = at(rank);
  std::vector<std::unique_ptr<QueuePair>> kept(peer.queue_pairs.size());
  std::vector<QueuePair*> rails;
  for (size_t r = 0; r < routes->size(); ++r) {
    const Route& route = (*routes)[r];
    const auto mine = static_cast<size_t>(route.mine);
    const Port& there = theirs.ports[static_cast<size_t>(route.theirs)];
    QueuePair& q = *peer.queue_pairs[mine];
    RINGFOLD_TRY(q.connect({.number = there.queue_pairs[static_cast<size_t>(rank_)],
                            .my_psn = psn_of(address_.communicator, rank_, rank, static_cast<int>(r)),
                            .their_psn = psn_of(address_.communicator, rank, rank_, static_cast<int>(r)),
                            .here = &address_.ports[mine],
                            .there = &there,
                            .route = &route},
                           options_));
    kept[mine] = std::move(peer.queue_pairs[mine]);
    rails.push_back(&q);
    peer.route += (r > 0 ? "; " : "") + route.why;
  }
  peer.queue_pairs = std::move(kept);
  peer.rails = std::move(rails);
  peer.control = theirs.control;
  peer.control_key = theirs.ports[static_cast<size_t>(routes->front().theirs)].control_key;
  return {};
}

bool VerbsTransport::say(Peer& peer, QueuePair& rail, Note::Kind kind) {
  if (rail.room() == 0) return false;
  return rail.post({.to = peer.control,
                    .key = peer.control_key,
                    .immediate = Note{.kind = kind}.encode(),
                    .signaled = true}) == 0;
}

std::vector<std::string> VerbsTransport::probe(steady_clock::time_point until) {
  for (Peer& peer : peers_) {
    for (QueuePair* rail : peer.rails) say(peer, *rail, Note::kGreeting);
  }
  auto waits = [&](const Peer& p) { return p.connected() && !p.failed && !(p.greeted && p.quiet()); };
  while (std::any_of(peers_.begin(), peers_.end(), waits) && steady_clock::now() < until) {
    poll();
    std::this_thread::yield();
  }
  std::vector<std::string> reasons;
  for (const Peer& p : peers_) {
    reasons.push_back(!p.connected() ? ""
                      : p.failed     ? p.why.message()
                      : waits(p)     ? fmt::format("no bytes get through ({})", p.route)
                                     : "");
  }
  return reasons;
}

transport::Link* VerbsTransport::open(int rank, int lane) {
  Peer& peer = at(rank);
  auto& link = peer.links[static_cast<size_t>(lane)];
  if (link) return link.get();
  link = std::make_unique<Link>(*this, rank, lane, peer.rails);
  if (stopped_) return link.get();
  if (peer.failed) {
    news += failures_.add(rank, peer.why);
    return link.get();
  }
  if (Status s = link->allocate(); !s.ok()) {
    fail(rank, std::move(s));
    return link.get();
  }
  if ((peer.opened >> lane & 1) != 0) link->connect(control(rank, lane, false));
  announce(rank, lane);
  return link.get();
}

// Tells the peer where its puts on this lane go.
void VerbsTransport::announce(int rank, int lane) {
  Peer& peer = at(rank);
  Link& link = *peer.links[static_cast<size_t>(lane)];
  QueuePair& rail = *peer.rails.front();
  if (rail.room() <= kLanes) {
    overdue = true;
    return;
  }
  RingPlace& place = control(rank, lane, true);
  place = link.place();
  const size_t offset = (static_cast<size_t>(rank_) * kLanes + static_cast<size_t>(lane)) * sizeof place;
  QueuePair::Write w{.to = peer.control + offset,
                     .key = peer.control_key,
                     .immediate = Note{.kind = Note::kOpen, .lane = static_cast<uint32_t>(lane)}.encode()};
  w.parts[0] = {reinterpret_cast<uint64_t>(&place), sizeof place, control_.local_key(&rail.device())};
  w.count = 1;
  link.open_sent = true;
  if (const int error = rail.post(w); error != 0) {
    fail(rank, Status(Code::kIo, fmt::format("{} takes no work: {}", rail.device().name(), std::strerror(error))));
  }
}

// ---- running ----

void VerbsTransport::poll() {
  std::array<ibv_wc, kPollBatch> done;
  for (Device* device : devices_) {
    int n = 0;
    do {
      if (stopped_) return;
      n = ibv_poll_cq(device->cq(), kPollBatch, done.data());
      if (n <= 0) break;
      device->moved = true;
      Hub::counters.completions += static_cast<uint64_t>(n);
      for (int i = 0; i < n; ++i) handle(done[static_cast<size_t>(i)]);
    } while (n == kPollBatch);
    if (n < 0) {
      for (size_t m = 0; m < peers_.size(); ++m) {
        if (peers_[m].connected())
          fail(static_cast<int>(m), Status(Code::kIo, device->name() + " does not give its completions"));
      }
    }
  }
}

void VerbsTransport::handle(const ibv_wc& wc) {
  const uint32_t tag = QueuePair::tag_of(wc.wr_id);
  const int rank = static_cast<int>(tag / kMostPorts);
  Peer& peer = at(rank);
  QueuePair* rail = peer.queue_pairs[tag % kMostPorts].get();
  if (rail == nullptr) return;  // of a port that was not chosen: flushed when it was given up
  if (wc.status != IBV_WC_SUCCESS) return handle_error(rank, *rail, wc);
  ++news;
  if ((wc.wr_id & QueuePair::kReceive) != 0) {
    handle_note(rank, *rail, wc);
  } else {
    rail->complete(static_cast<uint32_t>(wc.wr_id));
  }
}

void VerbsTransport::handle_note(int rank, QueuePair& rail, const ibv_wc& wc) {
  Peer& peer = at(rank);
  if (peer.failed) return;
  if (const int error = rail.received(); error != 0) {
    return fail(
        rank, Status(Code::kIo, fmt::format("{} takes no receives: {}", rail.device().name(), std::strerror(error))));
  }
  const Note note = Note::decode(ntohl(wc.imm_data));
  Link* link = note.lane < kLanes ? peer.links[note.lane].get() : nullptr;
  switch (note.kind) {
    case Note::kPut:
      if (link != nullptr) {
        if (Status s = link->took(note, wc.byte_len); !s.ok()) fail(rank, std::move(s));
        return;
      }
      break;
    case Note::kCredit:
      if (link != nullptr) return link->credited(note.released);
      break;
    case Note::kOpen:
      if (note.lane >= kLanes) break;
      wanted_ |= 1u << note.lane;
      peer.opened |= 1u << note.lane;
      if (link != nullptr) link->connect(control(rank, static_cast<int>(note.lane), false));
      return;
    case Note::kGreeting: peer.greeted = true; return;
    case Note::kStop: {
      const auto r = static_cast<size_t>(std::find(peer.rails.begin(), peer.rails.end(), &rail) - peer.rails.begin());
      peer.stopped |= 1u << r;
      if (!peer.left()) return;
      for (auto& l : peer.links) {
        if (l) l->peer_left();
      }
      leaving_ = true;
      return;
    }
    default: break;
  }
  fail(rank,
       Status(Code::kProtocol, fmt::format("the peer wrote a note that makes no sense: {:#x}", ntohl(wc.imm_data))));
}

void VerbsTransport::handle_error(int rank, QueuePair& rail, const ibv_wc& wc) {
  Peer& peer = at(rank);
  if (peer.failed) return;
  const char* words = rail.device().api().wc_status_str(wc.status);
  Code code = Code::kIo;
  switch (wc.status) {
    case IBV_WC_RETRY_EXC_ERR:
    case IBV_WC_RNR_RETRY_EXC_ERR:
    case IBV_WC_REM_ABORT_ERR:
    case IBV_WC_REM_OP_ERR:
    case IBV_WC_RESP_TIMEOUT_ERR:
    case IBV_WC_WR_FLUSH_ERR: code = Code::kPeerLost; break;
    case IBV_WC_REM_INV_REQ_ERR:
    case IBV_WC_REM_ACCESS_ERR:
    case IBV_WC_BAD_RESP_ERR: code = Code::kProtocol; break;
    default: break;
  }
  if (peer.left()) code = Code::kPeerLost;
  fail(rank,
       Status(code, peer.left() ? std::string("the peer stopped its links")
                                : fmt::format("{} to it failed: {} (status {}, vendor's code {:#x}; {})",
                                              (wc.wr_id & QueuePair::kReceive) != 0 ? "a receive posted" : "a write",
                                              words, static_cast<int>(wc.status), wc.vendor_err, peer.route)));
}

void VerbsTransport::fail(int rank, Status status) {
  Peer& peer = at(rank);
  if (peer.failed) return;
  peer.failed = true;
  peer.why = status;
  for (QueuePair* rail : peer.rails) rail->flush();
  for (auto& link : peer.links) {
    if (link) link->peer_left();
  }
  if (peer.has_links()) failures_.add(rank, std::move(status));
  ++news;
}

// Only memory from ringfold::allocate: its end is known here, as an id that is never given again, so that a key can
// never stand for other memory than it was made for. What malloc gives may be unmapped and mapped anew at the same
// address, of which verbs tell nothing.
const Memory* VerbsTransport::registered(const std::byte* data, size_t bytes) {
  const region::Region* found = finder_.find(data, bytes);
  if (found == nullptr) return nullptr;
  for (const auto& [id, memory] : regions_) {
    if (id == found->id) return memory->data() != nullptr ? memory.get() : nullptr;
  }
  const region::Region region = *found;
  // A new one: time to let go of those that were freed since.
  std::erase_if(regions_, [&](auto& entry) {
    const region::Region* still = finder_.find(entry.second->data(), 1);
    return entry.second->data() != nullptr && (still == nullptr || still->id != entry.first);
  });
  auto memory = std::make_unique<Memory>();
  if (Status s = memory->adopt(const_cast<std::byte*>(region.base), region.bytes, devices_); !s.ok()) {
    log::info("{}: large puts are copied", s.message());
    memory->reset();  // kept, so that it is not tried again
  }
  regions_.emplace_back(region.id, std::move(memory));
  return regions_.back().second->data() != nullptr ? regions_.back().second.get() : nullptr;
}

void VerbsTransport::repay_all() {
  overdue = false;
  for (size_t m = 0; m < peers_.size(); ++m) {
    if (peers_[m].failed) continue;
    for (int lane = 0; lane < kLanes; ++lane) {
      auto& link = peers_[m].links[static_cast<size_t>(lane)];
      if (!link) continue;
      if (!link->open_sent) announce(static_cast<int>(m), lane);
      link->repay();
    }
  }
}

void VerbsTransport::bury() {
  leaving_ = false;
  for (size_t m = 0; m < peers_.size(); ++m) {
    Peer& peer = peers_[m];
    if (!peer.left() || peer.failed) continue;
    if (peer.pending()) {
      leaving_ = true;
    } else {
      fail(static_cast<int>(m), Status(Code::kPeerLost, "the peer stopped its links"));
    }
  }
}

void VerbsTransport::progress() {
  if (stopped_) return;
  poll();
  if (overdue) repay_all();
  if (leaving_) bury();
  if (++ticks_ % kEventPollInterval == 0) {
    for (Device* device : devices_) poll_events(*device);
  }
}

void VerbsTransport::poll_events(Device& device) {
  Device::Event event;
  while (device.next_event(&event)) {
    if (event.type == IBV_EVENT_DEVICE_FATAL || event.type == IBV_EVENT_CQ_ERR) {
      for (size_t m = 0; m < peers_.size(); ++m) {
        const auto& rails = peers_[m].rails;
        if (std::any_of(rails.begin(), rails.end(), [&](auto* q) { return &q->device() == &device; })) {
          fail(static_cast<int>(m), Status(Code::kIo, fmt::format("{}: {}", device.name(), event.text)));
        }
      }
    } else if (event.type == IBV_EVENT_QP_FATAL || event.type == IBV_EVENT_QP_ACCESS_ERR ||
               event.type == IBV_EVENT_QP_REQ_ERR) {
      for (size_t m = 0; m < peers_.size(); ++m) {
        const auto& rails = peers_[m].rails;
        if (std::any_of(rails.begin(), rails.end(), [&](auto* q) { return q->qp() == event.qp; }) &&
            !peers_[m].left()) {
          fail(static_cast<int>(m),
               Status(Code::kIo, fmt::format("{}: {} ({})", device.name(), event.text, peers_[m].route)));
        }
      }
    } else {
      log::info("{}: {}", device.name(), event.text);
    }
  }
}

bool VerbsTransport::prepare_to_sleep() {
  if (stopped_) return false;
  poll();
  if (overdue) repay_all();
  if (leaving_) bury();
  if (news != seen_) return false;
  for (Device* device : devices_) {
    if (device->armed && !device->moved) continue;
    ++Hub::counters.system_calls;
    if (!device->arm()) return false;
  }
  poll();
  return news == seen_;
}

void VerbsTransport::awake() {
  seen_ = news;
  if (stopped_) return;
  std::array<epoll_event, 8> events;
  ++Hub::counters.system_calls;
  const int n = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), 0);
  for (int i = 0; i < n; ++i) {
    auto* device = static_cast<Device*>(events[static_cast<size_t>(i)].data.ptr);
    device->take_events();
    poll_events(*device);
  }
}

// ---- the end ----

// Says to all peers that this is the end, and waits until they have everything.
void VerbsTransport::drain() {
  for (Peer& peer : peers_) {
    if (!peer.has_links() || peer.failed || peer.left()) continue;
    for (QueuePair* rail : peer.rails) say(peer, *rail, Note::kStop);
  }
  const auto until = steady_clock::now() + options_.drain;
  auto busy = [](const Peer& p) { return p.has_links() && !p.failed && !p.left() && !p.quiet(); };
  while (std::any_of(peers_.begin(), peers_.end(), busy) && steady_clock::now() < until) {
    poll();
    std::this_thread::yield();
  }
}

void VerbsTransport::abandon() {
  if (stopped_) return;
  stopped_ = true;
  for (Peer& peer : peers_) {
    for (auto& q : peer.queue_pairs) {
      if (q) q->flush();
    }
  }
  for (Peer& peer : peers_) {
    peer.rails.clear();
    peer.queue_pairs.clear();  // a destroyed queue pair uses no memory any more
    for (auto& link : peer.links) {
      if (link) link->close();
    }
  }
  control_.reset();
  regions_.clear();
  devices_.clear();
  host_.devices.clear();
}

}  // namespace

Result<std::unique_ptr<Transport>> make(int rank, int size, uint64_t communicator_nonce, const Options& options) {
  const auto invalid = [](std::string why) { return Status(Code::kInvalid, "verbs: " + std::move(why)); };
  if (size < 1 || rank < 0 || rank >= size) return invalid(fmt::format("there is no rank {} of {}", rank, size));
  if (options.slots < 1 || options.slots > 256) {
    return invalid(fmt::format("{} slots; 1 to 256 are possible", options.slots));
  }
  if (options.slot_bytes < 256 || options.slot_bytes > 64 << 20 || options.slot_bytes % 64 != 0) {
    return invalid(
        fmt::format("slots of {} bytes; 256 to 64 Mi, a multiple of 64, are possible", options.slot_bytes));
  }
  if (options.rails < 1 || options.rails > kMostRails) {
    return invalid(fmt::format("{} rails; 1 to {} are possible", options.rails, kMostRails));
  }
  const Library* library = options.api;
  if (library == nullptr) {
    auto loaded = load();
    if (!loaded.ok()) return loaded.status();
    library = *loaded;
  }
  auto made = std::make_unique<VerbsTransport>(rank, size, communicator_nonce, options);
  RINGFOLD_TRY(made->create(*library));
  return std::unique_ptr<Transport>(std::move(made));
}

Result<std::vector<PortReport>> survey(const Options& options) {
  const Library* library = options.api;
  if (library == nullptr) {
    auto loaded = load();
    if (!loaded.ok()) return loaded.status();
    library = *loaded;
  }
  auto host = look_around(*library, options);
  if (!host.ok()) return host.status();
  std::vector<PortReport> reports;
  for (const LocalPort& p : host->ports) {
    PortReport r;
    r.device = p.port.device;
    r.port = p.port.number;
    r.state = p.state;
    r.link = p.port.ethernet ? "RoCE" : "InfiniBand";
    r.mtu = p.port.mtu;
    r.gbps = p.port.mbps / 1000.0;
    r.unusable = p.unusable;
    static constexpr const char* kKinds[] = {"InfiniBand", "RoCE v1", "RoCE v2"};
    for (const Gid& g : p.port.gids) {
      r.gids.push_back(fmt::format("{}: {} ({})", g.index, g.to_string(), kKinds[static_cast<size_t>(g.kind)]));
    }
    reports.push_back(std::move(r));
  }
  return reports;
}

}  // namespace ringfold::verbs
