#include "tools/cli/perf/operation.h"

#include <algorithm>
#include <numeric>

namespace ringfold::cli {

const Operations& operations() {
  static const Operations kList = [] {
    Operations list;
    add_reductions(&list);
    add_gathers(&list);
    add_exchanges(&list);
    add_messages(&list);
    return list;
  }();
  return kList;
}

const Operation* find_operation(std::string_view name) {
  for (const auto& operation : operations()) {
    if (operation->name() == name) return operation.get();
  }
  return nullptr;
}

size_t Operation::block_for(size_t bytes, DataType type, int ranks) const {
  return std::max<size_t>(1, bytes / (blocks(ranks) * size_of(type)));
}

std::vector<size_t> uneven_counts(size_t block, int ranks) {
  std::vector<size_t> counts(static_cast<size_t>(ranks), block);
  // Neighbours give and take a third, and of four ranks one has nothing where there are enough to notice.
  for (size_t r = 0; r + 1 < counts.size(); r += 2) {
    const size_t moved = r % 8 == 4 ? block : block / 3;
    counts[r] -= moved;
    counts[r + 1] += moved;
  }
  return counts;
}

size_t sum_before(const std::vector<size_t>& counts, int rank) {
  return std::accumulate(counts.begin(), counts.begin() + rank, size_t{0});
}

}  // namespace ringfold::cli
