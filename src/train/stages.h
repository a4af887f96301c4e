// A chain of libtorch layers as the stages of a pipeline (ringfold/pipeline_runner.h). Costs libtorch's headers.
#pragma once

#include <torch/types.h>

#include <functional>
#include <map>
#include <span>
#include <vector>

#include "ringfold/pipeline_runner.h"

namespace ringfold::train {

// One layer of a chain: what one gives is what the next takes. Does not mix the samples of a batch, which are the
// first dimension.
struct ChainLayer {
  std::function<torch::Tensor(const torch::Tensor&)> forward;  // empty: it is on another rank
  std::vector<torch::Tensor> parameters;
  std::vector<int64_t> gives = {};  // of a layer that is not here: the dimensions of its output for one sample, f32
};
using Chain = std::vector<ChainLayer>;

// Cuts layers of these costs into `stages` pieces of neighbours so that the dearest piece is as cheap as can be;
// gives the first layer of each piece. Every piece has a layer. kInvalid with fewer layers than stages, or negative
// costs.
Result<std::vector<size_t>> balanced_cuts(std::span<const double> costs, int stages);
// Seconds that each layer takes for the forward and backward pass of `example`: the median of `rounds`. `by_input`:
// the first one's backward pass has a gradient of its input to make, too.
std::vector<double> measured_costs(const Chain& chain, const torch::Tensor& example, bool by_input, int rounds = 5);

// The stages of one rank. B and W are two calls of autograd: the second takes the way through the stage's layers
// again, as far as it needs to, so a stage of many layers pays for the split with a part of B. The first stage of the
// model has no B: all is done in W.
//
// Gradients are added to the parameters' grad(); no other gradients of theirs are touched. Exceptions of libtorch
// become kInternal.
class ChainStages final : public pipeline::Stages {
 public:
  struct Options {
    // Samples of a micro-batch, first dimension first: on the rank of the first stage.
    std::function<torch::Tensor(int micro_batch)> input;
    // The loss of a micro-batch, a scalar: on the rank of the last stage. Gradients are those of the sum of losses.
    std::function<torch::Tensor(const torch::Tensor& output, int micro_batch)> loss;
    // How many samples each micro-batch has, 0 or more; the same on all ranks of the pipeline, and throughout a step.
    std::function<int64_t(int micro_batch)> samples;
    // Called in every step when the gradients of a stage's parameters are those of all micro-batches; optional.
    std::function<void(int stage)> complete = {};
  };
  // Of the chain cut at `cuts`, those stages that the schedule puts on `rank`, whose layers must be here; the rest of
  // the chain is not kept.
  // `example`: one sample, from which the shapes between the stages follow. kInvalid for cuts that do not fit the
  // chain or the schedule, and for layers that do not hand on f32 or f64.
  static Result<std::unique_ptr<ChainStages>> make(const Chain& chain, const std::vector<size_t>& cuts,
                                                   const pipeline::Schedule& schedule, int rank,
                                                   const torch::Tensor& example, Options options);

  pipeline::Boundary boundary(int stage, int micro_batch) const override;
  Status forward(const pipeline::Pass& pass) override;
  Status backward_input(const pipeline::Pass& pass) override;
  Status backward_weight(const pipeline::Pass& pass) override;
  Status backward(const pipeline::Pass& pass) override;

  // Without gradients, outside a step: what one of this rank's stages makes of `x`; and memory for what leaves any.
  torch::Tensor infer(int stage, torch::Tensor x);
  torch::Tensor room(int stage, int64_t samples) const;

  // Since the last call: sum of the losses (0 but on the rank of the last stage); seconds of computing.
  double take_loss();
  double take_busy_s();
  // Of this rank's stages, in their order.
  const std::vector<torch::Tensor>& parameters() const { return parameters_; }

 private:
  struct Form {  // between two stages, of one sample
    std::vector<int64_t> sizes;
    torch::ScalarType type;
    int64_t elems() const;
  };
  struct Saved {  // from F to W
    torch::Tensor input, output;
  };
  explicit ChainStages(Options options) : options_(std::move(options)) {}
  torch::Tensor view(std::span<const std::byte> bytes, const Form& form, int micro_batch) const;
  Saved& saved(const pipeline::Action& action) { return saved_[{action.stage, action.micro_batch}]; }
  template <typename F>
  Status guarded(const pipeline::Action& action, F&& f);
  // Of the stage's output, by its input (if it has one that is wanted) and its parameters.
  Status differentiate(const pipeline::Pass& pass, bool by_input, bool by_parameters);

  const Options options_;
  int stages_ = 0, micro_batches_ = 0;
  std::vector<Form> forms_;                     // by stage: what leaves it
  std::map<int, Chain> layers_;                 // by stage, this rank's
  std::map<std::pair<int, int>, Saved> saved_;  // by stage and micro-batch
  std::vector<torch::Tensor> parameters_;
  std::map<int, int> weighed_;  // by stage: micro-batches that are in its gradients, in this step
  double loss_ = 0, busy_s_ = 0;
};

}  // namespace ringfold::train
