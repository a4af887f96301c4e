// Which processors each rank on this host gets.
#pragma once

#include <vector>

namespace ringfold::cli {

// By local rank, by processor number: shares of this process's processors that do not overlap, as far apart in the
// machine's caches and memory as they can be. Without them the system puts ranks that wake each other on one
// processor now and then, and leaves them there. Empty when there are fewer processors than ranks, or the machine
// cannot be read.
std::vector<std::vector<bool>> share_processors(int ranks);

}  // namespace ringfold::cli
