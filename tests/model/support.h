// What tests of the cost model and the tuner share: the real generators as candidates.
#pragma once

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <string>
#include <string_view>
#include <vector>

#include "algo/algo.h"
#include "model/cost.h"
#include "model/tuner.h"

namespace ringfold::model {

// `ranks` spread evenly, in order, over `hosts` with `cores` cores each.
inline ClusterModel cluster_of(int ranks, int hosts, int cores, std::string same_host = "shm") {
  std::vector<int> host_of;
  for (int r = 0; r < ranks; ++r) host_of.push_back(r * hosts / ranks);
  return default_cluster(std::move(host_of), std::vector<int>(static_cast<size_t>(hosts), cores),
                         std::move(same_host));
}

inline Result<schedule::Schedule> schedule_of(const ClusterModel& cluster, Collective collective,
                                              std::string_view algorithm, int lanes = 1) {
  return algo::make(algorithm, {.collective = collective, .ranks = cluster.ranks()},
                    {.lanes = lanes, .host_of = cluster.host_of});
}

inline Predictor predictor_of(const ClusterModel& cluster, Collective collective, std::string_view algorithm,
                              int lanes = 1, Cutting cutting = {}) {
  return Predictor(schedule_of(cluster, collective, algorithm, lanes).value(), cluster, cutting);
}

inline double seconds_of(const ClusterModel& cluster, Collective collective, std::string_view algorithm,
                         uint64_t bytes, int lanes = 1) {
  return predictor_of(cluster, collective, algorithm, lanes).seconds(bytes);
}

// Refers to the cluster.
inline Candidates candidates_of(const ClusterModel& cluster) {
  return {.algorithms_for = algo::algorithms_for,
          .make = [&cluster](Collective collective, std::string_view algorithm,
                             int lanes) { return schedule_of(cluster, collective, algorithm, lanes); },
          .canonical = algo::is_canonical};
}

// Checks a property on random cases.
template <typename Property>
void holds(const std::string& what, Property property) {
  EXPECT_TRUE(rc::check(what, property)) << what;
}

inline Collective collective_of(int index) { return static_cast<Collective>(index); }

}  // namespace ringfold::model
