// Who am I in this job? Read from the variables of the launcher that started this process.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/handshake.h"
#include "comm/config.h"
#include "comm/pmix.h"
#include "ringfold/status.h"

namespace ringfold::comm {

inline constexpr const char* kNoLauncher = "no launcher";

// This process's place in a job. Plain data.
struct Launch {
  int rank = 0;
  int size = 1;
  int local_rank = 0;
  int local_size = -1;     // -1: the launcher does not say
  std::string rendezvous;  // "host:port", "host:first-last" or "dir:/path"; "" only when size is 1
  std::function<Result<std::vector<std::string>>(const std::string& mine, double timeout_s)>
      exchange;             // instead of it: Options::exchange; may be empty
  std::string source;       // "ringfold run", "torchrun", ..., or kNoLauncher
  bool open = false;        // ranks that come back may join (Options::open)
  bool comes_back = false;  // and this one does
  std::string to_string() const;
};

// Looks for the variables of `ringfold run`, torchrun, Slurm, Open MPI, MPICH (PMI), PMIx, Kubernetes, in this order.
// Sources that agree are fine and the first is used; sources that disagree are kInvalid, naming both, unless
// RINGFOLD_LAUNCHER says which is meant. RINGFOLD_RENDEZVOUS overrides the meeting place of any. Without any
// launcher: rank 0 of 1. Where the variables say too little and name a server of PMIx, it is asked.
Result<Launch> read_launch(const Environment& environment, const Config& config, const Pmix& pmix = system_pmix());

// The key of the job: the file that the configuration names, else the user's own, which is created when it is
// missing.
Result<base::Key> load_key(const Config& config, const Environment& environment);

// Expands the first name of a Slurm node list: "n[03-07,9],m1" -> "n03".
std::string first_host(std::string_view node_list);

}  // namespace ringfold::comm
