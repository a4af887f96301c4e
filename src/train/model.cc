#include "train/model.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/nn/functional/loss.h>
#include <torch/serialize.h>

#include <cmath>
#include <filesystem>

#include "train/transformer.h"

namespace ringfold::train {
namespace {

using torch::Tensor;

// Weights uniform with the variance that keeps a signal's size through a layer and its relu, biases zero.
Tensor weight_for_relu(Builder& b, at::IntArrayRef dims) {
  int64_t fan_in = 1;
  for (const int64_t d : dims.slice(1)) fan_in *= d;
  return b.uniform(dims, std::sqrt(6.0 / static_cast<double>(fan_in)));
}

class Linear : public Layer {
 public:
  Linear(Builder& b, int64_t in, int64_t out, bool relu)
      : weight_(add("weight", weight_for_relu(b, {out, in}))),
        bias_(add("bias", b.constant({out}, 0))),
        relu_(relu) {}
  std::vector<int64_t> gives() const override { return {bias_.size(0)}; }
  Tensor forward(const Tensor& x) override {
    const Tensor y = at::linear(x.flatten(1), weight_, bias_);
    return relu_ ? at::relu(y) : y;
  }
  std::string script() const override {
    const std::string y = "torch.linear(torch.flatten(x, 1), self.weight, self.bias)";
    return "return " + (relu_ ? "torch.relu(" + y + ")" : y);
  }

 private:
  Tensor weight_, bias_;
  bool relu_;
};

class Convolution : public Layer {
 public:
  // On images of side x side, of which it makes half the side.
  Convolution(Builder& b, int64_t in, int64_t out, int64_t side)
      : weight_(add("weight", weight_for_relu(b, {out, in, 3, 3}))),
        bias_(add("bias", b.constant({out}, 0))),
        side_(side) {}
  std::vector<int64_t> gives() const override { return {bias_.size(0), side_ / 2, side_ / 2}; }
  Tensor forward(const Tensor& x) override {
    // relu after pooling: the same, on a quarter of the elements
    return at::relu(at::max_pool2d(at::conv2d(x, weight_, bias_, 1, 1), 2));
  }
  std::string script() const override {
    return "return torch.relu(torch.max_pool2d(torch.conv2d(x, self.weight, self.bias, [1, 1], [1, 1]), [2, 2]))";
  }

 private:
  Tensor weight_, bias_;
  int64_t side_;
};

}  // namespace

Builder::Builder(uint64_t seed, TensorGroup* group, Wanted wanted)
    : generator_(at::detail::createCPUGenerator(seed)), group_(group), wanted_(std::move(wanted)) {}

Tensor Builder::part_of(const Tensor& whole, int64_t split) const {
  return group_ && split >= 0 ? own_part(whole, split, *group_) : whole;
}

Tensor Builder::absent(at::IntArrayRef whole, int64_t split) const {
  auto dims = whole.vec();
  if (group_ && split >= 0) dims[static_cast<size_t>(split)] /= group_->size();
  return at::empty(dims, at::kMeta);
}

Tensor Builder::uniform(at::IntArrayRef whole, double bound, int64_t split) {
  if (!here_) {
    if (wanted_.draw_others) at::empty(whole).uniform_(-bound, bound, generator_);
    return absent(whole, split);
  }
  return part_of(at::empty(whole).uniform_(-bound, bound, generator_), split);
}

Tensor Builder::constant(at::IntArrayRef whole, double value, int64_t split) {
  if (!here_) return absent(whole, split);
  return part_of(at::full(whole, value), split);
}

Tensor Layer::add(const char* name, Tensor value, int64_t split) {
  own_.push_back({name, register_parameter(name, std::move(value)), split});
  return own_.back().local;
}

size_t Model::Form::elems() const {
  size_t n = 1;
  for (const int64_t d : whole) n *= static_cast<size_t>(d);
  return n;
}

void Model::add(std::shared_ptr<Layer> layer, bool here) {
  const size_t index = layers_.size();
  for (const Parameter& p : layer->own_parameters()) {
    auto whole = p.local.sizes().vec();
    if (group && p.split >= 0) whole[static_cast<size_t>(p.split)] *= group->size();
    forms_.push_back({std::to_string(index) + "." + p.name, index, std::move(whole), p.split});
  }
  gives_.push_back(layer->gives());
  layers_.push_back(here ? register_module(std::to_string(index), std::move(layer)) : nullptr);
}

std::vector<Parameter> Model::all_parameters() const {
  std::vector<Parameter> all;
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (!layers_[i]) continue;
    for (Parameter p : layers_[i]->own_parameters()) {
      p.name = std::to_string(i) + "." + p.name;
      all.push_back(std::move(p));
    }
  }
  return all;
}

std::shared_ptr<Model> make_model(const ModelSpec& spec, uint64_t seed, TensorGroup* group, Wanted wanted) {
  at::NoGradGuard no_grad;
  Builder b(seed, group, std::move(wanted));
  auto model = std::make_shared<Model>();
  model->group = group;
  if (spec.kind == "mlp") {
    model->append<Linear>(b, 784, 256, true);
    model->append<Linear>(b, 256, 128, true);
    model->append<Linear>(b, 128, kClasses, false);
  } else if (spec.kind == "cnn") {
    model->append<Convolution>(b, 1, 16, 28);
    model->append<Convolution>(b, 16, 32, 14);
    model->append<Linear>(b, 32 * 7 * 7, 128, true);
    model->append<Linear>(b, 128, kClasses, false);
  } else {
    append_transformer(*model, b, spec);
  }
  return model;
}

Tensor loss_sum(const Tensor& logits, const Tensor& targets) {
  namespace functional = torch::nn::functional;
  return functional::cross_entropy(logits.flatten(0, -2), targets.flatten(),
                                   functional::CrossEntropyFuncOptions().reduction(torch::kSum));
}

double right_answers(const Tensor& logits, const Tensor& targets) {
  return logits.argmax(-1)
      .eq(targets.view(logits.sizes().slice(0, static_cast<size_t>(logits.dim() - 1))))
      .sum()
      .item<double>();
}

Batch::Batch(const Samples& like, size_t room) {
  auto dims = like.input_dims();
  dims.insert(dims.begin(), static_cast<int64_t>(room));
  inputs_ = at::empty(dims, like.is_text() ? at::kLong : at::kFloat);
  targets_ = at::empty({static_cast<int64_t>(room), static_cast<int64_t>(like.targets())}, at::kLong);
}

void Batch::fill(const Samples& from, std::span<const uint32_t> samples) {
  size_ = static_cast<int64_t>(samples.size());
  from.fill(samples, inputs_.data_ptr(), targets_.data_ptr<int64_t>());
}

std::vector<Tensor> whole_parameters(const Model& model) {
  at::NoGradGuard no_grad;
  std::vector<Tensor> whole;
  const auto here = model.all_parameters();
  auto next = here.begin();
  for (const Model::Form& form : model.forms()) {
    Tensor value = at::empty(0);
    if (model.layers()[form.layer]) {
      value = next++->local.detach().cpu();
      if (model.group && form.split >= 0) value = model.group->gather(value, form.split);
    }
    if (Communicator* comm = model.pipeline()) {
      value = model.layers()[form.layer] ? value.contiguous() : at::empty(form.whole);
      Status sent =
          comm->broadcast(value.data_ptr(), value.data_ptr(), form.elems(), DataType::kF32, model.rank_of(form.layer))
              .wait();
      if (!sent.ok()) throw CommunicationError(std::move(sent));
    }
    whole.push_back(std::move(value));
  }
  return whole;
}

Status save_model(const std::string& path, const Model& model, const std::vector<Tensor>& parameters,
                  const About& about) {
  torch::serialize::OutputArchive archive;
  archive.write("about", c10::IValue(to_json(about)));
  const auto& forms = model.forms();
  for (size_t i = 0; i < forms.size(); ++i) archive.write("parameter." + forms[i].name, parameters[i].contiguous());
  const std::string partial = path + ".part";
  std::error_code error;
  try {
    archive.save_to(partial);
  } catch (const std::exception& e) {  // libtorch's own error, or that of the stream below it
    std::filesystem::remove(partial, error);
    return Status(Code::kIo, "cannot write " + partial);
  }
  std::filesystem::rename(partial, path, error);
  if (error) return Status(Code::kIo, "cannot write " + path + ": " + error.message());
  return {};
}

Result<LoadedModel> load_model(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error))
    return Status(Code::kIo, "cannot read the model " + path + ": there is no such file");
  const auto bad = [&](const std::string& why) {
    return Status(Code::kInvalid, path + " is not a model that `ringfold train --save` wrote: " + why);
  };
  try {
    torch::serialize::InputArchive archive;
    archive.load_from(path);
    c10::IValue text;
    if (!archive.try_read("about", text) || !text.isString()) return bad("it holds no record of the model");
    auto about = about_from_json(text.toStringRef());
    if (!about.ok()) return bad(about.status().message());
    auto model = make_model(about->model, 0);
    at::NoGradGuard no_grad;
    for (Parameter& p : model->all_parameters()) {
      Tensor value;
      if (!archive.try_read("parameter." + p.name, value)) return bad("it lacks the parameter " + p.name);
      if (value.sizes() != p.local.sizes() || value.scalar_type() != at::kFloat)
        return bad("the parameter " + p.name + " has another shape");
      p.local.copy_(value);
    }
    return LoadedModel{std::move(model), std::move(*about)};
  } catch (const std::exception&) {
    return bad("libtorch cannot read it");
  }
}

}  // namespace ringfold::train
