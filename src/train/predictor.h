// Predictor: an exported model that answers. Free of libtorch's headers.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ringfold/status.h"
#include "train/about.h"
#include "train/dataset.h"

namespace ringfold::train {

// Under which name an exported file holds to_json(About).
inline constexpr const char* kAboutFile = "ringfold.json";

using Probabilities = std::array<float, kClasses>;

struct Continuation {
  size_t bytes = 100;
  double temperature = 0;  // 0: always the likeliest byte. 1: as likely as the model says
  uint64_t seed = 1;       // of the choice, when temperature > 0
};

// Threads: const functions from any thread, also at the same time; each computes on its caller's thread.
class Predictor {
 public:
  // `digest`, unless empty: the SHA-256 that the file must have. kIo; kInvalid, with what is wrong with the file.
  static Result<Predictor> load(const std::string& path, const std::string& digest = {});
  Predictor(Predictor&&) noexcept;
  ~Predictor();

  const About& about() const;
  const std::string& digest() const;

  // Images of kImageElems grey values from 0 to 255 each, one after another: a probability of each class. Of models
  // of images only (kInvalid).
  Result<std::vector<Probabilities>> classify(std::span<const float> pixels) const;
  // The bytes that follow `prompt`, which has at least one. Of models of text only (kInvalid). kAborted once `stop`
  // is set.
  Result<std::string> go_on(std::string_view prompt, const Continuation& how,
                            const std::atomic<bool>* stop = nullptr) const;
  // Mean loss over all bytes of `text` but its first, in bits, in windows of the model's context, as in training.
  Result<double> score(std::string_view text) const;

 private:
  struct Impl;
  explicit Predictor(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ringfold::train
