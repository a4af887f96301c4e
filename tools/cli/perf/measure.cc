#include "tools/cli/perf/measure.h"

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>

#include "base/clock.h"
#include "tools/cli/perf/pattern.h"

namespace ringfold::cli {
namespace {

using base::Clock;

// Sums since the start of the program.
std::array<double, 11> read_counters(Library& library, bool thread) {
  rusage usage{};
  ::getrusage(thread ? RUSAGE_THREAD : RUSAGE_SELF, &usage);
  const auto us = [](const timeval& t) {
    return 1e6 * static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec);
  };
  const ringfold::Counters own = library.counters();
  return {us(usage.ru_utime) + us(usage.ru_stime),
          static_cast<double>(usage.ru_nvcsw + usage.ru_nivcsw),
          static_cast<double>(usage.ru_minflt + usage.ru_majflt),
          static_cast<double>(own.system_calls),
          static_cast<double>(own.wakeups),
          static_cast<double>(own.touched_bytes),
          static_cast<double>(own.puts),
          static_cast<double>(own.put_bytes),
          static_cast<double>(own.work_requests),
          static_cast<double>(own.doorbells),
          static_cast<double>(own.completions)};
}

// The smallest value that a share of at least `share` of all does not exceed.
double percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(values.size())));
  return values[std::clamp<size_t>(rank, 1, values.size()) - 1];
}

// The same bytes again, a word in each cache line: other cores lose what they have of it.
void write_anew(char* data, size_t bytes) {
  constexpr size_t kLine = 64;
  for (size_t at = 0; at < bytes; at += kLine) {
    auto* word = static_cast<volatile char*>(data + at);
    *word = *word;
  }
}

}  // namespace

Status Bench::reserve(Memory* memory, size_t* capacity, size_t bytes) {
  if (bytes <= *capacity) return {};
  memory->reset();
  *capacity = 0;
  auto found = library_.allocate(bytes);
  if (!found.ok()) return found.status();
  *memory = *std::move(found);
  *capacity = bytes;
  return {};
}

Result<std::vector<Row>> Bench::measure(const Operation& operation, const Case& shape) {
  const bool in = operation.has_in_place() && options_.in_place != "out";
  const bool out = !operation.has_in_place() || options_.in_place != "in";
  std::vector<Row> rows;
  std::vector<std::string> variants;  // of the rows
  for (const bool in_place : {false, true}) {
    if (!(in_place ? in : out)) continue;
    for (const std::string& variant : library_.variants(operation, shape, in_place)) {
      auto cell = measure_cell(operation, shape, variant, in_place);
      if (!cell.ok()) return cell.status();
      auto at = static_cast<size_t>(std::find(variants.begin(), variants.end(), variant) - variants.begin());
      if (at == rows.size()) {
        variants.push_back(variant);
        rows.push_back({&operation,
                        shape,
                        library_.transport(),
                        library_.algorithm(operation, shape, variant),
                        operation.bytes_of(shape),
                        {},
                        {}});
      }
      (in_place ? rows[at].in_place : rows[at].out_of_place) = *cell;
    }
  }
  return rows;
}

Result<Cell> Bench::measure_cell(const Operation& operation, const Case& shape, const std::string& variant,
                                 bool in_place) {
  const double error = error_bound(library_.codec(operation, shape));
  const bool check = options_.check && std::isfinite(error);  // a codec without a bound cannot be checked
  const Layout layout = library_.layout(operation, shape, in_place);
  const size_t width = size_of(shape.type);
  const size_t input_bytes = layout.input_elems * width, output_bytes = layout.output_elems * width;
  const size_t shared =
      std::max((layout.input_at + layout.input_elems), (layout.output_at + layout.output_elems)) * width;
  if (!in_place) RINGFOLD_TRY(reserve(&input_, &input_capacity_, input_bytes));
  RINGFOLD_TRY(reserve(&output_, &output_capacity_, in_place ? shared : output_bytes));
  char* const input = in_place ? output_.get() + layout.input_at * width : input_.get();
  char* const output = in_place ? output_.get() + layout.output_at * width : output_.get();
  const Pattern pattern(shape.type, shape.op, operation.reduced(), shape.ranks, error);

  auto call = library_.prepare(operation, shape, variant, {input_bytes > 0 ? input : nullptr, output, in_place});
  if (!call.ok()) return call.status();
  const auto once = [&call = **call] { return call.run(); };
  const auto prepare = [&] {
    for (const Part& part : layout.result)
      pattern.poison(output + part.at * width, part.elems, part.source, part.from);
    pattern.fill(input, layout.input_elems, library_.rank(), 0);
  };
  double wrong = 0;
  const auto checked_call = [&]() -> Status {
    prepare();
    RINGFOLD_TRY(library_.barrier());
    RINGFOLD_TRY(once());
    if (options_.spoil && library_.rank() == 0 && output_bytes > 0) output[output_bytes / 2] ^= 0x10;
    for (const Part& part : layout.result) {
      wrong += static_cast<double>(pattern.wrong(output + part.at * width, part.elems, part.source, part.from));
    }
    return {};
  };

  Cell cell;
  cell.measured = true;
  if (check) {
    RINGFOLD_TRY(checked_call());
  } else {
    prepare();
  }
  for (int i = 0; i < options_.warmup; ++i) RINGFOLD_TRY(once());
  const auto timed = [&]() -> Result<double> {
    if (options_.fresh) write_anew(input, input_bytes);
    RINGFOLD_TRY(library_.barrier());
    const auto begin = Clock::now();
    RINGFOLD_TRY(once());
    return 1e6 * base::seconds_of(Clock::now() - begin);
  };
  cell.iterations = options_.iterations;
  if (cell.iterations == 0) {
    // The shortest of three, where that is soon done: one that loses a time slice must not make a row of three calls.
    constexpr double kLong = 1e5;
    double shortest = 1e12;
    for (int i = 0; i < 3 && (i == 0 || shortest < kLong); ++i) {
      auto trial = timed();
      if (!trial.ok()) return trial.status();
      RINGFOLD_TRY(library_.agree({&*trial, 1}, ReduceKind::kMax));
      shortest = std::min(shortest, *trial);
    }
    cell.iterations = static_cast<int>(std::clamp(1e6 * options_.budget_s / std::max(shortest, 1.0), 3.0, 1000.0));
  }
  std::vector<double> times;
  times.reserve(static_cast<size_t>(cell.iterations));
  for (int i = 0; i < cell.iterations; ++i) {
    auto time = timed();
    if (!time.ok()) return time.status();
    times.push_back(*time);
  }
  // What a call costs is counted over calls that nothing else is between.
  const auto before = read_counters(library_, thread_per_rank_);
  for (int i = 0; options_.counters && i < cell.iterations; ++i) RINGFOLD_TRY(once());
  const auto after = read_counters(library_, thread_per_rank_);
  RINGFOLD_TRY(library_.agree(times, ReduceKind::kMax));
  if (check) RINGFOLD_TRY(checked_call());

  const auto transfers = static_cast<double>(operation.transfers(shape));
  const double calls = transfers * cell.iterations;
  cell.p50_us = percentile(times, 0.50) / transfers;
  cell.p99_us = percentile(times, 0.99) / transfers;
  const double bytes = static_cast<double>(operation.bytes_of(shape));
  cell.algbw = bytes / (1e3 * std::max(cell.p50_us, 1e-3));
  cell.busbw = cell.algbw * operation.bus_factor(shape.ranks);
  std::array<double, std::tuple_size_v<decltype(before)> + 1> sums{};
  for (size_t i = 0; i < before.size(); ++i) sums[i] = (after[i] - before[i]) / calls;
  sums.back() = wrong;
  RINGFOLD_TRY(library_.agree(sums, ReduceKind::kSum));
  if (check) cell.wrong = static_cast<long long>(sums.back());
  cell.cost = {sums[0], sums[1], sums[2], sums[3], sums[4], sums[5] / std::max(1.0, bytes) / shape.ranks,
               sums[6], sums[7], sums[8], sums[9], sums[10]};
  return cell;
}

}  // namespace ringfold::cli
