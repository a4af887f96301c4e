// The loop, the same for all ways to keep ranks together (sync/strategy.h). The strategy owns parameters and
// gradients; the model's tensors are views of its memory. A step is
//
//   next() says which samples -> forward, backward into the gradients -> step() makes the parameters of the next step
//
// The loss that a rank differentiates is the sum over its samples divided by the size of the *global* batch (or of
// its own part, where ranks step alone), so the sum over ranks is the gradient of the global mean, whatever the sizes
// of the parts. Where replicas must be bitwise equal that is checked, not assumed.
#include "train/trainer.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/types.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numbers>
#include <numeric>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "sync/mesh.h"
#include "sync/replica.h"
#include "sync/shard.h"
#include "train/checkpoint.h"
#include "train/model.h"
#include "train/strategies.h"
#include "train/survey.h"

namespace ringfold::train {
namespace {

constexpr size_t kTestBatch = 500, kTestBatchOfText = 32;
constexpr double kWarmUp = 0.15;  // share of the steps in which a cosine schedule climbs to the peak

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

class ReadyHook : public torch::autograd::FunctionPostHook {
 public:
  explicit ReadyHook(std::function<void()> ready) : ready_(std::move(ready)) {}
  torch::autograd::variable_list operator()(const torch::autograd::variable_list& outputs,
                                            const torch::autograd::variable_list&) override {
    ready_();
    return outputs;
  }

 private:
  std::function<void()> ready_;
};

double schedule(const Args& args, size_t step, size_t steps) {
  if (args.schedule == "constant") return args.peak_lr();
  const double at = static_cast<double>(step) / static_cast<double>(steps);
  if (at < kWarmUp) return args.peak_lr() * (0.1 + 0.9 * at / kWarmUp);
  return args.peak_lr() * 0.5 * (1 + std::cos(std::numbers::pi * (at - kWarmUp) / (1 - kWarmUp)));
}

class Trainer {
 public:
  // `comm`: the ranks that hold the same part of the model as this one, all of it where `tensor` is null.
  Trainer(Communicator& comm, TensorGroup* tensor, const Args& args, const Dataset& data, Reporter& reporter,
          sync::DataShard shard, bool writes)
      : comm_(comm),
        tensor_(tensor),
        args_(args),
        data_(data),
        reporter_(reporter),
        shard_(std::move(shard)),
        writes_(writes),
        model_(make_model(args.spec(), args.seed, tensor)),
        parameters_(model_->parameters()) {}
  ~Trainer() {
    (void)asking_.wait();
    for (auto& p : parameters_) p.mutable_grad().reset();  // the gradients are the strategy's memory
  }

  Status prepare();
  // Seconds of forward and backward of so many samples; instead of training.
  double measure(size_t samples);
  size_t elems() const { return strategy_->elems(); }
  // Before run(): `agent` watches it and may change how it goes on.
  void watched_by(Agent* agent);
  Result<Summary> run();
  // Collective, as the parts of layers are put together.
  void copy_parameters(std::vector<float>& out) const;

 private:
  void bind();
  Status make_room();
  Status train_on(Summary& summary);
  Status end_epoch(Summary& summary, double begin_s);
  Status go_on_without(const Status& lost);
  Status train_epoch();
  void slow_down(double begin_s) const;
  Status compute(const sync::Task& task, sync::StepInfo& info);
  Status log_step();
  Status test(EpochEvent& event);
  Status check_replicas();
  Status check_equal(Communicator& comm, uint64_t hash) const;
  double exposed_s() const { return stats().exposed_s + (tensor_ ? tensor_->waited_s() : 0); }
  sync::StrategyStats stats() const;
  Status share_times(size_t done);
  Status change_to(const Settings& settings);
  size_t test_batch() const { return data_.test.is_text() ? kTestBatchOfText : kTestBatch; }
  Status share_figures(Summary& summary);
  Status save(const Summary& summary) const;
  Status resume();
  Status save_checkpoint(bool epoch_over);
  Status after_step();
  Result<bool> all_stop();
  Identity identity() const;
  size_t steps_of_run() const { return shard_.steps() * static_cast<size_t>(args_.epochs); }
  size_t steps_before() const { return shard_.steps() * static_cast<size_t>(epoch_ - 1); }

  Communicator& comm_;
  TensorGroup* tensor_;
  Args args_;  // the agent changes them
  const Dataset& data_;
  Reporter& reporter_;
  sync::DataShard shard_;
  bool writes_;  // files, for the whole job
  std::shared_ptr<Model> model_;
  std::vector<torch::Tensor> parameters_;
  std::vector<ParameterShape> shapes_;
  std::unique_ptr<sync::Strategy> strategy_;
  sync::StrategyStats before_;  // of the strategies before it
  Agent* agent_ = nullptr;
  bool measuring_ = false;
  std::vector<std::shared_ptr<torch::autograd::Node>>
      accumulators_;  // own the hooks: a dropped accumulator is a lost hook
  Batch batch_;
  uint64_t hash_ = 0;
  int epoch_ = 1;
  double epoch_loss_ = 0;  // sum over this rank's samples
  double epoch_samples_ = 0;
  StartEvent start_;
  double run_began_s_ = 0;
  size_t trained_ = 0;  // steps, of all ranks together
  Position begun_at_;   // where this run goes on
  std::unique_ptr<Checkpointer> checkpointer_;
  size_t saved_at_ = 0;
  // Whether any rank was asked to stop, as of the step before: the answer of a step's question comes with the next.
  int32_t asked_ = 0, any_asked_ = 0;
  Work asking_;
  bool stop_ = false;
  bool late_ = false;  // --within is over
  // Of the run, on this rank, and as they were at the last log line.
  struct Spent {
    size_t steps = 0;
    double seconds = 0;
    double exposed_s = 0;
    double samples = 0;
  } spent_, logged_;
};

// Makes the model's tensors views of the strategy's memory.
void Trainer::bind() {
  torch::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    auto& p = parameters_[i];
    p.set_data(torch::from_blob(strategy_->parameter(i).data(), p.sizes(), p.options().requires_grad(false)));
    // A defined gradient is added to in place, so backward writes straight into the strategy's memory.
    p.mutable_grad() = torch::from_blob(strategy_->gradient(i).data(), p.sizes(), p.options().requires_grad(false));
  }
}

// For this rank's part of a batch, which is larger where there are fewer ranks.
Status Trainer::make_room() {
  auto shard = sync::DataShard::make({.samples = data_.train.size(),
                                      .batch = args_.batch,
                                      .seed = args_.seed,
                                      .rank = comm_.rank(),
                                      .size = comm_.size()});
  if (!shard.ok()) return shard.status();
  shard_ = std::move(*shard);
  if (agent_ != nullptr) shard_.set_shares(agent_->settings().shares);
  const size_t whole = std::min(args_.batch, data_.train.size());
  // With an agent, shares may become anything.
  const size_t largest_part = agent_ != nullptr ? whole : whole / static_cast<size_t>(comm_.size()) + 1;
  batch_ = Batch(data_.train, std::max(test_batch(), largest_part));
  return {};
}

Status Trainer::prepare() {
  for (const auto& named : model_->named_parameters()) {
    const auto& p = named.value();
    const auto elems = static_cast<size_t>(p.numel()), rows = p.dim() < 2 ? 1 : static_cast<size_t>(p.size(0));
    shapes_.push_back({.name = named.key(), .rows = rows, .cols = elems / rows, .matrix = p.dim() >= 2});
  }
  auto strategy = make_strategy(comm_, args_, shapes_);
  if (!strategy.ok()) return strategy.status();
  strategy_ = std::move(*strategy);
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const auto memory = strategy_->parameter(i);
    std::copy_n(parameters_[i].data_ptr<float>(), memory.size(), memory.data());
  }
  bind();
  for (size_t i = 0; i < parameters_.size(); ++i) {
    accumulators_.push_back(torch::autograd::impl::grad_accumulator(parameters_[i]));
    accumulators_.back()->add_post_hook(std::make_unique<ReadyHook>([this, i] {
      if (!measuring_) strategy_->ready(i);
    }));
  }
  RINGFOLD_TRY(make_room());
  if (tensor_) {  // what all ranks of the group hold
    Group group;
    for (const auto& p : model_->all_parameters()) {
      if (p.split >= 0) continue;
      const auto elems = static_cast<size_t>(p.local.numel());
      group.add(tensor_->comm().broadcast(p.local.data_ptr(), p.local.data_ptr(), elems, DataType::kF32, 0));
    }
    RINGFOLD_TRY(group.wait());
  }
  if (!args_.checkpoint.empty()) checkpointer_ = std::make_unique<Checkpointer>(comm_, args_.checkpoint, identity());
  if (args_.resume) RINGFOLD_TRY(resume());
  if (begun_at_.step > 0) return {};
  return strategy_->start();  // the seed makes the replicas equal; this makes them so on unlike hosts too
}

// The ranks that are left go on from the newest state that one of them has: the step in which a rank was lost is
// either done or made again, by all.
Status Trainer::go_on_without(const Status& lost) {
  if (!args_.elastic || !lost.verdict() || tensor_) return lost;
  checkpointer_.reset();  // it uses the communicator that is no more
  (void)asking_.wait();
  asking_ = {};
  const auto make = [&](Communicator& comm) { return make_strategy(comm, args_, shapes_); };
  before_ = stats();
  const int32_t old_rank = comm_.rank();
  auto done = sync::recover(comm_, strategy_, make, steps_before() + strategy_->steps_done());
  if (!done.ok()) return done.status();
  bind();
  std::vector<int32_t> left(static_cast<size_t>(comm_.size()));
  RINGFOLD_TRY(comm_.all_gather(&old_rank, left.data(), 1, DataType::kI32).wait());
  Decision decision{.step = *done,
                    .seen = lost.message(),
                    .changed = fmt::format("goes on with {} rank{}, from step {}", comm_.size(),
                                           comm_.size() == 1 ? "" : "s", *done + 1)};
  if (agent_ != nullptr) decision = agent_->lost(*done, {left.begin(), left.end()}, lost.message());
  RINGFOLD_TRY(make_room());
  // An epoch whose last step is done may lack its end.
  begun_at_.step = *done;
  begun_at_.epoch = *done == 0 ? 1 : static_cast<int>((*done - 1) / shard_.steps()) + 1;
  begun_at_.in_epoch = *done - shard_.steps() * static_cast<size_t>(begun_at_.epoch - 1);
  if (!args_.checkpoint.empty()) checkpointer_ = std::make_unique<Checkpointer>(comm_, args_.checkpoint, identity());
  writes_ = comm_.rank() == 0;
  logged_ = spent_;
  if (writes_) RINGFOLD_TRY(reporter_.take_over(args_, start_));
  reporter_.decision(decision);
  return {};
}

Identity Trainer::identity() const {
  const bool alike = args_.sync == "ssgd" || args_.sync == "zero1";  // each can go on where the other was
  const ModelSpec spec = args_.spec();
  const auto size = [&](int64_t n) { return spec.is_text() ? std::to_string(n) : std::string(); };
  return {{"--model", args_.model},
          {"--layers", size(spec.layers)},
          {"--width", size(spec.width)},
          {"--heads", size(spec.heads)},
          {"--context", size(spec.context)},
          {"--batch", std::to_string(args_.batch)},
          {"--seed", std::to_string(args_.seed)},
          {"--epochs", std::to_string(args_.epochs)},
          {"--optimizer", args_.optimizer},
          {"--sync", alike ? "ssgd or zero1" : args_.sync},
          {"number of samples", std::to_string(data_.train.size())},
          {"number of parameters", std::to_string(strategy_->elems())}};
}

Status Trainer::resume() {
  auto loaded = load_checkpoint(comm_, args_.checkpoint, identity());
  if (!loaded.ok()) return loaded.status();
  if (!loaded->has_value()) return {};
  const sync::State& state = (*loaded)->state;
  begun_at_ = (*loaded)->position;
  saved_at_ = begun_at_.step;
  for (int r = comm_.rank(); r < (*loaded)->ranks; r += comm_.size()) {
    const auto loss = state.numbers.find("epoch loss of rank " + std::to_string(r));
    if (loss != state.numbers.end()) epoch_loss_ += std::bit_cast<double>(loss->second);
  }
  if (comm_.rank() == 0)
    epoch_samples_ = static_cast<double>(std::min(begun_at_.in_epoch * args_.batch, data_.train.size()));
  return strategy_->load(state);
}

Status Trainer::save_checkpoint(bool epoch_over) {
  const size_t in_epoch = epoch_over ? 0 : strategy_->steps_done();
  const Position position{.step = steps_before() + strategy_->steps_done(),
                          .epoch = epoch_over ? epoch_ + 1 : epoch_,
                          .in_epoch = in_epoch};
  if (position.step == saved_at_) return {};
  saved_at_ = position.step;
  sync::State state;
  strategy_->save(state);
  const double loss = epoch_over ? 0 : epoch_loss_;
  state.numbers["epoch loss of rank " + std::to_string(comm_.rank())] = std::bit_cast<uint64_t>(loss);
  return checkpointer_->begin(std::move(state), position);
}

// In step: was any rank asked to stop, as of the step before?
Result<bool> Trainer::all_stop() {
  RINGFOLD_TRY(asking_.wait());
  const bool stop = any_asked_ != 0;
  if (stop) return true;
  asked_ = stop_requested() ? 1 : 0;
  asking_ = comm_.all_reduce(&asked_, &any_asked_, 1, DataType::kI32, kMax);
  return false;
}

Status Trainer::after_step() {
  if (!checkpointer_) return {};
  RINGFOLD_TRY(checkpointer_->advance(false));
  if (!strategy_->in_step()) return {};
  auto stop = all_stop();
  if (!stop.ok()) return stop.status();
  stop_ = *stop;
  const size_t done = steps_before() + strategy_->steps_done();
  const bool due = args_.checkpoint_every > 0 && done % args_.checkpoint_every == 0;
  // What ends an epoch is saved after it.
  if ((stop_ || due) && strategy_->steps_done() < shard_.steps()) RINGFOLD_TRY(save_checkpoint(false));
  return {};
}

// Computing that began at `begin_s` takes as long as --slow-rank says.
void Trainer::slow_down(double begin_s) const {
  if (comm_.rank() == args_.slow_rank)
    std::this_thread::sleep_for(std::chrono::duration<double>((args_.slow_factor - 1) * (now_s() - begin_s)));
}

// Forward and backward of the task's samples.
Status Trainer::compute(const sync::Task& task, sync::StepInfo& info) {
  const auto samples = shard_.batch(task.step, task.part, task.parts);
  info.samples = samples.size();
  info.lr = schedule(args_, steps_before() + task.step, steps_of_run());
  if (samples.empty()) return {};  // nothing to add: this rank's gradients are zero
  const double begin_s = now_s();
  const size_t whole = strategy_->scale() == sync::Scale::kOwnMean ? samples.size() : shard_.global_size(task.step);
  batch_.fill(data_.train, samples);
  auto loss = loss_sum(model_->forward(batch_.inputs()), batch_.targets());
  (loss / static_cast<double>(whole * data_.train.targets())).backward();
  info.loss = loss.item<double>();
  slow_down(begin_s);
  return {};
}

Status Trainer::train_epoch() {
  size_t log_at = (steps_before() / args_.log_every + 1) * args_.log_every;
  for (;;) {
    const double begin_s = now_s();
    auto task = strategy_->next();
    if (!task.ok()) return task.status();
    if (!task->has_value()) return {};
    sync::StepInfo info;
    RINGFOLD_TRY(compute(**task, info));
    RINGFOLD_TRY(strategy_->step(info));
    epoch_loss_ += info.loss;
    epoch_samples_ += static_cast<double>(info.samples);
    spent_.samples += static_cast<double>(info.samples);
    ++spent_.steps;
    spent_.seconds += now_s() - begin_s;
    spent_.exposed_s = exposed_s();
    const size_t done = steps_before() + strategy_->steps_done();
    if (done >= log_at) {
      log_at = (done / args_.log_every + 1) * args_.log_every;
      // Ranks that are not in step cannot meet here: rank 0 says what it knows.
      if (strategy_->in_step() || comm_.rank() == 0) RINGFOLD_TRY(log_step());
    }
    if (args_.check_every > 0 && done % static_cast<size_t>(args_.check_every) == 0) RINGFOLD_TRY(check_replicas());
    const size_t made = done - begun_at_.step;
    reporter_.progress(epoch_, done, spent_.seconds / static_cast<double>(std::max<size_t>(made, 1)));
    RINGFOLD_TRY(after_step());
    if ((stop_ && strategy_->steps_done() < shard_.steps()) || late_) return {};
  }
}

Status Trainer::log_step() {
  const size_t done = steps_before() + strategy_->steps_done();
  auto losses = strategy_->losses();
  if (!losses.ok()) return losses.status();
  const double seconds = spent_.seconds - logged_.seconds;
  reporter_.step(
      {.epoch = epoch_,
       .step = done,
       .loss = losses->loss / (std::max(losses->samples, 1.0) * static_cast<double>(data_.train.targets())),
       .lr = schedule(args_, done - 1, steps_of_run()),
       .samples_per_s = losses->samples / seconds,
       .comm_share = (spent_.exposed_s - logged_.exposed_s) / seconds});
  if (strategy_->in_step()) RINGFOLD_TRY(share_times(done));
  logged_ = spent_;
  return {};
}

Status Trainer::test(EpochEvent& event) {
  torch::NoGradGuard no_grad;
  const auto part = sync::part_of(data_.test.size(), comm_.rank(), comm_.size());
  double sums[2] = {0, 0};  // right answers, loss
  std::vector<uint32_t> samples;
  for (size_t begin = part.begin; begin < part.end; begin += test_batch()) {
    samples.resize(std::min(test_batch(), part.end - begin));
    std::iota(samples.begin(), samples.end(), static_cast<uint32_t>(begin));
    batch_.fill(data_.test, samples);
    const auto logits = model_->forward(batch_.inputs());
    sums[0] += right_answers(logits, batch_.targets());
    sums[1] += loss_sum(logits, batch_.targets()).item<double>();
  }
  RINGFOLD_TRY(comm_.all_reduce(sums, sums, 2, DataType::kF64).wait());
  event.tested = true;
  const auto targets = static_cast<double>(data_.test.size() * data_.test.targets());
  event.test_accuracy = sums[0] / targets;
  event.test_loss = sums[1] / targets;
  return {};
}

Status Trainer::check_replicas() {
  sync::ReplicaHash hash;
  for (const auto& p : parameters_)
    hash.add(std::as_bytes(std::span(p.data_ptr<float>(), static_cast<size_t>(p.numel()))));
  hash_ = hash.value();
  RINGFOLD_TRY(check_equal(comm_, hash_));
  if (!tensor_) return {};
  sync::ReplicaHash shared;  // what all ranks of a tensor group hold
  for (const auto& p : model_->all_parameters()) {
    if (p.split < 0)
      shared.add(std::as_bytes(std::span(p.local.data_ptr<float>(), static_cast<size_t>(p.local.numel()))));
  }
  return check_equal(tensor_->comm(), shared.value());
}

Status Trainer::check_equal(Communicator& comm, uint64_t hash) const {
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

Status Trainer::share_figures(Summary& summary) {
  const sync::StrategyStats stats = this->stats();
  const double seconds = spent_.seconds;
  double sums[5] = {seconds > 0 ? exposed_s() / seconds : 0,
                    stats.in_flight_s > 0 ? std::max(0.0, 1 - stats.exposed_s / stats.in_flight_s) : 0,
                    static_cast<double>(stats.bytes), static_cast<double>(stats.sent_bytes),
                    static_cast<double>(spent_.steps)};
  RINGFOLD_TRY(comm_.all_reduce(sums, sums, 5, DataType::kF64).wait());
  summary.comm_share = sums[0] / comm_.size();
  summary.overlap = sums[1] / comm_.size();
  summary.bytes_per_step = sums[2] / std::max(sums[4], 1.0);
  summary.sent_bytes = sums[3];
  summary.staleness = stats.staleness;
  return {};
}

Status Trainer::save(const Summary& summary) const {
  const auto parameters = whole_parameters(*model_);
  if (!writes_) return {};
  About about{.model = args_.spec(), .data = describe_data(args_), .data_digest = data_.train.digest()};
  for (const auto& p : parameters) about.parameters += static_cast<size_t>(p.numel());
  about.train_samples = data_.train.size();
  about.test_samples = data_.test.size();
  about.ranks = summary.ranks;
  about.epochs = summary.epochs;
  about.batch = args_.batch;
  about.seed = args_.seed;
  about.optimizer = args_.optimizer;
  about.lr = args_.peak_lr();
  about.test_loss = summary.test_loss;
  about.test_accuracy = summary.test_accuracy;
  return save_model(args_.save, *model_, parameters, about);
}

sync::StrategyStats Trainer::stats() const {
  sync::StrategyStats now = strategy_->stats();
  now.exposed_s += before_.exposed_s;
  now.in_flight_s += before_.in_flight_s;
  now.bytes += before_.bytes;
  now.sent_bytes += before_.sent_bytes;
  return now;
}

double Trainer::measure(size_t samples) {
  measuring_ = true;
  std::vector<uint32_t> numbers(std::min(samples, data_.train.size()));
  std::iota(numbers.begin(), numbers.end(), 0U);
  const double begin_s = now_s();
  batch_ = Batch(data_.train, std::max(test_batch(), numbers.size()));
  batch_.fill(data_.train, numbers);
  loss_sum(model_->forward(batch_.inputs()), batch_.targets()).backward();
  slow_down(begin_s);
  measuring_ = false;
  return now_s() - begin_s;
}

void Trainer::watched_by(Agent* agent) {
  agent_ = agent;
  shard_.set_shares(agent_->settings().shares);
  batch_ = Batch(data_.train, std::max(test_batch(), std::min(args_.batch, data_.train.size())));
}

// Where the time of the ranks went since the last line of the log; and what the agent makes of it.
Status Trainer::share_times(size_t done) {
  const size_t n = static_cast<size_t>(comm_.size());
  const double seconds = spent_.seconds - logged_.seconds, exposed = spent_.exposed_s - logged_.exposed_s;
  const double own[4] = {seconds - exposed, exposed, spent_.samples - logged_.samples, now_s() - run_began_s_};
  std::vector<double> all(4 * n);
  RINGFOLD_TRY(comm_.all_gather(own, all.data(), 4, DataType::kF64).wait());
  Observation seen{
      .step = done, .steps = spent_.steps - logged_.steps, .compute_s = {}, .exposed_s = {}, .samples = {}};
  for (size_t r = 0; r < n; ++r) {
    seen.compute_s.push_back(all[4 * r]);
    seen.exposed_s.push_back(all[4 * r + 1]);
    seen.samples.push_back(static_cast<size_t>(all[4 * r + 2]));
  }
  reporter_.times(seen);
  if (args_.within_s > 0 && all[3] > args_.within_s) {  // by rank 0's clock
    late_ = true;
    return {};
  }
  if (agent_ == nullptr || seen.steps == 0) return {};
  const auto decision = agent_->observe(seen);
  if (!decision) return {};
  reporter_.decision(*decision);
  return change_to(agent_->settings());
}

// In the middle of an epoch, on all ranks after the same step.
Status Trainer::change_to(const Settings& settings) {
  shard_.set_shares(settings.shares);
  if (settings.codec == args_.codec && settings.bucket_kib == args_.bucket_kib) return {};
  (void)asking_.wait();
  sync::State state;
  RINGFOLD_TRY(strategy_->save_replica(state));
  // Error feedback is kept by bucket: other buckets begin without.
  if (settings.bucket_kib != args_.bucket_kib) state.blobs.clear();
  args_.codec = settings.codec;
  args_.bucket_kib = settings.bucket_kib;
  const size_t done = strategy_->steps_done();
  before_ = stats();
  auto next = make_strategy(comm_, args_, shapes_);
  if (!next.ok()) return next.status();
  RINGFOLD_TRY((*next)->load(state));
  strategy_ = std::move(*next);
  bind();
  return strategy_->begin_epoch(shard_.steps(), done);
}

// What is left of the run, from begun_at_.
Status Trainer::train_on(Summary& summary) {
  for (epoch_ = begun_at_.epoch; epoch_ <= args_.epochs; ++epoch_) {
    const double epoch_begin_s = now_s();
    shard_.begin_epoch(static_cast<uint64_t>(epoch_));
    const size_t from = epoch_ == begun_at_.epoch ? begun_at_.in_epoch : 0;
    RINGFOLD_TRY(strategy_->begin_epoch(shard_.steps(), from));
    if (from == 0) epoch_loss_ = epoch_samples_ = 0;
    Status status = train_epoch();
    trained_ += strategy_->steps_done() - from;
    RINGFOLD_TRY(status);
    if (stop_ && strategy_->steps_done() < shard_.steps()) break;
    RINGFOLD_TRY(end_epoch(summary, epoch_begin_s));
    if ((stop_ && epoch_ < args_.epochs) || late_) break;
    if (args_.target_accuracy > 0 && summary.test_accuracy >= args_.target_accuracy) break;
  }
  summary.replicas_equal = true;  // any other outcome ended the run
  summary.replica_hash = hash_;
  summary.stopped = stop_ && summary.epochs < args_.epochs;
  if (checkpointer_) RINGFOLD_TRY(checkpointer_->advance(true));
  return share_figures(summary);
}

Status Trainer::end_epoch(Summary& summary, double begin_s) {
  const double merge_begin_s = now_s();
  RINGFOLD_TRY(strategy_->merge(epoch_ == args_.epochs));
  spent_.seconds += now_s() - merge_begin_s;
  double sums[2] = {epoch_loss_, epoch_samples_};
  RINGFOLD_TRY(comm_.all_reduce(sums, sums, 2, DataType::kF64).wait());
  RINGFOLD_TRY(check_replicas());
  EpochEvent event{.epoch = epoch_,
                   .train_loss = sums[0] / std::max(sums[1] * static_cast<double>(data_.train.targets()), 1.0),
                   .replicas_equal = true};
  if (epoch_ % args_.eval_every == 0 || epoch_ == args_.epochs || late_) RINGFOLD_TRY(test(event));
  event.seconds = now_s() - begin_s;
  event.elapsed_s = now_s() - run_began_s_;
  if (summary.epochs < epoch_) reporter_.epoch(event);  // otherwise a rank was lost after it was told
  summary.epochs = epoch_;
  summary.train_loss = event.train_loss;
  if (event.tested) {
    summary.test_loss = event.test_loss;
    summary.test_accuracy = event.test_accuracy;
  }
  if (!checkpointer_ || epoch_ == args_.epochs) return {};
  if (!strategy_->in_step()) {
    int32_t asked = stop_requested() ? 1 : 0;
    RINGFOLD_TRY(comm_.all_reduce(&asked, &asked, 1, DataType::kI32, kMax).wait());
    stop_ = asked != 0;
  }
  const bool due = args_.checkpoint_every == 0 || !strategy_->in_step() || stop_ ||
                   steps_before() + shard_.steps() >= saved_at_ + args_.checkpoint_every;
  return due ? save_checkpoint(true) : Status();
}

Result<Summary> Trainer::run() {
  start_ = {.ranks = comm_.size() * args_.tensor_parallel,
            .tensor_parallel = args_.tensor_parallel,
            .buckets = strategy_->buckets(),
            .train_samples = data_.train.size(),
            .test_samples = data_.test.size(),
            .steps = steps_of_run(),
            .resumed_at = begun_at_.step};
  Communicator& neighbours = tensor_ ? tensor_->comm() : comm_;
  start_.transport = neighbours.transport_to((neighbours.rank() + 1) % neighbours.size());
  start_.parameters_of_rank = strategy_->elems();
  for (const auto& p : model_->all_parameters())
    start_.parameters +=
        static_cast<size_t>(p.local.numel()) * static_cast<size_t>(p.split >= 0 ? args_.tensor_parallel : 1);
  start_.bytes_per_step = strategy_->bytes_per_step();
  reporter_.start(start_);

  run_began_s_ = now_s();
  Summary summary;
  for (Status status = train_on(summary); !status.ok(); status = train_on(summary))
    RINGFOLD_TRY(go_on_without(status));
  summary.ranks = comm_.size() * args_.tensor_parallel;
  summary.samples_per_s = static_cast<double>(std::min(trained_ * args_.batch, data_.train.size() * trained_)) /
                          std::max(spent_.seconds, 1e-9);
  summary.seconds = now_s() - run_began_s_;
  if (!args_.save.empty()) RINGFOLD_TRY(save(summary));
  if (writes_) RINGFOLD_TRY(record_order(args_, *strategy_));
  reporter_.end(summary);
  return summary;
}

void Trainer::copy_parameters(std::vector<float>& out) const {
  out.clear();
  for (const auto& whole : whole_parameters(*model_)) {
    const auto p = whole.contiguous();
    out.insert(out.end(), p.data_ptr<float>(), p.data_ptr<float>() + p.numel());
  }
}

// What the agent does before a run: measures, plans, says why, and makes the settings those of the best plan. The
// communicator of those that take part becomes `crew` where not all do.
Result<std::optional<Agent>> plan_run(Communicator& comm, Args& args, const Dataset& data, Reporter& reporter,
                                      Communicator* crew) {
  auto goal = parse_goal(args.goal);
  if (!goal.ok()) return goal.status();
  goal->within_s = args.within_s;
  goal->max_ranks = args.max_ranks;
  auto shard = sync::DataShard::make(
      {.samples = data.train.size(), .batch = args.batch, .rank = comm.rank(), .size = comm.size()});
  if (!shard.ok()) return shard.status();
  Trainer probe(comm, nullptr, args, data, reporter, std::move(*shard), false);
  RINGFOLD_TRY(probe.prepare());
  auto found =
      survey(comm, probe.elems(), args.batch, args.max_ranks, [&](size_t samples) { return probe.measure(samples); });
  if (!found.ok()) return found.status();
  const auto candidates = consider(*goal, *found);
  const Candidate& best = candidates.front();
  const Crew& chosen = found->crews[best.settings.crew];
  args.sync = best.settings.sync;
  args.codec = best.settings.codec;
  args.batch = best.settings.batch;
  args.bucket_kib = best.settings.bucket_kib;
  if (args.sync == "diloco") args.local_steps = best.settings.local_steps;
  args.elastic = args.sync == "ssgd";
  reporter.plan(args, to_string(candidates, *found), comm.transport_to((comm.rank() + 1) % comm.size()));
  if (chosen.ranks.size() < static_cast<size_t>(comm.size())) {
    const bool member = std::find(chosen.ranks.begin(), chosen.ranks.end(), comm.rank()) != chosen.ranks.end();
    auto part = comm.split(member ? 0 : -1);
    if (!part.ok()) return part.status();
    if (!member) return std::optional<Agent>();
    *crew = std::move(*part);
  }
  return std::optional<Agent>(Agent(*found, best));
}

}  // namespace

void use_one_thread() {
  at::set_num_threads(1);
  // OpenBLAS has threads of its own, and has read its variables when it was loaded, before main().
  if (void* set = dlsym(RTLD_DEFAULT, "openblas_set_num_threads")) {
    reinterpret_cast<void (*)(int)>(set)(1);
  } else if (!dlsym(RTLD_DEFAULT, "MKL_Set_Num_Threads")) {
    fmt::print(
        stderr,
        "ringfold-train: libtorch runs without OpenBLAS or MKL, which makes training many times slower; on Debian, "
        "install libopenblas0-pthread\n");
  }
}

Result<Summary> train(Communicator& comm, const Args& asked, const Dataset& data, Reporter& reporter,
                      std::vector<float>* parameters) {
  Args args = asked;
  RINGFOLD_TRY(check(args.spec(), args.tensor_parallel));
  if (args.tensor_parallel > 1 && args.sync == "asgd") {
    return Status(Code::kInvalid,
                  "--sync asgd lets replicas step at their own pace, and --tensor-parallel needs the ranks of a "
                  "replica to step together: take another --sync");
  }
  if (args.tensor_parallel > 1 && !args.checkpoint.empty()) {
    return Status(Code::kInvalid,
                  "--checkpoint is for ranks that hold whole models: it cannot be used with --tensor-parallel yet");
  }
  const auto mesh = sync::Mesh::make(comm.size(), 1, args.tensor_parallel);
  if (!mesh.ok()) return mesh.status();
  sync::MeshCommunicators parts;
  std::optional<TensorGroup> tensor;
  if (args.tensor_parallel > 1) {
    auto made = sync::split(comm, *mesh);
    if (!made.ok()) return made.status();
    parts = std::move(*made);
    tensor.emplace(parts.tensor);
  }
  Communicator crew;
  std::optional<Agent> agent;
  if (!args.goal.empty()) {
    auto planned = plan_run(comm, args, data, reporter, &crew);
    if (!planned.ok()) return planned.status();
    if (!planned->has_value() || args.dry_run) return Summary{.left_out = true};
    agent = std::move(*planned);
  }
  Communicator& replicas = tensor ? parts.data : crew.impl() ? crew : comm;
  auto shard = sync::DataShard::make({.samples = data.train.size(),
                                      .batch = args.batch,
                                      .seed = args.seed,
                                      .rank = replicas.rank(),
                                      .size = replicas.size()});
  if (!shard.ok()) return shard.status();
  std::unique_ptr<Trainer> trainer;
  Status failed;
  try {
    trainer = std::make_unique<Trainer>(replicas, tensor ? &*tensor : nullptr, args, data, reporter,
                                        std::move(*shard), comm.rank() == 0);
    failed = trainer->prepare();
    if (failed.ok() && agent && args.sync == "ssgd") trainer->watched_by(&*agent);
    if (failed.ok()) {
      auto summary = trainer->run();
      if (summary.ok() && parameters) trainer->copy_parameters(*parameters);
      if (summary.ok()) return summary;
      failed = summary.status();
    }
  } catch (const CommunicationError& e) {
    failed = e.status();
  } catch (const c10::Error& e) {
    failed = Status(Code::kInternal, std::string("libtorch: ") + e.what_without_backtrace());
  } catch (const std::exception& e) {
    failed = Status(Code::kInternal, std::string("libtorch: ") + e.what());
  }
  // Perhaps in the middle of a step, with calls in flight that the peers will never match: end those before the
  // trainer goes. And a failure that the ranks along one axis of the mesh know of is one for all.
  for (Communicator* c : {tensor ? &parts.tensor : &comm, &replicas, &comm}) c->abort(failed.message());
  if (!tensor) return failed;
  // What all survivors share, with the culprit's rank in the job.
  const Status shared = comm.barrier().wait();
  return shared.verdict() ? shared : failed;
}

}  // namespace ringfold::train
