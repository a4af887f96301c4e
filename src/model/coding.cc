#include "model/coding.h"

#include <algorithm>

namespace ringfold::model {

double wire_ratio(const Codec& codec) {
  constexpr uint64_t kMany = 64 * Codec::kGroup;
  return static_cast<double>(encoded_bytes(codec, kMany)) / (kMany * sizeof(float));
}

ClusterModel with_codec(const ClusterModel& cluster, const Codec& codec, double encodings) {
  ClusterModel coded = cluster;
  const double ratio = wire_ratio(codec);
  CodecFigures figures = cluster.codecs[static_cast<size_t>(codec.kind)];
  // Rotation and random numbers are not measured; they cost about as much as the coding itself.
  if (codec.rotate || codec.rounding == Rounding::kStochastic) figures.encode *= 2;
  if (codec.rotate) figures.decode *= 2;
  const bool several = cluster.hosts() > 1;
  LinkFigures& link = coded.links[static_cast<int>(several ? LinkClass::kOtherHost : LinkClass::kSameHost)];
  link.wire *= ratio;
  link.put = link.put * ratio + figures.encode / std::max(encodings, 1.0);
  // Decoding adds, too: what the model counts as a fold comes on top, and is left out where it is the larger.
  link.take = link.take * ratio + std::max(0.0, figures.decode - cluster.node.reduce / 2);
  if (several) coded.node.port *= ratio;
  return coded;
}

}  // namespace ringfold::model
