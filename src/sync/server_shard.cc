#include "sync/server_shard.h"

#include <algorithm>

namespace ringfold::sync {

ServerShard::ServerShard(size_t begin, std::span<const float> initial, int workers, const OptimizerOptions& optimizer,
                         const DelayCompensation& compensation)
    : begin_(begin),
      options_(optimizer),
      compensator_(compensation, initial.size()),
      parameters_(initial.begin(), initial.end()),
      gradient_(initial.size()),
      backups_(static_cast<size_t>(workers), parameters_),
      optimizer_(optimizer, initial.size()) {}

void ServerShard::skip(const Held& held) {
  const Held own{held.item, std::max<uint64_t>(held.begin, begin_), std::min<uint64_t>(held.end, begin_ + elems())};
  if (own.begin < own.end) skipped_.emplace(own.item, own);
}

std::vector<ServerShard::Held> ServerShard::held(bool before) const {
  std::vector<Held> all;
  for (size_t i = 0; !before && i < items_.size() - (open_ ? members_.size() : 0); ++i)
    all.push_back({items_[i], begin_, begin_ + elems()});
  for (const auto& [item, held] : skipped_) all.push_back(held);
  return all;
}

void ServerShard::clear_items() {
  items_.clear();
  skipped_.clear();
}

std::vector<float> ServerShard::without_skipped(uint64_t item, std::span<const float> gradient) const {
  std::vector<float> rest(gradient.begin(), gradient.end());
  const auto [first, last] = skipped_.equal_range(item);
  for (auto it = first; it != last; ++it)
    std::fill_n(rest.begin() + static_cast<std::ptrdiff_t>(it->second.begin - begin_),
                it->second.end - it->second.begin, 0.0F);
  return rest;
}

bool ServerShard::apply(const Push& push, std::span<const float> gradient) {
  if (skipped_.contains(push.item)) {
    const std::vector<float> rest = without_skipped(push.item, gradient);
    skipped_.erase(push.item);
    return apply(push, rest);
  }
  if (!open_) members_.clear();
  ++next_ticket_;
  members_.push_back(push.worker);
  items_.push_back(push.item);
  lr_ = push.lr;
  if (!open_) {
    std::copy(gradient.begin(), gradient.end(), gradient_.begin());
    // (Gradients that are folded into one update were all computed at what it is applied to.)
    if (push.closes != 0)
      compensator_.correct(gradient_, push.parts, parameters_, backups_[static_cast<size_t>(push.worker)]);
  } else {
    for (size_t i = 0; i < gradient_.size(); ++i) gradient_[i] += gradient[i];
  }
  open_ = push.closes == 0;
  if (open_) return false;
  optimizer_.step(parameters_, gradient_, lr_);
  return true;
}

void ServerShard::close_partial() {
  if (open_) optimizer_.step(parameters_, gradient_, lr_);
  open_ = false;
}

std::span<const float> ServerShard::read(int worker) {
  std::vector<float>& bak = backups_[static_cast<size_t>(worker)];
  std::copy(parameters_.begin(), parameters_.end(), bak.begin());
  return bak;
}

void ServerShard::read_by_all() {
  for (auto& bak : backups_) bak = parameters_;
}

void ServerShard::save(State& state) const {
  state.add("parameters", begin_, parameters_);
  const auto names = Optimizer::slot_names(options_);
  for (size_t i = 0; i < names.size(); ++i) state.add(names[i], begin_, optimizer_.slots()[i]);
  if (!compensator_.mean_square().empty()) state.add("mean square", begin_, compensator_.mean_square());
  state.numbers["updates"] = optimizer_.steps();
}

Status ServerShard::load(const State& state) {
  RINGFOLD_TRY(state.get("parameters", begin_, parameters_));
  const auto names = Optimizer::slot_names(options_);
  for (size_t i = 0; i < names.size(); ++i) RINGFOLD_TRY(state.get(names[i], begin_, optimizer_.slots()[i]));
  if (!compensator_.mean_square().empty() && state.has("mean square"))
    RINGFOLD_TRY(state.get("mean square", begin_, compensator_.mean_square()));
  compensator_.forget_gradients();
  if (const auto n = state.numbers.find("updates"); n != state.numbers.end()) optimizer_.set_steps(n->second);
  read_by_all();
  open_ = false;
  return {};
}

}  // namespace ringfold::sync
