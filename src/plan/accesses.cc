#include "plan/accesses.h"

#include <algorithm>

namespace ringfold::plan {

using schedule::Step;
using schedule::StepKind;

Accesses::Accesses(const schedule::RankSteps& steps) {
  for (int lane = 0; lane < static_cast<int>(steps.lanes.size()); ++lane) {
    for (uint32_t i = 0; i < steps.lanes[lane].size(); ++i) {
      const Step& s = steps.lanes[lane][i];
      if (!touches_cells(s)) continue;
      const bool has_source = s.kind == StepKind::kCopy || s.kind == StepKind::kReduce;
      const bool reads_own = s.kind != StepKind::kRecv && s.kind != StepKind::kCopy;
      for (uint32_t c = 0; c < s.count; ++c) {
        if (has_source) by_cell_[s.source + c].push_back({lane, i, true});
        by_cell_[s.chunk + c].push_back({lane, i, reads_own});
      }
    }
  }
}

bool Accesses::shared(uint32_t cell) const {
  const auto it = by_cell_.find(cell);
  if (it == by_cell_.end()) return false;
  return std::any_of(it->second.begin(), it->second.end(),
                     [&](const Access& a) { return a.lane != it->second.front().lane; });
}

bool Accesses::dead_after(uint32_t cell, int lane, uint32_t step, bool result) const {
  bool overwritten = false, first_seen_elsewhere[16] = {};
  for (const Access& a : by_cell_.at(cell)) {
    if (a.lane == lane) {
      if (a.step > step && !overwritten) {
        if (a.read) return false;
        overwritten = true;
      }
    } else if (!first_seen_elsewhere[a.lane]) {
      first_seen_elsewhere[a.lane] = true;
      if (a.read) return false;
      overwritten = true;  // another lane brings the final value (the checker of programs holds us to it)
    }
  }
  return overwritten || !result;
}

}  // namespace ringfold::plan
