// What the functions of nccl.h share: communicators, errors, groups.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "nccl/nccl.h"
#include "ringfold/ringfold.hpp"

// Threads: as NCCL has it, one at a time may use a communicator; but abort and the state of errors are for any.
struct ncclComm {
  int rank = 0, size = 0, device = 0;
  ringfold::Communicator comm;
  std::atomic<bool> ready{false};  // not before the end of the group that makes it

  // The first call that failed after it had been put on its stream.
  struct Late {
    std::mutex mutex;
    ringfold::Status status;
  };
  std::shared_ptr<Late> late = std::make_shared<Late>();
  std::vector<ringfold::Work> works;  // that may still run
  std::map<int, double> factors;      // of operations of its own
  int next_op = ncclNumOps;

  // Follows a call. A failure that is known already is returned.
  ringfold::Status follow(ringfold::Work work);
  ringfold::Status drain();  // waits for all calls
};

namespace ringfold::nccl {

// Keeps the message for ncclGetLastError (and prints it, where NCCL_DEBUG asks for warnings), and says which of
// NCCL's numbers comes nearest.
ncclResult_t finish(const Status& status);
// Of what is not supported, or not allowed.
ncclResult_t refuse(const std::string& why);
std::string last_error();

// A program may make communicators for many devices, and calls on them, from one thread between ncclGroupStart and
// ncclGroupEnd: what blocks, or needs its peers, waits for the end of the group. `makes`: it makes a communicator;
// all of these run at once, each on a thread, then the calls follow in their order. Outside of a group it runs now.
using Step = std::function<Status()>;
// The group that is ending on this thread, for its calls; null: none.
Group* ending_group();
ncclResult_t run_or_defer(bool makes, Step step);
ncclResult_t begin_group();
ncclResult_t end_group();

// Where and how the ranks of an id meet.
struct Meeting {
  std::string address, key;
};
Result<ncclUniqueId> make_id();
Result<Meeting> read_id(const ncclUniqueId& id);

}  // namespace ringfold::nccl
