// The processors that a process, or all ranks of one host together, may use.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ringfold::base {

struct Processors {
  std::vector<bool> mask;  // by number: may be used
  double limit = 1e9;      // processors' worth of time, from the cgroup's quota

  // This process's, by its affinity mask and its cgroup.
  static Processors mine();
  int count() const;
  // How many run at once.
  double usable() const;
  bool contains(const Processors& other) const;
  void add(const Processors& other);  // the limit is that of the wider of the two

  // "0-3,8" with "/1.5" behind it where there is a limit; what cannot be read is as if there were one processor.
  std::string to_string() const;
  static Processors parse(std::string_view text);
};

// Processors for rank `me` of those on one host, whose processors are `ranks`: is there one for each of them? Ranks
// may all float over the same processors or be pinned to some of their own, as launchers do.
bool one_for_each(std::span<const Processors> ranks, size_t me);

// Bytes of the largest cache of the first processor; a guess where the system does not tell.
size_t last_level_cache();

}  // namespace ringfold::base
