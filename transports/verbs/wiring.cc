// How two ranks come to be joined: queue pairs for every peer on every port, the choice when the peer's offer is
// known, and a greeting that shows whether bytes get through.
#include <fmt/format.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "transports/verbs/transport.h"

namespace ringfold::verbs {
namespace {

// Beside puts and credits there may be on their way, of each lane, what opens it and an offer; a greeting, the word
// that the peer stops, a window and what was written to one; and up to 15 used ones wait to be posted again: 29.
constexpr int kOtherReceives = 32;

uint32_t psn_of(uint64_t communicator, int from, int to, int rail) {
  uint64_t h = communicator;
  for (int v : {from, to, rail}) h = (h ^ static_cast<uint64_t>(v + 1)) * 0x9e3779b97f4a7c15u, h ^= h >> 29;
  return static_cast<uint32_t>(h & 0xffffff);
}

}  // namespace

Status VerbsTransport::create(const Library& library) {
  auto host = look_around(library, options_);
  if (!host.ok()) return host.status();
  host_ = *std::move(host);
  if (!host_.why_none.empty()) return {Code::kUnavailable, "no RDMA port can be used: " + host_.why_none};
  std::vector<LocalPort*> ports;
  for (LocalPort& p : host_.ports) {
    if (p.usable()) ports.push_back(&p);
  }
  if (options_.devices.empty()) {
    std::stable_sort(ports.begin(), ports.end(), [](auto* a, auto* b) { return a->port.mbps > b->port.mbps; });
  }
  if (ports.size() > kMostPorts) ports.resize(kMostPorts);

  const int n = static_cast<int>(peers_.size());
  const Depth depth{2 * transport::kLanes * options_.slots + 48,
                    2 * transport::kLanes * options_.slots + kOtherReceives};
  for (LocalPort* p : ports) {
    if (std::find(devices_.begin(), devices_.end(), p->device) == devices_.end()) devices_.push_back(p->device);
  }
  for (Device* device : devices_) {
    const auto used = std::count_if(ports.begin(), ports.end(), [&](auto* p) { return p->device == device; });
    RINGFOLD_TRY(device->make_queue(static_cast<int>(used) * std::max(1, n - 1) * (depth.send + depth.receive)));
  }
  RINGFOLD_TRY(control_.allocate(control_bytes(), devices_));
  direct_possible_ = Direct::possible(devices_);
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
  for (size_t i = 0; i < devices_.size(); ++i) {
    epoll_event completions{.events = EPOLLIN, .data = {.u64 = i}};
    epoll_event others{.events = EPOLLIN, .data = {.u64 = i | kOfDevice}};
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, devices_[i]->event_fd(), &completions) != 0 ||
        epoll_ctl(epoll_, EPOLL_CTL_ADD, devices_[i]->context()->async_fd, &others) != 0) {
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

std::vector<std::string> VerbsTransport::probe(std::chrono::steady_clock::time_point until) {
  for (Peer& peer : peers_) {
    for (QueuePair* rail : peer.rails) say(peer, *rail, Note::kGreeting);
  }
  auto waits = [&](const Peer& p) { return p.connected() && !p.failed && !(p.greeted && p.quiet()); };
  while (std::any_of(peers_.begin(), peers_.end(), waits) && std::chrono::steady_clock::now() < until) {
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

}  // namespace ringfold::verbs
