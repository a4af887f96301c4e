#include "tools/cli/perf/measure.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <set>

#include "base/clock.h"
#include "tools/cli/perf/pattern.h"

namespace ringfold::cli {
namespace {

using base::Clock;

Counters read_counters(bool thread) {
  rusage usage{};
  ::getrusage(thread ? RUSAGE_THREAD : RUSAGE_SELF, &usage);
  const auto us = [](const timeval& t) {
    return 1e6 * static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec);
  };
  return {us(usage.ru_utime) + us(usage.ru_stime), static_cast<double>(usage.ru_nvcsw + usage.ru_nivcsw),
          static_cast<double>(usage.ru_minflt + usage.ru_majflt)};
}

// The smallest value that a share of at least `share` of all does not exceed.
double percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(values.size())));
  return values[std::clamp<size_t>(rank, 1, values.size()) - 1];
}

}  // namespace

void Release::operator()(char* memory) const { malloced ? std::free(memory) : deallocate(memory); }

Status Bench::reserve(Memory* memory, size_t* capacity, size_t bytes) const {
  if (bytes <= *capacity) return {};
  memory->reset();
  *capacity = 0;
  if (options_.memory == "malloc") {
    *memory = Memory(static_cast<char*>(std::malloc(bytes)), {true});
    if (!*memory) return {Code::kUnavailable, fmt::format("no memory for a buffer of {} bytes", bytes)};
  } else {
    auto found = allocate(bytes);
    if (!found.ok()) return found.status();
    *memory = Memory(static_cast<char*>(*found), {false});
  }
  *capacity = bytes;
  return {};
}

Result<double> Bench::agree(double value, ReduceOp op) {
  RINGFOLD_TRY(comm_.all_reduce(&value, &value, 1, DataType::kF64, op).wait());
  return value;
}

std::string Bench::transport() const {
  std::set<std::string> names;
  for (int r = 0; r < comm_.size(); ++r) {
    if (r != comm_.rank()) names.insert(comm_.transport_to(r));
  }
  if (names.empty()) return "self";
  std::string result;
  for (const auto& name : names) result += (result.empty() ? "" : "+") + name;
  return result;
}

Result<Row> Bench::measure(const Operation& operation, const Case& shape) {
  Row row{&operation, shape, transport(), "-", operation.bytes_of(shape), {}, {}};
  const bool in = operation.has_in_place() && options_.in_place != "out";
  const bool out = !operation.has_in_place() || options_.in_place != "in";
  for (const bool in_place : {false, true}) {
    if (!(in_place ? in : out)) continue;
    auto cell = measure_cell(operation, shape, in_place);
    if (!cell.ok()) return cell.status();
    (in_place ? row.in_place : row.out_of_place) = *cell;
  }
  if (const auto collective = operation.collective()) {
    row.algorithm = comm_.algorithm_for(*collective, shape.block, shape.type, shape.op, shape.root);
  }
  return row;
}

Result<Cell> Bench::measure_cell(const Operation& operation, const Case& shape, bool in_place) {
  const Layout layout = operation.layout(shape, comm_.rank());
  const size_t width = size_of(shape.type);
  const size_t input_bytes = layout.input_elems * width, output_bytes = layout.output_elems * width;
  const size_t shared =
      std::max((layout.input_at + layout.input_elems), (layout.output_at + layout.output_elems)) * width;
  if (!in_place) RINGFOLD_TRY(reserve(&input_, &input_capacity_, input_bytes));
  RINGFOLD_TRY(reserve(&output_, &output_capacity_, in_place ? shared : output_bytes));
  char* const input = in_place ? output_.get() + layout.input_at * width : input_.get();
  char* const output = in_place ? output_.get() + layout.output_at * width : output_.get();
  const Pattern pattern(shape.type, shape.op, operation.reduced(), shape.ranks);

  const auto once = [&] { return operation.start(comm_, shape, input_bytes > 0 ? input : nullptr, output).wait(); };
  const auto prepare = [&] {
    for (const Part& part : layout.result)
      pattern.poison(output + part.at * width, part.elems, part.source, part.from);
    pattern.fill(input, layout.input_elems, comm_.rank(), 0);
  };
  double wrong = 0;
  const auto checked_call = [&]() -> Status {
    prepare();
    RINGFOLD_TRY(comm_.barrier().wait());
    RINGFOLD_TRY(once());
    if (options_.spoil && comm_.rank() == 0 && output_bytes > 0) output[output_bytes / 2] ^= 0x10;
    for (const Part& part : layout.result) {
      wrong += static_cast<double>(pattern.wrong(output + part.at * width, part.elems, part.source, part.from));
    }
    return {};
  };

  Cell cell;
  cell.measured = true;
  if (options_.check) {
    RINGFOLD_TRY(checked_call());
  } else {
    prepare();
  }
  for (int i = 0; i < options_.warmup; ++i) RINGFOLD_TRY(once());
  const auto timed = [&]() -> Result<double> {
    RINGFOLD_TRY(comm_.barrier().wait());
    const auto begin = Clock::now();
    RINGFOLD_TRY(once());
    return 1e6 * base::seconds_of(Clock::now() - begin);
  };
  cell.iterations = options_.iterations;
  if (cell.iterations == 0) {
    auto trial = timed();
    if (!trial.ok()) return trial.status();
    auto longest = agree(*trial, kMax);
    if (!longest.ok()) return longest.status();
    cell.iterations = static_cast<int>(std::clamp(1e6 * options_.budget_s / std::max(*longest, 1.0), 3.0, 1000.0));
  }
  std::vector<double> times;
  times.reserve(static_cast<size_t>(cell.iterations));
  const Counters before = read_counters(thread_per_rank_);
  for (int i = 0; i < cell.iterations; ++i) {
    auto time = timed();
    if (!time.ok()) return time.status();
    times.push_back(*time);
  }
  const Counters after = read_counters(thread_per_rank_);
  RINGFOLD_TRY(comm_.all_reduce(times.data(), times.data(), times.size(), DataType::kF64, kMax).wait());
  if (options_.check) RINGFOLD_TRY(checked_call());

  const double transfers = operation.transfers(shape);
  const double calls = transfers * cell.iterations;
  cell.p50_us = percentile(times, 0.50) / transfers;
  cell.p99_us = percentile(times, 0.99) / transfers;
  const double bytes = static_cast<double>(operation.bytes_of(shape));
  cell.algbw = bytes / (1e3 * std::max(cell.p50_us, 1e-3));
  cell.busbw = cell.algbw * operation.bus_factor(shape.ranks);
  std::array<double, 4> sums = {wrong, (after.cpu_us - before.cpu_us) / calls,
                                (after.switches - before.switches) / calls, (after.faults - before.faults) / calls};
  RINGFOLD_TRY(comm_.all_reduce(sums.data(), sums.data(), sums.size(), DataType::kF64, kSum).wait());
  if (options_.check) cell.wrong = static_cast<long long>(sums[0]);
  cell.counters = {sums[1], sums[2], sums[3]};
  return cell;
}

}  // namespace ringfold::cli
