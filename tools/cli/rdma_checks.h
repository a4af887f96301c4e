// What `ringfold doctor` says of RDMA.
#pragma once

#include "tools/cli/findings.h"
#include "transports/verbs/verbs.h"

namespace ringfold::cli {

// Devices, ports, and the memory that links of a job of `ranks` register. Where nothing can be used that is a failure
// if RDMA is asked for (`required`), a warning if the kernel has devices, and else as it should be. True: verbs work.
bool check_verbs(const verbs::Options& options, int ranks, bool required, Findings* findings);

// UCX and its settings.
void check_ucx(bool required, Findings* findings);

}  // namespace ringfold::cli
