// Calls on device memory, and calls on a stream: how they become calls on host memory.
//
// A buffer of a device passes through pinned memory, in pieces: the same range of every block of the call. A piece is
// copied to the host, then goes through a call of its own, then its result is copied back; while one piece is on its
// way through the network, the next is copied in and the one before is copied out. So any transport carries it.
//
// Order. Pieces of collectives are started in the order of the calls, like the calls themselves, so calls on host
// memory wait here as well, until all calls before them have been started. Sends keep their order, and so do
// receives: a message is one piece, and never waits for a collective, since its peer may make the two in another
// order.
//
// Where all ranks' GPUs reach each other's memory, collectives do not pass through the host at all (comm/gpu_path.h):
// they are asked about in the order of calls, like pieces, and then played on a stream. Where RDMA joins all ranks
// and reaches their GPUs' memory, collectives that only move bytes are asked about in the same way, and then are one
// piece that needs no pinned memory (comm/direct_path.h).
//
// Sums with a codec that pass through the host do so as codes where all ranks' GPUs have kernels for them
// (comm/device_codes.h). They are asked about in the same way, and no other collective begins between their halves.
//
// Streams. A call on a stream begins when the stream's work before it is over (an event), and holds the stream (a
// gate) until it is done, well or not: no failure leaves a stream standing.
//
// One thread of its own per communicator does all of this from the first such call on; the engine's background thread
// drives what it starts.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "comm/device_codes.h"
#include "comm/direct_path.h"
#include "comm/gpu_path.h"
#include "comm/guard.h"
#include "device/stream.h"
#include "exec/engine.h"
#include "ringfold/communicator.h"

namespace ringfold::comm {

// One buffer of a call: where its blocks lie, in bytes.
struct Side {
  struct Block {
    uint64_t offset = 0, bytes = 0;
  };
  std::byte* memory = nullptr;
  device::Place place;
  std::vector<Block> blocks;

  uint64_t piece_bytes(uint64_t piece, uint64_t step) const;  // of all blocks
};

// Pinned memory of a piece.
struct Buffers {
  device::Pinned in, out;
  bool shared = false;  // among the communicator's calls
  bool spare = false;   // of a call that may go from GPU to GPU instead: the largest is kept for those that do not
  uint64_t in_bytes = 0, out_bytes = 0;
};

// A call that goes through here. Its Work waits for it.
class Staged final : public exec::Request {
 public:
  enum Kind : uint8_t { kCollective, kSend, kReceive };
  Kind kind = kCollective;
  Side in, out;
  uint64_t pieces = 1;
  uint64_t step = 0;  // bytes of each block that belong to one piece
  // Starts the communication of a piece between two stretches of host memory, within so many seconds.
  std::function<Work(uint64_t piece, const std::byte* in, std::byte* out, double seconds)> start;
  std::function<void(std::byte* in, uint64_t bytes)> before;  // what is done to the input of a piece on device memory
  // A collective that may go from GPU to GPU: its program, whether this rank's buffers are fit for that, and what
  // asks the others. Null: it is not of that kind.
  // Can this call go there, can any, and can kernels wait for each other? And where its buffers lie in memory that
  // is open to all ranks, twice: the least of all ranks' bytes are those of each if the others' complements are, too.
  using Answers = std::array<uint8_t, 3 + 2 * std::tuple_size_v<GpuPath::Where>>;
  std::shared_ptr<const GpuPlan> on_gpu;
  // The same of one that may go straight from device to device: what starts it, after its own block was copied.
  std::function<Work(double seconds)> straight;
  OwnBlock own;
  // The same of a sum with a codec that may have its codes made where its memory is: then it is one piece, which is
  // communicated twice.
  std::shared_ptr<DeviceCodes> codes;
  bool fits = false;
  std::shared_ptr<GpuFeedback> missed;  // of the codes of one from GPU to GPU
  std::function<Work(const uint8_t* can, uint8_t* all_can, double seconds)> ask;
  std::string text;
  std::shared_ptr<device::Moment> after;  // it begins then; null: at once
  device::Gate gate;                      // of its stream, if it is alone on it

  // Of the device whose memory it is, if it is a device's.
  device::Context context() const { return (in.place ? in.place : out.place).context; }
  bool on_device() const { return in.place || out.place; }
  bool staged(const Side& side) const {
    return side.place || (on_device() && (pieces > 1 || (before && &side == &in)));
  }
  std::string describe() const override { return text; }
  int came_from() const override { return done() ? source_ : -1; }

 private:
  friend class Staging;
  std::unique_ptr<Buffers> own_;                     // where the shared ones are too small
  bool takes_spare_ = false;                         // instead
  uint64_t copied_in_ = 0, started_ = 0, over_ = 0;  // pieces
  int in_flight_ = 0;                                // pieces
  Status failure_;
  base::Deadline patience_;  // after a failure: until then copies may still end
  bool begun_ = false;       // no piece waits to be started
  bool reported_ = false;
  bool played_ = false;    // from GPU to GPU
  bool straight_ = false;  // from device to device: all ranks have said so
  bool coded_ = false;     // codes on the device: all ranks have said so
  int source_ = -1;
  Work asked_;  // whether all ranks can: this call, and any
  bool asking_ = false;
  Answers can_{}, all_can_{};
};

class Staging {
 public:
  struct Options {
    exec::Engine* engine = nullptr;
    std::shared_ptr<exec::Domain> domain;
    Guard* guard = nullptr;
    GpuPath* gpus = nullptr;
    DirectPath* direct = nullptr;
    size_t piece_bytes = 0;
  };
  explicit Staging(Options options);
  // Ends what is in flight; the domain was aborted before. Waits for copies, a few seconds at the most.
  ~Staging();

  // Are there calls of this kind that have not been started yet?
  bool waiting(Staged::Kind kind) const { return waiting_[kind].load(std::memory_order_acquire) > 0; }
  // A call takes two steps. First what may fail, and what must come before its stream is held, since the driver may
  // wait for streams when it allocates: memory and streams of ours, for the buffers and pieces that the call has.
  // Then, complete, it is taken.
  Status prepare(const exec::Ref<Staged>& call);
  void add(const exec::Ref<Staged>& call);
  // Is every call over, and all that it put on devices?
  bool idle() const {
    return unfinished_.load(std::memory_order_acquire) == 0 && given_up_.load(std::memory_order_acquire) == 0;
  }
  // Looks after the graphs that hold calls, from now on.
  void watch_graphs() { bell_->ring(); }
  size_t piece_bytes() const { return options_.piece_bytes; }

 private:
  struct Piece {
    exec::Ref<Staged> call;
    uint64_t number = 0;
    std::unique_ptr<Buffers> buffers;
    device::Moment copied;
    bool uncertain = false;              // copies were begun, and nothing tells when they end
    bool on_gpu = false;                 // it is a whole call, from GPU to GPU,
    GpuKernels::Call* kernel = nullptr;  // in one kernel
    // Of a call that is given up: memory that its kernels still use.
    std::shared_ptr<DeviceCodes> codes;
    std::shared_ptr<GpuFeedback> missed;
    bool folded = false;  // of one whose codes are made on the device: its second half
    Work work;
  };
  // The first may wait for users' streams, which may wait for calls that are to end on the other: that never does.
  struct Streams {
    std::unique_ptr<device::OwnStream> in, out;
  };
  // What wakes the thread; outlives it, since the driver may call late.
  struct Bell {
    std::mutex mutex;
    std::condition_variable rings;
    bool rung = false;
    void ring();
  };
  static constexpr int kShared = 4;  // pieces of collectives under way

  Status make_streams(device::Context context);
  Result<std::unique_ptr<Buffers>> make_buffers(const Staged& call, device::Context context, bool shared) const;
  bool fits_shared(const Staged& call) const;
  bool fits_spare(const Staged& call, uint64_t in_bytes, uint64_t out_bytes) const;
  void keep_spare(std::unique_ptr<Buffers> buffers);

  // On the thread:
  void run();
  bool advance();
  enum class Way : uint8_t { kWaits, kAsks, kPlayed, kHost };
  // In staging_ways.cc:
  Way way_of(const exec::Ref<Staged>& call);
  bool never(const Staged& call) const;
  Staged::Answers answers(const Staged& call) const;
  void play(const exec::Ref<Staged>& call);
  Status copy_own_block(Piece& piece);
  Status encode(Piece& piece);
  Status fold(Piece& piece);
  Status decode(Piece& piece);
  bool copy_in(Staged::Kind kind);
  bool start_next(Staged::Kind kind);
  bool between_halves(Staged::Kind kind) const;
  bool copy_out();
  bool finish_copies();
  void watch();
  void watch_replays(const Status& dead);
  Status copy_piece_in(Piece& piece);
  Status copy_piece_out(Piece& piece);
  enum class Copies : uint8_t { kRunning, kOver, kLost };
  Copies look_at_copies(const Piece& piece);
  static bool waits_for_verdict(const Piece& piece);
  void leave(Piece piece, Copies copies);
  void begun(Staged& call);
  void fail(Staged& call, const Status& why, bool ours);
  void finish_if_over(const exec::Ref<Staged>& call);
  Status mark(Status put, device::OwnStream& stream, Piece& piece);
  device::OwnStream& stream_of(const Side& side, std::unique_ptr<device::OwnStream> Streams::*direction);

  const Options options_;
  const std::shared_ptr<Bell> bell_ = std::make_shared<Bell>();
  std::array<std::atomic<int>, 3> waiting_{};
  std::atomic<int> unfinished_{0};
  std::atomic<int> given_up_{0};  // pieces in lost_

  mutable std::mutex mutex_;
  std::deque<exec::Ref<Staged>> added_;
  std::map<device::Context, Streams> streams_;  // grows only
  std::vector<std::unique_ptr<Buffers>> free_;
  bool has_shared_ = false;
  std::unique_ptr<Buffers> spare_;         // null: none, or a call has it
  uint64_t spare_in_ = 0, spare_out_ = 0;  // bytes of the largest that was made

  // The thread's own:
  std::array<std::deque<exec::Ref<Staged>>, 3> queues_;  // calls with pieces that are not copied in yet
  std::array<std::deque<Piece>, 3> arriving_;            // being copied in
  std::list<Piece> running_, leaving_;                   // being communicated, being copied out
  std::list<Piece> lost_;                                // of failed calls: copies that do not end
  std::list<exec::Ref<Staged>> calls_;                   // all that are not over
  bool replays_told_ = false, replays_ended_ = false;

  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace ringfold::comm
