// What transports over slot rings have in common: links, credit, sleeping and waking, and noticing peers that have
// gone. loopback (threads of one process) and shm (processes of one host) add where the memory comes from and how a
// put refers to memory instead of copying it.
//
// Sleeping without lost wake-ups. A rank that wants to sleep stores sleeping = 1 and then looks at every ring once
// more; a peer that puts or releases stores the sequence or release counter and then looks at `sleeping`. Each must
// not look before its store can be seen, or they miss each other. A locked instruction in every put and every release
// would do; it waits until the line is here that the peer has just looked at, which costs more than the rest of a
// small call. So the sleeper fences for both (fence.h), and where the system has no such fence the four accesses are
// sequentially consistent. (Not with a fence on each side: ThreadSanitizer does not understand those.) The look at
// `sleeping` hits a line that changes only when somebody sleeps. The ringer takes the flag back by exchange, so many
// peers cost one system call.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "base/stores.h"
#include "transports/shm/slot_ring.h"

namespace ringfold::shm {

class RingTransport;

// kInvalid unless slots and lines are powers of two up to 64, of lines not fewer, and a slot has 256 bytes to 64 MiB,
// in whole cache lines.
Status check_geometry(int slots, size_t slot_bytes, int lines);

// What its peers see of a rank, in shared memory, zeroed. The owner writes the first line, peers write the second.
struct Bell {
  alignas(kLineBytes) uint32_t sleeping;   // atomic: ring, once
  uint32_t stopped;                        // atomic: no more traffic from this rank, for good
  uint32_t fences;                         // constant: it fences everybody before it sleeps
  alignas(kLineBytes) uint64_t attention;  // atomic: grows when a peer stops or refuses; progress() looks only here
  uint64_t wanted;                         // atomic: bit l: a peer opened its end of lane l
};

class RingLink final : public transport::Link {
 public:
  RingLink(RingTransport* owner, int peer, Bell* peer_bell, SlotRing out, SlotRing in);

  bool writable() override;
  void put(const std::byte* data, size_t bytes, const transport::Preamble* preamble) override {
    put(data, bytes, preamble, false);
  }
  void put_by_copy(const std::byte* data, size_t bytes, const transport::Preamble* preamble) override {
    put(data, bytes, preamble, true);
  }
  size_t piece(const std::byte* data, size_t bytes) override;
  std::byte* reserve(size_t bytes) override;
  void commit(size_t bytes, const transport::Preamble* preamble) override;
  uint64_t issued() const override { return space_.issued(); }
  uint64_t retired() override;
  bool announced(transport::Arrival* arrival, size_t expected) override;
  bool arrived(transport::Arrival* arrival, std::byte* landing, size_t expected) override;
  transport::Watch watch() override;
  Status fetch(std::byte* destination) override;
  Status confirm() override;
  void release() override;

 private:
  friend class RingTransport;

  void see_released() { space_.release(out_.released().load(std::memory_order_acquire)); }
  void publish(SlotLine& line, size_t bytes, SlotKind kind, const transport::Preamble* preamble);
  // Stores what the peer looks for when it goes to sleep, and wakes it if it does already.
  void announce(std::atomic_ref<uint64_t> word, uint64_t value);
  void wake_peer();
  void put(const std::byte* data, size_t bytes, const transport::Preamble* preamble, bool copied);
  bool has_arrival() const { return in_.sequence(next_).load(std::memory_order_acquire) == next_ + 1; }
  // Has anything happened that neither the owner's calls nor an earlier news() have seen? Every event counts once, so
  // an arrival that the owner leaves alone does not keep it from sleeping.
  bool news();
  // Copies what the peer could not read.
  void answer_refusals();
  // Has the sender of the oldest arrival done something about its refusal?
  bool answered();
  // After a stop: nobody reads our memory through puts by reference. False when a peer is reading right now.
  bool revoke();

  RingTransport* const owner_;
  const int peer_;
  Bell* const peer_bell_;
  const bool light_;      // the peer fences for both when it sleeps
  bool up_ = true;        // both ends: puts are allowed
  bool readable_ = true;  // this end

  SlotRing out_;
  PayloadSpace space_;       // with the peer's release counter, as last seen
  uint64_t heard_ = 0;       // of the peer's releases, by news()
  uint64_t look_at_ = 0;     // with so many puts issued that is to be seen again
  uint64_t references_ = 0;  // bit k mod lines: put k is by reference
  bool reserved_inline_ = false;

  SlotRing in_;
  uint64_t next_ = 0;       // the oldest arrival not released
  uint64_t announced_ = 0;  // arrivals below this are known to the owner
  uint64_t resolved_ = 0;   // where_ is that of arrival resolved_ - 1
  const std::byte* where_ = nullptr;
  uint64_t refused_ = 0;   // the sender of arrival refused_ - 1 is asked for a copy
  uint64_t answered_ = 0;  // the same, when news() has seen the answer
  uint64_t heard_at_ = 0;  // next_ at the last message that piece() was asked about
};

class RingTransport : public transport::Transport {
 public:
  ~RingTransport() override;
  transport::Capabilities capabilities() const final;
  transport::Link* open(int peer, int lane) final;
  bool wanted(int lane) const final;
  void progress() final;
  const transport::Failures& failures() const final { return failures_; }
  bool prepare_to_sleep() final;
  void awake() final;
  void stop() final;
  transport::Counters counters() const final { return counters_; }

 protected:
  // `reference_bytes`: puts from this size on are offered to refer().
  RingTransport(int rank, int size, const Geometry& geometry, size_t reference_bytes);

  // ---- what a kind of memory adds ----
  struct Rings {
    std::byte *out = nullptr, *in = nullptr;
  };
  virtual Rings rings(int peer, int lane) = 0;
  virtual void ring(int peer) = 0;  // makes the peer's wake_fd readable
  // Empties the own wake_fd, and calls peer_ended() for peers that the system reports dead.
  virtual void poll_system() = 0;
  // Fills `reference` for a put that need not be copied; kSlot: copy it.
  virtual SlotKind refer(int peer, const std::byte* data, size_t bytes, Reference* reference) = 0;
  // Where the payload that `line` refers to can be read; null: only through fetch(), or, when `*gone`, never.
  virtual const std::byte* resolve(int peer, SlotLine& line, bool* gone) = 0;
  // kUnavailable: the sender must copy it.
  virtual Status fetch(int peer, const SlotLine& line, std::byte* destination) = 0;
  // The peer could not read this memory. False: it is no longer there to be copied.
  virtual bool refused(int, const std::byte*, size_t) { return true; }
  // How long stop() waits for peers of the same address space that are reading its memory.
  virtual int stop_wait_ms() const { return 0; }

  // The peer's bell is known: links may be opened.
  void peer_added(int peer, Bell* bell);
  void peer_ended(int peer, Status reason);
  bool is_wired(int peer) const { return peers_[static_cast<size_t>(peer)].bell != nullptr; }
  // So many bytes of the peer's memory were read. What if it had that memory back before?
  Status still_there(int peer, size_t bytes) const;

  const int rank_, size_;
  const Geometry geometry_;
  // The own bell, which the derived class has made; before peers see it.
  void own_bell(Bell* bell);
  Bell* bell_ = nullptr;
  transport::Counters counters_;
  base::StoresBySize stores_;  // of copies into slots

 private:
  friend class RingLink;
  struct Peer {
    Bell* bell = nullptr;
    bool gone = false;
    std::optional<Status> ended;
    std::array<std::unique_ptr<RingLink>, transport::kLanes> links;
  };

  void wake(int peer);  // if it sleeps
  // Turns peers that stopped or ended into failures; what they had put before can still be read. True: there were
  // any.
  bool bury_peers();

  const size_t reference_bytes_;
  std::vector<Peer> peers_;
  std::vector<RingLink*> open_links_;
  transport::Failures failures_;
  uint64_t attention_ = 0;  // Bell::attention and wanted, as last seen
  uint64_t wanted_ = 0;
  uint64_t ticks_ = 0;
  bool leaving_ = false;  // some peer has left, is new or has refused something: progress() has work
  bool stopped_ = false;
};

}  // namespace ringfold::shm
