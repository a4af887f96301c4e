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
// to kInlineBytes it costs two. Larger payloads lie in the slot's page-aligned payload area, or stay where they are
// and the line refers to them.
#pragma once

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

struct Reference {
  uint64_t address;  // in the sender's address space
  uint64_t region;   // kRegion: its id, entry and the offset in it
  uint64_t offset;
  uint32_t entry;
  uint32_t claim;  // kDirect: Claim, atomic
};

// Who may touch memory that a kDirect slot refers to: the receiver claims it before its first look, a sender that
// stops revokes what was not claimed. Exactly one of them succeeds.
enum Claim : uint32_t { kUnclaimed = 0, kClaimed = 1, kRevoked = 2 };

struct alignas(kLineBytes) SlotLine {
  uint64_t sequence;  // atomic; stored last
  uint32_t bytes;
  SlotKind kind;
  uint16_t has_preamble;
  transport::Preamble preamble;
  union {
    std::byte payload[kInlineBytes];
    Reference reference;
  };
};
static_assert(sizeof(SlotLine) == kLineBytes && offsetof(SlotLine, payload) + kInlineBytes == kLineBytes);

constexpr size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

struct Geometry {
  uint32_t slots = 8;               // a power of two, at most 64
  uint32_t slot_bytes = 128 << 10;  // payload of one slot
  constexpr size_t lines_offset() const { return kLineBytes; }
  constexpr size_t payload_offset() const { return round_up(kLineBytes * (1 + slots), kPageBytes); }
  constexpr size_t payload_stride() const { return round_up(slot_bytes, kPageBytes); }
  constexpr size_t ring_bytes() const { return payload_offset() + slots * payload_stride(); }
  friend bool operator==(const Geometry&, const Geometry&) = default;
};

// The places in a ring at `base`, which is page aligned and starts out zeroed.
class SlotRing {
 public:
  SlotRing(std::byte* base, const Geometry& geometry)
      : base_(base),
        lines_(reinterpret_cast<SlotLine*>(base + geometry.lines_offset())),
        payloads_(base + geometry.payload_offset()),
        stride_(geometry.payload_stride()),
        mask_(geometry.slots - 1) {}

  SlotLine& line(uint64_t k) const { return lines_[k & mask_]; }
  std::byte* payload(uint64_t k) const { return payloads_ + (k & mask_) * stride_; }
  std::atomic_ref<uint64_t> sequence(uint64_t k) const { return std::atomic_ref<uint64_t>(line(k).sequence); }
  std::atomic_ref<uint64_t> released() const {
    return std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t*>(base_));
  }
  uint64_t slots() const { return mask_ + 1; }

 private:
  std::byte* base_;
  SlotLine* lines_;
  std::byte* payloads_;
  size_t stride_;
  uint64_t mask_;
};

}  // namespace ringfold::shm
