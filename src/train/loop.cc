#include "train/loop.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>

#include "sync/replica.h"
#include "train/learning_rate.h"
#include "train/passes.h"

namespace ringfold::train {

double Loop::now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Loop::Loop(const Axes& axes, MakePasses make_passes, const Args& args, const Dataset& data, Reporter& reporter,
           bool writes)
    : axes_(axes),
      comm_(axes.data()),
      make_passes_(std::move(make_passes)),
      args_(args),
      data_(data),
      reporter_(reporter),
      writes_(writes) {}

Loop::~Loop() {
  save_points_.reset();  // before what it saves
  passes_.reset();
}

Status Loop::prepare() {
  auto passes = make_passes_(args_);
  if (!passes.ok()) return passes.status();
  passes_ = *std::move(passes);
  if (args_.elastic && axes_.pipeline()) {  // measured once: what ranks hold goes by it
    StartEvent made;
    passes_->describe(made);
    args_.pipeline_balance = fmt::format("{}", fmt::join(made.layers_of_stages, ","));
  }
  if (axes_.job.epoch() > 0) return join();
  auto strategy = new_strategy(comm_);
  if (!strategy.ok()) return strategy.status();
  strategy_ = std::move(*strategy);
  passes_->write_to(*strategy_);
  passes_->bind(*strategy_);
  RINGFOLD_TRY(make_room());
  RINGFOLD_TRY(passes_->share_in_group());
  save_points_ = make_save_points(0);
  if (args_.elastic) {
    auto ranks = share_place();
    if (!ranks.ok()) return ranks.status();
    ranks_ = std::move(*ranks);
  }
  if (args_.resume) {
    auto resumed = save_points_->resume(*strategy_);
    if (!resumed.ok()) return resumed.status();
    if (resumed->has_value()) {
      begun_at_ = (*resumed)->position;
      learned_.loss = (*resumed)->epoch_loss;
      if (comm_.rank() == 0 && passes_->knows_losses())
        learned_.samples = static_cast<double>(std::min(begun_at_.in_epoch * args_.batch, data_.train.size()));
    }
  }
  if (begun_at_.step > 0) return {};
  return strategy_->start();  // the seed makes the replicas equal; this makes them so on unlike hosts too
}

std::unique_ptr<SavePoints> Loop::make_save_points(size_t saved_at) {
  return std::make_unique<SavePoints>(axes_.job, args_, data_, passes_->holding(), passes_->parameters_of_model(),
                                      saved_at);
}

// For this rank's part of a batch, which is larger where there are fewer ranks.
Status Loop::make_room() {
  auto shard = sync::DataShard::make({.samples = data_.train.size(),
                                      .batch = args_.batch,
                                      .seed = args_.seed,
                                      .rank = comm_.rank(),
                                      .size = comm_.size()});
  if (!shard.ok()) return shard.status();
  shard_.emplace(std::move(*shard));
  const size_t whole = std::min(args_.batch, data_.train.size());
  if (agent_) {  // shares may become anything
    if (strategy_->in_step())
      shard_->set_shares(agent_->settings().shares);  // asgd: part k is the same for all who make it
    passes_->make_room(whole);
  } else {
    passes_->make_room(whole / static_cast<size_t>(comm_.size()) + 1);
  }
  return {};
}

double Loop::measure(size_t samples) {
  const double begin_s = now_s();
  (void)passes_->rehearse(samples);  // fails on pipelines only
  slow_down(begin_s);
  return now_s() - begin_s;
}

Result<double> Loop::measure_steps(size_t steps) {
  shard_->begin_epoch(1);
  const size_t all = std::min(steps + 1, shard_->steps());
  RINGFOLD_TRY(strategy_->begin_epoch(all));
  double begin_s = now_s();
  size_t warm = 0;
  for (size_t made = 0;; ++made) {
    auto task = strategy_->next();
    if (!task.ok()) return task.status();
    if (!task->has_value()) break;
    sync::StepInfo info;
    RINGFOLD_TRY(compute(**task, info));
    RINGFOLD_TRY(strategy_->step(info));
    if (made > 0 || all == 1) continue;
    begin_s = now_s();
    warm = strategy_->steps_done();  // more than one, where others have gone ahead
  }
  if (!strategy_->in_step()) RINGFOLD_TRY(strategy_->merge(true));  // others may still be served by this rank
  return (now_s() - begin_s) / static_cast<double>(std::max(all, warm + 1) - warm);
}

Status Loop::watched_by(Agent agent) {
  agent_ = std::move(agent);
  return make_room();
}

// ---- epochs and steps ----

Progress Loop::progress() const {
  return {.position = {.step = steps_done(), .epoch = epoch_, .in_epoch = strategy_->steps_done()},
          .epoch_loss = learned_.loss};
}

// Computing that began at `begin_s` takes as long as --slow-rank says.
void Loop::slow_down(double begin_s) const {
  if (axes_.job.job_rank() == args_.slow_rank)
    std::this_thread::sleep_for(std::chrono::duration<double>((args_.slow_factor - 1) * (now_s() - begin_s)));
}

// Forward and backward of the task's samples.
Status Loop::compute(const sync::Task& task, sync::StepInfo& info) {
  const auto samples = shard_->batch(task.step, task.part, task.parts);
  info.samples = samples.size();
  record(steps_before() + task.step + 1, samples);
  info.lr = learning_rate(args_, steps_before() + task.step, steps_of_run());
  if (samples.empty()) return {};  // nothing to add: this rank's gradients are zero
  const double begin_s = now_s();
  const size_t whole = strategy_->scale() == sync::Scale::kOwnMean ? samples.size() : shard_->global_size(task.step);
  auto loss = passes_->learn(samples, static_cast<double>(whole * data_.train.targets()));
  if (!loss.ok()) return loss.status();
  info.loss = *loss;
  if (!std::isfinite(info.loss)) {
    return Status(Code::kInvalid,
                  fmt::format("the loss of step {} is {}: training has diverged, or the data hold what "
                              "is no number. Take a smaller --lr than {}{}",
                              steps_done() + 1, info.loss, args_.peak_lr(),
                              args_.sync == "asgd" ? ", or a smaller --momentum" : ""));
  }
  slow_down(begin_s);
  return {};
}

// The step of the epoch after `step` that a test comes after: at latest its end.
size_t Loop::next_test(size_t step) const {
  if (args_.test_every == 0) return shard_->steps();
  const size_t every = (args_.test_every + args_.batch - 1) / args_.batch;
  return std::min(shard_->steps(), (step / every + 1) * every);
}

// Ranks that are not in step can look at the clock together between rounds only.
size_t Loop::end_of_round(size_t step) const {
  const size_t test = next_test(step);
  return args_.within_s > 0 && !strategy_->in_step() ? std::min(test, step + args_.log_every) : test;
}

bool Loop::reached(const Summary& summary) const {
  return args_.target_accuracy > 0 && summary.test_accuracy >= args_.target_accuracy;
}

Status Loop::train_steps() {
  size_t log_at = (std::max(steps_before(), told_) / args_.log_every + 1) * args_.log_every;
  for (;;) {
    const double begin_s = now_s();
    auto task = strategy_->next();
    if (!task.ok()) return task.status();
    if (!task->has_value()) return {};
    sync::StepInfo info;
    RINGFOLD_TRY(compute(**task, info));
    RINGFOLD_TRY(strategy_->step(info));
    if (passes_->knows_losses()) {
      learned_.loss += info.loss;
      learned_.samples += static_cast<double>(info.samples);
    }
    learned_before_.push_back(learned_);
    while (learned_before_.size() > strategy_->undone() + 1) learned_before_.pop_front();
    spent_.samples += static_cast<double>(info.samples);
    spent_.loss += info.loss;
    ++spent_.steps;
    spent_.seconds += now_s() - begin_s;
    spent_.exposed_s = exposed_s();
    const size_t done = steps_done();
    if (done >= log_at) {
      log_at = (done / args_.log_every + 1) * args_.log_every;
      // Ranks that are not in step cannot meet here: rank 0 says what it knows.
      if (strategy_->in_step() || comm_.rank() == 0) RINGFOLD_TRY(log_step());
    }
    if (args_.check_every > 0 && done % static_cast<size_t>(args_.check_every) == 0) RINGFOLD_TRY(check_replicas());
    const size_t made = done - begun_at_.step;
    reporter_.progress(epoch_, done, spent_.seconds / static_cast<double>(std::max<size_t>(made, 1)));
    const bool last = strategy_->steps_done() >= shard_->steps();
    auto stop = save_points_->after_step(*strategy_, progress(), last);
    if (!stop.ok()) return stop.status();
    stop_ = *stop;
    if ((stop_ && !last) || late_) return {};
    if (!last) ask_for_those_who_wait();
  }
}

// To the end of the run, with what a replica's ranks do together there. A call within a layer fails by an exception.
Status Loop::train_until_a_loss(Summary& summary, std::optional<pipeline::Timing>& timeline) {
  try {
    RINGFOLD_TRY(train_on(summary));
    summary.ranks = axes_.job.size();
    summary.samples_per_s = static_cast<double>(std::min(trained_ * args_.batch, data_.train.size() * trained_)) /
                            std::max(spent_.seconds, 1e-9);
    summary.seconds = now_s() - run_began_s_;
    auto made = passes_->timeline();
    if (!made.ok()) return made.status();
    timeline = std::move(*made);
    return args_.save.empty() ? Status() : save(summary);
  } catch (const CommunicationError& e) {
    return e.status();
  }
}

// What is left of the run, from begun_at_.
Status Loop::train_on(Summary& summary) {
  for (epoch_ = begun_at_.epoch; epoch_ <= args_.epochs; ++epoch_) {
    const double epoch_begin_s = now_s();
    shard_->begin_epoch(static_cast<uint64_t>(epoch_));
    const size_t from = epoch_ == begun_at_.epoch ? begun_at_.in_epoch : 0;
    begun_ = true;
    if (from == 0) learned_ = {};
    learned_before_.assign(1, learned_);
    bool ends_within = false;
    for (size_t at = from; !ends_within; at = until_) {
      until_ = end_of_round(at);
      RINGFOLD_TRY(strategy_->begin_epoch(until_, at));
      Status status = train_steps();
      trained_ += strategy_->steps_done() - at;
      RINGFOLD_TRY(status);
      if (until_ == shard_->steps() || late_) break;
      if (!stop_) RINGFOLD_TRY(end_round(summary));
      ends_within = stop_ || late_ || reached(summary);
    }
    if (ends_within || (stop_ && strategy_->steps_done() < shard_->steps())) break;
    RINGFOLD_TRY(end_epoch(summary, epoch_begin_s));
    if ((stop_ && epoch_ < args_.epochs) || late_ || reached(summary)) break;
  }
  epoch_ = std::min(epoch_, args_.epochs);
  summary.steps = steps_done();
  summary.replicas_equal = true;  // any other outcome ended the run
  summary.replica_hash = hash_;
  summary.stopped = stop_ && summary.epochs < args_.epochs;
  RINGFOLD_TRY(save_points_->finish());
  return share_figures(summary);
}

Status Loop::end_epoch(Summary& summary, double begin_s) {
  const double merge_begin_s = now_s();
  RINGFOLD_TRY(strategy_->merge(epoch_ == args_.epochs));
  const bool whole = strategy_->steps_done() >= shard_->steps();  // not where time is over
  spent_.seconds += now_s() - merge_begin_s;
  RINGFOLD_TRY(meet());
  double sums[2] = {learned_.loss, learned_.samples};
  RINGFOLD_TRY(comm_.all_reduce(sums, sums, 2, DataType::kF64).wait());
  RINGFOLD_TRY(sum_over_stages(sums, 2));
  RINGFOLD_TRY(check_replicas());
  EpochEvent event{.epoch = epoch_,
                   .train_loss = sums[0] / std::max(sums[1] * static_cast<double>(data_.train.targets()), 1.0),
                   .replicas_equal = true};
  event.tested = epoch_ % args_.eval_every == 0 || epoch_ == args_.epochs || late_;
  if (event.tested) RINGFOLD_TRY(test(&event.test_accuracy, &event.test_loss));
  event.seconds = now_s() - begin_s;
  event.elapsed_s = now_s() - run_began_s_;
  event.trained_s = spent_.seconds;
  if (summary.epochs < epoch_) reporter_.epoch(event);  // otherwise a rank was lost after it was told
  summary.epochs = whole ? epoch_ : epoch_ - 1;
  summary.train_loss = event.train_loss;
  if (event.tested) {
    summary.test_loss = event.test_loss;
    summary.test_accuracy = event.test_accuracy;
  }
  if (epoch_ == args_.epochs) return {};
  const Progress next{.position = {.step = steps_done(), .epoch = epoch_ + 1, .in_epoch = 0}, .epoch_loss = 0};
  auto stop = save_points_->after_epoch(*strategy_, next, stop_);
  if (!stop.ok()) return stop.status();
  stop_ = *stop;
  return {};
}

// Between two rounds of an epoch: a test where one is due.
Status Loop::end_round(Summary& summary) {
  const double merge_begin_s = now_s();
  RINGFOLD_TRY(strategy_->merge(false));
  spent_.seconds += now_s() - merge_begin_s;
  RINGFOLD_TRY(meet());
  if (!late_ && until_ != next_test(until_ - 1)) return {};
  RINGFOLD_TRY(check_replicas());
  RINGFOLD_TRY(test(&summary.test_accuracy, &summary.test_loss));
  reporter_.test({.epochs = static_cast<double>(steps_done()) / static_cast<double>(shard_->steps()),
                  .step = steps_done(),
                  .test_loss = summary.test_loss,
                  .test_accuracy = summary.test_accuracy,
                  .elapsed_s = now_s() - run_began_s_,
                  .trained_s = spent_.seconds});
  return {};
}

Status Loop::test(double* accuracy, double* loss) {
  const auto score = passes_->test(sync::part_of(data_.test.size(), comm_.rank(), comm_.size()));
  if (!score.ok()) return score.status();
  double sums[2] = {score->right, score->loss};
  RINGFOLD_TRY(comm_.all_reduce(sums, sums, 2, DataType::kF64).wait());
  RINGFOLD_TRY(sum_over_stages(sums, 2));
  const auto targets = static_cast<double>(data_.test.size() * data_.test.targets());
  *accuracy = sums[0] / targets;
  *loss = sums[1] / targets;
  return {};
}

Status Loop::check_replicas() {
  hash_ = passes_->hash();
  RINGFOLD_TRY(check_equal(comm_, hash_));
  return axes_.tensor() ? check_equal(*axes_.tensor(), passes_->shared_hash()) : Status();
}

// What one rank of a pipeline knows, for all of them.
Status Loop::sum_over_stages(double* sums, size_t count) {
  return axes_.pipeline() ? axes_.pipeline()->all_reduce(sums, sums, count, DataType::kF64).wait() : Status();
}

Status Loop::check_equal(Communicator& comm, uint64_t hash) const {
  auto different = sync::differing_ranks(comm, hash);
  if (!different.ok()) return different.status();
  if (different->empty()) return {};
  std::string ranks;
  for (int r : *different) ranks += (ranks.empty() ? "rank " : ", rank ") + std::to_string(r);
  return Status(Code::kInternal,
                "the replicas are not equal: " + ranks +
                    " differs from the others (on unlike processors, let all ranks use the same arithmetic: "
                    "ATEN_CPU_CAPABILITY=avx2)");
}

Result<Summary> Loop::run() {
  start_ = {.ranks = axes_.job.size(),
            .tensor_parallel = args_.tensor_parallel,
            .pipeline = args_.pipeline,
            .parameters = passes_->parameters_of_model(),
            .parameters_of_rank = strategy_->elems(),
            .buckets = strategy_->buckets(),
            .bytes_per_step = strategy_->bytes_per_step(),
            .train_samples = data_.train.size(),
            .test_samples = data_.test.size(),
            .steps = steps_of_run(),
            .resumed_at = begun_at_.step};
  passes_->describe(start_);
  Communicator& neighbours = axes_.tensor()                          ? *axes_.tensor()
                             : axes_.pipeline() && comm_.size() == 1 ? *axes_.pipeline()
                                                                     : comm_;
  start_.transport = neighbours.transport_to((neighbours.rank() + 1) % neighbours.size());
  if (writes_)
    RINGFOLD_TRY(reporter_.take_over(args_, start_));  // the job's first rank may be none of an agent's crew
  reporter_.start(start_);
  RINGFOLD_TRY(open_record());

  run_began_s_ = now_s();
  Summary summary;
  std::optional<pipeline::Timing> timeline;
  for (Status status = train_until_a_loss(summary, timeline); !status.ok();) {
    if (!goes_on_after(status)) return status;
    status = go_on(status);  // during which others may be lost
    if (!member_) return Summary{.left_out = true};
    if (status.ok()) status = train_until_a_loss(summary, timeline);
  }
  if (timeline) reporter_.timeline(*timeline);
  if (writes_) RINGFOLD_TRY(record_order(args_, *strategy_));
  reporter_.end(summary);
  return summary;
}

void Loop::copy_parameters(std::vector<float>& out) const { passes_->copy_parameters(out); }

}  // namespace ringfold::train
