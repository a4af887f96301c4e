// What communication has cost a rank: figures that only grow.
#pragma once

#include <cstdint>

namespace ringfold {

struct Counters {
  // Payload that was read or written, each time it was: by reductions (every input and the result), by copies, and by
  // the system's copies to and from sockets and other processes (two for each byte).
  uint64_t touched_bytes = 0;
  // All calls to the system, these included:
  uint64_t system_calls = 0;
  uint64_t yields = 0;     // of the processor, while waiting
  uint64_t sleeps = 0;     // until something arrives
  uint64_t wakeups = 0;    // sleeping ranks that this one woke
  uint64_t puts = 0;       // of payload into a peer's slot,
  uint64_t put_bytes = 0;  // and how much
  // Over RDMA: requests handed to devices (receives included), the calls that did so, and completions taken.
  uint64_t work_requests = 0, doorbells = 0, completions = 0;
};

}  // namespace ringfold
