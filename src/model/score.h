// A schedule prepared for playing in virtual time: steps joined to operations as lowering joins them (a value that is
// built from several inputs and sent on is one operation, worked through tile by tile), links and events numbered.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "schedule/schedule.h"

namespace ringfold::model {

// inputs -> fold, write or forward -> outputs. Links are Score::ends[first_link ..]: inputs, then outputs.
struct Op {
  static constexpr uint32_t kNone = UINT32_MAX;
  uint32_t first_link = 0;
  uint16_t inputs = 0;
  uint16_t outputs = 0;
  uint16_t folds = 0;       // two-operand folds per byte
  bool copies = false;      // moves one operand to another place; from a link if it has an input
  uint32_t cells = 0;       // chunks it covers
  uint32_t wait = kNone;    // events, before the first tile
  uint32_t signal = kNone;  // after the last one
  friend bool operator==(const Op&, const Op&) = default;
};

struct Score {
  struct Link {
    int from = 0, to = 0;  // ranks
    friend bool operator==(const Link&, const Link&) = default;
  };
  int ranks = 1;
  int lanes = 1;
  uint32_t chunks_per_block = 1;
  uint32_t widest = 1;               // most cells of one send
  std::vector<int> played;           // the ranks that it holds: all, or a sample
  std::vector<std::vector<Op>> ops;  // by index in `played` * lanes + lane
  std::vector<uint32_t> ends;        // link numbers
  std::vector<Link> links;
  uint32_t events = 0;  // numbered through over the ranks
  bool sample() const { return static_cast<int>(played.size()) < ranks; }
  friend bool operator==(const Score&, const Score&) = default;
};

// Holds all ranks, or where they have more than `most_steps` steps (by estimate) a sample of them.
Score score_of(const schedule::Schedule& schedule, uint64_t most_steps);

}  // namespace ringfold::model
