#include "sync/low_rank.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace ringfold::sync {
namespace {

using Floats = std::vector<float>;

Floats random_floats(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> of;
  Floats values(count);
  for (float& v : values) v = of(random);
  return values;
}

class Products : public testing::TestWithParam<std::tuple<size_t, size_t, size_t>> {};

// Sizes on both sides of every unrolling and of the stripe.
TEST_P(Products, AreThoseOfTheDefinition) {
  const auto [rows, cols, r] = GetParam();
  const MatrixShape shape{rows, cols};
  const Floats g = random_floats(rows * cols, 1), e = random_floats(rows * cols, 2);
  const Floats q = random_floats(cols * r, 3), other_p = random_floats(rows * r, 4);
  Floats m = g, p(rows * r, 9), back(cols * r, 9), expanded(rows * cols, 9);
  add_and_project(shape, r, m.data(), e.data(), q.data(), p.data());
  project_back(shape, r, m.data(), other_p.data(), back.data());
  expand_product(shape, r, other_p.data(), q.data(), expanded.data());
  Floats less = m;
  subtract_product(shape, r, other_p.data(), q.data(), less.data());
  const double bound = 1e-5 * static_cast<double>(std::max(rows, cols) + r);
  for (size_t i = 0; i < rows; ++i) {
    for (size_t j = 0; j < cols; ++j) {
      ASSERT_EQ(m[i * cols + j], g[i * cols + j] + e[i * cols + j]);
      double product = 0;
      for (size_t k = 0; k < r; ++k) product += static_cast<double>(other_p[k * rows + i]) * q[k * cols + j];
      ASSERT_NEAR(expanded[i * cols + j], product, bound);
      ASSERT_NEAR(less[i * cols + j], m[i * cols + j] - product, bound);
    }
  }
  for (size_t k = 0; k < r; ++k) {
    for (size_t i = 0; i < rows; ++i) {
      double sum = 0;
      for (size_t j = 0; j < cols; ++j) sum += static_cast<double>(m[i * cols + j]) * q[k * cols + j];
      ASSERT_NEAR(p[k * rows + i], sum, bound);
    }
    for (size_t j = 0; j < cols; ++j) {
      double sum = 0;
      for (size_t i = 0; i < rows; ++i) sum += static_cast<double>(m[i * cols + j]) * other_p[k * rows + i];
      ASSERT_NEAR(back[k * cols + j], sum, bound);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Products,
                         testing::Combine(testing::Values(1, 2, 5, 8, 31), testing::Values(1, 15, 16, 33, 1030, 2100),
                                          testing::Values(1, 2, 3, 4, 5, 9, 17)));

double dot(const float* a, const float* b, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

TEST(Orthonormalise, MakesColumnsOrthonormalOfTheSameSpanWhateverTheirScale) {
  constexpr size_t kRows = 203, kRank = 9;
  Floats p = random_floats(kRows * kRank, 5);
  for (size_t k = 0; k < kRank; ++k) {
    // Nearly parallel to the first one, and of sizes from 1e-36 to 1e36.
    for (size_t i = 0; i < kRows; ++i) {
      if (k > 0) p[k * kRows + i] = p[i] + 1e-3F * p[k * kRows + i];
    }
  }
  for (size_t k = 0; k < kRank; ++k) {
    for (size_t i = 0; i < kRows; ++i) p[k * kRows + i] *= std::pow(10.0F, static_cast<float>(k) * 9 - 36);
  }
  const Floats before = p;
  std::vector<uint8_t> alive(kRank);
  orthonormalise(kRows, kRank, p.data(), alive);
  for (size_t k = 0; k < kRank; ++k) {
    EXPECT_EQ(alive[k], 1);
    for (size_t l = 0; l <= k; ++l) {
      EXPECT_NEAR(dot(&p[k * kRows], &p[l * kRows], kRows), k == l ? 1 : 0, 1e-5) << k << ", " << l;
    }
    // The column before is a combination of those up to it.
    double inside = 0;
    for (size_t l = 0; l <= k; ++l) inside += std::pow(dot(&before[k * kRows], &p[l * kRows], kRows), 2);
    EXPECT_NEAR(inside / dot(&before[k * kRows], &before[k * kRows], kRows), 1, 1e-5) << k;
  }
}

TEST(Orthonormalise, DropsWhatDependsOnEarlierColumnsAndZeros) {
  constexpr size_t kRows = 50;
  Floats p = random_floats(kRows * 5, 6);
  for (size_t i = 0; i < kRows; ++i) {
    p[kRows + i] = 0;
    p[3 * kRows + i] = 3 * p[i] - 0.1F * p[2 * kRows + i];  // up to rounding
  }
  std::vector<uint8_t> alive(5);
  orthonormalise(kRows, 5, p.data(), alive);
  EXPECT_EQ(alive, (std::vector<uint8_t>{1, 0, 1, 0, 1}));
  EXPECT_EQ(dot(&p[3 * kRows], &p[3 * kRows], kRows), 0);
  EXPECT_NEAR(dot(&p[4 * kRows], &p[4 * kRows], kRows), 1, 1e-6);
}

TEST(Orthonormalise, FindsNoMoreColumnsThanRows) {
  Floats p = random_floats(3 * 6, 7);
  std::vector<uint8_t> alive(6);
  orthonormalise(3, 6, p.data(), alive);
  EXPECT_EQ(alive, (std::vector<uint8_t>{1, 1, 1, 0, 0, 0}));
}

TEST(Normalise, RefusesWhatHasNoDirection) {
  Floats zero(7), tiny = {1e-42F, -1e-42F}, bad = {1, std::numeric_limits<float>::infinity()};
  EXPECT_FALSE(normalise(zero));
  EXPECT_FALSE(normalise(bad));
  EXPECT_EQ(bad[0], 1);
  EXPECT_TRUE(normalise(tiny));
  EXPECT_NEAR(tiny[0], std::sqrt(0.5), 1e-6);
}

TEST(AllFinite, SeesEveryKindOfValueAnywhere) {
  using Limits = std::numeric_limits<float>;
  Floats values(37, Limits::max());
  values[3] = Limits::denorm_min();
  EXPECT_TRUE(all_finite(values));
  EXPECT_TRUE(all_finite({}));
  for (float bad : {Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN(), -Limits::signaling_NaN()}) {
    for (size_t at : {0U, 17U, 36U}) {
      Floats with = values;
      with[at] = bad;
      EXPECT_FALSE(all_finite(with)) << bad << " at " << at;
    }
  }
}

TEST(FillRandom, IsUniformAndAFunctionOfTheKey) {
  Floats a(100000), b(100000), c(100000);
  fill_random(a, 1);
  fill_random(b, 1);
  fill_random(c, 2);
  EXPECT_EQ(a, b);
  double sum = 0, squares = 0;
  for (float v : a) {
    EXPECT_TRUE(v >= -1 && v < 1);
    sum += v;
    squares += static_cast<double>(v) * v;
  }
  EXPECT_NEAR(sum / 1e5, 0, 0.01);
  EXPECT_NEAR(squares / 1e5, 1.0 / 3, 0.01);
  EXPECT_NEAR(dot(a.data(), c.data(), a.size()) / 1e5, 0, 0.01);
}

}  // namespace
}  // namespace ringfold::sync
