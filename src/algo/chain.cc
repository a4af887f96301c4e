// Chain: a pipeline through the ranks in order.
//
// Reduce: rank 0 sends its part to rank 1, which appends its own and passes the sum on; rank n-1 completes it. That
// is the rank-order fold (canonical) with one message per rank, every link carries the buffer once, and rank r works
// on one tile while r+1 works on the one before. Where the root is another rank, rank n-1 sends it the result.
// All-reduce passes the result back down the chain; broadcast is a chain that starts at the root.
//
// Cost: n-1 rounds each way, one buffer over each link. Bandwidth like a tree's at best, latency like a ring's: it is
// here for its order (deterministic results where memory or links forbid direct), and for broadcasts of large
// buffers.
//
// The ways up and down are separate lanes, so that a rank need not see a tile come back before it passes the next
// one up; an event orders them at rank n-1, where they meet.
#include "algo/parts.h"

namespace ringfold::algo {
namespace {

void all_reduce_or_reduce(Builder& builder, const Shape& shape, int rank, LaneBuilder up, LaneBuilder down,
                          Span data) {
  const int last = shape.ranks - 1;
  const bool all = shape.collective == Collective::kAllReduce;
  const bool returns = all || shape.root != last;
  if (rank > 0) up.recv_reduce(rank - 1, data, kPrepend | (rank == last ? kComplete : 0));
  if (rank < last) up.send(rank + 1, data);
  if (rank == last && returns) {
    const uint32_t folded = builder.event();
    up.signal(folded);
    down.wait(folded);
  }
  if (all) {
    if (rank < last) down.recv(rank + 1, data);
    if (rank > 0) down.send(rank - 1, data);
  } else if (returns) {
    if (rank == last) down.send(shape.root, data);
    if (rank == shape.root) down.recv(last, data);
  }
}

void broadcast(LaneBuilder lane, const Group& group, Span data) {
  if (group.me > 0) lane.recv(group.rank_at(group.me - 1), data);
  if (group.me < group.size() - 1) lane.send(group.rank_at(group.me + 1), data);
}

}  // namespace

void make_chain(Schedule& s) {
  const bool one_way = s.shape.collective == Collective::kBroadcast;
  const int pieces = one_way ? s.lanes : std::min(s.lanes, 2);
  s.lanes = one_way ? pieces : 2 * pieces;
  s.chunks_per_block = static_cast<uint32_t>(pieces);
  s.rank = [s = Schedule(s), one_way, pieces](int rank) {
    Builder builder(s);
    for (int p = 0; p < pieces; ++p) {
      const Span data{static_cast<uint32_t>(p)};
      if (one_way) {
        broadcast(builder.lane(p), everyone(s.shape, rank, s.shape.root), data);
      } else {
        all_reduce_or_reduce(builder, s.shape, rank, builder.lane(p), builder.lane(pieces + p), data);
      }
    }
    return builder.take();
  };
}

}  // namespace ringfold::algo
