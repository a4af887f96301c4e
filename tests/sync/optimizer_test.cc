// AdamW against its formula in double precision.
#include "sync/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace ringfold::sync {
namespace {

TEST(Optimizer, AdamWDecaysTheParameterAndNotTheGradient) {
  const OptimizerOptions options{.kind = OptimizerOptions::Kind::kAdam, .weight_decay = 0.1, .decoupled = true};
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const size_t n = 37;
  std::vector<float> w(n), g(n);
  for (float& x : w) x = normal(random);
  std::vector<double> exact(w.begin(), w.end()), m(n), v(n);
  Optimizer whole(options, n), pieces(options, n);
  std::vector<float> other = w;
  for (int t = 1; t <= 50; ++t) {
    const double lr = 0.01 / t;
    for (float& x : g) x = normal(random);
    whole.step(w, g, lr);
    pieces.advance();
    pieces.update(10, std::span(other).subspan(10), std::span(g).subspan(10), lr);
    pieces.update(0, std::span(other).first(10), std::span(g).first(10), lr);
    for (size_t i = 0; i < n; ++i) {
      m[i] = 0.9 * m[i] + 0.1 * g[i];
      v[i] = 0.999 * v[i] + 0.001 * g[i] * g[i];
      exact[i] -= lr * 0.1 * exact[i];
      exact[i] -= lr * (m[i] / (1 - std::pow(0.9, t))) / (std::sqrt(v[i] / (1 - std::pow(0.999, t))) + 1e-8);
    }
  }
  for (size_t i = 0; i < n; ++i) EXPECT_NEAR(w[i], exact[i], 2e-6) << i;
  EXPECT_EQ(w, other) << "the bits do not depend on how the pieces are cut";
}

}  // namespace
}  // namespace ringfold::sync
