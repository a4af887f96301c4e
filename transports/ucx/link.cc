// Order. UCX may deliver a small message before a larger one that was sent earlier, so puts are numbered and wait in
// a ring for their turn.
//
// Small and large. UCX decides (UCX_RNDV_THRESH): a small put comes with its bytes, which are read where UCX received
// them; a large one comes as an announcement, and its bytes are fetched (by RDMA read, from the other's memory, in
// pieces over TCP) straight to where the owner wants them, once it says where that is. While one is being fetched so
// are those of medium size behind it, and larger ones of messages whose place is known (expect). (Where UCX reads the
// other's memory itself, fetching is over within one look, and nothing is fetched before its turn.)
//
// Credit is the number of releases. It rides on puts of the other direction, and goes alone when a quarter of the
// slots is due or no put came along for a while.
#include "transports/ucx/link.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "transports/ucx/context.h"

namespace ringfold::transport::ucx {
namespace {

constexpr size_t kAlignment =
    8;  // of payloads that are handed out where they came in: any element type may lie there
constexpr size_t kCopyBytes = 4096;  // up to this copying is no dearer than holding on to UCX's memory
constexpr size_t kSmallSlot = 8 << 10;
constexpr int kPatience = 16;
constexpr size_t kSocketBytes = 32 << 10;  // what any socket takes at once
constexpr size_t kAheadBytes = 64 << 10;   // the largest that is fetched before its turn

}  // namespace

void Shared::tell(Peer& peer, Header::Kind kind, int lane, uint64_t credit) {
  struct Note {
    Header header;
    Shared* shared;
  };
  auto note = std::make_unique<Note>();
  note->header.tag = tag;
  note->header.from = rank;
  note->header.lane = static_cast<uint8_t>(lane) & 15;
  note->header.kind = kind;
  note->header.credit = static_cast<uint16_t>(credit);
  note->shared = this;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.send = [](void* request, ucs_status_t, void* sent) {  // a failure comes to the endpoint's handler, too
    std::unique_ptr<Note> done(static_cast<Note*>(sent));
    --done->shared->outstanding;
    done->shared->ucx->ucp_request_free(request);
  };
  param.user_data = note.get();
  const Listening listening;
  ucs_status_ptr_t sent =
      ucx->ucp_am_send_nbx(peer.endpoint, 0, &note->header, Header::kPlainBytes, nullptr, 0, &param);
  if (UCS_PTR_IS_PTR(sent)) {
    ++outstanding;
    note.release();
  } else if (sent != nullptr) {
    ended(peer, {Code::kPeerLost, fmt::format("rank {} cannot be told anything: UCX says {}", peer.rank,
                                              words_of(*ucx, UCS_PTR_STATUS(sent)))});
  }
}

Link::Link(Shared& shared, Peer& peer, int lane)
    : shared_(shared),
      peer_(peer),
      lane_(lane),
      slots_(static_cast<size_t>(shared.slots)),
      mask_(std::bit_ceil(slots_) - 1) {
  out_.resize(mask_ + 1);
  in_.resize(mask_ + 1);
  for (auto& o : out_) {
    o.link = this;
    o.header.tag = shared.tag;
    o.header.from = shared.rank;
    o.header.lane = static_cast<uint8_t>(lane) & 15;
  }
  for (auto& i : in_) i.link = this;
}

Link::~Link() = default;

// ---- sending ----

void Link::collect() {
  while (sent_ < issued_ && out(sent_).done) ++sent_;
}

bool Link::writable() {
  if (!opened || !peer_opened || peer_.end || peer_.said_bye || shared_.worker == nullptr) return false;
  return issued_ - credited_ < slots_ && out(issued_).done;
}

void Link::on_sent(void* request, ucs_status_t status, void* outgoing) {
  auto& o = *static_cast<Outgoing*>(outgoing);
  Link& link = *o.link;
  o.done = true;
  --link.shared_.outstanding;
  ++link.shared_.moved;
  if (status != UCS_OK && status != UCS_ERR_CANCELED) {
    link.shared_.fail(link.peer_,
                      {Code::kPeerLost, fmt::format("sending to rank {} failed: UCX says {}", link.peer_.rank,
                                                    words_of(*link.shared_.ucx, status))});
  }
  link.shared_.ucx->ucp_request_free(request);
}

void Link::send(const std::byte* data, size_t bytes, const Preamble* preamble) {
  Outgoing& o = out(issued_);
  o.header.number = static_cast<uint16_t>(issued_);
  o.header.credit = static_cast<uint16_t>(released_);
  o.header.preamble = 0;
  if (preamble != nullptr) preambles_out_.encode(*preamble, &o.header);
  o.done = false;
  o.bytes = bytes;
  peer_.under_way += bytes;
  ++issued_;
  ++shared_.counters.puts;
  shared_.counters.put_bytes += bytes;
  told_ = released_;
  patience_ = 0;

  ucp_request_param_t param;  // UCX looks at what the mask names, and no more
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.send = on_sent;
  param.user_data = &o;
  const Listening listening;
  ucs_status_ptr_t sent =
      shared_.ucx->ucp_am_send_nbx(peer_.endpoint, 0, &o.header, o.header.bytes(), data, bytes, &param);
  if (UCS_PTR_IS_PTR(sent)) {
    ++shared_.outstanding;
    return;
  }
  o.done = true;
  if (sent != nullptr) {
    shared_.fail(peer_, {Code::kPeerLost, fmt::format("sending to rank {} failed: UCX says {}", peer_.rank,
                                                      words_of(*shared_.ucx, UCS_PTR_STATUS(sent)))});
  }
}

void Link::put(const std::byte* data, size_t bytes, const Preamble* preamble) { send(data, bytes, preamble); }

std::byte* Link::reserve(size_t bytes) {
  Outgoing& o = out(issued_);
  if (o.capacity < bytes) {
    o.capacity = bytes <= kSmallSlot ? std::min(kSmallSlot, shared_.slot_bytes) : shared_.slot_bytes;
    o.memory = std::make_unique_for_overwrite<std::byte[]>(o.capacity);
  }
  return o.memory.get();
}

void Link::commit(size_t bytes, const Preamble* preamble) { send(out(issued_).memory.get(), bytes, preamble); }

// Over TCP what UCX has copied may wait here for the socket, and would go on only with our next call. While little is
// under way the kernel has room for all of it; otherwise a put counts as retired once it was released over there.
uint64_t Link::retired() {
  collect();
  return peer_.over_tcp && peer_.under_way > kSocketBytes ? std::min(sent_, credited_) : sent_;
}

void Link::take_credit(uint16_t credit) {
  const auto news = static_cast<int16_t>(credit - static_cast<uint16_t>(credited_));
  if (news <= 0) return;  // overtaken by a later message
  if (credited_ + static_cast<uint64_t>(news) > issued_) {
    return shared_.fail(peer_, {Code::kProtocol, fmt::format("rank {} released more than it was sent", peer_.rank)});
  }
  for (const uint64_t end = credited_ + static_cast<uint64_t>(news); credited_ < end; ++credited_)
    peer_.under_way -= out(credited_).bytes;
}

// ---- receiving ----

std::byte* Link::Incoming::room(size_t size) {
  if (capacity < size) {
    capacity = std::min(std::max(size, kSmallSlot), std::max(size, link->shared_.slot_bytes));
    staging = std::make_unique_for_overwrite<std::byte[]>(capacity);
  }
  return staging.get();
}

ucs_status_t Link::take(const Header& header, void* data, size_t bytes, uint64_t flags) {
  const uint64_t ahead = static_cast<uint16_t>(header.number - static_cast<uint16_t>(released_));
  Incoming& arrival = in(released_ + ahead);
  if (ahead >= slots_ || arrival.state != State::kEmpty || bytes > shared_.slot_bytes || !opened) {
    shared_.fail(peer_, {Code::kProtocol, fmt::format("rank {} sent put {} of {} bytes without credit for it",
                                                      peer_.rank, header.number, bytes)});
    return UCS_OK;
  }
  arrival.bytes = bytes;
  arrival.words = header.preamble;
  arrival.has_preamble = header.preamble != 0;
  std::memcpy(&arrival.preamble, header.words, sizeof arrival.preamble);
  arrival.data = static_cast<std::byte*>(data);
  arrival.kept = false;
  if ((flags & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0) {
    arrival.state = State::kAnnounced;
    ++announced_;
    return UCS_INPROGRESS;
  }
  arrival.state = State::kHere;
  if (bytes == 0) return UCS_OK;
  const bool keep = (flags & UCP_AM_RECV_ATTR_FLAG_DATA) != 0 && bytes > kCopyBytes &&
                    reinterpret_cast<uintptr_t>(data) % kAlignment == 0;
  if (keep) {
    arrival.kept = true;
    return UCS_INPROGRESS;
  }
  arrival.data = arrival.room(bytes);
  std::memcpy(arrival.data, data, bytes);
  shared_.counters.copied_bytes += bytes;
  return UCS_OK;
}

void Link::on_fetched(void* request, ucs_status_t status, size_t, void* incoming) {
  auto& arrival = *static_cast<Incoming*>(incoming);
  Link& link = *arrival.link;
  --link.shared_.outstanding, --link.shared_.fetches;
  ++link.shared_.moved;
  if (status == UCS_OK) {
    link.fetched(arrival);
  } else {
    arrival.state = State::kLost;
  }
  if (status != UCS_OK && status != UCS_ERR_CANCELED) {
    link.shared_.fail(
        link.peer_, {Code::kPeerLost, fmt::format("fetching {} bytes from rank {} failed: UCX says {}", arrival.bytes,
                                                  link.peer_.rank, words_of(*link.shared_.ucx, status))});
  }
  link.shared_.ucx->ucp_request_free(request);
}

// All of it is here. Is it what was put?
void Link::fetched(Incoming& arrival) {
  arrival.state = State::kHere;
  if (!peer_.standing.known() || peer_.standing.holds()) return;
  arrival.state = State::kLost;
  shared_.fail(peer_, {Code::kPeerLost, fmt::format("rank {} stopped while {} bytes of its memory were read",
                                                    peer_.rank, arrival.bytes)});
}

void Link::start_fetch(Incoming& arrival, std::byte* to) {
  void* description = arrival.data;
  --announced_;
  arrival.data = to;
  arrival.state = State::kFetching;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.recv_am = on_fetched;
  param.user_data = &arrival;
  const Listening listening;
  ucs_status_ptr_t fetch = shared_.ucx->ucp_am_recv_data_nbx(shared_.worker, description, to, arrival.bytes, &param);
  if (UCS_PTR_IS_PTR(fetch)) {
    ++shared_.outstanding, ++shared_.fetches;
  } else if (fetch == nullptr) {
    fetched(arrival);
  } else {
    arrival.state = State::kLost;
    shared_.fail(peer_,
                 {Code::kPeerLost, fmt::format("fetching {} bytes from rank {} failed: UCX says {}", arrival.bytes,
                                               peer_.rank, words_of(*shared_.ucx, UCS_PTR_STATUS(fetch)))});
  }
}

// While the oldest is on its way the next ones are fetched, too: else each would wait for a round trip of its own.
// Of those that nobody expects it is not known yet where they are wanted, so a receiver that wants them elsewhere
// copies them; of larger ones that costs more than the round trip does. Larger ones of collectives are not fetched
// ahead even to their place: over TCP they come in turns with the one before, which others may wait for (all_gather
// and broadcast of 4 MiB, 4 ranks, took up to twice as long; streams of 4 MiB 0.8 times).
void Link::fetch_ahead() {
  if (peer_.end || shared_.worker == nullptr) return;
  uint64_t headed = in(released_).has_preamble ? released_ : headed_;
  for (uint64_t k = released_ + 1; k < released_ + slots_ && announced_ > 0; ++k) {
    Incoming& next = in(k);
    if (next.has_preamble || next.state == State::kEmpty) headed = k;  // what is not here yet may have one
    if (next.state != State::kAnnounced) continue;
    std::byte* const place = next.has_preamble ? nullptr : expected_.place(k, next.bytes, headed);
    if (next.bytes <= kAheadBytes || (place != nullptr && lane_ == kMessageLane)) {
      start_fetch(next, place != nullptr ? place : next.room(next.bytes));
    }
  }
}

void Link::describe(Incoming& from, Arrival* arrival) {
  if (from.words != 0) preambles_in_.decode(std::exchange(from.words, 0), &from.preamble);
  arrival->bytes = from.bytes;
  arrival->preamble = from.has_preamble ? &from.preamble : nullptr;
  arrival->remote = arrival->referred = false;
}

bool Link::announced(Arrival* arrival, size_t) {
  Incoming& oldest = in(released_);
  if (oldest.state == State::kEmpty) look();
  if (oldest.state == State::kEmpty || oldest.state == State::kLost) return false;
  looked_ = shared_.counters.polls;
  describe(oldest, arrival);
  return true;
}

bool Link::arrived(Arrival* arrival, std::byte* landing, size_t expected) {
  Incoming& oldest = in(released_);
  if (oldest.state == State::kEmpty || oldest.state == State::kFetching) look();
  if (oldest.state == State::kAnnounced) {
    if (peer_.end || shared_.worker == nullptr) return false;
    start_fetch(oldest, landing != nullptr && oldest.bytes == expected ? landing : oldest.room(oldest.bytes));
    if (peer_.is_read) shared_.poll();
  }
  if (oldest.state == State::kFetching && announced_ > 0 && !peer_.is_read) fetch_ahead();
  if (oldest.state != State::kHere) return false;
  looked_ = shared_.counters.polls;
  describe(oldest, arrival);
  arrival->data = oldest.bytes == 0 ? nullptr : oldest.data;
  return true;
}

Status Link::fetch(std::byte*) {
  return Status(Code::kInternal, "fetch() on a UCX link: its arrivals are never remote");
}

void Link::release() {
  Incoming& oldest = in(released_);
  if (oldest.state != State::kHere) return;
  if (oldest.kept && shared_.worker != nullptr) shared_.ucx->ucp_am_data_release(shared_.worker, oldest.data);
  oldest.kept = false;
  oldest.state = State::kEmpty;
  if (oldest.has_preamble) headed_ = released_;
  ++released_;
  expected_.drop(released_);
  if (!owing_) {
    owing_ = true;
    shared_.owing.push_back(this);
  }
}

void Link::give_credit(bool all) {
  if (!owes()) {
    owing_ = false;
    return;
  }
  const uint64_t due = std::max<uint64_t>(1, slots_ / 4);
  if (!all && released_ - told_ < due && ++patience_ < kPatience) return;
  patience_ = 0;
  owing_ = false;
  told_ = released_;
  if (!peer_.end && !peer_.said_bye) shared_.tell(peer_, Header::kCredit, lane_, released_);
}

bool Link::holds_arrival() const {
  const State state = in(released_).state;
  return state == State::kHere;
}

void Link::stop() {
  for (Incoming& arrival : in_) {
    if (arrival.kept) shared_.ucx->ucp_am_data_release(shared_.worker, arrival.data);
    arrival.kept = false;
    arrival.state = State::kEmpty;
  }
  opened = false;
}

}  // namespace ringfold::transport::ucx
