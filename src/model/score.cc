#include "model/score.h"

#include <algorithm>
#include <numeric>
#include <unordered_map>

namespace ringfold::model {
namespace {

using schedule::Lane;
using schedule::RankSteps;
using schedule::Schedule;
using schedule::Step;
using schedule::StepKind;

bool receives(const Step& s) { return s.kind == StepKind::kRecv || s.kind == StepKind::kRecvReduce; }
bool is_event(const Step& s) { return s.kind == StepKind::kSignal || s.kind == StepKind::kWait; }

class Scorer {
 public:
  explicit Scorer(Score& score) : score_(score) {}

  void add(int rank, const RankSteps& steps) {
    for (int lane = 0; lane < score_.lanes; ++lane) add_lane(rank, lane, steps.lanes[static_cast<size_t>(lane)]);
    score_.events += steps.events;
  }

 private:
  void add_lane(int rank, int lane, const Lane& steps) {
    auto& ops = score_.ops.emplace_back();
    uint32_t wait = Op::kNone;
    for (size_t i = 0; i < steps.size();) {
      const Step& step = steps[i];
      if (!is_event(step)) {
        ops.push_back(join(rank, lane, steps, i));
        std::swap(ops.back().wait, wait);
        continue;
      }
      ++i;
      const uint32_t event = score_.events + step.source;
      if (step.kind == StepKind::kWait) {
        if (wait != Op::kNone) ops.push_back({.wait = wait});
        wait = event;
      } else {
        if (ops.empty() || wait != Op::kNone || ops.back().signal != Op::kNone) {
          ops.push_back({.wait = wait});
          wait = Op::kNone;
        }
        ops.back().signal = event;
      }
    }
    if (wait != Op::kNone) ops.push_back({.wait = wait});
  }

  // The run of steps from `at` on that makes one operation: those that build one value, then the sends of it.
  Op join(int rank, int lane, const Lane& steps, size_t& at) {
    const Step& head = steps[at];
    Op op{.first_link = static_cast<uint32_t>(score_.ends.size()), .cells = head.count};
    uint32_t cell = head.chunk;
    if (head.kind != StepKind::kSend) {
      const bool starts = head.kind == StepKind::kRecv || head.kind == StepKind::kCopy;
      int operands = starts ? 0 : 1;  // the cell's own value
      do {
        const Step& step = steps[at];
        if (receives(step)) {
          score_.ends.push_back(link(step.peer, rank, lane));
          ++op.inputs;
        }
        ++operands;
        cell = step.chunk;
      } while (++at < steps.size() && continues(steps[at], head, cell));
      op.folds = static_cast<uint16_t>(operands - 1);
      op.copies = operands == 1;
    }
    while (at < steps.size() && steps[at].kind == StepKind::kSend && steps[at].chunk == cell &&
           steps[at].count == head.count) {
      score_.ends.push_back(link(rank, steps[at].peer, lane));
      score_.widest = std::max<uint32_t>(score_.widest, head.count);
      ++op.outputs;
      ++at;
    }
    return op;
  }

  // Does `step` fold one more operand into the value in `cell`, or the value in `cell` into another?
  static bool continues(const Step& step, const Step& head, uint32_t cell) {
    if (step.count != head.count) return false;
    if (step.kind == StepKind::kRecvReduce) return step.chunk == cell;
    return step.kind == StepKind::kReduce && (step.chunk == cell || step.source == cell);
  }

  uint32_t link(int from, int to, int lane) {
    const auto n = static_cast<uint64_t>(score_.ranks);
    const uint64_t key =
        (static_cast<uint64_t>(lane) * n + static_cast<uint64_t>(from)) * n + static_cast<uint64_t>(to);
    const auto [it, added] = numbers_.try_emplace(key, static_cast<uint32_t>(score_.links.size()));
    if (added) score_.links.push_back({from, to});
    return it->second;
  }

  Score& score_;
  std::unordered_map<uint64_t, uint32_t> numbers_;
};

uint64_t steps_of(const RankSteps& steps) {
  return std::accumulate(steps.lanes.begin(), steps.lanes.end(), uint64_t{0},
                         [](uint64_t sum, const Lane& lane) { return sum + lane.size(); });
}

}  // namespace

Score score_of(const Schedule& schedule, uint64_t most_steps) {
  const int n = schedule.shape.ranks;
  Score score{.ranks = n, .lanes = schedule.lanes, .chunks_per_block = schedule.chunks_per_block};
  std::vector<int> sample = {0, 1, n / 3, n / 2, n - 2, n - 1};
  std::erase_if(sample, [&](int rank) { return rank < 0 || rank >= n; });
  std::sort(sample.begin(), sample.end());
  sample.erase(std::unique(sample.begin(), sample.end()), sample.end());
  uint64_t steps = 0;
  for (const int rank : sample) steps += steps_of(schedule.rank(rank));
  if (steps * static_cast<uint64_t>(n) / sample.size() > most_steps) {
    score.played = std::move(sample);
  } else {
    score.played.resize(static_cast<size_t>(n));
    std::iota(score.played.begin(), score.played.end(), 0);
  }
  Scorer scorer(score);
  for (const int rank : score.played) scorer.add(rank, schedule.rank(rank));
  return score;
}

}  // namespace ringfold::model
