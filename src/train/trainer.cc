// The loop. Each rank holds a replica of the model and steps through its part of every global batch:
//
//   forward, backward -> gradients, bucket by bucket, summed over ranks while backward goes on -> the same update
//   everywhere
//
// The loss that a rank differentiates is the sum over its samples divided by the size of the *global* batch, so the
// sum over ranks is the gradient of the global mean, whatever the sizes of the parts. Replicas stay bitwise equal
// because each all_reduce gives all ranks the same bits and the update is the same arithmetic on them; that is
// checked, not assumed.
#include "train/trainer.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numbers>
#include <numeric>
#include <optional>
#include <span>
#include <vector>

#include "sync/bucket.h"
#include "sync/mesh.h"
#include "sync/power_sgd.h"
#include "sync/replica.h"
#include "sync/shard.h"
#include "train/model.h"

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

// What a stretch of training adds up to on this rank.
struct Tally {
  double loss = 0;     // sum over this rank's samples
  size_t samples = 0;  // of all ranks
  double seconds = 0;
  double exposed_s = 0;
};

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
    for (auto& p : parameters_) p.mutable_grad().reset();  // the gradients are the reducer's memory
  }

  Status prepare();
  Result<Summary> run();
  // Collective, as the parts of layers are put together.
  void copy_parameters(std::vector<float>& out) const;

 private:
  Status make_reducer(std::span<const size_t> counts);
  std::span<float> gradient(size_t p) { return power_ ? power_->gradient(p) : reducer_->gradient(p); }
  const sync::BucketTimes& times() const { return power_ ? power_->times() : reducer_->times(); }
  Status step(size_t step, size_t total, Tally& tally);
  Status log_step(int epoch, size_t done, Tally& tally);
  Status test(EpochEvent& event);
  Status check_replicas();
  size_t test_batch() const { return data_.test.is_text() ? kTestBatchOfText : kTestBatch; }
  Status check_equal(Communicator& comm, uint64_t hash) const;
  double exposed_s() const { return times().exposed_s + (tensor_ ? tensor_->waited_s() : 0); }
  Status share_times(Summary& summary, double step_s);
  Status save(const Summary& summary) const;

  Communicator& comm_;
  TensorGroup* tensor_;
  const Args& args_;
  const Dataset& data_;
  Reporter& reporter_;
  sync::DataShard shard_;
  bool writes_;  // files, for the whole job
  std::shared_ptr<Model> model_;
  std::vector<torch::Tensor> parameters_;
  std::unique_ptr<sync::BucketReducer> reducer_;  // or
  std::unique_ptr<sync::PowerSgd> power_;
  std::vector<std::shared_ptr<torch::autograd::Node>>
      accumulators_;  // own the hooks: a dropped accumulator is a lost hook
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
  Batch batch_;
  uint64_t hash_ = 0;
};

Status Trainer::make_reducer(std::span<const size_t> counts) {
  if (args_.power_sgd == 0) {
    sync::BucketOptions buckets{.bucket_bytes = args_.bucket_kib << 10, .op = kSum};
    buckets.first_bucket_bytes = std::min(buckets.first_bucket_bytes, buckets.bucket_bytes);
    auto codec = parse_codec(args_.codec);
    if (!codec.ok()) return codec.status();
    buckets.codec = *codec;
    buckets.feedback = args_.error_feedback;
    std::vector<bool> plain;  // what is no matrix: small, and it does not bear errors
    for (const auto& p : parameters_) plain.push_back(p.dim() < 2);
    auto reducer = sync::BucketReducer::make(comm_, counts, buckets, plain);
    if (!reducer.ok()) return reducer.status();
    reducer_ = std::move(*reducer);
    return {};
  }
  std::vector<sync::PowerSgdTensor> tensors;
  size_t most = 0;  // the largest rank with which any of them becomes smaller
  for (const auto& named : model_->named_parameters()) {
    const auto& p = named.value();
    const size_t elems = static_cast<size_t>(p.numel()), rows = p.dim() < 2 ? 1 : static_cast<size_t>(p.size(0));
    tensors.push_back({named.key(), rows, elems / rows});
    most = std::max(most, (elems - 1) / (rows + elems / rows));
  }
  if (args_.power_sgd > most) {
    return Status(Code::kInvalid, fmt::format("--power-sgd {}: products of that rank are no smaller than any of the "
                                              "model's matrices; the largest rank that saves something is {}",
                                              args_.power_sgd, most));
  }
  auto power = sync::PowerSgd::make(
      comm_, tensors,
      {.rank = args_.power_sgd, .warm_up_steps = args_.power_sgd_warm_up, .seed = args_.seed, .op = kSum});
  if (!power.ok()) return power.status();
  power_ = std::move(*power);
  return {};
}

Status Trainer::prepare() {
  std::vector<size_t> counts;
  for (const auto& p : parameters_) counts.push_back(static_cast<size_t>(p.numel()));
  RINGFOLD_TRY(make_reducer(counts));

  Group group;  // the seed makes the replicas equal; the broadcast makes them so on unlike hosts too
  if (tensor_) {
    for (const auto& p : model_->all_parameters()) {
      if (p.split < 0)
        group.add(tensor_->comm().broadcast(p.local.data_ptr(), p.local.data_ptr(), static_cast<size_t>(p.local.numel()), DataType::kF32, 0));
    }
    RINGFOLD_TRY(group.wait());
  }
  for (size_t i = 0; i < parameters_.size(); ++i) {
    auto& p = parameters_[i];
    group.add(comm_.broadcast(p.data_ptr(), p.data_ptr(), counts[i], DataType::kF32, 0));
    // A defined gradient is added to in place, so backward writes straight into the bucket.
    p.mutable_grad() = torch::from_blob(gradient(i).data(), p.sizes(), p.options().requires_grad(false));
    if (power_) continue;  // needs all gradients at once
    accumulators_.push_back(torch::autograd::impl::grad_accumulator(p));
    accumulators_.back()->add_post_hook(std::make_unique<ReadyHook>([this, i] { reducer_->ready(i); }));
  }
  RINGFOLD_TRY(group.wait());

  if (args_.optimizer == "adam") {
    auto options = torch::optim::AdamOptions(args_.peak_lr()).weight_decay(args_.weight_decay);
    optimizer_ = std::make_unique<torch::optim::Adam>(parameters_, options);
  } else if (args_.optimizer == "adamw") {
    auto options = torch::optim::AdamWOptions(args_.peak_lr()).weight_decay(args_.weight_decay);
    optimizer_ = std::make_unique<torch::optim::AdamW>(parameters_, options);
  } else {
    auto options =
        torch::optim::SGDOptions(args_.peak_lr()).momentum(args_.momentum).weight_decay(args_.weight_decay);
    optimizer_ = std::make_unique<torch::optim::SGD>(parameters_, options.nesterov(args_.momentum > 0));
  }
  const size_t largest_part = std::min(args_.batch, data_.train.size()) / static_cast<size_t>(comm_.size()) + 1;
  batch_ = Batch(data_.train, std::max(test_batch(), largest_part));
  return {};
}

Status Trainer::step(size_t step, size_t total, Tally& tally) {
  const double begin_s = now_s(), exposed_before_s = exposed_s();
  const auto samples = shard_.batch(step);
  const size_t global = shard_.global_size(step);
  power_ ? power_->begin() : reducer_->begin();
  if (!samples.empty()) {  // nothing to add otherwise: this rank's gradients are zero
    batch_.fill(data_.train, samples);
    auto loss = loss_sum(model_->forward(batch_.inputs()), batch_.targets());
    (loss / static_cast<double>(global * data_.train.targets())).backward();
    tally.loss += loss.item<double>();
  }
  RINGFOLD_TRY(power_ ? power_->finish() : reducer_->finish());
  for (auto& group : optimizer_->param_groups())
    group.options().set_lr(schedule(args_, total, shard_.steps() * args_.epochs));
  optimizer_->step();
  tally.samples += global;
  tally.seconds += now_s() - begin_s;
  tally.exposed_s += exposed_s() - exposed_before_s;
  return {};
}

Status Trainer::log_step(int epoch, size_t done, Tally& tally) {
  double loss = tally.loss;
  RINGFOLD_TRY(comm_.all_reduce(&loss, &loss, 1, DataType::kF64).wait());
  const double samples = static_cast<double>(tally.samples);
  reporter_.step({.epoch = epoch,
                  .step = done,
                  .loss = loss / samples / static_cast<double>(data_.train.targets()),
                  .lr = schedule(args_, done - 1, shard_.steps() * args_.epochs),
                  .samples_per_s = samples / tally.seconds,
                  .comm_share = tally.exposed_s / tally.seconds});
  tally = {};
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

Status Trainer::share_times(Summary& summary, double step_s) {
  const auto& t = times();
  double shares[2] = {step_s > 0 ? exposed_s() / step_s : 0,
                      t.in_flight_s > 0 ? std::max(0.0, 1 - t.exposed_s / t.in_flight_s) : 0};
  RINGFOLD_TRY(comm_.all_reduce(shares, shares, 2, DataType::kF64, kAvg).wait());
  summary.comm_share = shares[0];
  summary.overlap = shares[1];
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
  const size_t steps = shard_.steps();
  StartEvent start{.ranks = comm_.size() * args_.tensor_parallel,
                   .buckets = power_ ? 1 : reducer_->buckets(),
                   .train_samples = data_.train.size(),
                   .test_samples = data_.test.size(),
                   .steps = steps * args_.epochs};
  Communicator& neighbours = tensor_ ? tensor_->comm() : comm_;
  start.transport = neighbours.transport_to((neighbours.rank() + 1) % neighbours.size());
  start.tensor_parallel = args_.tensor_parallel;
  for (const auto& p : model_->all_parameters()) {
    const auto elems = static_cast<size_t>(p.local.numel());
    start.parameters_of_rank += elems;
    start.parameters += elems * (tensor_ && p.split >= 0 ? static_cast<size_t>(tensor_->size()) : 1);
  }
  start.bytes_per_step = power_ ? power_->compressed_bytes() : reducer_->bytes();
  reporter_.start(start);

  Summary summary{.ranks = start.ranks};
  const double run_begin_s = now_s();
  double step_s = 0;
  size_t done = 0, samples = 0;
  for (int epoch = 1; epoch <= args_.epochs; ++epoch) {
    const double epoch_begin_s = now_s();
    Tally since_log;
    double epoch_loss = 0;
    shard_.begin_epoch(static_cast<uint64_t>(epoch));
    for (size_t s = 0; s < steps; ++s) {
      const double loss_before = since_log.loss, seconds_before = since_log.seconds;
      RINGFOLD_TRY(step(s, done++, since_log));
      epoch_loss += since_log.loss - loss_before;
      step_s += since_log.seconds - seconds_before;
      samples += shard_.global_size(s);
      if (done % args_.log_every == 0) RINGFOLD_TRY(log_step(epoch, done, since_log));
      if (args_.check_every > 0 && done % args_.check_every == 0) RINGFOLD_TRY(check_replicas());
      reporter_.progress(epoch, done, step_s / static_cast<double>(done));
    }
    RINGFOLD_TRY(comm_.all_reduce(&epoch_loss, &epoch_loss, 1, DataType::kF64).wait());
    RINGFOLD_TRY(check_replicas());
    EpochEvent event{
        .epoch = epoch, .train_loss = epoch_loss / static_cast<double>(data_.train.size() * data_.train.targets()), .replicas_equal = true};
    if (epoch % args_.eval_every == 0 || epoch == args_.epochs) RINGFOLD_TRY(test(event));
    event.seconds = now_s() - epoch_begin_s;
    reporter_.epoch(event);
    summary.epochs = epoch;
    summary.train_loss = event.train_loss;
    if (!event.tested) continue;
    summary.test_loss = event.test_loss;
    summary.test_accuracy = event.test_accuracy;
    if (args_.target_accuracy > 0 && event.test_accuracy >= args_.target_accuracy) break;
  }
  summary.replicas_equal = true;  // any other outcome ended the run
  summary.replica_hash = hash_;
  summary.samples_per_s = static_cast<double>(samples) / step_s;
  summary.bytes_per_step = static_cast<double>(times().bytes) / static_cast<double>(done);
  RINGFOLD_TRY(share_times(summary, step_s));
  summary.seconds = now_s() - run_begin_s;
  if (!args_.save.empty()) RINGFOLD_TRY(save(summary));
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
    trainer = std::make_unique<Trainer>(replicas, tensor ? &*tensor : nullptr, args, data, reporter, std::move(*shard),
                                        comm.rank() == 0);
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
  // Perhaps in the middle of a step, with calls in flight that the peers will never match: end those before the trainer
  // goes. And a failure that the ranks along one axis of the mesh know of is one for all.
  for (Communicator* c : {tensor ? &parts.tensor : &comm, &replicas, &comm}) c->abort(failed.message());
  return failed;
}

}  // namespace ringfold::train
