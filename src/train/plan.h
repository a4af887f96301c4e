// What the agent does before a run. Free of libtorch.
#pragma once

#include <optional>

#include "ringfold/communicator.h"
#include "train/agent.h"
#include "train/args.h"
#include "train/dataset.h"
#include "train/report.h"

namespace ringfold::train {

// Makes the arguments what the settings say, but for the learning rate.
void apply(const Settings& settings, Args& args);

// Collective. Measures, plans, says why, and makes the settings those of the best plan. The communicator of those
// that take part becomes `crew` where not all do; nothing: this rank does not.
Result<std::optional<Agent>> plan_run(Communicator& comm, Args& args, const Dataset& data, Reporter& reporter,
                                      Communicator* crew);

}  // namespace ringfold::train
