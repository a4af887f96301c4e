#include "transports/shm/ring_transport.h"

#include <fmt/format.h>

#include <cassert>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "base/log.h"
#include "kernels/copy.h"
#include "transports/shm/fence.h"

namespace ringfold::shm {

using transport::Arrival;
using transport::Link;
using transport::Preamble;

namespace {

template <typename T>
std::atomic_ref<T> shared(T& value) {
  return std::atomic_ref<T>(value);
}

// Asks for a line that is going to be written: the reader holds a copy from the last time round, and getting it back
// takes as long as the message itself.
void prefetch_to_write(const void* line) {
#if defined(__x86_64__)
  asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(line)));
#else
  __builtin_prefetch(line, 1);
#endif
}

// Into a slot's line. The commonest payloads, a number or two, are worth more than a call.
void copy_inline(std::byte* to, const std::byte* from, size_t bytes) {
  if (bytes - 8 > 8) {
    std::memcpy(to, from, bytes);
    return;
  }
  uint64_t head, tail;  // they overlap
  std::memcpy(&head, from, 8);
  std::memcpy(&tail, from + bytes - 8, 8);
  std::memcpy(to, &head, 8);
  std::memcpy(to + bytes - 8, &tail, 8);
}

// progress() asks the system for ended peers once in this many calls: a call to the system costs some 200 ns.
constexpr uint64_t kSystemPollInterval = 4096;

}  // namespace

Status check_geometry(int slots, size_t slot_bytes, int lines) {
  const auto possible = [](int n) { return n >= 1 && n <= 64 && (n & (n - 1)) == 0; };
  if (!possible(slots)) return {Code::kInvalid, fmt::format("{} slots: a power of two up to 64 is needed", slots)};
  if (!possible(lines) || lines < slots) {
    return {
        Code::kInvalid,
        fmt::format("{} lines of {} slots: a power of two up to 64, not fewer than slots, is needed", lines, slots)};
  }
  if (slot_bytes < 256 || slot_bytes > (64 << 20) || slot_bytes % 64 != 0) {
    return {Code::kInvalid,
            fmt::format("slots of {} bytes: 256 to 64 Mi, a multiple of 64, are possible", slot_bytes)};
  }
  return {};
}

// ---- RingLink: sending ----

RingLink::RingLink(RingTransport* owner, int peer, Bell* peer_bell, SlotRing out, SlotRing in)
    : owner_(owner),
      peer_(peer),
      peer_bell_(peer_bell),
      light_(peer_bell->fences != 0 && join_fences()),
      out_(out),
      space_(owner->geometry_),
      in_(in) {}

// A look at the counter brings its line here, and the peer's next release fetches it back. So there is one after as
// many puts as there are slots, and where the peer lags only after all lines.
bool RingLink::writable() {
  if (!up_) return false;
  if (space_.issued() >= look_at_ || !space_.room()) {
    see_released();
    look_at_ = space_.issued() + (space_.out() == 0 ? owner_->geometry_.slots : owner_->geometry_.lines);
  }
  return space_.room();
}

void RingLink::put(const std::byte* data, size_t bytes, const Preamble* preamble, bool copied) {
  SlotLine& line = out_.line(space_.issued());
  SlotKind kind = SlotKind::kInline;
  auto& counters = owner_->counters_;
  if (bytes > kInlineBytes) {
    kind = bytes >= owner_->reference_bytes_ ? owner_->refer(peer_, data, bytes, &line.reference) : SlotKind::kSlot;
    if (copied && kind == SlotKind::kRemote) kind = SlotKind::kSlot;
    if (kind == SlotKind::kSlot) {
      kernels::copy(owner_->stores_.of(bytes), out_.payload(space_.place(bytes)), data, bytes);
      counters.copied_bytes += bytes;
    }
  } else if (bytes > 0) {
    copy_inline(line.payload, data, bytes);
    counters.copied_bytes += bytes;
  }
  publish(line, bytes, kind, preamble);
}

// (Intel Xeon, 2 ranks, a message and its answer, written anew: 8 KiB in halves 1.59 us instead of 1.81, 128 KiB in
// eighths 9.2 instead of 13.3, 512 KiB in pieces of 16 KiB 32.3 instead of 35.0. At 32 KiB pieces of 4 and of 8 KiB
// take longer, at 2 MiB and more there is nothing in it.) Where the peer has not answered since the last message, it
// copies that meanwhile.
size_t RingLink::piece(const std::byte* data, size_t bytes) {
  const bool answered = std::exchange(heard_at_, next_) != next_;
  const size_t piece = bytes <= 16 << 10 ? 4 << 10 : 16 << 10;
  const bool gains = (bytes >= 8 << 10 && bytes <= 16 << 10) || (bytes >= 64 << 10 && bytes <= 1 << 20);
  if (!answered || !gains) return bytes;
  Reference reference;
  if (bytes < owner_->reference_bytes_) return piece;
  const SlotKind kind = owner_->refer(peer_, data, bytes, &reference);
  return kind == SlotKind::kDirect || kind == SlotKind::kRegion ? bytes : piece;
}

std::byte* RingLink::reserve(size_t bytes) {
  reserved_inline_ = bytes <= kInlineBytes;
  return reserved_inline_ ? out_.line(space_.issued()).payload : out_.payload(space_.place(bytes));
}

void RingLink::commit(size_t bytes, const Preamble* preamble) {
  publish(out_.line(space_.issued()), bytes, reserved_inline_ ? SlotKind::kInline : SlotKind::kSlot, preamble);
}

// Nothing is written to the line before its payload is ready: the reader looks at it all the time, and would take it
// back meanwhile.
void RingLink::publish(SlotLine& line, size_t bytes, SlotKind kind, const Preamble* preamble) {
  line.bytes = static_cast<uint32_t>(bytes);
  line.kind = kind;
  line.has_preamble = preamble != nullptr;
  if (preamble != nullptr) line.preamble = *preamble;
  const uint64_t k = space_.issued();
  const uint64_t bit = uint64_t{1} << (k % owner_->geometry_.lines);
  references_ = kind > SlotKind::kSlot ? references_ | bit : references_ & ~bit;
  ++owner_->counters_.puts;
  owner_->counters_.put_bytes += bytes;
  // What goes by reference takes its place as if it were copied: who could put all of a large buffer at once, and had
  // then only to wait for the end, would fall asleep and be woken by each release.
  const uint64_t place = space_.place(kind == SlotKind::kInline ? 0 : bytes);
  if (kind == SlotKind::kSlot) line.place = place;
  if (kind > SlotKind::kSlot) line.reference.place = place;
  space_.issue(kind == SlotKind::kInline ? 0 : bytes);
  announce(shared(line.sequence), k + 1);
  prefetch_to_write(&out_.line(k + 1));
}

void RingLink::announce(std::atomic_ref<uint64_t> word, uint64_t value) {
  if (light_) {
    word.store(value, std::memory_order_release);
    light_fence();
  } else {
    word.store(value, std::memory_order_seq_cst);
  }
  wake_peer();
}

void RingLink::wake_peer() {
  if (shared(peer_bell_->sleeping).load(std::memory_order_seq_cst) != 0) [[unlikely]]
    owner_->wake(peer_);
}

// Copied puts are retired at once, so the first put that is not retired is the oldest reference not released. That
// moves only forward: releases come in order, and a new put has a higher number than every older one.
uint64_t RingLink::retired() {
  const uint64_t issued = space_.issued();
  if (references_ == 0 || space_.out() == 0) return issued;
  see_released();
  for (uint64_t k = space_.released(); k < issued; ++k) {
    if ((references_ >> (k % owner_->geometry_.lines) & 1) != 0) return k;
  }
  return issued;
}

void RingLink::answer_refusals() {
  for (uint64_t k = space_.released(); k < space_.issued(); ++k) {
    SlotLine& line = out_.line(k);
    if (line.kind != SlotKind::kRegion && line.kind != SlotKind::kRemote) continue;
    const auto claim = shared(line.reference.claim);
    if (claim.load(std::memory_order_acquire) != kRefused) continue;
    const auto* data = reinterpret_cast<const std::byte*>(line.reference.address);
    const bool there = owner_->refused(peer_, data, line.bytes);
    if (there) {
      kernels::copy(owner_->stores_.of(line.bytes), out_.payload(line.reference.place), data, line.bytes);
      owner_->counters_.copied_bytes += line.bytes;
      references_ &= ~(uint64_t{1} << (k % owner_->geometry_.lines));
    }
    claim.store(there ? kCopied : kGone, std::memory_order_seq_cst);
    wake_peer();
  }
}

bool RingLink::revoke() {
  bool revoked = true;
  const uint64_t released = out_.released().load(std::memory_order_acquire);
  for (uint64_t k = released; k < space_.issued(); ++k) {
    SlotLine& line = out_.line(k);
    if (line.kind != SlotKind::kDirect) continue;
    uint32_t claim = kUnclaimed;
    if (!shared(line.reference.claim).compare_exchange_strong(claim, kRevoked)) revoked &= claim == kRevoked;
  }
  return revoked || shared(peer_bell_->stopped).load(std::memory_order_acquire) != 0;
}

// ---- RingLink: receiving ----

bool RingLink::announced(Arrival* arrival, size_t) {
  if (!readable_ || !has_arrival()) return false;
  announced_ = next_ + 1;
  SlotLine& line = in_.line(next_);
  arrival->bytes = line.bytes;
  arrival->preamble = line.has_preamble != 0 ? &line.preamble : nullptr;
  return true;
}

transport::Watch RingLink::watch() {
  if (!readable_ || refused_ > next_) return {};
  return {&in_.line(next_).sequence, next_ + 1};
}

bool RingLink::arrived(Arrival* arrival, std::byte*, size_t expected) {
  if (!announced(arrival, expected)) return false;
  SlotLine& line = in_.line(next_);
  arrival->remote = arrival->referred = false;
  switch (line.kind) {
    case SlotKind::kInline: arrival->data = line.payload; break;
    case SlotKind::kSlot: arrival->data = in_.payload(line.place); break;
    default:
      if (refused_ == next_ + 1) {
        if (!answered()) return false;
        arrival->remote = shared(line.reference.claim).load(std::memory_order_relaxed) == kGone;
        arrival->data = arrival->remote ? nullptr : in_.payload(line.reference.place);
        return true;
      }
      if (resolved_ != next_ + 1) {
        bool gone = false;
        where_ = owner_->resolve(peer_, line, &gone);
        if (gone) return false;
        resolved_ = next_ + 1;
      }
      arrival->data = where_;
      arrival->remote = where_ == nullptr;
      arrival->referred = where_ != nullptr;
  }
  return true;
}

Status RingLink::fetch(std::byte* destination) {
  SlotLine& line = in_.line(next_);
  if (refused_ == next_ + 1) {
    return {Code::kIo, fmt::format("{} bytes of rank {} were unmapped before they were read", line.bytes, peer_)};
  }
  Status status = owner_->fetch(peer_, line, destination);
  if (status.ok()) owner_->counters_.copied_bytes += line.bytes;
  if (status.code() == Code::kUnavailable) {
    refused_ = next_ + 1;
    shared(line.reference.claim).store(kRefused, std::memory_order_seq_cst);
    shared(peer_bell_->attention).fetch_add(1, std::memory_order_seq_cst);
    wake_peer();
  }
  return status;
}

bool RingLink::answered() {
  return shared(in_.line(next_).reference.claim).load(std::memory_order_seq_cst) > kRefused;
}

Status RingLink::confirm() { return owner_->still_there(peer_, in_.line(next_).bytes); }

void RingLink::release() { announce(in_.released(), ++next_); }

bool RingLink::news() {
  if (!readable_) return false;
  bool found = false;
  if (announced_ <= next_ && in_.sequence(next_).load(std::memory_order_seq_cst) == next_ + 1) {
    announced_ = next_ + 1;
    found = true;
  }
  if (refused_ == next_ + 1 && answered_ != refused_ && answered()) {
    answered_ = refused_;
    found = true;
  }
  const uint64_t released = out_.released().load(std::memory_order_seq_cst);
  if (released != heard_) {  // what writable() has seen may be news to retired()
    heard_ = released;
    space_.release(released);
    found = true;
  }
  return found;
}

// ---- RingTransport ----

RingTransport::RingTransport(int rank, int size, const Geometry& geometry, size_t reference_bytes)
    : rank_(rank),
      size_(size),
      geometry_(geometry),
      reference_bytes_(std::max(reference_bytes, kInlineBytes + 1)),
      peers_(static_cast<size_t>(size)) {}

RingTransport::~RingTransport() = default;

transport::Capabilities RingTransport::capabilities() const {
  return {geometry_.slot_bytes, static_cast<int>(geometry_.slots), reference_bytes_ <= geometry_.slot_bytes, true};
}

Link* RingTransport::open(int peer, int lane) {
  Peer& p = peers_[static_cast<size_t>(peer)];
  assert(p.bell != nullptr && "add_peer() comes first");
  auto& link = p.links[static_cast<size_t>(lane)];
  if (!link) {
    const Rings memory = rings(peer, lane);
    link = std::make_unique<RingLink>(this, peer, p.bell, SlotRing(memory.out, geometry_),
                                      SlotRing(memory.in, geometry_));
    link->readable_ = !stopped_;
    link->up_ = !p.gone && !stopped_;
    open_links_.push_back(link.get());
    shared(p.bell->wanted).fetch_or(uint64_t{1} << lane, std::memory_order_seq_cst);
    link->wake_peer();
  }
  return link.get();
}

void RingTransport::own_bell(Bell* bell) {
  bell_ = bell;
  bell_->fences = join_fences() ? 1 : 0;
}

bool RingTransport::wanted(int lane) const {
  return (shared(bell_->wanted).load(std::memory_order_acquire) >> lane & 1) != 0;
}

void RingTransport::progress() {
  const uint64_t attention = shared(bell_->attention).load(std::memory_order_acquire);
  if (attention != attention_) {
    attention_ = attention;
    leaving_ = true;
  }
  if (std::exchange(leaving_, false)) {
    bury_peers();
    for (RingLink* link : open_links_) {
      if (!stopped_) link->answer_refusals();  // the memory is its user's again
    }
  }
  if (++ticks_ % kSystemPollInterval == 0) poll_system();
}

bool RingTransport::prepare_to_sleep() {
  shared(bell_->sleeping).store(1, std::memory_order_seq_cst);
  if (bell_->fences != 0) fence_everybody();
  const uint64_t wanted = shared(bell_->wanted).load(std::memory_order_seq_cst);
  bool news = std::exchange(wanted_, wanted) != wanted;
  for (RingLink* link : open_links_) news |= link->news();
  if (const uint64_t attention = shared(bell_->attention).load(std::memory_order_seq_cst); attention != attention_) {
    attention_ = attention;
    news = leaving_ = true;
  }
  // A stop counts like any other event: what its rank had put before may have become visible after the look above.
  news |= bury_peers();
  return !news && !stopped_;
}

void RingTransport::awake() {
  shared(bell_->sleeping).store(0, std::memory_order_relaxed);
  poll_system();
}

void RingTransport::wake(int peer) {
  if (shared(peers_[static_cast<size_t>(peer)].bell->sleeping).exchange(0, std::memory_order_seq_cst) == 0) return;
  ++counters_.wakeups;
  ++counters_.system_calls;
  ring(peer);
}

void RingTransport::peer_added(int peer, Bell* bell) {
  peers_[static_cast<size_t>(peer)].bell = bell;
  leaving_ = true;  // it may have stopped before it knew us
}

void RingTransport::peer_ended(int peer, Status reason) {
  peers_[static_cast<size_t>(peer)].ended = std::move(reason);
  leaving_ = true;
}

// The other half of stop(): who has read a byte that was written after a stop sees the stop here.
Status RingTransport::still_there(int peer, size_t bytes) const {
  std::atomic_thread_fence(std::memory_order_acquire);
  if (shared(peers_[static_cast<size_t>(peer)].bell->stopped).load(std::memory_order_relaxed) == 0) return {};
  return {Code::kPeerLost, fmt::format("rank {} stopped while {} bytes of its memory were read", peer, bytes)};
}

bool RingTransport::bury_peers() {
  bool found = false;
  for (size_t i = 0; i < peers_.size(); ++i) {
    Peer& peer = peers_[i];
    if (peer.bell == nullptr || peer.gone) continue;
    const bool stopped = shared(peer.bell->stopped).load(std::memory_order_seq_cst) != 0;
    if (!stopped && !peer.ended) continue;
    peer.gone = found = true;
    for (auto& link : peer.links) {
      if (link) link->up_ = false;
    }
    failures_.add(static_cast<int>(i), stopped ? Status(Code::kPeerLost, "the peer stopped its links") : *peer.ended);
  }
  return found;
}

void RingTransport::stop() {
  if (stopped_) return;
  stopped_ = true;
  shared(bell_->stopped).store(1, std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_release);  // before the user writes to what was put: still_there()
  for (size_t i = 0; i < peers_.size(); ++i) {
    Bell* bell = peers_[i].bell;
    if (bell == nullptr) continue;
    shared(bell->attention).fetch_add(1, std::memory_order_seq_cst);
    wake(static_cast<int>(i));
  }
  for (RingLink* link : open_links_) link->up_ = link->readable_ = false;
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(stop_wait_ms());
  for (RingLink* link : open_links_) {
    while (!link->revoke() && std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
}

}  // namespace ringfold::shm
