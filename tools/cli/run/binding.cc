#include "tools/cli/run/binding.h"

#include <hwloc.h>

#include <climits>

#include "base/processors.h"

namespace ringfold::cli {

std::vector<std::vector<bool>> share_processors(int ranks) {
  const auto mine = base::Processors::mine();
  if (ranks < 2 || ranks > mine.usable()) return {};
  hwloc_topology_t topology;
  if (hwloc_topology_init(&topology) != 0) return {};
  std::vector<std::vector<bool>> shares;
  if (hwloc_topology_load(topology) == 0) {
    hwloc_bitmap_t allowed = hwloc_bitmap_alloc();
    for (size_t i = 0; i < mine.mask.size(); ++i) {
      if (mine.mask[i]) hwloc_bitmap_set(allowed, static_cast<unsigned>(i));
    }
    std::vector<hwloc_bitmap_t> sets(static_cast<size_t>(ranks));  // hwloc_distrib allocates them
    hwloc_obj_t root = nullptr;
    if (hwloc_topology_restrict(topology, allowed, HWLOC_RESTRICT_FLAG_REMOVE_CPULESS) == 0) {
      root = hwloc_get_root_obj(topology);
    }
    if (root != nullptr &&
        hwloc_distrib(topology, &root, 1, sets.data(), static_cast<unsigned>(ranks), INT_MAX, 0) == 0) {
      for (const auto& set : sets) {
        std::vector<bool> share(mine.mask.size());
        for (size_t i = 0; i < share.size(); ++i) share[i] = hwloc_bitmap_isset(set, static_cast<unsigned>(i)) != 0;
        shares.push_back(std::move(share));
      }
    }
    for (auto& set : sets) hwloc_bitmap_free(set);
    hwloc_bitmap_free(allowed);
  }
  hwloc_topology_destroy(topology);
  return shares;
}

}  // namespace ringfold::cli
