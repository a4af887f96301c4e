// The checker of lowered programs: runs the programs of all ranks on symbolic memory and proves that they mean what
// the collective means. It shares no code with the schedule checker and none with the executor.
#pragma once

#include <climits>
#include <cstdint>
#include <vector>

#include "plan/layout.h"
#include "program/program.h"
#include "ringfold/status.h"

namespace ringfold::plan {

struct ProgramCheckOptions {
  int slots = 2;          // puts that a link takes before the receiver releases one
  bool in_place = false;  // input and output overlap the way in-place calls make them
  bool early = false;     // what comes lies where it belongs as soon as it may (Link::expect): the earliest there is
  uint64_t seed = 1;      // order in which lanes that can advance do so
  int most_depth = INT_MAX;  // how often a contribution may be encoded on its way into a result
};

// programs[r] was lowered with layouts[r]. Proves for this seed's order: every output element is the fold of all
// contributions, once each, and equal expressions on all ranks (same bits); nothing else of the output is written;
// inputs stay as they were (unless in place); puts by reference are not overwritten before the receiver has read
// them; nothing that came early is overwritten before it is taken; a rank that sends a code goes on with what it
// decodes to, and nothing that was decoded is encoded again; sizes match; no deadlock with `slots`; contracts ride on
// the first slot of each link, there and nowhere else.
Status check_programs(const std::vector<program::Program>& programs, const std::vector<Layout>& layouts,
                      const ProgramCheckOptions& options);

}  // namespace ringfold::plan
