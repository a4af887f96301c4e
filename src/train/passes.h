// What the training loop needs of a model: its tensors as views of the strategy's memory, forward and backward passes
// of a rank's samples, tests. Costs libtorch's headers.
//
// The loss that a rank differentiates is the sum over its samples divided by what the loop says: the size of the
// *global* batch (or of its own part, where ranks step alone). So the sum of the gradients over ranks is the gradient
// of the global mean, whatever the sizes of the parts.
#pragma once

#include <torch/csrc/autograd/function.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ringfold/pipeline.h"
#include "sync/shard.h"
#include "sync/strategy.h"
#include "train/about.h"
#include "train/dataset.h"
#include "train/device.h"
#include "train/holding.h"
#include "train/model.h"
#include "train/report.h"
#include "train/strategies.h"

namespace ringfold::train {

// This one is for ranks that have all layers, or parts of all layers; pipelined.h for those that have some.
//
// Threads: one at a time. Model and data outlive it; so does the strategy that it is bound to, until it is bound to
// another or goes. Throws what libtorch and TensorGroup throw.
class Passes {
 public:
  // `device`: where the model computes, with parameters and gradients of its own; nothing: on the host, in the
  // strategy's memory.
  Passes(std::shared_ptr<Model> model, const Dataset& data, std::optional<c10::Device> device = std::nullopt);
  virtual ~Passes();
  Passes(const Passes&) = delete;
  Passes& operator=(const Passes&) = delete;

  const std::vector<ParameterShape>& shapes() const { return shapes_; }
  // Of the whole model, whatever part of it this rank has; and which part that is.
  size_t parameters_of_model() const;
  Holding holding() const;
  // What there is to tell of how a replica computes.
  virtual void describe(StartEvent&) const {}

  // The parameters become views of the strategy's memory, and keep what that holds; backward adds gradients into its
  // memory and tells it which are complete.
  void bind(sync::Strategy& strategy);
  // For a strategy that is bound next.
  std::shared_ptr<sync::DeviceGradients> device_gradients() const;
  // Before bind: the initial values, into the strategy's memory.
  void write_to(sync::Strategy& strategy) const;
  // Collective over the model's tensor group: what all its ranks hold becomes what its first rank holds.
  Status share_in_group();

  // Memory for so many samples at a time.
  void make_room(size_t samples);
  // Forward and backward: adds the gradient of (sum of the samples' losses / divisor). The sum of the losses; of a
  // pipeline's ranks one has it, and the others 0.
  virtual Result<double> learn(std::span<const uint32_t> samples, double divisor);
  virtual bool knows_losses() const { return true; }
  // The same of the first training samples, telling nobody.
  Status rehearse(size_t samples);

  struct Score {  // sums over samples and targets; of a pipeline's ranks, on one
    double right = 0, loss = 0;
  };
  virtual Result<Score> test(sync::Part part);
  // Collective over the replica's pipeline, after the last step: what its ranks did in some of the last steps;
  // nothing: there is none.
  virtual Result<std::optional<pipeline::Timing>> timeline() { return std::optional<pipeline::Timing>(); }
  // Held up by the other ranks of this replica, in learn().
  virtual double waited_s() const { return model_->group ? model_->group->waited_s() : 0; }

  // Of all parameters of this rank, and of those that all ranks of a tensor group hold.
  uint64_t hash() const;
  uint64_t shared_hash() const;

  // Collective over the ranks of the replica: all parameters, whole, one after another.
  void copy_parameters(std::vector<float>& out) const;
  // The same, into a file, on the rank that `writes`. kIo.
  Status save(const std::string& path, About about, bool writes) const;

 protected:
  const Model& model() const { return *model_; }
  const Dataset& data() const { return data_; }
  Batch& batch() { return batch_; }
  sync::Strategy& strategy() { return *strategy_; }
  size_t test_batch() const;

 private:
  void complete(size_t p);
  void load_parameters() const;

  const std::shared_ptr<Model> model_;
  const Dataset& data_;
  std::vector<torch::Tensor> parameters_;
  std::vector<ParameterShape> shapes_;
  sync::Strategy* strategy_ = nullptr;
  const std::optional<c10::Device> device_;
  bool telling_ = true;
  // They own the hooks: a dropped accumulator is a lost hook.
  std::vector<std::shared_ptr<torch::autograd::Node>> accumulators_;
  Batch batch_;
};

}  // namespace ringfold::train
