// The models, on libtorch. Including this costs half a minute of compile time: only few do.
//
// A model is a chain of layers: what one gives is what the next takes. A pipeline stage is a piece of the chain;
// parts of layers lie on the ranks of a tensor-parallel group (train/tensor.h). No layer mixes samples of a batch (so
// no batch normalisation): the gradient of a batch is the sum of its parts' gradients, whichever ranks they lie on.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "ringfold/status.h"
#include "train/about.h"
#include "train/dataset.h"
#include "train/tensor.h"

namespace ringfold::train {

// A parameter as a rank holds it: all of it, or its part along one dimension.
struct Parameter {
  std::string name;  // within the model: "3.out_weight"
  torch::Tensor local;
  int64_t split = -1;  // the dimension along which the ranks of the tensor group hold parts; -1: each holds all of it
};

// Which layers of a chain a rank makes; the others' parameters take no memory, but for a moment if they are drawn.
struct Wanted {
  std::function<bool(size_t layer)> here = [](size_t) { return true; };
  // Draws the others' random numbers, too, so that those of the layers here are the same as on a rank that has all.
  bool draw_others = true;
};

// Makes the parameters of a model, in the order of the chain, from one sequence of random numbers: whole, whoever
// keeps only a part, so that they are the same whatever the number of ranks. Ranks may be threads of one process, so
// the generator is not libtorch's global one.
class Builder {
 public:
  Builder(uint64_t seed, TensorGroup* group, Wanted wanted = {});
  // What comes now are the parameters of this layer. False: it is not wanted, and they will have no memory.
  bool begin(size_t layer) { return here_ = wanted_.here(layer); }
  // Uniform in [-bound, bound).
  torch::Tensor uniform(at::IntArrayRef whole, double bound, int64_t split = -1);
  torch::Tensor constant(at::IntArrayRef whole, double value, int64_t split = -1);
  TensorGroup* group() const { return group_; }

 private:
  torch::Tensor part_of(const torch::Tensor& whole, int64_t split) const;
  torch::Tensor absent(at::IntArrayRef whole, int64_t split) const;
  at::Generator generator_;
  TensorGroup* group_;
  Wanted wanted_;
  bool here_ = true;
};

class Layer : public torch::nn::Module {
 public:
  virtual torch::Tensor forward(const torch::Tensor& x) = 0;
  // The same in TorchScript: the body of `def forward(self, x: Tensor) -> Tensor`, parameters by their names as
  // self.NAME, for one rank that holds all of them.
  virtual std::string script() const = 0;
  // The dimensions of what it gives, f32, for one sample.
  virtual std::vector<int64_t> gives() const = 0;
  const std::vector<Parameter>& own_parameters() const { return own_; }

 protected:
  torch::Tensor add(const char* name, torch::Tensor value, int64_t split = -1);

 private:
  std::vector<Parameter> own_;
};

class Model : public torch::nn::Module {
 public:
  // [n, 1, 28, 28] f32 -> logits [n, 10], or [n, t] int64 -> logits [n, t, 256].
  torch::Tensor forward(torch::Tensor x) {
    for (const auto& layer : layers_) x = layer->forward(x);
    return x;
  }
  template <typename L, typename... Arguments>
  void append(Builder& builder, const Arguments&... arguments) {
    const bool here = builder.begin(layers_.size());
    add(std::make_shared<L>(builder, arguments...), here);
  }
  // In the order of the chain; null: it was not wanted here.
  const std::vector<std::shared_ptr<Layer>>& layers() const { return layers_; }
  // Of the layers that are here, in the order of parameters().
  std::vector<Parameter> all_parameters() const;
  TensorGroup* group = nullptr;  // whose ranks hold parts of the layers; null: this rank holds whole ones

  // A parameter of the chain, whichever ranks hold it.
  struct Form {
    std::string name;
    size_t layer = 0;
    std::vector<int64_t> whole;  // its dimensions
    int64_t split = -1;
    size_t elems() const;  // of the whole
  };
  const std::vector<Form>& forms() const { return forms_; }
  // What each layer gives, whichever rank has it.
  const std::vector<std::vector<int64_t>>& gives() const { return gives_; }
  // The layers that are not here are on `pipeline`'s other ranks: rank_of[i] has layer i.
  void lies_on(Communicator& pipeline, std::vector<int> rank_of) {
    pipeline_ = &pipeline;
    rank_of_ = std::move(rank_of);
  }
  // null: this rank has all layers.
  Communicator* pipeline() const { return pipeline_; }
  int rank_of(size_t layer) const { return rank_of_[layer]; }

 private:
  void add(std::shared_ptr<Layer> layer, bool here);
  std::vector<std::shared_ptr<Layer>> layers_;
  std::vector<Form> forms_;
  std::vector<std::vector<int64_t>> gives_;
  Communicator* pipeline_ = nullptr;
  std::vector<int> rank_of_;  // of the pipeline
};

// `spec` is valid (check()) for the group's size. Its parameters depend on spec and seed alone.
std::shared_ptr<Model> make_model(const ModelSpec& spec, uint64_t seed, TensorGroup* group = nullptr,
                                  Wanted wanted = {});

// Loss of logits against targets, the sum over all targets, in nats.
torch::Tensor loss_sum(const torch::Tensor& logits, const torch::Tensor& targets);
// How many of the targets have the largest logit.
double right_answers(const torch::Tensor& logits, const torch::Tensor& targets);

// Memory for one batch of samples, used again and again.
class Batch {
 public:
  Batch() = default;
  Batch(const Samples& like, size_t room);
  void fill(const Samples& from, std::span<const uint32_t> samples);
  // Of the last fill(). Views, which the next one overwrites.
  torch::Tensor inputs() const { return inputs_.narrow(0, 0, size_); }
  torch::Tensor targets() const { return targets_.narrow(0, 0, size_); }

 private:
  torch::Tensor inputs_, targets_;
  int64_t size_ = 0;
};

// All parameters of the chain, whole, in order. Collective over the model's tensor group and pipeline. Throws
// CommunicationError.
std::vector<torch::Tensor> whole_parameters(const Model& model);

// A file with the model's parameters and `about`. `parameters` as whole_parameters gives them. The name never stands
// for half a model: it is written beside and renamed. kIo when it cannot be.
Status save_model(const std::string& path, const Model& model, const std::vector<torch::Tensor>& parameters,
                  const About& about);
struct LoadedModel {
  std::shared_ptr<Model> model;
  About about;
};
// kIo, kInvalid with what is wrong with the file.
Result<LoadedModel> load_model(const std::string& path);

}  // namespace ringfold::train
