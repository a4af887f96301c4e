// How processes of a host hand each other file descriptors: each listens on a unix socket of a random name, which the
// others learn through the control mesh, and gives its descriptor to those who say which of them they are. The system
// tells whose processes they are: other users get nothing. Sockets have names in a network namespace, so containers
// with networks of their own cannot meet.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "ringfold/status.h"

namespace ringfold::nvlink {

class Meeting {
 public:
  static Result<std::unique_ptr<Meeting>> make();
  const std::string& name() const { return name_; }
  // Collective among those whose names are in `peers` ("": nobody; of this one: itself, left out). Gives each of them
  // a copy of `mine`, and returns theirs in the same places. On one thread.
  Result<std::vector<base::Fd>> exchange(const base::Fd& mine, const std::vector<std::string>& peers,
                                         base::Deadline deadline);

 private:
  Meeting(std::string name, base::Fd listening) : name_(std::move(name)), listening_(std::move(listening)) {}
  const std::string name_;
  const base::Fd listening_;
};

// 32 hexadecimal digits that nobody else has.
std::string unique_name();

}  // namespace ringfold::nvlink
