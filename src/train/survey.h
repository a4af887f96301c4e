// Measures what the agent plans from: how long each rank computes, and how long the sum of all gradients takes with
// each codec, for several crews of ranks. Free of libtorch.
#pragma once

#include <cstddef>
#include <functional>

#include "ringfold/communicator.h"
#include "train/agent.h"

namespace ringfold::train {

// Forward and backward of so many samples on this rank; seconds.
using Compute = std::function<double(size_t samples)>;

// Collective; the same result on all ranks. Crews are all ranks, the first of each host, half of all, and one; while
// one is measured the others sleep. Takes some tenths of a second per crew, more on slow links.
Result<Survey> survey(Communicator& comm, size_t gradient_elems, size_t batch, int max_ranks, const Compute& compute);

}  // namespace ringfold::train
