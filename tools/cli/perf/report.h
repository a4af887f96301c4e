// How measured rows are shown: a table and JSON lines as they come, a JSON object, a picture.
#pragma once

#include <string>
#include <vector>

#include "tools/cli/perf/measure.h"

namespace ringfold::cli {

std::string table_head(const PerfOptions& options);
std::string table_line(const Row& row, const PerfOptions& options);
// One line for each cell of the row: a JSON object as in the list "rows" of json_of.
std::string json_lines(const Row& row, const PerfOptions& options);
// The JSON object of --json; `hosts` by rank, `library` as it calls itself.
std::string json_of(const std::vector<Row>& rows, const PerfOptions& options, const std::vector<std::string>& hosts,
                    const std::string& library);
// Bus bandwidth and time against size, one curve per operation.
std::string picture_of(const std::vector<Row>& rows, const PerfOptions& options);

long long wrong_in(const Row& row);

}  // namespace ringfold::cli
