// Hierarchical: as much as possible inside a host, where links are fast, and the rest once over the slow links.
//
// Every block has an owner, member i of host h. In any other host the member with the same local index stands in for
// the owner (index modulo the host's size, so hosts may differ in size, and ranks may be placed anyhow).
// Reduce-scatter brings a block's parts together at the stand-in of each host, then from the stand-ins to the owner;
// all-gather goes the same way back; all-reduce is both. The stand-ins of one index form a column across the hosts,
// and all columns work at the same time: each host sends and receives each foreign block just once, split evenly over
// its members.
//
// Inside a host the phases are direct (one round; codings 1); across hosts they are direct for a few hosts, and rings
// for more, where n-1 connections per rank and n-1 messages per round would cost more than a ring's rounds do.
//
// Cost with H hosts of k ranks: (H-1)/H of the buffer each way over a host's slow link for a reduce-scatter, the
// least possible, in 2 rounds (H with rings). Coding depth 2 or H per direction; not the rank order.
//
// Broadcast and reduce: a double tree (tree.cc) of one leader per host, the root leading its own; members are leaves
// of their leader. Barrier: members report to their leader, leaders disseminate, members are told.
#include "algo/parts.h"

namespace ringfold::algo {
namespace {

constexpr int kMostDirectHosts = 8;

struct Hosts {
  std::vector<std::vector<int>> members;  // by host, in rank order
  std::vector<int> host_of;               // by rank
  std::vector<int> index_of;              // by rank: index in its host
  int most = 0;                           // members of the largest host
  bool rings = false;                     // between hosts, instead of direct exchanges

  int count() const { return static_cast<int>(members.size()); }
  int size(int host) const { return static_cast<int>(members[static_cast<size_t>(host)].size()); }
  int member(int host, int index) const { return members[static_cast<size_t>(host)][static_cast<size_t>(index)]; }
};

Hosts hosts_from(const std::vector<int>& host_of, int ranks) {
  Hosts hosts;
  for (int rank = 0; rank < ranks; ++rank) {
    const int host = host_of.empty() ? rank : host_of[static_cast<size_t>(rank)];
    if (host == hosts.count()) hosts.members.emplace_back();
    auto& members = hosts.members[static_cast<size_t>(host)];
    hosts.host_of.push_back(host);
    hosts.index_of.push_back(static_cast<int>(members.size()));
    members.push_back(rank);
    hosts.most = std::max(hosts.most, static_cast<int>(members.size()));
  }
  return hosts;
}

// Which chunks the blocks are on one lane. All-reduce numbers its chunks column by column, so that a column's blocks
// are one span; otherwise block = owner's rank, and each block is a slice of its own.
class Numbering {
 public:
  Numbering(const Hosts& hosts, const Schedule& s, int lane) : hosts_(&hosts) {
    const auto lanes = static_cast<uint32_t>(s.lanes);
    const auto l = static_cast<uint32_t>(lane);
    const bool whole = s.shape.collective == Collective::kAllReduce;
    const int slices = whole ? 1 : hosts.count();
    block_.resize(static_cast<size_t>(hosts.count()));
    slice_.resize(static_cast<size_t>(slices));
    for (auto& spans : slice_) spans.assign(static_cast<size_t>(hosts.most), Span{0, 0});
    uint32_t next = static_cast<uint32_t>(s.shape.ranks) * l;
    for (int i = 0; i < hosts.most; ++i) {
      if (whole) slice_[0][static_cast<size_t>(i)].first = next;
      for (int h = 0; h < hosts.count(); ++h) {
        const bool exists = i < hosts.size(h);
        Span block{0, 0};
        if (exists) block = {whole ? next++ : static_cast<uint32_t>(hosts.member(h, i)) * lanes + l, 1};
        block_[static_cast<size_t>(h)].push_back(block);
        if (!whole) slice_[static_cast<size_t>(h)][static_cast<size_t>(i)] = block;
        if (whole && exists) ++slice_[0][static_cast<size_t>(i)].count;
      }
    }
  }
  Span block(int host, int index) const { return block_[static_cast<size_t>(host)][static_cast<size_t>(index)]; }
  // Calls use(share) for phases inside a host of `size`: share(j) are chunks of a column that member j stands in for.
  template <typename Use>
  void for_each_phase(int size, Use use) const {
    for (int start = 0; start < hosts_->most; start += size) {
      for (const auto& columns : slice_) {
        use([&columns, start](int j) {
          const auto i = static_cast<size_t>(start + j);
          return i < columns.size() ? columns[i] : Span{0, 0};
        });
      }
    }
  }

 private:
  const Hosts* hosts_;
  std::vector<std::vector<Span>> block_;  // by host, index
  std::vector<std::vector<Span>> slice_;  // by slice, index
};

// One rank's part on one lane in the collectives that share blocks out.
void share_out(Builder& builder, LaneBuilder lane, const Schedule& s, const Hosts& hosts, int rank,
               const Numbering& numbering) {
  const int host = hosts.host_of[static_cast<size_t>(rank)];
  const int index = hosts.index_of[static_cast<size_t>(rank)];
  const Group inside = listed_group(hosts.members[static_cast<size_t>(host)], index);
  // Calls use(column, share) for each column that this rank belongs to.
  const auto for_each_column = [&](auto use) {
    for (int i = index; i < hosts.most; i += hosts.size(host)) {
      std::vector<int> column;
      for (int h = 0; h < hosts.count(); ++h) column.push_back(hosts.member(h, i % hosts.size(h)));
      use(listed_group(std::move(column), host), [&numbering, i](int h) { return numbering.block(h, i); });
    }
  };
  if (s.shape.collective != Collective::kAllGather) {
    const Yields yields = hosts.count() == 1 ? Yields::kFinal : Yields::kPartial;
    numbering.for_each_phase(
        inside.size(), [&](const Shares& share) { direct_reduce_scatter(builder, lane, inside, share, yields); });
    for_each_column([&](const Group& column, const Shares& share) {
      if (hosts.rings) {
        ring_reduce_scatter(lane, column, share, Yields::kFinal);
      } else {
        direct_reduce_scatter(builder, lane, column, share, Yields::kFinal);
      }
    });
  }
  if (s.shape.collective != Collective::kReduceScatter) {
    for_each_column([&](const Group& column, const Shares& share) {
      (hosts.rings ? ring_all_gather : direct_all_gather)(lane, column, share);
    });
    numbering.for_each_phase(inside.size(), [&](const Shares& share) { direct_all_gather(lane, inside, share); });
  }
}

// Reduce, broadcast, barrier: through one leader per host.
void through_leaders(Builder& builder, const Schedule& s, const Hosts& hosts, int rank) {
  const Collective what = s.shape.collective;
  const int root_host = has_root(what) ? hosts.host_of[static_cast<size_t>(s.shape.root)] : 0;
  std::vector<int> leaders;  // the root's host first
  for (int i = 0; i < hosts.count(); ++i) {
    const int h = (root_host + i) % hosts.count();
    leaders.push_back(has_root(what) && i == 0 ? s.shape.root : hosts.member(h, 0));
  }
  const int host = hosts.host_of[static_cast<size_t>(rank)];
  const int place = (host - root_host + hosts.count()) % hosts.count();
  const int leader = leaders[static_cast<size_t>(place)];
  const Group across = listed_group(leaders, place);
  const Group inside =
      listed_group(hosts.members[static_cast<size_t>(host)], hosts.index_of[static_cast<size_t>(rank)]);
  for (int l = 0; l < s.lanes; ++l) {
    LaneBuilder lane = builder.lane(l);
    const Span data{static_cast<uint32_t>(l)};
    if (rank != leader) {
      if (what != Collective::kBroadcast) lane.send(leader, data);
      if (what != Collective::kReduce) lane.recv(leader, data);
      continue;
    }
    const TreeNode node = rooted_tree_node(l, across.size(), across.me);
    if (what == Collective::kReduce) {
      fold_in_order(builder, lane, inside, data, hosts.count() == 1 ? Yields::kFinal : Yields::kPartial);
      tree_fold(lane, across, node, data, Yields::kFinal);
    }
    if (what == Collective::kBroadcast) tree_spread(lane, across, node, data);
    if (what == Collective::kBarrier) {
      for (const int member : inside.listed) {
        if (member != leader) lane.recv_reduce(member, data);
      }
      disseminate(lane, across);
    }
    for (const int member : inside.listed) {
      if (member != leader && what != Collective::kReduce) lane.send(member, data);
    }
  }
}

}  // namespace

void make_hierarchical(Schedule& s, const Parameters& parameters) {
  Hosts hosts = hosts_from(parameters.host_of, s.shape.ranks);
  hosts.rings = hosts.count() > kMostDirectHosts && !parameters.few_codings;
  const Collective collective = s.shape.collective;
  const bool leaders =
      collective == Collective::kReduce || collective == Collective::kBroadcast || collective == Collective::kBarrier;
  if (leaders) s.lanes = collective == Collective::kBarrier ? 1 : kTrees;
  const auto lanes = static_cast<uint32_t>(s.lanes);
  const auto ranks = static_cast<uint32_t>(s.shape.ranks);
  s.chunks_per_block = collective == Collective::kAllReduce ? lanes * ranks : lanes;
  s.rank = [s = Schedule(s), leaders, hosts = std::move(hosts)](int rank) {
    Builder builder(s);
    if (leaders) {
      through_leaders(builder, s, hosts, rank);
    } else {
      for (int l = 0; l < s.lanes; ++l) {
        share_out(builder, builder.lane(l), s, hosts, rank, Numbering(hosts, s, l));
      }
    }
    return builder.take();
  };
}

}  // namespace ringfold::algo
