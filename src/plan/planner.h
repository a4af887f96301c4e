// The planner: from a call's shape to a lowered program. Chooses the algorithm, makes its schedule and lowers it for
// this rank.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "plan/layout.h"
#include "program/program.h"
#include "ringfold/codec.h"
#include "ringfold/status.h"
#include "ringfold/types.h"

namespace ringfold::plan {

struct Choice {
  std::string algorithm;
  int lanes = 1;
  std::string reason;                  // for people
  Codec codec = {};                    // kNone: links carry values, also where the call would allow codes
  uint64_t tile_bytes = ~uint64_t{0};  // if less than the world's
};

// What the planner knows of a communicator; equal on all its ranks.
struct World {
  std::vector<int> host_of;  // by rank: number of its host, in order of first appearance
  uint64_t tile_bytes = 0;
  int slots = 0;
  bool deterministic = false;
  // Picks the algorithm by the bytes of one block (schedule.h), and whether to use the codec that the call allows or
  // asks for. Not asked in deterministic mode for collectives that reduce. Unset: the simplest.
  std::function<Choice(Collective collective, uint64_t bytes, const Codec& codec)> choose;
};

struct Planned {
  program::Program program;
  Choice choice;
  uint64_t details = 0;  // hash of all that must agree between ranks beyond the call's arguments
};

// A choice that does not fit falls back to one that does. A pure function of its arguments.
Result<Planned> make_plan(const World& world, const Layout& layout, DataType type, const ReduceOp& op,
                          const Codec& codec = {});

// The schedule that make_plan lowers, for explanations.
Result<schedule::Schedule> make_schedule(const World& world, const schedule::Shape& shape, const Choice& choice);
Choice choose(const World& world, const Layout& layout, DataType type, const Codec& codec = {});

// The algorithms that codecs may be used with: those that encode a contribution at most twice on its way into a
// result, at any number of ranks, and never encode again what was decoded. Empty: this collective knows no codecs.
std::vector<std::string> algorithms_for_codecs(Collective collective, const std::vector<int>& host_of);
// Does the link between two ranks carry codes? Only those between hosts do, if there are several, and if the
// algorithm lets every rank have its values from where they were encoded; where values are handed on from rank to
// rank, all links do.
bool carries_codes(std::string_view algorithm, const std::vector<int>& host_of, int rank, int peer);

// What fits every size: for when nothing else was chosen, or the choice does not fit.
Choice simplest_choice(Collective collective);

}  // namespace ringfold::plan
