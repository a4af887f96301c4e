// A communication library as the bench sees it, on one rank: Ringfold itself, and in bench/peers those that it is
// compared with. What is measured, how, and what must be right afterwards is the bench's business, the same for all.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ringfold/codec.h"
#include "ringfold/counters.h"
#include "ringfold/status.h"
#include "tools/cli/perf/operation.h"

namespace ringfold::cli {

// A buffer, with the function that gives it back.
struct Release {
  void (*how)(void*) = nullptr;
  void operator()(char* memory) const { how(memory); }
};
using Memory = std::unique_ptr<char[], Release>;

// One operation on given buffers, made ready as far as the library can do that ahead: the thing that is timed.
class Call {
 public:
  virtual ~Call() = default;
  // Start to end.
  virtual Status run() = 0;
};

struct Buffers {
  void* input = nullptr;  // null: this rank has none
  void* output = nullptr;
  bool in_place = false;  // they are parts of one, as the layout says
};

// Every rank makes the same calls in the same order. One thread.
class Library {
 public:
  virtual ~Library() = default;
  virtual std::string about() const = 0;  // "Open MPI 4.1.4"
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string host_of(int rank) const = 0;
  virtual std::string transport() const = 0;

  virtual Result<Memory> allocate(size_t bytes) = 0;

  // The ways in which it can do this, each measured in a row of its own: names, or "" for the one that it chooses by
  // itself. Empty: not at all.
  virtual std::vector<std::string> variants(const Operation& operation, const Case& c, bool in_place) const = 0;
  // Where the library wants input and output.
  virtual Layout layout(const Operation& operation, const Case& c, bool in_place) const {
    (void)in_place;
    return operation.layout(c, rank());
  }
  virtual Result<std::unique_ptr<Call>> prepare(const Operation& operation, const Case& c, const std::string& variant,
                                                const Buffers& buffers) = 0;
  // What ran, for the row: asked when it has.
  virtual std::string algorithm(const Operation& operation, const Case& c, const std::string& variant) const = 0;

  // What its links carry for it.
  virtual Codec codec(const Operation& operation, const Case& c) const {
    (void)operation, (void)c;
    return {};
  }

  // What it has done so far on this rank; zeros where it does not tell.
  virtual ringfold::Counters counters() { return {}; }

  virtual Status barrier() = 0;
  // values[i] = the sum (kSum) or the greatest (kMax) over the ranks.
  virtual Status agree(std::span<double> values, ReduceKind kind) = 0;
};

}  // namespace ringfold::cli
