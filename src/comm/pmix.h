// PMIx: what resource managers (PRRTE, Open MPI's mpirun, Slurm with --mpi=pmix) tell their processes by a library
// rather than by variables, and carry between them. Loaded at run time; there is nothing to build against.
//
// The connection is made at the first call and kept to the end of the process: MPI in the same process shares it, and
// a second one after it was closed would miss facts (4.2: the local rank, without which MPI_Init fails). A process
// that ends by _exit counts as failed with such a manager, since it has not said goodbye.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "comm/config.h"
#include "ringfold/status.h"

namespace ringfold::comm {

struct PmixJob {
  int rank = 0, size = 1;
  int local_rank = -1, local_size = -1;  // -1: the manager does not say
};

struct Pmix {
  // kUnavailable: no library, or nobody answers.
  std::function<Result<PmixJob>(double timeout_s)> job;
  // Every rank of the job gives a record and gets all of them, by rank. Matches in the order of the calls.
  std::function<Result<std::vector<std::string>>(const std::string& mine, double timeout_s)> exchange;
};

// libpmix.so.2. Any thread; one call at a time.
const Pmix& system_pmix();

// Does the environment say where the manager's server is?
bool has_pmix_server(const Environment& environment);

}  // namespace ringfold::comm
