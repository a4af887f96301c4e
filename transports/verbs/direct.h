// Writes from memory of other devices (GPUs) straight into memory of peers' devices.
//
// Such memory is registered by its dma-buf, once, and the key kept until its owner takes it back. An offer is a small
// write into the peer's control block, of an address, a size and keys; a write to what was offered goes where it
// says, and only its last part carries immediate data, which tells of all of it, since a queue pair's writes land in
// order. Offers and writes go over a peer's first rail, in room that its puts leave: each takes up one receive at
// most, of those that a queue pair has beyond its credits.
//
// A peer that was given keys could write to all of the registered memory at any time until it is deregistered: peers
// have proved the job's key, and are trusted not to.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "ringfold/transport.h"
#include "transports/verbs/memory.h"
#include "transports/verbs/queue_pair.h"

namespace ringfold::verbs {

// Of memory that a peer may write to: what offer() writes into its control block.
struct Window {
  uint64_t address = 0, bytes = 0;
  uint32_t keys[kMostRails] = {};
};

// What the transport does for it.
class DirectHub {
 public:
  struct Way {
    std::span<QueuePair* const> rails;
    uint64_t offers = 0;               // address in the peer's control block where offers of this rank go,
    uint32_t offers_key = 0;           // and its key
    const Window* incoming = nullptr;  // where the peer's lie here,
    Window* outgoing = nullptr;        // and where this rank's are sent from
    bool up = false;
  };
  virtual Way way_to(int peer) = 0;
  virtual uint32_t control_key(const QueuePair& rail) = 0;
  virtual const std::vector<Device*>& all_devices() = 0;
  virtual void lose(int peer, Status why) = 0;

 protected:
  ~DirectHub() = default;
};

class Direct final : public transport::Direct {
 public:
  Direct(DirectHub& hub, int peers) : hub_(hub), peers_(static_cast<size_t>(peers)) {}

  Status add(uint64_t id, std::byte* base, size_t bytes, int dma_buf) override;
  void remove(uint64_t id) override { known_.erase(id); }
  bool offer(int peer, std::byte* memory, size_t bytes) override;
  std::optional<size_t> offered(int peer) override;
  bool write(int peer, const std::byte* data, size_t bytes, size_t place) override;
  bool written(int peer) override;
  uint64_t landed(int peer) const override { return at(peer).landed; }

  // ---- for the transport ----
  // Can all of its devices do it?
  static bool possible(const std::vector<Device*>& devices);
  // Of what a peer says; false: no correct peer says that now.
  bool take_offer(int peer) { return !std::exchange(at(peer).offered, true); }
  bool take_landing(int peer) {
    ++at(peer).landed;
    return std::exchange(at(peer).expected, false);
  }
  void clear() {
    known_.clear();
    for (Peer& peer : peers_) peer.offered = false;
  }

 private:
  struct Peer {
    bool offered = false;   // it has offered, and was not written to yet
    bool expected = false;  // it was offered to, and has not written yet
    uint64_t posted = 0;    // number of the last write to it
    uint64_t landed = 0;
  };
  Peer& at(int peer) { return peers_[static_cast<size_t>(peer)]; }
  const Peer& at(int peer) const { return peers_[static_cast<size_t>(peer)]; }
  const Memory* find(const std::byte* data, size_t bytes) const;
  bool post(int peer, QueuePair& rail, const QueuePair::Write& write);

  DirectHub& hub_;
  std::vector<Peer> peers_;
  std::map<uint64_t, std::unique_ptr<Memory>> known_;  // by id; no two overlap
};

}  // namespace ringfold::verbs
