// Recursive doubling and halving: the fewest rounds at the least volume, for any number of ranks.
//
// All-gather by doubling. After some rounds rank r holds the w blocks r .. r+w-1 (mod n). In the next round it sends
// them to rank r-w and gets r+w .. r+2w-1 from rank r+w, so w doubles; the last round sends only what is still
// missing. Reduce-scatter by halving is the same thing played backwards with every transfer turned round: rank r
// hands its partial sums of the far half of its blocks to the rank that is w further, until block r alone is left.
// All-reduce is halving, then doubling.
//
// Going round the circle instead of exchanging with partner r XOR w makes any n work: ceil(log2 n) rounds each way
// and (n-1)/n of the buffer, with no extra rounds to fold surplus ranks into a power of two first. A message is a run
// of neighbouring blocks, hence one step (two where it wraps round). Middle sizes, where a ring has too many rounds;
// coding depth floor(log2 n) + 1. Folds follow the halving: a fixed order, not the rank order.
//
// A barrier passes "I know of w arrivals" on in the same circle (dissemination): ceil(log2 n) rounds.
#include "algo/parts.h"

namespace ringfold::algo {
namespace {

// A round of doubling: from w blocks to w + news.
struct Round {
  int w;
  int news;
};

std::vector<Round> doubling_rounds(int n) {
  std::vector<Round> rounds;
  for (int w = 1; w < n; w *= 2) rounds.push_back({w, std::min(w, n - w)});
  return rounds;
}

Span shifted(Span span, uint32_t base) { return {base + span.first, span.count}; }

void halve(LaneBuilder lane, const Group& group, uint32_t base) {
  const int n = group.size();
  auto rounds = doubling_rounds(n);
  for (; !rounds.empty(); rounds.pop_back()) {
    const auto [w, news] = rounds.back();
    const int to = group.around(w);
    const int from = group.around(-w);
    for_each_run(n, to, news, [&](Span run) { lane.send(group.rank_at(to), shifted(run, base)); });
    for_each_run(n, group.me, news, [&](Span run) {
      lane.recv_reduce(group.rank_at(from), shifted(run, base), kPrepend | (w == 1 ? kComplete : 0));
    });
  }
}

void double_up(LaneBuilder lane, const Group& group, uint32_t base) {
  const int n = group.size();
  for (const auto [w, news] : doubling_rounds(n)) {
    const int to = group.around(-w);
    const int from = group.around(w);
    for_each_run(n, group.me, news, [&](Span run) { lane.send(group.rank_at(to), shifted(run, base)); });
    for_each_run(n, from, news, [&](Span run) { lane.recv(group.rank_at(from), shifted(run, base)); });
  }
}

}  // namespace

void disseminate(LaneBuilder lane, const Group& group) {
  for (int w = 1; w < group.size(); w *= 2) {
    lane.send(group.rank_at(group.around(w)), Span{});
    lane.recv_reduce(group.rank_at(group.around(-w)), Span{});
  }
}

void make_recursive(Schedule& s) {
  const Collective collective = s.shape.collective;
  const bool whole = collective == Collective::kAllReduce;
  if (!whole) s.lanes = 1;  // a run of blocks is a run of chunks only while a block is one chunk
  s.chunks_per_block = whole ? static_cast<uint32_t>(s.shape.ranks * s.lanes) : 1;
  s.rank = [s = Schedule(s)](int rank) {
    Builder builder(s);
    const Collective what = s.shape.collective;
    const Group group = everyone(s.shape, rank);
    for (int l = 0; l < s.lanes; ++l) {
      LaneBuilder lane = builder.lane(l);
      const auto base = static_cast<uint32_t>(l * s.shape.ranks);
      if (what == Collective::kBarrier) disseminate(lane, group);
      if (what == Collective::kAllReduce || what == Collective::kReduceScatter) halve(lane, group, base);
      if (what == Collective::kAllReduce || what == Collective::kAllGather) double_up(lane, group, base);
    }
    return builder.take();
  };
}

}  // namespace ringfold::algo
