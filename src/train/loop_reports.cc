// What the training loop tells: the log, where the ranks' time went, the saved model, who computed what.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "train/learning_rate.h"
#include "train/loop.h"
#include "train/passes.h"

namespace ringfold::train {

double Loop::exposed_s() const { return stats().exposed_s + waited_before_s_ + passes_->waited_s(); }

sync::StrategyStats Loop::stats() const {
  sync::StrategyStats now = strategy_->stats();
  now.exposed_s += before_.exposed_s;
  now.in_flight_s += before_.in_flight_s;
  now.bytes += before_.bytes;
  now.sent_bytes += before_.sent_bytes;
  return now;
}

Status Loop::log_step() {
  const size_t done = steps_done();
  auto losses = strategy_->losses();
  if (!losses.ok()) return losses.status();
  RINGFOLD_TRY(sum_over_stages(&losses->loss, 1));
  const double seconds = spent_.seconds - logged_.seconds;
  reporter_.step(
      {.epoch = epoch_,
       .step = done,
       .loss = losses->loss / (std::max(losses->samples, 1.0) * static_cast<double>(data_.train.targets())),
       .lr = learning_rate(args_, done - 1, steps_of_run()),
       .samples_per_s = losses->samples / seconds,
       .comm_share = (spent_.exposed_s - logged_.exposed_s) / seconds});
  told_ = done;
  if (strategy_->in_step()) RINGFOLD_TRY(share_times(done, spent_.steps - shared_.steps));
  logged_ = spent_;
  return {};
}

// Where the time of the ranks went since the last call, in so many steps; and what the agent makes of it.
Status Loop::share_times(size_t done, size_t steps) {
  const size_t n = static_cast<size_t>(axes_.job.size());
  const double seconds = spent_.seconds - shared_.seconds, exposed = spent_.exposed_s - shared_.exposed_s;
  const std::array<double, 5> own = {seconds - exposed, exposed, spent_.samples - shared_.samples,
                                     spent_.loss - shared_.loss, now_s() - run_began_s_};
  std::vector<std::array<double, 5>> all(n);
  RINGFOLD_TRY(axes_.job.all_gather(&own, all.data(), own.size(), DataType::kF64).wait());
  Observation seen{.step = done, .steps = steps, .compute_s = {}, .exposed_s = {}, .samples = {}, .staleness = {}};
  double samples = 0;
  for (const auto& [compute_s, exposed_s, of_rank, loss, elapsed_s] : all) {
    seen.compute_s.push_back(compute_s);
    seen.exposed_s.push_back(exposed_s);
    seen.samples.push_back(static_cast<size_t>(of_rank));
    samples += of_rank;
    seen.loss += loss;
  }
  // One stage of a pipeline knows losses, and all know samples.
  const double stages = axes_.pipeline() ? axes_.pipeline()->size() : 1;
  seen.loss *= stages / std::max(samples * static_cast<double>(data_.train.targets()), 1.0);
  RINGFOLD_TRY(share_staleness(seen.staleness));
  shared_ = spent_;
  shared_at_ = done;
  reporter_.times(seen);
  if (args_.within_s > 0 && all[0].back() > args_.within_s) {  // by rank 0's clock
    late_ = true;
    return {};
  }
  if (!agent_ || seen.steps == 0) return {};
  const auto decision = agent_->observe(seen);
  if (!decision) return {};
  reporter_.decision(*decision);
  return change_to(agent_->settings());
}

// How late updates were since the last call: rank 0 knows.
Status Loop::share_staleness(std::vector<uint64_t>& late) {
  if (strategy_->in_step()) return {};
  late = stats().staleness;
  const std::vector<uint64_t> now = late;
  staleness_shared_.resize(now.size());
  for (size_t k = 0; k < now.size(); ++k) late[k] -= std::min(now[k], staleness_shared_[k]);
  staleness_shared_ = now;
  while (!late.empty() && late.back() == 0) late.pop_back();
  uint64_t size = late.size();
  RINGFOLD_TRY(comm_.broadcast(&size, &size, 1, DataType::kU64, 0).wait());
  late.resize(size);
  return comm_.broadcast(late.data(), late.data(), size, DataType::kU64, 0).wait();
}

// After merge(): ranks that are not in step have met.
Status Loop::meet() {
  if (strategy_->in_step()) return {};
  const size_t done = steps_done();
  return share_times(done, done - std::min(done, shared_at_));
}

Status Loop::share_figures(Summary& summary) {
  const sync::StrategyStats stats = this->stats();
  const double seconds = spent_.seconds;
  double sums[5] = {seconds > 0 ? exposed_s() / seconds : 0,
                    stats.in_flight_s > 0 ? std::max(0.0, 1 - stats.exposed_s / stats.in_flight_s) : 0,
                    static_cast<double>(stats.bytes), static_cast<double>(stats.sent_bytes),
                    static_cast<double>(spent_.steps)};
  RINGFOLD_TRY(axes_.job.all_reduce(sums, sums, 5, DataType::kF64).wait());
  summary.comm_share = sums[0] / axes_.job.size();
  summary.overlap = sums[1] / axes_.job.size();
  summary.bytes_per_step = sums[2] / std::max(sums[4], 1.0);
  summary.sent_bytes = sums[3];
  summary.staleness = stats.staleness;
  return {};
}

Status Loop::save(const Summary& summary) const {
  About about{.model = args_.spec(), .data = describe_data(args_)};
  if (writes_) about.data_digest = data_.train.digest();
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
  return passes_->save(args_.save, std::move(about), writes_);
}

// One rank of each replica, a line at a time, on disk before the samples count.
Status Loop::open_record() {
  const bool first_of_replica =
      (!axes_.pipeline() || axes_.pipeline()->rank() == 0) && (!axes_.tensor() || axes_.tensor()->rank() == 0);
  if (args_.record_samples.empty() || !first_of_replica) record_.close();
  if (args_.record_samples.empty() || !first_of_replica || record_.is_open()) return {};
  std::error_code error;
  std::filesystem::create_directories(args_.record_samples, error);
  const std::string path = fmt::format("{}/rank-{}", args_.record_samples, axes_.job.job_rank());
  record_.open(path, std::ios::app);
  if (record_) return {};
  return Status(Code::kIo, fmt::format("cannot write {}: {}", path, std::strerror(errno)));
}

void Loop::record(size_t step, std::span<const uint32_t> samples) {
  if (!record_.is_open()) return;
  record_ << fmt::format("{} {} {}\n", changes_, step, fmt::join(samples, " ")) << std::flush;
}

}  // namespace ringfold::train
