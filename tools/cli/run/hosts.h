// Which rank runs on which host.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "ringfold/status.h"

namespace ringfold::cli {

struct Host {
  std::string name;
  int slots = 0;       // ranks it takes; 0: a fair share
  bool local = false;  // this host: started without ssh
};

struct Seat {
  int host = 0;  // index into the hosts
  int local_rank = 0, local_size = 1;
};

// "a,b:2,[fd00::1]:4". kInvalid says what is wrong.
Result<std::vector<Host>> parse_hosts(std::string_view text);

// Ranks in blocks: first the hosts that say how many they take, in their order, and the rest in fair shares on those
// that do not. `ranks` 0: one on each host without a number. kInvalid when they do not fit.
Result<std::vector<Seat>> seat_ranks(const std::vector<Host>& hosts, int ranks);

// An address of this host that the others can be expected to reach: where the route to the first of them starts.
// RINGFOLD_INTERFACE overrides it.
Result<std::string> meeting_address(const std::vector<Host>& hosts);

// The command that starts a program on another host and the words that follow "ssh HOST": from RINGFOLD_SSH, or ssh.
std::vector<std::string> ssh_command(const std::string& host);

// In single quotes, for sh.
std::string sh_quoted(std::string_view text);

}  // namespace ringfold::cli
