// Traces in Chrome's format, in which timelines of pipelines are exported.
#pragma once

#include <cstddef>
#include <string>

#include "ringfold/status.h"
#include "tools/cli/report/chart.h"

namespace ringfold::cli {

// The complete spans ("ph": "X") of a trace, in milliseconds from the first; a row for each thread of each process.
// At most the first `most` of them. kIo: cannot be read. kInvalid: no such trace, or none with spans.
Result<SpanChart> read_trace(const std::string& path, size_t most = 4000);

}  // namespace ringfold::cli
