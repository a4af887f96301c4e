#include "tools/cli/perf/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "ringfold/version.h"
#include "tools/cli/host_facts.h"
#include "tools/cli/perf/plot.h"

namespace ringfold::cli {
namespace {

using nlohmann::ordered_json;

std::string redop_of(const Row& row) {
  return row.operation->reduced() ? std::string(name_of(row.shape.op.kind)) : "none";
}

// Five digits at most, and as many of them behind the point as that leaves.
std::string figure(double value) {
  if (value >= 1000) return fmt::format("{:.0f}", value);
  return fmt::format("{:.{}f}", value, value >= 100 ? 1 : value >= 10 ? 2 : 3);
}

std::string cell_text(const Cell& cell, bool counters) {
  const int width = 41 + (counters ? 49 : 0);
  if (!cell.measured) return fmt::format("{:>{}}", "-", width);
  auto text = fmt::format("{:>9}{:>9}{:>8}{:>8}{:>7}", figure(cell.p50_us), figure(cell.p99_us), figure(cell.algbw),
                          figure(cell.busbw), cell.wrong < 0 ? "n/a" : std::to_string(cell.wrong));
  if (counters) {
    const Cost& c = cell.cost;
    text += fmt::format("{:>9}{:>9}{:>8}{:>8}{:>7}{:>8}", figure(c.cpu_us), figure(c.calls), figure(c.wakeups),
                        figure(c.switches), figure(c.faults), figure(c.touched));
  }
  return text;
}

// What RDMA took, beside the least that so many puts can do with: a write and the receive that it uses up, one
// doorbell and one completion each.
std::string rdma_text(const Cell& cell, const char* place) {
  const Cost& c = cell.cost;
  if (!cell.measured || c.work_requests == 0) return "";
  return fmt::format(
      "# {:>14} {}: {} puts of {} bytes in all; {} work requests (least {}), {} doorbells ({}), {} completions "
      "({})\n",
      "an operation,", place, figure(c.puts), figure(c.put_bytes), figure(c.work_requests), figure(2 * c.puts),
      figure(c.doorbells), figure(c.puts), figure(c.completions), figure(c.puts));
}

std::vector<ordered_json> entries_of(const Row& row, const PerfOptions& options) {
  std::vector<ordered_json> entries;
  const size_t plus = row.algorithm.find('+');  // "direct+int8"
  for (const Cell* cell : {&row.out_of_place, &row.in_place}) {
    if (!cell->measured) continue;
    entries.push_back({{"op", row.operation->name()},
                       {"type", name_of(row.shape.type)},
                       {"redop", redop_of(row)},
                       {"ranks", row.shape.ranks},
                       {"transport", row.transport},
                       {"algorithm", row.algorithm.substr(0, plus)},
                       {"codec", plus == std::string::npos ? "none" : row.algorithm.substr(plus + 1)},
                       {"bytes", row.bytes},
                       {"in_place", cell == &row.in_place},
                       {"time_us_p50", cell->p50_us},
                       {"time_us_p99", cell->p99_us},
                       {"algbw_GBps", cell->algbw},
                       {"busbw_GBps", cell->busbw},
                       {"wrong", std::max(0LL, cell->wrong)},
                       {"checked", cell->wrong >= 0},
                       {"iterations", cell->iterations}});
    if (options.counters) {
      entries.back()["cpu_us"] = cell->cost.cpu_us;
      entries.back()["system_calls"] = cell->cost.calls;
      entries.back()["wakeups"] = cell->cost.wakeups;
      entries.back()["switches"] = cell->cost.switches;
      entries.back()["faults"] = cell->cost.faults;
      entries.back()["touched_per_byte"] = cell->cost.touched;
      entries.back()["puts"] = cell->cost.puts;
      entries.back()["put_bytes"] = cell->cost.put_bytes;
      entries.back()["work_requests"] = cell->cost.work_requests;
      entries.back()["doorbells"] = cell->cost.doorbells;
      entries.back()["completions"] = cell->cost.completions;
    }
  }
  return entries;
}

}  // namespace

long long wrong_in(const Row& row) {
  return std::max(0LL, row.out_of_place.wrong) + std::max(0LL, row.in_place.wrong);
}

std::string table_head(const PerfOptions& options) {
  const char* counters = options.counters ? "      cpu    calls   wakes  switch  fault touched" : "";
  const char* counter_units = options.counters ? "     (us)    (/op)   (/op)   (/op)  (/op)   (B/B)" : "";
  const std::string more = options.counters ? std::string(49, ' ') : "";
  std::string text = fmt::format("#{:>77}{}{:>41}\n", "out of place", more, "in place");
  text += fmt::format("#{:>15}{:>12}{:>11}{:>5}{:>11}{:>17}{:>10}", "operation", "size", "count", "type", "redop",
                      "algorithm", "transport");
  for (int i = 0; i < 2; ++i)
    text += fmt::format("{:>9}{:>9}{:>8}{:>8}{:>7}{}", "p50", "p99", "algbw", "busbw", "wrong", counters);
  text += fmt::format("\n#{:>15}{:>12}{:>11}{:>5}{:>11}{:>17}{:>10}", "", "(B)", "(elements)", "", "", "", "");
  for (int i = 0; i < 2; ++i)
    text += fmt::format("{:>9}{:>9}{:>8}{:>8}{:>7}{}", "(us)", "(us)", "(GB/s)", "(GB/s)", "", counter_units);
  return text + "\n";
}

std::string table_line(const Row& row, const PerfOptions& options) {
  const size_t count = row.operation->has_size() ? row.shape.block : 0;
  auto text = fmt::format("{:>16}{:>12}{:>11}{:>5}{:>11}{:>17}{:>10}{}{}\n", row.operation->name(), row.bytes, count,
                          name_of(row.shape.type), redop_of(row), row.algorithm, row.transport,
                          cell_text(row.out_of_place, options.counters), cell_text(row.in_place, options.counters));
  if (options.counters) text += rdma_text(row.out_of_place, "out of place") + rdma_text(row.in_place, "in place");
  return text;
}

std::string json_lines(const Row& row, const PerfOptions& options) {
  std::string text;
  for (const auto& entry : entries_of(row, options)) text += entry.dump() + "\n";
  return text;
}

std::string json_of(const std::vector<Row>& rows, const PerfOptions& options, const std::vector<std::string>& hosts,
                    const std::string& library) {
  ordered_json list = ordered_json::array();
  for (const Row& row : rows) {
    for (auto& entry : entries_of(row, options)) list.push_back(std::move(entry));
  }
  const HostFacts facts = host_facts();
  const ordered_json all = {{"ringfold", RINGFOLD_VERSION},
                            {"library", library},
                            {"hosts", hosts},
                            {"host",
                             {{"name", facts.name},
                              {"processor", facts.processor},
                              {"cpus", facts.cpus},
                              {"cores", facts.cores},
                              {"cpu_limit", facts.cpu_limit},
                              {"memory", facts.memory},
                              {"kernel", facts.kernel}}},
                            {"rows", std::move(list)}};
  return all.dump(1) + "\n";
}

std::string picture_of(const std::vector<Row>& rows, const PerfOptions& options) {
  Panel bandwidth{"Bus bandwidth", "GB/s", {}}, time{"Time (median)", "us", {}};
  std::set<std::string> transports;
  const Operation* before = nullptr;
  for (const Row& row : rows) {
    transports.insert(row.transport);
    if (!row.operation->has_size()) continue;
    const Cell& cell = row.out_of_place.measured ? row.out_of_place : row.in_place;
    if (row.operation != before) {
      before = row.operation;
      bandwidth.series.push_back({std::string(row.operation->name()), {}});
      time.series.push_back({std::string(row.operation->name()), {}});
    }
    const auto bytes = static_cast<double>(row.bytes);
    bandwidth.series.back().points.push_back({bytes, cell.busbw});
    time.series.back().points.push_back({bytes, cell.p50_us});
  }
  std::string title = options.program;
  if (!rows.empty()) {
    title += fmt::format(": {} ranks, {}", rows[0].shape.ranks, name_of(rows[0].shape.type));
    for (const auto& transport : transports) title += ", " + transport;
  }
  return plot(title, {bandwidth, time});
}

}  // namespace ringfold::cli
