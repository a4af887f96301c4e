// Data whose result is known exactly, in every type and wherever it ends up.
//
// Element i of rank r's input is T_r[h(i)]: h hashes the position to one of 256 kinds, T_r is a table of random
// values that differ from rank to rank. So the reduction over ranks at position i is E[h(i)] with E[v] = op over r of
// T_r[v], and a buffer is made and checked by look-ups of bit patterns, whatever the type. A datum from a wrong
// position, rank or chunk has another value with probability near one.
//
// Exactness. Floating sums take whole numbers so small that every partial sum is exact in the type, in any order;
// products take ones and a few twos; averages and scaled sums are an exact sum and the one multiplication of the
// definition. Without a reduction the tables are random bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "ringfold/types.h"

namespace ringfold::cli {

// The bits of one element of each kind, in the low bytes.
using Table = std::array<uint64_t, 256>;

class Pattern {
 public:
  // `reduced`: whether results are reduced with `op`, else they are the ranks' own data. `error`: of a coding, as
  // ringfold::error_bound() says, where f32 sums come about by lossy codes: 0 demands the exact bits.
  Pattern(DataType type, ReduceOp op, bool reduced, int ranks, double error = 0);

  static constexpr int kReduced = -1;

  // data[k] = what `source` (a rank, or kReduced) has at position from + k.
  void fill(void* data, size_t elems, int source, size_t from) const;
  // How many of data[k] are not that.
  size_t wrong(const void* data, size_t elems, int source, size_t from) const;
  // data[k] = a value that is not the right one.
  void poison(void* data, size_t elems, int source, size_t from) const;

 private:
  const Table& table(int source) const {
    return source == kReduced ? reduced_ : tables_[static_cast<size_t>(source)];
  }
  size_t width_;
  std::vector<Table> tables_;
  Table reduced_{};
  double tolerance_ = 0;
};

}  // namespace ringfold::cli
