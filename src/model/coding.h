// What codes on links change in the model of a cluster, and from which rate of the links on they do not pay.
//
// A schedule whose links carry codes is played like any other, on a cluster whose figures are per byte of *values*:
// the wire and the copies at either end see the code, which is shorter by the codec's ratio, and the cores encode
// before a put and decode after a take.
#pragma once

#include "model/cluster.h"
#include "model/tuner.h"
#include "ringfold/codec.h"

namespace ringfold::model {

// Bytes of code per byte of values, for long messages.
double wire_ratio(const Codec& codec);

// The cluster as a schedule of `collective` sees it that runs with `codec`, on the links between hosts if there are
// several, else on those of the host.
ClusterModel with_codec(const ClusterModel& cluster, const Codec& codec, Collective collective);

// The least predicted time over the candidates' algorithms, with one lane; infinity: there is none.
double least_seconds(const ClusterModel& cluster, const Candidates& candidates, Collective collective, uint64_t bytes,
                     const Cutting& cutting);

// The rate of the links between hosts, in bytes per second, above which sending `bytes` per block as values is the
// faster way, all else in the cluster as it is; 0: it always is; infinity: it never is, up to 10^12. For several
// hosts.
double crossover_rate(const ClusterModel& cluster, const Candidates& plain, const Candidates& coded,
                      Collective collective, const Codec& codec, uint64_t bytes, const Cutting& cutting);

}  // namespace ringfold::model
