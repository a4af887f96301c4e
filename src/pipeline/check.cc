#include <fmt/format.h>

#include <algorithm>

#include "pipeline/play.h"
#include "ringfold/pipeline.h"

namespace ringfold::pipeline {
namespace {

constexpr uint8_t bit(ActionKind kind) { return static_cast<uint8_t>(1 << static_cast<int>(kind)); }

class Checker {
 public:
  Checker(const Schedule& schedule, const CheckOptions& options, CheckReport* report)
      : schedule_(schedule), options_(options), report_(*report) {}

  Status check() {
    RINGFOLD_TRY(check_shape());
    done_.assign(static_cast<size_t>(schedule_.stages()) * static_cast<size_t>(schedule_.micro_batches), 0);
    for (int r = 0; r < schedule_.ranks(); ++r) RINGFOLD_TRY(check_list(r));
    RINGFOLD_TRY(check_complete());
    return check_deadlock();
  }

 private:
  Status fault(Property property, int rank, int index, const std::string& text) {
    report_.property = property;
    report_.rank = rank;
    report_.index = index;
    std::string where;
    if (rank >= 0) where = fmt::format("rank {}: ", rank);
    if (rank >= 0 && index >= 0) where = fmt::format("rank {} action {}: ", rank, index);
    return Status(Code::kInvalid, fmt::format("pipeline schedule {}: {}: {}{}", schedule_.name,
                                              pipeline::name_of(property), where, text));
  }

  Status check_shape() {
    if (schedule_.ranks() < 1 || schedule_.stages() < 1 || schedule_.micro_batches < 1)
      return fault(Property::kShape, -1, -1,
                   fmt::format("{} ranks, {} stages, {} micro-batches", schedule_.ranks(), schedule_.stages(),
                               schedule_.micro_batches));
    for (int s = 0; s < schedule_.stages(); ++s) {
      const int rank = schedule_.rank_of[static_cast<size_t>(s)];
      if (rank < 0 || rank >= schedule_.ranks())
        return fault(Property::kShape, -1, -1,
                     fmt::format("stage {} is on rank {} of {}", s, rank, schedule_.ranks()));
    }
    return {};
  }

  uint8_t& done(const Action& a) {
    return done_[static_cast<size_t>(a.stage) * static_cast<size_t>(schedule_.micro_batches) +
                 static_cast<size_t>(a.micro_batch)];
  }

  // What can be said of one rank's list by itself: range, once, order, and memory.
  Status check_list(int rank) {
    const auto& list = schedule_.actions[static_cast<size_t>(rank)];
    int held = 0, peak = 0;
    for (int i = 0; i < static_cast<int>(list.size()); ++i) {
      const Action& a = list[static_cast<size_t>(i)];
      if (static_cast<int>(a.kind) >= kActionKinds || a.stage < 0 || a.stage >= schedule_.stages() ||
          a.micro_batch < 0 || a.micro_batch >= schedule_.micro_batches)
        return fault(Property::kRange, rank, i, to_string(a) + ": there is no such thing");
      const int home = schedule_.rank_of[static_cast<size_t>(a.stage)];
      if (home != rank)
        return fault(Property::kRange, rank, i, fmt::format("{}, which is on rank {}", to_string(a), home));
      uint8_t& had = done(a);
      constexpr uint8_t kParts = bit(ActionKind::kBackwardInput) | bit(ActionKind::kBackwardWeight);
      if (had & bit(a.kind)) return fault(Property::kOnce, rank, i, to_string(a) + " a second time");
      if ((a.kind == ActionKind::kBackward && (had & kParts)) ||
          (bit(a.kind) & kParts && had & bit(ActionKind::kBackward)))
        return fault(Property::kOnce, rank, i, to_string(a) + ": the backward pass is both whole and in parts");
      if (is_backward(a.kind) && !(had & bit(ActionKind::kForward)))
        return fault(Property::kOrder, rank, i, to_string(a) + " before its forward pass");
      if (a.kind == ActionKind::kBackwardWeight && !(had & bit(ActionKind::kBackwardInput)))
        return fault(Property::kOrder, rank, i, to_string(a) + " before the gradient of its input");
      had |= bit(a.kind);
      if (a.kind == ActionKind::kForward) peak = std::max(peak, ++held);
      if (a.kind == ActionKind::kBackward || a.kind == ActionKind::kBackwardWeight) --held;
      if (options_.most_activations > 0 && held > options_.most_activations)
        return fault(
            Property::kMemory, rank, i,
            fmt::format("{} makes {} activations, allowed are {}", to_string(a), held, options_.most_activations));
    }
    report_.peak.push_back(peak);
    return {};
  }

  Status check_complete() {
    for (int s = 0; s < schedule_.stages(); ++s) {
      for (int i = 0; i < schedule_.micro_batches; ++i) {
        const uint8_t had = done({ActionKind::kForward, s, i});
        ActionKind missing = ActionKind::kForward;
        if (had & bit(ActionKind::kForward)) {
          if (had & (bit(ActionKind::kBackward) | bit(ActionKind::kBackwardWeight))) continue;
          missing = had & bit(ActionKind::kBackwardInput) ? ActionKind::kBackwardWeight : ActionKind::kBackward;
        }
        return fault(Property::kComplete, schedule_.rank_of[static_cast<size_t>(s)], -1,
                     fmt::format("{} is missing", to_string({missing, s, i})));
      }
    }
    return {};
  }

  // Every rank does what it can until nobody can: what is left waits in a circle, since nothing is missing.
  Status check_deadlock() {
    Play play(schedule_, {});
    play.run();
    if (play.complete()) return {};
    std::vector<int> chain;
    std::string text;
    int rank = 0;
    while (play.done(rank) == schedule_.actions[static_cast<size_t>(rank)].size()) ++rank;
    while (std::find(chain.begin(), chain.end(), rank) == chain.end()) {
      chain.push_back(rank);
      rank = schedule_.rank_of[static_cast<size_t>(needs(schedule_, stuck(play, rank))->stage)];
    }
    chain.erase(chain.begin(), std::find(chain.begin(), chain.end(), rank));
    for (int r : chain) {
      const Action action = stuck(play, r), needed = *needs(schedule_, action);
      text += fmt::format("{}rank {} waits in {} for {}", text.empty() ? "" : "; ", r, to_string(action),
                          to_string(needed));
    }
    return fault(Property::kDeadlock, chain[0], static_cast<int>(play.done(chain[0])), text);
  }
  const Action& stuck(const Play& play, int rank) const {
    return schedule_.actions[static_cast<size_t>(rank)][play.done(rank)];
  }

  const Schedule& schedule_;
  const CheckOptions& options_;
  CheckReport& report_;
  std::vector<uint8_t> done_;  // by stage and micro-batch: kinds of actions seen
};

}  // namespace

std::string_view name_of(Property property) {
  constexpr std::string_view kNames[] = {"none", "shape", "range", "once", "complete", "order", "deadlock", "memory"};
  return kNames[static_cast<size_t>(property)];
}

Status check(const Schedule& schedule, const CheckOptions& options, CheckReport* report) {
  CheckReport own;
  if (report == nullptr) report = &own;
  *report = {};
  return Checker(schedule, options, report).check();
}

}  // namespace ringfold::pipeline
