// Random legal schedules: any placement of stages on ranks, any order that can run.
#pragma once

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "ringfold/pipeline.h"

namespace ringfold::test {

// Of 2 to 4 ranks, up to 3 stages each (or none), up to 5 micro-batches, backward passes whole or in parts. All
// actions lie in one random order in which each comes after what it needs; a rank's list is its part of that.
inline pipeline::Schedule random_schedule(std::mt19937_64& random) {
  using pipeline::Action;
  using pipeline::ActionKind;
  auto below = [&random](size_t n) { return static_cast<size_t>(random() % n); };
  pipeline::Schedule s;
  s.name = "random";
  s.actions.resize(2 + below(3));
  const size_t ranks = s.actions.size(), stages = ranks + below(2 * ranks + 1);
  s.micro_batches = 1 + static_cast<int>(below(5));
  for (size_t k = 0; k < stages; ++k)
    s.rank_of.push_back(static_cast<int>(k < ranks && below(4) > 0 ? k : below(ranks)));
  const bool parts = below(4) > 0, whole = !parts || below(2) == 0;
  // What may come next. Some orders run far ahead with some micro-batches or stages, others do everything in turn.
  std::vector<Action> ready;
  for (int i = 0; i < s.micro_batches; ++i) ready.push_back({ActionKind::kForward, 0, i});
  const size_t taste = below(4);
  auto better = [taste](const Action& a, const Action& b) {
    if (taste == 1) return a.stage > b.stage;
    if (taste == 2) return a.micro_batch > b.micro_batch;
    return a.kind < b.kind;
  };
  while (!ready.empty()) {
    size_t at = below(ready.size());
    for (int tries = 0; taste > 0 && tries < 2; ++tries) {
      const size_t other = below(ready.size());
      if (better(ready[other], ready[at])) at = other;
    }
    const Action a = ready[at];
    ready.erase(ready.begin() + static_cast<std::ptrdiff_t>(at));
    s.actions[static_cast<size_t>(s.rank_of[static_cast<size_t>(a.stage)])].push_back(a);
    auto backward = [&](int stage) {
      const bool as_whole = whole && (!parts || below(2) == 0);
      ready.push_back({as_whole ? ActionKind::kBackward : ActionKind::kBackwardInput, stage, a.micro_batch});
    };
    if (a.kind == ActionKind::kForward) {
      if (a.stage + 1 < s.stages()) {
        ready.push_back({ActionKind::kForward, a.stage + 1, a.micro_batch});
      } else {
        backward(a.stage);
      }
      continue;
    }
    if (a.kind == ActionKind::kBackwardInput) ready.push_back({ActionKind::kBackwardWeight, a.stage, a.micro_batch});
    if (a.kind != ActionKind::kBackwardWeight && a.stage > 0) backward(a.stage - 1);
  }
  return s;
}

}  // namespace ringfold::test
