// A link: two rings of slots, one in each rank's memory, and the puts that fill them, or go where the peer wants
// them.
#pragma once

#include <memory>
#include <vector>

#include "base/expected.h"
#include "ringfold/transport.h"
#include "transports/verbs/memory.h"
#include "transports/verbs/queue_pair.h"

namespace ringfold::verbs {

// Before every payload; the preamble lies at its end. Payloads that are mostly large begin on a page of their own: a
// packet that lies in two pages is two accesses to memory for the device.
constexpr size_t head_bytes(size_t slot_bytes) { return slot_bytes >= 64 << 10 ? 4096 : 64; }

// The 32 bits that come with every write.
struct Note {
  enum Kind : uint32_t {
    kPut,
    kCredit,
    kOpen,
    kStop,
    kGreeting,
    kOffer,   // of Direct,
    kLanded,  // and what was written to it
    kPlace,   // of a link: an offer is there (Offer),
    kPlaced   // and a put that went to what was offered
  };
  uint32_t kind = kPut;   // 4 bits
  uint32_t lane = 0;      // 3
  uint32_t preamble = 0;  // 1
  uint32_t number = 0;    // 9: of the put, modulo kNumbers
  uint32_t offers = 0;    // 1: that the sender of this put has read on this lane, modulo 2
  uint32_t released = 0;  // 14: by the sender of this, on this lane, modulo kReleases
  static constexpr uint64_t kNumbers = 512, kReleases = 1 << 14;
  uint32_t encode() const { return kind | lane << 4 | preamble << 7 | number << 8 | offers << 17 | released << 18; }
  static Note decode(uint32_t word) {
    return {word & 15, word >> 4 & 7, word >> 7 & 1, word >> 8 & 511, word >> 17 & 1, word >> 18};
  }
};

// Where a peer's ring is: what open() writes into the other's control block.
struct RingPlace {
  uint64_t address = 0;
  uint32_t keys[kMostRails] = {};
};

// Where the receiver wants some of the next puts: what it writes into the sender's control block.
struct Offer {
  base::Stretch stretch;  // of its memory
  uint32_t keys[kMostRails] = {};
};

// What links share and ask of their transport.
class Hub {
 public:
  size_t slot_bytes = 0, head_bytes = 0, region_bytes = 0;
  uint64_t slots = 0;
  size_t stride() const { return head_bytes + slot_bytes; }
  transport::Counters counters;
  uint64_t news = 0;     // counts what the owner may act upon
  bool overdue = false;  // some link could not post what it had to: again in progress()
  bool ending = false;   // peers were told that nothing more comes

  virtual void poll() = 0;
  virtual void fail(int peer, Status status) = 0;
  // The keys of memory that devices may read and write where it lies; null: copy.
  virtual const Memory* registered(const std::byte* data, size_t bytes) = 0;
  // Writes it into the peer's control block. False: not now.
  virtual bool offer(int peer, int lane, const Offer& offer) = 0;

 protected:
  ~Hub() = default;
};

class Link final : public transport::Link {
 public:
  Link(Hub& hub, int peer, int lane, std::vector<QueuePair*> rails);

  Status allocate();
  bool allocated() const { return memory_.data() != nullptr; }
  RingPlace place() const;
  // The peer's ring is there: puts may go.
  void connect(const RingPlace& place);
  void close();                      // neither way, for good
  void peer_left() { up_ = false; }  // what has arrived can still be taken

  bool writable() override;
  void put(const std::byte* data, size_t bytes, const transport::Preamble* preamble) override;
  std::byte* reserve(size_t bytes) override;
  void commit(size_t bytes, const transport::Preamble* preamble) override;
  uint64_t issued() const override { return issued_; }
  uint64_t retired() override;
  bool announced(transport::Arrival* arrival, size_t expected) override;
  bool arrived(transport::Arrival* arrival, std::byte* landing, size_t expected) override;
  transport::Watch watch() override { return up_ ? transport::Watch{.link = this} : transport::Watch{}; }
  Status fetch(std::byte* destination) override;
  void expect(size_t skip, std::byte* memory, size_t bytes, size_t piece) override;
  void release() override;

  // ---- for the transport ----
  // A put came, with `bytes` in all. Not ok: no correct peer sends this.
  Status took(const Note& note, size_t bytes);
  void credited(uint32_t released);
  Status offered(const Offer& offer);
  void repay();       // credit that is overdue
  void make_offer();  // that waits for its turn
  bool pending() const { return arrived_at(next_); }
  bool open_sent = false;

 private:
  struct Entry {
    uint64_t sequence = 0;  // of the arrival that it describes, plus one
    uint32_t bytes = 0;
    bool preamble = false;
    const std::byte* placed = nullptr;  // where the receiver wanted it; null: in its slot
  };
  size_t place_of(uint64_t k) const { return (k % hub_.slots) * hub_.stride() + hub_.head_bytes; }  // in a ring
  std::byte* in(uint64_t k) const { return memory_.data() + place_of(k); }
  std::byte* out(uint64_t k) const { return in(k) + hub_.slots * hub_.stride(); }
  bool arrived_at(uint64_t k) const { return entries_[k % hub_.slots].sequence == k + 1; }
  size_t rail_of(uint64_t k) const { return k % rails_.size(); }
  // Sends put issued_: its payload is in its slot of the outgoing ring, or at `data`.
  void send(const std::byte* data, size_t bytes, const transport::Preamble* preamble, const Memory* source,
            bool copied);
  uint64_t advance_retired();
  // Before this link looks for what may have come. It costs a poll of the queues only when nobody has polled since
  // the last time: a turn of the engine polls once, and all links live on that.
  void look() {
    if (looked_ == hub_.counters.polls) hub_.poll();
    looked_ = hub_.counters.polls;
  }
  bool starved() const { return told_ + hub_.slots == seen_; }
  // Is there an offer for put `k` of so many bytes, those before it being out?
  const Offer* offer_for(uint64_t k, size_t bytes);

  Hub& hub_;
  const int peer_, lane_;
  const std::vector<QueuePair*> rails_;
  Memory memory_;  // the incoming ring, then the outgoing one
  bool up_ = false;
  RingPlace remote_;

  uint64_t issued_ = 0, released_ = 0;  // puts, and how many of them the peer has released
  uint64_t retired_ = 0;
  std::vector<uint64_t> requests_;  // by slot: number of the work request whose completion retires it; 0: copied

  std::vector<Entry> entries_;
  uint64_t next_ = 0;    // the oldest arrival not released
  uint64_t seen_ = 0;    // one more than the highest arrival
  uint64_t told_ = 0;    // releases that the peer knows of
  uint64_t looked_ = 0;  // hub_.counters.polls at the last look()

  std::vector<Offer> offers_;  // of the peer, that are not used up
  uint64_t offers_read_ = 0;   // that ever came
  uint64_t headed_ = 0;        // the newest put with a preamble
  base::Expected expected_;    // where arrivals are wanted
  uint64_t offered_to_ = 0;    // the arrivals before this one were offered a place, or shall have none
  uint64_t places_end_ = 0;    // one more than the last that was offered one
  uint64_t offers_made_ = 0;   // to the peer,
  uint32_t offers_heard_ = 0;  // and how many it has read, modulo 2
};

}  // namespace ringfold::verbs
