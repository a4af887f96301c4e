// A plan: a program bound to links and kernels, ready to run any number of times on any buffers of its shape.
#pragma once

#include <string>
#include <vector>

#include "base/stores.h"
#include "exec/contract.h"
#include "kernels/reducer.h"
#include "program/program.h"
#include "ringfold/transport.h"

namespace ringfold::exec {

struct Plan {
  program::Program program;
  std::vector<transport::Link*> links;  // as program.links
  kernels::Reducer reducer;             // of program.type; unset when the program does not reduce
  kernels::Post post;
  Contract contract;  // all but the sequence number
  uint64_t input_bytes = 0, output_bytes = 0;
  std::vector<uint64_t> sizes;  // of a -v form, sent and received: what the cache's key only hashes
  std::string algorithm;        // for people
  // What is learned by running it; guarded by the engine's lock.
  mutable base::Stores folds, copies;
};

}  // namespace ringfold::exec
