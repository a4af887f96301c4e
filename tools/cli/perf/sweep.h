// Operations over a range of sizes: the table, the files and the exit status of one measurement. The ranks have been
// started and know each other.
#pragma once

#include <vector>

#include "tools/cli/cli.h"
#include "tools/cli/perf/library.h"

namespace ringfold::cli {

struct Sweep {
  std::vector<const Operation*> operations;
  Case shape;  // type and reduction
  size_t min = 0, max = 0;
};

// From the words of the command line; otherwise says what is wrong with them. An exit status.
int plan_sweep(const PerfOptions& options, Sweep* sweep);

// What one rank does; equal on all ranks, but only rank 0 speaks. `threads`: the ranks are threads of this process.
// An exit status.
int run_sweep(Library& library, const PerfOptions& options, Sweep sweep, bool threads);

// "PROGRAM: text" on standard error. Both return the exit status that fits.
int usage(const PerfOptions& options, const std::string& text);
int complain(const PerfOptions& options, const Status& status);

}  // namespace ringfold::cli
