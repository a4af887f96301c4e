// Starting a rank on another host.
//
// `ssh HOST` runs a small sh script there; nothing of Ringfold need be installed for it. Its standard input, which is
// this process's socket, is the line over which the launcher keeps hold of the rank: the first line is the job's key
// (a command line could be read by anybody on either host), each further one the name of a signal for the rank's
// process group, and its end, for whatever reason, kills the rank. Its exit status is the rank's, by a shell's
// convention for signals.
#pragma once

#include <string>
#include <vector>

namespace ringfold::cli {

// `environment`: "NAME=VALUE", set in addition to that of the remote login. The script writes the key into a file of
// its own folder, which it removes, and sets RINGFOLD_KEY_FILE.
std::string remote_script(const std::vector<std::string>& command, const std::vector<std::string>& environment,
                          const std::string& folder);

// The words that run the script on `host`.
std::vector<std::string> remote_command(const std::string& host, const std::string& script);

}  // namespace ringfold::cli
