// Real gradients for codec_error: trains a model on one rank by plain SGD for some steps, then writes what 64 ranks
// would hand to all_reduce in the next one, the gradient of a batch of each one's own, behind each other as raw f32.
#include <fmt/format.h>
#include <torch/types.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "train/dataset.h"
#include "train/model.h"

namespace ringfold::train {
namespace {

constexpr int kRanks = 64;

struct Options {
  std::string out, model = "cnn", data;
  int steps = 200, batch = 32;
  uint64_t seed = 1;
  double lr = 0.05;
};

int run(const Options& options) {
  const ModelSpec spec{.kind = options.model};
  auto data = spec.is_text()
                  ? load_text(options.data, static_cast<size_t>(spec.context))
                  : load_fashion_mnist(options.data.empty() ? "/usr/share/datasets/fashion-mnist" : options.data);
  if (!data.ok()) {
    fmt::print(stderr, "gradients: {}\n", data.status().to_string());
    return 1;
  }
  auto model = make_model(spec, options.seed);
  auto parameters = model->parameters();
  std::mt19937_64 dice(options.seed);
  std::vector<uint32_t> samples(static_cast<size_t>(options.batch));
  Batch batch(data->train, samples.size());
  const auto differentiate = [&] {
    for (auto& s : samples) s = static_cast<uint32_t>(dice() % data->train.size());
    batch.fill(data->train, samples);
    for (auto& p : parameters) p.mutable_grad().reset();
    auto loss =
        loss_sum(model->forward(batch.inputs()), batch.targets()) / static_cast<double>(batch.targets().numel());
    loss.backward();
    return loss.item<double>();
  };
  double loss = 0;
  for (int step = 0; step < options.steps; ++step) {
    loss = differentiate();
    torch::NoGradGuard no_grad;
    for (auto& p : parameters) p.sub_(p.grad(), options.lr);
  }
  std::ofstream file(options.out, std::ios::binary);
  int64_t elems = 0;
  for (int rank = 0; rank < kRanks; ++rank) {
    differentiate();
    elems = 0;
    for (const auto& p : parameters) {
      const auto gradient = p.grad().contiguous();
      file.write(static_cast<const char*>(gradient.data_ptr()),
                 gradient.numel() * static_cast<int64_t>(sizeof(float)));
      elems += gradient.numel();
    }
  }
  file.close();
  if (!file) {
    fmt::print(stderr, "gradients: {} cannot be written\n", options.out);
    return 1;
  }
  fmt::print("{}: {} ranks, {} values each, {} after {} steps of {} samples (loss of the last: {:.3f})\n",
             options.out, kRanks, elems, options.model, options.steps, options.batch, loss);
  return 0;
}

}  // namespace
}  // namespace ringfold::train

int main(int argc, char** argv) {
  ringfold::train::Options options;
  CLI::App app("Writes the gradients of 64 ranks at one step of a training run, for codec_error --file.",
               "gradients");
  app.add_option("OUT", options.out, "File of raw f32")->required();
  app.add_option("--model", options.model, "What is trained")
      ->check(CLI::IsMember({"mlp", "cnn", "transformer"}))
      ->capture_default_str();
  app.add_option("--data", options.data, "Folder of Fashion-MNIST, or a text (if not told, Debian's)");
  app.add_option("--steps", options.steps, "Steps before")->check(CLI::NonNegativeNumber)->capture_default_str();
  app.add_option("--batch", options.batch, "Samples of a rank")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--lr", options.lr, "Learning rate")->capture_default_str();
  app.add_option("--seed", options.seed, "Of parameters and samples")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return ringfold::train::run(options);
}
