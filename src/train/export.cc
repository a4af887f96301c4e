#include "train/export.h"

#include <fmt/format.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/types.h>

#include <filesystem>
#include <fstream>

#include "train/digest.h"
#include "train/model.h"
#include "train/predictor.h"

namespace ringfold::train {
namespace {

constexpr double kMostDifference = 1e-4;  // of logits, which are around 10

std::string method(const std::string& body) {
  std::string text = "def forward(self, x: Tensor) -> Tensor:\n    ";
  for (const char c : body) text += c == '\n' ? "\n    " : std::string(1, c);
  return text + "\n";
}

torch::jit::Module script_of(const Model& model, const ModelSpec& spec) {
  torch::jit::Module root("__torch__.ringfold.Model");
  std::string body;
  if (!spec.is_text())
    body = fmt::format("x = (torch.to(x, 6) / 255.0 - {}) / {}\n", double{kPixelMean},
                       double{kPixelDeviation});  // 6: float32
  for (size_t i = 0; i < model.layers().size(); ++i) {
    const std::string name = fmt::format("layer{}", i);
    torch::jit::Module layer("__torch__.ringfold.Layer" + std::to_string(i));
    for (const Parameter& p : model.layers()[i]->own_parameters())
      layer.register_parameter(p.name, p.local.detach().clone(), false);
    layer.define(method(model.layers()[i]->script()));
    root.register_module(name, layer);
    body += fmt::format("x = self.{}.forward(x)\n", name);
  }
  root.define(method(body + "return x"));
  root.eval();
  return root;
}

// Inputs of different sizes, made up, and what the trained model says to them.
Status compare(torch::jit::Module& script, Model& model, const ModelSpec& spec) {
  at::NoGradGuard no_grad;
  for (const int64_t n : {1, 3}) {
    at::Tensor input, scaled;
    if (spec.is_text()) {
      input = (at::arange(n * std::max<int64_t>(1, spec.context / n), at::kLong) * 7919).remainder(251).view({n, -1});
      scaled = input;
    } else {
      input = (at::arange(n * static_cast<int64_t>(kImageElems), at::kLong) * 7919)
                  .remainder(256)
                  .to(at::kByte)
                  .view({n, 1, kImageSide, kImageSide});
      scaled = (input.to(at::kFloat) / 255 - kPixelMean) / kPixelDeviation;
    }
    const auto expected = model.forward(scaled), got = script.forward({input}).toTensor();
    const double difference =
        got.sizes() == expected.sizes() ? (got - expected).abs().max().item<double>() : INFINITY;
    if (!(difference < kMostDifference)) {
      return Status(
          Code::kInternal,
          fmt::format("the TorchScript does not answer as the model does: logits differ by {}", difference));
    }
  }
  return {};
}

}  // namespace

Result<Exported> export_model(const std::string& model, const std::string& path) {
  auto loaded = load_model(model);
  if (!loaded.ok()) return loaded.status();
  const std::filesystem::path file(path);
  const std::string partial = path + ".part";
  std::error_code error;
  if (std::filesystem::is_directory(file, error))
    return Status(Code::kIo, "cannot write " + path + ": it is a folder");
  if (std::filesystem::equivalent(model, file, error))
    return Status(Code::kInvalid, path + " is the model itself: name another file for the TorchScript");
  Code code = Code::kInternal;
  std::string what;
  try {
    auto script = script_of(*loaded->model, loaded->about.model);
    RINGFOLD_TRY(compare(script, *loaded->model, loaded->about.model));
    code = Code::kIo;
    script.save(partial, {{kAboutFile, to_json(loaded->about)}});
    code = Code::kOk;
  } catch (const c10::Error& e) {
    what = e.what_without_backtrace();
  } catch (const std::exception& e) {
    what = e.what();
  }
  if (code != Code::kOk) {
    std::filesystem::remove(partial, error);
    return Status(code, code == Code::kIo ? "cannot write " + partial + ": " + what : "libtorch: " + what);
  }
  auto digest = file_digest(partial);
  if (!digest.ok()) return digest.status();
  std::filesystem::rename(partial, file, error);
  if (error) return Status(Code::kIo, "cannot write " + path + ": " + error.message());

  Exported done{path, std::filesystem::path(path).replace_extension(".card.md"), *digest};
  std::ofstream card(done.card_path);
  card << model_card(loaded->about, file.filename(), *digest);
  card.close();
  if (!card) return Status(Code::kIo, "cannot write " + done.card_path);
  return done;
}

}  // namespace ringfold::train
