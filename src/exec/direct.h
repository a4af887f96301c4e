// A call whose bytes go straight from memory of one device to that of another (transport::Direct): which rank writes
// what to whom, and its execution.
//
// A rank offers its output to those that write to it, and writes what others wait for as soon as they have offered
// theirs. The call is over when all has landed that this rank expects, and its own writes are done. Offers tell that
// a rank has come and its output may be written; so nothing is written before that, whatever other ranks do.
//
// One call at a time: offers have no numbers. Those behind it wait, in the order of calls, which is the same on all
// ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "exec/request.h"
#include "exec/run.h"
#include "ringfold/transport.h"

namespace ringfold::exec {

struct DirectPlan {
  struct Write {
    int peer = -1;
    uint64_t from = 0, to = 0, bytes = 0;  // in this rank's input (or output), in the peer's output
    int after = -1;  // it goes from the output, when this rank's write has landed there; -1: from the input
  };
  std::vector<Write> writes;  // at most one to a peer, of at least a byte
  std::vector<int> expected;  // ranks that write to this one, once each
  std::string text;           // what the call is, for people
};

class Direct final : public Request {
 public:
  // The buffers were added to `transport`, which reaches all ranks.
  Direct(transport::Direct* transport, DirectPlan plan, const std::byte* input, std::byte* output,
         uint64_t output_bytes);

  // Goes on as far as it can without waiting. kFault: *fault says what was found.
  Advance advance(Fault* fault);
  // A peer that it waits for, or -1.
  int waits_for() const;
  std::string describe() const override { return plan_.text; }

 private:
  bool has_landed(size_t index) const;
  bool has_landed_from(int peer) const;

  transport::Direct* const transport_;
  const DirectPlan plan_;
  const std::byte* const input_;
  std::byte* const output_;
  const uint64_t output_bytes_;
  bool begun_ = false;
  std::vector<uint64_t> before_;  // by index of expected: what had landed of that rank before this call
  std::vector<bool> offered_;     // the same: it was told
  std::vector<bool> written_;     // by index of writes: it was posted
};

}  // namespace ringfold::exec
