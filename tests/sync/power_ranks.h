// Gradients for tests of PowerSgd, the same function of (rank, step, tensor) everywhere, and what ranks made of them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "sync/power_sgd.h"
#include "tests/train/ranks.h"

namespace ringfold::sync::test_power {

using Values = std::vector<float>;
using Tensors = std::vector<PowerSgdTensor>;

inline Values normal(size_t count, uint32_t seed) {
  std::mt19937 random(seed * 2654435761U + 1);
  std::normal_distribution<float> of;
  Values values(count);
  for (float& v : values) v = of(random);
  return values;
}

inline uint32_t seed_of(int rank, int step, size_t tensor) {
  return static_cast<uint32_t>(rank) * 1000003 + static_cast<uint32_t>(step) * 1009 + static_cast<uint32_t>(tensor);
}

inline Values noise(const Tensors& tensors, int rank, int step, size_t t) {
  return normal(tensors[t].rows * tensors[t].cols, seed_of(rank, step, t));
}

inline void put(PowerSgd& power, size_t t, const Values& values) {
  std::ranges::copy(values, power.gradient(t).begin());
}

inline Values copy_of(std::span<const float> values) { return {values.begin(), values.end()}; }

// Bits, not values: NaN equals itself, -0 does not equal 0.
inline bool same_bits(const Values& a, const Values& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Two matrices that are compressed at rank 2, one that is too small, a bias, nothing.
inline const Tensors kMixed = {{"a", 40, 700}, {"bias", 1, 41}, {"b", 33, 17}, {"small", 3, 3}, {"none", 0, 5}};

}  // namespace ringfold::sync::test_power
