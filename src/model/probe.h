// Turns measurements into the figures of a cluster: what to measure within a few seconds, and the fit.
//
// At most one pair of ranks is measured per class of links (the prober's rank with the first other rank of its host,
// and with the first rank of another host), since all pairs of a class share their figures. The measuring itself is
// the caller's, which owns the communicator and the clock; the time that its answers add up to is the budget's clock.
//
// The fit. Times scatter upwards only (a rank that lost its core), so each point is the median of its repeats; and
// from 8 bytes to 64 KiB they span decades, so errors count relative to the time (least squares with weights 1/t).
#pragma once

#include <cstdint>
#include <vector>

#include "model/cluster.h"
#include "ringfold/status.h"

namespace ringfold::model {

// All in seconds. A failure ends the probing.
class Prober {
 public:
  virtual ~Prober() = default;
  // A message of `bytes` to `peer`, and one of the same size back.
  virtual Result<double> round_trip(int peer, uint64_t bytes) = 0;
  // `count` messages of `bytes`, one after another, to `peer`, and its word that all have arrived.
  virtual Result<double> stream(int peer, uint64_t bytes, int count) = 0;
  // Folding two operands of `bytes` into one; copying `bytes`. On buffers that stay in the cache of a core, as tiles
  // do.
  virtual Result<double> reduce(uint64_t bytes) = 0;
  virtual Result<double> copy(uint64_t bytes) = 0;
  // Encoding `bytes` of values, and decoding and adding them; not in the cache before.
  virtual Result<double> encode(CodecKind kind, uint64_t bytes) = 0;
  virtual Result<double> decode(CodecKind kind, uint64_t bytes) = 0;
};

// seconds = fixed + slope * x, both at least 0.
struct Line {
  double fixed = 0;
  double slope = 0;
};
struct Sample {
  double x = 0;
  double seconds = 0;
};
// Through the medians of the samples with equal x. With one x only: no slope. Without samples: zero.
Line fit_line(std::vector<Sample> samples);

// What was measured over one link.
struct LinkSamples {
  std::vector<Sample> round_trips;   // x: bytes
  std::vector<Sample> small_stream;  // x: messages of a few bytes
  std::vector<Sample> large_stream;  // x: messages of `large_bytes`
  double large_bytes = 0;
};
// The figures, where samples suffice; else those of `known`. `copy`: s/B of a core that copies memory.
LinkFigures fit_link(LinkClass link_class, const LinkSamples& samples, double copy, const LinkFigures& known);

// Measures from rank `me` and returns `known` with the figures replaced that could be measured. Spends about
// `budget_s` in total; what a slow link leaves no time for keeps its value.
Result<ClusterModel> probe(Prober& prober, const ClusterModel& known, int me, double budget_s = 2.0);

}  // namespace ringfold::model
