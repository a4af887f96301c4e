// Ring: every rank talks to two neighbours only, and every link carries the same load all the time.
//
// Reduce-scatter. Share i starts its way at rank i+1 and travels once round the ring; each rank adds its own part as
// the share passes, and rank i, the last on its way, ends with the complete value. In each of the n-1 rounds every
// rank sends one share and receives another, so no link is ever idle. All-gather is the same trip again with finished
// shares: send the one that came last. All-reduce is one after the other.
//
// Cost: 2(n-1) rounds and 2(n-1)/n of the buffer over each link, which no algorithm undercuts; (n-1)/n of it is
// reduced. So it is the choice for large buffers, and a poor one for small ones at many ranks (the rounds). The value
// is coded at each hop: depth n with a lossy codec. The fold of share i is ((x_{i+1} + x_{i+2}) + ...) + x_i: a fixed
// order, but another one for each share.
//
// A receive stands directly before the send of the same share: lowering fuses the two, so that a tile leaves for the
// next rank as soon as it has been reduced (cut-through).
#include "algo/parts.h"

namespace ringfold::algo {

void ring_reduce_scatter(LaneBuilder lane, const Group& group, const Shares& share, Yields yields) {
  const int n = group.size();
  if (n == 1) return;
  const int next = group.rank_at(group.around(1));
  const int prev = group.rank_at(group.around(-1));
  lane.send(next, share(group.around(-1)));
  for (int round = 1; round < n; ++round) {
    const Span span = share(group.around(-1 - round));
    const bool last = round == n - 1;
    lane.recv_reduce(prev, span, kPrepend | (last && yields == Yields::kFinal ? kComplete : 0));
    if (!last) lane.send(next, span);
  }
}

void ring_all_gather(LaneBuilder lane, const Group& group, const Shares& share) {
  const int n = group.size();
  if (n == 1) return;
  const int next = group.rank_at(group.around(1));
  const int prev = group.rank_at(group.around(-1));
  lane.send(next, share(group.me));
  for (int round = 1; round < n; ++round) {
    const Span span = share(group.around(-round));
    lane.recv(prev, span);
    if (round < n - 1) lane.send(next, span);
  }
}

void make_ring(Schedule& s) {
  const auto n = static_cast<uint32_t>(s.shape.ranks);
  const auto lanes = static_cast<uint32_t>(s.lanes);
  const bool whole = s.shape.collective == Collective::kAllReduce;  // one block: lane l has chunks l*n .. l*n+n-1
  s.chunks_per_block = whole ? n * lanes : lanes;
  s.rank = [s = Schedule(s), whole, n, lanes](int rank) {
    Builder builder(s);
    const Group group = everyone(s.shape, rank);
    for (uint32_t l = 0; l < lanes; ++l) {
      const LaneBuilder lane = builder.lane(static_cast<int>(l));
      const auto share = [=](int i) {
        const auto index = static_cast<uint32_t>(i);
        return Span{whole ? l * n + index : index * lanes + l};
      };
      if (s.shape.collective != Collective::kAllGather) ring_reduce_scatter(lane, group, share, Yields::kFinal);
      if (s.shape.collective != Collective::kReduceScatter) ring_all_gather(lane, group, share);
    }
    return builder.take();
  };
}

}  // namespace ringfold::algo
