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
#include <torch/nn/functional/loss.h>
#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>
#include <torch/serialize.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <numbers>
#include <numeric>
#include <span>
#include <vector>

#include "sync/bucket.h"
#include "sync/power_sgd.h"
#include "sync/replica.h"
#include "sync/shard.h"
#include "train/model.h"

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

// What a stretch of training adds up to on this rank.
struct Tally {
  double loss = 0;     // sum over this rank's samples
  size_t samples = 0;  // of all ranks
  double seconds = 0;
  double exposed_s = 0;
};

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
    for (auto& p : parameters_) p.mutable_grad().reset();  // the gradients are the reducer's memory
  }

  Status prepare();
  Result<Summary> run();
  void copy_parameters(std::vector<float>& out) const;

 private:
  Status make_reducer(std::span<const size_t> counts);
  std::span<float> gradient(size_t p) { return power_ ? power_->gradient(p) : reducer_->gradient(p); }
  const sync::BucketTimes& times() const { return power_ ? power_->times() : reducer_->times(); }
  Status step(size_t step, size_t total, Tally& tally);
  Status log_step(int epoch, size_t done, Tally& tally);
  Status test(EpochEvent& event);
  Status check_replicas();
  Status share_times(Summary& summary, double step_s);
  Status save() const;

  Communicator& comm_;
  const Args& args_;
  const Dataset& data_;
  Reporter& reporter_;
  sync::DataShard shard_;
  std::shared_ptr<Model> model_;
  std::vector<torch::Tensor> parameters_;
  std::unique_ptr<sync::BucketReducer> reducer_;  // or
  std::unique_ptr<sync::PowerSgd> power_;
  std::vector<std::shared_ptr<torch::autograd::Node>>
      accumulators_;  // own the hooks: a dropped accumulator is a lost hook
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
  torch::Tensor images_, labels_;  // room for one batch
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
  } else {
    auto options =
        torch::optim::SGDOptions(args_.peak_lr()).momentum(args_.momentum).weight_decay(args_.weight_decay);
    optimizer_ = std::make_unique<torch::optim::SGD>(parameters_, options.nesterov(args_.momentum > 0));
  }
  const size_t largest_part = std::min(args_.batch, data_.train.size()) / static_cast<size_t>(comm_.size()) + 1;
  const auto room = static_cast<int64_t>(std::max(kTestBatch, largest_part));
  images_ = torch::empty({room, 1, kImageSide, kImageSide});
  labels_ = torch::empty({room}, torch::kLong);
  return {};
}

Status Trainer::step(size_t step, size_t total, Tally& tally) {
  const double begin_s = now_s(), exposed_s = times().exposed_s;
  const auto samples = shard_.batch(step);
  const size_t global = shard_.global_size(step);
  power_ ? power_->begin() : reducer_->begin();
  if (!samples.empty()) {  // nothing to add otherwise: this rank's gradients are zero
    const auto n = static_cast<int64_t>(samples.size());
    data_.train.fill(samples, images_.data_ptr<float>(), labels_.data_ptr<int64_t>());
    auto loss = F::cross_entropy(model_->forward(images_.narrow(0, 0, n)), labels_.narrow(0, 0, n),
                                 F::CrossEntropyFuncOptions().reduction(torch::kSum));
    (loss / static_cast<double>(global)).backward();
    tally.loss += loss.item<double>();
  }
  RINGFOLD_TRY(power_ ? power_->finish() : reducer_->finish());
  for (auto& group : optimizer_->param_groups())
    group.options().set_lr(schedule(args_, total, shard_.steps() * args_.epochs));
  optimizer_->step();
  tally.samples += global;
  tally.seconds += now_s() - begin_s;
  tally.exposed_s += times().exposed_s - exposed_s;
  return {};
}

Status Trainer::log_step(int epoch, size_t done, Tally& tally) {
  double loss = tally.loss;
  RINGFOLD_TRY(comm_.all_reduce(&loss, &loss, 1, DataType::kF64).wait());
  const double samples = static_cast<double>(tally.samples);
  reporter_.step({.epoch = epoch,
                  .step = done,
                  .loss = loss / samples,
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

Status Trainer::share_times(Summary& summary, double step_s) {
  const auto& t = times();
  double shares[2] = {step_s > 0 ? t.exposed_s / step_s : 0,
                      t.in_flight_s > 0 ? std::max(0.0, 1 - t.exposed_s / t.in_flight_s) : 0};
  RINGFOLD_TRY(comm_.all_reduce(shares, shares, 2, DataType::kF64, kAvg).wait());
  summary.comm_share = shares[0];
  summary.overlap = shares[1];
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
  const size_t steps = shard_.steps();
  StartEvent start{.ranks = comm_.size(),
                   .buckets = power_ ? 1 : reducer_->buckets(),
                   .train_samples = data_.train.size(),
                   .test_samples = data_.test.size(),
                   .steps = steps * args_.epochs};
  start.transport = comm_.transport_to((comm_.rank() + 1) % comm_.size());
  for (const auto& p : parameters_) start.parameters += static_cast<size_t>(p.numel());
  start.bytes_per_step = power_ ? power_->compressed_bytes() : reducer_->bytes();
  reporter_.start(start);

  Summary summary{.ranks = comm_.size()};
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
        .epoch = epoch, .train_loss = epoch_loss / static_cast<double>(data_.train.size()), .replicas_equal = true};
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
  if (!args_.save.empty() && comm_.rank() == 0) RINGFOLD_TRY(save());
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
