#include "exec/messages.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "exec/domain.h"
#include "kernels/copy.h"

namespace ringfold::exec {
namespace {

constexpr uint64_t kEnvelope = 0x4d53ULL << 48;  // "MS": not the contract of a collective
constexpr uint64_t kCut = 8 << 10;               // messages from this size on may be cut (Link::piece)
constexpr int kTilesPerPoll = 64;                // of one peer, before the others get their turn

constexpr uint64_t kFormat = 0xffffffffffff;

uint64_t word_of(const Format& f) {
  return static_cast<uint64_t>(f.count) << 17 | (f.rotate ? 1U << 16 : 0U) | static_cast<uint64_t>(f.codec) << 8 |
         static_cast<uint64_t>(f.type);
}
// False: nobody sends this.
bool read_format(uint64_t word, Format* f) {
  *f = {static_cast<DataType>(word & 0xff), static_cast<CodecKind>(word >> 8 & 0xff), (word >> 16 & 1) != 0,
        static_cast<uint32_t>(word >> 17) & Format::kMostCount};
  return (word & ~kFormat) == kEnvelope && (word & 0xff) < kDataTypes && (word >> 8 & 0xff) < kCodecKinds;
}

transport::Preamble envelope_of(const Transfer& m) {
  return {{static_cast<uint64_t>(m.tag), m.bytes, kEnvelope | word_of(m.format)}};
}

// Apart from the path of those that come in slots.
[[gnu::noinline]] bool confirmed(transport::Link& link) { return link.confirm().ok(); }

Fault stray(int peer, size_t bytes) {
  return {FaultKind::kPeer, peer,
          Status(Code::kProtocol,
                 fmt::format("rank {} sent {} bytes on the message lane that belong to no message", peer, bytes))};
}

}  // namespace

std::string Message::describe() const {
  std::string who = peer == kAnySource ? std::string("any rank") : fmt::format("rank {}", peer);
  if (!label.empty()) return fmt::format("{} {}: {}", send ? "send to" : "receive from", who, label);
  return fmt::format("{} {} {} tag {}", send ? "send to" : "receive from", who, format.to_string(bytes), tag);
}

std::string Format::to_string(uint64_t bytes) const {
  if (codec == CodecKind::kNone) return fmt::format("{} x{}", name_of(type), bytes / size_of(type));
  return fmt::format("{} x{} as {}{}", name_of(type), count, name_of(codec), rotate ? "+rotate" : "");
}

// One that was made without a domain comes from no pool.
void Message::recycle() {
  decode = nullptr;
  label.clear();
  if (domain != nullptr) {
    domain->recycle(this);
  } else {
    delete this;
  }
}

Messages::Messages(int rank, int size, std::function<transport::Link*(int)> link)
    : rank_(rank), link_(std::move(link)), peers_(static_cast<size_t>(size)) {}

void Messages::copy(std::byte* to, const std::byte* from, size_t bytes) {
  touched_bytes_ += 2 * bytes;
  if (bytes >= base::Stores::kLeast) {
    kernels::copy(stores_.of(bytes), to, from, bytes);
  } else {
    kernels::copy(to, from, bytes);
  }
}

void Messages::open_links() {
  open_ = true;
  for (int p = 0; p < static_cast<int>(peers_.size()); ++p) {
    if (p != rank_) peers_[p].link = link_(p);
  }
}

bool Messages::fits(const Message& receive, int peer, const Format& format, uint64_t bytes, Fault* fault) const {
  if (receive.bytes == bytes && receive.format == format) return true;
  *fault = {
      FaultKind::kMismatch, peer,
      Status(Code::kMismatch,
             fmt::format("rank {} sent {} {}, which rank {} receives as {}", peer, format.to_string(bytes),
                         receive.label.empty() ? fmt::format("with tag {}", receive.tag) : "as " + receive.label,
                         rank_, receive.format.to_string(receive.bytes)))};
  return false;
}

bool Messages::attempt(Transfer* transfer) {
  if (transfer->bytes > tile_bytes_ || transfer->peer == kAnySource || transfer->peer == rank_) return false;
  open_all();
  Peer& p = peers_[transfer->peer];
  return transfer->send ? send_at_once(p, *transfer) : receive_at_once(p, *transfer);
}

bool Messages::send_at_once(Peer& p, Transfer& send) {
  if (!p.sends.empty() || !p.link->writable()) return false;
  if (send.bytes >= kCut) {
    while (!put_tile(p, send)) {
      if (!p.link->writable()) return false;
    }
    return p.link->retired() >= send.issued;
  }
  const transport::Preamble envelope = envelope_of(send);
  p.link->put_by_copy(send.source, send.bytes, &envelope);
  send.done_bytes = send.bytes;
  send.issued = p.link->issued();
  return p.link->retired() >= send.issued;
}

transport::Watch Messages::next_for(const Transfer& transfer) const {
  if (transfer.send || transfer.peer < 0 || transfer.peer == rank_) return {};
  return is_next(peers_[static_cast<size_t>(transfer.peer)]) ? watch(transfer.peer) : transport::Watch();
}

// Everything that is not as expected, mistakes included, is for those who look at posted receives.
bool Messages::receive_at_once(Peer& p, const Transfer& receive) {
  transport::Arrival a;
  if (!is_next(p) || !p.link->announced(&a, receive.bytes)) return false;
  if (a.preamble == nullptr || !(*a.preamble == envelope_of(receive)) || a.bytes != receive.bytes) return false;
  if (!p.link->arrived(&a, receive.target, receive.bytes) || a.remote) return false;
  if (a.data != receive.target) copy(receive.target, a.data, a.bytes);
  if (a.referred && !confirmed(*p.link)) return false;
  p.link->release();
  return true;
}

Message* Messages::receive_for(int peer, int64_t tag) const {
  auto first = [tag](const Queue& queue) -> Message* {
    for (Message* m : queue) {
      if (m->tag == tag) return m;
    }
    return nullptr;
  };
  Message *named = first(peers_[peer].receives), *any = first(any_source_);
  if (named == nullptr || any == nullptr) return named != nullptr ? named : any;
  return named->posted < any->posted ? named : any;
}

void Messages::post_send(Message* send, std::vector<Request*>* finished, Fault* fault) {
  open_all();
  if (send->peer != rank_) {
    Peer& p = peers_[send->peer];
    (send->issued > 0 ? p.retiring : p.sends).push_back(send);
    poll_sends(p, finished);
    return;
  }
  if (Message* receive = receive_for(rank_, send->tag); receive != nullptr) {
    if (!fits(*receive, rank_, send->format, send->bytes, fault)) return;
    receives_of(*receive).erase(receive);
    copy(receive->target, send->source, send->bytes);
    receive->peer = rank_;
    finished->push_back(receive);
  } else {
    Unexpected& kept = add_unexpected(peers_[rank_], send->tag, send->format, send->bytes);
    copy(kept.data(), send->source, send->bytes);
    kept.got = send->bytes;
  }
  finished->push_back(send);
}

bool Messages::take_unexpected(Message* receive, int peer, std::vector<Request*>* finished, Fault* fault) {
  Peer& p = peers_[peer];
  auto it = std::find_if(p.unexpected.begin(), p.unexpected.end(),
                         [&](auto& u) { return u.tag == receive->tag && u.claimed_by == nullptr; });
  if (it == p.unexpected.end()) return false;
  if (!fits(*receive, peer, it->format, it->bytes, fault)) return true;
  receive->peer = peer;
  it->claimed_by = receive;
  if (it->complete()) hand_over(p, it, finished);
  return true;
}

void Messages::hand_over(Peer& p, Places::iterator whole, std::vector<Request*>* finished) {
  Message* receive = whole->claimed_by;
  copy(receive->target, whole->data(), whole->bytes);
  receive->done_bytes = receive->bytes;
  buffered_ -= whole->bytes;
  give_memory(whole->bytes, std::move(whole->memory));
  if (spare_places_.size() < kMostSparePlaces) {
    spare_places_.splice(spare_places_.begin(), p.unexpected, whole);
  } else {
    p.unexpected.erase(whole);
  }
  finished->push_back(receive);
}

Messages::Unexpected& Messages::add_unexpected(Peer& p, int64_t tag, const Format& format, uint64_t bytes) {
  if (spare_places_.empty()) spare_places_.emplace_back();
  p.unexpected.splice(p.unexpected.end(), spare_places_, spare_places_.begin());
  Unexpected& place = p.unexpected.back();
  place.tag = tag;
  place.format = format;
  place.bytes = bytes;
  place.got = 0;
  place.claimed_by = nullptr;
  if (bytes > kInPlace) place.memory = take_memory(bytes);
  buffered_ += bytes;
  return place;
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
  receive->posted = ++posted_;
  receives_of(*receive).push_back(receive);
}

bool Messages::put_tile(Peer& p, Transfer& send) {
  if (send.done_bytes == 0) {
    send.piece =
        std::min<size_t>(tile_bytes_, send.bytes < kCut ? send.bytes : p.link->piece(send.source, send.bytes));
  }
  const size_t bytes = std::min<uint64_t>(send.piece, send.bytes - send.done_bytes);
  const transport::Preamble envelope = envelope_of(send);
  p.link->put_by_copy(send.source + send.done_bytes, bytes, send.done_bytes == 0 ? &envelope : nullptr);
  send.done_bytes += bytes;
  if (send.done_bytes < send.bytes) return false;
  send.issued = p.link->issued();
  return true;
}

bool Messages::poll_sends(Peer& p, std::vector<Request*>* finished) {
  bool progress = false;
  while (!p.retiring.empty() && p.link->retired() >= p.retiring.front()->issued) {
    finished->push_back(p.retiring.pop_front());
    progress = true;
  }
  while (!p.sends.empty() && p.link->writable()) {
    progress = true;
    if (!put_tile(p, *p.sends.front())) continue;
    Message* whole = p.sends.pop_front();
    if (p.retiring.empty() && p.link->retired() >= whole->issued) {
      finished->push_back(whole);
    } else {
      p.retiring.push_back(whole);
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

bool Messages::begin(int peer, Peer& p, bool buffer, int64_t tag, const Format& format, uint64_t bytes,
                     Fault* fault) {
  if (Message* receive = receive_for(peer, tag); receive != nullptr) {
    if (!fits(*receive, peer, format, bytes, fault)) return false;
    receives_of(*receive).erase(receive);
    receive->peer = peer;
    p.receiving = receive;
    if (bytes > tile_bytes_) p.link->expect(0, receive->target, bytes, tile_bytes_);
    return true;
  }
  if (!buffer || buffered_ + bytes > buffer_limit_) return false;  // waits for its receive
  Unexpected& kept = add_unexpected(p, tag, format, bytes);
  p.buffering = true;
  if (bytes > tile_bytes_) p.link->expect(0, kept.data(), bytes, tile_bytes_);
  return true;
}

bool Messages::poll_arrivals(int peer, Peer& p, bool keep, std::vector<Request*>* finished, Fault* fault) {
  bool progress = false;
  for (int tile = 0; tile < kTilesPerPoll; ++tile) {
    transport::Arrival a;
    if (p.receiving == nullptr && !p.buffering) {
      if (!p.link->announced(&a, 0)) return progress;
      if (a.preamble == nullptr) {
        *fault = stray(peer, a.bytes);
        return progress;
      }
      const auto& words = a.preamble->words;
      Format format;
      if (!read_format(words[2], &format) || a.bytes > words[1]) {
        *fault = {FaultKind::kPeer, peer,
                  Status(Code::kProtocol, fmt::format("rank {} sent a message without a valid envelope", peer))};
        return progress;
      }
      if (!begin(peer, p, keep, static_cast<int64_t>(words[0]), format, words[1], fault)) return progress;
      progress = true;
    }
    Unexpected* const buffer = p.buffer();
    const uint64_t offset = p.receiving != nullptr ? p.receiving->done_bytes : buffer->got;
    const uint64_t left = (p.receiving != nullptr ? p.receiving->bytes : buffer->bytes) - offset;
    std::byte* const place = (p.receiving != nullptr ? p.receiving->target : buffer->data()) + offset;
    if (!p.link->arrived(&a, place, std::min<uint64_t>(left, tile_bytes_))) return progress;
    if ((offset == 0) != (a.preamble != nullptr) || a.bytes > left) {
      *fault = stray(peer, a.bytes);
      return progress;
    }
    Status read;
    if (a.remote) {
      read = p.link->fetch(place);
      if (read.code() == Code::kUnavailable) return progress;
    } else {
      if (a.data != place) copy(place, a.data, a.bytes);
      if (a.referred) read = p.link->confirm();
    }
    if (!read.ok()) {
      *fault = {FaultKind::kPeer, peer, read};
      return progress;
    }
    p.link->release();
    progress = true;
    if (p.receiving != nullptr) {
      p.receiving->done_bytes += a.bytes;
      if (p.receiving->done_bytes == p.receiving->bytes) finished->push_back(std::exchange(p.receiving, nullptr));
    } else {
      buffer->got += a.bytes;
      if (buffer->complete()) {
        p.buffering = false;
        if (buffer->claimed_by != nullptr) hand_over(p, std::prev(p.unexpected.end()), finished);
      }
    }
  }
  return progress;
}

void Messages::poll_peer(int peer, std::vector<Request*>* finished, Fault* fault) {
  Peer& p = peers_[peer];
  if (p.link != nullptr) poll_arrivals(peer, p, false, finished, fault);
}

transport::Watch Messages::watch(int peer) const {
  transport::Link* const link = peers_[static_cast<size_t>(peer)].link;
  return link != nullptr ? link->watch() : transport::Watch();
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
  any_source_.clear();
  buffered_ = 0;
  open_ = false;
}

}  // namespace ringfold::exec
