// The end of a peer. A rank that stops says so on every queue pair, behind everything that it had sent, and waits
// until its peers' devices have confirmed all of that: only then are its queue pairs flushed and its memory
// deregistered. A peer that has heard it reports the end when everything that came before is taken, and treats errors
// from then on as what they are, the echo of that end. A rank that dies says nothing: who writes to it learns of it
// when the device has given up trying; others from the control connections. When a port goes down, each rank asks for
// itself whether it still reaches its peers over it (doubt(), completions.cc).
//
// Sleeping. The completion queue is armed and then looked at once more. It stays armed until a completion comes, so a
// sleeper that was woken by something else does not arm it again.
#include "transports/verbs/transport.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <thread>
#include <utility>

namespace ringfold::verbs {
namespace {

constexpr uint64_t kEventPollInterval = 4096;  // progress() asks for events of devices once in so many calls

}  // namespace

using std::chrono::steady_clock;
using transport::kLanes;

VerbsTransport::VerbsTransport(int rank, int size, uint64_t communicator, const Options& options)
    : rank_(rank), options_(options), peers_(static_cast<size_t>(size)), direct_(*this, size) {
  slots = static_cast<uint64_t>(options.slots);
  slot_bytes = options.slot_bytes;
  head_bytes = verbs::head_bytes(options.slot_bytes);
  region_bytes = options.region_bytes;
  address_.communicator = communicator;
  address_.rank = rank;
  address_.size = size;
  address_.slots = options.slots;
  address_.slot_bytes = options.slot_bytes;
}

VerbsTransport::~VerbsTransport() {
  stop();
  if (epoll_ >= 0) ::close(epoll_);
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
  opening_.push_back({rank, lane});
  return link.get();
}

// Registering a link's memory takes milliseconds where pages are slow to clear, and the caller holds up its whole
// rank meanwhile, the thread that answers for its life included: so one link at a time.
void VerbsTransport::open_next() {
  const auto [rank, lane] = opening_.front();
  opening_.pop_front();
  Peer& peer = at(rank);
  if (peer.failed) return;
  Link& link = *peer.links[static_cast<size_t>(lane)];
  if (Status s = link.allocate(); !s.ok()) return fail(rank, std::move(s));
  if ((peer.opened >> lane & 1) != 0) link.connect(control(rank, lane, false));
  announce(rank, lane);
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
  link.open_sent = true;
  write_control(rank, offset, reinterpret_cast<const std::byte*>(&place), sizeof place,
                {.kind = Note::kOpen, .lane = static_cast<uint32_t>(lane)});
}

bool VerbsTransport::offer(int rank, int lane, const Offer& offer) {
  if (at(rank).rails.front()->room() <= kLanes) return false;
  Offer& place = offer_of(rank, lane, true);
  place = offer;
  const size_t offset =
      offers_offset() + (static_cast<size_t>(rank_) * kLanes + static_cast<size_t>(lane)) * sizeof place;
  write_control(rank, offset, reinterpret_cast<const std::byte*>(&place), sizeof place,
                {.kind = Note::kPlace, .lane = static_cast<uint32_t>(lane)});
  return true;
}

// From this rank's control block into the peer's, over its first rail, where there is room.
void VerbsTransport::write_control(int rank, size_t offset, const std::byte* data, size_t bytes, const Note& note) {
  Peer& peer = at(rank);
  QueuePair& rail = *peer.rails.front();
  QueuePair::Write w{.to = peer.control + offset,
                     .key = peer.control_key,
                     .immediate = note.encode(),
                     .inlined = bytes <= rail.inline_bytes()};
  w.parts[0] = {reinterpret_cast<uint64_t>(data), static_cast<uint32_t>(bytes), control_.local_key(&rail.device())};
  w.count = 1;
  if (const int error = rail.post(w); error != 0) {
    fail(rank, Status(Code::kIo, fmt::format("{} takes no work: {}", rail.device().name(), std::strerror(error))));
  }
}

DirectHub::Way VerbsTransport::way_to(int rank) {
  Peer& peer = at(rank);
  if (!std::exchange(peer.direct, true) && peer.failed) news += failures_.add(rank, peer.why);
  return {.rails = peer.rails,
          .offers = peer.control + windows_offset() + static_cast<size_t>(rank_) * sizeof(Window),
          .offers_key = peer.control_key,
          .incoming = window(rank, false),
          .outgoing = window(rank, true),
          .up = !stopped_ && peer.connected() && !peer.failed && !peer.left()};
}

// ---- running ----

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

void VerbsTransport::repay_all() {
  overdue = false;
  for (size_t m = 0; m < peers_.size(); ++m) {
    if (peers_[m].failed) continue;
    if (peers_[m].doubted != 0) ask(static_cast<int>(m));
    for (int lane = 0; lane < kLanes; ++lane) {
      auto& link = peers_[m].links[static_cast<size_t>(lane)];
      if (!link) continue;
      if (!link->allocated()) continue;
      if (!link->open_sent) announce(static_cast<int>(m), lane);
      link->repay();
      link->make_offer();
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
  if (!opening_.empty()) open_next();
  poll();
  if (overdue) repay_all();
  if (leaving_) bury();
  if (++ticks_ % kEventPollInterval == 0) {
    for (Device* device : devices_) poll_events(*device);
  }
}

bool VerbsTransport::prepare_to_sleep() {
  may_sleep_ = false;
  if (stopped_ || !opening_.empty()) return false;
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
  return may_sleep_ = news == seen_;
}

void VerbsTransport::awake() {
  seen_ = news;
  if (stopped_ || !std::exchange(may_sleep_, true)) return;
  std::array<epoll_event, 8> events;
  ++Hub::counters.system_calls;
  const int n = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), 0);
  for (int i = 0; i < n; ++i) {
    const uint64_t which = events[static_cast<size_t>(i)].data.u64;
    Device& device = *devices_[which & (kOfDevice - 1)];
    if ((which & kOfDevice) != 0) {
      poll_events(device);
    } else {
      device.take_events();
    }
  }
}

// ---- the end ----

// Says to all peers that this is the end, and waits until they have everything.
void VerbsTransport::drain() {
  for (Peer& peer : peers_) {
    if (!peer.has_links() || peer.failed || peer.left()) continue;
    for (QueuePair* rail : peer.rails) say(peer, *rail, Note::kStop);
  }
  ending = true;  // what would be posted behind it nobody reads, and without a completion it would be waited for
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
  direct_.clear();
  devices_.clear();
  host_.devices.clear();
}

}  // namespace ringfold::verbs
