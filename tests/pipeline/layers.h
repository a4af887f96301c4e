// A small real model, by hand: a chain of linear layers, one per stage, of different widths, on micro-batches of
// different sizes. Its gradients do not depend on who computes them where: what a pipeline makes must be what one
// loop makes.
#pragma once

#include <cmath>
#include <cstring>
#include <map>
#include <span>
#include <vector>

#include "ringfold/pipeline_runner.h"

namespace ringfold::test {

enum class Numbers : uint8_t {
  kReal,   // tanh behind each layer: sums round, so their order shows in the bits
  kWhole,  // small whole numbers, without tanh: exact in any order
};

// All layers, or one rank's; weights and inputs follow from their place alone. T: float or double.
template <typename T>
class Layers final : public pipeline::Stages {
 public:
  Layers(int stages, Numbers numbers) : numbers_(numbers), stages_(stages), gradients_(static_cast<size_t>(stages)) {
    for (int s = 0; s < stages; ++s) gradients_[static_cast<size_t>(s)].assign(weights(s), 0);
  }

  static size_t width(int stage) { return 3 + static_cast<size_t>(stage * 5 % 4); }  // of what enters the stage
  static size_t rows(int micro_batch) { return 1 + static_cast<size_t>(micro_batch * 7 % 3); }

  pipeline::Boundary boundary(int stage, int micro_batch) const override {
    return {rows(micro_batch) * width(stage + 1), sizeof(T) == 8 ? DataType::kF64 : DataType::kF32};
  }

  Status forward(const pipeline::Pass& pass) override {
    note(pass.action);
    const auto [kind, s, i] = pass.action;
    const std::vector<T> x = input_of(pass);
    std::vector<T> y(rows(i) * width(s + 1), 0);
    each(s, i,
         [&](size_t r, size_t a, size_t b) { y[r * width(s + 1) + b] += x[r * width(s) + a] * weight(s, a, b); });
    if (numbers_ == Numbers::kReal) {
      for (T& v : y) v = std::tanh(v);
    }
    if (!pass.output.empty()) std::memcpy(pass.output.data(), y.data(), pass.output.size());
    outputs_[{s, i}] = std::move(y);
    return {};
  }
  Status backward_input(const pipeline::Pass& pass) override {
    note(pass.action);
    const auto [kind, s, i] = pass.action;
    const std::vector<T> dz = through(pass);
    std::vector<T> dx(rows(i) * width(s), 0);
    each(s, i,
         [&](size_t r, size_t a, size_t b) { dx[r * width(s) + a] += dz[r * width(s + 1) + b] * weight(s, a, b); });
    if (!pass.input_gradient.empty()) std::memcpy(pass.input_gradient.data(), dx.data(), pass.input_gradient.size());
    return {};
  }
  Status backward_weight(const pipeline::Pass& pass) override {
    note(pass.action);
    const auto [kind, s, i] = pass.action;
    const std::vector<T> x = input_of(pass), dz = through(pass);
    auto& sum = gradients_[static_cast<size_t>(s)];
    each(s, i, [&](size_t r, size_t a, size_t b) {
      sum[a * width(s + 1) + b] += x[r * width(s) + a] * dz[r * width(s + 1) + b];
    });
    outputs_.erase({s, i});
    return {};
  }
  Status backward(const pipeline::Pass& pass) override {
    const size_t before = order.size();
    RINGFOLD_TRY(Stages::backward(pass));
    order.resize(before);
    note(pass.action);
    return {};
  }

  // One loop over micro-batches, without a pipeline.
  void run(int micro_batches) {
    for (int i = 0; i < micro_batches; ++i) {
      std::vector<std::vector<T>> x(static_cast<size_t>(stages_) + 1), d(static_cast<size_t>(stages_) + 1);
      auto bytes = [](std::vector<T>& v) { return std::as_writable_bytes(std::span(v)); };
      auto pass = [&](pipeline::ActionKind kind, int s) {
        const auto at = static_cast<size_t>(s);
        pipeline::Pass p{{kind, s, i}, {}, {}, {}, {}};
        if (s > 0) p.input = bytes(x[at]);
        if (s + 1 < stages_) p.output_gradient = bytes(d[at + 1]);
        if (kind == pipeline::ActionKind::kForward && s + 1 < stages_) {
          x[at + 1].assign(boundary(s, i).count, 0);
          p.output = bytes(x[at + 1]);
        }
        if (kind == pipeline::ActionKind::kBackward && s > 0) {
          d[at].assign(boundary(s - 1, i).count, 0);
          p.input_gradient = bytes(d[at]);
        }
        return p;
      };
      for (int s = 0; s < stages_; ++s) (void)forward(pass(pipeline::ActionKind::kForward, s));
      for (int s = stages_; s-- > 0;) (void)backward(pass(pipeline::ActionKind::kBackward, s));
    }
  }

  const std::vector<T>& gradient(int stage) const { return gradients_[static_cast<size_t>(stage)]; }
  std::vector<pipeline::Action> order;  // as it was called

 private:
  static size_t weights(int s) { return width(s) * width(s + 1); }
  T number(uint64_t place) const {
    const uint64_t mixed = (place + 1) * 0x9e3779b97f4a7c15 >> 40;
    return numbers_ == Numbers::kWhole ? static_cast<T>(static_cast<int>(mixed % 3) - 1)
                                       : static_cast<T>(mixed % 1000) / 700 - static_cast<T>(0.7);
  }
  T weight(int s, size_t a, size_t b) const { return number((static_cast<uint64_t>(s) * 64 + a) * 64 + b); }
  std::vector<T> input_of(const pipeline::Pass& pass) const {
    const auto [kind, s, i] = pass.action;
    std::vector<T> x(rows(i) * width(s));
    if (s > 0) {
      std::memcpy(x.data(), pass.input.data(), pass.input.size());
    } else {
      for (size_t k = 0; k < x.size(); ++k) x[k] = number(1000000 + static_cast<uint64_t>(i) * 100 + k);
    }
    return x;
  }
  // The gradient before the tanh. The loss is half the sum of the last outputs' squares: its gradient is the output.
  std::vector<T> through(const pipeline::Pass& pass) const {
    const auto [kind, s, i] = pass.action;
    const std::vector<T>& y = outputs_.at({s, i});
    std::vector<T> d = y;
    if (s + 1 < stages_) std::memcpy(d.data(), pass.output_gradient.data(), pass.output_gradient.size());
    if (numbers_ == Numbers::kReal) {
      for (size_t k = 0; k < d.size(); ++k) d[k] *= 1 - y[k] * y[k];
    }
    return d;
  }
  template <typename F>
  void each(int s, int i, F&& f) const {
    for (size_t r = 0; r < rows(i); ++r) {
      for (size_t a = 0; a < width(s); ++a) {
        for (size_t b = 0; b < width(s + 1); ++b) f(r, a, b);
      }
    }
  }
  void note(const pipeline::Action& action) { order.push_back(action); }

  const Numbers numbers_;
  const int stages_;
  std::vector<std::vector<T>> gradients_;                  // by stage
  std::map<std::pair<int, int>, std::vector<T>> outputs_;  // by stage and micro-batch, from F to W
};

}  // namespace ringfold::test
