// One row of the table: runs an operation at one size, times it and checks what it gives. The same for Ringfold and
// for the libraries of bench/peers.
#pragma once

#include <string>
#include <vector>

#include "ringfold/status.h"
#include "tools/cli/cli.h"
#include "tools/cli/perf/library.h"

namespace ringfold::cli {

// What a transfer took.
struct Cost {
  double cpu_us = 0, switches = 0, faults = 0;               // says the system, over all ranks
  double calls = 0, wakeups = 0;                             // says the library, over all ranks
  double touched = 0;                                        // bytes for each byte of size, mean of the ranks
  double puts = 0, put_bytes = 0;                            // over all ranks
  double work_requests = 0, doorbells = 0, completions = 0;  // of RDMA, over all ranks
};

struct Cell {
  bool measured = false;
  int iterations = 0;
  double p50_us = 0, p99_us = 0, algbw = 0, busbw = 0;  // GB/s, 10^9 bytes
  long long wrong = -1;                                 // elements, over all ranks; -1: not checked
  Cost cost;
};

struct Row {
  const Operation* operation = nullptr;
  Case shape;
  std::string transport, algorithm;
  size_t bytes = 0;
  Cell out_of_place, in_place;
};

// Every rank makes the same calls on its own; what it returns is the same on all ranks. One thread.
//
// Time: each iteration starts after a barrier and counts as the longest over the ranks; p50 and p99 are over
// iterations. The number of iterations follows from a time budget and one trial. Check: the outputs are poisoned and
// every element compared, in a call before the timed ones and in one after them.
class Bench {
 public:
  // `thread_per_rank`: the ranks are threads of this process.
  Bench(Library& library, const PerfOptions& options, bool thread_per_rank)
      : library_(library), options_(options), thread_per_rank_(thread_per_rank) {}
  // A row for each way in which the library can do it; none where it cannot.
  Result<std::vector<Row>> measure(const Operation& operation, const Case& shape);

 private:
  Result<Cell> measure_cell(const Operation& operation, const Case& shape, const std::string& variant, bool in_place);
  Status reserve(Memory* memory, size_t* capacity, size_t bytes);

  Library& library_;
  const PerfOptions& options_;
  const bool thread_per_rank_;
  Memory input_, output_;
  size_t input_capacity_ = 0, output_capacity_ = 0;
};

}  // namespace ringfold::cli
