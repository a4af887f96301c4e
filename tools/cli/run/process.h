// Starting one process the way `ringfold run` needs it, and saying in words how one ended.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "ringfold/status.h"

namespace ringfold::cli {

struct ProcessSpec {
  std::vector<std::string> arguments;    // the first is looked up in PATH
  std::vector<std::string> environment;  // "NAME=VALUE"
  int in = -1, out = -1, error = -1;     // -1: /dev/null for `in`, this process's own for the others
  std::vector<bool> processors;          // that it may use, by number; empty: those of this process
};

// The child leads a process group of its own and is killed when the calling thread ends. kUnavailable with the reason
// when the program cannot be executed: this is known on return. Safe while other threads run.
Result<pid_t> start_process(const ProcessSpec& spec);

// 0 to 255, 128 + number for a signal: what a shell would report.
int exit_status_of(int wait_status);
// "exited with status 3", "was ended by SIGKILL"
std::string ending_in_words(int wait_status);
// SIGTERM -> "TERM"; "" for no signal.
std::string signal_name(int signal);

}  // namespace ringfold::cli
