#include "base/stores.h"

namespace ringfold::base {

bool Stores::next() {
  if (tried_ < 2 * kFirstTries) return tried_ % 2 != 0;
  if (tries_ > 0) return !streaming_;
  const float slower = cost_[streaming_ ? 0 : 1] / std::max(cost_[streaming_ ? 1 : 0], 1e-9F);
  if (++since_ <= static_cast<uint32_t>(static_cast<float>(kPeriod) * std::clamp(slower, 1.0F, 16.0F)))
    return streaming_;
  tries_ = 1;
  return !streaming_;
}

void Stores::took(bool streaming, float cost) {
  float& mean = cost_[streaming ? 1 : 0];
  if (tried_ < 2 * kFirstTries) {
    mean = tried_ < 2 ? cost : std::min(mean, cost);
    if (++tried_ == 2 * kFirstTries) decide();
    return;
  }
  if (streaming != streaming_) {
    mean = (mean + std::min(cost, 4 * mean)) / 2;
    since_ = 0;
    if (tries_ > 0 && --tries_ == 0) decide();
    return;
  }
  mean += (std::min(cost, 4 * mean) - mean) / 4;  // somebody else may have had the processor for a while
  // The world has changed: the other core has moved, or the piece is of another buffer.
  constexpr uint32_t kRest = 64;
  if (since_ > kRest && (mean > kChange * decided_ || kChange * mean < decided_)) {
    decided_ = mean;
    tries_ = 3;
  }
}

void Stores::decide() {
  // What was chosen stays while it is about as good.
  const float gain = streaming_ ? 1 + (gain_ - 1) / 2 : gain_;
  streaming_ = cost_[1] * gain < cost_[0];
  decided_ = cost_[streaming_ ? 1 : 0];
  since_ = 0;
}

}  // namespace ringfold::base
