// One put is one work request, whatever its size: an RDMA write with immediate data into the receiver's next slot.
// The write itself tells its size, the immediate data tell lane and number; a preamble lies right before the payload,
// so that both go in one piece (a second part of the same request where the payload stays where it is). Small puts
// travel inside the request. So nothing is looked for in memory, and nothing depends on the order in which a device
// stores the bytes of a write: an arrival is what the completion queue says. It is also what wakes a sleeper.
//
// Credit. Every put carries how many arrivals its sender has released on the same lane, so traffic that goes both
// ways returns credit for nothing. Where it does not, a write of no bytes returns it: when half of the slots are
// owed, early enough that the sender does not stop; and at once when the sender has used all that it knows of. That
// the receiver can tell: the last put that its own word allowed has arrived. So credit is never kept from one who
// needs it, and never sent to one who does not.
//
// Offers. Where the owner has said what it expects (Link::expect), and that is memory from ringfold::allocate, the
// sender is offered to write there: address, keys and the numbers of the puts are a small write into its control
// block. From then on those of them that have the right size and no preamble go to their place instead of the slot,
// and are told of as placed. Nobody waits: a put for which no offer has come takes its slot, and none is made for
// puts that the sender may have made already with the credit that it has. A put keeps its slot's number, credit and
// order in both cases; what is written to a place twice, or after its arrival was released, would have to be a put
// twice. A preamble in the midst of what is offered begins something that the receiver does not know of yet: what
// follows takes slots.
//
// The control block has room for one offer of a lane, and the next one is written when the sender has read this one:
// each put tells whether that number is odd. Of puts that overtake each other the newest counts.
//
// Receives. A put, a credit or an offer uses up one receive at the other end, and a peer with no receive posted makes
// the sender wait and try again. That never happens: puts that are not released are at most `slots` a lane, each
// credit on its way answers for at least one of them, and one offer a lane is not read: so twice the slots, and some
// (kOtherReceives), are always enough.
//
// Room. The send queue is as long as all lanes' slots, and credits and offers are posted only while every lane could
// still post a put. So writable() promises what put() keeps. Completions are asked for once in a fourth of the queue,
// and for puts from the caller's own memory, which are retired by them.
//
// Order. With several rails, put k goes over rail k modulo their number and slots fill out of order; the numbers say
// which put it is, and it is taken when those before it are.
#include "transports/verbs/link.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "base/log.h"

namespace ringfold::verbs {

using transport::Arrival;
using transport::Preamble;

Link::Link(Hub& hub, int peer, int lane, std::vector<QueuePair*> rails)
    : hub_(hub), peer_(peer), lane_(lane), rails_(std::move(rails)), requests_(hub.slots), entries_(hub.slots) {}

Status Link::allocate() {
  std::vector<Device*> devices;
  for (QueuePair* rail : rails_) devices.push_back(&rail->device());
  return memory_.allocate(2 * hub_.slots * hub_.stride(), devices);
}

RingPlace Link::place() const {
  RingPlace place;
  place.address = reinterpret_cast<uint64_t>(memory_.data());
  for (size_t r = 0; r < rails_.size(); ++r) place.keys[r] = memory_.remote_key(&rails_[r]->device());
  return place;
}

void Link::connect(const RingPlace& place) {
  remote_ = place;
  up_ = true;
  make_offer();
}

void Link::close() {
  if (places_end_ > seen_) {
    log::debug("verbs: puts for which rank {} had been offered a place on lane {} had not come", peer_, lane_);
  }
  up_ = false;
  entries_.assign(entries_.size(), {});
  expected_.clear();
  offers_.clear();
  memory_.reset();
}

// ---- sending ----

bool Link::writable() {
  if (!up_) return false;
  auto can = [&] {
    return issued_ - std::min(released_, advance_retired()) < hub_.slots &&
           rails_[rail_of(issued_)]->room() >= transport::kLanes;
  };
  if (can()) return true;
  look();
  return up_ && can();
}

void Link::put(const std::byte* data, size_t bytes, const Preamble* preamble) {
  const size_t whole = bytes + (preamble != nullptr ? sizeof *preamble : 0);
  if (whole <= rails_[rail_of(issued_)]->inline_bytes()) return send(data, bytes, preamble, nullptr, false);
  if (bytes >= hub_.region_bytes) {
    if (const Memory* source = hub_.registered(data, bytes)) return send(data, bytes, preamble, source, false);
  }
  if (bytes > 0) std::memcpy(out(issued_), data, bytes);
  hub_.counters.copied_bytes += bytes;
  send(out(issued_), bytes, preamble, &memory_, true);
}

std::byte* Link::reserve(size_t) { return out(issued_); }

void Link::commit(size_t bytes, const Preamble* preamble) { send(out(issued_), bytes, preamble, &memory_, true); }

void Link::send(const std::byte* data, size_t bytes, const Preamble* preamble, const Memory* source, bool copied) {
  const uint64_t k = issued_++;
  const size_t r = rail_of(k);
  QueuePair& rail = *rails_[r];
  const size_t head = preamble != nullptr ? sizeof *preamble : 0;
  QueuePair::Write w;
  w.inlined = head + bytes <= rail.inline_bytes();
  auto add = [&](const std::byte* at, size_t size, const Memory* memory) {
    if (size == 0) return;
    w.parts[static_cast<size_t>(w.count++)] = {reinterpret_cast<uint64_t>(at), static_cast<uint32_t>(size),
                                               w.inlined ? 0 : memory->local_key(&rail.device())};
  };
  if (w.inlined) {
    add(reinterpret_cast<const std::byte*>(preamble), head, nullptr);
    add(data, bytes, nullptr);
  } else {
    std::byte* const before = out(k) - head;
    if (head > 0) std::memcpy(before, preamble, head);
    if (copied) {
      add(before, head + bytes, &memory_);
    } else {
      add(before, head, &memory_);
      add(data, bytes, source);
    }
  }
  if (head > 0) headed_ = k;
  const Offer* const offer = offers_.empty() || head > 0 ? nullptr : offer_for(k, bytes);
  w.to = offer != nullptr ? reinterpret_cast<uint64_t>(offer->stretch.place(k, bytes))
                          : remote_.address + place_of(k) - head;
  w.key = offer != nullptr ? offer->keys[r] : remote_.keys[r];
  w.immediate = Note{.kind = offer != nullptr ? Note::kPlaced : Note::kPut,
                     .lane = static_cast<uint32_t>(lane_),
                     .preamble = head > 0,
                     .number = static_cast<uint32_t>(k % Note::kNumbers),
                     .offers = static_cast<uint32_t>(offers_read_ % 2),
                     .released = static_cast<uint32_t>(next_ % Note::kReleases)}
                    .encode();
  const bool stays = !w.inlined && !copied;
  w.signaled = stays;
  const int error = rail.post(w);
  requests_[k % hub_.slots] = stays ? rail.posted() : 0;
  told_ = next_;
  ++hub_.counters.puts;
  hub_.counters.put_bytes += bytes;
  if (error != 0) {
    hub_.fail(peer_, Status(Code::kIo,
                            fmt::format("{} takes no more work: {}", rail.device().name(), std::strerror(error))));
  }
}

const Offer* Link::offer_for(uint64_t k, size_t bytes) {
  while (!offers_.empty() && offers_.front().stretch.end() <= k) offers_.erase(offers_.begin());
  if (offers_.empty()) return nullptr;
  const base::Stretch& s = offers_.front().stretch;
  return s.first < headed_ || s.place(k, bytes) == nullptr ? nullptr : &offers_.front();
}

Status Link::offered(const Offer& offer) {
  const base::Stretch& s = offer.stretch;
  offer_for(issued_, 0);  // lets go of what is used up
  if (s.bytes == 0 || s.piece == 0 || s.piece > hub_.slot_bytes || offers_.size() == base::Expected::kMost ||
      (!offers_.empty() && s.first < offers_.back().stretch.end())) {
    return {Code::kProtocol,
            fmt::format("an offer of {} bytes in pieces of {} came for put {} on lane {}, where {} is next", s.bytes,
                        s.piece, s.first, lane_, issued_)};
  }
  offers_.push_back(offer);
  ++offers_read_;
  return {};
}

// Not by the peer's release, though that comes after the payload: a device that has not heard so might send it again,
// from memory that its owner has given away.
uint64_t Link::advance_retired() {
  while (retired_ < issued_ && requests_[retired_ % hub_.slots] <= rails_[rail_of(retired_)]->completed()) ++retired_;
  return retired_;
}

uint64_t Link::retired() {
  if (advance_retired() != issued_ && up_) {
    look();
    advance_retired();
  }
  return retired_;
}

// ---- receiving ----

bool Link::announced(Arrival* arrival, size_t) {
  if (!arrived_at(next_)) {
    if (!up_) return false;
    look();
    if (!arrived_at(next_)) return false;
  }
  looked_ = hub_.counters.polls;
  const Entry& e = entries_[next_ % hub_.slots];
  arrival->bytes = e.bytes;
  arrival->preamble = e.preamble ? reinterpret_cast<const Preamble*>(in(next_) - sizeof(Preamble)) : nullptr;
  return true;
}

bool Link::arrived(Arrival* arrival, std::byte*, size_t expected) {
  if (!announced(arrival, expected)) return false;
  const std::byte* const placed = entries_[next_ % hub_.slots].placed;
  arrival->data = placed != nullptr ? placed : in(next_);
  arrival->remote = arrival->referred = false;
  return true;
}

Status Link::fetch(std::byte*) {
  return Status(Code::kInternal, "fetch() on a verbs link: its arrivals are never remote");
}

void Link::expect(size_t skip, std::byte* memory, size_t bytes, size_t piece) {
  if (expected_.add({next_ + skip, memory, bytes, piece})) make_offer();
}

void Link::make_offer() {
  if (!up_ || hub_.ending || offers_heard_ != offers_made_ % 2) return;
  for (const base::Stretch& s : expected_) {
    if (s.first < offered_to_) continue;
    const bool late = s.end() <= told_ + hub_.slots;  // all of it may be on its way
    const Memory* memory = late || s.bytes < hub_.region_bytes ? nullptr : hub_.registered(s.memory, s.bytes);
    if (memory != nullptr) {
      Offer offer{.stretch = s};
      for (size_t r = 0; r < rails_.size(); ++r) offer.keys[r] = memory->remote_key(&rails_[r]->device());
      if (!hub_.offer(peer_, lane_, offer)) {
        hub_.overdue = true;
        return;
      }
      ++offers_made_;
      places_end_ = s.end();
    }
    offered_to_ = s.end();
    if (memory != nullptr) return;
  }
}

void Link::release() {
  ++next_;
  expected_.drop(next_);
  if (next_ - told_ >= std::max<uint64_t>(1, hub_.slots / 2) || starved()) repay();
}

void Link::repay() {
  if (!up_ || hub_.ending || next_ == told_) return;
  QueuePair& rail = *rails_[0];
  if (rail.room() <= transport::kLanes) {  // what is left belongs to puts
    hub_.overdue = true;
    return;
  }
  QueuePair::Write w;
  w.immediate = Note{.kind = Note::kCredit,
                     .lane = static_cast<uint32_t>(lane_),
                     .released = static_cast<uint32_t>(next_ % Note::kReleases)}
                    .encode();
  w.to = remote_.address;
  w.key = remote_.keys[0];
  if (const int error = rail.post(w); error != 0) {
    hub_.fail(peer_, Status(Code::kIo,
                            fmt::format("{} takes no more work: {}", rail.device().name(), std::strerror(error))));
    return;
  }
  told_ = next_;
}

Status Link::took(const Note& note, size_t bytes) {
  // Which of the puts that may be on their way is it?
  const uint64_t ahead = (note.number - next_) % Note::kNumbers;
  const uint64_t k = next_ + ahead;
  const size_t head = note.preamble != 0 ? sizeof(Preamble) : 0;
  const bool placed = note.kind == Note::kPlaced;
  const std::byte* const place = placed && head == 0 && k < offered_to_ ? expected_.place(k, bytes) : nullptr;
  if (ahead >= hub_.slots || arrived_at(k) || bytes < head || bytes - head > hub_.slot_bytes ||
      memory_.data() == nullptr || (place != nullptr) != placed) {
    return {Code::kProtocol, fmt::format("a put of {} bytes came as number {} on lane {}, where {} is next", bytes,
                                         note.number, lane_, next_ % Note::kNumbers)};
  }
  entries_[k % hub_.slots] = {k + 1, static_cast<uint32_t>(bytes - head), head > 0, place};
  if (k >= seen_) {
    seen_ = k + 1;
    if (std::exchange(offers_heard_, note.offers) != note.offers) make_offer();
  }
  if (starved() && next_ > told_) repay();
  credited(note.released);
  return {};
}

void Link::credited(uint32_t released) {
  // Rails may overtake each other; what was said before counts for nothing.
  constexpr int kUnused = 32 - std::countr_zero(Note::kReleases);
  const int32_t more = static_cast<int32_t>((released - static_cast<uint32_t>(released_)) << kUnused) >> kUnused;
  if (more > 0 && released_ + static_cast<uint64_t>(more) <= issued_) released_ += static_cast<uint64_t>(more);
}

}  // namespace ringfold::verbs
