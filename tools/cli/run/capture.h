// A short command, its output, and a time limit.
#pragma once

#include <string>
#include <vector>

#include "ringfold/status.h"

namespace ringfold::cli {

struct Captured {
  int status = 0;      // as exit_status_of()
  std::string output;  // both streams
};

// Runs the command with this process's environment. kTimeout: it was killed after `seconds`. kUnavailable: it cannot
// run.
Result<Captured> capture(const std::vector<std::string>& command, double seconds);

}  // namespace ringfold::cli
