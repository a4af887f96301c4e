// all_reduce, reduce, reduce_scatter, reduce_scatter_v.
#include "tools/cli/perf/operation.h"
#include "tools/cli/perf/pattern.h"

namespace ringfold::cli {
namespace {

class AllReduce final : public Operation {
 public:
  std::string_view name() const override { return "all_reduce"; }
  std::optional<Collective> collective() const override { return Collective::kAllReduce; }
  bool reduced() const override { return true; }
  size_t blocks(int) const override { return 1; }
  // Each rank must send its n-1 foreign shares to be reduced and its own, reduced, to n-1 ranks: 2 (n-1)/n of the
  // buffer.
  double bus_factor(int n) const override { return 2.0 * (n - 1) / n; }
  Layout layout(const Case& c, int) const override {
    return {c.block, c.block, {{0, c.block, Pattern::kReduced, 0}}, 0, 0};
  }
};

class Reduce final : public Operation {
 public:
  std::string_view name() const override { return "reduce"; }
  std::optional<Collective> collective() const override { return Collective::kReduce; }
  bool reduced() const override { return true; }
  size_t blocks(int) const override { return 1; }
  double bus_factor(int) const override { return 1; }  // the whole buffer leaves each rank once
  Layout layout(const Case& c, int rank) const override {
    if (rank != c.root) return {c.block, 0, {}, 0, 0};
    return {c.block, c.block, {{0, c.block, Pattern::kReduced, 0}}, 0, 0};
  }
};

class ReduceScatter final : public Operation {
 public:
  std::string_view name() const override { return "reduce_scatter"; }
  std::optional<Collective> collective() const override { return Collective::kReduceScatter; }
  bool reduced() const override { return true; }
  size_t blocks(int n) const override { return static_cast<size_t>(n); }
  double bus_factor(int n) const override { return 1.0 * (n - 1) / n; }  // all blocks but the own one leave
  Layout layout(const Case& c, int rank) const override {
    const size_t own = c.block * static_cast<size_t>(rank);
    return {c.block * blocks(c.ranks), c.block, {{0, c.block, Pattern::kReduced, own}}, 0, own};
  }
};

class ReduceScatterV final : public Operation {
 public:
  std::string_view name() const override { return "reduce_scatter_v"; }
  bool reduced() const override { return true; }
  size_t blocks(int n) const override { return static_cast<size_t>(n); }
  double bus_factor(int n) const override { return 1.0 * (n - 1) / n; }  // as reduce_scatter, on average
  Layout layout(const Case& c, int rank) const override {
    const auto counts = uneven_counts(c.block, c.ranks);
    const size_t own = sum_before(counts, rank), mine = counts[static_cast<size_t>(rank)];
    return {c.block * blocks(c.ranks), mine, {{0, mine, Pattern::kReduced, own}}, 0, own};
  }
};

}  // namespace

void add_reductions(Operations* list) {
  list->push_back(std::make_unique<AllReduce>());
  list->push_back(std::make_unique<Reduce>());
  list->push_back(std::make_unique<ReduceScatter>());
  list->push_back(std::make_unique<ReduceScatterV>());
}

}  // namespace ringfold::cli
