#include "train/about.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "ringfold/version.h"
#include "train/dataset.h"

namespace ringfold::train {
namespace {

using AboutJson = nlohmann::ordered_json;

constexpr const char* kFormat = "ringfold model 1";

}  // namespace

Status check(const ModelSpec& s, int tensor) {
  const auto bad = [](std::string why) { return Status(Code::kInvalid, std::move(why)); };
  if (!s.is_text()) {
    if (s.kind != "mlp" && s.kind != "cnn")
      return bad(fmt::format("there is no model \"{}\"; there are mlp, cnn and transformer", s.kind));
    if (tensor > 1)
      return bad(fmt::format(
          "the layers of an {} are not shared among ranks: --tensor-parallel is for --model transformer", s.kind));
    return {};
  }
  constexpr int64_t kMost = 1 << 20;
  for (const auto& [name, value] :
       {std::pair{"layers", s.layers}, {"width", s.width}, {"heads", s.heads}, {"context", s.context}}) {
    if (value < 1 || value > kMost) return bad(fmt::format("--{} {} is not between 1 and {}", name, value, kMost));
  }
  if (s.width % s.heads != 0) return bad(fmt::format("--width {} is no multiple of --heads {}", s.width, s.heads));
  if (s.heads % tensor != 0)
    return bad(
        fmt::format("--heads {} cannot be shared by --tensor-parallel {} ranks: it is no multiple", s.heads, tensor));
  if (kByteValues % tensor != 0)
    return bad(
        fmt::format("the {} values of a byte cannot be shared by --tensor-parallel {} ranks: take a power of two",
                    kByteValues, tensor));
  return {};
}

std::string to_json(const About& a) {
  AboutJson model = {{"kind", a.model.kind}, {"parameters", a.parameters}};
  if (a.model.is_text()) {
    model["layers"] = a.model.layers;
    model["width"] = a.model.width;
    model["heads"] = a.model.heads;
    model["context"] = a.model.context;
  }
  AboutJson result = {{"test_loss", a.test_loss}, {"test_accuracy", a.test_accuracy}};
  if (a.model.is_text()) result["bits_per_byte"] = bits_per_byte(a.test_loss);
  const AboutJson all = {{"format", kFormat},
                         {"ringfold", version()},
                         {"model", model},
                         {"data",
                          {{"name", a.data},
                           {"sha256", a.data_digest},
                           {"train_samples", a.train_samples},
                           {"test_samples", a.test_samples}}},
                         {"training",
                          {{"ranks", a.ranks},
                           {"epochs", a.epochs},
                           {"batch", a.batch},
                           {"seed", a.seed},
                           {"optimizer", a.optimizer},
                           {"lr", a.lr}}},
                         {"result", result}};
  return all.dump(2);
}

Result<About> about_from_json(const std::string& text) {
  About a;
  try {
    const auto all = AboutJson::parse(text);
    if (all.at("format") != kFormat)
      return Status(Code::kInvalid, "its format is not \"" + std::string(kFormat) + '"');
    const auto &model = all.at("model"), &data = all.at("data"), &training = all.at("training");
    a.model.kind = model.at("kind");
    a.parameters = model.at("parameters");
    if (a.model.is_text()) {
      a.model.layers = model.at("layers");
      a.model.width = model.at("width");
      a.model.heads = model.at("heads");
      a.model.context = model.at("context");
    }
    a.data = data.at("name");
    a.data_digest = data.at("sha256");
    a.train_samples = data.at("train_samples");
    a.test_samples = data.at("test_samples");
    a.ranks = training.at("ranks");
    a.epochs = training.at("epochs");
    a.batch = training.at("batch");
    a.seed = training.at("seed");
    a.optimizer = training.at("optimizer");
    a.lr = training.at("lr");
    a.test_loss = all.at("result").at("test_loss");
    a.test_accuracy = all.at("result").at("test_accuracy");
  } catch (const AboutJson::exception& e) {
    return Status(Code::kInvalid, std::string("its record of the model is damaged: ") + e.what());
  }
  RINGFOLD_TRY(check(a.model));
  return a;
}

std::string model_card(const About& a, const std::string& name, const std::string& file_digest) {
  const bool text = a.model.is_text();
  std::string card = fmt::format("# {}\n\n", name);
  card +=
      text ? fmt::format(
                 "A decoder-only transformer over bytes: {} layers of width {} with {} heads, a context of {} bytes, "
                 "{} parameters.\n",
                 a.model.layers, a.model.width, a.model.heads, a.model.context, a.parameters)
           : fmt::format("A classifier of 28 x 28 grey images into ten classes of clothing ({}), {} parameters.\n",
                         a.model.kind, a.parameters);
  card += fmt::format("\n| | |\n|---|---|\n| file | `{}`, TorchScript |\n| SHA-256 | `{}` |\n", name, file_digest);
  card += fmt::format("| trained on | {}, {} samples |\n| SHA-256 of these | `{}` |\n", a.data, a.train_samples,
                      a.data_digest);
  if (text) {
    card += fmt::format(
        "| on {} other samples | {:.4f} bits per byte (perplexity {:.3f}), {:.2f} % of bytes predicted rightly |\n",
        a.test_samples, bits_per_byte(a.test_loss), std::exp(a.test_loss), 100 * a.test_accuracy);
  } else {
    card += fmt::format("| on {} other samples | {:.2f} % right, loss {:.4f} |\n", a.test_samples,
                        100 * a.test_accuracy, a.test_loss);
  }
  card += fmt::format(
      "| training | {} epochs, batch {}, {} with learning rate {}, seed {}, {} ranks |\n| made by | Ringfold {} |\n",
      a.epochs, a.batch, a.optimizer, a.lr, a.seed, a.ranks, version());
  card += text ? fmt::format(
                     "\nInput: int64 `[n, t]`, bytes, t up to {}. Output: `[n, t, 256]`, logits of the byte that "
                     "follows each.\n",
                     a.model.context)
               : "\nInput: `[n, 1, 28, 28]`, grey values from 0 (background) to 255. Output: `[n, 10]`, logits of "
                 "the classes "
                 "T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot.\n";
  card += fmt::format("\n```python\nimport torch\nmodel = torch.jit.load(\"{}\")\n{}\n```\n", name,
                      text ? "logits = model(torch.tensor([list(b\"In the beginning\")]))"
                           : "logits = model(torch.zeros(1, 1, 28, 28))");
  card += text ? "\nIt continues text in the manner of what it was trained on, and knows nothing else. What it "
                 "writes is not "
                 "true or false, only likely.\n"
               : "\nIt knows nothing of images that are not centred, white on black, and of one of these kinds: it "
                 "always names "
                 "one of the ten.\n";
  return card;
}

const char* class_name(int label) {
  constexpr std::array kNames = {"T-shirt", "trouser", "pullover", "dress", "coat",
                                 "sandal",  "shirt",   "sneaker",  "bag",   "ankle boot"};
  return label >= 0 && label < static_cast<int>(kNames.size()) ? kNames[static_cast<size_t>(label)] : "?";
}

double bits_per_byte(double nats) { return nats / std::numbers::ln2; }

}  // namespace ringfold::train
