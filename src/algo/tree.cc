// Trees: about log2(n) rounds, however many ranks there are.
//
// Double binary tree. In a binary tree the inner nodes do all the sending while the leaves, half of the ranks, only
// have one neighbour. So there are two trees, each for one half of the buffer, and every rank is an inner node in at
// most one of them: all ranks send and receive about one buffer each way. Tree 0 is the in-order tree over positions
// 1..n (a position's level is the number of zeros it ends with, so odd positions are leaves) with rank r at position
// r+1; in tree 1 everybody moves down by one position (rank 0 goes to n), which swaps odd and even.
//
// All-reduce folds towards each tree's root on one lane and spreads the result on another, so that the way back of a
// tile overlaps the way up of the next ones: 4 lanes. The two meet at the root only, where an event orders them; at
// any other rank the result cannot come down before the part that it replaces has been consumed further up.
// Reduce and broadcast put the root above both trees, which the other ranks form.
//
// Cost: 2 log2(n) rounds pipelined over tiles, about two buffers over each link: small and middle sizes, many ranks.
// Coding depth about 2 log2(n). A node folds left subtree + own + right subtree: rank order, but tree brackets.
//
// Gather and scatter use the binomial tree, whose subtrees are runs of consecutive ranks (counted from the root): a
// message is one run of blocks, log2(n) messages at the root instead of n-1.
#include <bit>

#include "algo/parts.h"

namespace ringfold::algo {
namespace {

int position_of(int tree, int size, int index) { return tree == 0 ? index + 1 : (index == 0 ? size : index); }
int index_at(int tree, int size, int position) { return tree == 0 ? position - 1 : position % size; }
int lowest_bit(int v) { return v & -v; }

void binomial_gather(LaneBuilder lane, const Group& group) {
  const int n = group.size();
  const int v = group.me;
  for (int d = 1; d < n; d *= 2) {
    if (v & d) {
      for_each_run(n, group.rank_at(v), std::min(d, n - v),
                   [&](Span span) { lane.send(group.rank_at(v - d), span); });
      return;
    }
    if (v + d < n) {
      for_each_run(n, group.rank_at(v + d), std::min(d, n - v - d),
                   [&](Span span) { lane.recv(group.rank_at(v + d), span); });
    }
  }
}

void binomial_scatter(LaneBuilder lane, const Group& group) {
  const int n = group.size();
  const int v = group.me;
  const int top = v == 0 ? static_cast<int>(std::bit_ceil(static_cast<unsigned>(n))) : lowest_bit(v);
  if (v > 0) {
    for_each_run(n, group.rank_at(v), std::min(top, n - v),
                 [&](Span span) { lane.recv(group.rank_at(v - top), span); });
  }
  for (int d = top / 2; d > 0; d /= 2) {
    if (v + d >= n) continue;
    for_each_run(n, group.rank_at(v + d), std::min(d, n - v - d),
                 [&](Span span) { lane.send(group.rank_at(v + d), span); });
  }
}

void all_reduce(Builder& builder, const Group& group, int tree) {
  const Span data{static_cast<uint32_t>(tree)};
  const TreeNode node = tree_node(tree, group.size(), group.me);
  LaneBuilder up = builder.lane(tree);
  LaneBuilder down = builder.lane(kTrees + tree);
  tree_fold(up, group, node, data, Yields::kFinal);
  if (node.parent < 0) {
    const uint32_t folded = builder.event();
    up.signal(folded);
    down.wait(folded);
  }
  tree_spread(down, group, node, data);
}

}  // namespace

TreeNode tree_node(int tree, int size, int index) {
  const int position = position_of(tree, size, index);
  const int reach = lowest_bit(position);  // the subtree spans position - reach + 1 .. position + reach - 1
  const auto at = [&](int p) { return index_at(tree, size, p); };
  TreeNode node;
  // Where the regular parent lies beyond the end, the tree is cut off there and the node hangs one level lower.
  const int above = (position - reach) | (2 * reach);
  if (above <= size) {
    node.parent = at(above);
  } else if (position > reach) {
    node.parent = at(position - reach);
  }
  if (reach > 1) node.left = at(position - reach / 2);
  for (int d = reach / 2; d > 0 && node.right < 0; d /= 2) {
    if (position + d <= size) node.right = at(position + d);
  }
  return node;
}

TreeNode rooted_tree_node(int tree, int size, int index) {
  if (size == 1) return {};
  if (index == 0) {
    const int top = static_cast<int>(std::bit_floor(static_cast<unsigned>(size - 1)));
    return {.right = 1 + index_at(tree, size - 1, top)};
  }
  TreeNode node = tree_node(tree, size - 1, index - 1);
  for (int* neighbour : {&node.parent, &node.left, &node.right}) *neighbour += *neighbour < 0 ? 0 : 1;
  if (node.parent < 0) node.parent = 0;
  return node;
}

void tree_fold(LaneBuilder lane, const Group& group, const TreeNode& node, Span span, Yields yields) {
  const int done = node.parent < 0 && yields == Yields::kFinal ? kComplete : 0;
  if (node.left >= 0) lane.recv_reduce(group.rank_at(node.left), span, kPrepend | (node.right < 0 ? done : 0));
  if (node.right >= 0) lane.recv_reduce(group.rank_at(node.right), span, done);
  if (node.parent >= 0) lane.send(group.rank_at(node.parent), span);
}

void tree_spread(LaneBuilder lane, const Group& group, const TreeNode& node, Span span) {
  if (node.parent >= 0) lane.recv(group.rank_at(node.parent), span);
  if (node.left >= 0) lane.send(group.rank_at(node.left), span);
  if (node.right >= 0) lane.send(group.rank_at(node.right), span);
}

void make_tree(Schedule& s) {
  const Collective collective = s.shape.collective;
  const bool both_ways = collective == Collective::kAllReduce;
  const bool one_way = collective == Collective::kReduce || collective == Collective::kBroadcast;
  s.lanes = both_ways ? 2 * kTrees : one_way ? kTrees : 1;
  s.chunks_per_block = both_ways || one_way ? kTrees : 1;
  s.rank = [s = Schedule(s)](int rank) {
    Builder builder(s);
    const Collective what = s.shape.collective;
    const Group group = everyone(s.shape, rank, has_root(what) ? s.shape.root : 0);
    LaneBuilder first = builder.lane(0);
    if (what == Collective::kGather) binomial_gather(first, group);
    if (what == Collective::kScatter) binomial_scatter(first, group);
    if (what == Collective::kBarrier) {
      const TreeNode node = tree_node(0, group.size(), group.me);
      tree_fold(first, group, node, Span{}, Yields::kPartial);
      tree_spread(first, group, node, Span{});
    }
    for (int tree = 0; tree < kTrees; ++tree) {
      const Span half{static_cast<uint32_t>(tree)};
      const TreeNode node = rooted_tree_node(tree, group.size(), group.me);
      if (what == Collective::kAllReduce) all_reduce(builder, group, tree);
      if (what == Collective::kReduce) tree_fold(builder.lane(tree), group, node, half, Yields::kFinal);
      if (what == Collective::kBroadcast) tree_spread(builder.lane(tree), group, node, half);
    }
    return builder.take();
  };
}

}  // namespace ringfold::algo
