#include "sync/delay_compensation.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "sync/low_rank.h"

namespace ringfold::sync {
namespace {

// In a fixed order of additions, by so many sums beside each other as the widest vectors hold.
double dot(const float* a, const float* b, size_t n) {
  constexpr size_t kSums = 16, kBlock = 4096;
  double all = 0;
  for (size_t begin = 0; begin < n; begin += kBlock) {
    const size_t end = std::min(n, begin + kBlock), whole = begin + (end - begin) / kSums * kSums;
    std::array<float, kSums> sums{};
    for (size_t i = begin; i < whole; i += kSums)
      for (size_t k = 0; k < kSums; ++k) sums[k] += a[i + k] * b[i + k];
    for (size_t i = whole; i < end; ++i) sums[i - whole] += a[i] * b[i];
    all += std::accumulate(sums.begin(), sums.end(), 0.0);
  }
  return all;
}

}  // namespace

DelayCompensator::DelayCompensator(const DelayCompensation& options, size_t elems)
    : options_(options),
      mean_square_(on() && options.adaptive && options.gradients == 0 ? elems : 0),
      gradients_(on() ? options.gradients * elems : 0),
      moved_(gradients_.empty() ? 0 : elems),
      correction_(moved_.size()) {}

void DelayCompensator::correct(std::span<float> gradient, double parts, std::span<const float> now,
                               std::span<const float> then) {
  if (!on() || gradient.empty()) return;
  options_.gradients > 0 ? covariance(gradient, parts, now, then) : diagonal(gradient, parts, now, then);
}

void DelayCompensator::diagonal(std::span<float> gradient, double parts, std::span<const float> now,
                                std::span<const float> then) {
  // (parts g)^2 d is the correction of the mean, and 1/parts of it is added.
  const auto lambda = static_cast<float>(options_.lambda * parts);
  if (mean_square_.empty()) {
    for (size_t i = 0; i < gradient.size(); ++i)
      gradient[i] += lambda * gradient[i] * gradient[i] * (now[i] - then[i]);
    return;
  }
  constexpr float kDecay = 0.95F, kEpsilon = 1e-7F;
  const auto squared_parts = static_cast<float>(parts * parts);
  for (size_t i = 0; i < gradient.size(); ++i) {
    const float square = gradient[i] * gradient[i];
    mean_square_[i] = kDecay * mean_square_[i] + (1 - kDecay) * squared_parts * square;
    gradient[i] += lambda / std::sqrt(mean_square_[i] + kEpsilon) * square * (now[i] - then[i]);
  }
}

void DelayCompensator::covariance(std::span<float> gradient, double parts, std::span<const float> now,
                                  std::span<const float> then) {
  const size_t elems = gradient.size();
  float* const newest = gradients_.data() + known_++ % options_.gradients * elems;
  const auto to_mean = static_cast<float>(parts);
  for (size_t i = 0; i < elems; ++i) {
    newest[i] = to_mean * gradient[i];
    moved_[i] = now[i] - then[i];
  }
  const size_t rows = std::min(known_, options_.gradients);
  std::vector<double> along(rows);
  for (size_t j = 0; j < rows; ++j) along[j] = dot(gradients_.data() + j * elems, moved_.data(), elems);
  const double mean = std::accumulate(along.begin(), along.end(), 0.0) / static_cast<double>(rows);
  std::vector<float> weights(rows);
  for (size_t j = 0; j < rows; ++j)
    weights[j] = static_cast<float>(options_.lambda * (along[j] - mean) / static_cast<double>(rows));
  project_back({rows, elems}, 1, gradients_.data(), weights.data(), correction_.data());

  const double length = std::sqrt(dot(correction_.data(), correction_.data(), elems));
  if (!(length > 0) || !std::isfinite(length)) return;
  const double own = std::sqrt(dot(newest, newest, elems));
  const auto factor = static_cast<float>(std::min(1.0, own / length) / parts);
  for (size_t i = 0; i < elems; ++i) gradient[i] += factor * correction_[i];
}

}  // namespace ringfold::sync
