// Order. The first stream carries a frame for every put, so its k-th frame is the k-th put. A put of stripe_bytes or
// more is cut in equal parts, the first of which follows its frame there; the others go as frames of their own over
// the other streams, which carry nothing else. So both ends know which frames belong together without any number on
// them, and all streams of a link fill and drain at the same time. With one stream nothing of this costs anything.
//
// Credit and deadlock. The receiver reads when its owner asks for an arrival, and not before; then the kernel's
// buffers fill, and the sender's puts wait in its queue, by reference. With `slots` of them waiting the link is not
// writable any more. Nothing ever blocks in a write: two ranks that both write more than the kernel takes go on to
// ask for arrivals, which empties the other's socket and lets both queues move. So it is enough for the owner to go
// on asking for what its program says arrives next: exactly what it needs to do anyway. Credit thus is not counted
// back per release; it is TCP's own flow control, and comes back when the kernel has taken a put, often before the
// receiver has seen it.
//
// Memory. Nothing is copied: what the kernel does not take at once is referred to until it does. Copying small
// payloads to retire them early would be worse than useless: their owner would believe that they are on their way and
// turn to something else for a while, and nobody would be there to send them. So retired means that the kernel has
// all of it.
#include "transports/tcp/link.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace ringfold::transport::tcp {
namespace {

constexpr size_t kSmallSlot = 8 << 10;  // what is allocated at first for payloads that are built in the link
constexpr size_t kPartUnit = 64;        // parts begin at cache lines of an aligned payload

}  // namespace

Link::Link(Shared& shared, int peer, int lane) : shared_(shared), peer_(peer), lane_(lane) {
  streams_.resize(static_cast<size_t>(shared.streams));
  slots_.resize(static_cast<size_t>(shared.slots));
}

void Link::adopt(int index, std::unique_ptr<Stream> stream) {
  streams_[static_cast<size_t>(index)] = std::move(stream);
  readable_ = std::all_of(streams_.begin(), streams_.end(), [](const auto& s) { return s != nullptr; });
  up_ = readable_ && !failed_;
  if (up_) ++shared_.moved;
}

void Link::failed(const Stream& stream) {
  up_ = false;
  if (!std::exchange(failed_, true)) shared_.moved += shared_.failures.add(peer_, stream.status(peer_));
}

// ---- sending ----

// Counts the puts of which the kernel has every part.
void Link::collect() {
  if (streams_.size() == 1) {
    if (streams_[0]) sent_ = streams_[0]->sent();
    return;
  }
  while (sent_ < issued_ && streams_[0]->sent() > sent_) {
    const uint64_t parts = slot(sent_).parts;
    for (size_t i = 1; i < streams_.size(); ++i) {
      if (streams_[i]->sent() < parts) return;
    }
    ++sent_;
  }
}

bool Link::writable() {
  if (!up_) return false;
  collect();
  return issued_ - sent_ < slots_.size();
}

uint64_t Link::retired() {
  if (up_ && sent_ != issued_) collect();
  return sent_;
}

std::pair<size_t, size_t> Link::part(size_t bytes, size_t i) const {
  const size_t n = streams_.size();
  const size_t step = ((bytes + n - 1) / n + kPartUnit - 1) / kPartUnit * kPartUnit;
  return {std::min(bytes, i * step), std::min(bytes, (i + 1) * step)};
}

// Hands put number issued_ to the streams.
void Link::send(const std::byte* data, size_t bytes, const Preamble* preamble) {
  ++shared_.counters.puts;
  shared_.counters.put_bytes += bytes;
  if (!striped(bytes)) {
    slot(issued_).parts = parts_;
    streams_[0]->push(0, bytes, preamble, data, bytes);
  } else {
    slot(issued_).parts = ++parts_;
    streams_[0]->push(Frame::kStriped, bytes, preamble, data, part(bytes, 0).second);
    for (size_t i = 1; i < streams_.size(); ++i) {
      const auto [begin, end] = part(bytes, i);
      streams_[i]->push(Frame::kPart, end - begin, nullptr, data + begin, end - begin);
    }
  }
  ++issued_;
  collect();
  fail_if_broken();
}

void Link::put(const std::byte* data, size_t bytes, const Preamble* preamble) { send(data, bytes, preamble); }

std::byte* Link::reserve(size_t bytes) {
  Slot& s = slot(issued_);
  if (s.capacity < bytes) {
    s.capacity = bytes <= kSmallSlot ? std::min(kSmallSlot, shared_.slot_bytes) : shared_.slot_bytes;
    s.memory = std::make_unique_for_overwrite<std::byte[]>(s.capacity);
  }
  return s.memory.get();
}

void Link::commit(size_t bytes, const Preamble* preamble) { send(slot(issued_).memory.get(), bytes, preamble); }

// ---- receiving ----

bool Link::announced(Arrival* arrival, size_t expected) {
  if (!ready_) {
    if (!readable_) return false;
    if (!header(expected)) {
      fail_if_broken();
      return false;
    }
  }
  arrival->bytes = frame_->bytes;
  arrival->preamble = frame_->flags & Frame::kPreamble ? &frame_->preamble : nullptr;
  return true;
}

bool Link::arrived(Arrival* arrival, std::byte* landing, size_t expected) {
  if (!ready_) {
    if (!readable_) return false;
    ready_ = receive(landing, expected);
    if (!ready_) {
      fail_if_broken();
      return false;
    }
  }
  arrival->data = payload_;
  arrival->bytes = frame_->bytes;
  arrival->preamble = frame_->flags & Frame::kPreamble ? &frame_->preamble : nullptr;
  arrival->remote = arrival->referred = false;
  return true;
}

void Link::fail_if_broken() {
  for (const auto& s : streams_) {
    if (s->broken()) failed(*s);
  }
}

bool Link::header(size_t hint) {
  if (frame_) return true;
  frame_ = streams_[0]->frame(hint);
  target_ = nullptr;
  payload_ = nullptr;
  return frame_ != nullptr;
}

bool Link::receive(std::byte* landing, size_t expected) {
  if (!header(expected)) return false;
  Stream& first = *streams_[0];
  const size_t bytes = frame_->bytes;
  if (bytes == 0) return true;
  const bool parts = frame_->flags & Frame::kStriped;
  if (!target_) {
    if (landing && bytes == expected) {
      target_ = landing;
    } else {
      if (!parts && (payload_ = first.body_in_place(bytes))) return true;
      if (!staging_) staging_ = std::make_unique_for_overwrite<std::byte[]>(shared_.slot_bytes);
      target_ = staging_.get();
    }
  }
  payload_ = target_;
  if (!parts) return first.body(target_, bytes);

  // Every stream is tried each time, so that they drain together and each one's next event counts.
  bool whole = first.body(target_, part(bytes, 0).second);
  for (size_t i = 1; i < streams_.size(); ++i) {
    const auto [begin, end] = part(bytes, i);
    const Frame* piece = streams_[i]->frame(end - begin);
    if (piece && piece->bytes != end - begin) {
      streams_[i]->refuse(fmt::format("part {} of a payload of {} bytes has {} bytes", i, bytes, piece->bytes));
      return false;
    }
    whole = piece && streams_[i]->body(target_ + begin, end - begin) && whole;
  }
  return whole;
}

Status Link::fetch(std::byte*) {
  return Status(Code::kInternal, "fetch() on a TCP link: its arrivals are never remote");
}

void Link::release() {
  if (!ready_) return;
  for (const auto& s : streams_) {
    if (s == streams_[0] || frame_->flags & Frame::kStriped) s->next();
  }
  ready_ = false;
  frame_ = nullptr;
}

void Link::close() {
  up_ = readable_ = ready_ = false;
  frame_ = nullptr;
  for (const auto& s : streams_) {
    if (s) s->close();
  }
}

}  // namespace ringfold::transport::tcp
