// all_to_all, all_to_all_v, barrier.
#include "tools/cli/perf/operation.h"

namespace ringfold::cli {
namespace {

class AllToAll final : public Operation {
 public:
  std::string_view name() const override { return "all_to_all"; }
  std::optional<Collective> collective() const override { return Collective::kAllToAll; }
  size_t blocks(int n) const override { return static_cast<size_t>(n); }
  double bus_factor(int n) const override { return 1.0 * (n - 1) / n; }  // all blocks but the own one leave
  Layout layout(const Case& c, int rank) const override {
    const size_t all = c.block * blocks(c.ranks), own = c.block * static_cast<size_t>(rank);
    Layout layout{all, all, {}, 0, 0};
    for (int s = 0; s < c.ranks; ++s) layout.result.push_back({c.block * static_cast<size_t>(s), c.block, s, own});
    return layout;
  }
};

class AllToAllV final : public Operation {
 public:
  std::string_view name() const override { return "all_to_all_v"; }
  bool has_in_place() const override { return false; }
  size_t blocks(int n) const override { return static_cast<size_t>(n); }
  double bus_factor(int n) const override { return 1.0 * (n - 1) / n; }  // as all_to_all, on average
  Layout layout(const Case& c, int rank) const override {
    const size_t all = c.block * blocks(c.ranks);
    const auto mine = exchange_counts(c, rank);
    Layout layout{all, all, {}, 0, 0};
    for (int s = 0; s < c.ranks; ++s) {
      layout.result.push_back(
          {sum_before(mine, s), mine[static_cast<size_t>(s)], s, sum_before(exchange_counts(c, s), rank)});
    }
    return layout;
  }
};

class Barrier final : public Operation {
 public:
  std::string_view name() const override { return "barrier"; }
  std::optional<Collective> collective() const override { return Collective::kBarrier; }
  bool has_in_place() const override { return false; }
  bool has_size() const override { return false; }
  size_t blocks(int) const override { return 0; }
  double bus_factor(int) const override { return 0; }
  Layout layout(const Case&, int) const override { return {}; }
};

}  // namespace

// Rank s sends to rank d what uneven_counts gives the rank (s + d) mod n, so that every rank sends and receives n
// blocks in all, and every pair another number.
std::vector<size_t> exchange_counts(const Case& c, int rank) {
  const auto base = uneven_counts(c.block, c.ranks);
  std::vector<size_t> result;
  for (int peer = 0; peer < c.ranks; ++peer) result.push_back(base[static_cast<size_t>((rank + peer) % c.ranks)]);
  return result;
}

void add_exchanges(Operations* list) {
  list->push_back(std::make_unique<AllToAll>());
  list->push_back(std::make_unique<AllToAllV>());
  list->push_back(std::make_unique<Barrier>());
}

}  // namespace ringfold::cli
