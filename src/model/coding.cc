#include "model/coding.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ringfold::model {
namespace {

constexpr double kInfinite = std::numeric_limits<double>::infinity();

// How many puts a rank makes for each time that it encodes: what it sends to several ranks it encodes once.
double puts_per_encoding(Collective collective, int ranks) {
  switch (collective) {
    case Collective::kAllReduce: return 2.0 * (ranks - 1) / ranks;
    case Collective::kReduceScatter: return 1;
    default: return std::max(1, ranks - 1);
  }
}

}  // namespace

double wire_ratio(const Codec& codec) {
  constexpr uint64_t kMany = 64 * Codec::kGroup;
  return static_cast<double>(encoded_bytes(codec, kMany)) / (kMany * sizeof(float));
}

ClusterModel with_codec(const ClusterModel& cluster, const Codec& codec, Collective collective) {
  ClusterModel coded = cluster;
  const double ratio = wire_ratio(codec);
  CodecFigures figures = cluster.codecs[static_cast<size_t>(codec.kind)];
  // Rotation and random numbers are not measured: they cost as much as the rest, or more.
  if (codec.rotate || codec.rounding == Rounding::kStochastic) figures.encode *= 3;
  if (codec.rotate) figures.decode *= 3;
  const bool several = cluster.hosts() > 1;
  LinkFigures& link = coded.links[static_cast<int>(several ? LinkClass::kOtherHost : LinkClass::kSameHost)];
  link.wire *= ratio;
  link.put = link.put * ratio + figures.encode / std::max(1.0, puts_per_encoding(collective, cluster.ranks()));
  // Decoding adds, too, which a schedule counts as a fold or a copy of its own.
  link.take = link.take * ratio + std::max(0.0, figures.decode - cluster.node.reduce / 2);
  if (several) coded.node.port *= ratio;
  return coded;
}

double least_seconds(const ClusterModel& cluster, const Candidates& candidates, Collective collective, uint64_t bytes,
                     const Cutting& cutting) {
  double least = kInfinite;
  for (const auto& algorithm : candidates.algorithms_for(collective)) {
    const auto schedule = candidates.make(collective, algorithm, 1);
    if (schedule.ok()) least = std::min(least, Predictor(*schedule, cluster, cutting).seconds(bytes));
  }
  return least;
}

double crossover_rate(const ClusterModel& cluster, const Candidates& plain, const Candidates& coded,
                      Collective collective, const Codec& codec, uint64_t bytes, const Cutting& cutting) {
  const auto codes_win = [&](double rate) {
    ClusterModel other = cluster;
    other.links[static_cast<int>(LinkClass::kOtherHost)].wire = other.node.port = 1 / rate;
    return least_seconds(with_codec(other, codec, collective), coded, collective, bytes, cutting) <
           least_seconds(other, plain, collective, bytes, cutting);
  };
  double low = 1e5, high = 1e12;
  if (codes_win(high)) return kInfinite;
  if (!codes_win(low)) return 0;
  while (high / low > 1.02) {
    const double middle = std::sqrt(low * high);
    (codes_win(middle) ? low : high) = middle;
  }
  return low;
}

}  // namespace ringfold::model
