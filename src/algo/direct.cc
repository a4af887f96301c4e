// Direct: every rank talks to every other rank, and values are folded in rank order.
//
// Two-shot ("direct"). Reduce-scatter: each rank sends share i straight to rank i, which folds the n versions in rank
// order; all-gather: rank i sends the finished share to everybody. Two rounds, 2(n-1)/n of the buffer per rank, n-1
// messages each way per round: best inside a host and at small to middle sizes, where a round costs more than a
// message. Each value is coded twice at any n, so it is the one for lossy codecs.
//
// One-shot. Every rank sends its whole contribution to everybody and folds all of them itself: one round, but n-1
// times the buffer: for the smallest messages. A rank's contribution leaves from a copy, because the result is built
// in the data cell while slower peers may still be reading. Lowering drops the copy where the input stays untouched.
//
// Both fold ((x_0 + x_1) + x_2) + ... (canonical): the result does not depend on how the buffer was cut.
//
// The other collectives in this style are flat: the root, or every rank, exchanges blocks with each peer directly.
// Sends start with the next rank, the one after it and so on, so that no two ranks flood the same peer.
#include "algo/parts.h"

namespace ringfold::algo {
namespace {

void send_to_others(LaneBuilder lane, const Group& group, const Shares& share) {
  for (int d = 1; d < group.size(); ++d) {
    const int peer = group.around(d);
    lane.send(group.rank_at(peer), share(peer));
  }
}

void recv_from_others(LaneBuilder lane, const Group& group, const Shares& share) {
  for (int d = 1; d < group.size(); ++d) {
    const int peer = group.around(-d);
    lane.recv(group.rank_at(peer), share(peer));
  }
}

// All steps of a collective on one lane; `chunk(block)` is this lane's chunk of a block.
void flat(Builder& builder, LaneBuilder lane, const Shape& shape, int rank, const Shares& chunk) {
  Group group = everyone(shape, rank);
  const int n = shape.ranks;
  const bool is_root = rank == shape.root;
  switch (shape.collective) {
    case Collective::kReduceScatter: direct_reduce_scatter(builder, lane, group, chunk, Yields::kFinal); break;
    case Collective::kAllGather: direct_all_gather(lane, group, chunk); break;
    case Collective::kReduce:
      if (is_root) {
        fold_in_order(builder, lane, group, chunk(0), Yields::kFinal);
      } else {
        lane.send(shape.root, chunk(0));
      }
      break;
    case Collective::kBroadcast:
    case Collective::kScatter: {
      const bool one = shape.collective == Collective::kBroadcast;
      if (is_root) {
        send_to_others(lane, group, [&](int peer) { return chunk(one ? 0 : peer); });
      } else {
        lane.recv(shape.root, chunk(one ? 0 : rank));
      }
      break;
    }
    case Collective::kGather:
      if (is_root) {
        recv_from_others(lane, group, chunk);
      } else {
        lane.send(shape.root, chunk(rank));
      }
      break;
    case Collective::kAllToAll:
      send_to_others(lane, group, [&](int peer) { return chunk(rank * n + peer); });
      recv_from_others(lane, group, [&](int peer) { return chunk(peer * n + rank); });
      break;
    case Collective::kAllReduce:
    case Collective::kBarrier: break;  // not flat
  }
}

}  // namespace

void fold_in_order(Builder& builder, LaneBuilder lane, const Group& group, Span own, Yields yields) {
  const int n = group.size();
  if (n == 1 || own.count == 0) return;
  const auto flags = [&](int i) { return i == n - 1 && yields == Yields::kFinal ? kComplete : 0; };
  if (group.me > 0) {  // x_0 .. x_{me-1} gather in a temporary, which then goes to the left of the own cells
    const Span before = builder.temporaries(own);
    lane.recv(group.rank_at(0), before);
    for (int i = 1; i < group.me; ++i) lane.recv_reduce(group.rank_at(i), before);
    lane.reduce(own, before.first, kPrepend | flags(group.me));
  }
  for (int i = group.me + 1; i < n; ++i) lane.recv_reduce(group.rank_at(i), own, flags(i));
}

void direct_reduce_scatter(Builder& builder, LaneBuilder lane, const Group& group, const Shares& share,
                           Yields yields) {
  send_to_others(lane, group, share);
  fold_in_order(builder, lane, group, share(group.me), yields);
}

void direct_all_gather(LaneBuilder lane, const Group& group, const Shares& share) {
  send_to_others(lane, group, [&](int) { return share(group.me); });
  recv_from_others(lane, group, share);
}

void make_direct(Schedule& s) {
  const auto n = static_cast<uint32_t>(s.shape.ranks);
  const auto lanes = static_cast<uint32_t>(s.lanes);
  const bool two_shot = s.shape.collective == Collective::kAllReduce;
  s.chunks_per_block = two_shot ? n * lanes : lanes;
  s.rank = [s = Schedule(s), two_shot, n, lanes](int rank) {
    Builder builder(s);
    for (uint32_t l = 0; l < lanes; ++l) {
      const LaneBuilder lane = builder.lane(static_cast<int>(l));
      if (two_shot) {
        const Group group = everyone(s.shape, rank);
        const auto share = [=](int i) { return Span{l * n + static_cast<uint32_t>(i)}; };
        direct_reduce_scatter(builder, lane, group, share, Yields::kFinal);
        direct_all_gather(lane, group, share);
      } else {
        flat(builder, lane, s.shape, rank, [=](int block) { return Span{static_cast<uint32_t>(block) * lanes + l}; });
      }
    }
    return builder.take();
  };
}

void one_shot(LaneBuilder lane, const Group& group, Span own, Span data, Yields yields) {
  send_to_others(lane, group, [&](int) { return own; });
  for (int i = 0; i < group.size(); ++i) {
    const int flags = yields == Yields::kFinal && i == group.size() - 1 ? kComplete : 0;
    const int peer = group.rank_at(i);
    if (i == 0) {
      group.me == 0 ? lane.copy(data, own.first) : lane.recv(peer, data);
    } else {
      i == group.me ? lane.reduce(data, own.first, flags) : lane.recv_reduce(peer, data, flags);
    }
  }
}

void make_oneshot(Schedule& s) {
  const bool barrier = s.shape.collective == Collective::kBarrier;
  if (barrier) s.lanes = 1;
  s.chunks_per_block = static_cast<uint32_t>(s.lanes);
  s.rank = [s = Schedule(s), barrier](int rank) {
    Builder builder(s);
    const Group group = everyone(s.shape, rank);
    const int n = group.size();
    for (int l = 0; n > 1 && l < s.lanes; ++l) {
      LaneBuilder lane = builder.lane(l);
      const Span data{static_cast<uint32_t>(l)};
      if (barrier) {
        send_to_others(lane, group, [&](int) { return data; });
        for (int d = 1; d < n; ++d) lane.recv_reduce(group.rank_at(group.around(-d)), data);
        continue;
      }
      const Span own = builder.temporaries(data);
      lane.copy(own, data.first);
      one_shot(lane, group, own, data, Yields::kFinal);
    }
    return builder.take();
  };
}

}  // namespace ringfold::algo
