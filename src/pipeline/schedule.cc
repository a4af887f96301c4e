#include <fmt/format.h>

#include <algorithm>

#include "ringfold/pipeline.h"

namespace ringfold::pipeline {

std::string_view name_of(ActionKind kind) {
  constexpr std::string_view kNames[] = {"forward", "backward_input", "backward_weight", "backward"};
  return kNames[static_cast<size_t>(kind)];
}

std::string to_string(const Action& action) {
  return fmt::format("{} of micro-batch {} on stage {}",
                     static_cast<int>(action.kind) < kActionKinds ? name_of(action.kind) : "an unknown action",
                     action.micro_batch, action.stage);
}

int Schedule::chunk_of(int stage) const {
  const int rank = rank_of[static_cast<size_t>(stage)];
  return static_cast<int>(std::count(rank_of.begin(), rank_of.begin() + stage, rank));
}

std::vector<int> Schedule::stages_of(int rank) const {
  std::vector<int> mine;
  for (int s = 0; s < stages(); ++s) {
    if (rank_of[static_cast<size_t>(s)] == rank) mine.push_back(s);
  }
  return mine;
}

uint64_t Schedule::hash() const {
  uint64_t hash = 0x9e3779b97f4a7c15;
  auto mix = [&hash](int64_t value) {
    hash = (hash ^ static_cast<uint64_t>(value)) * 0xff51afd7ed558ccd;
    hash ^= hash >> 32;
  };
  mix(ranks());
  mix(stages());
  mix(micro_batches);
  for (int rank : rank_of) mix(rank);
  for (const auto& list : actions) {
    mix(static_cast<int64_t>(list.size()));
    for (const Action& a : list) {
      mix(static_cast<int64_t>(a.kind) << 32 | a.stage);
      mix(a.micro_batch);
    }
  }
  return hash;
}

}  // namespace ringfold::pipeline
