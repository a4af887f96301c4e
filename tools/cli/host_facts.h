// What this machine is made of, as far as it matters to collectives.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ringfold::cli {

struct HostFacts {
  std::string name, kernel, processor;
  int sockets = 0, numa_nodes = 0, cores = 0, cpus = 0;
  int allowed_cpus = 0;                  // of this process's affinity
  std::string allowed;                   // "0-3,8"
  double cpu_limit = 0;                  // CPUs of the cgroup's quota; 0: none
  std::string cgroup_limit_from;         // the file that says so
  std::vector<std::string> caches;       // "L2 1 MiB x 4"
  uint64_t memory = 0, memory_free = 0;  // bytes; free: what programs can still get
  uint64_t memory_limit = 0;             // the cgroup's; 0: none
  std::string huge_pages;                // of /sys/kernel/mm/transparent_hugepage/enabled: "madvise"
};
HostFacts host_facts();

// How many ranks this process's CPUs can run at the same time.
double usable_cpus(const HostFacts& facts);

// First line of a file under /proc or /sys; "" when there is none.
std::string first_line(const std::string& path);

// "1.5 GiB"
std::string memory_text(uint64_t bytes);

}  // namespace ringfold::cli
