// Plays a schedule as far as it goes: what the checker, the simulator and nobody else know of who waits for whom.
#pragma once

#include <optional>
#include <vector>

#include "ringfold/pipeline.h"

namespace ringfold::pipeline {

// The action of another stage that `action` needs; nullopt: none. Of a backward pass that is whole or in parts either
// kind is meant.
inline std::optional<Action> needs(const Schedule& schedule, const Action& action) {
  switch (action.kind) {
    case ActionKind::kForward:
      if (action.stage == 0) return std::nullopt;
      return Action{ActionKind::kForward, action.stage - 1, action.micro_batch};
    case ActionKind::kBackwardInput:
    case ActionKind::kBackward:
      if (action.stage == schedule.stages() - 1) return std::nullopt;
      return Action{ActionKind::kBackwardInput, action.stage + 1, action.micro_batch};
    case ActionKind::kBackwardWeight: return std::nullopt;
  }
  return std::nullopt;
}
inline bool is_backward(ActionKind kind) {
  return kind == ActionKind::kBackwardInput || kind == ActionKind::kBackward;
}

// Every rank takes its list `steps` times, action by action, each as soon as what it needs has ended.
class Play {
 public:
  Play(const Schedule& schedule, const Times& times, int steps = 1);
  // Returns when nothing can move any more.
  void run();

  bool complete() const;
  // How many actions of its list (times steps) a rank has done.
  size_t done(int rank) const { return next_[static_cast<size_t>(rank)]; }
  const std::vector<std::vector<Span>>& spans() const { return spans_; }  // by rank

 private:
  // When the action had ended, or will have; nullopt: not yet done.
  std::optional<double>& end_of(const Action& action, int step);
  bool advance(int rank);

  const Schedule& schedule_;
  const int steps_;
  double length_[kActionKinds];  // of one stage's action
  const double transfer_;
  std::vector<double> free_;  // by rank: when it has ended its last action
  std::vector<size_t> next_;
  std::vector<std::optional<double>> forward_, gradient_;  // by stage, step and micro-batch: end
  std::vector<std::vector<Span>> spans_;
};

}  // namespace ringfold::pipeline
