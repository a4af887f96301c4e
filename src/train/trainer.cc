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
#include <torch/nn/functional/loss.h>
#include <torch/serialize.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <numbers>
#include <numeric>
#include <span>
#include <thread>
#include <vector>

#include "sync/replica.h"
#include "sync/shard.h"
#include "train/checkpoint.h"
#include "train/model.h"
#include "train/strategies.h"

namespace ringfold::train {
namespace {

namespace F = torch::nn::functional;

constexpr size_t kTestBatch = 500;
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
  Trainer(Communicator& comm, const Args& args, const Dataset& data, Reporter& reporter, sync::DataShard shard)
      : comm_(comm),
        args_(args),
        data_(data),
        reporter_(reporter),
        shard_(std::move(shard)),
        model_(make_model(args.model, args.seed)),
        parameters_(model_->parameters()) {}
  ~Trainer() {
    (void)asking_.wait();
    for (auto& p : parameters_) p.mutable_grad().reset();  // the gradients are the strategy's memory
  }

  Status prepare();
  Result<Summary> run();
  void copy_parameters(std::vector<float>& out) const;

 private:
  Status train_epoch();
  Status compute(const sync::Task& task, sync::StepInfo& info);
  Status log_step();
  Status test(EpochEvent& event);
  Status check_replicas();
  Status share_figures(Summary& summary);
  Status save() const;
  Status resume();
  Status save_checkpoint(bool epoch_over);
  Status after_step();
  Result<bool> all_stop();
  Identity identity() const;
  size_t steps_of_run() const { return shard_.steps() * static_cast<size_t>(args_.epochs); }
  size_t steps_before() const { return shard_.steps() * static_cast<size_t>(epoch_ - 1); }

  Communicator& comm_;
  const Args& args_;
  const Dataset& data_;
  Reporter& reporter_;
  sync::DataShard shard_;
  std::shared_ptr<Model> model_;
  std::vector<torch::Tensor> parameters_;
  std::unique_ptr<sync::Strategy> strategy_;
  std::vector<std::shared_ptr<torch::autograd::Node>>
      accumulators_;               // own the hooks: a dropped accumulator is a lost hook
  torch::Tensor images_, labels_;  // room for one batch
  uint64_t hash_ = 0;
  int epoch_ = 1;
  double epoch_loss_ = 0;  // sum over this rank's samples
  Position begun_at_;      // where this run goes on
  std::unique_ptr<Checkpointer> checkpointer_;
  size_t saved_at_ = 0;
  // Whether any rank was asked to stop, as of the step before: the answer of a step's question comes with the next.
  int32_t asked_ = 0, any_asked_ = 0;
  Work asking_;
  bool stop_ = false;
  // Of the run, on this rank, and as they were at the last log line.
  struct Spent {
    size_t steps = 0;
    double seconds = 0;
    double exposed_s = 0;
  } spent_, logged_;
};

Status Trainer::prepare() {
  std::vector<ParameterShape> shapes;
  for (const auto& named : model_->named_parameters()) {
    const auto& p = named.value();
    const auto elems = static_cast<size_t>(p.numel()), rows = p.dim() < 2 ? 1 : static_cast<size_t>(p.size(0));
    shapes.push_back({.name = named.key(), .rows = rows, .cols = elems / rows, .matrix = p.dim() >= 2});
  }
  auto strategy = make_strategy(comm_, args_, shapes);
  if (!strategy.ok()) return strategy.status();
  strategy_ = std::move(*strategy);

  torch::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    auto& p = parameters_[i];
    const auto memory = strategy_->parameter(i);
    std::copy_n(p.data_ptr<float>(), memory.size(), memory.data());
    p.set_data(torch::from_blob(memory.data(), p.sizes(), p.options().requires_grad(false)));
    // A defined gradient is added to in place, so backward writes straight into the strategy's memory.
    p.mutable_grad() = torch::from_blob(strategy_->gradient(i).data(), p.sizes(), p.options().requires_grad(false));
  }
  for (size_t i = 0; i < parameters_.size(); ++i) {
    torch::AutoGradMode grad(true);
    accumulators_.push_back(torch::autograd::impl::grad_accumulator(parameters_[i]));
    accumulators_.back()->add_post_hook(std::make_unique<ReadyHook>([this, i] { strategy_->ready(i); }));
  }
  const size_t largest_part = std::min(args_.batch, data_.train.size()) / static_cast<size_t>(comm_.size()) + 1;
  const auto room = static_cast<int64_t>(std::max(kTestBatch, largest_part));
  images_ = torch::empty({room, 1, kImageSide, kImageSide});
  labels_ = torch::empty({room}, torch::kLong);
  if (!args_.checkpoint.empty()) checkpointer_ = std::make_unique<Checkpointer>(comm_, args_.checkpoint, identity());
  if (args_.resume) RINGFOLD_TRY(resume());
  if (begun_at_.step > 0) return {};
  return strategy_->start();  // the seed makes the replicas equal; this makes them so on unlike hosts too
}

Identity Trainer::identity() const {
  const bool alike = args_.sync == "ssgd" || args_.sync == "zero1";  // each can go on where the other was
  return {{"--model", args_.model},
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

// Forward and backward of the task's samples.
Status Trainer::compute(const sync::Task& task, sync::StepInfo& info) {
  const auto samples = shard_.batch(task.step, task.part, task.parts);
  info.samples = samples.size();
  info.lr = schedule(args_, steps_before() + task.step, steps_of_run());
  if (samples.empty()) return {};  // nothing to add: this rank's gradients are zero
  const double begin_s = now_s();
  const size_t whole = strategy_->scale() == sync::Scale::kOwnMean ? samples.size() : shard_.global_size(task.step);
  const auto n = static_cast<int64_t>(samples.size());
  data_.train.fill(samples, images_.data_ptr<float>(), labels_.data_ptr<int64_t>());
  auto loss = F::cross_entropy(model_->forward(images_.narrow(0, 0, n)), labels_.narrow(0, 0, n),
                               F::CrossEntropyFuncOptions().reduction(torch::kSum));
  (loss / static_cast<double>(whole)).backward();
  info.loss = loss.item<double>();
  if (comm_.rank() == args_.slow_rank)
    std::this_thread::sleep_for(std::chrono::duration<double>((args_.slow_factor - 1) * (now_s() - begin_s)));
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
    ++spent_.steps;
    spent_.seconds += now_s() - begin_s;
    spent_.exposed_s = strategy_->stats().exposed_s;
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
    if (stop_ && strategy_->steps_done() < shard_.steps()) return {};
  }
}

Status Trainer::log_step() {
  const size_t done = steps_before() + strategy_->steps_done();
  auto losses = strategy_->losses();
  if (!losses.ok()) return losses.status();
  const double seconds = spent_.seconds - logged_.seconds;
  reporter_.step({.epoch = epoch_,
                  .step = done,
                  .loss = losses->loss / std::max(losses->samples, 1.0),
                  .lr = schedule(args_, done - 1, steps_of_run()),
                  .samples_per_s = losses->samples / seconds,
                  .comm_share = (spent_.exposed_s - logged_.exposed_s) / seconds});
  logged_ = spent_;
  return {};
}

Status Trainer::test(EpochEvent& event) {
  torch::NoGradGuard no_grad;
  const auto part = sync::part_of(data_.test.size(), comm_.rank(), comm_.size());
  double sums[2] = {0, 0};  // right answers, loss
  std::vector<uint32_t> samples;
  for (size_t begin = part.begin; begin < part.end; begin += kTestBatch) {
    samples.resize(std::min(kTestBatch, part.end - begin));
    std::iota(samples.begin(), samples.end(), static_cast<uint32_t>(begin));
    data_.test.fill(samples, images_.data_ptr<float>(), labels_.data_ptr<int64_t>());
    const auto n = static_cast<int64_t>(samples.size());
    const auto labels = labels_.narrow(0, 0, n), logits = model_->forward(images_.narrow(0, 0, n));
    sums[0] += logits.argmax(1).eq(labels).sum().item<double>();
    sums[1] += F::cross_entropy(logits, labels, F::CrossEntropyFuncOptions().reduction(torch::kSum)).item<double>();
  }
  RINGFOLD_TRY(comm_.all_reduce(sums, sums, 2, DataType::kF64).wait());
  event.tested = true;
  event.test_accuracy = sums[0] / static_cast<double>(data_.test.size());
  event.test_loss = sums[1] / static_cast<double>(data_.test.size());
  return {};
}

Status Trainer::check_replicas() {
  sync::ReplicaHash hash;
  for (const auto& p : parameters_)
    hash.add(std::as_bytes(std::span(p.data_ptr<float>(), static_cast<size_t>(p.numel()))));
  hash_ = hash.value();
  auto different = sync::differing_ranks(comm_, hash_);
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
  const sync::StrategyStats stats = strategy_->stats();
  const double seconds = spent_.seconds;
  double sums[5] = {seconds > 0 ? stats.exposed_s / seconds : 0,
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

Status Trainer::save() const {
  const std::string partial = args_.save + ".part";  // so that the name never stands for half a model
  torch::save(model_, partial);
  std::error_code error;
  std::filesystem::rename(partial, args_.save, error);
  if (error) return Status(Code::kIo, fmt::format("cannot write {}: {}", args_.save, error.message()));
  return {};
}

Result<Summary> Trainer::run() {
  StartEvent start{.ranks = comm_.size(),
                   .buckets = strategy_->buckets(),
                   .train_samples = data_.train.size(),
                   .test_samples = data_.test.size(),
                   .steps = steps_of_run(),
                   .resumed_at = begun_at_.step};
  start.transport = comm_.transport_to((comm_.rank() + 1) % comm_.size());
  start.parameters = strategy_->elems();
  start.bytes_per_step = strategy_->bytes_per_step();
  reporter_.start(start);

  Summary summary{.ranks = comm_.size()};
  const double run_begin_s = now_s();
  size_t trained = 0;  // samples
  for (epoch_ = begun_at_.epoch; epoch_ <= args_.epochs; ++epoch_) {
    const double epoch_begin_s = now_s();
    shard_.begin_epoch(static_cast<uint64_t>(epoch_));
    const size_t from = epoch_ == begun_at_.epoch ? begun_at_.in_epoch : 0;
    RINGFOLD_TRY(strategy_->begin_epoch(shard_.steps(), from));
    if (from == 0) epoch_loss_ = 0;
    RINGFOLD_TRY(train_epoch());
    for (size_t step = from; step < strategy_->steps_done(); ++step) trained += shard_.global_size(step);
    if (stop_ && strategy_->steps_done() < shard_.steps()) break;
    const double merge_begin_s = now_s();
    RINGFOLD_TRY(strategy_->merge(epoch_ == args_.epochs));
    spent_.seconds += now_s() - merge_begin_s;
    RINGFOLD_TRY(comm_.all_reduce(&epoch_loss_, &epoch_loss_, 1, DataType::kF64).wait());
    RINGFOLD_TRY(check_replicas());
    EpochEvent event{
        .epoch = epoch_, .train_loss = epoch_loss_ / static_cast<double>(data_.train.size()), .replicas_equal = true};
    if (epoch_ % args_.eval_every == 0 || epoch_ == args_.epochs) RINGFOLD_TRY(test(event));
    event.seconds = now_s() - epoch_begin_s;
    event.elapsed_s = now_s() - run_begin_s;
    reporter_.epoch(event);
    summary.epochs = epoch_;
    summary.train_loss = event.train_loss;
    if (event.tested) {
      summary.test_loss = event.test_loss;
      summary.test_accuracy = event.test_accuracy;
    }
    if (checkpointer_ && epoch_ < args_.epochs) {
      if (!strategy_->in_step()) {
        int32_t asked = stop_requested() ? 1 : 0;
        RINGFOLD_TRY(comm_.all_reduce(&asked, &asked, 1, DataType::kI32, kMax).wait());
        stop_ = asked != 0;
      }
      const bool due = args_.checkpoint_every == 0 || !strategy_->in_step() || stop_ ||
                       steps_before() + shard_.steps() >= saved_at_ + args_.checkpoint_every;
      if (due) RINGFOLD_TRY(save_checkpoint(true));
      if (stop_) break;
    }
    if (event.tested && args_.target_accuracy > 0 && event.test_accuracy >= args_.target_accuracy) break;
  }
  summary.replicas_equal = true;  // any other outcome ended the run
  summary.replica_hash = hash_;
  summary.stopped = stop_ && summary.epochs < args_.epochs;
  if (checkpointer_) RINGFOLD_TRY(checkpointer_->advance(true));
  summary.samples_per_s = static_cast<double>(trained) / std::max(spent_.seconds, 1e-9);
  RINGFOLD_TRY(share_figures(summary));
  summary.seconds = now_s() - run_begin_s;
  if (!args_.save.empty() && comm_.rank() == 0) RINGFOLD_TRY(save());
  if (comm_.rank() == 0) RINGFOLD_TRY(record_order(args_, *strategy_));
  reporter_.end(summary);
  return summary;
}

void Trainer::copy_parameters(std::vector<float>& out) const {
  out.clear();
  for (const auto& p : parameters_) out.insert(out.end(), p.data_ptr<float>(), p.data_ptr<float>() + p.numel());
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

Result<Summary> train(Communicator& comm, const Args& args, const Dataset& data, Reporter& reporter,
                      std::vector<float>* parameters) {
  auto shard = sync::DataShard::make({.samples = data.train.size(),
                                      .batch = args.batch,
                                      .seed = args.seed,
                                      .rank = comm.rank(),
                                      .size = comm.size()});
  if (!shard.ok()) return shard.status();
  std::unique_ptr<Trainer> trainer;
  std::string thrown;
  try {
    trainer = std::make_unique<Trainer>(comm, args, data, reporter, std::move(*shard));
    RINGFOLD_TRY(trainer->prepare());
    auto summary = trainer->run();
    if (parameters) trainer->copy_parameters(*parameters);
    return summary;
  } catch (const c10::Error& e) {
    thrown = e.what_without_backtrace();
  } catch (const std::exception& e) {
    thrown = e.what();
  }
  // Thrown in the middle of a step, perhaps with calls in flight that the peers will never match: end those before
  // the trainer goes.
  comm.abort("libtorch: " + thrown);
  return Status(Code::kInternal, "libtorch: " + thrown);
}

}  // namespace ringfold::train
