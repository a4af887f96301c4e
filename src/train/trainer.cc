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
  Result<Summary> run();
  // Collective, as the parts of layers are put together.
  void copy_parameters(std::vector<float>& out) const;

 private:
  Status train_epoch();
  Status compute(const sync::Task& task, sync::StepInfo& info);
  Status log_step();
  Status test(EpochEvent& event);
  Status check_replicas();
  Status check_equal(Communicator& comm, uint64_t hash) const;
  double exposed_s() const { return strategy_->stats().exposed_s + (tensor_ ? tensor_->waited_s() : 0); }
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
  const Args& args_;
  const Dataset& data_;
  Reporter& reporter_;
  sync::DataShard shard_;
  bool writes_;  // files, for the whole job
  std::shared_ptr<Model> model_;
  std::vector<torch::Tensor> parameters_;
  std::unique_ptr<sync::Strategy> strategy_;
  std::vector<std::shared_ptr<torch::autograd::Node>>
      accumulators_;  // own the hooks: a dropped accumulator is a lost hook
  Batch batch_;
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
  batch_ = Batch(data_.train, std::max(test_batch(), largest_part));
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
  batch_.fill(data_.train, samples);
  auto loss = loss_sum(model_->forward(batch_.inputs()), batch_.targets());
  (loss / static_cast<double>(whole * data_.train.targets())).backward();
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
    if (stop_ && strategy_->steps_done() < shard_.steps()) return {};
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
  const sync::StrategyStats stats = strategy_->stats();
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

Result<Summary> Trainer::run() {
  StartEvent start{.ranks = comm_.size() * args_.tensor_parallel,
                   .tensor_parallel = args_.tensor_parallel,
                   .buckets = strategy_->buckets(),
                   .train_samples = data_.train.size(),
                   .test_samples = data_.test.size(),
                   .steps = steps_of_run(),
                   .resumed_at = begun_at_.step};
  Communicator& neighbours = tensor_ ? tensor_->comm() : comm_;
  start.transport = neighbours.transport_to((neighbours.rank() + 1) % neighbours.size());
  start.parameters_of_rank = strategy_->elems();
  for (const auto& p : model_->all_parameters())
    start.parameters +=
        static_cast<size_t>(p.local.numel()) * static_cast<size_t>(p.split >= 0 ? args_.tensor_parallel : 1);
  start.bytes_per_step = strategy_->bytes_per_step();
  reporter_.start(start);

  Summary summary{.ranks = start.ranks};
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
    EpochEvent event{.epoch = epoch_,
                     .train_loss = epoch_loss_ / static_cast<double>(data_.train.size() * data_.train.targets()),
                     .replicas_equal = true};
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
  Communicator& replicas = tensor ? parts.data : comm;
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
