// Which part of a model a rank holds, for checkpoints: strategies number the parameters that they have, files those
// of the whole model. So a run can go on with its layers on other ranks. Free of libtorch.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "sync/state.h"

namespace ringfold::train {

struct Holding {
  // Elements [own, own + elems) of what the rank has are [model, model + elems) of the model.
  struct Range {
    size_t own = 0, model = 0, elems = 0;
  };
  std::vector<Range> ranges;  // in order of both
  // Ranks that share layers have parts of each parameter: behind the names of vectors, so that they stay apart.
  std::string part;
  // What cannot be cut (what codes missed, by bucket) is of use to a rank that holds the very same: behind its names.
  std::string place;

  // A strategy's share of the state as it goes into a file, and from files what a strategy takes. Numbers stay as
  // they are.
  sync::State to_file(const sync::State& own) const;
  sync::State from_files(const sync::State& all) const;
};

}  // namespace ringfold::train
