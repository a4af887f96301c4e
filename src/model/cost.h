// Predicts how long a schedule takes, by playing it in virtual time on the figures of a cluster.
//
// What is played is the schedule itself, tile by tile: a lane takes its steps in order, a tile is worked on when its
// inputs have arrived (so a received tile leaves for the next rank before its successor is here: cut-through), all
// lanes of a rank share one core, and ranks of a host beyond its cores take turns. Messages queue for their link and,
// between hosts, for the port of either host. Credit is not modelled: links take what is put.
//
// Large buffers go in passes, as lowered programs do. Every pass costs the same once the first ones have filled the
// pipe, so some passes are played and the rest is extrapolated: no size costs more to predict than those do.
//
// Schedules of very many steps are not played: a sample of their ranks gives rounds * latency + the larger of work
// and wire time.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "model/cluster.h"
#include "schedule/schedule.h"

namespace ringfold::model {

// What a predicted time is made of: the figures on its critical path.
enum class Term : uint8_t { kLatency, kOverhead, kWire, kCopy, kReduce, kHandOver };
inline constexpr int kTerms = 6;
std::string_view name_of(Term term);  // "latency", "overhead", "wire", "copy", "reduce", "hand_over"

struct Cost {
  double seconds = 0;                     // infinity: it does not fit at this size
  std::array<double, kTerms> terms = {};  // their sum is `seconds`
  // "31.2 us = latency 20.1 us + overhead 6.00 us + copy 5.10 us"
  std::string to_string() const;
};

// How programs are cut (plan::LowerRequest).
struct Cutting {
  uint64_t tile_bytes = 128 * 1024;
  int slots = 8;
};

// One schedule on one cluster. Keeps a reference to the cluster, none to the schedule. One thread at a time.
class Predictor {
 public:
  // `cluster` passes check() and has as many ranks as the schedule.
  Predictor(const schedule::Schedule& schedule, const ClusterModel& cluster, Cutting cutting = {});
  ~Predictor();
  Predictor(Predictor&&) noexcept;
  Predictor& operator=(Predictor&&) noexcept;

  // All take the bytes of one block: the count of the call times the size of an element.

  // Can the schedule be lowered at this size? (If so, at all smaller ones.)
  bool fits(uint64_t bytes) const;
  double seconds(uint64_t bytes);
  Cost cost(uint64_t bytes);
  // Do both predict the same of every size, since they play the same? As algorithms do that differ on other clusters.
  bool same_as(const Predictor& other) const;
  // Tiles worked on so far: what predicting costs (some 0.1 us each).
  uint64_t tiles() const;

 private:
  class Player;
  std::unique_ptr<Player> player_;
};

}  // namespace ringfold::model
