#include "train/candidates.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <span>

namespace ringfold::train {
namespace {

// B_noise: samples of a batch at which twice the batch stops halving the steps. Measured, docs/benchmarks.md, "The
// agent"; only the choice of the batch depends on it.
constexpr double kNoiseBatch = 220;
// Part of the computing behind which sums of gradients hide: those of the last layers' while the first ones' are
// computed. A rehearsal tells what comes of it.
constexpr double kHiding = 1.0 / 3;
// The last bucket has nothing left to hide behind.
constexpr double kLeastExposed = 1.0 / 8;
constexpr double kAlike = 2;  // of two ranks' rates, when planning: the run itself shows smaller differences

// Ways to synchronise, and the steps that ranks make alone.
struct Way {
  const char* sync;
  size_t local_steps;
};
constexpr Way kWays[] = {{"ssgd", 1}, {"asgd", 1}, {"local", 10}, {"diloco", 32}};
constexpr int64_t kLeastStaleness = 4;

// Samples that it takes, beside exact synchronous SGD's: docs/benchmarks.md, "Training on codes" and "The agent".
double samples_factor(const Settings& s, size_t ranks) {
  const double others = static_cast<double>(ranks - 1);
  double factor = s.codec == "int4" ? 1.03 : 1;
  if (s.sync == "asgd") factor *= 1 + 0.05 * others;
  if (s.sync == "local") factor *= 1 + 0.1 * others;
  if (s.sync == "diloco") factor *= 1 + 0.3 * others;
  return factor;
}

double slowest(const std::vector<double>& sample_s) { return *std::max_element(sample_s.begin(), sample_s.end()); }

double exchange_of(const Crew& crew, const std::string& codec) {
  for (const auto& [name, seconds] : crew.exchange_s)
    if (name == codec) return seconds;
  return 0;
}

// What is left of an exchange behind so much computing.
double exposed(double exchange_s, double compute_s) {
  return std::max(exchange_s * kLeastExposed, exchange_s - kHiding * compute_s);
}

// Nobody waits for anybody: n updates take as long as all ranks together need for them, each with an exchange of its
// own. Small differences between ranks count as little for it as for ways in which the slowest sets the pace.
void predict_asgd(const Crew& crew, Candidate* candidate) {
  const auto n = static_cast<double>(crew.ranks.size());
  candidate->exposed_s = exchange_of(crew, "none");
  const auto [fastest, slowest] = std::minmax_element(crew.own_sample_s.begin(), crew.own_sample_s.end());
  double updates_per_s = 0;
  for (double own : crew.own_sample_s) {
    const double sample_s = *slowest <= kAlike * *fastest ? *slowest : own;
    updates_per_s +=
        1 / (crew.fixed_s + static_cast<double>(candidate->settings.batch) / n * sample_s + candidate->exposed_s);
  }
  candidate->step_s = n / updates_per_s;
}

void predict_cut(const Survey& survey, Candidate* candidate) {
  const Settings& s = candidate->settings;
  const Crew& crew = survey.crews[s.crew];
  const double n = static_cast<double>(crew.ranks.size()), stages = s.cut.pipeline, parts = s.cut.tensor,
               replicas = n / (stages * parts), micro_batches = s.micro_batches;
  const double samples = static_cast<double>(s.batch) / replicas;
  const double compute_s =
      (micro_batches + stages - 1) *
      (crew.fixed_s / stages + samples / micro_batches * slowest(crew.sample_s) / (stages * parts));
  // The links' rate, from the sum of all gradients over all of the crew.
  const double plain_s = exchange_of(crew, "none");
  const double byte_s = plain_s / (2 * static_cast<double>(survey.gradient_bytes) * (n - 1) / n);
  double activations_s = 0;
  if (s.cut.pipeline > 1) activations_s += 2 * samples * static_cast<double>(survey.stage_bytes) * byte_s;
  if (s.cut.tensor > 1) {
    const double bytes = samples * static_cast<double>(survey.layer_bytes) / stages;
    activations_s += 2 * 2 * (parts - 1) / parts * bytes * byte_s;
  }
  const double share = (replicas - 1) / replicas / ((n - 1) / n) / (stages * parts);
  candidate->exposed_s = activations_s + exposed(exchange_of(crew, s.codec) * share, compute_s);
  candidate->step_s = compute_s + candidate->exposed_s;
}

void predict(const Crew& crew, Candidate* candidate) {
  const Settings& s = candidate->settings;
  double compute_s = 0;
  for (size_t m = 0; m < crew.ranks.size(); ++m)
    compute_s = std::max(compute_s, crew.fixed_s + s.shares[m] * static_cast<double>(s.batch) * crew.sample_s[m]);
  const double exchange_s = exchange_of(crew, s.codec);
  candidate->exposed_s =
      s.sync == "ssgd" ? exposed(exchange_s, compute_s) : exchange_s / static_cast<double>(s.local_steps);
  candidate->step_s = compute_s + candidate->exposed_s;
}

// Numbers of micro-batches to consider: some for each rank of the pipeline, as far as there are samples.
std::vector<int> micro_batches_for(const Cut& cut, size_t samples) {
  if (cut.pipeline == 1) return {1};
  std::vector<int> counts;
  for (int each : {1, 2, 4})
    if (static_cast<size_t>(each * cut.pipeline) <= samples) counts.push_back(each * cut.pipeline);
  if (counts.empty()) counts.push_back(static_cast<int>(samples));
  return counts;
}

std::vector<double> equal_shares(size_t replicas) {
  return std::vector<double>(replicas, 1.0 / static_cast<double>(replicas));
}

// Of a crew with the ways, codecs, batches and cuts that can be together.
void consider_crew(const Survey& survey, size_t c, const Cut& cut, size_t batch, std::vector<Candidate>& all) {
  const Crew& crew = survey.crews[c];
  const size_t n = crew.ranks.size(), share = static_cast<size_t>(cut.pipeline * cut.tensor);
  const size_t samples = std::min(batch, survey.samples) * share / n;  // of a replica
  if (n % share != 0 || batch < n / share || (share > 1 && (samples == 0 || n / share < survey.least_replicas)))
    return;
  const auto [fastest, slowest] = std::minmax_element(crew.own_sample_s.begin(), crew.own_sample_s.end());
  for (const auto& [codec, seconds] : crew.exchange_s) {
    for (const Way& way : kWays) {
      if (std::find(survey.syncs.begin(), survey.syncs.end(), way.sync) == survey.syncs.end()) continue;
      const std::string sync = way.sync;
      if (sync != "ssgd" && (share > 1 || n == 1)) continue;
      if (sync == "asgd" && codec != "none") continue;
      for (int micro_batches : micro_batches_for(cut, samples)) {
        Candidate candidate{.settings = {.crew = c,
                                         .sync = sync,
                                         .codec = codec,
                                         .batch = batch,
                                         .local_steps = way.local_steps,
                                         .cut = cut,
                                         .micro_batches = micro_batches}};
        Settings& s = candidate.settings;
        // Local steps of unlike size would weigh the ranks' models differently, the workers of asgd take what is
        // next, and of a cut model it is not single ranks that have samples.
        const bool by_rate = sync == "ssgd" && share == 1;
        s.shares = by_rate ? shares_by_rate(crew.sample_s, kAlike) : equal_shares(n / share);
        if (sync == "asgd") {
          s.staleness = std::max(kLeastStaleness, static_cast<int64_t>(std::lround(*slowest / *fastest)));
          predict_asgd(crew, &candidate);
        } else if (share > 1) {
          predict_cut(survey, &candidate);
        } else {
          predict(crew, &candidate);
        }
        all.push_back(std::move(candidate));
      }
    }
  }
}

// An exact sum before codes, whole models before cut ones, all steps together before others.
int plainness(const Candidate& c) {
  const Settings& s = c.settings;
  const int sync = s.sync == "ssgd" ? 0 : s.sync == "local" ? 4 : s.sync == "asgd" ? 6 : 8;
  return sync + (s.cut == Cut() ? 0 : 2) + (s.codec == "none" ? 0 : 1);
}

}  // namespace

std::vector<double> shares_by_rate(const std::vector<double>& sample_s, double alike) {
  const auto [least, most] = std::minmax_element(sample_s.begin(), sample_s.end());
  std::vector<double> shares;
  for (double s : sample_s) shares.push_back(*most <= alike * *least ? 1 : 1 / s);
  const double all = std::accumulate(shares.begin(), shares.end(), 0.0);
  for (double& s : shares) s /= all;
  return shares;
}

std::string shares_text(const std::vector<double>& shares, size_t batch) {
  std::string text;
  for (double s : shares) text += fmt::format("{}{:.0f}", text.empty() ? "" : "/", s * static_cast<double>(batch));
  return text;
}

Result<Goal> parse_goal(const std::string& text) {
  const size_t equals = text.find('=');
  const std::string name = text.substr(0, equals),
                    number = equals == std::string::npos ? "" : text.substr(equals + 1);
  Goal goal;
  const auto read = std::from_chars(number.data(), number.data() + number.size(), goal.value);
  if (number.empty() || read.ec != std::errc() || read.ptr != number.data() + number.size() || !(goal.value > 0) ||
      !std::isfinite(goal.value)) {
    return Status(Code::kInvalid,
                  fmt::format("goal \"{}\": a name and a positive number are expected: accuracy=0.91, "
                              "samples=1e6 or tokens=1e6",
                              text));
  }
  if (name == "accuracy") {
    if (goal.value > 1)
      return Status(Code::kInvalid, fmt::format("goal \"{}\": an accuracy is a share, at most 1", text));
    return goal;
  }
  if (name == "samples" || name == "tokens") {
    goal.kind = Goal::Kind::kSamples;
    return goal;
  }
  return Status(
      Code::kInvalid,
      fmt::format("goal \"{}\": there is no goal \"{}\"; accuracy, samples and tokens are known", text, name));
}

double rate_for(size_t batch, size_t other) {
  return (1 + kNoiseBatch / static_cast<double>(other)) / (1 + kNoiseBatch / static_cast<double>(batch));
}

std::vector<Candidate> consider(const Goal& goal, const Survey& survey) {
  std::vector<size_t> batches = survey.batches;
  if (std::find(batches.begin(), batches.end(), survey.batch) == batches.end()) batches.push_back(survey.batch);
  std::vector<Candidate> all;
  for (size_t c = 0; c < survey.crews.size(); ++c) {
    if (goal.max_ranks > 0 && static_cast<int>(survey.crews[c].ranks.size()) > goal.max_ranks) continue;
    for (size_t batch : batches)
      for (const Cut& cut : survey.cuts) consider_crew(survey, c, cut, batch, all);
  }
  for (Candidate& c : all) {
    const Settings& s = c.settings;
    // For a number of samples the batch is no matter of progress, only of how long they take.
    const double batch = static_cast<double>(s.batch),
                 steps = goal.kind == Goal::Kind::kSamples ? 1 / batch : 1 + kNoiseBatch / batch;
    c.cost = steps * samples_factor(s, survey.crews[s.crew].ranks.size()) * c.step_s;
  }
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.cost < b.cost; });
  // The plainest of those that are as good as equal.
  const auto equal_end =
      std::find_if(all.begin(), all.end(), [&](const auto& c) { return c.cost > all[0].cost * 1.02; });
  std::stable_sort(all.begin(), equal_end, [&](const auto& a, const auto& b) { return plainness(a) < plainness(b); });
  const double best = all.empty() ? 1 : all[0].cost;
  for (Candidate& c : all) c.cost /= best;
  return all;
}

std::string to_string(const std::vector<Candidate>& candidates, const Survey& survey, size_t most) {
  std::string out = fmt::format("{:<26} {:>8} {:>7} {:>7} {:>6} {:>22} {:>9} {:>9} {:>7}\n", "ranks", "DxPxT", "sync",
                                "codec", "batch", "samples by replica", "step ms", "exposed", "time");
  for (const Candidate& c : std::span(candidates).first(std::min(most, candidates.size()))) {
    const Settings& s = c.settings;
    const Crew& crew = survey.crews[s.crew];
    out += fmt::format("{:<26} {:>8} {:>7} {:>7} {:>6} {:>22} {:>9.2f} {:>9} {:>6.2f}x\n", crew.name,
                       fmt::format("{}x{}x{}", s.shares.size(), s.cut.pipeline, s.cut.tensor), s.sync, s.codec,
                       s.batch, shares_text(s.shares, s.batch), 1e3 * c.step_s,
                       c.tried ? "measured" : fmt::format("{:.0f} %", 100 * c.exposed_s / c.step_s), c.cost);
  }
  return out;
}

}  // namespace ringfold::train
