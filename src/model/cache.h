// Measured figures on disk, a file per set of hosts, so that a job need not probe where one like it has.
//
// Files may be damaged, of another version or of somebody else: a file that is not exactly what save_figures() writes
// is ignored with an info line. Saving replaces the file at once (rename), so readers never see half of one.
#pragma once

#include <string>
#include <vector>

#include "model/cluster.h"
#include "ringfold/status.h"

namespace ringfold::model {

// What figures depend on.
struct CacheKey {
  struct Host {
    std::string name;
    int ranks = 0;
    int cores = 0;
  };
  std::vector<Host> hosts;  // in any order
  std::vector<std::string> transports;
  std::string version;  // of the library
};

// "figures-0123456789abcdef.txt": a hash of the key, in which the order of the hosts does not matter.
std::string file_name(const CacheKey& key);

// Puts the figures that were saved for `key` into `cluster`. False: there are none.
bool load_figures(const std::string& directory, const CacheKey& key, ClusterModel& cluster);

// Creates the directory if need be.
Status save_figures(const std::string& directory, const CacheKey& key, const ClusterModel& cluster);

}  // namespace ringfold::model
