// The user's own choice of algorithms: the text of RINGFOLD_ALGORITHM.
//
//   text       = "auto" | rule {";" rule}
//   rule       = [collective ":" [range ":"]] algorithm ["," "lanes=" 1..4]
//   range      = size "-" [size]          from the first (included) to the second (excluded), of the bytes of one
//   block size       = digits ["k" | "m" | "g"]
//
// "ring": wherever there is a ring. "all_reduce:0-4k:oneshot;all_reduce:4k-:ring,lanes=2;broadcast:tree". Of several
// rules for a size the last holds; sizes without a rule, and the algorithm "auto", are the tuner's.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ringfold/status.h"
#include "ringfold/types.h"

namespace ringfold::model {

inline constexpr std::string_view kAuto = "auto";
inline constexpr uint64_t kNoLimit = UINT64_MAX;

struct Rule {
  std::optional<Collective> collective;  // none: every collective that has the algorithm
  uint64_t from = 0;                     // bytes of one block
  uint64_t to = kNoLimit;                // excluded
  std::string algorithm;
  int lanes = 0;  // 0: the tuner chooses
  friend bool operator==(const Rule&, const Rule&) = default;
};

// The names of the algorithms that a collective has.
using AlgorithmsFor = std::function<std::vector<std::string>(Collective)>;

// kInvalid names the rule and what would be right.
Result<std::vector<Rule>> parse_override(std::string_view text, const AlgorithmsFor& algorithms_for);

}  // namespace ringfold::model
