// The update rules, on flat memory: the one arithmetic of all ways to synchronise, so that ranks which update whole
// replicas, shards of them or a server's share get the same bits from the same gradients.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace ringfold::sync {

struct OptimizerOptions {
  enum class Kind : uint8_t { kSgd, kAdam };
  Kind kind = Kind::kSgd;
  double momentum = 0;                                // kSgd
  bool nesterov = false;                              // kSgd
  double weight_decay = 0;                            // added to the gradient, times the parameter
  bool decoupled = false;                             // kAdam: decay the parameter itself instead (AdamW): w -= lr decay w
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;  // kAdam
};

// State for `elems` parameters, zero at first. One update of all of them is
//   advance(); then update(at, ...) for pieces that cover [0, elems) once, in any order.
//
//   kSgd    g' = g + decay w;  v = momentum v + g';  w -= lr v          (nesterov: w -= lr (g' + momentum v))
//   kAdam   m = b1 m + (1 - b1) g';  v = b2 v + (1 - b2) g'^2;  w -= lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)
// All in f32, element by element: the bits do not depend on how the pieces are cut.
//
// Threads: one at a time.
class Optimizer {
 public:
  Optimizer() = default;
  Optimizer(const OptimizerOptions& options, size_t elems);

  void advance() { ++steps_; }
  // For parameters [at, at + w.size()); `g` as long as `w`.
  void update(size_t at, std::span<float> w, std::span<const float> g, double lr);
  // All at once.
  void step(std::span<float> w, std::span<const float> g, double lr) {
    advance();
    update(0, w, g, lr);
  }

  // The state, for checkpoints: vectors of `elems`, and what they are called.
  std::span<std::vector<float>> slots() { return slots_; }
  std::span<const std::vector<float>> slots() const { return slots_; }
  static std::vector<std::string> slot_names(const OptimizerOptions& options);
  uint64_t steps() const { return steps_; }
  void set_steps(uint64_t steps) { steps_ = steps; }

 private:
  OptimizerOptions options_;
  std::vector<std::vector<float>> slots_;  // kSgd with momentum: v; kAdam: m, v
  uint64_t steps_ = 0;
};

}  // namespace ringfold::sync
