// Which steps of a rank read and write each of its cells: what tells whether a value must be in memory at all.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "schedule/schedule.h"

namespace ringfold::plan {

// Does a step read or write cells?
inline bool touches_cells(const schedule::Step& s) {
  return s.kind != schedule::StepKind::kSignal && s.kind != schedule::StepKind::kWait;
}

class Accesses {
 public:
  explicit Accesses(const schedule::RankSteps& steps);

  // Do several lanes touch the cell?
  bool shared(uint32_t cell) const;
  // Is the value that step `step` of `lane` leaves in `cell` never read from there? `result`: what is in the cell at
  // the end is part of the result.
  bool dead_after(uint32_t cell, int lane, uint32_t step, bool result) const;

 private:
  struct Access {
    int lane;
    uint32_t step;
    bool read;
  };
  std::unordered_map<uint32_t, std::vector<Access>> by_cell_;  // in lane and step order
};

}  // namespace ringfold::plan
