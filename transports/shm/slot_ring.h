// A one-way ring of slots in memory that two ranks share. One writer, one reader, each on its own thread or process.
//
// Put k goes to slot k mod S. Its *line* carries a sequence number, and the slot is full exactly while sequence == k
// + 1 for the reader's next k: sequence numbers only grow, so nobody ever clears a line and a stale one cannot be
// mistaken. The reader gives slots back by storing how many it has released. Each side keeps its last view of the
// other's counter and looks at the shared one only when that view says "empty" or "full".
//
// Layout. The release counter has a line of its own: it is written by the reader and polled by the writer, and beside
// the writer's slot lines every release would take the line away from under the next put. A slot line is 128 bytes,
// two cache lines that the adjacent-line prefetcher brings as a pair, and slots never share one. The first 64 bytes
// hold the sequence, the sizes, a preamble and 24 bytes of payload, so an 8-byte message costs one line transfer; up
// to kInlineBytes it costs two. Larger payloads lie in the ring's payload memory, one after another as they come
// (PayloadSpace), or stay where they are and the line refers to them.
//
// There are more lines than largest payloads: small messages may run ahead of a reader that has no processor just
// now, by as many as there are lines, and each turn of the scheduler moves more of them. (4 ranks on 2 cores of an
// Intel Xeon, a stream of 8 bytes: 0.9 us a message with 8 lines, 0.45 with 64.)
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "ringfold/transport.h"

namespace ringfold::shm {

inline constexpr size_t kLineBytes = 128;
inline constexpr size_t kPageBytes = 4096;
inline constexpr size_t kInlineBytes = 88;

// Where the payload is.
enum class SlotKind : uint16_t {
  kInline,  // in the line
  kSlot,    // in the slot's payload area
  kDirect,  // in the sender's memory, in the same address space
  kRegion,  // in a region of the sender's (base/region.h), which the receiver maps
  kRemote,  // in the sender's address space, read with a system call
};
// A receiver that can do neither asks the sender for a copy in the slot after all (Refusal).

struct Reference {
  uint64_t address;  // in the sender's address space
  uint64_t region;   // kRegion: its id, entry and the offset in it
  uint64_t offset;
  uint32_t entry;
  uint32_t claim;  // kDirect: Claim; else Refusal; atomic
  uint64_t place;  // what a copy would have in the payload memory
};

// Who may touch memory that a kDirect slot refers to: the receiver claims it before its first look, a sender that
// stops revokes what was not claimed. Exactly one of them succeeds.
enum Claim : uint32_t { kUnclaimed = 0, kClaimed = 1, kRevoked = 2 };

// The receiver cannot read what a line refers to; then what the sender, who may be able to, has done about it.
enum Refusal : uint32_t { kAccepted = 0, kRefused = 1, kCopied = 2, kGone = 3 };

struct alignas(kLineBytes) SlotLine {
  uint64_t sequence;  // atomic; stored last
  uint32_t bytes;
  SlotKind kind;
  uint16_t has_preamble;
  transport::Preamble preamble;
  union {
    std::byte payload[kInlineBytes];
    uint64_t place;  // kSlot: in the payload memory
    Reference reference;
  };
};
static_assert(sizeof(SlotLine) == kLineBytes && offsetof(SlotLine, payload) + kInlineBytes == kLineBytes);

constexpr size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

struct Geometry {
  uint32_t slots = 8;               // largest puts that fit at once
  uint32_t slot_bytes = 128 << 10;  // the largest put
  uint32_t lines = 64;              // puts that fit at once, if they are small: a power of two, `slots` to kMostLines
  static constexpr uint32_t kMostLines = 64;
  constexpr size_t lines_offset() const { return kLineBytes; }
  constexpr size_t payload_offset() const { return round_up(kLineBytes * (1 + lines), kPageBytes); }
  // One more than `slots`: at the end of the memory the next payload may not fit, and the rest of it is lost.
  constexpr size_t payload_bytes() const { return (slots + 1) * round_up(slot_bytes, kPageBytes); }
  constexpr size_t ring_bytes() const { return payload_offset() + payload_bytes(); }
  friend bool operator==(const Geometry&, const Geometry&) = default;
};

// The places in a ring at `base`, which is page aligned and starts out zeroed.
class SlotRing {
 public:
  SlotRing(std::byte* base, const Geometry& geometry)
      : base_(base),
        lines_(reinterpret_cast<SlotLine*>(base + geometry.lines_offset())),
        payloads_(base + geometry.payload_offset()),
        mask_(geometry.lines - 1) {}

  SlotLine& line(uint64_t k) const { return lines_[k & mask_]; }
  std::byte* payload(uint64_t place) const { return payloads_ + place; }
  std::atomic_ref<uint64_t> sequence(uint64_t k) const { return std::atomic_ref<uint64_t>(line(k).sequence); }
  std::atomic_ref<uint64_t> released() const {
    return std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t*>(base_));
  }

 private:
  std::byte* base_;
  SlotLine* lines_;
  std::byte* payloads_;
  uint64_t mask_;
};

// The writer's account of a ring: which puts are out, and where the next payload goes.
//
// Payloads follow each other around the payload memory, each on pages of its own: a reader's prefetcher runs ahead to
// the end of a page, and there takes lines from under the writer's next put (512 bytes in a stream: 0.39 us instead
// of 0.19). When all are back the next goes to the beginning again, so that messages which are taken as they come
// keep to memory that is in the caches.
class PayloadSpace {
 public:
  explicit PayloadSpace(const Geometry& geometry)
      : lines_(geometry.lines),
        most_(round_up(geometry.slot_bytes, kPageBytes)),
        bytes_(geometry.payload_bytes()),
        room_(true) {}

  uint64_t issued() const { return issued_; }
  uint64_t released() const { return released_; }
  uint64_t out() const { return issued_ - released_; }
  // For one more put, of whatever size?
  bool room() const { return room_ && out() < lines_; }
  // Where the payload of the next put goes, of so many bytes at most. Precondition: room().
  uint64_t place(size_t most) {
    if (offset_ + most > bytes_) {
      head_ += bytes_ - offset_;
      offset_ = 0;
    }
    return offset_;
  }
  // The next put is out, with so many bytes at that place.
  void issue(size_t bytes) {
    if (bytes > 0) {
      const size_t whole = round_up(bytes, kPageBytes);
      head_ += whole;
      offset_ += whole;
      find_room();
    }
    ends_[issued_++ % lines_] = head_;
  }
  // All puts below `k` are back.
  void release(uint64_t k) {
    if (k == released_) return;
    released_ = k;
    tail_ = ends_[(k - 1) % lines_];
    if (tail_ == head_) offset_ = 0;
    find_room();
  }

 private:
  void find_room() {
    const uint64_t lost = offset_ + most_ <= bytes_ ? 0 : bytes_ - offset_;
    room_ = head_ - tail_ + lost + most_ <= bytes_;
  }

  const uint64_t lines_, most_, bytes_;
  uint64_t issued_ = 0, released_ = 0;
  uint64_t head_ = 0, tail_ = 0;  // bytes that went out and came back, with what was lost at the end of the memory
  uint64_t offset_ = 0;           // of the next payload
  bool room_;
  std::array<uint64_t, Geometry::kMostLines> ends_{};  // head_ after put k
};

}  // namespace ringfold::shm
