#include "train/stages.h"

#include <fmt/format.h>
#include <torch/autograd.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <numeric>
#include <utility>

#include "train/tensor.h"

namespace ringfold::train {
namespace {

using pipeline::ActionKind;
using pipeline::Pass;

DataType data_type(torch::ScalarType type) { return type == torch::kFloat64 ? DataType::kF64 : DataType::kF32; }

}  // namespace

// The least that the dearest of k pieces of the first n layers can cost, for all k and n in turn.
Result<std::vector<size_t>> balanced_cuts(std::span<const double> costs, int stages) {
  const size_t n = costs.size();
  if (stages < 1 || static_cast<size_t>(stages) > n)
    return Status(Code::kInvalid, fmt::format("{} layers cannot be cut into {} stages", n, stages));
  std::vector<double> upto(n + 1, 0);
  for (size_t i = 0; i < n; ++i) {
    if (!(costs[i] >= 0)) return Status(Code::kInvalid, fmt::format("layer {} costs {}", i, costs[i]));
    upto[i + 1] = upto[i] + costs[i];
  }
  const auto k_most = static_cast<size_t>(stages);
  const double never = std::numeric_limits<double>::infinity();
  std::vector<std::vector<double>> best(k_most + 1, std::vector<double>(n + 1, never));
  std::vector<std::vector<size_t>> from(k_most + 1, std::vector<size_t>(n + 1, 0));
  best[0][0] = 0;
  for (size_t k = 1; k <= k_most; ++k) {
    for (size_t end = k; end <= n; ++end) {
      for (size_t begin = k - 1; begin < end; ++begin) {
        const double worst = std::max(best[k - 1][begin], upto[end] - upto[begin]);
        if (worst < best[k][end]) best[k][end] = worst, from[k][end] = begin;
      }
    }
  }
  std::vector<size_t> cuts(k_most);
  for (size_t k = k_most, end = n; k > 0; --k) end = cuts[k - 1] = from[k][end];
  return cuts;
}

std::vector<double> measured_costs(const Chain& chain, const torch::Tensor& example, bool by_input, int rounds) {
  using Clock = std::chrono::steady_clock;
  std::vector<std::vector<double>> times(chain.size());
  for (int round = 0; round < rounds; ++round) {
    torch::Tensor x = example;
    for (size_t i = 0; i < chain.size(); ++i) {
      torch::Tensor input = x.detach();
      const auto begin = Clock::now();
      if (input.is_floating_point()) input.requires_grad_(by_input || i > 0);
      torch::Tensor y = chain[i].forward(input);
      std::vector<torch::Tensor> by = chain[i].parameters;
      if (input.requires_grad()) by.push_back(input);
      if (!by.empty() && y.requires_grad())
        (void)torch::autograd::grad({y}, by, {torch::ones_like(y)}, {}, false, true);
      times[i].push_back(std::chrono::duration<double>(Clock::now() - begin).count());
      x = y.detach();
    }
  }
  std::vector<double> medians;
  for (auto& of_layer : times) {
    std::nth_element(of_layer.begin(), of_layer.begin() + static_cast<std::ptrdiff_t>(of_layer.size() / 2),
                     of_layer.end());
    medians.push_back(of_layer[of_layer.size() / 2]);
  }
  return medians;
}

int64_t ChainStages::Form::elems() const {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

Result<std::unique_ptr<ChainStages>> ChainStages::make(const Chain& chain, const std::vector<size_t>& cuts,
                                                       const pipeline::Schedule& schedule, int rank,
                                                       const torch::Tensor& example, Options options) {
  const auto stages = static_cast<size_t>(schedule.stages());
  if (cuts.size() != stages || stages == 0 || cuts[0] != 0 || cuts.back() >= chain.size() ||
      std::adjacent_find(cuts.begin(), cuts.end(), std::greater_equal<>()) != cuts.end()) {
    return Status(Code::kInvalid, fmt::format("cuts at layers {} do not make {} stages of {} layers",
                                              fmt::join(cuts, ","), stages, chain.size()));
  }
  std::unique_ptr<ChainStages> result(new ChainStages(std::move(options)));
  result->stages_ = schedule.stages();
  result->micro_batches_ = schedule.micro_batches;
  try {
    torch::NoGradGuard no_grad;
    torch::Tensor x = example;
    for (size_t s = 0; s < stages; ++s) {
      const size_t end = s + 1 < stages ? cuts[s + 1] : chain.size();
      const bool mine = schedule.rank_of[s] == rank;
      for (size_t i = cuts[s]; i < end; ++i) {
        if (!mine && !chain[i].forward) {
          auto sizes = chain[i].gives;
          sizes.insert(sizes.begin(), example.size(0));
          x = torch::zeros(sizes);
          continue;
        }
        x = chain[i].forward(x);
        if (!mine) continue;
        result->layers_[static_cast<int>(s)].push_back(chain[i]);
        result->parameters_.insert(result->parameters_.end(), chain[i].parameters.begin(), chain[i].parameters.end());
      }
      if (s + 1 < stages && x.scalar_type() != torch::kFloat32 && x.scalar_type() != torch::kFloat64)
        return Status(Code::kInvalid,
                      fmt::format("stage {} hands on {}; it must be f32 or f64", s, c10::toString(x.scalar_type())));
      if (x.dim() == 0 || x.size(0) != example.size(0))
        return Status(Code::kInvalid, fmt::format("stage {} does not keep the samples in the first dimension", s));
      result->forms_.push_back({x.sizes().slice(1).vec(), x.scalar_type()});
    }
  } catch (const CommunicationError& error) {
    return error.status();
  } catch (const std::exception& error) {
    return Status(Code::kInvalid, fmt::format("the chain does not take the example: {}", error.what()));
  }
  return result;
}

pipeline::Boundary ChainStages::boundary(int stage, int micro_batch) const {
  const Form& form = forms_[static_cast<size_t>(stage)];
  return {static_cast<size_t>(form.elems() * options_.samples(micro_batch)), data_type(form.type)};
}

// On the runner's memory, which outlives its use.
torch::Tensor ChainStages::view(std::span<const std::byte> bytes, const Form& form, int micro_batch) const {
  std::vector<int64_t> sizes = {options_.samples(micro_batch)};
  sizes.insert(sizes.end(), form.sizes.begin(), form.sizes.end());
  return torch::from_blob(const_cast<std::byte*>(bytes.data()), sizes, torch::TensorOptions(form.type));
}

// A micro-batch without samples is nothing to do. Libtorch reports by exceptions, the library by statuses.
template <typename F>
Status ChainStages::guarded(const pipeline::Action& action, F&& f) {
  if (options_.samples(action.micro_batch) == 0) return {};
  const auto begin = std::chrono::steady_clock::now();
  Status status;
  try {
    status = f();
  } catch (const CommunicationError& error) {
    status = error.status();
  } catch (const std::exception& error) {
    status = Status(Code::kInternal, fmt::format("{}: {}", to_string(action), error.what()));
  }
  busy_s_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return status;
}

Status ChainStages::forward(const Pass& pass) {
  return guarded(pass.action, [&]() -> Status {
    const auto [kind, stage, micro_batch] = pass.action;
    Saved& kept = saved(pass.action);
    if (stage > 0) {
      kept.input = view(pass.input, forms_[static_cast<size_t>(stage) - 1], micro_batch).requires_grad_();
    } else {
      kept.input = options_.input(micro_batch);
      if (kept.input.size(0) != options_.samples(micro_batch))
        return Status(Code::kInvalid, fmt::format("micro-batch {} has {} samples, not {}", micro_batch,
                                                  kept.input.size(0), options_.samples(micro_batch)));
    }
    torch::Tensor x = kept.input;
    for (const ChainLayer& layer : layers_.at(stage)) x = layer.forward(x);
    if (stage + 1 < stages_) {
      torch::NoGradGuard no_grad;
      view(pass.output, forms_[static_cast<size_t>(stage)], micro_batch).copy_(x);
    } else {
      x = options_.loss(x, micro_batch);
      loss_ += x.item<double>();
    }
    kept.output = x;
    return {};
  });
}

Status ChainStages::differentiate(const Pass& pass, bool by_input, bool by_parameters) {
  RINGFOLD_TRY(guarded(pass.action, [&]() -> Status {
    const auto [kind, stage, micro_batch] = pass.action;
    Saved& kept = saved(pass.action);
    by_input = by_input && stage > 0;
    std::vector<torch::Tensor> by;
    if (by_input) by.push_back(kept.input);
    if (by_parameters) {
      for (const ChainLayer& layer : layers_.at(stage))
        by.insert(by.end(), layer.parameters.begin(), layer.parameters.end());
    }
    if (!by.empty() && kept.output.requires_grad()) {
      const torch::Tensor upstream = stage + 1 < stages_
                                         ? view(pass.output_gradient, forms_[static_cast<size_t>(stage)], micro_batch)
                                         : torch::ones_like(kept.output);
      // The graph is kept for W. A parameter that the output does not depend on has no gradient.
      auto gradients = torch::autograd::grad({kept.output}, by, {upstream}, !by_parameters, false, true);
      torch::NoGradGuard no_grad;
      size_t at = 0;
      if (by_input) {
        torch::Tensor out = view(pass.input_gradient, forms_[static_cast<size_t>(stage) - 1], micro_batch);
        gradients[0].defined() ? out.copy_(gradients[0]) : out.zero_();
        ++at;
      }
      for (; at < by.size(); ++at) {
        if (!gradients[at].defined()) continue;
        torch::Tensor& sum = by[at].mutable_grad();
        sum.defined() ? sum.add_(gradients[at]) : sum = gradients[at].clone();
      }
    } else if (by_input) {
      std::fill(pass.input_gradient.begin(), pass.input_gradient.end(), std::byte{0});
    }
    if (by_parameters) saved_.erase({stage, micro_batch});
    return {};
  }));
  if (!by_parameters || ++weighed_[pass.action.stage] < micro_batches_) return {};
  weighed_[pass.action.stage] = 0;
  if (options_.complete) options_.complete(pass.action.stage);
  return {};
}

Status ChainStages::backward_input(const Pass& pass) { return differentiate(pass, true, false); }
Status ChainStages::backward_weight(const Pass& pass) { return differentiate(pass, false, true); }
Status ChainStages::backward(const Pass& pass) { return differentiate(pass, true, true); }

torch::Tensor ChainStages::infer(int stage, torch::Tensor x) {
  torch::NoGradGuard no_grad;
  for (const ChainLayer& layer : layers_.at(stage)) x = layer.forward(x);
  return x;
}

torch::Tensor ChainStages::room(int stage, int64_t samples) const {
  const Form& form = forms_[static_cast<size_t>(stage)];
  std::vector<int64_t> sizes = {samples};
  sizes.insert(sizes.end(), form.sizes.begin(), form.sizes.end());
  return torch::empty(sizes, form.type);
}

double ChainStages::take_busy_s() { return std::exchange(busy_s_, 0); }

double ChainStages::take_loss() { return std::exchange(loss_, 0); }

}  // namespace ringfold::train
