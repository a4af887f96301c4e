// From what the command line says to a strategy of synchronisation. Free of libtorch.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "ringfold/communicator.h"
#include "sync/strategy.h"
#include "train/args.h"

namespace ringfold::train {

// A parameter of a model, as far as synchronisation cares: its shape as a matrix of outputs x (all the rest), or one
// row for what has one dimension.
struct ParameterShape {
  std::string name;
  size_t rows = 1;
  size_t cols = 0;
  bool matrix = false;  // what is none is small, bears no errors of codes, and travels whole
  size_t elems() const { return rows * cols; }
};

// Collective. kInvalid: what is asked for does not fit the model or the number of ranks.
// `device`: where gradients are made, if on a device; only the synchronous ones with whole gradients reduce them
// there.
Result<std::unique_ptr<sync::Strategy>> make_strategy(Communicator& comm, const Args& args,
                                                      const std::vector<ParameterShape>& parameters,
                                                      std::shared_ptr<sync::DeviceGradients> device = nullptr);

// Rank 0, after the run: writes who updated when, where --record-order asks for it.
Status record_order(const Args& args, sync::Strategy& strategy);

}  // namespace ringfold::train
