// The shapes and parameters that schedule tests sweep over.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "algo/algo.h"

namespace ringfold::test {

using schedule::Shape;

inline constexpr Collective kEvery[] = {
    Collective::kAllReduce, Collective::kReduce,    Collective::kReduceScatter,
    Collective::kAllGather, Collective::kBroadcast, Collective::kGather,
    Collective::kScatter,   Collective::kAllToAll,  Collective::kBarrier,
};

inline const std::vector<std::string>& every_algorithm() {
  static const std::vector<std::string> names = {"ring",  "tree", "recursive", "direct",      "oneshot",
                                                 "chain", "star", "doubling",  "hierarchical"};
  return names;
}

inline bool has(const std::string& algorithm, Collective collective) {
  const auto names = algo::algorithms_for(collective);
  return std::find(names.begin(), names.end(), algorithm) != names.end();
}

// All roots of few ranks; of many: the ends, the middle, and one that moves with `ranks`.
inline std::vector<int> roots_of(Collective collective, int ranks) {
  if (!has_root(collective)) return {0};
  std::vector<int> roots;
  for (int r = 0; r < ranks; ++r) {
    if (ranks <= 12 || r == 0 || r == ranks / 2 || r == ranks - 1 || r == (ranks * 7 + 3) % ranks) roots.push_back(r);
  }
  return roots;
}

// Rank -> host as make() wants it: numbered in order of first appearance.
inline std::vector<int> renumbered(const std::vector<int>& hosts) {
  std::vector<int> seen, result;
  for (const int host : hosts) {
    auto it = std::find(seen.begin(), seen.end(), host);
    if (it == seen.end()) it = seen.insert(seen.end(), host);
    result.push_back(static_cast<int>(it - seen.begin()));
  }
  return result;
}

// Placements: one host per rank, one host, pairs, eights (the last host may be smaller), round robin over 3 hosts,
// hosts of sizes 1, 2, 3, ..., and one large host among single ranks.
inline std::vector<std::vector<int>> placements_of(int ranks) {
  std::vector<std::vector<int>> all(7);
  int host = 0;
  int left = 1;
  for (int r = 0; r < ranks; ++r) {
    all[1].push_back(0);
    all[2].push_back(r / 2);
    all[3].push_back(r / 8);
    all[4].push_back(r % 3);
    if (left-- == 0) left = ++host;
    all[5].push_back(host);
    all[6].push_back(r % 2 == 0 ? 0 : r);
  }
  for (auto& placement : all) placement = renumbered(placement);
  return all;
}

inline std::string name_of_case(const Shape& shape, const algo::Parameters& parameters) {
  std::string text(name_of(shape.collective));
  text += " n=" + std::to_string(shape.ranks) + " root=" + std::to_string(shape.root);
  text += " lanes=" + std::to_string(parameters.lanes) + " hosts=";
  for (const int host : parameters.host_of) text += std::to_string(host) + ",";
  return text;
}

}  // namespace ringfold::test
