// all_gather, all_gather_v, gather, scatter, broadcast.
#include "tools/cli/perf/operation.h"

namespace ringfold::cli {
namespace {

class AllGather final : public Operation {
 public:
  std::string_view name() const override { return "all_gather"; }
  std::optional<Collective> collective() const override { return Collective::kAllGather; }
  size_t blocks(int n) const override { return static_cast<size_t>(n); }
  double bus_factor(int n) const override { return 1.0 * (n - 1) / n; }  // all blocks but the own one arrive
  Layout layout(const Case& c, int rank) const override {
    Layout layout{c.block, c.block * blocks(c.ranks), {}, c.block * static_cast<size_t>(rank), 0};
    for (int s = 0; s < c.ranks; ++s) layout.result.push_back({c.block * static_cast<size_t>(s), c.block, s, 0});
    return layout;
  }
};

class AllGatherV final : public Operation {
 public:
  std::string_view name() const override { return "all_gather_v"; }
  size_t blocks(int n) const override { return static_cast<size_t>(n); }
  double bus_factor(int n) const override { return 1.0 * (n - 1) / n; }  // as all_gather, on average
  Layout layout(const Case& c, int rank) const override {
    const auto counts = uneven_counts(c.block, c.ranks);
    Layout layout{counts[static_cast<size_t>(rank)], c.block * blocks(c.ranks), {}, sum_before(counts, rank), 0};
    for (int s = 0; s < c.ranks; ++s)
      layout.result.push_back({sum_before(counts, s), counts[static_cast<size_t>(s)], s, 0});
    return layout;
  }
};

class Gather final : public Operation {
 public:
  std::string_view name() const override { return "gather"; }
  std::optional<Collective> collective() const override { return Collective::kGather; }
  size_t blocks(int n) const override { return static_cast<size_t>(n); }
  double bus_factor(int n) const override { return 1.0 * (n - 1) / n; }  // what arrives at the root
  Layout layout(const Case& c, int rank) const override {
    if (rank != c.root) return {c.block, 0, {}, 0, 0};
    Layout layout{c.block, c.block * blocks(c.ranks), {}, c.block * static_cast<size_t>(rank), 0};
    for (int s = 0; s < c.ranks; ++s) layout.result.push_back({c.block * static_cast<size_t>(s), c.block, s, 0});
    return layout;
  }
};

class Scatter final : public Operation {
 public:
  std::string_view name() const override { return "scatter"; }
  std::optional<Collective> collective() const override { return Collective::kScatter; }
  size_t blocks(int n) const override { return static_cast<size_t>(n); }
  double bus_factor(int n) const override { return 1.0 * (n - 1) / n; }  // what leaves the root
  Layout layout(const Case& c, int rank) const override {
    const size_t own = c.block * static_cast<size_t>(rank);
    const bool root = rank == c.root;
    return {root ? c.block * blocks(c.ranks) : 0, c.block, {{0, c.block, c.root, own}}, 0, root ? own : 0};
  }
};

class Broadcast final : public Operation {
 public:
  std::string_view name() const override { return "broadcast"; }
  std::optional<Collective> collective() const override { return Collective::kBroadcast; }
  size_t blocks(int) const override { return 1; }
  double bus_factor(int) const override { return 1; }  // the whole buffer arrives at each rank once
  Layout layout(const Case& c, int rank) const override {
    return {rank == c.root ? c.block : 0, c.block, {{0, c.block, c.root, 0}}, 0, 0};
  }
};

}  // namespace

void add_gathers(Operations* list) {
  list->push_back(std::make_unique<AllGather>());
  list->push_back(std::make_unique<AllGatherV>());
  list->push_back(std::make_unique<Broadcast>());
  list->push_back(std::make_unique<Gather>());
  list->push_back(std::make_unique<Scatter>());
}

}  // namespace ringfold::cli
