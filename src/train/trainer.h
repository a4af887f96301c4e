// Training, from the ranks of a job to a trained model: who shares what, and the loop (loop.h). Free of libtorch's
// headers.
#pragma once

#include "ringfold/communicator.h"
#include "train/args.h"
#include "train/dataset.h"
#include "train/report.h"

namespace ringfold::train {

// One thread for each rank's arithmetic, as ranks are what uses the cores. Before the first train().
void use_one_thread();

// Collective: every rank of `comm` calls it with the same arguments and data. Trains until args.epochs or the target
// accuracy. The first error ends it: a peer's failure as the verdict that all survivors share, replicas that differ
// as kInternal. `parameters`, if given, receives the trained parameters, one after another. Ranks may be threads of
// one process.
Result<Summary> train(Communicator& comm, const Args& args, const Dataset& data, Reporter& reporter,
                      std::vector<float>* parameters = nullptr);

}  // namespace ringfold::train
