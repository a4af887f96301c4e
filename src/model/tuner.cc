#include "model/tuner.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "base/log.h"

namespace ringfold::model {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kLongest = 1e9;  // stands for never in tables, where every number is finite
// A difference that does not matter: the simpler choice (listed first, fewer lanes, that of the size before) stays.
constexpr double kTie = 0.95;
// None at all. From kLarge on the one listed first is then taken in any case: the model expects the same of rings and
// of recursion between four hosts, and 4 MiB over links of 1 Gbit/s took 53 and 57 ms.
constexpr double kSame = 0.99;
constexpr uint64_t kLarge = 1 << 20;

// How many sizes of the grid it takes to answer for `bytes`: up to the next one, and the one after it where that lies
// between two that are predicted (TableMaker::trace).
int sizes_up_to(uint64_t bytes) {
  int next = 2;
  while (next < kGridSizes - 1 && (next % 2 != 0 || grid_size(next) <= bytes)) ++next;
  return next + 1;
}

// The cost of one algorithm on so many lanes.
struct Curve {
  std::string algorithm;
  int lanes = 1;
  Predictor predictor;
  std::vector<double> seconds;  // at the sizes of the grid; kNever where it cannot be used
};

class TableMaker {
 public:
  TableMaker(Collective collective, const ClusterModel& cluster, const Candidates& candidates,
             const TunerOptions& options, const std::vector<Rule>& rules)
      : collective_(collective),
        cluster_(cluster),
        candidates_(candidates),
        options_(options),
        rules_(rules),
        sizes_(sizes_up_to(options.most_bytes)) {}

  Status make(Table& table) {
    RINGFOLD_TRY(add_curves());
    table.collective = collective_;
    if (curves_.empty()) return {};
    table.ranges = ranges_of(choose_from({}, 0));
    for (const Rule& rule : rules_) {
      if (!names_this(rule)) continue;
      if (rule.algorithm == kAuto) {
        overlay(table.ranges, ranges_of(choose_from({}, 0)), rule, false);
      } else {
        overlay(table.ranges, ranges_of(choose_from(rule.algorithm, rule.lanes)), rule, true);
      }
    }
    merge(table.ranges);
    predict(table);
    return {};
  }

 private:
  bool names_this(const Rule& rule) const {
    if (rule.collective) return *rule.collective == collective_;
    return rule.algorithm == kAuto || has(rule.algorithm);
  }
  bool has(std::string_view algorithm) const {
    const auto names = candidates_.algorithms_for(collective_);
    return std::find(names.begin(), names.end(), algorithm) != names.end();
  }
  bool allowed(std::string_view algorithm) const {
    return !options_.deterministic || candidates_.canonical(collective_, algorithm);
  }

  Status add_curves() {
    for (const Rule& rule : rules_) {
      if (!names_this(rule) || rule.algorithm == kAuto || allowed(rule.algorithm)) continue;
      return {Code::kInvalid, fmt::format("RINGFOLD_ALGORITHM asks for {} {}, which deterministic mode excludes: its "
                                          "result depends on how the buffer is cut",
                                          rule.algorithm, name_of(collective_))};
    }
    for (const std::string& algorithm : candidates_.algorithms_for(collective_)) {
      if (!allowed(algorithm)) continue;
      std::set<int> lanes = {1, 2, 4};
      for (const Rule& rule : rules_) {
        if (names_this(rule) && rule.algorithm == algorithm && rule.lanes != 0) lanes.insert(rule.lanes);
      }
      std::set<std::pair<int, uint32_t>> seen;  // some algorithms have the lanes that they have
      for (const int l : lanes) {
        auto schedule = candidates_.make(collective_, algorithm, l);
        if (!schedule.ok()) {
          log::debug("{} {}: {}", algorithm, name_of(collective_), schedule.status().message());
          continue;
        }
        if (!seen.insert({schedule->lanes, schedule->chunks_per_block}).second) continue;
        Curve curve{algorithm, l, Predictor(*schedule, cluster_, options_.cutting), {}};
        const auto twin = std::find_if(curves_.begin(), curves_.end(),
                                       [&](const Curve& other) { return other.predictor.same_as(curve.predictor); });
        if (twin == curves_.end()) {
          trace(curve);
        } else {
          curve.seconds = twin->seconds;
        }
        curves_.push_back(std::move(curve));
      }
    }
    return {};
  }

  void trace(Curve& curve) const {
    curve.seconds.resize(at(sizes_));
    if (collective_ == Collective::kBarrier) {  // has no size
      std::fill(curve.seconds.begin(), curve.seconds.end(), curve.predictor.seconds(0));
      return;
    }
    // Every other size is predicted; those between lie a third of the way from half to twice their size.
    for (int i = 0; i < sizes_; ++i) {
      if (i % 2 == 0 || i == sizes_ - 1) curve.seconds[at(i)] = curve.predictor.seconds(grid_size(i));
    }
    for (int i = 1; i < sizes_ - 1; i += 2) {
      curve.seconds[at(i)] = (2 * curve.seconds[at(i - 1)] + curve.seconds[at(i + 1)]) / 3;
    }
    // A choice at one size holds up to the next (and a bit: lowering rounds chunks up to elements), so it must fit
    // there.
    for (int i = 0; i < sizes_; ++i) {
      const uint64_t most = i + 1 < kGridSizes ? grid_size(i + 1) + grid_size(i) / 2 : kNoLimit;
      if (!curve.predictor.fits(most)) curve.seconds[at(i)] = kNever;
    }
  }

  // What is taken at a size because it was measured to be faster, though the model does not know why; -1: nothing.
  // (On two cores of an Intel Xeon.)
  int measured_choice(int i) const {
    // A barrier of ranks that take turns goes through one of them, which leaves it first and has a processor: the
    // root of what often comes next has sent before anybody waits for it, where otherwise those who leave first wait
    // for a root without a processor. (4 and 8 ranks, shared memory: the barrier itself 1.3 and 1.2 times faster than
    // one-shot, a broadcast of 8 bytes after it 14 and 40 times.)
    if (collective_ == Collective::kBarrier && cluster_.ranks_take_turns()) return curve_of("hierarchical", i);
    if (!cluster_.two_neighbours()) return -1;
    // Each of two neighbours reads the other's input, once, and writes only what nobody else reads: folding all of it
    // is cheaper than fetching half of the result, which has just been written, from the other core. (8 to 64 KiB 3
    // to 4 times faster than halves, in place 1.2 to 1.9; 256 KiB 2.2 times, in place the same.)
    if (collective_ == Collective::kAllReduce && grid_size(i) < kMostWhole) return curve_of("oneshot", i);
    // A broadcast to a neighbour gains nothing from the lanes that let the model's copies overlap: each has slots of
    // its own, which do not fit the caches together, and who waits for several cannot look at one word. (4 KiB to 4
    // MiB on one lane 1.4 to 2.3 times faster, in place 1.0 to 1.9; ordinary memory with the tiles of comm/tuning.cc
    // 1.1 to 1.5 times.)
    if (collective_ == Collective::kBroadcast) return curve_of("direct", i);  // the first of these has one lane
    return -1;
  }
  static constexpr uint64_t kMostWhole = 512 << 10;
  int curve_of(std::string_view algorithm, int i) const {
    const auto found = std::find_if(curves_.begin(), curves_.end(), [&](const Curve& curve) {
      return curve.algorithm == algorithm && curve.seconds[at(i)] < kNever;
    });
    return found == curves_.end() ? -1 : static_cast<int>(found - curves_.begin());
  }

  // The best curve at each size, among those of `algorithm` and `lanes` if these are given; where there is none,
  // among all.
  std::vector<int> choose_from(std::string_view algorithm, int lanes) {
    const bool exact = std::any_of(curves_.begin(), curves_.end(), [&](const Curve& curve) {
      return curve.algorithm == algorithm && curve.lanes == lanes;
    });
    std::vector<int> chosen(at(sizes_));
    for (int i = 0; i < sizes_; ++i) {
      const auto best = [&](bool any) {
        const auto usable = [&](const Curve& curve) {
          return any || (curve.algorithm == algorithm && (!exact || curve.lanes == lanes));
        };
        double least = kNever;
        for (const Curve& curve : curves_) {
          if (usable(curve)) least = std::min(least, curve.seconds[at(i)]);
        }
        const auto good = [&](int c) {
          const Curve& curve = curves_[at(c)];
          return least < kNever && usable(curve) && curve.seconds[at(i)] * kTie <= least;
        };
        // Does one that is listed before cost the same?
        const auto simpler = [&](int c) {
          return grid_size(i) >= kLarge && std::any_of(curves_.begin(), curves_.begin() + c, [&](const Curve& curve) {
                   return usable(curve) && curve.seconds[at(i)] * kSame <= curves_[at(c)].seconds[at(i)];
                 });
        };
        if (i > 0 && good(chosen[at(i - 1)]) && !simpler(chosen[at(i - 1)])) return chosen[at(i - 1)];
        int choice = 0;
        while (choice < static_cast<int>(curves_.size()) && !good(choice)) ++choice;
        return choice < static_cast<int>(curves_.size()) ? choice : -1;
      };
      chosen[at(i)] = algorithm.empty() ? measured_choice(i) : best(false);
      if (chosen[at(i)] < 0) chosen[at(i)] = best(true);
      if (chosen[at(i)] < 0) chosen[at(i)] = 0;
    }
    return chosen;
  }

  std::vector<Range> ranges_of(const std::vector<int>& chosen) {
    std::vector<Range> ranges;
    for (int i = 0; i < sizes_;) {
      int end = i;
      while (end < sizes_ && chosen[at(end)] == chosen[at(i)]) ++end;
      Curve& curve = curves_[at(chosen[at(i)])];
      ranges.push_back(
          {i == 0 ? 0 : grid_size(i), curve.algorithm, curve.lanes, false, reason(curve, (i + end - 1) / 2)});
      i = end;
    }
    return ranges;
  }

  // Why `curve`, at the size `i`.
  std::string reason(Curve& curve, int i) {
    const bool barrier = collective_ == Collective::kBarrier;
    std::string text = curve.predictor.cost(barrier ? 0 : grid_size(i)).to_string();
    if (!barrier) text = bytes_text(grid_size(i)) + " in " + text;
    const Curve* next = nullptr;
    for (const Curve& other : curves_) {
      if (other.algorithm == curve.algorithm || other.seconds[at(i)] == kNever) continue;
      if (next == nullptr || other.seconds[at(i)] < next->seconds[at(i)]) next = &other;
    }
    if (next == nullptr) return text + "; no other can be used";
    if (const int measured = measured_choice(i); measured >= 0 && &curve == &curves_[at(measured)]) {
      return text + (barrier ? "; ranks take turns on cores, and so one of them leaves first"
                     : collective_ == Collective::kBroadcast
                         ? "; to a neighbour on one lane, which was measured to be faster"
                         : "; of two neighbours each reads the other's input, which was measured to be faster");
    }
    const double seconds = next->seconds[at(i)], own = curve.seconds[at(i)];
    text += fmt::format("; next {} in {}", next->algorithm, seconds_text(seconds));
    if (own > 0 && std::isfinite(own)) text += fmt::format(" ({:+.0f} %)", 100 * (seconds / own - 1));
    return text;
  }

  // Replaces what `ranges` says about the sizes of `rule`.
  void overlay(std::vector<Range>& ranges, const std::vector<Range>& wanted, const Rule& rule, bool forced) {
    std::vector<Range> result;
    const auto add = [&](const std::vector<Range>& from, uint64_t first, uint64_t last, bool mark) {
      for (size_t r = 0; r < from.size(); ++r) {
        const uint64_t begin = std::max(from[r].from, first);
        const uint64_t end = std::min(r + 1 < from.size() ? from[r + 1].from : kNoLimit, last);
        if (begin >= end) continue;
        Range range = from[r];
        range.from = begin;
        if (mark && range.algorithm == rule.algorithm) {
          range.forced = true;
          if (rule.lanes != 0) range.lanes = rule.lanes;
        } else if (mark) {
          range.reason += fmt::format("; {} does not fit the slots of a link", rule.algorithm);
          log::info("{} {} as wanted by RINGFOLD_ALGORITHM does not fit the slots of a link from {} on; using {}",
                    rule.algorithm, name_of(collective_), bytes_text(begin), range.algorithm);
        }
        result.push_back(std::move(range));
      }
    };
    add(ranges, 0, rule.from, false);
    add(wanted, rule.from, rule.to, forced);
    add(ranges, rule.to, kNoLimit, false);
    ranges = std::move(result);
  }

  static void merge(std::vector<Range>& ranges) {
    const auto same = [](const Range& a, const Range& b) {
      return a.algorithm == b.algorithm && a.lanes == b.lanes && a.forced == b.forced;
    };
    ranges.erase(std::unique(ranges.begin(), ranges.end(), same), ranges.end());
  }

  void predict(Table& table) const {
    for (int i = 0; i < sizes_; ++i) {
      const auto next = std::upper_bound(table.ranges.begin(), table.ranges.end(), grid_size(i),
                                         [](uint64_t bytes, const Range& range) { return bytes < range.from; });
      const Range& range = *std::prev(next);
      const Curve* nearest = nullptr;  // that algorithm on the lanes that are no more than asked for
      for (const Curve& curve : curves_) {
        if (curve.algorithm == range.algorithm && (nearest == nullptr || curve.lanes <= range.lanes))
          nearest = &curve;
      }
      table.seconds.push_back(std::min(nearest->seconds[at(i)], kLongest));
    }
  }

  static size_t at(int index) { return static_cast<size_t>(index); }

  const Collective collective_;
  const ClusterModel& cluster_;
  const Candidates& candidates_;
  const TunerOptions& options_;
  const std::vector<Rule>& rules_;
  const int sizes_;            // of the grid, from the smallest on
  std::vector<Curve> curves_;  // by algorithm in the order of the candidates, then by lanes
};

}  // namespace

Result<Tuner> Tuner::build(const ClusterModel& cluster, const Candidates& candidates, const TunerOptions& options) {
  RINGFOLD_TRY(cluster.check());
  auto rules = parse_override(options.override_text, candidates.algorithms_for);
  if (!rules.ok()) return rules.status();
  Tuner tuner;
  for (int c = 0; c < kCollectives; ++c) {
    const auto collective = static_cast<Collective>(c);
    const auto& only = options.collectives;
    if (!only.empty() && std::find(only.begin(), only.end(), collective) == only.end()) continue;
    Table table;
    RINGFOLD_TRY(TableMaker(collective, cluster, candidates, options, *rules).make(table));
    if (!table.ranges.empty()) tuner.tables_.push_back(std::move(table));
  }
  return tuner;
}

const Table* Tuner::table(Collective collective) const {
  for (const Table& table : tables_) {
    if (table.collective == collective) return &table;
  }
  return nullptr;
}

Choice Tuner::choose(Collective collective, uint64_t bytes) const {
  const Table* table = this->table(collective);
  if (table == nullptr) {
    return {.reason = fmt::format("no algorithm for {} with so many ranks", name_of(collective))};
  }
  const auto next = std::upper_bound(table->ranges.begin(), table->ranges.end(), bytes,
                                     [](uint64_t b, const Range& range) { return b < range.from; });
  const Range& range = *std::prev(next);
  // Linear in bytes between the sizes of the grid, and beyond its end.
  const int sizes = static_cast<int>(table->seconds.size());
  int i = 0;
  while (i + 2 < sizes && grid_size(i + 1) <= bytes) ++i;
  const double below = table->seconds[static_cast<size_t>(i)], above = table->seconds[static_cast<size_t>(i) + 1];
  const double step = static_cast<double>(grid_size(i + 1) - grid_size(i));
  const double offset = static_cast<double>(bytes) - static_cast<double>(grid_size(i));
  return {range.algorithm, range.lanes, below + std::max(0.0, offset) / step * (above - below), range.reason};
}

}  // namespace ringfold::model
