#include "transports/sim/endpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace ringfold::sim {

using transport::Arrival;
using transport::Preamble;

// ---- SimLink: sending ----

bool SimLink::writable() {
  if (reserved_) owner_->complain("writable() between reserve and commit");
  return up_ && out_->ready && out_->issued - out_->credit < static_cast<uint64_t>(owner_->world_->options().slots);
}

void SimLink::put(const std::byte* data, size_t bytes, const Preamble* preamble) {
  if (!writable()) owner_->complain("put without credit");
  if (bytes > owner_->world_->options().slot_bytes) owner_->complain("put of more than a slot");
  Pipe::Packet packet;
  packet.data.assign(data, data + bytes);
  if (preamble != nullptr) packet.preamble = *preamble;
  const uint64_t way = bytes == 0 ? 0 : owner_->world_->roll(4);
  if (way >= 2) packet.source = data;
  packet.remote = way == 3;
  if (way < 2) owner_->counters_.copied_bytes += bytes;
  dispatch(std::move(packet));
}

size_t SimLink::piece(const std::byte*, size_t bytes) { return bytes / (1 + owner_->world_->roll(8)); }

std::byte* SimLink::reserve(size_t bytes) {
  if (!writable()) owner_->complain("reserve without credit");
  reserved_ = bytes;
  building_.assign(std::max<size_t>(bytes, 1), std::byte{0xDD});
  return building_.data();
}

void SimLink::commit(size_t bytes, const Preamble* preamble) {
  if (reserved_ != bytes) owner_->complain("commit of something that was not reserved");
  reserved_.reset();
  Pipe::Packet packet;
  packet.data.assign(building_.begin(), building_.begin() + static_cast<int64_t>(bytes));
  if (preamble != nullptr) packet.preamble = *preamble;
  dispatch(std::move(packet));
}

void SimLink::dispatch(Pipe::Packet packet) {
  World* world = owner_->world_;
  Pipe& pipe = *out_;
  const size_t bytes = packet.data.size();
  ++owner_->counters_.puts;
  owner_->counters_.put_bytes += bytes;
  packet.to_landing = world->roll(2) == 0;
  pipe.referred.push_back(packet.source != nullptr);
  ++pipe.issued;
  if (pipe.cut) return;
  pipe.wire.push_back(std::move(packet));
  const double transmission_us = static_cast<double>(bytes) / world->options().bytes_per_us;
  pipe.free_at = std::max(pipe.free_at, world->now()) + base::duration_of(transmission_us * 1e-6);
  pipe.last_arrival = std::max(pipe.last_arrival, pipe.free_at + owner_->delay());
  world->at(pipe.last_arrival, [pipe = out_] {
    if (pipe->wire.empty()) return;  // lost with its sender
    pipe->arrived.push_back(std::move(pipe->wire.front()));
    pipe->wire.pop_front();
    if (pipe->arrived.size() == 1) land(*pipe);
  });
}

uint64_t SimLink::retired() {
  const auto first = std::find(out_->referred.begin(), out_->referred.end(), true);
  return out_->credit + static_cast<uint64_t>(first - out_->referred.begin());
}

// ---- SimLink: receiving ----

// Brings the front arrival to the landing that was asked for, if it is to go there.
void SimLink::land(Pipe& pipe) {
  const Pipe::Packet& front = pipe.arrived.front();
  if (!front.to_landing || front.remote || pipe.landing == nullptr || pipe.landing_bytes != front.data.size() ||
      pipe.landed)
    return;
  if (!front.data.empty()) std::memcpy(pipe.landing, front.data.data(), front.data.size());
  pipe.landed = true;
}

bool SimLink::announced(Arrival* arrival, size_t) {
  Pipe& pipe = *in_;
  if (!up_ || pipe.arrived.empty()) return false;
  const Pipe::Packet& front = pipe.arrived.front();
  if (front.source != nullptr && !pipe.sender_up && !pipe.claimed) return false;
  arrival->bytes = front.data.size();
  arrival->preamble = front.preamble ? &*front.preamble : nullptr;
  return true;
}

bool SimLink::arrived(Arrival* arrival, std::byte* landing, size_t expected) {
  Pipe& pipe = *in_;
  if (!up_) return false;
  if (pipe.asked && (pipe.landing != landing || (landing != nullptr && pipe.landing_bytes != expected))) {
    owner_->complain("another landing for the same arrival");
  }
  pipe.asked = true;
  pipe.landing = landing;
  pipe.landing_bytes = expected;
  if (pipe.arrived.empty() || pipe.refused) return false;
  const Pipe::Packet& front = pipe.arrived.front();
  // Memory of a sender that has left is nobody's to read, unless this side holds it already.
  if (front.source != nullptr && !pipe.sender_up && !pipe.claimed) return false;
  pipe.claimed = true;
  land(pipe);
  arrival->bytes = front.data.size();
  arrival->preamble = front.preamble ? &*front.preamble : nullptr;
  arrival->remote = front.remote;
  arrival->referred = false;
  arrival->data = front.remote ? nullptr : pipe.landed ? landing : front.data.data();
  return true;
}

Status SimLink::fetch(std::byte* destination) {
  Pipe::Packet& front = in_->arrived.front();
  World* world = owner_->world_;
  if (!front.remote || !in_->claimed || in_->refused) owner_->complain("fetch of an arrival that is not remote");
  if (!in_->sender_up) return {Code::kPeerLost, "the peer's memory is gone"};
  const uint64_t odds = world->options().fetches_per_refusal;
  if (odds > 0 && world->roll(odds) == 0) {
    front.remote = false;
    in_->refused = true;
    world->at(world->now() + owner_->delay(), [pipe = in_] { pipe->refused = false; });
    return {Code::kUnavailable, "the peer is asked for a copy"};
  }
  std::memcpy(destination, front.source, front.data.size());
  owner_->counters_.copied_bytes += front.data.size();
  return {};
}

void SimLink::release() {
  Pipe& pipe = *in_;
  if (pipe.arrived.empty() || !pipe.claimed) return owner_->complain("release of nothing");
  const Pipe::Packet& front = pipe.arrived.front();
  if (front.source != nullptr && pipe.sender_up &&
      std::memcmp(front.source, front.data.data(), front.data.size()) != 0) {
    owner_->complain("the source of a put was changed before it was retired");
  }
  pipe.arrived.pop_front();
  pipe.claimed = pipe.asked = pipe.landed = false;
  pipe.landing = nullptr;
  World* world = owner_->world_;
  pipe.last_release = std::max(pipe.last_release, world->now() + owner_->delay());
  world->at(pipe.last_release, [pipe = in_] {
    ++pipe->credit;
    pipe->referred.pop_front();
  });
}

// ---- Endpoint ----

Endpoint::Endpoint(World* world, int process, uint64_t nonce) : world_(world), process_(process), nonce_(nonce) {
  if (!world_->endpoints_.emplace(std::pair(nonce, process), this).second) complain("made twice");
}

Endpoint::~Endpoint() {
  leave(false);
  world_->endpoints_.erase({nonce_, process_});
}

Endpoint* Endpoint::find(int process) const {
  auto it = world_->endpoints_.find({nonce_, process});
  return it == world_->endpoints_.end() ? nullptr : it->second;
}

void Endpoint::complain(std::string what) const {
  world_->violations_.push_back(fmt::format("process {} in communicator {}: {}", process_, nonce_, what));
}

transport::Capabilities Endpoint::capabilities() const {
  return {world_->options().slot_bytes, world_->options().slots, true};
}

std::string Endpoint::address() const { return fmt::format("sim {} {}", nonce_, process_); }

Status Endpoint::add_peer(int peer, std::string_view address) {
  unsigned long long nonce = 0;
  int process = -1;
  if (std::sscanf(std::string(address).c_str(), "sim %llu %d", &nonce, &process) != 2 || nonce != nonce_) {
    return {Code::kUnavailable, "the peer is not in this simulated communicator"};
  }
  peers_[peer].process = process;
  return {};
}

std::shared_ptr<Pipe> Endpoint::out_pipe(int process, int lane) {
  auto& pipe = pipes_[{process, lane}];
  if (!pipe) {
    pipe = std::make_shared<Pipe>();
    pipe->sender_up = !left_;
  }
  return pipe;
}

transport::Link* Endpoint::open(int peer, int lane) {
  Peer& p = peers_.at(peer);
  auto& link = p.links[lane];
  if (!link) {
    Endpoint* other = find(p.process);
    auto in = other != nullptr ? other->out_pipe(process_, lane) : std::make_shared<Pipe>();
    link = std::make_unique<SimLink>(this, out_pipe(p.process, lane), in);
    link->up_ = !left_ && !p.gone;
    world_->after(delay(), [world = world_, nonce = nonce_, process = p.process, in, lane] {
      in->ready = true;
      auto it = world->endpoints_.find({nonce, process});
      if (it != world->endpoints_.end()) it->second->wanted_ |= uint64_t{1} << lane;
    });
  }
  return link.get();
}

void Endpoint::progress() {
  for (auto& [rank, peer] : peers_) {
    if (!peer.ended || peer.gone) continue;
    // What a peer sent before it left is worth having, if the owner takes it in time.
    const bool unread = std::any_of(peer.links.begin(), peer.links.end(),
                                    [](const auto& link) { return !link.second->in_->arrived.empty(); });
    if (unread && !peer.expired) continue;
    peer.gone = true;
    for (auto& [lane, link] : peer.links) link->up_ = false;
    failures_.add(rank, *peer.ended);
  }
}

void Endpoint::peer_ended(int process, const Status& why, bool expired) {
  if (left_) return;
  for (auto& [rank, peer] : peers_) {
    if (peer.process != process) continue;
    if (!peer.ended) peer.ended = why;
    peer.expired |= expired;
  }
}

void Endpoint::lose(int process) {
  if (left_) return;
  for (auto& [key, pipe] : pipes_) {
    if (key.first != process) continue;
    pipe->sender_up = false;
    pipe->cut = true;
    pipe->wire.resize(world_->roll(pipe->wire.size() + 1));
  }
  const auto noticed = world_->between(world_->options().min_detection, world_->options().max_detection);
  world_->after(noticed, [world = world_, nonce = nonce_, to = process_, process] {
    auto it = world->endpoints_.find({nonce, to});
    if (it != world->endpoints_.end()) it->second->peer_ended(process, Status(Code::kIo, "the link broke"), true);
  });
}

void Endpoint::leave(bool killed) {
  if (std::exchange(left_, true)) return;
  auto last = world_->now();
  for (auto& [key, pipe] : pipes_) {
    pipe->sender_up = false;
    if (killed) {
      const size_t kept = world_->roll(pipe->wire.size() + 1);
      pipe->wire.resize(kept);
    }
    last = std::max(last, pipe->last_arrival);
  }
  const Status why(Code::kPeerLost, killed ? "the process ended" : "the peer stopped its links");
  for (auto& [rank, peer] : peers_) {
    for (auto& [lane, link] : peer.links) {
      link->up_ = false;
      link->in_->landing = nullptr;  // no longer ours to write
    }
    const auto noticed = last + world_->between(world_->options().min_detection, world_->options().max_detection);
    for (const bool expired : {false, true}) {
      const auto when = noticed + (expired ? world_->options().max_detection : base::Duration::zero());
      world_->at(when, [world = world_, nonce = nonce_, to = peer.process, from = process_, why, expired] {
        auto it = world->endpoints_.find({nonce, to});
        if (it != world->endpoints_.end()) it->second->peer_ended(from, why, expired);
      });
    }
  }
}

}  // namespace ringfold::sim
