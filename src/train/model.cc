#include "train/model.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/nn/functional.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>

#include <cmath>

namespace ringfold::train {
namespace {

namespace nn = torch::nn;

class Mlp : public Model {
 public:
  torch::Tensor forward(torch::Tensor images) override {
    return out_(torch::relu(second_(torch::relu(first_(images.flatten(1))))));
  }

 private:
  nn::Linear first_ = register_module("first", nn::Linear(784, 256));
  nn::Linear second_ = register_module("second", nn::Linear(256, 128));
  nn::Linear out_ = register_module("out", nn::Linear(128, 10));
};

class Cnn : public Model {
 public:
  torch::Tensor forward(torch::Tensor images) override {
    auto x = torch::relu(
        torch::max_pool2d(first_(images), 2));  // relu after pooling: the same, on a quarter of the elements
    x = torch::relu(torch::max_pool2d(second_(x), 2));
    return out_(torch::relu(hidden_(x.flatten(1))));
  }

 private:
  nn::Conv2d first_ = register_module("first", nn::Conv2d(nn::Conv2dOptions(1, 16, 3).padding(1)));
  nn::Conv2d second_ = register_module("second", nn::Conv2d(nn::Conv2dOptions(16, 32, 3).padding(1)));
  nn::Linear hidden_ = register_module("hidden", nn::Linear(32 * 7 * 7, 128));
  nn::Linear out_ = register_module("out", nn::Linear(128, 10));
};

}  // namespace

std::shared_ptr<Model> make_model(const std::string& name, uint64_t seed) {
  std::shared_ptr<Model> model;
  if (name == "mlp") {
    model = std::make_shared<Mlp>();
  } else {
    model = std::make_shared<Cnn>();
  }
  // From a generator of its own, as ranks may be threads of one process: weights uniform with the variance that keeps
  // a signal's size through a layer and its relu, biases zero.
  at::NoGradGuard no_grad;
  auto generator = at::detail::createCPUGenerator(seed);
  for (auto& p : model->parameters()) {
    if (p.dim() < 2) {
      p.zero_();
      continue;
    }
    const double fan_in = static_cast<double>(p.numel() / p.size(0)), bound = std::sqrt(6.0 / fan_in);
    p.uniform_(-bound, bound, generator);
  }
  return model;
}

}  // namespace ringfold::train
