#include "train/predictor.h"

#include <fmt/format.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <random>

#include "train/digest.h"
#include "train/model.h"

namespace ringfold::train {
namespace {

constexpr int64_t kScoredWindows = 16;  // at once

at::Tensor bytes_tensor(std::string_view bytes) {
  at::Tensor tensor = at::empty({1, static_cast<int64_t>(bytes.size())}, at::kLong);
  std::transform(bytes.begin(), bytes.end(), tensor.data_ptr<int64_t>(),
                 [](char c) { return static_cast<uint8_t>(c); });
  return tensor;
}

}  // namespace

struct Predictor::Impl {
  mutable torch::jit::Module script;  // whose forward() is not const, and yet changes nothing
  About about;
  std::string digest;

  // What libtorch throws, as a status.
  template <typename Body>
  auto run(Body body) const -> decltype(body()) {
    try {
      const at::NoGradGuard no_grad;
      return body();
    } catch (const c10::Error& e) {
      return Status(Code::kInternal, std::string("libtorch: ") + e.what_without_backtrace());
    } catch (const std::exception& e) {
      return Status(Code::kInternal, std::string("libtorch: ") + e.what());
    }
  }
  at::Tensor logits(const at::Tensor& input) const { return script.forward({input}).toTensor(); }
  Status expect(bool text) const {
    if (about.model.is_text() == text) return {};
    return Status(Code::kInvalid, text ? "the model is one of images: it takes \"images\""
                                       : "the model is one of text: it takes \"text\"");
  }
};

Predictor::Predictor(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Predictor::Predictor(Predictor&&) noexcept = default;
Predictor::~Predictor() = default;
const About& Predictor::about() const { return impl_->about; }
const std::string& Predictor::digest() const { return impl_->digest; }

Result<Predictor> Predictor::load(const std::string& path, const std::string& digest) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error))
    return Status(Code::kIo, "cannot read the model " + path + ": there is no such file");
  auto found = file_digest(path);
  if (!found.ok()) return found.status();
  if (!digest.empty() && *found != digest)
    return Status(Code::kInvalid, fmt::format("{} has the SHA-256 {}, not {}", path, *found, digest));
  auto impl = std::make_unique<Impl>();
  impl->digest = *found;
  torch::jit::ExtraFilesMap extra = {{kAboutFile, ""}};
  try {
    impl->script = torch::jit::load(path, c10::nullopt, extra);
    impl->script.eval();
  } catch (const std::exception&) {
    return Status(Code::kInvalid, path + " is no TorchScript file: make one with `ringfold export`");
  }
  auto about = about_from_json(extra[kAboutFile]);
  if (!about.ok())
    return Status(Code::kInvalid,
                  path + " is TorchScript, but not of `ringfold export`: " + about.status().message());
  impl->about = std::move(*about);
  return Predictor(std::move(impl));
}

Result<std::vector<Probabilities>> Predictor::classify(std::span<const float> pixels) const {
  RINGFOLD_TRY(impl_->expect(false));
  if (pixels.empty() || pixels.size() % kImageElems != 0) {
    return Status(Code::kInvalid,
                  fmt::format("{} grey values are no whole number of images of {}", pixels.size(), kImageElems));
  }
  return impl_->run([&]() -> Result<std::vector<Probabilities>> {
    const auto n = static_cast<int64_t>(pixels.size() / kImageElems);
    std::vector<Probabilities> all(static_cast<size_t>(n));
    constexpr int64_t kAtOnce = 500;
    for (int64_t begin = 0; begin < n; begin += kAtOnce) {
      const int64_t count = std::min(kAtOnce, n - begin);
      const at::Tensor input = at::empty({count, 1, kImageSide, kImageSide});
      std::copy_n(pixels.begin() + begin * static_cast<int64_t>(kImageElems), input.numel(), input.data_ptr<float>());
      const at::Tensor p = at::softmax(impl_->logits(input), 1).contiguous();
      std::copy_n(p.data_ptr<float>(), p.numel(), all[static_cast<size_t>(begin)].data());
    }
    return all;
  });
}

Result<std::string> Predictor::go_on(std::string_view prompt, const Continuation& how,
                                     const std::atomic<bool>* stop) const {
  RINGFOLD_TRY(impl_->expect(true));
  if (prompt.empty()) return Status(Code::kInvalid, "there is no text to go on from: it needs at least one byte");
  if (!(how.temperature >= 0 && how.temperature <= 100))
    return Status(Code::kInvalid, "the temperature is not between 0 and 100");
  return impl_->run([&]() -> Result<std::string> {
    const auto context = static_cast<size_t>(impl_->about.model.context);
    std::string all(prompt.substr(prompt.size() - std::min(prompt.size(), context)));
    const size_t given = all.size();
    std::mt19937_64 random(how.seed);
    while (all.size() < given + how.bytes) {
      if (stop && stop->load()) return Status(Code::kAborted, "stopped before all bytes were made");
      const at::Tensor last = impl_->logits(
          bytes_tensor(std::string_view(all).substr(all.size() - std::min(all.size(), context))))[0][-1];
      int64_t next = last.argmax().item<int64_t>();
      if (how.temperature > 0) {
        const at::Tensor p = at::softmax(last.to(at::kDouble) / how.temperature, 0).contiguous();
        // In [0, 1) from 53 bits: the standard's distributions differ between libraries.
        double left = static_cast<double>(random() >> 11) * 0x1p-53;
        const double* share = p.data_ptr<double>();
        for (int64_t byte = 0; byte < kByteValues; ++byte) {
          if (share[byte] > 0) next = byte;
          if ((left -= share[byte]) < 0) break;
        }
      }
      all += static_cast<char>(next);
    }
    return all.substr(given);
  });
}

Result<double> Predictor::score(std::string_view text) const {
  RINGFOLD_TRY(impl_->expect(true));
  if (text.size() < 2)
    return Status(Code::kInvalid, "a text of fewer than two bytes has none that could be predicted");
  return impl_->run([&]() -> Result<double> {
    const auto context = static_cast<size_t>(impl_->about.model.context);
    const at::Tensor bytes = bytes_tensor(text)[0];
    double nats = 0;
    const size_t predicted = text.size() - 1, whole = predicted / context;
    const auto add = [&](size_t begin, size_t windows, size_t length) {
      if (windows * length == 0) return;
      const auto elems = static_cast<int64_t>(windows * length), rows = static_cast<int64_t>(windows);
      const at::Tensor input = bytes.narrow(0, static_cast<int64_t>(begin), elems).view({rows, -1});
      const at::Tensor next = bytes.narrow(0, static_cast<int64_t>(begin) + 1, elems).view({rows, -1});
      nats += loss_sum(impl_->logits(input), next).item<double>();
    };
    for (size_t w = 0; w < whole; w += kScoredWindows)
      add(w * context, std::min<size_t>(kScoredWindows, whole - w), context);
    add(whole * context, 1, predicted - whole * context);
    return bits_per_byte(nats / static_cast<double>(predicted));
  });
}

}  // namespace ringfold::train
