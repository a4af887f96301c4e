#include "train/strategies.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "sync/asgd.h"
#include "sync/local_sgd.h"
#include "sync/lockstep.h"

namespace ringfold::train {
namespace {

sync::OptimizerOptions optimizer_of(const Args& args) {
  if (args.optimizer != "sgd") {
    return {.kind = sync::OptimizerOptions::Kind::kAdam,
            .weight_decay = args.weight_decay,
            .decoupled = args.optimizer == "adamw"};
  }
  return {.momentum = args.momentum, .nesterov = args.momentum > 0, .weight_decay = args.weight_decay};
}

Result<sync::BucketOptions> buckets_of(const Args& args) {
  sync::BucketOptions buckets{.bucket_bytes = args.bucket_kib << 10};
  buckets.first_bucket_bytes = std::min(buckets.first_bucket_bytes, buckets.bucket_bytes);
  auto codec = parse_codec(args.codec);
  if (!codec.ok()) return codec.status();
  buckets.codec = *codec;
  buckets.feedback = args.error_feedback;
  return buckets;
}

Result<std::unique_ptr<sync::Strategy>> make_power_sgd(Communicator& comm, const Args& args,
                                                       const std::vector<ParameterShape>& parameters) {
  std::vector<sync::PowerSgdTensor> tensors;
  size_t most = 0;  // the largest rank with which any of them becomes smaller
  for (const auto& p : parameters) {
    tensors.push_back({p.name, p.rows, p.cols});
    if (p.elems() > 0) most = std::max(most, (p.elems() - 1) / (p.rows + p.cols));
  }
  if (args.power_sgd > most) {
    return Status(Code::kInvalid, fmt::format("--power-sgd {}: products of that rank are no smaller than any of the "
                                              "model's matrices; the largest rank that saves something is {}",
                                              args.power_sgd, most));
  }
  return sync::Ssgd::make(comm, tensors, optimizer_of(args),
                          {.rank = args.power_sgd, .warm_up_steps = args.power_sgd_warm_up, .seed = args.seed});
}

// One number a line, as record_order writes.
Result<std::vector<int>> read_order(const std::string& path) {
  std::ifstream in(path);
  if (!in) return Status(Code::kIo, fmt::format("cannot read {}: {}", path, std::strerror(errno)));
  std::vector<int> order;
  for (std::string line; std::getline(in, line);) {
    char* end = nullptr;
    const long worker = std::strtol(line.c_str(), &end, 10);
    if (line.empty() || *end != '\0' || worker < 0 || worker > 1'000'000) {
      return Status(Code::kInvalid, fmt::format("{}:{}: '{}' is no rank: the file is none that --record-order wrote",
                                                path, order.size() + 1, line));
    }
    order.push_back(static_cast<int>(worker));
  }
  if (order.empty()) return Status(Code::kInvalid, fmt::format("{} is empty", path));
  return order;
}

Result<std::unique_ptr<sync::Strategy>> make_asgd(Communicator& comm, const Args& args,
                                                  const std::vector<size_t>& counts) {
  const double part = static_cast<double>(args.batch) / comm.size();
  sync::ServerOptions options{
      .optimizer = optimizer_of(args),
      .compensation = {.lambda = args.delay_compensation_of_part > 0 ? args.delay_compensation_of_part * part
                                                                     : args.delay_compensation,
                       .adaptive = args.delay_compensation_adaptive,
                       .gradients = args.delay_compensation_gradients},
      .replicas =
          std::min(args.shard_replicas < 0 ? static_cast<int>(args.elastic) : args.shard_replicas, comm.size() - 1),
      .timeout_s = args.stall_timeout_s};
  options.order.bound = args.staleness < 0 ? sync::Sequencer::kUnbounded : static_cast<uint64_t>(args.staleness);
  options.order.seed = args.order_seed;
  if (!args.replay_order.empty() && comm.rank() == 0) {
    auto order = read_order(args.replay_order);
    if (!order.ok()) return order.status();
    options.order.order = std::move(*order);
  }
  return sync::Asgd::make(comm, counts, options);
}

Result<std::unique_ptr<sync::Strategy>> make_local(Communicator& comm, const Args& args,
                                                   const std::vector<size_t>& counts) {
  auto codec = parse_codec(args.codec);
  if (!codec.ok()) return codec.status();
  return sync::LocalSgd::make(comm, counts,
                              {.inner = optimizer_of(args),
                               .local_steps = args.local_step_count(),
                               .outer_lr = args.outer_rate(),
                               .outer_momentum = args.outer_beta(),
                               .fragments = args.fragments,
                               .overlap = args.overlap_steps,
                               .mix = args.overlap_steps == 0 ? 0 : args.mix,
                               .codec = *codec,
                               .feedback = args.error_feedback,
                               .keep_meetings = args.elastic});
}

}  // namespace

Result<std::unique_ptr<sync::Strategy>> make_strategy(Communicator& comm, const Args& args,
                                                      const std::vector<ParameterShape>& parameters,
                                                      std::shared_ptr<sync::DeviceGradients> device) {
  if (args.power_sgd > 0) return make_power_sgd(comm, args, parameters);
  std::vector<size_t> counts;
  std::vector<bool> plain;
  for (const auto& p : parameters) {
    counts.push_back(p.elems());
    plain.push_back(!p.matrix);
  }
  if (args.sync == "asgd") return make_asgd(comm, args, counts);
  if (args.sync == "local" || args.sync == "diloco") return make_local(comm, args, counts);
  auto buckets = buckets_of(args);
  if (!buckets.ok()) return buckets.status();
  buckets->device = std::move(device);
  return args.sync == "zero1" ? sync::Zero1::make(comm, counts, optimizer_of(args), *buckets, plain)
                              : sync::Ssgd::make(comm, counts, optimizer_of(args), *buckets, plain);
}

Status record_order(const Args& args, sync::Strategy& strategy) {
  const auto* asgd = dynamic_cast<const sync::Asgd*>(&strategy);
  if (args.record_order.empty() || asgd == nullptr) return {};
  std::ofstream out(args.record_order, std::ios::trunc);
  for (int worker : asgd->order()) out << worker << '\n';
  out.close();
  if (out) return {};
  return Status(Code::kIo, fmt::format("cannot write {}: {}", args.record_order, std::strerror(errno)));
}

}  // namespace ringfold::train
