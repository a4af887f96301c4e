// Small experiments on this machine, for `ringfold info` and `ringfold doctor`.
#pragma once

#include <string>

namespace ringfold::cli {

struct Probe {
  bool works = false;
  std::string reason;  // why not, or what was found
};

// Two processes of this user share memory through a descriptor in /proc/PID/fd: what shm's segments need.
Probe probe_proc_fd();
// One process reads another's memory by process_vm_readv, between siblings: what a container or Yama may forbid.
Probe probe_vm_readv();
// A TCP connection to this host itself over its loopback address.
Probe probe_tcp_loopback();

}  // namespace ringfold::cli
