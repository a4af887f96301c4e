// Timelines: one clock for all ranks, and the trace format of Chrome and Perfetto.
#include <fmt/format.h>

#include <limits>
#include <map>
#include <tuple>

#include "pipeline/clocks.h"
#include "pipeline/play.h"

namespace ringfold::pipeline {
namespace {

constexpr int64_t kClockTag = int64_t{1} << 62 | int64_t{0xfffffff} << 32;  // no stage has this number
constexpr int kRounds = 8;

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      result += '\\';
      result += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      result += fmt::format("\\u{:04x}", static_cast<int>(c));
    } else {
      result += c;
    }
  }
  return result;
}

}  // namespace

// Asks rank 0 for its time, as often; of the quickest answer the time lies in the middle of the round trip, half of
// that off at most.
Result<double> clock_offset(Communicator& comm, const std::function<double()>& now, bool even_here) {
  double offset = 0, best = std::numeric_limits<double>::infinity();
  for (int r = 1; r < comm.size(); ++r) {
    if (!even_here && comm.host_of(r) == comm.host_of(0)) continue;
    for (int round = 0; round < kRounds; ++round) {
      double there = 0;
      if (comm.rank() == r) {
        const double sent = now();
        RINGFOLD_TRY(comm.send(nullptr, 0, DataType::kU8, 0, kClockTag).wait());
        RINGFOLD_TRY(comm.recv(&there, 1, DataType::kF64, 0, kClockTag).wait());
        const double back = now();
        if (back - sent >= best) continue;
        best = back - sent;
        offset = (sent + back) / 2 - there;
      } else if (comm.rank() == 0) {
        RINGFOLD_TRY(comm.recv(nullptr, 0, DataType::kU8, r, kClockTag).wait());
        there = now();
        RINGFOLD_TRY(comm.send(&there, 1, DataType::kF64, r, kClockTag).wait());
      }
    }
  }
  return offset;
}

std::string chrome_trace(const Schedule& schedule, const Timing& timing, double us_per_unit) {
  std::string text = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n";
  text += fmt::format(R"({{"name": "process_name", "ph": "M", "pid": 0, "args": {{"name": "pipeline {}"}}}})",
                      escaped(schedule.name));
  for (int r = 0; r < schedule.ranks(); ++r) {
    text += fmt::format(
        ",\n"
        R"({{"name": "thread_name", "ph": "M", "pid": 0, "tid": {}, "args": {{"name": "rank {}"}}}})",
        r, r);
  }
  const double zero = timing.spans.empty() ? 0 : timing.spans.front().begin;
  // Where each message begins: the last span that makes it, as a later step makes it again.
  std::map<std::tuple<bool, int, int>, std::pair<int, double>> made;
  int64_t arrow = 0;
  for (const Span& span : timing.spans) {
    const Action& a = span.action;
    const double begin = (span.begin - zero) * us_per_unit, length = (span.end - span.begin) * us_per_unit;
    text += fmt::format(
        ",\n"
        R"({{"name": "{}{}", "cat": "{}", "ph": "X", "pid": 0, "tid": {}, "ts": {:.3f}, )"
        R"("dur": {:.3f}, "args": {{"stage": {}, "micro_batch": {}, "chunk": {}}}}})",
        "FBWB"[static_cast<size_t>(a.kind)], a.micro_batch, name_of(a.kind), span.rank, begin, length, a.stage,
        a.micro_batch, schedule.chunk_of(a.stage));
    if (const auto needed = needs(schedule, a)) {
      const auto it = made.find({needed->kind != ActionKind::kForward, needed->stage, needed->micro_batch});
      if (it != made.end() && it->second.first != span.rank) {
        ++arrow;
        text += fmt::format(
            ",\n"
            R"({{"name": "{}", "cat": "message", "ph": "s", "id": {}, "pid": 0, "tid": {}, )"
            R"("ts": {:.3f}}})",
            a.kind == ActionKind::kForward ? "activation" : "gradient", arrow, it->second.first, it->second.second);
        text += fmt::format(
            ",\n"
            R"({{"name": "{}", "cat": "message", "ph": "f", "bp": "e", "id": {}, "pid": 0, )"
            R"("tid": {}, "ts": {:.3f}}})",
            a.kind == ActionKind::kForward ? "activation" : "gradient", arrow, span.rank, begin);
      }
    }
    if (a.kind != ActionKind::kBackwardWeight)
      made[{a.kind != ActionKind::kForward, a.stage, a.micro_batch}] = {span.rank, begin + length};
  }
  return text + "\n]}\n";
}

}  // namespace ringfold::pipeline
