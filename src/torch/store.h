// What the ranks of a process group tell each other through torch.distributed's store rather than a communicator.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <string>

#include "ringfold/communicator.h"

namespace ringfold::pytorch {

// All-gather of small records, for the bootstrap of a communicator.
Exchange exchange_through(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size);

// Every rank leaves a mark at `place`, which each call needs a new one of; rank 0 waits for the marks and says what
// it found. Empty if all came in time, otherwise the same text on all ranks that did; it names all that are missing,
// or with `wait_all` false the first.
std::string meet(c10d::Store& store, const std::string& place, int rank, int size, std::chrono::milliseconds timeout,
                 bool wait_all);

// A rank that is done may still be one that others could hear from, as far as they know: a receive from any source
// ends when somebody leaves. So all leave at about the same time, if they are all about to; nobody waits for long.
void leave_together(c10d::Store& store, int size, const Communicator& communicator,
                    std::chrono::duration<double> patience);

}  // namespace ringfold::pytorch
