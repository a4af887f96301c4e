// `ringfold report`: a page of a training run's log.
#include <fmt/format.h>

#include <optional>

#include "tools/cli/cli.h"
#include "tools/cli/report/page.h"
#include "tools/cli/report/trace.h"

namespace ringfold::cli {

int report(const ReportOptions& options) {
  const auto fail = [](const Status& status) {
    fmt::print(stderr, "ringfold report: {}\n", status.message());
    return status.code() == Code::kIo ? kExitEnvironment : kExitFailed;
  };
  auto log = read_run_log(options.log);
  if (!log.ok()) return fail(log.status());
  std::optional<SpanChart> timeline;
  if (!options.trace.empty()) {
    auto trace = read_trace(options.trace);
    if (!trace.ok()) return fail(trace.status());
    timeline = std::move(*trace);
  }
  const std::string output = options.output.empty() ? options.log + ".html" : options.output;
  if (!write_file(output, page(*log, timeline ? &*timeline : nullptr, options.log))) return kExitEnvironment;
  fmt::print("{}\n", output);
  return kExitOk;
}

}  // namespace ringfold::cli
