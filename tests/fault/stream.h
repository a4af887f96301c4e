// An endless, seeded stream of calls. Every rank of a communicator makes the same stream from the same seed, so
// nobody has to tell the others what comes next, and a failing run can be repeated.
#pragma once

#include <cstdint>
#include <memory>
#include <memory_resource>
#include <optional>
#include <string>
#include <vector>

#include "ringfold/communicator.h"
#include "tests/exec/call.h"

namespace ringfold::chaos {

// Ways of making another call than the others do.
enum class Change { kCount, kType, kOp, kRoot, kKind };
std::optional<Change> parse_change(const std::string& name);

// One call (or one exchange of messages) as data.
struct Step {
  enum class Kind { kCollective, kShift, kToOne, kAgreeToEnd };
  Kind kind = Kind::kCollective;
  test::Call call;     // of a collective
  int distance = 0;    // kShift: everybody sends to the rank so far to the right
  int root = 0;        // kToOne: everybody sends there, where they are taken in any order
  uint64_t count = 0;  // of messages: words
  int64_t tag = 0;
  uint64_t salt = 0;
  bool together = false;  // the next step starts before this one is waited for
  std::string to_string() const;
};

// `large`: hundreds of kilobytes that are moved, not added up; but for what agrees to end.
Step make_step(uint64_t seed, uint32_t epoch, uint64_t index, int ranks, bool large = false);
// nullopt: the change makes no sense for this step.
std::optional<Step> changed(const Step& step, Change change, int rank, uint64_t seed);

// A step in flight on one rank, with its memory.
class Flight {
 public:
  // `ending`: what this rank gives to kAgreeToEnd.
  Flight(Communicator& comm, Step step, double deadline_s, bool ending, std::pmr::memory_resource* memory);
  const Step& step() const { return step_; }
  Status wait() { return work_.wait(); }
  // After an ok end: what is wrong with the result, or "".
  std::string check();
  // After an end that was not ok the memory is the caller's again: it is overwritten, and nobody writes there any
  // more.
  void scribble();
  bool scribbled() const;
  bool agreed_to_end() const { return step_.kind == Step::Kind::kAgreeToEnd && flag_ > 0; }

 private:
  Work start_collective(Communicator& comm, const CallOptions& options);
  Work start_messages(Communicator& comm, const CallOptions& options);
  uint64_t word(int sender, uint64_t at) const;

  const Step step_;
  const int rank_, size_;
  std::pmr::memory_resource* const memory_;
  std::unique_ptr<test::Buffers> buffers_;
  std::pmr::vector<uint64_t> sent_;
  std::vector<std::pmr::vector<uint64_t>> received_;
  std::vector<Work> receives_;  // kToOne
  int32_t flag_ = 0;
  Work work_;
};

}  // namespace ringfold::chaos
