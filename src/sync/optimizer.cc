#include "sync/optimizer.h"

#include <cmath>

namespace ringfold::sync {

std::vector<std::string> Optimizer::slot_names(const OptimizerOptions& options) {
  if (options.kind == OptimizerOptions::Kind::kAdam) return {"first moment", "second moment"};
  if (options.momentum != 0) return {"momentum"};
  return {};
}

Optimizer::Optimizer(const OptimizerOptions& options, size_t elems)
    : options_(options), slots_(slot_names(options).size(), std::vector<float>(elems)) {}

void Optimizer::update(size_t at, std::span<float> w, std::span<const float> g, double lr) {
  const auto decay = static_cast<float>(options_.weight_decay), rate = static_cast<float>(lr);
  const size_t n = w.size();
  if (options_.kind == OptimizerOptions::Kind::kSgd && slots_.empty()) {
    for (size_t i = 0; i < n; ++i) w[i] -= rate * (g[i] + decay * w[i]);
    return;
  }
  if (options_.kind == OptimizerOptions::Kind::kSgd) {
    const auto momentum = static_cast<float>(options_.momentum);
    float* v = slots_[0].data() + at;
    if (options_.nesterov) {
      for (size_t i = 0; i < n; ++i) {
        const float gradient = g[i] + decay * w[i];
        v[i] = momentum * v[i] + gradient;
        w[i] -= rate * (gradient + momentum * v[i]);
      }
    } else {
      for (size_t i = 0; i < n; ++i) {
        v[i] = momentum * v[i] + (g[i] + decay * w[i]);
        w[i] -= rate * v[i];
      }
    }
    return;
  }
  const auto b1 = static_cast<float>(options_.beta1), b2 = static_cast<float>(options_.beta2);
  const auto c1 = static_cast<float>(1 - options_.beta1), c2 = static_cast<float>(1 - options_.beta2);
  const auto epsilon = static_cast<float>(options_.epsilon);
  const double t = static_cast<double>(steps_);
  const auto size = static_cast<float>(lr / (1 - std::pow(options_.beta1, t)));
  const auto root = static_cast<float>(std::sqrt(1 - std::pow(options_.beta2, t)));
  float* m = slots_[0].data() + at;
  float* v = slots_[1].data() + at;
  if (options_.decoupled) {
    const auto keep = static_cast<float>(1 - lr * options_.weight_decay);
    for (size_t i = 0; i < n; ++i) {
      m[i] = b1 * m[i] + c1 * g[i];
      v[i] = b2 * v[i] + c2 * g[i] * g[i];
      w[i] = keep * w[i] - size * (m[i] / (std::sqrt(v[i]) / root + epsilon));
    }
    return;
  }
  for (size_t i = 0; i < n; ++i) {
    const float gradient = g[i] + decay * w[i];
    m[i] = b1 * m[i] + c1 * gradient;
    v[i] = b2 * v[i] + c2 * gradient * gradient;
    w[i] -= size * (m[i] / (std::sqrt(v[i]) / root + epsilon));
  }
}

}  // namespace ringfold::sync
