// Sizes and places of a collective's blocks on one rank: what turns a symbolic schedule into bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "ringfold/types.h"
#include "schedule/schedule.h"

namespace ringfold::plan {

// In elements. Blocks lie one after another in the user's buffers. With `sizes` empty every block has `count`
// elements. The -v forms give sizes: for all_gather_v and reduce_scatter_v (and gather, scatter) one per rank, equal
// on all ranks; for all_to_all_v what this rank sends to each rank in `sizes` and what it receives from each in
// `receive_sizes`.
struct Layout {
  schedule::Shape shape;
  int rank = 0;
  uint64_t count = 0;
  std::vector<uint64_t> sizes;
  std::vector<uint64_t> receive_sizes;

  uint64_t elems_of(uint64_t block) const {
    if (sizes.empty()) return count;
    if (shape.collective != Collective::kAllToAll) return sizes[block];
    const auto n = static_cast<uint64_t>(shape.ranks);
    return block / n == static_cast<uint64_t>(rank) ? sizes[block % n] : receive_sizes[block / n];
  }
  // Offset of a block in the input of this rank, if it is there; and in its output.
  std::optional<uint64_t> input_offset(uint64_t block) const {
    if (!schedule::starts_with(shape, rank, block)) return std::nullopt;
    switch (shape.collective) {
      case Collective::kReduceScatter:
      case Collective::kScatter: return before(sizes, block);
      case Collective::kAllToAll: return before(sizes, block % static_cast<uint64_t>(shape.ranks));
      default: return 0;
    }
  }
  std::optional<uint64_t> output_offset(uint64_t block) const {
    if (!schedule::ends_with(shape, rank, block)) return std::nullopt;
    switch (shape.collective) {
      case Collective::kAllGather:
      case Collective::kGather: return before(sizes, block);
      case Collective::kAllToAll: return before(receive_sizes, block / static_cast<uint64_t>(shape.ranks));
      default: return 0;
    }
  }
  // Elements of the user's buffers on this rank; 0 where the rank has none.
  uint64_t input_elems() const;
  uint64_t output_elems() const;
  uint64_t largest_block() const;

 private:
  uint64_t before(const std::vector<uint64_t>& all, uint64_t block) const {
    if (all.empty()) return block * count;
    uint64_t sum = 0;
    for (uint64_t b = 0; b < block; ++b) sum += all[b];
    return sum;
  }
};

}  // namespace ringfold::plan
