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

Result<Summary> run(Communicator& comm, Args args, Reporter& reporter) {
  auto data = args.spec().is_text() ? load_text(args.data, static_cast<size_t>(args.context), args.limit_samples)
                                    : load_fashion_mnist(args.data, args.limit_samples);
  if (!data.ok()) return data.status();
  if (args.goal_samples > 0) {
    // Whole passes: the last one is not cut.
    const double each = static_cast<double>(data->train.size() * data->train.targets());
    args.epochs = std::max(1, static_cast<int>(std::ceil(args.goal_samples / each)));
  }
  return train(comm, args, *data, reporter);
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
  auto comm = Communicator::init(options);
  if (!comm.ok()) return fail(comm.status());
  auto reporter = Reporter::make(args, comm->rank());
  auto summary = reporter.ok() ? run(*comm, args, *reporter) : reporter.status();
  if (!summary.ok()) {
    // What only this rank knows, the others hear as the verdict.
    if (!summary.status().verdict()) comm->abort(summary.status().message());
    if (reporter.ok()) reporter->failed(summary.status());
    return fail(summary.status());
  }
  if (Status closed = reporter->close(); !closed.ok()) return fail(closed);
  if (summary->left_out) return 0;
  if (summary->stopped) return 128 + SIGTERM;
  if (summary->test_accuracy >= args.target_accuracy) return 0;
  if (comm->rank() == 0)
    fmt::print(stderr, "ringfold-train: the target, test accuracy {}, was not reached\n", args.target_accuracy);
  return 1;
}

}  // namespace ringfold::train
