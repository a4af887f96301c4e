#include "tools/cli/perf/sweep.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <memory>

#include "ringfold/codec.h"
#include "tools/cli/perf/measure.h"
#include "tools/cli/perf/report.h"

namespace ringfold::cli {
namespace {

// The sizes of one operation's rows, as its blocks make them: none twice.
std::vector<size_t> blocks_for(const Sweep& sweep, const PerfOptions& options, const Operation& operation,
                               int ranks) {
  if (!operation.has_size()) return {0};
  std::vector<size_t> blocks;
  for (size_t bytes = sweep.min; bytes <= sweep.max; bytes *= static_cast<size_t>(options.factor)) {
    const size_t block = operation.block_for(bytes, sweep.shape.type, ranks);
    if (blocks.empty() || blocks.back() != block) blocks.push_back(block);
    if (bytes == 0) bytes = 1;
  }
  return blocks;
}

void print_head(const PerfOptions& options, const std::vector<std::string>& hosts) {
  fmt::print("# {} {}: {} rank{}", options.program, options.op, hosts.size(), hosts.size() == 1 ? "" : "s");
  for (size_t r = 0; r < hosts.size();) {  // "ranks 0-3 on a"
    size_t end = r + 1;
    while (end < hosts.size() && hosts[end] == hosts[r]) ++end;
    fmt::print("{} {}{} on {}", r == 0 ? ":" : ",", r, end - r > 1 ? fmt::format("-{}", end - 1) : "", hosts[r]);
    r = end;
  }
  fmt::print(
      "\n# time of an iteration: the longest of all ranks, after a barrier; GB/s are 10^9 bytes per second\n{}",
      table_head(options));
  std::fflush(stdout);
}

// Standard output carries a file, and nothing else.
bool pipes(const PerfOptions& options) { return options.json == "-" || options.rows == "-" || options.plot == "-"; }

// Rows as they come, one JSON object a line: what has been measured is there however the process ends. The line
// {"end": true} says that nothing is missing.
class RowFile {
 public:
  bool open(const std::string& path) {
    file_.reset(path == "-" ? ::fdopen(::dup(STDOUT_FILENO), "w") : std::fopen(path.c_str(), "w"));
    if (!file_) fmt::print(stderr, "{}: cannot be written\n", path);
    return file_ != nullptr;
  }
  void write(const std::string& lines) const {
    if (!file_) return;
    std::fputs(lines.c_str(), file_.get());
    std::fflush(file_.get());
  }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::unique_ptr<std::FILE, Close> file_;
};

// What the table ends with. Whether every element was right.
bool sum_up(const std::vector<Row>& rows, bool table) {
  long long wrong = 0;
  double sum = 0;
  int cells = 0;
  bool checked = false;
  for (const Row& row : rows) {
    wrong += wrong_in(row);
    for (const Cell* cell : {&row.out_of_place, &row.in_place}) {
      checked |= cell->wrong >= 0;
      if (!cell->measured || !row.operation->has_size()) continue;
      sum += cell->busbw;
      ++cells;
    }
  }
  if (table) {
    if (cells > 0) fmt::print("# average bus bandwidth: {:.3f} GB/s\n", sum / cells);
    fmt::print("# wrong elements: {}\n", checked ? std::to_string(wrong) : "not checked");
    std::fflush(stdout);
  }
  return wrong == 0;
}

}  // namespace

int usage(const PerfOptions& options, const std::string& text) {
  fmt::print(stderr, "{}: {}\n", options.program, text);
  return kExitUsage;
}

int complain(const PerfOptions& options, const Status& status) {
  fmt::print(stderr, "{}: {}\n", options.program, status.to_string());
  return status.code() == Code::kInvalid ? kExitUsage : kExitEnvironment;
}

int plan_sweep(const PerfOptions& options, Sweep* sweep) {
  if (options.op == "all") {
    for (const auto& operation : operations()) sweep->operations.push_back(operation.get());
  } else if (const auto* operation = find_operation(options.op)) {
    sweep->operations.push_back(operation);
  } else {
    std::string names;
    for (const auto& o : operations()) names += fmt::format(" {}", o->name());
    return usage(options, fmt::format("there is no operation \"{}\"; there are: all{}", options.op, names));
  }
  const auto type = parse_data_type(options.type);
  if (!type) {
    return usage(options, fmt::format("--type {}: it takes f64 f32 f16 bf16 i8 u8 i32 u32 i64 u64", options.type));
  }
  const auto kind = parse_reduce_kind(options.redop);
  if (!kind) return usage(options, fmt::format("--op {}: it takes sum prod min max avg scaled_sum", options.redop));
  if (*kind == ReduceKind::kScaledSum && !is_float(*type)) {
    return usage(options, "--op scaled_sum is for floating types");
  }
  const long long min = parse_size(options.min), max = parse_size(options.max);
  if (min < 0 || max < min) {
    return usage(options, fmt::format("--min {} --max {}: they take bytes such as 8, 64K or 1G, the second not less",
                                      options.min, options.max));
  }
  if ((options.json == "-") + (options.rows == "-") + (options.plot == "-") > 1) {
    return usage(options, "--json, --rows, --plot: only one of them can be -, the standard output");
  }
  if (options.in_place == "in" && sweep->operations.size() == 1 && !sweep->operations[0]->has_in_place()) {
    return usage(options, fmt::format("{} has no form in place", options.op));
  }
  sweep->min = static_cast<size_t>(min);
  sweep->max = static_cast<size_t>(max);
  sweep->shape.type = *type;
  sweep->shape.op = *kind;
  if (const auto codec = parse_codec(options.codec.empty() ? "none" : options.codec); !codec.ok()) {
    return usage(options, "--codec: " + codec.status().message());
  }
  if (*kind == ReduceKind::kScaledSum) sweep->shape.op.scale = options.scale;
  return kExitOk;
}

int run_sweep(Library& library, const PerfOptions& options, Sweep sweep, bool threads) {
  sweep.shape.ranks = library.size();
  sweep.shape.root = options.root;
  const bool speaks = library.rank() == 0, table = speaks && !options.quiet && !pipes(options);
  if (options.root < 0 || options.root >= library.size()) {
    return !speaks
               ? kExitUsage
               : usage(options, fmt::format("--root {}: there are ranks 0 to {}", options.root, library.size() - 1));
  }
  RowFile file;
  if (speaks && !options.rows.empty() && !file.open(options.rows)) return kExitEnvironment;
  const bool live = speaks && ::isatty(STDERR_FILENO) == 1;
  std::vector<std::string> hosts;
  for (int r = 0; r < library.size(); ++r) hosts.push_back(library.host_of(r));
  if (table) print_head(options, hosts);
  Bench bench(library, options, threads);
  std::vector<Row> rows;
  for (const Operation* operation : sweep.operations) {
    if (library.size() < operation->least_ranks()) {
      if (table) fmt::print("# {} takes at least {} ranks\n", operation->name(), operation->least_ranks());
      continue;
    }
    for (const size_t block : blocks_for(sweep, options, *operation, library.size())) {
      sweep.shape.block = block;
      const size_t bytes = operation->bytes_of(sweep.shape);
      if (live) fmt::print(stderr, "\r{} {} ... \r", operation->name(), size_text(bytes));
      auto measured = bench.measure(*operation, sweep.shape);
      if (!measured.ok()) {
        fmt::print(stderr, "{}: rank {}: {} of {} bytes: {}\n", options.program, library.rank(), operation->name(),
                   bytes, measured.status().to_string());
        return kExitFailed;
      }
      if (live) fmt::print(stderr, "\r\033[K");
      for (Row& row : *measured) {
        if (speaks) file.write(json_lines(row, options));
        if (table) fmt::print("{}", table_line(row, options));
        rows.push_back(std::move(row));
      }
      if (table) std::fflush(stdout);
      if (measured->empty()) {
        if (table) {
          fmt::print("# {} of {}: {} is not measured for it\n", operation->name(), name_of(sweep.shape.type),
                     library.about());
        }
        break;
      }
    }
  }
  // All ranks leave together, so that none is told off for going before the others.
  if (Status status = library.barrier(); !status.ok()) return complain(options, status);
  if (!speaks) return kExitOk;
  file.write("{\"end\": true}\n");
  const bool right = sum_up(rows, table);
  bool written = options.json.empty() || write_file(options.json, json_of(rows, options, hosts, library.about()));
  written = (options.plot.empty() || write_file(options.plot, picture_of(rows, options))) && written;
  if (!right) return kExitFailed;
  return written ? kExitOk : kExitEnvironment;
}

}  // namespace ringfold::cli
