#include "train/learning_rate.h"

#include <cmath>
#include <numbers>

namespace ringfold::train {
namespace {

constexpr double kWarmUp = 0.15;  // share of the steps in which a cosine schedule climbs to the peak

}  // namespace

double learning_rate(const Args& args, size_t step, size_t steps) {
  if (args.schedule == "constant") return args.peak_lr();
  const double at = static_cast<double>(step) / static_cast<double>(steps);
  if (at < kWarmUp) return args.peak_lr() * (0.1 + 0.9 * at / kWarmUp);
  return args.peak_lr() * 0.5 * (1 + std::cos(std::numbers::pi * (at - kWarmUp) / (1 - kWarmUp)));
}

}  // namespace ringfold::train
