// What the tuner chooses without measuring, held against times that were measured: an Intel Xeon with two cores,
// ranks over TCP through the loopback interface, medians of `RINGFOLD_ALGORITHM=OP:NAME ringfold perf OP --transport
// tcp` in us (of two launches the lesser, from 512 KiB on the median of five; out of and in place: geometric means).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <sstream>

#include "tests/model/support.h"

namespace ringfold::model {
namespace {

using C = Collective;

struct Recorded {
  Collective collective;
  int ranks;
  uint64_t kib;       // of the largest buffer of a rank
  const char* times;  // by algorithm
};

constexpr Recorded kRecorded[] = {
    {C::kAllReduce, 2, 8, "oneshot 5 doubling 6 direct 9 ring 9 recursive 9 tree 10 chain 10 star 13"},
    {C::kAllReduce, 2, 32, "oneshot 10 doubling 11 recursive 14 direct 14 ring 14 tree 15 chain 17 star 20"},
    {C::kAllReduce, 2, 128, "doubling 30 tree 31 direct 32 ring 32 recursive 33 oneshot 36 chain 41 star 43"},
    {C::kAllReduce, 2, 512, "tree 97 ring 101 direct 102 recursive 102 oneshot 108 doubling 109 chain 125 star 130"},
    {C::kAllReduce, 2, 2048,
     "tree 414 ring 456 direct 472 recursive 477 star 499 doubling 528 oneshot 551 chain 560"},
    {C::kAllReduce, 2, 8192,
     "tree 1847 ring 1893 recursive 1909 direct 1939 star 1946 doubling 2204 oneshot 2272 chain 2366"},
    {C::kAllReduce, 4, 8, "star 19 doubling 27 oneshot 34 chain 38 tree 46 recursive 50 direct 67 ring 70"},
    {C::kAllReduce, 4, 32, "star 30 doubling 50 tree 54 recursive 59 chain 61 ring 61 oneshot 64 direct 77"},
    {C::kAllReduce, 4, 128, "tree 101 star 102 recursive 111 ring 116 chain 130 direct 131 doubling 159 oneshot 221"},
    {C::kAllReduce, 4, 512, "direct 462 recursive 465 ring 518"},
    {C::kAllReduce, 4, 2048, "direct 1184 recursive 1324 ring 1508"},
    {C::kAllReduce, 4, 8192, "direct 5237 recursive 5345 ring 6413"},
    {C::kAllReduce, 8, 8, "star 47 tree 123 doubling 127 recursive 127 chain 152 oneshot 156 ring 229 direct 232"},
    {C::kAllReduce, 8, 32, "star 67 recursive 178 tree 184 chain 237 doubling 275 direct 305 ring 330 oneshot 462"},
    {C::kAllReduce, 8, 128,
     "star 323 recursive 352 direct 400 tree 447 ring 520 chain 533 doubling 799 oneshot 1319"},
    {C::kAllReduce, 8, 512, "direct 1024 tree 1034 recursive 1119 ring 1236"},
    {C::kAllReduce, 8, 2048, "tree 3153 direct 3269 ring 3314 recursive 3620"},
    {C::kAllReduce, 8, 8192, "recursive 15221 direct 16164 ring 16451"},
    {C::kReduceScatter, 4, 8, "star 20 recursive 25 direct 31 ring 33"},
    {C::kReduceScatter, 4, 32, "star 27 recursive 33 ring 37 direct 38"},
    {C::kReduceScatter, 4, 128, "direct 58 star 67 recursive 68 ring 78"},
    {C::kReduceScatter, 4, 512, "ring 210 direct 220 recursive 258"},
    {C::kReduceScatter, 4, 2048, "direct 648 ring 950 recursive 976"},
    {C::kReduceScatter, 4, 8192, "direct 2530 recursive 3332 ring 3426"},
    {C::kReduceScatter, 8, 8, "star 47 recursive 113 direct 129 ring 158"},
    {C::kReduceScatter, 8, 32, "star 69 recursive 113 direct 137 ring 145"},
    {C::kReduceScatter, 8, 128, "star 202 recursive 207 ring 224 direct 276"},
    {C::kReduceScatter, 8, 512, "direct 623 ring 733 recursive 756"},
    {C::kReduceScatter, 8, 2048, "direct 1490 ring 2159 recursive 2216"},
    {C::kReduceScatter, 8, 8192, "direct 8516 ring 8828 recursive 11254"},
    {C::kAllGather, 4, 8, "star 17 recursive 28 ring 29 direct 29"},
    {C::kAllGather, 4, 32, "star 24 recursive 30 direct 33 ring 39"},
    {C::kAllGather, 4, 128, "recursive 49 direct 50 ring 57 star 60"},
    {C::kAllGather, 4, 512, "recursive 142 ring 161 direct 171"},
    {C::kAllGather, 4, 2048, "recursive 576 ring 582 direct 618"},
    {C::kAllGather, 4, 8192, "recursive 2303 direct 2400 ring 2676"},
    {C::kAllGather, 8, 8, "star 46 recursive 85 direct 108 ring 110"},
    {C::kAllGather, 8, 32, "star 61 recursive 100 direct 119 ring 157"},
    {C::kAllGather, 8, 128, "star 169 direct 182 recursive 191 ring 215"},
    {C::kAllGather, 8, 512, "direct 469 recursive 476 ring 527"},
    {C::kAllGather, 8, 2048, "direct 1370 ring 1503 recursive 1603"},
    {C::kAllGather, 8, 8192, "ring 6296 recursive 6956 direct 7215"},
    {C::kBroadcast, 4, 8, "direct 4 chain 15 tree 17"},
    {C::kBroadcast, 4, 32, "direct 7 chain 12 tree 21"},
    {C::kBroadcast, 4, 64, "direct 21 chain 33 tree 37"},
    {C::kBroadcast, 4, 256, "direct 68 chain 89 tree 91"},
    {C::kBroadcast, 4, 1024, "direct 316 chain 338 tree 374"},
    {C::kBroadcast, 4, 4096, "chain 902 tree 1453 direct 1678"},
    {C::kBroadcast, 4, 16384, "chain 6528 tree 7104 direct 7571"},
    {C::kBroadcast, 8, 8, "direct 10 tree 48 chain 61"},
    {C::kBroadcast, 8, 32, "direct 15 tree 56 chain 82"},
    {C::kBroadcast, 8, 64, "direct 44 tree 87 chain 88"},
    {C::kBroadcast, 8, 256, "direct 152 tree 209 chain 255"},
    {C::kBroadcast, 8, 1024, "direct 687 tree 723 chain 856"},
    {C::kBroadcast, 8, 4096, "tree 2995 chain 3267 direct 3654"},
    {C::kBroadcast, 8, 16384, "chain 16051 tree 16195 direct 16838"},
};

uint64_t block_of(const Recorded& row) {
  const bool many = row.collective == C::kReduceScatter || row.collective == C::kAllGather;
  return (row.kib << 10) / (many ? static_cast<uint64_t>(row.ranks) : 1);
}

std::map<std::string, double> times_of(const Recorded& row) {
  std::map<std::string, double> times;
  std::istringstream text(row.times);
  std::string name;
  for (double us = 0; text >> name >> us;) times[name] = us;
  return times;
}

constexpr Cutting kCutting{.tile_bytes = 124 << 10, .slots = 8};

TEST(Recorded, WhatTheTunerChoosesTakesLittleMoreThanTheBest) {
  double sum = 0;
  for (const Recorded& row : kRecorded) {
    const ClusterModel cluster = cluster_of(row.ranks, 1, 2, "tcp");
    const Tuner tuner =
        Tuner::build(cluster, candidates_of(cluster), {.cutting = kCutting, .collectives = {row.collective}}).value();
    const auto times = times_of(row);
    const auto best =
        std::min_element(times.begin(), times.end(), [](auto& a, auto& b) { return a.second < b.second; });
    const std::string chosen = tuner.choose(row.collective, block_of(row)).algorithm;
    const auto own = times.find(chosen == "hierarchical" ? "direct" : chosen);  // the same on one host
    ASSERT_NE(own, times.end()) << chosen;
    const double regret = own->second / best->second;
    sum += std::log(regret);
    EXPECT_LE(regret, 1.45) << name_of(row.collective) << " of " << row.kib << " KiB, " << row.ranks
                            << " ranks: " << chosen << " instead of " << best->first;
  }
  EXPECT_LE(std::exp(sum / std::size(kRecorded)), 1.06);
}

TEST(Recorded, PredictionsAreOfTheRightOrder) {
  double sum = 0;
  int count = 0;
  for (const Recorded& row : kRecorded) {
    const ClusterModel cluster = cluster_of(row.ranks, 1, 2, "tcp");
    for (const auto& [name, us] : times_of(row)) {
      Predictor predictor = predictor_of(cluster, row.collective, name, 1, kCutting);
      if (!predictor.fits(block_of(row))) continue;  // another one was run
      const double error = std::log(predictor.seconds(block_of(row)) * 1e6 / us);
      sum += error * error;
      ++count;
    }
  }
  EXPECT_LE(std::sqrt(sum / count), std::log(1.5));
}

}  // namespace
}  // namespace ringfold::model
