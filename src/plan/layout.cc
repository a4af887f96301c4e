#include "plan/layout.h"

#include <algorithm>

namespace ringfold::plan {

uint64_t Layout::input_elems() const {
  uint64_t sum = 0;
  const auto n = static_cast<uint64_t>(shape.ranks);
  switch (shape.collective) {
    case Collective::kAllGather:
    case Collective::kGather: return elems_of(static_cast<uint64_t>(rank));
    case Collective::kReduceScatter:
      for (uint64_t b = 0; b < n; ++b) sum += elems_of(b);
      return sum;
    case Collective::kScatter:
      if (rank != shape.root) return 0;
      for (uint64_t b = 0; b < n; ++b) sum += elems_of(b);
      return sum;
    case Collective::kAllToAll:
      for (uint64_t d = 0; d < n; ++d) sum += elems_of(static_cast<uint64_t>(rank) * n + d);
      return sum;
    case Collective::kBroadcast: return rank == shape.root ? count : 0;
    default: return count;
  }
}

uint64_t Layout::output_elems() const {
  uint64_t sum = 0;
  const auto n = static_cast<uint64_t>(shape.ranks);
  switch (shape.collective) {
    case Collective::kGather:
      if (rank != shape.root) return 0;
      [[fallthrough]];
    case Collective::kAllGather:
      for (uint64_t b = 0; b < n; ++b) sum += elems_of(b);
      return sum;
    case Collective::kReduceScatter:
    case Collective::kScatter: return elems_of(static_cast<uint64_t>(rank));
    case Collective::kAllToAll:
      for (uint64_t s = 0; s < n; ++s) sum += receive_sizes.empty() ? count : receive_sizes[s];
      return sum;
    case Collective::kReduce: return rank == shape.root ? count : 0;
    default: return count;
  }
}

uint64_t Layout::largest_block() const {
  if (sizes.empty()) return count;
  uint64_t largest = *std::max_element(sizes.begin(), sizes.end());
  if (!receive_sizes.empty())
    largest = std::max(largest, *std::max_element(receive_sizes.begin(), receive_sizes.end()));
  return largest;
}

}  // namespace ringfold::plan
