// LocalSgd: ranks step alone, and meet every H steps.
//
// Each rank trains a model of its own with its own optimiser. Every H steps the ranks average how far they have come
// from the common model, the *pseudo-gradient*, and the common model makes one step of SGD with Nesterov momentum
// along it (Douillard et al. 2023, DiLoCo):
//
//   d = average over ranks of (common - own);   v = m v + d;   common -= r (d + m v);   own = common
//
// With r = 1 and m = 0 the common model is the average: local SGD. Everything that is exchanged is one all_reduce of
// the parameters' size every H steps, and a codec with error feedback applies to it as to gradients. Inner state
// (momentum, Adam's moments) stays with its rank.
//
// Fragments (Douillard et al. 2025, Streaming DiLoCo): the parameters are cut into F parts that meet in turn, H/F
// steps apart, so that the peak rate is F times lower. With `overlap` t the average travels while t more steps are
// made, and what these have changed is mixed in: own = mix own + (1 - mix) common. (Somebody has to drive the calls:
// the background thread, or this object, a little, at each step.)
#pragma once

#include <memory>
#include <vector>

#include "sync/optimizer.h"
#include "sync/strategy.h"

namespace ringfold::sync {

struct LocalOptions {
  OptimizerOptions inner;
  uint64_t local_steps = 20;  // H
  double outer_lr = 1;        // r; DiLoCo: 0.7
  double outer_momentum = 0;  // m; DiLoCo: 0.9
  size_t fragments = 1;       // F, at most H
  uint64_t overlap = 0;       // t, below H
  double mix = 0;             // of [0, 1]; with overlap, usually 0.5
  Codec codec = {};           // of pseudo-gradients
  bool feedback = true;       // with a lossy codec: what it missed is added the next time
  // At every meeting a rank keeps what it then had, so that the run can go on from there when a rank is lost on the
  // way to the next. Costs its model, the common one and all optimisers' state once more.
  bool keep_meetings = false;
};

class LocalSgd : public Strategy {
 public:
  // kInvalid: options outside their ranges.
  static Result<std::unique_ptr<Strategy>> make(Communicator& comm, std::span<const size_t> counts,
                                                const LocalOptions& options);
  ~LocalSgd() override;

  Status start() override;
  Status begin_epoch(size_t steps, size_t from) override;
  Result<std::optional<Task>> next() override;
  Status step(const StepInfo& info) override;
  // Not `last`: the parameters are the common model until next(), as it was after the last meeting.
  Status merge(bool last) override;
  Scale scale() const override { return Scale::kOwnMean; }
  size_t steps_done() const override { return done_; }
  Result<Losses> losses() override { return reduce_losses(); }
  StrategyStats stats() const override;
  uint64_t bytes_per_step() const override;
  size_t buckets() const override { return fragments_.size(); }
  void save(State& state) override;
  Status load(const State& state) override;
  // As they were at the last meeting, with its average: what a rank has done alone since then died with it, or is
  // done again.
  Status save_replica(State& state) override;
  uint64_t undone() const override { return made_ - kept_.made; }
  bool holds() const override { return !options_.keep_meetings || kept_.common.size() == elems_; }
  bool merged() const override { return kept_.merged; }
  void save_own(State& state) override;

 private:
  struct Fragment {
    size_t begin = 0;
    size_t elems = 0;
    uint64_t phase = 0;  // it meets when (steps + phase) % H == 0
    uint64_t bytes = 0;  // as it travels
    std::string name;    // of its error feedback
    bool in_flight = false;
    uint64_t lands_at = 0;
    Work work;
  };
  LocalSgd(Communicator& comm, const LocalOptions& options) : Strategy(comm), options_(options) {}
  // What was when an average departed: whatever a rank did until then is in it. Kept from when it has landed.
  struct Meeting {
    uint64_t made = 0;
    bool merged = false;
    std::vector<float> common, velocity, own;
    Optimizer inner;
    uint64_t updates = 0;
  };
  void keep_own(Meeting& meeting) const;
  void depart(Fragment& f);
  Status land(Fragment& f, double mix);
  void keep();
  void keep_departed(const Fragment& landed);
  Status load_kept(const State& state);
  void show_own();

  LocalOptions options_;
  std::vector<Fragment> fragments_;
  Optimizer inner_;
  Buffer<float> own_gradients_, delta_;
  std::vector<float> common_, velocity_, own_;  // own_: put aside while the parameters show the common model
  bool shows_common_ = false;
  bool merged_ = false;      // for good: the run is over
  Meeting kept_, departed_;  // departed_: of the average on its way, without what will land
  uint64_t made_ = 0;        // steps, of the run
  size_t steps_ = 0, done_ = 0;
  double exposed_s_ = 0;
  uint64_t bytes_ = 0, updates_ = 0;
};

}  // namespace ringfold::sync
