// Proves that a schedule does what its collective promises, for all data and all timings.
//
//   values      Every result is the sum of random 64-bit contributions (wrapping), each in it once; or the one value
//               that a collective without reduction moves. In a barrier: every rank has heard from every rank.
//   replicas    All ranks that end with a chunk hold the same expression (order, brackets and codings), so they hold
//               the same bits for any operation, and with any deterministic codec, as long as a rank that sends a
//               coded value goes on with the decoded one itself.
//   canonical   Whether every result is the rank-order fold ((x_0 + x_1) + x_2) + ...; reported, and demanded on
//   request. depth       Coding depth: let every send code the cells that it sends, at both ends, except where a cell
//   is still
//               as it was decoded (a value that is handed on, or sent to several peers, is coded once). The depth of
//               a contribution in a result is the number of codings since it started, across folds; reported is the
//               greatest. Ring all_reduce: n. Direct: 2.
//   complete    kComplete stands exactly on the steps whose result holds all contributions (collectives that reduce).
//   unset       No cell is read before it holds a value.
//   matching    The k-th send and the k-th receive of a link have the same number of cells, of the same sizes; none
//   is
//               left over.
//   deadlock    All steps can be taken with one slot per link: a send waits for the receive of the one before.
//   events      Signals and waits pair up; an event has one signalling and one waiting lane.
//   hazards     Step a happens before step b when a stands before b in a lane, when a is the send of the receive b,
//               when a is the k-th signal of the k-th wait b, and so on transitively; slots do not count, since a
//               link may have more than one. Of two accesses to a cell of which one is a write, one must happen
//               before the other; and where the earlier is a send, it is the *receive* it matches that must happen
//               before the write, as a send by reference reads until then. (A barrier moves no bytes: nothing to
//               test.)
//   range       Chunks, temporaries, peers, events, counts and flags exist.
//
// One walk suffices for all of them (walk.h says why). Time is proportional to the steps, times ranks for hazards.
#pragma once

#include <climits>

#include "ringfold/status.h"
#include "schedule/walk.h"

namespace ringfold::schedule {

struct CheckOptions {
  // Hazards take memory and time of ranks^2 per lane and are tested up to this many ranks.
  int most_ranks_for_hazards = 128;
  bool require_canonical = false;
  int most_depth = INT_MAX;
  uint64_t seed = 0x52696e67666f6c64;
};

struct CheckReport {
  Fault fault;  // what the returned status says in words
  bool canonical = false;
  int coding_depth = 0;
  uint32_t rounds = 0;  // messages on the longest path
  uint64_t steps = 0;   // of all ranks
  uint64_t messages = 0;
  bool hazards_tested = false;
};

// Ok, or kInternal with "<algorithm> <collective> of N: <property>: rank R lane L step S: (...) ...". `report` may be
// null.
Status check(const Schedule& schedule, const CheckOptions& options = {}, CheckReport* report = nullptr);

}  // namespace ringfold::schedule
