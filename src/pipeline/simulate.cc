#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "pipeline/play.h"
#include "ringfold/pipeline.h"

namespace ringfold::pipeline {

Play::Play(const Schedule& schedule, const Times& times, int steps)
    : schedule_(schedule), steps_(steps), transfer_(times.transfer) {
  // The times are those of a rank; its stages share them.
  const double stages = std::max(1.0, static_cast<double>(schedule.stages()) / schedule.ranks());
  length_[static_cast<size_t>(ActionKind::kForward)] = times.forward / stages;
  length_[static_cast<size_t>(ActionKind::kBackwardInput)] = times.backward_input / stages;
  length_[static_cast<size_t>(ActionKind::kBackwardWeight)] = times.backward_weight / stages;
  length_[static_cast<size_t>(ActionKind::kBackward)] = (times.backward_input + times.backward_weight) / stages;
  const auto ranks = static_cast<size_t>(schedule.ranks());
  free_.assign(ranks, 0);
  next_.assign(ranks, 0);
  spans_.resize(ranks);
  const size_t passes = static_cast<size_t>(schedule.stages()) * static_cast<size_t>(schedule.micro_batches) *
                        static_cast<size_t>(steps);
  forward_.resize(passes);
  gradient_.resize(passes);
}

std::optional<double>& Play::end_of(const Action& action, int step) {
  const auto m = static_cast<size_t>(schedule_.micro_batches);
  const size_t at =
      (static_cast<size_t>(action.stage) * static_cast<size_t>(steps_) + static_cast<size_t>(step)) * m +
      static_cast<size_t>(action.micro_batch);
  return action.kind == ActionKind::kForward ? forward_[at] : gradient_[at];
}

bool Play::advance(int rank) {
  const auto r = static_cast<size_t>(rank);
  const auto& list = schedule_.actions[r];
  if (next_[r] == list.size() * static_cast<size_t>(steps_)) return false;
  const Action& action = list[next_[r] % list.size()];
  const int step = static_cast<int>(next_[r] / list.size());
  double begin = free_[r];
  if (const auto needed = needs(schedule_, action)) {
    const auto& end = end_of(*needed, step);
    if (!end) return false;
    begin = std::max(begin, *end + (schedule_.rank_of[static_cast<size_t>(needed->stage)] == rank ? 0 : transfer_));
  }
  const double end = begin + length_[static_cast<size_t>(action.kind)];
  free_[r] = end;
  if (action.kind != ActionKind::kBackwardWeight) end_of(action, step) = end;
  spans_[r].push_back({rank, action, begin, end});
  ++next_[r];
  return true;
}

void Play::run() {
  for (bool moved = true; moved;) {
    moved = false;
    for (int r = 0; r < schedule_.ranks(); ++r) {
      while (advance(r)) moved = true;
    }
  }
}

bool Play::complete() const {
  for (int r = 0; r < schedule_.ranks(); ++r) {
    if (done(r) < schedule_.actions[static_cast<size_t>(r)].size() * static_cast<size_t>(steps_)) return false;
  }
  return true;
}

Result<Timing> simulate(const Schedule& schedule, const Times& times, int steps) {
  RINGFOLD_TRY(check(schedule));
  for (const double time : {times.forward, times.backward_input, times.backward_weight, times.transfer}) {
    if (!std::isfinite(time) || time < 0)
      return Status(Code::kInvalid, fmt::format("times of a pipeline schedule must be 0 or more, not {}", time));
  }
  if (steps < 1) return Status(Code::kInvalid, fmt::format("{} steps of a pipeline schedule", steps));
  Play play(schedule, times, steps);
  play.run();
  std::vector<Span> spans;
  for (const auto& of_rank : play.spans()) spans.insert(spans.end(), of_rank.begin(), of_rank.end());
  return timing_of(schedule, std::move(spans), steps);
}

Timing timing_of(const Schedule& schedule, std::vector<Span> spans, int steps) {
  const auto ranks = static_cast<size_t>(schedule.ranks());
  Timing timing;
  timing.busy.assign(ranks, 0);
  std::vector<size_t> seen(ranks, 0);
  std::vector<double> first_begin(ranks, 0), first_end(ranks, 0), last_end(ranks, 0);
  double begin = std::numeric_limits<double>::infinity(), end = -begin;
  for (const Span& span : spans) {
    const auto r = static_cast<size_t>(span.rank);
    timing.busy[r] += (span.end - span.begin) / steps;
    if (seen[r]++ == 0) first_begin[r] = span.begin;
    if (seen[r] == schedule.actions[r].size()) first_end[r] = span.end;
    last_end[r] = span.end;
    begin = std::min(begin, span.begin);
    end = std::max(end, span.end);
  }
  if (spans.empty()) return timing;
  timing.makespan = end - begin;
  double busy = 0;
  for (size_t r = 0; r < ranks; ++r) {
    const double step = steps == 1 ? last_end[r] - first_begin[r] : (last_end[r] - first_end[r]) / (steps - 1);
    timing.step = std::max(timing.step, step);
    busy += timing.busy[r] / static_cast<double>(ranks);
  }
  timing.bubble = timing.step - busy;
  timing.idle = timing.step > 0 ? timing.bubble / timing.step : 0;
  timing.spans = std::move(spans);
  std::stable_sort(timing.spans.begin(), timing.spans.end(),
                   [](const Span& a, const Span& b) { return a.begin < b.begin; });
  return timing;
}

}  // namespace ringfold::pipeline
