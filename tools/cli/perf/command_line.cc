#include "tools/cli/perf/command_line.h"

#include <CLI/CLI.hpp>

namespace ringfold::cli {

void add_measuring_options(CLI::App* app, PerfOptions* o) {
  app->add_option("operation", o->op,
                  "all, all_reduce, reduce, reduce_scatter, reduce_scatter_v, all_gather, all_gather_v, broadcast, "
                  "gather, scatter,\n"
                  "all_to_all, all_to_all_v, barrier, sendrecv (half a round trip), stream (a window of messages),\n"
                  "hot_sendrecv (a hundred round trips in a row), hot_stream (the whole window in the same memory)")
      ->required();
  app->add_option("--min", o->min, "Least size, bytes (K, M, G)")->capture_default_str();
  app->add_option("--max", o->max, "Greatest size")->capture_default_str();
  app->add_option("--factor", o->factor, "From one size to the next")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  app->add_option("--type", o->type, "f64 f32 f16 bf16 i8 u8 i32 u32 i64 u64")->capture_default_str();
  app->add_option("--op", o->redop, "sum prod min max avg scaled_sum")->capture_default_str();
  app->add_option("--scale", o->scale, "Factor of scaled_sum; powers of two keep the check exact")
      ->capture_default_str();
  app->add_option("--root", o->root, "Root of reduce, broadcast, gather, scatter")->capture_default_str();
  app->add_option("--iterations", o->iterations,
                  "Timed calls per cell (default: as many as fit the budget, 3 to 1000)")
      ->check(CLI::PositiveNumber);
  app->add_option("--budget", o->budget_s, "Seconds of timed calls per cell")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--warmup", o->warmup, "Calls before the timed ones")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app->add_flag("--check,!--no-check", o->check, "Compare every element with the exact result (default: yes)");
  app->add_option("--in-place", o->in_place, "both, in, out")
      ->check(CLI::IsMember({"both", "in", "out"}))
      ->capture_default_str();
  app->add_option(
      "--json", o->json,
      "Also write the rows as JSON to this file; here and below, - is standard output, without the table");
  app->add_option("--rows", o->rows,
                  "Also write each row to this file as soon as it is measured: one JSON object a line");
  app->add_option("--plot", o->plot, "Also draw bandwidth and time over size: an SVG file");
  app->add_flag(
      "--counters", o->counters,
      "Also what a call with its barrier takes, over all ranks: processor time, calls to the system, ranks woken, "
      "context switches, page faults, and bytes touched (read or written) for each byte of each rank");
  app->add_flag(
      "--fresh", o->fresh,
      "Write each call's input anew before it, as programs do: else it may lie in the caches of those who read it "
      "at the last call");
  app->add_flag("--spoil", o->spoil, "Change one element of rank 0's results, to see that the check notices");
  app->add_flag("--quiet", o->quiet, "No table; the exit status tells");
}

}  // namespace ringfold::cli
