// The planner: from a call's shape to a lowered program. Chooses the algorithm, makes its schedule and lowers it for
// this rank.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "plan/layout.h"
#include "program/program.h"
#include "ringfold/status.h"
#include "ringfold/types.h"

namespace ringfold::plan {

struct Choice {
  std::string algorithm;
  int lanes = 1;
  std::string reason;  // for people
};

// What the planner knows of a communicator; equal on all its ranks.
struct World {
  std::vector<int> host_of;  // by rank: number of its host, in order of first appearance
  uint64_t tile_bytes = 0;
  int slots = 0;
  bool deterministic = false;
  // Picks the algorithm by the bytes of one block (schedule.h). Not asked in deterministic mode for collectives that
  // reduce. Unset: the simplest.
  std::function<Choice(Collective collective, uint64_t bytes)> choose;
};

struct Planned {
  program::Program program;
  Choice choice;
  uint64_t details = 0;  // hash of all that must agree between ranks beyond the call's arguments
};

// A choice that does not fit falls back to one that does. A pure function of its arguments.
Result<Planned> make_plan(const World& world, const Layout& layout, DataType type, const ReduceOp& op);

// The schedule that make_plan lowers, for explanations.
Result<schedule::Schedule> make_schedule(const World& world, const schedule::Shape& shape, const Choice& choice);
Choice choose(const World& world, const Layout& layout, DataType type);

// What fits every size: for when nothing else was chosen, or the choice does not fit.
Choice simplest_choice(Collective collective);

}  // namespace ringfold::plan
