// One execution of a plan on this rank: cursors over the lanes of its program.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <vector>

#include "exec/plan.h"
#include "exec/request.h"

namespace ringfold::exec {

enum class FaultKind : uint8_t { kPeer, kMismatch, kTimeout };

// Evidence that something is wrong, found while running; what it means is for all ranks to agree on (src/comm).
struct Fault {
  FaultKind kind = FaultKind::kPeer;
  int peer = -1;
  Status status;
};

// What stopped a lane.
enum class Advance : uint8_t { kBlocked, kProgress, kFinished, kFault };

class Run final : public Request {
 public:
  // Prepares the run; `plan`, the buffers and `scratch` outlive it. No allocation once the run has served a plan as
  // large.
  void prepare(const std::shared_ptr<const Plan>& plan, const std::byte* input, std::byte* output, uint32_t sequence);
  // Memory that lasts as long as the run does, for a copy of an input that the call itself overwrites.
  std::byte* keep(size_t bytes);
  // Moves lane `lane` on as far as it goes without waiting. On kFault, *fault says what was found.
  Advance advance(int lane, Fault* fault) {
    return plan_->short_moves.empty() ? advance_long(lane, fault) : advance_short(fault);
  }
  // All lanes finished, and no link refers to the buffers any more?
  bool retired() const;
  int lanes() const { return static_cast<int>(plan_->program.lanes.size()); }
  const Plan& plan() const { return *plan_; }
  uint32_t sequence() const { return contract_.sequence; }
  const Contract& contract() const { return contract_; }
  // The peer that the run waits for first, or -1.
  int waits_for() const;
  // Where the arrival that it waits for shows, if that is all it waits for.
  transport::Watch watch() const;
  uint32_t place() const { return plan_ != nullptr ? plan_->place : 0; }
  std::string describe() const override;

  std::array<Run*, 4> next{};  // queue links of the domain, one per lane
  int lanes_left = 0;
  uint64_t touched_bytes = 0;  // that the executor itself read or wrote, the transports apart
  // What the codes of earlier calls have missed, one for each element of the input; null: it is dropped. Set before
  // the run starts; given back with the run.
  std::shared_ptr<float> missed;

 private:
  struct Cursor {
    uint32_t pass = 0;
    uint32_t move = 0;
    bool entered = false;
    uint16_t ready = 0;      // inputs of the current tile that have arrived
    bool elsewhere = false;  // one of these lies in its sender's memory
    uint64_t done = 0;       // bytes of the current move and pass
    program::Stretch stretch;
    // Of the inputs, most_inputs of each: what came by link, and where all of them lie.
    transport::Arrival* arrivals = nullptr;
    const void** sources = nullptr;
  };

  void recycle() override;
  bool step(Cursor& c, const program::Move& move, size_t bytes, Fault* fault, bool* blocked);
  bool step_coded(Cursor& c, const program::Move& move, size_t bytes, Fault* fault, bool* blocked);
  bool take_inputs(Cursor& c, const program::Move& move, size_t bytes, size_t code_bytes, Fault* fault,
                   bool* blocked);
  void bind(const std::shared_ptr<const Plan>& plan);
  bool play(const ShortMove& move, Cursor& c, Fault* fault);
  bool play_other(Cursor& c, size_t bytes, Fault* fault);
  Advance advance_short(Fault* fault);
  Advance advance_long(int lane, Fault* fault);
  void note_issued(int lane);
  void expect(int lane, const Cursor& c);
  // Is it what the contract and the program expect? False: *fault says what it is.
  bool check_arrival(const transport::Arrival& a, const transport::Link* link, bool first, size_t bytes,
                     Fault* fault) const;
  bool refuse_arrival(const transport::Arrival& a, int peer, bool first, size_t bytes, Fault* fault) const;
  int peer_of(const transport::Link* link) const;
  void fold(std::byte* to, const void** sources, int inputs, size_t bytes, bool complete);
  bool fetch_sources(Cursor& c, const program::Move& move, size_t bytes, Fault* fault);
  bool fetch(transport::Link* link, std::byte* to, Cursor& c, Fault* fault);
  bool confirm_sources(const transport::Arrival* arrivals, const program::Move& move, Fault* fault);
  bool confirm(transport::Link* link, Fault* fault);
  std::byte* address(const program::Operand& op, uint64_t offset, uint64_t scratch_offset) const;
  void copy(std::byte* to, const std::byte* from, size_t bytes);
  void send(transport::Link* link, const std::byte* data, size_t bytes, bool stable,
            const transport::Preamble* preamble);

  std::shared_ptr<const Plan> plan_;
  std::array<std::byte*, 3> memory_{};  // by Where: input (never written), output, scratch
  bool in_place_ = false;               // input and output overlap
  std::vector<std::byte> scratch_;
  std::vector<std::byte> kept_;
  std::vector<std::byte> bounce_;  // payloads that had to be fetched before they could be reduced
  Contract contract_;
  transport::Preamble preamble_;  // of contract_
  int shift_ = 0;                 // log2 of the element's size
  std::array<Cursor, 4> cursors_;
  std::vector<transport::Arrival> arrivals_;
  std::vector<const void*> sources_;  // as arrivals_
  std::vector<kernels::Term> terms_;  // of one coded move
  std::vector<uint32_t> events_, waits_;
  std::vector<uint64_t> issued_;  // by link: puts when this run's lane ended, if not all were retired then; else 0
  bool referred_ = false;         // some of these are not 0
};

inline std::byte* Run::address(const program::Operand& op, uint64_t offset, uint64_t scratch_offset) const {
  using program::Where;
  static_assert(static_cast<int>(Where::kInput) == 0 && static_cast<int>(Where::kOutput) == 1 &&
                static_cast<int>(Where::kScratch) == 2);
  const bool reused = op.where == Where::kScratch && (op.flags & program::kFullSize) == 0;
  return memory_[static_cast<size_t>(op.where)] + op.base + (reused ? scratch_offset : offset);
}

inline bool Run::check_arrival(const transport::Arrival& a, const transport::Link* link, bool first, size_t bytes,
                               Fault* fault) const {
  if (first ? a.preamble != nullptr && *a.preamble == preamble_ && a.bytes == bytes
            : a.preamble == nullptr && a.bytes == bytes) {
    return true;
  }
  return refuse_arrival(a, peer_of(link), first, bytes, fault);
}

}  // namespace ringfold::exec
