// The learning rate of a step, by --schedule: constant, or cosine (a warm-up, then down to 0). Free of libtorch.
#pragma once

#include <cstddef>

#include "train/args.h"

namespace ringfold::train {

// Of step number `step`, from 0, of `steps`.
double learning_rate(const Args& args, size_t step, size_t steps);

}  // namespace ringfold::train
