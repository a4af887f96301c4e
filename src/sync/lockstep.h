// The synchronous strategies: every step is the step that one rank would take with the whole batch.
//
// Ssgd: each rank has the gradients of its part of the batch; their sum goes to all (in buckets, while backward goes
// on, or as products of thin matrices), and all make the same update. Optimiser state: everything on every rank.
//
// Zero1 (Rajbhandari et al. 2020, stage 1): the sum of a bucket is only made where it is needed: reduce_scatter gives
// rank r block r of each bucket; it updates that block, with its share of the optimiser's state, and all_gather
// brings the parameters together. An all_reduce is a reduce_scatter and an all_gather, so the same bytes travel; a
// rank keeps 1/n of the state and does 1/n of the updates. What is lost is a little overlap: parameters can only be
// gathered after backward. The sums have the bits of all_reduce where the communicator is deterministic, and are the
// same within rounding otherwise. With a codec the parameters stay exact: only gradients travel as codes.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "sync/bucket.h"
#include "sync/optimizer.h"
#include "sync/power_sgd.h"
#include "sync/strategy.h"

namespace ringfold::sync {

class Lockstep : public Strategy {
 public:
  Status start() override;
  Status begin_epoch(size_t steps, size_t from) override;
  Result<std::optional<Task>> next() override;
  Status merge(bool) override { return {}; }
  bool replicated() const override { return true; }
  size_t steps_done() const override { return done_; }
  Result<Losses> losses() override { return reduce_losses(); }

 protected:
  using Strategy::Strategy;
  virtual void begin_gradients() = 0;
  void count_update() { ++updates_; }
  size_t steps_ = 0, done_ = 0;
  uint64_t updates_ = 0;
};

class Ssgd : public Lockstep {
 public:
  // Gradients in buckets; `buckets.op` is ignored: gradients are summed. kInvalid as BucketReducer::make.
  static Result<std::unique_ptr<Strategy>> make(Communicator& comm, std::span<const size_t> counts,
                                                const OptimizerOptions& optimizer, const BucketOptions& buckets = {},
                                                const std::vector<bool>& plain = {});
  // Gradients as products of thin matrices.
  static Result<std::unique_ptr<Strategy>> make(Communicator& comm, std::span<const PowerSgdTensor> tensors,
                                                const OptimizerOptions& optimizer, const PowerSgdOptions& power);
  void ready(size_t p) override;
  float* device_gradient(size_t p) override { return reducer_ ? reducer_->device_gradient(p) : nullptr; }
  Status step(const StepInfo& info) override;
  Status agree_by(std::function<Status()> agree) override;
  bool catch_up() override;
  StrategyStats stats() const override;
  uint64_t bytes_per_step() const override;
  size_t buckets() const override { return power_ ? 1 : reducer_->buckets(); }
  void save(State& state) override;
  Status load(const State& state) override;
  // Products of thin matrices begin without errors left over, as after load on another number of ranks.
  Status save_replica(State& state) override;

 private:
  using Lockstep::Lockstep;
  void begin_gradients() override;
  void update(const StepInfo& info);
  void save_part(State& state, size_t begin, size_t end) const;
  const BucketTimes& times() const { return power_ ? power_->times() : reducer_->times(); }

  OptimizerOptions optimizer_options_;
  std::unique_ptr<BucketReducer> reducer_;  // or
  std::unique_ptr<PowerSgd> power_;
  Optimizer optimizer_;
  std::function<Status()> agree_;    // empty: nobody else has to
  std::optional<StepInfo> pending_;  // the gradients are summed, and the others not known to be as far
};

class Zero1 : public Lockstep {
 public:
  static Result<std::unique_ptr<Strategy>> make(Communicator& comm, std::span<const size_t> counts,
                                                const OptimizerOptions& optimizer, const BucketOptions& buckets = {},
                                                const std::vector<bool>& plain = {});
  void ready(size_t p) override { reducer_->ready(p); }
  float* device_gradient(size_t p) override { return reducer_->device_gradient(p); }
  Status step(const StepInfo& info) override;
  StrategyStats stats() const override;
  uint64_t bytes_per_step() const override { return reducer_->bytes(); }
  size_t buckets() const override { return reducer_->buckets(); }
  // Of the optimiser, on this rank.
  size_t state_elems() const { return state_elems_; }
  void save(State& state) override;
  Status load(const State& state) override;

 private:
  using Lockstep::Lockstep;
  void begin_gradients() override { reducer_->begin(); }
  template <typename Function>
  Status for_each_block(Function function) const;  // (index in the state, offset in the layout, elements)

  OptimizerOptions optimizer_options_;
  std::unique_ptr<BucketReducer> reducer_;
  Optimizer optimizer_;
  size_t state_elems_ = 0;
  double gather_s_ = 0;
  uint64_t gathered_bytes_ = 0;
};

}  // namespace ringfold::sync
