// `ringfold explain`: what a collective would do: the schedule, what is proved of it, and what it is predicted to
// cost.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>

#include "algo/algo.h"
#include "comm/config.h"
#include "model/coding.h"
#include "model/cost.h"
#include "model/tuner.h"
#include "plan/planner.h"
#include "schedule/checker.h"
#include "schedule/print.h"
#include "tools/cli/cli.h"
#include "tools/cli/host_facts.h"

namespace ringfold::cli {
namespace {

int usage(const std::string& text) {
  fmt::print(stderr, "ringfold explain: {}\n", text);
  return kExitUsage;
}

// "0,0,1,1" with hosts numbered anew in order of first appearance; all on one host when the text is empty. False: no
// list of `ranks` numbers.
bool parse_hosts_of(std::string_view text, int ranks, std::vector<int>* host_of) {
  if (text.empty()) {
    host_of->assign(static_cast<size_t>(ranks), 0);
    return true;
  }
  std::map<int, int> number;
  while (!text.empty()) {
    const auto comma = std::min(text.find(','), text.size());
    int host = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + comma, host);
    if (error != std::errc() || end != text.data() + comma) return false;
    host_of->push_back(number.emplace(host, static_cast<int>(number.size())).first->second);
    text.remove_prefix(std::min(comma + 1, text.size()));
  }
  return host_of->size() == static_cast<size_t>(ranks);
}

struct Question {
  schedule::Shape shape;
  uint64_t bytes = 0,
           block_bytes = 0;  // of the largest buffer of a rank, as perf counts; of what one call argument counts
  std::vector<int> host_of;
  bool few_codings = false;
  model::ClusterModel cluster;
  comm::Config config;

  Result<schedule::Schedule> make(std::string_view algorithm, int lanes) const {
    algo::Parameters parameters;
    parameters.lanes = lanes;
    parameters.host_of = host_of;
    parameters.few_codings = few_codings;
    return algo::make(algorithm, shape, parameters);
  }
};

// Bytes that the busiest rank sends, of a buffer of `block_bytes` per block.
uint64_t most_sent(const schedule::Schedule& schedule, uint64_t block_bytes) {
  uint64_t most = 0;
  for (int r = 0; r < schedule.shape.ranks; ++r) {
    uint64_t cells = 0;
    for (const auto& lane : schedule.rank(r).lanes) {
      for (const auto& step : lane) cells += step.kind == schedule::StepKind::kSend ? step.count : 0;
    }
    most = std::max(most, cells);
  }
  return most * block_bytes / schedule.chunks_per_block;
}

model::Candidates candidates(const Question& question, bool coded = false) {
  return {[&question, coded](Collective collective) {
            return coded ? plan::algorithms_for_codecs(collective, question.host_of)
                         : algo::algorithms_for(collective);
          },
          [&question, coded](Collective collective, std::string_view algorithm, int lanes) {
            Question other = question;
            other.few_codings = coded;
            other.shape = {collective, question.shape.ranks, has_root(collective) ? question.shape.root : 0};
            return other.make(algorithm, lanes);
          },
          algo::is_canonical};
}

void print_comparison(const Question& q, const std::string& chosen, int lanes) {
  fmt::print("\nAlgorithms for {} over {} ranks ({} figures; * is shown below)\n", name_of(q.shape.collective),
             q.shape.ranks, q.cluster.measured ? "measured" : "default");
  fmt::print("  {:<14}{:>10}{:>10}{:>16}{:>8}{:>11}{:>12}\n", "", "rounds", "messages", "sent by a rank", "depth",
             "canonical", "predicted");
  for (const auto& name : algo::algorithms_for(q.shape.collective)) {
    const auto schedule = q.make(name, name == chosen ? lanes : 1);
    if (!schedule.ok()) {
      fmt::print("  {:<14}  {}\n", name, schedule.status().message());
      continue;
    }
    schedule::CheckReport report;
    const Status status = schedule::check(*schedule, {}, &report);
    model::Predictor predictor(*schedule, q.cluster);
    const double seconds = predictor.seconds(q.block_bytes);
    fmt::print("{} {:<14}{:>10}{:>10}{:>16}{:>8}{:>11}{:>12}{}\n", name == chosen ? "*" : " ", name, report.rounds,
               report.messages, model::bytes_text(most_sent(*schedule, q.block_bytes)), report.coding_depth,
               report.canonical ? "yes" : "no", std::isfinite(seconds) ? model::seconds_text(seconds) : "-",
               status.ok() ? "" : "  " + status.message());
  }
}

// What codes on the links would do to this call.
void print_codecs(const Question& q, const std::string& wanted) {
  std::vector<Codec> codecs = {CodecKind::kBF16, CodecKind::kInt8, CodecKind::kInt6, CodecKind::kInt4,
                               CodecKind::kSign};
  if (auto codec = parse_codec(wanted); codec.ok() && *codec) {
    codec->when_faster = false;
    std::erase(codecs, *codec);
    codecs.insert(codecs.begin(), *codec);
  }
  const auto names = plan::algorithms_for_codecs(q.shape.collective, q.host_of);
  if (names.empty()) return;
  if (q.cluster.hosts() == 1) {
    fmt::print(
        "\nCodecs: ranks of one host read each other's values in place, and no codec is faster; see --hosts-of\n");
    return;
  }
  const model::Candidates plain = candidates(q, false), coded = candidates(q, true);
  const double without = model::least_seconds(q.cluster, plain, q.shape.collective, q.block_bytes, {});
  fmt::print("\nCodecs, for f32 (plain {}; a codec is worth it below its rate of the links between hosts)\n",
             model::seconds_text(without));
  fmt::print("  {:<18}{:>10}{:>14}{:>12}{:>10}{:>16}  {}\n", "", "bits", "worst error", "predicted", "speed-up",
             "pays below", "made of");
  for (const Codec& codec : codecs) {
    const auto cluster = model::with_codec(q.cluster, codec, q.shape.collective);
    double seconds = std::numeric_limits<double>::infinity();
    std::string terms;
    for (const auto& name : names) {
      const auto schedule = coded.make(q.shape.collective, name, 1);
      if (!schedule.ok()) continue;
      const auto cost = model::Predictor(*schedule, cluster).cost(q.block_bytes);
      if (cost.seconds < seconds) seconds = cost.seconds, terms = name + ": " + cost.to_string();
    }
    const double rate = model::crossover_rate(q.cluster, plain, coded, q.shape.collective, codec, q.block_bytes, {});
    const double error = error_bound(codec);
    fmt::print("  {:<18}{:>10.2f}{:>14}{:>12}{:>10.2f}{:>16}  {}\n", to_string(codec), 32 * model::wire_ratio(codec),
               std::isfinite(error) ? fmt::format("{:.2g} of max", error) : "-", model::seconds_text(seconds),
               without / seconds,
               rate == 0             ? "never"
               : std::isfinite(rate) ? fmt::format("{:.3g} Gbit/s", rate * 8e-9)
                                     : "any rate",
               terms);
  }
}

int print_schedule(const Question& q, const schedule::Schedule& schedule, const ExplainOptions& options) {
  fmt::print("\n{}\n", schedule::title_of(schedule));
  schedule::CheckReport report;
  const Status status = schedule::check(schedule, {}, &report);
  if (!status.ok()) {
    fmt::print("  the checker REFUSES it: {}\n", status.message());
    return kExitFailed;
  }
  const uint64_t chunk = q.block_bytes / schedule.chunks_per_block;
  fmt::print("  chunks        {} per block of {}, about {} each; {} in all\n", schedule.chunks_per_block,
             model::bytes_text(q.block_bytes), model::bytes_text(chunk), schedule.chunks());
  fmt::print("  checked       values, replicas, matching, deadlock with one slot, events{}\n",
             report.hazards_tested ? ", hazards" : " (too many ranks for hazards)");
  fmt::print("  order         {}\n", report.canonical ? "canonical: every result is folded in rank order"
                                                      : "fixed, the same on all ranks, but not the rank order");
  fmt::print("  coding depth  {} (a lossy codec would be applied so often to one contribution)\n",
             report.coding_depth);
  fmt::print("  work          {} steps, {} messages, {} on the longest path\n", report.steps, report.messages,
             report.rounds);
  model::Predictor predictor(schedule, q.cluster);
  const auto cost = predictor.cost(q.block_bytes);
  fmt::print("  predicted     {}\n",
             std::isfinite(cost.seconds) ? cost.to_string() : "does not fit its slots at this size");

  constexpr int kMostPrinted = 8;
  fmt::print("\nSteps (c: chunk, t: temporary, e: event; \"send c2 -> 1\" is to rank 1)\n");
  if (options.rank >= 0) {
    fmt::print("{}", schedule::text_of(schedule, options.rank));
  } else {
    for (int r = 0; r < std::min(q.shape.ranks, kMostPrinted); ++r) fmt::print("{}", schedule::text_of(schedule, r));
    if (q.shape.ranks > kMostPrinted)
      fmt::print("... {} ranks more: --rank R shows one\n", q.shape.ranks - kMostPrinted);
  }
  if (options.svg.empty()) return kExitOk;
  const auto picture = schedule::picture_of(schedule);
  if (!picture.ok()) return usage("--svg: " + picture.status().message());
  return write_file(options.svg, *picture) ? kExitOk : kExitEnvironment;
}

}  // namespace

int explain(const ExplainOptions& options) {
  Question q;
  const auto collective = parse_collective(options.op);
  if (!collective) {
    std::string names;
    for (int c = 0; c < kCollectives; ++c) names += fmt::format(" {}", name_of(static_cast<Collective>(c)));
    return usage(fmt::format("there is no collective \"{}\"; there are:{}", options.op, names));
  }
  const auto type = parse_data_type(options.type);
  const long long bytes = parse_size(options.size);
  if (!type) return usage(fmt::format("--type {}: it takes f64 f32 f16 bf16 i8 u8 i32 u32 i64 u64", options.type));
  if (bytes < 0) return usage(fmt::format("--size {}: it takes bytes such as 8, 64K or 1G", options.size));
  if (options.root < 0 || options.root >= options.ranks || options.rank >= options.ranks) {
    return usage(fmt::format("--root and --rank: there are ranks 0 to {}", options.ranks - 1));
  }
  if (!parse_hosts_of(options.hosts_of, options.ranks, &q.host_of)) {
    return usage(fmt::format("--hosts-of {}: it takes {} host numbers with commas, one for each rank",
                             options.hosts_of, options.ranks));
  }
  q.shape = {*collective, options.ranks, has_root(*collective) ? options.root : 0};
  const bool whole = *collective == Collective::kAllReduce || *collective == Collective::kReduce ||
                     *collective == Collective::kBroadcast;
  q.bytes = *collective == Collective::kBarrier ? 0 : static_cast<uint64_t>(bytes);
  const auto share = static_cast<uint64_t>(whole ? 1 : options.ranks) * size_of(*type);
  q.block_bytes = q.bytes / share * size_of(*type);
  auto config = comm::Config::from_environment(comm::process_environment());
  if (!config.ok()) return usage(config.status().message());
  q.config = *std::move(config);
  const int hosts = *std::max_element(q.host_of.begin(), q.host_of.end()) + 1;
  const int cores = std::max(1, static_cast<int>(usable_cpus(host_facts())));
  q.cluster =
      model::default_cluster(q.host_of, std::vector<int>(static_cast<size_t>(hosts), cores), options.transport);

  const std::string wanted = options.algorithm != "auto" ? options.algorithm : q.config.algorithm.value();
  model::TunerOptions tuning;
  tuning.deterministic = q.config.deterministic;
  tuning.override_text = wanted;
  tuning.collectives = {*collective};
  const auto tuner = model::Tuner::build(q.cluster, candidates(q), tuning);
  if (!tuner.ok()) return usage(tuner.status().message());
  const auto choice = tuner->choose(*collective, q.block_bytes);
  if (choice.algorithm.empty()) return usage(choice.reason);
  const int lanes = options.lanes > 0 ? options.lanes : choice.lanes;
  const auto schedule = q.make(choice.algorithm, lanes);
  if (!schedule.ok()) return usage(schedule.status().message());

  fmt::print("{} of {} ({} elements of {}), {} ranks on {} host{}\n", name_of(*collective),
             model::bytes_text(q.bytes), q.bytes / size_of(*type), name_of(*type), options.ranks, hosts,
             hosts == 1 ? "" : "s");
  fmt::print("  chosen        {}, {} lane{}: {}\n", choice.algorithm, lanes, lanes == 1 ? "" : "s", choice.reason);
  for (const auto& row : q.config.rows()) {
    if (row.source != "default") fmt::print("  setting       {}\n", row.to_string());
  }
  print_comparison(q, choice.algorithm, lanes);
  if (*type == DataType::kF32) print_codecs(q, options.codec.empty() ? q.config.codec.value() : options.codec);
  return print_schedule(q, *schedule, options);
}

}  // namespace ringfold::cli
