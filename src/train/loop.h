// The training loop, the same for all ways to keep ranks together (sync/strategy.h). The strategy owns parameters and
// gradients; the model's tensors are views of its memory. A step is
//
//   next() says which samples -> forward, backward into the gradients -> step() makes the parameters of the next step
//
// Where replicas must be bitwise equal that is checked, not assumed. Between steps an agent may change settings, and
// after a verdict the ranks that are left may go on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ringfold/communicator.h"
#include "ringfold/pipeline.h"
#include "sync/mesh.h"
#include "sync/shard.h"
#include "sync/strategy.h"
#include "train/agent.h"
#include "train/args.h"
#include "train/dataset.h"
#include "train/report.h"
#include "train/save_points.h"

namespace ringfold::train {

class Passes;

// Who this rank trains with. What is referred to is replaced when ranks are lost.
struct Axes {
  Communicator& job;                         // all ranks that train
  sync::MeshCommunicators* parts = nullptr;  // null: every rank has the whole model
  // Those that hold the same part of the model as this one.
  Communicator& data() const { return parts ? parts->data : job; }
  // Those that hold the other layers; null: this rank has all layers.
  Communicator* pipeline() const { return parts && parts->mesh.lengths().pipeline > 1 ? &parts->pipeline : nullptr; }
  // Those that hold the other parts of its layers; null: this rank has whole ones.
  Communicator* tensor() const { return parts && parts->mesh.lengths().tensor > 1 ? &parts->tensor : nullptr; }
};

class Loop {
 public:
  // Of this rank's part of the model. Collective over all axes.
  using MakePasses = std::function<Result<std::unique_ptr<Passes>>(const Args& args)>;
  // `writes`: this rank writes files, for the whole job.
  Loop(const Axes& axes, MakePasses make_passes, const Args& args, const Dataset& data, Reporter& reporter,
       bool writes);
  ~Loop();

  // Collective, before all others.
  Status prepare();
  // Seconds of forward and backward of so many samples; instead of training. On ranks that have the whole model.
  double measure(size_t samples);
  // Collective, instead of training: seconds a step, over so many after one to warm up.
  Result<double> measure_steps(size_t steps);
  size_t elems() const { return strategy_->elems(); }
  // Before run(): `agent` watches it and may change how it goes on.
  Status watched_by(Agent agent);
  Result<Summary> run();
  // Collective, as layers and their parts are put together.
  void copy_parameters(std::vector<float>& out) const;

 private:
  static double now_s();

  // Epochs and steps.
  Status train_until_a_loss(Summary& summary, std::optional<pipeline::Timing>& timeline);
  Status train_on(Summary& summary);
  Status train_steps();
  Status end_round(Summary& summary);
  size_t end_of_round(size_t step) const;
  Status compute(const sync::Task& task, sync::StepInfo& info);
  void slow_down(double begin_s) const;
  Status end_epoch(Summary& summary, double begin_s);
  Status test(double* accuracy, double* loss);
  Status check_replicas();
  Status check_equal(Communicator& comm, uint64_t hash) const;
  Status sum_over_stages(double* sums, size_t count);
  std::unique_ptr<SavePoints> make_save_points(size_t saved_at);
  size_t steps_of_run() const { return shard_->steps() * static_cast<size_t>(args_.epochs); }
  size_t next_test(size_t step) const;
  bool reached(const Summary& summary) const;
  size_t steps_before() const { return shard_->steps() * static_cast<size_t>(epoch_ - 1); }
  size_t steps_done() const { return steps_before() + strategy_->steps_done(); }
  Progress progress() const;

  // What is told.
  Status log_step();
  Status share_times(size_t done, size_t steps);
  Status share_staleness(std::vector<uint64_t>& late);
  Status meet();
  Status share_figures(Summary& summary);
  sync::StrategyStats stats() const;
  double exposed_s() const;
  Status save(const Summary& summary) const;
  Status open_record();
  void record(size_t step, std::span<const uint32_t> samples);

  // What changes while it runs.
  Status make_room();
  Status change_to(const Settings& settings);
  Status remake_passes();
  void drop_passes();
  bool goes_on_after(const Status& failed) const;
  Status go_on(const Status& why);
  Result<uint64_t> recover(uint64_t steps);
  Result<std::unique_ptr<sync::Strategy>> new_strategy(Communicator& comm);
  Status join();
  void ask_for_those_who_wait();
  Status share_settings(Communicator& comm);
  Result<std::vector<int>> share_place();

  const Axes axes_;
  Communicator& comm_;  // axes_.data()
  const MakePasses make_passes_;
  Args args_;  // the agent changes them
  const Dataset& data_;
  Reporter& reporter_;
  bool writes_;
  std::optional<sync::DataShard> shard_;
  std::unique_ptr<sync::Strategy> strategy_;
  std::unique_ptr<Passes> passes_;  // on the strategy's memory
  std::unique_ptr<SavePoints> save_points_;
  sync::StrategyStats before_;  // of the strategies before this one
  double waited_before_s_ = 0;  // of the passes before these
  std::optional<Agent> agent_;
  uint64_t hash_ = 0;
  int epoch_ = 1;
  size_t until_ = 0;  // steps of the epoch that end_epoch or a test comes after
  struct Learned {    // in the epoch so far, by this rank, as far as it knows losses
    double loss = 0;  // sum over samples
    double samples = 0;
  } learned_;
  std::deque<Learned> learned_before_;     // back to when all ranks last had the same
  size_t told_ = 0;                        // the last step of which the log has a line
  size_t saved_at_ = 0;                    // while there are no save_points_
  std::vector<int> ranks_;                 // of an elastic run, as the job numbers them
  uint64_t changes_ = 0;                   // of these
  std::vector<int> left_over_;             // at the last one; this rank, if it is among them
  size_t ask_at_ = 0, asked_in_vain_ = 0;  // rank 0: when to look for who waits
  std::ofstream record_;                   // --record-samples
  StartEvent start_;
  double run_began_s_ = 0;
  size_t trained_ = 0;  // steps, of all ranks together
  Position begun_at_;   // where this run goes on
  bool begun_ = false;  // since then the strategy has begun an epoch
  bool stop_ = false;
  bool late_ = false;  // --within is over
  bool member_ = true;
  // Of the run, on this rank, and as they were at the last log line.
  struct Spent {
    size_t steps = 0;
    double seconds = 0;
    double exposed_s = 0;
    double samples = 0;
    double loss = 0;  // sum over samples
  } spent_, logged_, shared_;
  size_t shared_at_ = 0;                    // the step that shared_ is of
  std::vector<uint64_t> staleness_shared_;  // rank 0, of asgd: as it was then
};

}  // namespace ringfold::train
