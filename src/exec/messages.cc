#include "exec/messages.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "exec/run.h"
#include "kernels/copy.h"

namespace ringfold::exec {
namespace {

constexpr uint64_t kEnvelope = 0x4d53ULL << 48;  // "MS": not the contract of a collective
constexpr int kTilesPerPoll = 64;                // of one peer, before the others get their turn

transport::Preamble envelope_of(const Message& m) {
  return {{static_cast<uint64_t>(m.tag), m.bytes, kEnvelope | static_cast<uint64_t>(m.type)}};
}

Fault stray(int peer, size_t bytes) {
  return {FaultKind::kPeer, peer,
          Status(Code::kProtocol,
                 fmt::format("rank {} sent {} bytes on the message lane that belong to no message", peer, bytes))};
}

}  // namespace

std::string Message::describe() const {
  std::string who = peer == kAnySource ? std::string("any rank") : fmt::format("rank {}", peer);
  return fmt::format("{} {} {} x{} tag {}", send ? "send to" : "receive from", who, name_of(type),
                     bytes / size_of(type), tag);
}

Messages::Messages(int rank, int size, std::function<transport::Link*(int)> link)
    : rank_(rank), link_(std::move(link)), peers_(static_cast<size_t>(size)) {}

void Messages::copy(std::byte* to, const std::byte* from, size_t bytes) {
  if (bytes == 0) return;  // the pointers may be null
  kernels::copy(stores_.of(bytes), to, from, bytes);
  touched_bytes_ += 2 * bytes;
}

void Messages::open_all() {
  if (open_) return;
  open_ = true;
  for (int p = 0; p < static_cast<int>(peers_.size()); ++p) {
    if (p != rank_) peers_[p].link = link_(p);
  }
}

bool Messages::fits(const Message& receive, int peer, DataType type, uint64_t bytes, Fault* fault) const {
  if (receive.bytes == bytes && receive.type == type) return true;
  *fault = {FaultKind::kMismatch, peer,
            Status(Code::kMismatch, fmt::format("rank {} sent {} x{} with tag {}, which rank {} receives as {} x{}",
                                                peer, name_of(type), bytes / size_of(type), receive.tag, rank_,
                                                name_of(receive.type), receive.bytes / size_of(receive.type)))};
  return false;
}

void Messages::post_send(Message* send, std::vector<Request*>* finished, Fault* fault) {
  open_all();
  if (send->peer != rank_) {
    Peer& p = peers_[send->peer];
    p.sends.push_back(send);
    poll_sends(p, finished);
    return;
  }
  auto it = std::find_if(receives_.begin(), receives_.end(), [&](Message* m) {
    return (m->peer == rank_ || m->peer == kAnySource) && m->tag == send->tag;
  });
  if (it != receives_.end()) {
    Message* receive = *it;
    if (!fits(*receive, rank_, send->type, send->bytes, fault)) return;
    receives_.erase(it);
    copy(receive->target, send->source, send->bytes);
    receive->peer = rank_;
    finished->push_back(receive);
  } else {
    auto kept = std::make_unique<Unexpected>(
        Unexpected{send->tag, send->type, send->bytes, take_memory(send->bytes), send->bytes, nullptr});
    copy(kept->data.get(), send->source, send->bytes);
    buffered_ += send->bytes;
    peers_[rank_].unexpected.push_back(std::move(kept));
  }
  finished->push_back(send);
}

bool Messages::take_unexpected(Message* receive, int peer, std::vector<Request*>* finished, Fault* fault) {
  Peer& p = peers_[peer];
  auto it = std::find_if(p.unexpected.begin(), p.unexpected.end(),
                         [&](auto& u) { return u->tag == receive->tag && u->claimed_by == nullptr; });
  if (it == p.unexpected.end()) return false;
  Unexpected& u = **it;
  if (!fits(*receive, peer, u.type, u.bytes, fault)) return true;
  receive->peer = peer;
  u.claimed_by = receive;
  if (u.complete()) hand_over(p, u, finished);
  return true;
}

void Messages::hand_over(Peer& p, Unexpected& whole, std::vector<Request*>* finished) {
  Message* receive = whole.claimed_by;
  copy(receive->target, whole.data.get(), whole.bytes);
  receive->done_bytes = receive->bytes;
  buffered_ -= whole.bytes;
  give_memory(whole.bytes, std::move(whole.data));
  std::erase_if(p.unexpected, [&](auto& u) { return u.get() == &whole; });
  finished->push_back(receive);
}

void Messages::post_receive(Message* receive, std::vector<Request*>* finished, Fault* fault) {
  open_all();
  if (receive->peer != kAnySource) {
    if (take_unexpected(receive, receive->peer, finished, fault)) return;
  } else {
    for (int p = 0; p < static_cast<int>(peers_.size()); ++p) {
      if (take_unexpected(receive, p, finished, fault)) return;
    }
  }
  receives_.push_back(receive);
}

bool Messages::poll_sends(Peer& p, std::vector<Request*>* finished) {
  bool progress = false;
  while (!p.retiring.empty() && p.link->retired() >= p.retiring.front()->issued) {
    finished->push_back(p.retiring.front());
    p.retiring.pop_front();
    progress = true;
  }
  while (!p.sends.empty() && p.link->writable()) {
    Message& m = *p.sends.front();
    const size_t bytes = std::min<uint64_t>(tile_bytes_, m.bytes - m.done_bytes);
    const transport::Preamble envelope = envelope_of(m);
    p.link->put(m.source + m.done_bytes, bytes, m.done_bytes == 0 ? &envelope : nullptr);
    m.done_bytes += bytes;
    progress = true;
    if (m.done_bytes == m.bytes) {
      m.issued = p.link->issued();
      p.sends.pop_front();
      if (p.retiring.empty() && p.link->retired() >= m.issued) {
        finished->push_back(&m);
      } else {
        p.retiring.push_back(&m);
      }
    }
  }
  return progress;
}

std::unique_ptr<std::byte[]> Messages::take_memory(uint64_t bytes) {
  if (!pooled(bytes)) return std::make_unique_for_overwrite<std::byte[]>(bytes);
  if (spare_.empty()) return std::make_unique_for_overwrite<std::byte[]>(tile_bytes_);
  auto memory = std::move(spare_.back());
  spare_.pop_back();
  return memory;
}

void Messages::give_memory(uint64_t bytes, std::unique_ptr<std::byte[]> memory) {
  if (pooled(bytes) && spare_.size() < kMostSpare) spare_.push_back(std::move(memory));
}

bool Messages::begin(int peer, Peer& p, bool buffer, int64_t tag, DataType type, uint64_t bytes, Fault* fault) {
  auto it = std::find_if(receives_.begin(), receives_.end(),
                         [&](Message* m) { return (m->peer == peer || m->peer == kAnySource) && m->tag == tag; });
  if (it != receives_.end()) {
    Message* receive = *it;
    if (!fits(*receive, peer, type, bytes, fault)) return false;
    receives_.erase(it);
    receive->peer = peer;
    p.receiving = receive;
    return true;
  }
  if (!buffer || buffered_ + bytes > buffer_limit_) return false;  // waits for its receive
  auto place = std::make_unique<Unexpected>(Unexpected{tag, type, bytes, take_memory(bytes), 0, nullptr});
  buffered_ += bytes;
  p.buffering = place.get();
  p.unexpected.push_back(std::move(place));
  return true;
}

bool Messages::poll_arrivals(int peer, Peer& p, bool buffer, std::vector<Request*>* finished, Fault* fault) {
  bool progress = false;
  for (int tile = 0; tile < kTilesPerPoll; ++tile) {
    transport::Arrival a;
    if (p.receiving == nullptr && p.buffering == nullptr) {
      if (!p.link->announced(&a, 0)) return progress;
      if (a.preamble == nullptr) {
        *fault = stray(peer, a.bytes);
        return progress;
      }
      const auto& words = a.preamble->words;
      const auto type = static_cast<DataType>(words[2] & 0xff);
      if ((words[2] & ~0xffULL) != kEnvelope || (words[2] & 0xff) >= kDataTypes || a.bytes > words[1]) {
        *fault = {FaultKind::kPeer, peer,
                  Status(Code::kProtocol, fmt::format("rank {} sent a message without a valid envelope", peer))};
        return progress;
      }
      if (!begin(peer, p, buffer, static_cast<int64_t>(words[0]), type, words[1], fault)) return progress;
      progress = true;
    }
    const uint64_t offset = p.receiving != nullptr ? p.receiving->done_bytes : p.buffering->got;
    const uint64_t left = (p.receiving != nullptr ? p.receiving->bytes : p.buffering->bytes) - offset;
    std::byte* const place = (p.receiving != nullptr ? p.receiving->target : p.buffering->data.get()) + offset;
    if (!p.link->arrived(&a, place, std::min<uint64_t>(left, tile_bytes_))) return progress;
    if ((offset == 0) != (a.preamble != nullptr) || a.bytes > left) {
      *fault = stray(peer, a.bytes);
      return progress;
    }
    if (a.remote) {
      if (Status s = p.link->fetch(place); !s.ok()) {
        *fault = {FaultKind::kPeer, peer, s};
        return progress;
      }
    } else if (a.data != place) {
      copy(place, a.data, a.bytes);
    }
    p.link->release();
    progress = true;
    if (p.receiving != nullptr) {
      p.receiving->done_bytes += a.bytes;
      if (p.receiving->done_bytes == p.receiving->bytes) finished->push_back(std::exchange(p.receiving, nullptr));
    } else {
      p.buffering->got += a.bytes;
      if (p.buffering->complete()) {
        Unexpected& whole = *std::exchange(p.buffering, nullptr);
        if (whole.claimed_by != nullptr) hand_over(p, whole, finished);
      }
    }
  }
  return progress;
}

void Messages::poll_peer(int peer, std::vector<Request*>* finished, Fault* fault) {
  Peer& p = peers_[peer];
  if (p.link != nullptr) poll_arrivals(peer, p, false, finished, fault);
}

bool Messages::poll(bool buffer, std::vector<Request*>* finished, Fault* fault) {
  bool progress = false;
  for (int peer = 0; peer < static_cast<int>(peers_.size()) && fault->status.ok(); ++peer) {
    Peer& p = peers_[peer];
    if (p.link == nullptr) continue;
    if (!p.sends.empty() || !p.retiring.empty()) progress |= poll_sends(p, finished);
    progress |= poll_arrivals(peer, p, buffer, finished, fault);
  }
  return progress;
}

int Messages::waits_for(const Request* request) const {
  auto* m = dynamic_cast<const Message*>(request);
  return m != nullptr ? m->peer : -1;
}

void Messages::clear() {
  for (Peer& p : peers_) p = {};
  receives_.clear();
  buffered_ = 0;
  open_ = false;
}

}  // namespace ringfold::exec
