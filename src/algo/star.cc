// Star: one rank gathers what all the others have and sends each of them what it is to end with.
//
// Reductions fold ((x_0 + x_1) + x_2) + ... at rank 0 (canonical), all-gather joins the blocks there.
// Two rounds, like direct, but 2(n-1) messages in all where direct has n(n-1) in each round.
//
// Cost: everything passes through one rank, n-1 buffers in and n-1 results out. So it is for small messages, and
// there for ranks that outnumber the cores: what takes a core's time counts then, wherever it is done, and a rank
// that waits but once takes one change of process.
#include "algo/parts.h"

namespace ringfold::algo {
namespace {

constexpr int kHub = 0;

struct Star {
  bool folds = false;
  Shares gives;  // what a participant sends to the hub
  Shares takes;  // what it gets
  Span whole;    // what the hub folds
};

void add_star(Builder& builder, LaneBuilder lane, const Group& group, const Star& star) {
  if (group.me != kHub) {
    lane.send(group.rank_at(kHub), star.gives(group.me));
    lane.recv(group.rank_at(kHub), star.takes(group.me));
    return;
  }
  if (star.folds) {
    fold_in_order(builder, lane, group, star.whole, Yields::kFinal);
  } else {
    for (int i = 1; i < group.size(); ++i) lane.recv(group.rank_at(i), star.gives(i));
  }
  for (int i = 1; i < group.size(); ++i) lane.send(group.rank_at(i), star.takes(i));
}

}  // namespace

void make_star(Schedule& s) {
  const Collective what = s.shape.collective;
  if (what != Collective::kAllReduce) s.lanes = 1;
  s.chunks_per_block = static_cast<uint32_t>(s.lanes);
  s.rank = [s = Schedule(s), what](int rank) {
    Builder builder(s);
    const Group group = everyone(s.shape, rank);
    for (int l = 0; l < s.lanes; ++l) {
      const bool scattered = what == Collective::kReduceScatter, gathered = what == Collective::kAllGather;
      const auto blocks = static_cast<uint32_t>(scattered || gathered ? group.size() : 1);
      const Span whole = {static_cast<uint32_t>(l), blocks};
      const auto all = [=](int) { return whole; };
      const auto one = [](int i) { return Span{static_cast<uint32_t>(i)}; };
      add_star(builder, builder.lane(l), group,
               {.folds = !gathered,
                .gives = gathered ? Shares(one) : Shares(all),
                .takes = scattered ? Shares(one) : Shares(all),
                .whole = whole});
    }
    return builder.take();
  };
}

}  // namespace ringfold::algo
