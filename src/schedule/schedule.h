// The intermediate representation of a collective: for each rank, a few in-order lanes of steps over chunks.
//
// A schedule is symbolic: it knows ranks and chunks, but no bytes, types, addresses or transports. The same object is
// checked (checker.h), costed (src/model), lowered to a Program (src/plan/lower.h) and drawn (`ringfold explain`).
//
// Chunks. The data of a collective is a set of *blocks*, each cut into `chunks_per_block` chunks:
//   all_reduce, reduce, broadcast, barrier: one block, the whole buffer
//   reduce_scatter, all_gather, gather, scatter: block b belongs to rank b
//   all_to_all: block s*n + d goes from rank s to rank d
// and chunk id = block * chunks_per_block + index in the block. Each rank has one *cell* per chunk, which holds that
// rank's current value of it: at the start its own contribution where `starts_with` says so, otherwise nothing. Ids
// from `chunks()` upwards are the rank's temporaries; temporary t has the size of the chunk that `temporaries[t]`
// names.
//
// Steps. Steps of one lane take effect in order; lanes run side by side and are ordered only by signal and wait.
// Lane l of a rank talks to lane l of its peers: the k-th send from a to b on lane l is what the k-th receive of b
// from a on lane l gets. A send may complete before it is received, as far as the link's slots go; the checker
// assumes one slot.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ringfold/types.h"

namespace ringfold::schedule {

enum class StepKind : uint8_t {
  kSend,        // cells chunk.. to peer
  kRecv,        // cells chunk.. := from peer
  kRecvReduce,  // cells chunk.. := cell + from peer      (kPrepend: from peer + cell)
  kCopy,        // cells chunk.. := cells source..
  kReduce,      // cells chunk.. := cell + cells source.. (kPrepend: cells source.. + cell)
  kSignal,      // event `source` of this rank += 1
  kWait,        // until the j-th wait on event `source` has seen j signals (counting both from the start)
};

enum StepFlag : uint8_t {
  kPrepend = 1,   // the other operand goes to the left: the order of a fold is part of its meaning
  kComplete = 2,  // with kRecvReduce, kReduce: set exactly where the result of a collective that reduces() becomes
                  // complete, holding every rank's contribution once (averages divide here); never in a barrier
};

// One step; covers `count` consecutive cells.
struct Step {
  StepKind kind;
  uint8_t flags = 0;
  uint16_t count = 1;
  int32_t peer = -1;    // kSend, kRecv, kRecvReduce
  uint32_t chunk = 0;   // first cell sent or written
  uint32_t source = 0;  // kCopy, kReduce: first cell read; kSignal, kWait: event
  friend bool operator==(const Step&, const Step&) = default;
};
static_assert(sizeof(Step) == 16);

using Lane = std::vector<Step>;

// What one rank does.
struct RankSteps {
  std::vector<Lane> lanes;            // as many as Schedule::lanes
  std::vector<uint32_t> temporaries;  // the chunk whose size temporary cell chunks() + t has
  uint32_t events = 0;                // events are numbered 0 .. events-1
};

struct Shape {
  Collective collective = Collective::kAllReduce;
  int ranks = 1;
  int root = 0;  // has_root() collectives only
  friend bool operator==(const Shape&, const Shape&) = default;
};

// Blocks that the data of `shape` consists of.
uint64_t blocks_of(const Shape& shape);
// Does `rank` start with a contribution to (or the value of) `block`?
bool starts_with(const Shape& shape, int rank, uint64_t block);
// Must `rank` end with the final value of `block`? The final value is the fold over all ranks for collectives that
// reduce (and for a barrier, whose zero bytes stand for "everybody has arrived"), else the value of its one holder.
bool ends_with(const Shape& shape, int rank, uint64_t block);

// A schedule for all ranks. Immutable; `rank(r)` builds that rank's steps on demand (a pure function, so any thread
// may call it) and costs time and memory in proportion to that rank's steps alone.
struct Schedule {
  Shape shape;
  std::string algorithm;  // "ring", "tree", ...
  uint32_t chunks_per_block = 1;
  int lanes = 1;
  std::function<RankSteps(int rank)> rank;

  uint64_t chunks() const { return blocks_of(shape) * chunks_per_block; }
  uint64_t block_of(uint64_t chunk) const { return chunk / chunks_per_block; }
};

}  // namespace ringfold::schedule
