// Strategy: one way of keeping the ranks' models together. The training loop is the same for all of them; what they
// differ in is when parameters and gradients travel, and whose gradients a rank's next step has seen:
//
//   lockstep.h    ssgd, zero1     every step is the step of one rank with the whole batch
//   local_sgd.h   local, diloco   ranks step alone, and meet every H steps
//   asgd.h        asgd            nobody waits for anybody, up to a bound; shards of the model lie on all ranks
//
// A loop is
//   start(initial parameters are written)
//   for each epoch:
//     begin_epoch(steps)
//     while (task = next()):                      gradients are zero, parameters those to differentiate at
//       ... add the gradient of the task's samples into gradient(p), ready(p) for each p ...
//       step({lr, ...})
//     merge(last)                                 parameters are the common model, the same bits on all ranks
//
// It is all flat f32: a strategy knows nothing of layers, samples or libtorch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ringfold/communicator.h"
#include "ringfold/memory.h"
#include "sync/bucket.h"
#include "sync/state.h"

namespace ringfold::sync {

// Part `part` of `parts` of the epoch's global batch number `step` (shard.h).
struct Task {
  size_t step = 0;
  int part = 0;
  int parts = 1;
};

// How a gradient must be scaled: as a part of the mean over the global batch (the sum over its parts is the mean), or
// as the mean over the task's own samples.
enum class Scale : uint8_t { kGlobalMean, kOwnMean };

struct StepInfo {
  double lr = 0;
  double loss = 0;     // sum over the task's samples, for losses()
  size_t samples = 0;  // of the task; 0: no gradient, nothing was added
};

// What a strategy has done so far, on this rank.
struct StrategyStats {
  double exposed_s = 0;     // the caller was held up
  double in_flight_s = 0;   // calls were under way (equal to exposed_s where nothing overlaps)
  uint64_t bytes = 0;       // of values or codes given to collectives and messages
  uint64_t sent_bytes = 0;  // of those, what this rank sends to others, where all_reduce of M bytes is 2 M (n-1)/n
  // staleness[k]: updates whose gradient was computed k updates before it was applied. Of all ranks, on rank 0; on
  // the others empty or their own.
  std::vector<uint64_t> staleness;
};

// Threads: one at a time; the communicator must outlive it, and all ranks make their other calls on it between
// step() and next(), at places where all of them are: after merge(), or if in_step() after any step.
class Strategy {
 public:
  virtual ~Strategy() = default;
  Strategy(const Strategy&) = delete;
  Strategy& operator=(const Strategy&) = delete;

  // The memory of parameter p, and of its gradient. Fixed for the strategy's life.
  std::span<float> parameter(size_t p) { return {parameters_.get() + slots_[p].offset, slots_[p].elems}; }
  std::span<float> gradient(size_t p) { return {gradients_ + slots_[p].offset, slots_[p].elems}; }
  // Where it is to be made, on a device; null: in gradient(p).
  virtual float* device_gradient(size_t p) { return (void)p, nullptr; }
  size_t parameters() const { return slots_.size(); }
  // All parameters together, without gaps.
  size_t elems() const { return elems_; }

  // Collective. What rank 0 has written to its parameters becomes everybody's; all other state begins anew.
  virtual Status start() = 0;
  // Collective. `steps` global batches; the first `from` of them are done (a run that goes on in an epoch).
  virtual Status begin_epoch(size_t steps, size_t from = 0) = 0;
  // What to compute next; nothing: this rank has no more to do in the epoch. May wait.
  virtual Result<std::optional<Task>> next() = 0;
  // Parameter p's gradient is complete; optional.
  virtual void ready(size_t p) { (void)p; }
  virtual Status step(const StepInfo& info) = 0;
  // Collective. `last`: no epoch follows, so what ranks still hold apart is merged.
  virtual Status merge(bool last) = 0;

  // Where other ranks hold other parts of the model, and have to make every update with this one: `agree`, collective
  // over all of them, is called when this rank has what it takes for an update, and before it is made. So if one rank
  // has made it, all others can. Before the first step; kUnavailable: not with this strategy.
  virtual Status agree_by(std::function<Status()> agree);
  // Makes the update that agree() has failed before, of a step that others have made; false: there is none.
  virtual bool catch_up() { return false; }

  // Of asgd: another bound, in steps, from the next begin_epoch on; after merge(false), alike on all ranks. Not to
  // and from 0. Others have none.
  virtual void set_staleness(uint64_t steps) { (void)steps; }

  virtual Scale scale() const { return Scale::kGlobalMean; }
  // All ranks make the same steps at the same time, so they may make other calls on the communicator after any step.
  virtual bool in_step() const { return true; }
  // Every step leaves the same bits on all ranks; otherwise merge() does.
  virtual bool replicated() const { return false; }
  // Global steps of the epoch that are done, as far as this rank knows; the same on all ranks where they step at the
  // same time.
  virtual size_t steps_done() const = 0;
  // Sum of losses and samples since the last call, over all ranks; at rank 0. Collective, except for asgd, where
  // rank 0 knows (and others get zeros).
  struct Losses {
    double loss = 0;
    double samples = 0;
  };
  virtual Result<Losses> losses() = 0;

  // Ends what is under way on all ranks, with a verdict that names this one.
  virtual void abort(const std::string& cause) { comm_.abort(cause); }

  virtual StrategyStats stats() const = 0;
  // What one step's gradients are on the way (on average), and in how many calls.
  virtual uint64_t bytes_per_step() const = 0;
  virtual size_t buckets() const { return 1; }

  // For checkpoints (state.h), where other calls may be made, too. save adds this rank's share; load is given the
  // shares of all ranks of the run that saved, whatever their number. Neither makes calls. After load comes
  // begin_epoch, without start. "parameters" is in all strategies the model.
  virtual void save(State& state) = 0;
  virtual Status load(const State& state) = 0;
  // For going on with other ranks, or other settings, and no checkpoint: what all ranks had in common when they last
  // had the same, all of it. That was undone() of this rank's steps ago: right now where ranks step together, at
  // their last meeting where they step alone. kUnavailable: this rank knows a part only.
  virtual Status save_replica(State& state);
  virtual uint64_t undone() const { return 0; }
  // Is there such a state? Not before start() or load().
  virtual bool holds() const { return true; }
  // Does that state have what merge(true) does behind it? Then it is not done again.
  virtual bool merged() const { return false; }
  // What this rank alone had at that moment; a rank without it begins with what is common.
  virtual void save_own(State& state) { (void)state; }
  // Collective on `comm`, the communicator of those that go on: what load() of a new strategy takes. `has`: this rank
  // was there before, and had made `steps` of the run; another has just joined, and its strategy holds nothing.
  // `steps` becomes how many are behind all. Here it is save_replica() of the rank that had come furthest (the lowest
  // of several), and save_own() of this one where that had come as far, with this rank's error feedback. kUnavailable
  // as save_replica.
  virtual Result<State> collect(Communicator& comm, bool has, uint64_t* steps);
  // The communicator's, when it was made.
  uint32_t epoch() const { return epoch_; }
  // Of a strategy that goes on after others: what became of what lost ranks had, for people; may be "".
  virtual std::string account() const { return {}; }

 protected:
  struct Slot {
    size_t offset = 0;
    size_t elems = 0;
    size_t dense = 0;  // where it begins in the parameters without gaps
  };
  explicit Strategy(Communicator& comm) : comm_(comm), epoch_(comm.epoch()) {}

  // One after another without gaps, or at given offsets; allocates the parameters, `room` elements.
  Status lay_out(std::span<const size_t> counts, std::span<const size_t> offsets = {}, size_t room = 0);
  std::span<float> all_parameters() { return {parameters_.get(), room_}; }
  Status broadcast_parameters();
  Result<Losses> reduce_losses();
  void count_loss(const StepInfo& info) {
    since_.loss += info.loss;
    since_.samples += static_cast<double>(info.samples);
  }
  // Memory with the parameters' layout, of which this rank has [begin, end): to and from the state, in dense order.
  void save_range(State& state, const std::string& name, std::span<const float> memory, size_t begin,
                  size_t end) const;
  Status load_range(const State& state, const std::string& name, std::span<float> memory, size_t begin,
                    size_t end) const;
  // Error feedback of the communicator. Each rank saves its own; with fewer ranks those that are left take over what
  // the others held back, so nothing is lost.
  static void save_feedback(Communicator& comm, State& state);
  static Status load_feedback(Communicator& comm, const State& state);
  // Everybody's bytes, by rank. Collective.
  static Result<std::vector<std::string>> gather(Communicator& comm, const std::string& mine);
  double sent(double passes, uint64_t bytes) const {
    return passes * static_cast<double>(bytes) * (comm_.size() - 1) / comm_.size();
  }

  Communicator& comm_;
  const uint32_t epoch_;
  std::vector<Slot> slots_;
  size_t elems_ = 0, room_ = 0;
  Buffer<float> parameters_;
  float* gradients_ = nullptr;
  Losses since_;
};

// Collective among those that go on after a verdict on `comm`: it becomes their communicator, and `strategy` one that
// make() makes on it, with the newest state of any (Strategy::collect). `steps`: how many of the run this rank had
// made; what is returned is how many are behind all of them now: fewer, where ranks go back to where all had the
// same. Ranks that are lost meanwhile are left out, too. It returns when all have that state. Then comes begin_epoch.
// On a rank that has just joined `comm`, `strategy` is null. Not ok: as Communicator::reconfigure (kDenied: the
// others went on without this rank) and save_replica; `strategy` is as it was, or null. Where only a communicator
// made of `comm` has failed, `comm` is ended, too.
Result<uint64_t> recover(Communicator& comm, std::unique_ptr<Strategy>& strategy,
                         const std::function<Result<std::unique_ptr<Strategy>>(Communicator&)>& make, uint64_t steps);

}  // namespace ringfold::sync
