// One operation as the bench sees it: its buffers, what must be in them afterwards, and its figures of merit. How a
// library is called for it is that library's matter (library.h).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ringfold/types.h"

namespace ringfold::cli {

// What is measured in one cell of the table, the same on all ranks.
struct Case {
  DataType type = DataType::kF32;
  ReduceOp op;
  int root = 0;
  int ranks = 1;
  size_t block = 0;  // elements; see Operation::block_for
};

// A part of a buffer and what it holds: elements [at, at + elems) are positions from.. of `source`'s data (a rank, or
// Pattern::kReduced).
struct Part {
  size_t at = 0, elems = 0;
  int source = 0;
  size_t from = 0;
};

// What one rank has. In place, one buffer of max(input, output) serves both, with the input at `input_at` in it and
// the output at `output_at`.
struct Layout {
  size_t input_elems = 0, output_elems = 0;
  std::vector<Part> result;  // of the output; empty where the rank gets nothing
  size_t input_at = 0, output_at = 0;
};

class Operation {
 public:
  virtual ~Operation() = default;
  virtual std::string_view name() const = 0;
  // The collective behind it, for its algorithm's name; nullopt: none is chosen for it.
  virtual std::optional<Collective> collective() const { return std::nullopt; }
  virtual bool reduced() const { return false; }
  virtual bool has_in_place() const { return true; }
  virtual bool has_size() const { return true; }
  virtual int least_ranks() const { return 1; }

  // Size. The table's "size" is the bytes of the largest buffer of a rank; a block is what one call argument counts.
  virtual size_t blocks(int ranks) const = 0;  // blocks in that buffer
  size_t block_for(size_t bytes, DataType type, int ranks) const;
  size_t bytes_of(const Case& c) const { return c.block * blocks(c.ranks) * size_of(c.type); }

  // algbw = size / time; busbw = algbw * bus_factor: what the busiest link direction must carry at least, so that
  // values of different operations and ranks compare with the hardware.
  virtual double bus_factor(int ranks) const = 0;
  // How many transfers of `size` one call stands for; the time in the table is that of one.
  virtual size_t transfers(const Case&) const { return 1; }

  virtual Layout layout(const Case& c, int rank) const = 0;
};

// In the order of the table of `perf all`.
const std::vector<std::unique_ptr<Operation>>& operations();
// Null: there is none of that name.
const Operation* find_operation(std::string_view name);

// The families, each in its file.
using Operations = std::vector<std::unique_ptr<Operation>>;
void add_reductions(Operations* list);
void add_gathers(Operations* list);
void add_exchanges(Operations* list);
void add_messages(Operations* list);

// Sizes of the -v forms: rank r's share of `block` per rank on average, uneven on purpose, sometimes empty.
std::vector<size_t> uneven_counts(size_t block, int ranks);
size_t sum_before(const std::vector<size_t>& counts, int rank);
// all_to_all_v: what `rank` sends to each rank, and gets from it.
std::vector<size_t> exchange_counts(const Case& c, int rank);

// The other rank of a pair that exchanges messages (0 and 1, 2 and 3, ...); -1: there is none.
int partner_of(int rank, int ranks);
inline constexpr size_t kTripsInARow = 100;  // of hot_sendrecv

}  // namespace ringfold::cli
