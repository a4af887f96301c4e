// `ringfold perf`: measures operations over a range of sizes, and checks every result.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <thread>

#include "tools/cli/cli.h"
#include "tools/cli/perf/measure.h"
#include "tools/cli/perf/report.h"

namespace ringfold::cli {
namespace {

struct Task {
  std::vector<const Operation*> operations;
  Case shape;
  size_t min = 0, max = 0;
};

int usage(const std::string& text) {
  fmt::print(stderr, "ringfold perf: {}\n", text);
  return kExitUsage;
}

int complain(const Status& status) {
  fmt::print(stderr, "ringfold perf: {}\n", status.to_string());
  return status.code() == Code::kInvalid ? kExitUsage : kExitEnvironment;
}

int plan_task(const PerfOptions& options, Task* task) {
  if (options.op == "all") {
    for (const auto& operation : operations()) task->operations.push_back(operation.get());
  } else if (const auto* operation = find_operation(options.op)) {
    task->operations.push_back(operation);
  } else {
    std::string names;
    for (const auto& o : operations()) names += fmt::format(" {}", o->name());
    return usage(fmt::format("there is no operation \"{}\"; there are: all{}", options.op, names));
  }
  const auto type = parse_data_type(options.type);
  if (!type) return usage(fmt::format("--type {}: it takes f64 f32 f16 bf16 i8 u8 i32 u32 i64 u64", options.type));
  const auto kind = parse_reduce_kind(options.redop);
  if (!kind) return usage(fmt::format("--op {}: it takes sum prod min max avg scaled_sum", options.redop));
  if (*kind == ReduceKind::kScaledSum && !is_float(*type)) return usage("--op scaled_sum is for floating types");
  const long long min = parse_size(options.min), max = parse_size(options.max);
  if (min < 0 || max < min) {
    return usage(fmt::format("--min {} --max {}: they take bytes such as 8, 64K or 1G, the second not less",
                             options.min, options.max));
  }
  if (options.in_place == "in" && task->operations.size() == 1 && !task->operations[0]->has_in_place()) {
    return usage(fmt::format("{} has no form in place", options.op));
  }
  task->min = static_cast<size_t>(min);
  task->max = static_cast<size_t>(max);
  task->shape.type = *type;
  task->shape.op = *kind;
  if (*kind == ReduceKind::kScaledSum) task->shape.op.scale = options.scale;
  return kExitOk;
}

// The sizes of one operation's rows, as its blocks make them: none twice.
std::vector<size_t> blocks_for(const Task& task, const PerfOptions& options, const Operation& operation, int ranks) {
  if (!operation.has_size()) return {0};
  std::vector<size_t> blocks;
  for (size_t bytes = task.min; bytes <= task.max; bytes *= static_cast<size_t>(options.factor)) {
    const size_t block = operation.block_for(bytes, task.shape.type, ranks);
    if (blocks.empty() || blocks.back() != block) blocks.push_back(block);
    if (bytes == 0) bytes = 1;
  }
  return blocks;
}

std::vector<std::string> hosts_of(const Communicator& comm) {
  std::vector<std::string> hosts;
  for (int r = 0; r < comm.size(); ++r) hosts.push_back(comm.host_of(r));
  return hosts;
}

void print_head(const PerfOptions& options, const std::vector<std::string>& hosts) {
  fmt::print("# ringfold perf {}: {} rank{}", options.op, hosts.size(), hosts.size() == 1 ? "" : "s");
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

// What one rank does; equal on all ranks, but only rank 0 speaks.
int run_rank(Communicator& comm, const PerfOptions& options, Task task, bool threads) {
  task.shape.ranks = comm.size();
  task.shape.root = options.root;
  if (options.root < 0 || options.root >= comm.size()) {
    return comm.rank() != 0 ? kExitUsage
                            : usage(fmt::format("--root {}: there are ranks 0 to {}", options.root, comm.size() - 1));
  }
  const bool speaks = comm.rank() == 0, table = speaks && !options.quiet;
  const bool live = speaks && ::isatty(STDERR_FILENO) == 1;
  const auto hosts = hosts_of(comm);
  if (table) print_head(options, hosts);
  Bench bench(comm, options, threads);
  std::vector<Row> rows;
  for (const Operation* operation : task.operations) {
    if (comm.size() < operation->least_ranks()) {
      if (table) fmt::print("# {} takes at least {} ranks\n", operation->name(), operation->least_ranks());
      continue;
    }
    for (const size_t block : blocks_for(task, options, *operation, comm.size())) {
      task.shape.block = block;
      if (live) fmt::print(stderr, "\r{} {} ... \r", operation->name(), size_text(operation->bytes_of(task.shape)));
      auto row = bench.measure(*operation, task.shape);
      if (!row.ok()) {
        fmt::print(stderr, "ringfold perf: rank {}: {} of {} bytes: {}\n", comm.rank(), operation->name(),
                   operation->bytes_of(task.shape), row.status().to_string());
        return kExitFailed;
      }
      rows.push_back(*std::move(row));
      if (table) {
        if (live) fmt::print(stderr, "\r\033[K");
        fmt::print("{}", table_line(rows.back(), options));
        std::fflush(stdout);
      }
    }
  }
  // All ranks leave together, so that none is told off for going before the others.
  if (Status status = comm.barrier().wait(); !status.ok()) return complain(status);
  if (!speaks) return kExitOk;
  long long wrong = 0;
  double sum = 0;
  int cells = 0;
  for (const Row& row : rows) {
    wrong += wrong_in(row);
    for (const Cell* cell : {&row.out_of_place, &row.in_place}) {
      if (!cell->measured || !row.operation->has_size()) continue;
      sum += cell->busbw;
      ++cells;
    }
  }
  if (table) {
    if (cells > 0) fmt::print("# average bus bandwidth: {:.3f} GB/s\n", sum / cells);
    fmt::print("# wrong elements: {}\n", options.check ? std::to_string(wrong) : "not checked");
    std::fflush(stdout);
  }
  bool written = options.json.empty() || write_file(options.json, json_of(rows, options, hosts));
  written = (options.plot.empty() || write_file(options.plot, picture_of(rows))) && written;
  if (wrong > 0) return kExitFailed;
  return written ? kExitOk : kExitEnvironment;
}

int run_threads(const PerfOptions& options, const Task& task, const Options& settings) {
  auto comms = Communicator::init_local(options.ranks, settings);
  if (!comms.ok()) return complain(comms.status());
  std::vector<int> results(comms->size());
  std::vector<std::thread> threads;
  for (size_t r = 0; r < comms->size(); ++r) {
    threads.emplace_back([&, r] { results[r] = run_rank((*comms)[r], options, task, true); });
  }
  for (auto& thread : threads) thread.join();
  for (const int result : results) {
    if (result != kExitOk) return result;
  }
  return kExitOk;
}

}  // namespace

int perf(const PerfOptions& options, const std::vector<std::string>& self) {
  Task task;
  if (const int result = plan_task(options, &task); result != kExitOk) return result;
  Options settings;
  // "auto" is what the library does by itself, so RINGFOLD_TRANSPORT still counts then.
  if (options.transport != "auto") settings.transport = options.transport;
  if (options.algorithm != "auto") settings.algorithm = options.algorithm;
  if (options.transport == "loopback") {
    if (options.ranks < 1) return usage("--transport loopback runs ranks as threads: say how many with --ranks");
    settings.transport.clear();
    return run_threads(options, task, settings);
  }
  if (options.ranks > 0 || !options.hosts.empty()) {
    JobOptions job;
    job.command = self;
    job.ranks = options.ranks;
    job.hosts = options.hosts;
    job.prefix = false;
    job.expected_status = kExitFailed;
    return run_job(job);
  }
  auto comm = Communicator::init(settings);
  if (!comm.ok()) return complain(comm.status());
  return run_rank(*comm, options, task, false);
}

}  // namespace ringfold::cli
