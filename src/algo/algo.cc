#include "algo/algo.h"

#include <algorithm>
#include <limits>

#include "algo/parts.h"

namespace ringfold::algo {
namespace {

using C = Collective;

// In the order of algorithms_for(). `folds_in_order`: the collectives for which every value is the rank-order fold.
struct Entry {
  std::string_view name;
  std::vector<Collective> collectives;
  std::vector<Collective> folds_in_order;
};

const std::vector<Entry>& table() {
  static const std::vector<Entry> entries = {
      {"ring", {C::kAllReduce, C::kReduceScatter, C::kAllGather}, {}},
      {"tree", {C::kAllReduce, C::kReduce, C::kBroadcast, C::kGather, C::kScatter, C::kBarrier}, {}},
      {"direct",
       {C::kAllReduce, C::kReduce, C::kReduceScatter, C::kAllGather, C::kBroadcast, C::kGather, C::kScatter,
        C::kAllToAll},
       {C::kAllReduce, C::kReduce, C::kReduceScatter}},
      {"oneshot", {C::kAllReduce, C::kBarrier}, {C::kAllReduce}},
      {"star", {C::kAllReduce, C::kReduceScatter, C::kAllGather}, {C::kAllReduce, C::kReduceScatter}},
      {"hierarchical", {C::kAllReduce, C::kReduce, C::kReduceScatter, C::kAllGather, C::kBroadcast, C::kBarrier}, {}},
      {"doubling", {C::kAllReduce}, {}},
      {"recursive", {C::kAllReduce, C::kReduceScatter, C::kAllGather, C::kBarrier}, {}},
      {"chain", {C::kAllReduce, C::kReduce, C::kBroadcast}, {C::kAllReduce, C::kReduce}},
  };
  return entries;
}

bool has(const std::vector<Collective>& list, Collective collective) {
  return std::find(list.begin(), list.end(), collective) != list.end();
}

Status check_arguments(const Shape& shape, const Parameters& parameters) {
  const auto bad = [](std::string what) { return Status(Code::kInvalid, std::move(what)); };
  if (shape.ranks < 1) return bad("a schedule needs at least one rank");
  if (parameters.lanes < 1 || parameters.lanes > 4) return bad("lanes must be 1 to 4");
  if (has_root(shape.collective) && (shape.root < 0 || shape.root >= shape.ranks)) {
    return bad("root " + std::to_string(shape.root) + " is not a rank of " + std::to_string(shape.ranks));
  }
  if (parameters.host_of.empty()) return {};
  if (parameters.host_of.size() != static_cast<size_t>(shape.ranks)) return bad("host_of must name a host per rank");
  int hosts = 0;
  for (const int host : parameters.host_of) {
    if (host < 0 || host > hosts) return bad("host_of must number hosts from 0 in order of first appearance");
    hosts = std::max(hosts, host + 1);
  }
  return {};
}

}  // namespace

std::vector<std::string> algorithms_for(Collective collective) {
  std::vector<std::string> names;
  for (const Entry& entry : table()) {
    if (has(entry.collectives, collective)) names.emplace_back(entry.name);
  }
  return names;
}

bool is_canonical(Collective collective, std::string_view algorithm) {
  for (const Entry& entry : table()) {
    if (entry.name != algorithm) continue;
    return has(reduces(collective) ? entry.folds_in_order : entry.collectives, collective);
  }
  return false;
}

Result<Schedule> make(std::string_view algorithm, const Shape& shape, const Parameters& parameters) {
  const auto names = algorithms_for(shape.collective);
  if (std::find(names.begin(), names.end(), algorithm) == names.end()) {
    std::string message = "no algorithm \"" + std::string(algorithm) + "\" for ";
    message += name_of(shape.collective);
    message += "; there are";
    for (const auto& name : names) message += " " + name;
    return Status(Code::kInvalid, message);
  }
  RINGFOLD_TRY(check_arguments(shape, parameters));
  Schedule s{.shape = shape, .algorithm = std::string(algorithm), .lanes = parameters.lanes};
  if (algorithm == "ring") make_ring(s);
  if (algorithm == "tree") make_tree(s);
  if (algorithm == "recursive") make_recursive(s);
  if (algorithm == "direct") make_direct(s);
  if (algorithm == "oneshot") make_oneshot(s);
  if (algorithm == "chain") make_chain(s);
  if (algorithm == "star") make_star(s);
  if (algorithm == "hierarchical") make_hierarchical(s, parameters);
  if (algorithm == "doubling") make_doubling(s, parameters);
  if (s.chunks() > static_cast<uint64_t>(std::numeric_limits<int32_t>::max())) {
    return Status(Code::kInvalid, "too many ranks: chunks are numbered with 31 bits");
  }
  if (shape.ranks == 1) {  // the contribution is the result
    s.rank = [lanes = s.lanes](int) { return RankSteps{.lanes = std::vector<schedule::Lane>(lanes)}; };
  }
  return s;
}

Group everyone(const Shape& shape, int rank, int first) {
  const int n = shape.ranks;
  return {.count = n, .me = (rank - first + n) % n, .first = first};
}

Group listed_group(std::vector<int> ranks, int me) {
  const int count = static_cast<int>(ranks.size());
  return {.count = count, .me = me, .listed = std::move(ranks)};
}

}  // namespace ringfold::algo
