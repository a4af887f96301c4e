#include "pipeline/execution.h"

#include <fmt/format.h>

namespace ringfold::pipeline {

namespace {

// The message that an action needs of another stage.
Name name_of_input(const Action& needed) {
  return {needed.kind != ActionKind::kForward, needed.stage, needed.micro_batch};
}

}  // namespace

Execution::Execution(const Schedule& schedule, Stages& stages, std::shared_ptr<Port> port, const Options& options)
    : schedule_(schedule),
      stages_(stages),
      options_(options),
      list_(schedule.actions[static_cast<size_t>(options.rank)]),
      exchange_(std::move(port)),
      next_(list_.size()) {
  for (size_t i = 0; i < list_.size(); ++i) {
    const auto needed = needs(schedule, list_[i]);
    if (!needed || rank_of(needed->stage) == options.rank) continue;
    needs_.push_back({i, name_of_input(*needed), rank_of(needed->stage)});
  }
  posted_ = taken_ = needs_.size();
}

Envelope Execution::envelope_of(const Name& name, int peer) const {
  // A gradient has the form of the activation that it belongs to: that of the stage before the one it comes from.
  const int stage = name.gradient ? name.stage - 1 : name.stage;
  return {name,
          peer,
          stages_.boundary(stage, name.micro_batch),
          name.gradient ? options_.runner.gradients : options_.runner.activations,
          {}};
}

void Execution::begin(base::Deadline deadline) {
  next_ = posted_ = taken_ = 0;
  deadline_ = deadline;
  // Of twice as many steps as are asked for, so that what is forgotten is seldom moved.
  const size_t kept = static_cast<size_t>(options_.runner.keep_steps) * list_.size();
  if (kept > 0 && spans_.size() >= 2 * kept) spans_.erase(spans_.begin(), spans_.end() - static_cast<int64_t>(kept));
}

Status Execution::post_ahead() {
  while (posted_ < needs_.size() && posted_ < taken_ + static_cast<size_t>(options_.runner.ahead)) {
    const Need& need = needs_[posted_++];
    Envelope envelope = envelope_of(need.name, need.peer);
    envelope.deadline = deadline_;
    RINGFOLD_TRY(exchange_.post(envelope));
  }
  return {};
}

Result<Execution::Progress> Execution::advance() {
  if (failed_) return Status(Code::kAborted, "an action has failed");
  RINGFOLD_TRY(post_ahead());
  RINGFOLD_TRY(exchange_.status());
  if (next_ == list_.size()) return Progress::kDone;
  missing_.reset();
  if (taken_ < needs_.size() && needs_[taken_].index == next_) {
    const Name& name = needs_[taken_].name;
    if (!exchange_.arrived(name)) {
      missing_ = name;
      return Progress::kBlocked;
    }
  }
  RINGFOLD_TRY(run(list_[next_]));
  ++next_;
  return Progress::kMoved;
}

Result<Memory> Execution::take(const Name& name, int from) {
  if (from != options_.rank) {
    ++taken_;
    return exchange_.take(name);
  }
  const auto it = local_.find(name);
  if (it == local_.end())  // check() would have said so
    return Status(Code::kInternal,
                  fmt::format("{} comes later in the list of rank {} that needs it", name.to_string(), from));
  Memory memory = std::move(it->second);
  local_.erase(it);
  return memory;
}

void Execution::hand_on(const Name& name, int to, Memory memory) {
  if (to == options_.rank) {
    local_.emplace(name, std::move(memory));
    return;
  }
  Envelope envelope = envelope_of(name, to);
  envelope.deadline = deadline_;
  exchange_.send(envelope, std::move(memory));
}

Status Execution::run(const Action& action) {
  const auto [kind, stage, micro_batch] = action;
  const bool first = stage == 0, last = stage == schedule_.stages() - 1;
  const size_t input_bytes = first ? 0 : stages_.boundary(stage - 1, micro_batch).bytes();
  const size_t output_bytes = last ? 0 : stages_.boundary(stage, micro_batch).bytes();
  if (kind == ActionKind::kForward) peak_ = std::max(peak_, ++activations_);
  Held& held = held_[key(stage, micro_batch)];
  if (const auto needed = needs(schedule_, action)) {
    auto memory = take(name_of_input(*needed), rank_of(needed->stage));
    if (!memory.ok()) return memory.status();
    (kind == ActionKind::kForward ? held.input : held.output_gradient) = *std::move(memory);
  }
  Memory made;
  const bool makes = kind == ActionKind::kForward ? !last : is_backward(kind) && !first;
  const size_t made_bytes = kind == ActionKind::kForward ? output_bytes : input_bytes;
  if (makes) {
    auto memory = exchange_.memory(made_bytes);
    if (!memory.ok()) return memory.status();
    made = *std::move(memory);
  }
  Pass pass{action, {held.input.get(), input_bytes}, {}, {}, {}};
  if (kind != ActionKind::kForward) pass.output_gradient = {held.output_gradient.get(), output_bytes};
  if (makes) (kind == ActionKind::kForward ? pass.output : pass.input_gradient) = std::span(made.get(), made_bytes);
  RINGFOLD_TRY(call(pass));
  if (makes) {
    const int to = kind == ActionKind::kForward ? stage + 1 : stage - 1;
    hand_on({kind != ActionKind::kForward, stage, micro_batch}, rank_of(to), std::move(made));
  }
  if (kind == ActionKind::kBackward || kind == ActionKind::kBackwardWeight) {
    held_.erase(key(stage, micro_batch));
    --activations_;
  }
  return {};
}

Status Execution::call(const Pass& pass) {
  const auto begin = options_.now();
  Status status;
  switch (pass.action.kind) {
    case ActionKind::kForward: status = stages_.forward(pass); break;
    case ActionKind::kBackwardInput: status = stages_.backward_input(pass); break;
    case ActionKind::kBackwardWeight: status = stages_.backward_weight(pass); break;
    case ActionKind::kBackward: status = stages_.backward(pass); break;
  }
  if (!status.ok()) failed_ = pass.action;
  if (options_.runner.record) {
    spans_.push_back({options_.rank, pass.action, base::seconds_of(begin.time_since_epoch()),
                      base::seconds_of(options_.now().time_since_epoch())});
  }
  return status;
}

std::string Execution::position() const {
  const size_t next = next_;
  std::string text = fmt::format("rank {}: {} of {} actions done", options_.rank, next, list_.size());
  if (next == list_.size()) return text;
  text += fmt::format(", next is {}", to_string(list_[next]));
  const auto needed = needs(schedule_, list_[next]);
  if (!needed || rank_of(needed->stage) == options_.rank) return text;
  return text +
         fmt::format(", which needs {} on rank {}", name_of_input(*needed).to_string(), rank_of(needed->stage));
}

}  // namespace ringfold::pipeline
