// Chooses an algorithm for every collective and size: by predicted cost, and by what the user wants.
//
// Choices are made once, for sizes 8 B, 16 B, ... 1 GiB or as far as they will be asked for, and kept as sorted ranges
// with their reasons. They are a pure function of the cluster, which all ranks have from rank 0, so all choose alike.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "model/cluster.h"
#include "model/cost.h"
#include "model/override.h"
#include "ringfold/status.h"
#include "schedule/schedule.h"

namespace ringfold::model {

// Where schedules come from (src/algo, which this folder does not know).
struct Candidates {
  AlgorithmsFor algorithms_for;
  // For all ranks of the cluster; any root.
  std::function<Result<schedule::Schedule>(Collective, std::string_view algorithm, int lanes)> make;
  // May deterministic mode use it?
  std::function<bool(Collective, std::string_view algorithm)> canonical;
};

struct TunerOptions {
  bool deterministic = false;
  std::string override_text;  // RINGFOLD_ALGORITHM
  Cutting cutting;
  // Those that the caller will ask about; empty: all.
  std::vector<Collective> collectives;
  // The most that the caller will ask about: what is beyond need not be played, which for small sizes is the better
  // part of the work. The answers do not depend on it, but for what their reasons give as an example.
  uint64_t most_bytes = kNoLimit;
};

struct Choice {
  std::string algorithm;  // "": the collective has none for this many ranks, `reason` says why
  int lanes = 1;
  double predicted_s = 0;
  std::string reason;
};

// From `from` bytes of one block up to the next range.
struct Range {
  uint64_t from = 0;
  std::string algorithm;
  int lanes = 1;
  bool forced = false;  // by the user
  std::string reason;   // "31 us at 64 KiB (latency ...); next ring 42 us (+35 %)"
  friend bool operator==(const Range&, const Range&) = default;
};

// Of one collective. Invariant: ranges begin at 0 and ascend; a prediction for each size of the grid, up to the first
// that is of no use (TunerOptions::most_bytes).
struct Table {
  Collective collective = Collective::kAllReduce;
  std::vector<Range> ranges;
  std::vector<double> seconds;
  friend bool operator==(const Table&, const Table&) = default;
};

// The sizes at which costs are compared.
inline constexpr int kGridSizes = 28;
constexpr uint64_t grid_size(int index) { return uint64_t{8} << index; }

// Immutable, so any thread may ask it.
class Tuner {
 public:
  // kInvalid: the cluster makes no sense, or the override does not, or it asks for what deterministic mode excludes.
  static Result<Tuner> build(const ClusterModel& cluster, const Candidates& candidates, const TunerOptions& options);

  // `bytes` of one block, no more than it was built for: the count of the call times the size of an element.
  Choice choose(Collective collective, uint64_t bytes) const;

  // Null for a collective that was not asked for or that has no algorithm.
  const Table* table(Collective collective) const;
  // "all_reduce" and its ranges, one a line with the reason: "  0 .. 4 KiB  oneshot: ..."
  std::string to_string() const;

  // As text (JSON) and back, exactly.
  std::string to_text() const;
  static Result<Tuner> from_text(std::string_view text);

  friend bool operator==(const Tuner&, const Tuner&) = default;

 private:
  std::vector<Table> tables_;
};

}  // namespace ringfold::model
