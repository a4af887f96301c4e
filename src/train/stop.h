// SIGTERM asks a run to save and end: one rank that is asked is enough, and all end after the same step.
#pragma once

#include <cstdint>

#include "ringfold/communicator.h"

namespace ringfold::train {

// Installs the handler; whether this process was asked; asks, as the signal does.
void save_on_sigterm();
bool stop_requested();
void request_stop(bool stop = true);

// Was any rank asked? Ranks that step together learn the answer of a step's question with the next, so that nobody
// waits for it. The communicator must outlive it, or be ended before. Threads: one at a time.
class StopVote {
 public:
  explicit StopVote(Communicator& comm) : comm_(comm) {}
  ~StopVote() { settle(); }
  StopVote(const StopVote&) = delete;
  StopVote& operator=(const StopVote&) = delete;

  // Collective. Was any asked, as of the call before?
  Result<bool> next();
  // Collective. Was any asked, as of now?
  Result<bool> now();
  // Until nothing is under way.
  void settle() { (void)asking_.wait(); }

 private:
  Communicator& comm_;
  int32_t asked_ = 0, any_asked_ = 0;
  Work asking_;
};

}  // namespace ringfold::train
