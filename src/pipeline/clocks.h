// One clock for all ranks.
#pragma once

#include <functional>

#include "ringfold/communicator.h"

namespace ringfold::pipeline {

// Collective: what this rank's clock is ahead of rank 0's, in seconds, off by half a round trip at most. 0 where both
// are on one host, whose ranks share a clock, unless `even_here`.
Result<double> clock_offset(Communicator& comm, const std::function<double()>& now, bool even_here = false);

}  // namespace ringfold::pipeline
