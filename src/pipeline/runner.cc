#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "pipeline/clocks.h"
#include "pipeline/execution.h"

namespace ringfold::pipeline {
namespace {

class CommunicatorPort final : public Port {
 public:
  explicit CommunicatorPort(Communicator& comm) : comm_(comm) {}
  Work send(const void* data, size_t count, DataType type, int peer, int64_t tag, const CallOptions& o) override {
    return comm_.send(data, count, type, peer, tag, o);
  }
  Work recv(void* data, size_t count, DataType type, int peer, int64_t tag, const CallOptions& o) override {
    return comm_.recv(data, count, type, peer, tag, o);
  }

 private:
  Communicator& comm_;
};

Status invalid(const Schedule& schedule, const std::string& text) {
  return Status(Code::kInvalid, fmt::format("pipeline {}: {}", schedule.name, text));
}

// What this rank's side must be like before anything is sent.
Status check_options(const Communicator& comm, const Schedule& schedule, const Stages& stages,
                     const RunnerOptions& o) {
  RINGFOLD_TRY(check(schedule));
  if (schedule.ranks() != comm.size())
    return invalid(schedule,
                   fmt::format("a schedule for {} ranks on a communicator of {}", schedule.ranks(), comm.size()));
  if (o.keep_steps < 0) return invalid(schedule, fmt::format("keep_steps is {}: it must be 0 or more", o.keep_steps));
  if (o.ahead < 1) return invalid(schedule, fmt::format("ahead is {}: it must be 1 or more", o.ahead));
  if (!(o.timeout_s >= 0))
    return invalid(schedule, fmt::format("timeout_s is {}: it must be 0 or more", o.timeout_s));
  if (schedule.stages() > 1 << 20) return invalid(schedule, "more than 2^20 stages");
  for (const Codec& codec : {o.activations, o.gradients}) {
    RINGFOLD_TRY(ringfold::check(codec));
    if (codec.when_faster)
      return invalid(schedule, to_string(codec) + " is for collectives; a message is encoded or it is not");
  }
  if (!o.activations && !o.gradients) return {};
  for (int s = 0; s + 1 < schedule.stages(); ++s) {
    const int rank = schedule.rank_of[static_cast<size_t>(s)], next = schedule.rank_of[static_cast<size_t>(s) + 1];
    if (rank == next || (rank != comm.rank() && next != comm.rank())) continue;
    for (int i = 0; i < schedule.micro_batches; ++i) {
      if (const DataType type = stages.boundary(s, i).type; type != DataType::kF32)
        return invalid(schedule, fmt::format("codecs are for f32; stage {} hands on {}", s, name_of(type)));
    }
  }
  return {};
}

// All ranks say what they are going to do; the first that differs from rank 0 is named.
Status agree(Communicator& comm, const Schedule& schedule, const RunnerOptions& o) {
  uint64_t mine[2] = {schedule.hash(), 0};
  for (const char c : to_string(o.activations) + " " + to_string(o.gradients))
    mine[1] = mine[1] * 1099511628211ULL + static_cast<unsigned char>(c);
  std::vector<uint64_t> all(2 * static_cast<size_t>(comm.size()));
  RINGFOLD_TRY(comm.all_gather(mine, all.data(), 2, DataType::kU64).wait());
  for (size_t r = 1; r < static_cast<size_t>(comm.size()); ++r) {
    if (all[2 * r] == all[0] && all[2 * r + 1] == all[1]) continue;
    return Status(Code::kMismatch, fmt::format("pipeline {}: rank {} has {} than rank 0", schedule.name, r,
                                               all[2 * r] != all[0] ? "another schedule" : "other codecs"));
  }
  return {};
}

}  // namespace

class Runner::Impl {
 public:
  Impl(Communicator& comm, Schedule schedule, Stages& stages, const RunnerOptions& options)
      : comm_(comm),
        schedule_(std::move(schedule)),
        options_(options),
        execution_(schedule_, stages, std::make_shared<CommunicatorPort>(comm),
                   {.rank = comm.rank(), .runner = options}) {}

  Status step() {
    RINGFOLD_TRY(error_);
    execution_.begin(options_.timeout_s > 0 ? base::Deadline::after(base::duration_of(options_.timeout_s))
                                            : base::Deadline::never());
    for (;;) {
      auto progress = execution_.advance();
      if (!progress.ok()) return fail(progress.status());
      if (*progress == Execution::Progress::kDone) return {};
      if (*progress == Execution::Progress::kBlocked) {
        if (Status s = execution_.wait(); !s.ok()) return fail(s);
      }
    }
  }

  Status flush() {
    RINGFOLD_TRY(error_);
    if (Status s = execution_.exchange().flush(); !s.ok()) return fail(s);
    return {};
  }

  Result<Timing> timeline(int steps) {
    const size_t length = schedule_.actions[static_cast<size_t>(comm_.rank())].size();
    std::vector<Span>& spans = execution_.spans();
    if (!options_.record) return invalid(schedule_, "no timeline without RunnerOptions::record");
    // Enough for all, or an error on all.
    const size_t done = length > 0 ? spans.size() / length : SIZE_MAX;
    int64_t least = static_cast<int64_t>(std::min<size_t>(done, INT32_MAX));
    RINGFOLD_TRY(comm_.all_reduce(&least, &least, 1, DataType::kI64, kMin).wait());
    if (steps < 1 || steps > least)
      return invalid(schedule_, fmt::format("a timeline of {} steps: {} are recorded", steps, least));
    std::vector<Span> mine(spans.end() - static_cast<int64_t>(length) * steps, spans.end());
    auto offset = clock_offset(comm_, [] { return base::seconds_of(base::Clock::now().time_since_epoch()); });
    if (!offset.ok()) return offset.status();
    for (Span& span : mine) {
      span.begin -= *offset;
      span.end -= *offset;
    }
    std::vector<size_t> counts;
    for (const auto& list : schedule_.actions) counts.push_back(list.size() * static_cast<size_t>(steps) * 2);
    std::vector<double> times, all(std::accumulate(counts.begin(), counts.end(), size_t{0}));
    for (const Span& span : mine) times.insert(times.end(), {span.begin, span.end});
    RINGFOLD_TRY(comm_.all_gather_v(times.data(), all.data(), counts, DataType::kF64).wait());
    // The actions are known; only their times travel.
    std::vector<Span> everything;
    size_t at = 0;
    for (int r = 0; r < schedule_.ranks(); ++r) {
      const auto& list = schedule_.actions[static_cast<size_t>(r)];
      for (size_t k = 0; k < list.size() * static_cast<size_t>(steps); ++k, at += 2)
        everything.push_back({r, list[k % list.size()], all[at], all[at + 1]});
    }
    return timing_of(schedule_, std::move(everything), steps);
  }

  Execution& execution() { return execution_; }

 private:
  // Tells everybody, if it is this rank's own failure; the communicator's verdict is the error.
  Status fail(const Status& status) {
    error_ = status;
    if (status.verdict() != nullptr) return error_;
    const Action* failed = execution_.failed();
    comm_.abort(fmt::format("pipeline {}: {}: {}", schedule_.name,
                            failed != nullptr ? to_string(*failed) : execution_.position(), status.to_string()));
    if (Status verdict = comm_.barrier().wait(); !verdict.ok()) error_ = verdict;
    return error_;
  }

  Communicator& comm_;
  const Schedule schedule_;
  const RunnerOptions options_;
  Status error_;
  Execution execution_;
};

Runner::Runner(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Runner::~Runner() = default;

Result<std::unique_ptr<Runner>> Runner::make(Communicator& comm, Schedule schedule, Stages& stages,
                                             const RunnerOptions& options) {
  RINGFOLD_TRY(check_options(comm, schedule, stages, options));
  RINGFOLD_TRY(agree(comm, schedule, options));
  return std::unique_ptr<Runner>(new Runner(std::make_unique<Impl>(comm, std::move(schedule), stages, options)));
}

Status Runner::step() { return impl_->step(); }
Status Runner::flush() { return impl_->flush(); }
std::string Runner::position() const { return impl_->execution().position(); }
int Runner::peak_activations() const { return impl_->execution().peak_activations(); }
size_t Runner::peak_bytes() const { return impl_->execution().exchange().peak_bytes(); }
Result<Timing> Runner::timeline(int steps) { return impl_->timeline(steps); }

}  // namespace ringfold::pipeline
