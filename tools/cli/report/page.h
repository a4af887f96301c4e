// The page that `ringfold report` makes of a run: one HTML file that needs nothing else.
#pragma once

#include <string>

#include "tools/cli/report/chart.h"
#include "tools/cli/report/run_log.h"

namespace ringfold::cli {

// `timeline`, if not null, is drawn as the pipeline's. `source`: where the log lies, for the foot of the page.
std::string page(const RunLog& log, const SpanChart* timeline, const std::string& source);

}  // namespace ringfold::cli
