// Passes of a replica whose layers lie on the ranks of a pipeline: a rank's part of a batch is cut into
// micro-batches, and any of the pipeline schedules says who computes what when. Costs libtorch's headers.
#pragma once

#include <memory>
#include <span>

#include "ringfold/pipeline_runner.h"
#include "train/args.h"
#include "train/passes.h"
#include "train/stages.h"

namespace ringfold::train {

class PipelinedPasses final : public Passes {
 public:
  // Collective over `job`, all ranks that train. Of the model this rank's layers are made, on the ranks of `tensor`
  // where that is not null. `replicas`: that share a batch. `pipeline` must outlive it. kInvalid, on all ranks: a
  // schedule, numbers of micro-batches or of layers that do not fit.
  static Result<std::unique_ptr<Passes>> make(Communicator& job, Communicator& pipeline, TensorGroup* tensor,
                                              const Dataset& data, const Args& args, int replicas);

  // The loss is known on the rank of the last stage, and 0 on the others; so are scores.
  Result<double> learn(std::span<const uint32_t> samples, double divisor) override;
  bool knows_losses() const override { return has(schedule_.stages() - 1); }
  Result<Score> test(sync::Part part) override;
  double waited_s() const override { return Passes::waited_s() + idle_s_; }
  void describe(StartEvent& event) const override;
  Result<std::optional<pipeline::Timing>> timeline() override;

 private:
  // What the stages ask for during a step.
  struct Turn {
    at::Tensor inputs, targets;
    std::vector<sync::Part> parts;  // by micro-batch
    double divisor = 1;
    std::function<void(int stage)> complete;
    at::Tensor cut(const at::Tensor& whole, int micro_batch) const;
  };
  PipelinedPasses(std::shared_ptr<Model> model, const Dataset& data, Communicator& comm, pipeline::Schedule schedule,
                  std::vector<size_t> cuts);
  void tell(int stage);
  bool has(int stage) const { return schedule_.rank_of[static_cast<size_t>(stage)] == comm_.rank(); }

  Communicator& comm_;
  const pipeline::Schedule schedule_;
  const std::vector<size_t> cuts_;  // the first layer of each stage
  std::unique_ptr<Turn> turn_;
  std::unique_ptr<ChainStages> stages_;
  std::unique_ptr<pipeline::Runner> runner_;
  double idle_s_ = 0, telling_s_ = 0;
  int steps_ = 0;
};

}  // namespace ringfold::train
