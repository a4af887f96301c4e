// The parts that generators are composed of: one phase of a collective among a group of ranks, on one lane.
//
// A phase knows participants by their index in the group and asks `share(i)` for the chunks that belong to
// participant i. A flat algorithm runs its phases among all ranks; the hierarchical one runs the same phases first
// inside a host and then across hosts, with other groups and shares. An empty share is skipped by all alike.
#pragma once

#include <functional>
#include <vector>

#include "algo/algo.h"
#include "schedule/builder.h"

namespace ringfold::algo {

using schedule::Builder;
using schedule::kComplete;
using schedule::kPrepend;
using schedule::LaneBuilder;
using schedule::RankSteps;
using schedule::Schedule;
using schedule::Shape;
using schedule::Span;

// The participants of a phase, in the order of their shares; this rank has index `me`.
struct Group {
  int count = 1;
  int me = 0;
  int first = 0;            // participant i is rank (first + i) mod count ...
  std::vector<int> listed;  // ... unless they are listed here

  int size() const { return count; }
  int rank_at(int index) const {
    return listed.empty() ? (first + index) % count : listed[static_cast<size_t>(index)];
  }
  // The index `steps` places further round the circle.
  int around(int steps) const { return ((me + steps) % count + count) % count; }
};

// All ranks of a schedule as seen by `rank`, from rank `first` on.
Group everyone(const Shape& shape, int rank, int first = 0);
Group listed_group(std::vector<int> ranks, int me);

using Shares = std::function<Span(int index)>;

// What the last fold of a phase yields: a partial value, or the complete one (its step is then flagged kComplete).
enum class Yields { kPartial, kFinal };

// Participant i ends with the fold of share(i) over all participants; its cells of other shares are used up.
void ring_reduce_scatter(LaneBuilder lane, const Group& group, const Shares& share, Yields yields);
void direct_reduce_scatter(Builder& builder, LaneBuilder lane, const Group& group, const Shares& share,
                           Yields yields);
// Participant i starts with the value of share(i); all end with all of them.
void ring_all_gather(LaneBuilder lane, const Group& group, const Shares& share);
void direct_all_gather(LaneBuilder lane, const Group& group, const Shares& share);

// All send their `own`, a temporary, to all, and fold the values of participant 0, 1, 2, ... in this order into
// `data`. The own part is the sent copy: with a codec that is what the others decode, too.
void one_shot(LaneBuilder lane, const Group& group, Span own, Span data, Yields yields);

// Folds span `own` of participant 0, 1, 2, ... in this order into this rank's cells (the others send theirs). Steps
// are adjacent and hand one accumulator on, so that lowering makes them one move with an input per participant.
void fold_in_order(Builder& builder, LaneBuilder lane, const Group& group, Span own, Yields yields);

// A node of the double binary tree (tree.cc); -1 where there is no such neighbour.
struct TreeNode {
  int parent = -1;
  int left = -1;
  int right = -1;
};
inline constexpr int kTrees = 2;
// Place of participant `index` of `size` in tree 0 or 1.
TreeNode tree_node(int tree, int size, int index);
// The same with participant 0 as the root of both trees, which the others form below it.
TreeNode rooted_tree_node(int tree, int size, int index);
// Folds `span` towards the root of the tree, where the value becomes `yields`; or passes it on from there to all.
void tree_fold(LaneBuilder lane, const Group& group, const TreeNode& node, Span span, Yields yields);
void tree_spread(LaneBuilder lane, const Group& group, const TreeNode& node, Span span);

// Passes "everybody of the group has arrived" round in ceil(log2 size) rounds (barrier).
void disseminate(LaneBuilder lane, const Group& group);

// Calls `use(Span)` for the blocks first .. first+count-1 (mod n): one span, or two where they wrap round.
template <typename Use>
void for_each_run(int n, int first, int count, Use use) {
  first %= n;
  const int head = std::min(count, n - first);
  use(Span{static_cast<uint32_t>(first), static_cast<uint32_t>(head)});
  if (count > head) use(Span{0, static_cast<uint32_t>(count - head)});
}

// Each makes the schedules of its algorithm: `schedule` comes with shape and name, and with lanes = parameters.lanes.
// `make()` has checked the arguments.
void make_ring(Schedule& schedule);
void make_tree(Schedule& schedule);
void make_recursive(Schedule& schedule);
void make_direct(Schedule& schedule);
void make_oneshot(Schedule& schedule);
void make_chain(Schedule& schedule);
void make_star(Schedule& schedule);
void make_hierarchical(Schedule& schedule, const Parameters& parameters);
void make_doubling(Schedule& schedule, const Parameters& parameters);

}  // namespace ringfold::algo
