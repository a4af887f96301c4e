// The schedule generators. Each is a pure function of a shape and its parameters; every schedule that leaves here
// passes the checker (schedule/checker.h) for every number of ranks.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ringfold/status.h"
#include "schedule/schedule.h"

namespace ringfold::algo {

// What a generator may need besides the shape.
struct Parameters {
  // Lanes to spread the work over (1 to 4). Generators with a fixed structure (double tree) use what they need.
  int lanes = 1;
  // Rank -> host number, consecutive from 0 in order of first appearance; empty: one host per rank. Hierarchical and
  // doubling only.
  std::vector<int> host_of;
  // No rings between hosts, however many there are: a ring encodes a sum at each hop. Hierarchical only.
  bool few_codings = false;
};

// "ring", "tree", "direct" (two-shot), "oneshot", "star", "hierarchical", "doubling", "recursive", "chain": those
// that have a schedule for this collective. Order: of two that cost the same the tuner takes the one listed first.
std::vector<std::string> algorithms_for(Collective collective);

// Whether the algorithm folds every value in rank order, x_0 first, so that its result does not depend on the number
// of chunks, lanes or bytes: what deterministic mode asks for.
bool is_canonical(Collective collective, std::string_view algorithm);

// The schedule, or kInvalid when the algorithm has none for the collective (the message lists those that have).
Result<schedule::Schedule> make(std::string_view algorithm, const schedule::Shape& shape,
                                const Parameters& parameters);

}  // namespace ringfold::algo
