#include "tools/cli/report/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

namespace ringfold::cli {

Result<SpanChart> read_trace(const std::string& path, size_t most) {
  std::ifstream file(path);
  if (!file) return Status(Code::kIo, fmt::format("cannot read {}: {}", path, std::strerror(errno)));
  SpanChart chart{.x_label = "ms", .rows = {}, .spans = {}};
  using Thread = std::pair<int64_t, int64_t>;  // process and thread
  std::map<Thread, size_t> rows;
  std::vector<Thread> threads;  // by span
  try {
    const auto json = nlohmann::json::parse(file);
    for (const auto& event : json.is_object() ? json.at("traceEvents") : json) {
      if (event.value("ph", std::string()) != "X") continue;
      const double begin = event.at("ts").get<double>() / 1e3;
      const auto name = event.at("name").get<std::string>();
      threads.emplace_back(event.value("pid", int64_t{0}), event.value("tid", int64_t{0}));
      rows[threads.back()] = 0;
      chart.spans.push_back({0, begin, begin + event.at("dur").get<double>() / 1e3, event.value("cat", name), name});
    }
  } catch (const std::exception& error) {
    return Status(Code::kInvalid, fmt::format("{} is no trace in Chrome's format: {}", path, error.what()));
  }
  if (chart.spans.empty()) return Status(Code::kInvalid, fmt::format("{} has no spans", path));
  const bool one_process = rows.begin()->first.first == rows.rbegin()->first.first;
  for (auto& [thread, row] : rows) {
    row = chart.rows.size();
    chart.rows.push_back(one_process ? fmt::format("{}", thread.second)
                                     : fmt::format("{}/{}", thread.first, thread.second));
  }
  for (size_t i = 0; i < threads.size(); ++i) chart.spans[i].row = rows.at(threads[i]);
  std::sort(chart.spans.begin(), chart.spans.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
  if (chart.spans.size() > most) chart.spans.resize(most);
  const double first = chart.spans.front().begin;
  for (auto& span : chart.spans) {
    span.begin -= first;
    span.end -= first;
  }
  return chart;
}

}  // namespace ringfold::cli
