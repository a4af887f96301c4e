#include "train/report.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

namespace ringfold::train {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

// For people: 3 significant digits of a duration.
std::string duration(double seconds) {
  if (seconds < 100) return fmt::format("{:.1f} s", seconds);
  const auto whole = std::llround(seconds);
  return whole < 3600 ? fmt::format("{}:{:02}", whole / 60, whole % 60)
                      : fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string count(size_t n, const char* noun) { return fmt::format("{} {}{}", n, noun, n == 1 ? "" : "s"); }

// The strategy with what makes it what it is.
std::string how_of(const Args& a) {
  if (a.sync == "asgd") {
    std::string how = a.staleness < 0 ? "asgd, no bound" : fmt::format("asgd, staleness up to {} steps", a.staleness);
    if (a.delay_compensation_of_part > 0) {
      how += fmt::format(", delay compensation of {} times the samples of a part (covariance of {} gradients)",
                         a.delay_compensation_of_part, a.delay_compensation_gradients);
    } else if (a.delay_compensation > 0) {
      how += fmt::format(", delay compensation {}{}", a.delay_compensation,
                         a.delay_compensation_gradients > 0
                             ? fmt::format(" (covariance of {} gradients)", a.delay_compensation_gradients)
                         : a.delay_compensation_adaptive ? " (adaptive)"
                                                         : "");
    }
    return how;
  }
  if (a.sync != "local" && a.sync != "diloco") return a.sync;
  return fmt::format("{}, meeting every {}, outer rate {} momentum {}", a.sync,
                     count(static_cast<size_t>(a.local_step_count()), "step"), a.outer_rate(), a.outer_beta());
}

// Mean and largest of a histogram.
std::pair<double, size_t> spread(const std::vector<uint64_t>& histogram) {
  double sum = 0, all = 0;
  for (size_t k = 0; k < histogram.size(); ++k) {
    sum += static_cast<double>(k) * static_cast<double>(histogram[k]);
    all += static_cast<double>(histogram[k]);
  }
  return {all > 0 ? sum / all : 0, histogram.empty() ? 0 : histogram.size() - 1};
}

}  // namespace

struct Reporter::Impl {
  Args args;
  bool terminal = false;
  std::ofstream log;
  StartEvent start;
  StepEvent last;
  Clock::time_point next_line = Clock::now();
  bool line_open = false;  // a progress line without its end stands on the terminal

  void write(const Json& event) {
    // Flushed, so that the log of a run that is killed says how far it came.
    if (log.is_open()) log << event.dump() << std::endl;
  }
  std::string quality(double loss, double accuracy) const {
    if (!args.spec().is_text()) return fmt::format("test accuracy {:.4f}", accuracy);
    return fmt::format("test {:.4f} bits per byte (perplexity {:.3f}), {:.1f} % of bytes right", bits_per_byte(loss),
                       std::exp(loss), 100 * accuracy);
  }
  // Of a run: "5 epochs", or "1250 steps (1.3 epochs)" where it ended within one.
  std::string length(const Summary& s) const {
    const size_t each = start.steps / static_cast<size_t>(args.epochs);
    const std::string steps = count(s.steps, "step");
    if (each == 0) return steps;
    if (s.epochs > 0 && s.steps % each == 0) return count(static_cast<size_t>(s.epochs), "epoch");
    return fmt::format("{} ({:.1f} epochs)", steps, static_cast<double>(s.steps) / static_cast<double>(each));
  }
  void say(const std::string& line) {
    std::string text = line_open ? "\r\033[K" : "";
    line_open = false;
    text += line + "\n";
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }
};

Reporter::Reporter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Reporter::Reporter(Reporter&&) noexcept = default;
Reporter::~Reporter() = default;

Result<Reporter> Reporter::make(const Args& args, int rank) {
  if (rank != 0) return Reporter(nullptr);
  auto impl = std::make_unique<Impl>();
  impl->args = args;
  impl->terminal = isatty(STDOUT_FILENO) == 1;
  if (!args.json.empty()) {
    impl->log.open(args.json, std::ios::trunc);
    if (!impl->log) return Status(Code::kIo, fmt::format("cannot write {}: {}", args.json, std::strerror(errno)));
  }
  return Reporter(std::move(impl));
}

void Reporter::start(const StartEvent& e) {
  if (!impl_) return;
  const Args& a = impl_->args;
  impl_->start = e;
  Json event = {{"event", "start"},
                {"model", a.model},
                {"parameters", e.parameters},
                {"ranks", e.ranks},
                {"transport", e.transport},
                {"epochs", a.epochs},
                {"batch", a.batch},
                {"seed", a.seed},
                {"optimizer", a.optimizer},
                {"lr", a.peak_lr()},
                {"schedule", a.schedule},
                {"momentum", a.momentum},
                {"weight_decay", a.weight_decay},
                {"train_samples", e.train_samples},
                {"test_samples", e.test_samples},
                {"steps", e.steps},
                {"buckets", e.buckets},
                {"sync", a.sync},
                {"codec", a.sync == "asgd" ? "none" : a.codec},
                {"error_feedback", a.error_feedback},
                {"tensor_parallel", e.tensor_parallel},
                {"pipeline", e.pipeline},
                {"power_sgd", a.power_sgd},
                {"power_sgd_warm_up", a.power_sgd_warm_up},
                {"bytes_per_step", e.bytes_per_step},
                {"how", how_of(a)},
                {"resumed_at", e.resumed_at}};
  if (e.pipeline > 1) {
    event["pipeline_schedule"] = a.pipeline_schedule;
    event["micro_batches"] = e.micro_batches;
    event["layers_of_stages"] = e.layers_of_stages;
  }
  impl_->write(event);
  const double share =
      100.0 * static_cast<double>(e.bytes_per_step) / static_cast<double>(e.parameters_of_rank * sizeof(float));
  std::string how = "in " + count(e.buckets, "bucket");
  if (a.sync == "asgd") how = fmt::format("in {} of a server", count(static_cast<size_t>(e.ranks), "shard"));
  if (a.sync == "local" || a.sync == "diloco") how = "in " + count(e.buckets, "fragment");
  if (a.sync != "asgd" && a.codec != "none") how += fmt::format(" as {} ({:.3g} % of the bytes)", a.codec, share);
  if (a.power_sgd != 0) how = fmt::format("as products of rank {} ({:.3g} % of the bytes)", a.power_sgd, share);
  if (e.pipeline > 1) {
    how += fmt::format(", {} layers on {} ranks ({}, {})", fmt::join(e.layers_of_stages, "+"), e.pipeline,
                       a.pipeline_schedule,
                       fmt::format("{} micro-batch{}", e.micro_batches, e.micro_batches == 1 ? "" : "es"));
  }
  if (e.tensor_parallel > 1) how += fmt::format(", each layer on {} ranks", e.tensor_parallel);
  impl_->say(fmt::format("{}: {} {}, {}, {}{}, {}, batch {}, {} in {}", a.model, count(e.parameters, "parameter"),
                         how, how_of(a), count(static_cast<size_t>(e.ranks), "rank"),
                         e.ranks == 1 ? "" : " over " + e.transport, count(e.train_samples, "sample"), a.batch,
                         count(e.steps, "step"), count(static_cast<size_t>(a.epochs), "epoch")));
}

void Reporter::step(const StepEvent& e) {
  if (!impl_) return;
  impl_->last = e;
  impl_->write({{"event", "step"},
                {"epoch", e.epoch},
                {"step", e.step},
                {"loss", e.loss},
                {"lr", e.lr},
                {"samples_per_s", e.samples_per_s},
                {"comm_share", e.comm_share}});
}

void Reporter::epoch(const EpochEvent& e) {
  if (!impl_) return;
  Json event = {{"event", "epoch"}, {"epoch", e.epoch}, {"train_loss", e.train_loss}};
  std::string test;
  if (e.tested) {
    event["test_loss"] = e.test_loss;
    event["test_accuracy"] = e.test_accuracy;
    test = impl_->quality(e.test_loss, e.test_accuracy);
    if (impl_->args.spec().is_text()) event["bits_per_byte"] = bits_per_byte(e.test_loss);
  }
  event["replicas_equal"] = e.replicas_equal;
  event["seconds"] = e.seconds;
  event["elapsed_s"] = e.elapsed_s;
  event["trained_s"] = e.trained_s;
  impl_->write(event);
  impl_->say(fmt::format("epoch {}/{}: loss {:.4f}{}{}, {}", e.epoch, impl_->args.epochs, e.train_loss,
                         test.empty() ? "" : ", ", test, duration(e.seconds)));
}

void Reporter::test(const TestEvent& e) {
  if (!impl_) return;
  impl_->write({{"event", "test"},
                {"epochs", e.epochs},
                {"step", e.step},
                {"test_loss", e.test_loss},
                {"test_accuracy", e.test_accuracy},
                {"elapsed_s", e.elapsed_s},
                {"trained_s", e.trained_s}});
  impl_->say(fmt::format("step {}: {}", e.step, impl_->quality(e.test_loss, e.test_accuracy)));
}

void Reporter::decision(const Decision& d) {
  if (!impl_) return;
  Json event = {{"event", "decision"}, {"step", d.step}, {"seen", d.seen}, {"changed", d.changed}};
  if (!d.outcome.empty()) event["outcome"] = d.outcome;
  impl_->write(event);
  impl_->say(
      fmt::format("step {}: {}: {}{}", d.step, d.seen, d.changed, d.outcome.empty() ? "" : " (" + d.outcome + ")"));
}

void Reporter::times(const Observation& seen) {
  if (!impl_ || seen.steps == 0) return;
  impl_->write({{"event", "times"},
                {"step", seen.step},
                {"steps", seen.steps},
                {"compute_s", seen.compute_s},
                {"exposed_s", seen.exposed_s},
                {"samples", seen.samples}});
}

void Reporter::plan(const Args& args, const std::string& table, const std::string& transport, double seconds) {
  if (!impl_) return;
  impl_->args = args;
  impl_->write({{"event", "plan"},
                {"goal", args.goal},
                {"transport", transport},
                {"seconds", seconds},
                {"considered", table}});
  impl_->say(fmt::format("plans for {}, over {}, by the predicted time to it, after {} of measuring:\n{}", args.goal,
                         transport, duration(seconds), std::string_view(table).substr(0, table.size() - 1)));
}

Status Reporter::take_over(const Args& args, const StartEvent& start) {
  if (impl_) return {};
  auto impl = std::make_unique<Impl>();
  impl->args = args;
  impl->start = start;
  impl->terminal = isatty(STDOUT_FILENO) == 1;
  if (!args.json.empty()) {
    impl->log.open(args.json, std::ios::app);
    if (!impl->log) return Status(Code::kIo, fmt::format("cannot write {}: {}", args.json, std::strerror(errno)));
  }
  impl_ = std::move(impl);
  return {};
}

void Reporter::timeline(const pipeline::Timing& timing) {
  if (!impl_ || timing.spans.empty()) return;
  Json spans = Json::array();
  const double first = timing.spans.front().begin;
  const auto ms = [&](double at) { return std::round((at - first) * 1e6) / 1e3; };
  for (const auto& s : timing.spans) {
    spans.push_back({s.rank, name_of(s.action.kind), s.action.stage, s.action.micro_batch, ms(s.begin), ms(s.end)});
  }
  impl_->write({{"event", "timeline"}, {"step_s", timing.step}, {"idle", timing.idle}, {"spans", std::move(spans)}});
}

void Reporter::end(const Summary& s) {
  if (!impl_) return;
  const auto [mean, largest] = spread(s.staleness);
  Json event = {{"event", "end"},
                {"test_accuracy", s.test_accuracy},
                {"replicas_equal", s.replicas_equal},
                {"samples_per_s", s.samples_per_s},
                {"seconds", s.seconds},
                {"comm_share", s.comm_share},
                {"overlap", s.overlap},
                {"bytes_per_step", s.bytes_per_step},
                {"stopped", s.stopped},
                {"sent_bytes", s.sent_bytes},
                {"staleness", s.staleness},
                {"mean_staleness", mean},
                {"epochs", s.epochs},
                {"steps", s.steps},
                {"train_loss", s.train_loss},
                {"test_loss", s.test_loss},
                {"ranks", s.ranks},
                {"replica_hash", fmt::format("{:016x}", s.replica_hash)}};
  if (impl_->args.spec().is_text()) event["bits_per_byte"] = bits_per_byte(s.test_loss);
  impl_->write(event);
  if (s.stopped) return impl_->say(fmt::format("stopped on request; {} --resume goes on", impl_->args.checkpoint));
  impl_->say(fmt::format(
      "{} after {} on {}: {}, {:.0f} samples/s, {:.0f} % of it waiting for communication, replicas {}{}",
      impl_->quality(s.test_loss, s.test_accuracy), impl_->length(s), count(static_cast<size_t>(s.ranks), "rank"),
      duration(s.seconds), s.samples_per_s, 100 * s.comm_share, s.replicas_equal ? "bitwise equal" : "DIFFER",
      impl_->args.sync == "asgd" ? fmt::format(", updates {:.1f} others late on average, {} at most", mean, largest)
                                 : ""));
}

void Reporter::failed(const Status& status) {
  if (!impl_) return;
  Json event = {{"event", "error"}, {"code", std::string(name_of(status.code()))}, {"message", status.to_string()}};
  if (const Verdict* v = status.verdict()) {
    event["verdict"] = {{"rank", v->rank},         {"host", v->host},   {"operation", v->operation},
                        {"sequence", v->sequence}, {"epoch", v->epoch}, {"cause", v->cause}};
  }
  if (impl_->line_open) impl_->say("");
  impl_->write(event);
}

void Reporter::progress(int epoch, size_t done, double seconds_per_step) {
  if (!impl_ || impl_->last.step == 0) return;
  const auto now = Clock::now();
  if (now < impl_->next_line) return;
  impl_->next_line = now + (impl_->terminal ? std::chrono::milliseconds(200) : std::chrono::seconds(5));
  const size_t steps = impl_->start.steps;
  const std::string line =
      fmt::format("epoch {}/{}  step {}/{}  loss {:.4f}  {:.0f} samples/s  comm {:.0f} %  {} left", epoch,
                  impl_->args.epochs, done, steps, impl_->last.loss, impl_->last.samples_per_s,
                  100 * impl_->last.comm_share, duration(seconds_per_step * static_cast<double>(steps - done)));
  if (!impl_->terminal) return impl_->say(line);
  const std::string text = "\r\033[K" + line;
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
  impl_->line_open = true;
}

Status Reporter::close() {
  if (!impl_ || !impl_->log.is_open()) return {};
  impl_->log.close();
  if (!impl_->log)
    return Status(Code::kIo, fmt::format("{} is incomplete: it could not be written", impl_->args.json));
  return {};
}

}  // namespace ringfold::train
