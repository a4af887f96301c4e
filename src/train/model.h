// The models, on libtorch. Including this costs half a minute of compile time: only the trainer does.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <string>

namespace ringfold::train {

// Takes [n, 1, 28, 28], gives ten logits for each image. No layer mixes samples of a batch (so no batch
// normalisation): the gradient of a batch is the sum of its parts' gradients, whichever ranks they lie on.
class Model : public torch::nn::Module {
 public:
  virtual torch::Tensor forward(torch::Tensor images) = 0;
};

// "mlp" or "cnn". Its parameters depend on the seed alone.
std::shared_ptr<Model> make_model(const std::string& name, uint64_t seed);

}  // namespace ringfold::train
