#include "train/main.h"

#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "ringfold/communicator.h"
#include "train/args.h"
#include "train/dataset.h"
#include "train/report.h"
#include "train/stop.h"
#include "train/trainer.h"

namespace ringfold::train {
namespace {

int fail(const Status& status) {
  fmt::print(stderr, "ringfold-train: {}\n", status.to_string());
  return 1;
}

Result<Dataset> load(const Args& args) {
  return args.spec().is_text() ? load_text(args.data, static_cast<size_t>(args.context), args.limit_samples)
                               : load_fashion_mnist(args.data, args.limit_samples);
}

Result<Summary> run(Communicator& comm, Args args, const Dataset& data, Reporter& reporter) {
  if (args.goal_samples > 0) {
    // Whole passes: the last one is not cut.
    const double each = static_cast<double>(data.train.size() * data.train.targets());
    args.epochs = std::max(1, static_cast<int>(std::ceil(args.goal_samples / each)));
  }
  // A goal may be reached at any time, and a test costs a third of what training on as many samples does: seldom
  // enough to cost little, often enough to end soon.
  if (args.free_tests) args.test_every = std::max<size_t>(1, data.train.size() / 3);
  return train(comm, args, data, reporter);
}

}  // namespace

int train_main(int argc, char** argv) {
  Args args;
  if (auto code = parse_args(argc, argv, args)) return *code;
  use_one_thread();

  if (!args.checkpoint.empty()) save_on_sigterm();

  Options options;
  options.background = args.background;
  options.codec = args.codec;  // so that "auto" knows the links
  options.open = (args.elastic || !args.goal.empty()) && !args.cut();
  // Before the others may begin to wait for this rank, if it comes back; otherwise they hear of it when it fails.
  std::optional<Result<Dataset>> data;
  if (std::getenv("RINGFOLD_RESTARTED") != nullptr) data.emplace(load(args));
  auto comm = Communicator::init(options);
  if (!comm.ok()) return fail(comm.status());
  if (!data) data.emplace(load(args));
  auto reporter = Reporter::make(args, comm->epoch() > 0 ? -1 : comm->rank());
  Result<Summary> summary = Status(Code::kInternal, "not begun");
  if (!reporter.ok() || !data->ok()) {
    summary = !reporter.ok() ? reporter.status() : data->status();
  } else {
    summary = run(*comm, args, **data, *reporter);
  }
  if (!summary.ok()) {
    // What only this rank knows, the others hear as the verdict.
    if (!summary.status().verdict()) comm->abort(summary.status().message());
    if (reporter.ok()) reporter->failed(summary.status());
    return fail(summary.status());
  }
  if (Status closed = reporter->close(); !closed.ok()) return fail(closed);
  if (summary->left_out) {
    const char* status = std::getenv(kLeftOutVariable);
    return args.dry_run || status == nullptr ? 0 : std::atoi(status);
  }
  if (summary->stopped) return 128 + SIGTERM;
  if (summary->test_accuracy >= args.target_accuracy) return 0;
  if (reporter->tells())
    fmt::print(stderr, "ringfold-train: the target, test accuracy {}, was not reached\n", args.target_accuracy);
  return 1;
}

}  // namespace ringfold::train
