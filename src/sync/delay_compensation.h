// Delay compensation: a gradient g computed at w_then and applied at w_now, d = w_now - w_then apart, is corrected to
// first order,
//   g + H d,
// with something that a server has in the place of the Hessian H. All are in units of a mean over a worker's samples.
//
//   diagonal    lambda g g, element by element (Zheng et al. 2017, DC-ASGD-c)
//   adaptive    the same, lambda divided by the root of a running mean of g^2 with decay 0.95, so that it does not
//               depend on the gradients' scale (DC-ASGD-a)
//   covariance  lambda C, C the covariance of the last K gradients, which is their samples' Fisher matrix (that of
//               their deviations) divided by the number of samples in each: a lambda of that number is the matrix
//               itself, twice that has proved best. Not only its diagonal: C d is a combination of the K gradients,
//                 C d = 1/K sum_j (a_j - mean a) g_j,  a_j = g_j . d
//               so that C is never formed. What is added is no longer than g, which keeps large lambdas stable.
//
// It takes one copy of the shard for each worker (n shards of 1/n each, so one more model on every rank), and K more
// with the covariance; each replica of a shard as much again. A shard corrects its own elements: what those of other
// shards moved by is left out.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace ringfold::sync {

struct DelayCompensation {
  double lambda = 0;      // 0: none
  bool adaptive = false;  // not with `gradients`
  size_t gradients = 0;   // K of the covariance; 0: a diagonal
};

// Of one shard. Equal calls in equal order give equal bits.
class DelayCompensator {
 public:
  DelayCompensator(const DelayCompensation& options, size_t elems);

  bool on() const { return options_.lambda != 0; }
  // `gradient` is 1/parts of the mean over its worker's samples, and is corrected in place.
  void correct(std::span<float> gradient, double parts, std::span<const float> now, std::span<const float> then);
  // What it has learned, for a state: of adaptive. (The gradients that a covariance is made of are not kept: it
  // begins anew.) Empty: nothing.
  std::span<float> mean_square() { return mean_square_; }
  std::span<const float> mean_square() const { return mean_square_; }
  void forget_gradients() { known_ = 0; }

 private:
  void diagonal(std::span<float> gradient, double parts, std::span<const float> now, std::span<const float> then);
  void covariance(std::span<float> gradient, double parts, std::span<const float> now, std::span<const float> then);

  DelayCompensation options_;
  std::vector<float> mean_square_;
  std::vector<float> gradients_;  // K rows, the oldest replaced by the newest
  std::vector<float> moved_, correction_;
  size_t known_ = 0;  // gradients so far
};

}  // namespace ringfold::sync
