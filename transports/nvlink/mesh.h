// What the ranks of one host share on their GPUs, so that streams of one put bytes into the memory of another and
// wait for each other without the host.
//
// Every rank has a block of device memory that all others map: for each peer a few slots, a word that counts what the
// peer has put into them, and a word that counts what the peer has released of this rank's puts. A put is a copy into
// the peer's next slot and a write of its word, both on the sender's stream; who receives has its stream wait for the
// word. So a link is what it is elsewhere (ringfold/transport.h), slots and credit in order, only that its calls put
// work on a stream instead of doing it: none of them waits, and what they stand for happens when the stream comes to
// it. That is why this is no transport::Transport, whose callers look for arrivals and move on when there are none.
//
// Ranks are processes, or threads of one; on one GPU, or on several with peer access.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "device/stream.h"
#include "transports/nvlink/meeting.h"
#include "transports/nvlink/memory.h"

namespace ringfold::nvlink {

struct Options {
  int slots = 4;
  uint64_t slot_bytes = 2 << 20;
  uint64_t room = 0, zeroed_room = 0;  // bytes of each block for its user, and how many of them are zeros at first
};

// One thread at a time.
class Mesh {
 public:
  // This rank's block. Nothing waits for other ranks. Every rank has the same options.
  static Result<std::unique_ptr<Mesh>> make(int rank, int size, device::Context context, int ordinal,
                                            const Options& options);
  // What calls put on its stream must be over; waits for what it did itself.
  ~Mesh();

  // What the others must know.
  std::string address() const;
  // Collective, with all ranks' addresses: maps their memory. kUnavailable: why this rank cannot use the memory of
  // another one. Ranks are connected when all have returned.
  Status connect(const std::vector<std::string>& addresses, base::Deadline deadline);

  // Before that, where all ranks' memory has fabric handles (by their addresses): imports it by those, which needs no
  // sockets, so processes in containers that share no network can meet. Not ok on one rank: all forget it, and
  // connect() has file descriptors sent.
  static bool on_fabric(const std::vector<std::string>& addresses);
  Status import_by_fabric(const std::vector<std::string>& addresses);
  void forget_imports() { imported_.clear(); }

  device::OwnStream& stream() { return *stream_; }
  device::Context context() const { return stream_->context(); }
  const Gpu& gpu() const { return gpu_; }
  const Options& options() const { return options_; }
  // Is every rank on a GPU of its own? Once connected.
  bool apart() const { return apart_; }
  int rank() const { return rank_; }
  int size() const { return size_; }
  // Once connected: what the ranks' meetings are called, for recall() and to meet again; and do they know each other
  // by fabric handles?
  const std::vector<std::string>& names() const { return names_; }
  bool by_fabric() const { return by_fabric_; }
  Meeting& meeting() { return *meeting_; }
  // The user's room in a rank's block.
  device::Address room(int rank) const { return peers_[static_cast<size_t>(rank)].block->address() + slot(size_, 0); }

  // ---- work on the stream ----
  // The stream waits for credit and has the address of the next slot towards `peer`, to which it may write; commit()
  // tells the peer.
  Result<device::Address> reserve(int peer);
  Status commit(int peer);
  // The stream waits for the next arrival from `peer`, and has the address where it lies until release().
  Result<device::Address> arrival(int peer);
  Status release(int peer);

  // The stream goes on, whatever it waits for: where ranks give up. What it does from then on has no meaning. Peers
  // may still write, so it is to be called again until the stream is idle.
  Status let_go();
  // A stream that waits for nothing, for what goes with that.
  device::OwnStream& rescue() { return *rescue_; }

 private:
  struct Peer {
    std::unique_ptr<Mapping> block;  // as this rank maps it
    uint32_t puts = 0, takes = 0;
  };
  Mesh(int rank, int size, Gpu gpu, const Options& options)
      : rank_(rank), size_(size), gpu_(std::move(gpu)), options_(options), peers_(static_cast<size_t>(size)) {}
  // Offsets in a rank's block.
  uint64_t arrived(int from) const { return kWordBytes * static_cast<uint64_t>(from); }
  uint64_t released(int by) const { return kWordBytes * static_cast<uint64_t>(size_ + by); }
  uint64_t slot(int from, uint32_t number) const;
  uint64_t block_bytes() const;
  device::Address here(uint64_t offset) const { return peers_[static_cast<size_t>(rank_)].block->address() + offset; }
  Status map(int peer, std::shared_ptr<Allocation> memory);

  static constexpr uint64_t kWordBytes = 128;  // words of different writers share no line
  static constexpr uint64_t kSlotAlign = 4096;

  const int rank_, size_;
  const Gpu gpu_;
  const Options options_;
  std::shared_ptr<Allocation> memory_;
  std::unique_ptr<Meeting> meeting_;
  std::unique_ptr<device::OwnStream> stream_, rescue_;
  std::vector<std::shared_ptr<Allocation>> imported_;  // by rank; empty: none by fabric
  std::vector<Peer> peers_;
  std::vector<std::string> names_;
  bool apart_ = true, by_fabric_ = false;
};

}  // namespace ringfold::nvlink
