#include "sync/low_rank.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "sync/mix.h"

namespace ringfold::sync {
namespace {

// Of Q, walked at a time: within the second-level cache. In whole rows where that allows it, as the processor fetches
// ahead along rows. Stripes of 512 columns took 2.3 to 2.7 times as long from memory at rank 1 to 4, 1.3 times at 8
// and 1.1 times at 16 (1024 x 4096, EPYC VM, other programs running).
constexpr size_t kStripeBytes = size_t{64} << 10;
constexpr size_t kLanes = 16;  // independent sums of a dot product: enough to hide an addition's latency
constexpr double kIndependent = 1e-5;

using Lanes = std::array<float, kLanes>;

// Pairwise, so that the order does not depend on how wide the processor's vectors are.
float sum_of(Lanes& lanes) {
  for (size_t width = kLanes / 2; width > 0; width /= 2) {
    for (size_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  return lanes[0];
}

float short_dot(const float* a, const float* b, size_t n) {
  Lanes lanes{};
  size_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    for (size_t l = 0; l < kLanes; ++l) lanes[l] += a[j + l] * b[j + l];
  }
  for (size_t l = 0; j < n; ++j, ++l) lanes[l] += a[j] * b[j];
  return sum_of(lanes);
}

double long_dot(const float* a, const float* b, size_t n) {
  std::array<double, 8> lanes{};
  size_t i = 0;
  for (; i + lanes.size() <= n; i += lanes.size()) {
    for (size_t l = 0; l < lanes.size(); ++l) {
      lanes[l] += static_cast<double>(a[i + l]) * static_cast<double>(b[i + l]);
    }
  }
  for (size_t l = 0; i < n; ++i, ++l) lanes[l] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

// out[j] = first ? sum : out[j] + sum, over up to four (factor, vector) pairs: each load and store of `out` then pays
// for four products.
struct Terms {
  std::array<float, 4> factors{};
  std::array<const float*, 4> vectors{};
};

template <typename Store>
void combine(const Terms& terms, size_t count, size_t n, Store store) {
  const auto [f0, f1, f2, f3] = terms.factors;
  const auto [v0, v1, v2, v3] = terms.vectors;
  switch (count) {
    case 1:
      for (size_t j = 0; j < n; ++j) store(j, f0 * v0[j]);
      break;
    case 2:
      for (size_t j = 0; j < n; ++j) store(j, f0 * v0[j] + f1 * v1[j]);
      break;
    case 3:
      for (size_t j = 0; j < n; ++j) store(j, (f0 * v0[j] + f1 * v1[j]) + f2 * v2[j]);
      break;
    default:
      for (size_t j = 0; j < n; ++j) store(j, (f0 * v0[j] + f1 * v1[j]) + (f2 * v2[j] + f3 * v3[j]));
  }
}

template <typename Body>
void for_stripes(size_t cols, size_t rank, Body body) {
  const size_t stripe = std::max(kStripeBytes / sizeof(float) / rank, 4 * kLanes) / kLanes * kLanes;
  for (size_t begin = 0; begin < cols; begin += stripe) body(begin, std::min(stripe, cols - begin));
}

// Rows of P Q^T, stripe by stripe, in groups of four columns of the factors; store(first group?, element, value).
template <typename Store>
void walk_product(MatrixShape shape, size_t rank, const float* p, const float* q, float* m, Store store) {
  for_stripes(shape.cols, rank, [&](size_t begin, size_t n) {
    for (size_t i = 0; i < shape.rows; ++i) {
      float* __restrict row = m + i * shape.cols + begin;
      for (size_t k = 0; k < rank; k += 4) {
        const size_t group = std::min<size_t>(4, rank - k);
        Terms terms;
        for (size_t t = 0; t < group; ++t) {
          terms.factors[t] = p[(k + t) * shape.rows + i];
          terms.vectors[t] = q + (k + t) * shape.cols + begin;
        }
        store(k == 0, row, terms, group, n);
      }
    }
  });
}

}  // namespace

void add_and_project(MatrixShape shape, size_t rank, float* m, const float* e, const float* q, float* p) {
  std::fill_n(p, rank * shape.rows, 0.0F);
  for_stripes(shape.cols, rank, [&](size_t begin, size_t n) {
    for (size_t i = 0; i < shape.rows; ++i) {
      float* __restrict row = m + i * shape.cols + begin;
      const float* __restrict error = e + i * shape.cols + begin;
      for (size_t j = 0; j < n; ++j) row[j] += error[j];
      for (size_t k = 0; k < rank; ++k) p[k * shape.rows + i] += short_dot(row, q + k * shape.cols + begin, n);
    }
  });
}

void project_back(MatrixShape shape, size_t rank, const float* m, const float* p, float* q) {
  std::fill_n(q, rank * shape.cols, 0.0F);
  for_stripes(shape.cols, rank, [&](size_t begin, size_t n) {
    for (size_t i = 0; i < shape.rows; i += 4) {
      const size_t group = std::min<size_t>(4, shape.rows - i);
      Terms terms;
      for (size_t t = 0; t < group; ++t) terms.vectors[t] = m + (i + t) * shape.cols + begin;
      for (size_t k = 0; k < rank; ++k) {
        for (size_t t = 0; t < group; ++t) terms.factors[t] = p[k * shape.rows + i + t];
        float* __restrict out = q + k * shape.cols + begin;
        combine(terms, group, n, [out](size_t j, float value) { out[j] += value; });
      }
    }
  });
}

void subtract_product(MatrixShape shape, size_t rank, const float* p, const float* q, float* m) {
  walk_product(shape, rank, p, q, m, [](bool, float* __restrict row, const Terms& terms, size_t group, size_t n) {
    combine(terms, group, n, [row](size_t j, float value) { row[j] -= value; });
  });
}

void expand_product(MatrixShape shape, size_t rank, const float* p, const float* q, float* m) {
  walk_product(shape, rank, p, q, m,
               [](bool first, float* __restrict row, const Terms& terms, size_t group, size_t n) {
                 if (first) {
                   combine(terms, group, n, [row](size_t j, float value) { row[j] = value; });
                 } else {
                   combine(terms, group, n, [row](size_t j, float value) { row[j] += value; });
                 }
               });
}

void orthonormalise(size_t rows, size_t rank, float* p, std::span<uint8_t> alive) {
  for (size_t k = 0; k < rank; ++k) {
    float* column = p + k * rows;
    const double before = std::sqrt(long_dot(column, column, rows));
    // One pass leaves what cancellation has amplified; a second one removes it.
    for (int pass = 0; pass < 2; ++pass) {
      for (size_t j = 0; j < k; ++j) {
        if (alive[j] == 0) continue;
        const float* other = p + j * rows;
        const auto share = static_cast<float>(long_dot(other, column, rows));
        for (size_t i = 0; i < rows; ++i) column[i] -= share * other[i];
      }
    }
    const double after = std::sqrt(long_dot(column, column, rows));
    alive[k] = after > kIndependent * before && normalise({column, rows}) ? 1 : 0;
    if (alive[k] == 0) std::fill_n(column, rows, 0.0F);
  }
}

bool normalise(std::span<float> vector) {
  const double length = std::sqrt(long_dot(vector.data(), vector.data(), vector.size()));
  if (!(length > 0) || !std::isfinite(length)) return false;
  const double scale = 1 / length;  // in double: of denormal vectors, too
  for (float& v : vector) v = static_cast<float>(static_cast<double>(v) * scale);
  return true;
}

bool all_finite(std::span<const float> values) {
  // An exponent of all ones is infinity or NaN. Integers, since the loop then vectorises.
  constexpr uint32_t kExponent = 0x7f800000;
  uint32_t bad = 0;
  for (const float value : values) {
    uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    bad |= (bits & kExponent) == kExponent ? 1U : 0U;
  }
  return bad == 0;
}

void fill_random(std::span<float> values, uint64_t key) {
  const uint64_t start = mix(key);
  for (size_t i = 0; i < values.size(); ++i) {
    const auto bits = static_cast<int32_t>(mix(start + i) >> 40);  // 24 bits: every value is exact
    values[i] = static_cast<float>(bits - (1 << 23)) / static_cast<float>(1 << 23);
  }
}

}  // namespace ringfold::sync
