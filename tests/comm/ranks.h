// Ranks of the public interface, for tests: as threads of this process, or as processes of this host.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "ringfold/ringfold.hpp"
#include "tests/exec/call.h"

namespace ringfold::test {

// An environment variable for as long as this lives. Not while other threads run.
class Variable {
 public:
  Variable(std::string name, const std::string& value);
  ~Variable();
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const std::string name_;
};

// Options with a deadline that a working call never meets.
Options patient(std::string transport = "", std::string algorithm = "");

class Ranks {
 public:
  explicit Ranks(int n, const Options& options = patient());
  int size() const { return static_cast<int>(ranks_.size()); }
  Communicator& operator[](int r) { return ranks_[static_cast<size_t>(r)]; }
  // Runs `play` for every rank on a thread of its own.
  void each(const std::function<void(Communicator&)>& play);

 private:
  std::vector<Communicator> ranks_;
};

// Runs `play` in `n` new processes, each a rank. The caller must have no threads. A failed expectation in one of
// them, or its death, fails the test, unless the rank is `doomed`.
void processes(int n, const Options& options, const std::function<void(Communicator&)>& play, int doomed = -1);

// Starts the call through the public interface.
Work start(Communicator& comm, const Call& call, const void* input, void* output, const CallOptions& options = {});
Work start(Communicator& comm, const Call& call, Buffers& buffers);
// The same, waits, and checks the result.
void perform(Communicator& comm, const Call& call);

// Calls of the forms whose blocks may differ, with type and sizes drawn.
std::vector<Call> calls_of_blocks(int ranks, int count);

void expect_ok(const Status& status);
inline void expect_ok(Work work) { expect_ok(work.wait()); }

}  // namespace ringfold::test
