// What codes on links change in the model of a cluster.
//
// A schedule whose links carry codes is played like any other, on a cluster whose figures are per byte of *values*: the wire
// and the copies at either end see the code, which is shorter by the codec's ratio, and the cores encode before a put
// and decode after a take.
#pragma once

#include "model/cluster.h"
#include "ringfold/codec.h"

namespace ringfold::model {

// Bytes of code per byte of values, for long messages.
double wire_ratio(const Codec& codec);

// The cluster as a schedule sees it that runs with `codec`, on the links between hosts if there are several, else on those
// of the host. `encodings`: how often a value leaves a rank for each time that it is encoded, at least 1: a direct all-gather
// encodes once for all receivers.
ClusterModel with_codec(const ClusterModel& cluster, const Codec& codec, double encodings);

}  // namespace ringfold::model
