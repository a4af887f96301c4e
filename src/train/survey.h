// Measures what the agent plans from: how long each rank computes, and how long the sum of all gradients takes with
// each codec, for several crews of ranks. Free of libtorch.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "ringfold/communicator.h"
#include "train/agent.h"

namespace ringfold::train {

struct Rehearsal {
  // Forward and backward of so many samples on this rank; seconds.
  std::function<double(size_t samples)> compute;
  // Collective over a crew: some steps (kRehearsed, after one to warm up) with these settings; seconds each.
  std::function<Result<double>(Communicator& crew, const Settings& settings)> step;
};
inline constexpr size_t kRehearsed = 10;

// Collective; the same result on all ranks. Crews are all ranks, those of them that are not much slower than the
// fastest, the first of each host, half, and one, where half are not much slower than all; while one is measured the
// others sleep. Takes some tenths of a second per crew, more on slow links.
// `multiple`: a crew of as many ranks as are a multiple of it, too.
Result<Survey> survey(Communicator& comm, size_t gradient_elems, size_t batch, int max_ranks, int multiple,
                      const Rehearsal& rehearsal);

// Collective. Tries the candidates that look best, until the best is one that was tried: their steps are as measured
// then, and what a crew's steps took beside the prediction is taken to hold for its others with the same `sync` and
// cut. The best first.
Status rehearse(Communicator& comm, const Survey& survey, const Rehearsal& rehearsal,
                std::vector<Candidate>* candidates);

}  // namespace ringfold::train
