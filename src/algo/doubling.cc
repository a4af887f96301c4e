// Doubling: whole values, few rounds. Ranks exchange what they have and fold it; each then stands for twice as many.
//
// A round among r ranks is a one-shot: each sends its value to the r-1 others, and all fold the r values in the
// order of their places, so that they end with the same bits. The number of participants is written as a product,
// n = r_1 r_2 ..., and place i as digits to these bases; in round k those exchange that differ in the k-th digit
// only. So any n works, without extra rounds for what exceeds a power of two: a prime is one round among all.
//
// Between hosts one leader each takes part: members send it what they have, and get the result. So a host's link
// carries each value once, and nobody else waits for it. On one host, or with one rank on each, everybody takes part;
// single ranks among larger hosts join the first of these.
//
// Cost with r = 2: log2 n times the buffer and n log2 n messages, where a one-shot has n-1 times and n(n-1). For
// small buffers. Values that a later round needs lie in temporaries, which nothing overwrites: nobody waits until
// others have read. A fixed order of folds, not the rank order.
#include "algo/parts.h"

namespace ringfold::algo {
namespace {

// n as a product of the rounds' sizes.
std::vector<int> rounds_of(int n) {
  std::vector<int> rounds;
  for (int r = 2; n > 1; ++r) {
    for (; n % r == 0; n /= r) rounds.push_back(r);
  }
  return rounds;
}

// Leaves the fold of all participants in `data`, from `own`: a temporary that the others may read for as long as they
// like.
void exchange_in_rounds(Builder& builder, LaneBuilder lane, const Group& group, Span own, Span data) {
  int stride = 1;
  for (const int r : rounds_of(group.size())) {
    const bool last = stride * r == group.size();
    const int digit = group.me / stride % r;
    std::vector<int> among;
    for (int d = 0; d < r; ++d) among.push_back(group.rank_at(group.me + (d - digit) * stride));
    const Span folded = last ? data : builder.temporaries(data);
    one_shot(lane, listed_group(std::move(among), digit), own, folded, last ? Yields::kFinal : Yields::kPartial);
    own = folded;
    stride *= r;
  }
}

// A leader each, who comes first, and its members.
std::vector<std::vector<int>> parties_of(const std::vector<int>& host_of, int ranks) {
  std::vector<std::vector<int>> parties;
  const bool one_host = std::all_of(host_of.begin(), host_of.end(), [](int host) { return host == 0; });
  for (int rank = 0; rank < ranks; ++rank) {
    const auto host = one_host ? parties.size() : static_cast<size_t>(host_of[static_cast<size_t>(rank)]);
    if (host == parties.size()) parties.emplace_back();
    parties[host].push_back(rank);
  }
  // Were the result coded on its way to members, a leader without any would go on with other bits: so either all lead
  // somebody or none does.
  const auto alone = [](const auto& party) { return party.size() == 1; };
  const auto large = std::find_if_not(parties.begin(), parties.end(), alone);
  if (large == parties.end()) return parties;
  for (const auto& party : parties) {
    if (alone(party)) large->push_back(party.front());
  }
  std::erase_if(parties, alone);
  return parties;
}

}  // namespace

void make_doubling(Schedule& s, const Parameters& parameters) {
  s.lanes = 1;
  s.chunks_per_block = 1;
  s.rank = [s = Schedule(s), parties = parties_of(parameters.host_of, s.shape.ranks)](int rank) {
    Builder builder(s);
    std::vector<int> leaders, party;
    int place = 0;
    for (const auto& members : parties) {
      if (std::find(members.begin(), members.end(), rank) != members.end()) {
        place = static_cast<int>(leaders.size());
        party = members;
      }
      leaders.push_back(members.front());
    }
    LaneBuilder lane = builder.lane(0);
    const Span data{0};
    if (rank != party.front()) {
      lane.send(party.front(), data);
      lane.recv(party.front(), data);
    } else if (s.shape.ranks > 1) {
      const Group group = listed_group(leaders, place);
      if (group.size() == 1) {
        fold_in_order(builder, lane, listed_group(party, 0), data, Yields::kFinal);
      } else {
        const Span own = builder.temporaries(data);
        lane.copy(own, data.first);
        for (size_t m = 1; m < party.size(); ++m) lane.recv_reduce(party[m], own);
        exchange_in_rounds(builder, lane, group, own, data);
      }
      for (size_t m = 1; m < party.size(); ++m) lane.send(party[m], data);
    }
    return builder.take();
  };
}

}  // namespace ringfold::algo
