#include "schedule/checker.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>

#include "schedule/hazards.h"
#include "schedule/print.h"
#include "schedule/value.h"

namespace ringfold::schedule {
namespace {

// The rank whose value `block` is; -1 where all ranks contribute.
int source_of(const Shape& shape, uint64_t block) {
  switch (shape.collective) {
    case Collective::kBroadcast:
    case Collective::kScatter: return shape.root;
    case Collective::kAllGather:
    case Collective::kGather: return static_cast<int>(block);
    case Collective::kAllToAll: return static_cast<int>(block / static_cast<uint64_t>(shape.ranks));
    case Collective::kAllReduce:
    case Collective::kReduce:
    case Collective::kReduceScatter:
    case Collective::kBarrier: return -1;
  }
  return -1;
}

// Executes the schedule on symbolic values. Messages are read from the sender's cells when they are received, as a
// send by reference would; hazard analysis proves that the moment does not matter. In a barrier, where there is none,
// a message says what its sender knew when it was sent.
class Execution {
 public:
  Execution(Walk& walk, const CheckOptions& options, int window, Hazards* hazards)
      : walk_(walk),
        shape_(walk.schedule().shape),
        seed_(options.seed),
        barrier_(shape_.collective == Collective::kBarrier),
        window_(window),
        hazards_(hazards),
        // calloc: a page that is never touched costs nothing, and all zero is the empty value
        cells_(static_cast<Value*>(std::calloc(walk.cells(), sizeof(Value))), std::free),
        time_(walk.actors(), 0) {
    for (int rank = 0; rank < shape_.ranks; ++rank) {
      for (uint64_t block = 0; block < blocks_of(shape_); ++block) {
        if (!starts_with(shape_, rank, block)) continue;
        for_chunks(block, [&](uint64_t chunk) { at(rank, chunk) = initial(rank, chunk); });
      }
    }
  }

  bool send(Walk::Site site, const Step& step, uint32_t link) {
    if (hazards_) hazards_->send(site, link);
    if (link >= sent_.size()) sent_.resize(std::max<size_t>(link + 1, walk_.links().size()));
    sent_[link] = time_[site.actor];
    for (uint32_t i = 0; i < step.count; ++i) {
      const uint64_t cell = walk_.cell(site.actor, step.chunk + i);
      if (hazards_ && !hazards_->sends(site, cell)) return conflict(site);
      if (cells_[cell].empty()) return fail(Property::kUnset, site, "sends a cell that holds nothing");
      if (barrier_) {
        known_.resize(walk_.links().size());
        if (i == 0) known_[link].clear();
        known_[link].push_back(cells_[cell]);
      } else {
        cells_[cell] = code(cells_[cell]);
      }
    }
    return true;
  }

  bool receive(Walk::Site site, const Step& step, uint32_t link) {
    const Walk::Link& from = walk_.links()[link];
    if (hazards_) hazards_->receive(site, link);
    time_[site.actor] = std::max(time_[site.actor], sent_[link] + 1);
    for (uint32_t i = 0; i < step.count; ++i) {
      const Value& value = barrier_ ? known_[link][i] : cells_[walk_.cell(from.from, from.cells.first + i)];
      if (!write(site, step, step.chunk + i, value, step.kind == StepKind::kRecvReduce)) return false;
    }
    return true;
  }

  bool local(Walk::Site site, const Step& step) {
    for (uint32_t i = 0; i < step.count; ++i) {
      const uint64_t source = walk_.cell(site.actor, step.source + i);
      if (hazards_ && !hazards_->reads(site, source)) return conflict(site);
      if (cells_[source].empty()) return fail(Property::kUnset, site, "reads a cell that holds nothing");
      if (!write(site, step, step.chunk + i, cells_[source], step.kind == StepKind::kReduce)) return false;
    }
    return true;
  }

  bool signal(Walk::Site site, uint32_t event) {
    if (hazards_) hazards_->signal(site, event);
    if (event >= signalled_.size()) signalled_.resize(walk_.events().size());
    signalled_[event] = time_[site.actor];
    return true;
  }
  bool wait(Walk::Site site, uint32_t event) {
    if (hazards_) hazards_->wait(site, event);
    time_[site.actor] = std::max(time_[site.actor], signalled_[event]);
    return true;
  }

  const Fault& fault() const { return fault_; }
  uint32_t rounds() const { return *std::max_element(time_.begin(), time_.end()); }

  // After the walk: are the results right? Fills the report's canonical and coding_depth.
  Fault judge(CheckReport& report) const {
    const uint64_t blocks = blocks_of(shape_);
    report.canonical = true;
    for (uint64_t block = 0; block < blocks; ++block) {
      Fault fault;
      for_chunks(block, [&](uint64_t chunk) {
        if (!fault) fault = judge_chunk(block, chunk, report);
      });
      if (fault) return fault;
    }
    return {};
  }

 private:
  template <typename Use>
  void for_chunks(uint64_t block, Use use) const {
    const uint64_t per_block = walk_.schedule().chunks_per_block;
    for (uint64_t c = block * per_block; c < (block + 1) * per_block; ++c) use(c);
  }
  Value& at(int rank, uint64_t chunk) const { return cells_[walk_.cell_base(rank) + chunk]; }
  Value initial(int rank, uint64_t chunk) const {
    return barrier_ ? arrival(rank, window_) : contribution(seed_, rank, chunk);
  }

  bool write(Walk::Site site, const Step& step, uint32_t chunk, const Value& value, bool reduce) {
    const uint64_t index = walk_.cell(site.actor, chunk);
    Value& cell = cells_[index];
    if (hazards_ && !hazards_->writes(site, index)) return conflict(site);
    if (!reduce) {
      cell = value;
      return true;
    }
    if (cell.empty()) return fail(Property::kUnset, site, "reduces into a cell that holds nothing");
    if (barrier_) {
      cell = unite(cell, value);
    } else {
      cell = step.flags & kPrepend ? fold(value, cell) : fold(cell, value);
    }
    const bool complete = reduces(shape_.collective) && cell.count == shape_.ranks;
    if (complete != ((step.flags & kComplete) != 0)) {
      const std::string holds = "holds " + std::to_string(cell.count) + " of " + std::to_string(shape_.ranks);
      return fail(Property::kComplete, site, (complete ? "lacks kComplete: " : "must not have kComplete: ") + holds);
    }
    return true;
  }

  Fault judge_chunk(uint64_t block, uint64_t chunk, CheckReport& report) const {
    const int source = source_of(shape_, block);
    Value expected;
    for (int rank = 0; rank < shape_.ranks; ++rank) {
      if (source >= 0 && rank != source) continue;
      const Value part = initial(rank, chunk);
      expected = barrier_ ? unite(expected, part) : expected.empty() ? part : fold(expected, part);
    }
    std::optional<Value> first;
    const auto wrong = [&](Property property, int rank, std::string what) {
      return Fault{property, rank, -1, -1, "chunk " + std::to_string(chunk) + " " + std::move(what)};
    };
    const auto judge_at = [&](int rank) -> Fault {
      const Value& value = at(rank, chunk);
      if (value.empty()) return wrong(Property::kValue, rank, "holds nothing at the end");
      if (value.sum != expected.sum) return wrong(Property::kValue, rank, "ends with a wrong value");
      if (barrier_) return {};
      if (first && first->expression != value.expression) {
        return wrong(Property::kReplica, rank, "ends with another expression than on other ranks");
      }
      first = value;
      report.canonical = report.canonical && (source >= 0 || value.canonical(shape_.ranks));
      report.coding_depth = std::max(report.coding_depth, static_cast<int>(value.depth));
      return {};
    };
    for (int rank = 0; rank < shape_.ranks; ++rank) {
      if (!ends_with(shape_, rank, block)) continue;
      if (Fault fault = judge_at(rank)) return fault;
    }
    return {};
  }

  bool fail(Property property, Walk::Site site, std::string what) {
    fault_ = walk_.fault(property, site, std::move(what));
    return false;
  }
  bool conflict(Walk::Site site) {
    return fail(Property::kHazard, site, "is in no order with " + walk_.text_at(hazards_->conflict()));
  }

  Walk& walk_;
  const Shape shape_;
  const uint64_t seed_;
  const bool barrier_;
  const int window_;  // barrier: ranks 64 * window_ .. are looked at
  Hazards* hazards_;
  std::unique_ptr<Value[], decltype(&std::free)> cells_;
  std::vector<uint32_t> time_;             // by actor: messages on the longest path to here
  std::vector<uint32_t> sent_;             // by link: the same for the message in its slot
  std::vector<uint32_t> signalled_;        // by event
  std::vector<std::vector<Value>> known_;  // by link, in a barrier
  Fault fault_;
};

Fault examine(const Schedule& schedule, const CheckOptions& options, CheckReport& report) {
  Walk walk(schedule);
  if (Fault fault = walk.load()) return fault;
  report.steps = walk.steps();
  report.messages = walk.messages();
  const bool barrier = schedule.shape.collective == Collective::kBarrier;
  uint32_t longest = 0;
  for (uint32_t a = 0; a < walk.actors(); ++a) longest = std::max(longest, walk.length(a));
  std::optional<Hazards> hazards;
  if (!barrier && schedule.shape.ranks <= options.most_ranks_for_hazards && longest <= Hazards::kLongestLane) {
    hazards.emplace(walk);
    report.hazards_tested = true;
  }
  const int windows = barrier ? (schedule.shape.ranks + 63) / 64 : 1;
  for (int window = 0; window < windows; ++window) {
    Execution execution(walk, options, window, hazards ? &*hazards : nullptr);
    if (Fault fault = walk.run(execution)) return fault;
    if (execution.fault()) return execution.fault();
    report.rounds = execution.rounds();
    if (Fault fault = execution.judge(report)) return fault;
  }
  const auto whole = [](Property property, std::string what) { return Fault{property, -1, -1, -1, std::move(what)}; };
  if (options.require_canonical && !report.canonical) {
    return whole(Property::kCanonical, "some result is not the rank-order fold");
  }
  if (report.coding_depth > options.most_depth) {
    return whole(Property::kDepth, "values are coded " + std::to_string(report.coding_depth) +
                                       " times, allowed are " + std::to_string(options.most_depth));
  }
  return {};
}

}  // namespace

Status check(const Schedule& schedule, const CheckOptions& options, CheckReport* report) {
  CheckReport own;
  CheckReport& result = report ? *report : own;
  result = {};
  result.fault = examine(schedule, options, result);
  const Fault& fault = result.fault;
  if (!fault) return {};
  std::string message = title_of(schedule) + ": " + std::string(name_of(fault.property)) + ":";
  if (fault.rank >= 0) message += " rank " + std::to_string(fault.rank);
  if (fault.lane >= 0) message += " lane " + std::to_string(fault.lane);
  if (fault.step >= 0) message += " step " + std::to_string(fault.step);
  return Status(Code::kInternal, message + (fault.rank >= 0 ? ": " : " ") + fault.what);
}

}  // namespace ringfold::schedule
