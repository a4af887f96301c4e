// Lowering: from a schedule (symbolic, all ranks) to a program (bytes, one rank).
#pragma once

#include <cstdint>
#include <functional>

#include "plan/layout.h"
#include "program/program.h"
#include "ringfold/status.h"
#include "schedule/schedule.h"

namespace ringfold::plan {

struct LowerRequest {
  const schedule::Schedule* schedule = nullptr;
  Layout layout;  // names the rank
  DataType type = DataType::kF32;
  // The same on all ranks: a put carries at most tile_bytes, and no step of a pass takes more than slots - 1 puts
  // (slots >= 2).
  uint64_t tile_bytes = 128 * 1024;
  int slots = 8;
  // Largest number of cells in one send of any rank (widest_step); 0: found by walking all ranks' steps.
  uint32_t widest = 0;
  // Which links carry codes, by the peer and the same at both of its ends; unset: none. Tiles are whole groups of
  // codecs then.
  std::function<bool(int peer)> coded;
};

// Largest Step::count of any send of any rank.
uint32_t widest_step(const schedule::Schedule& schedule);

// kInvalid when another algorithm must be taken: the schedule's steps are too wide to fit the slots at this size, or
// what was decoded would be encoded again.
Result<program::Program> lower(const LowerRequest& request);

}  // namespace ringfold::plan
