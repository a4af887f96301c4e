#include "train/agent.h"

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
constexpr Way kWays[] = {{"ssgd", 1}, {"local", 10}, {"diloco", 32}};

// Samples that it takes, beside exact synchronous SGD's: docs/benchmarks.md, "Training on codes" and "The agent".
double samples_factor(const Settings& s, size_t ranks) {
  const double others = static_cast<double>(ranks - 1);
  double factor = s.codec == "int4" ? 1.03 : 1;
  if (s.sync == "local") factor *= 1 + 0.1 * others;
  if (s.sync == "diloco") factor *= 1 + 0.2 * others;
  return factor;
}

// What an agent needs to see before it acts.
constexpr double kSlower = 1.15;   // computing of one rank, beside the mean
constexpr double kInVain = 0.15;   // more than that, after each change of parts that did not help: it was noise
constexpr double kExposed = 0.10;  // of a step, before the exchange is worth a change
constexpr double kGain = 0.97;     // a step that takes less of its former time is faster beyond noise
constexpr size_t kMostBucketKib = 16 << 10, kLeastBucketKib = 64;

double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

// Equal ones where rates differ no more than equal ranks' do in a short measurement.
std::vector<double> shares_by_rate(const std::vector<double>& sample_s, double alike = 1) {
  const auto [least, most] = std::minmax_element(sample_s.begin(), sample_s.end());
  std::vector<double> shares;
  for (double s : sample_s) shares.push_back(*most <= alike * *least ? 1 : 1 / s);
  const double all = sum(shares);
  for (double& s : shares) s /= all;
  return shares;
}

void predict(const Crew& crew, Candidate* candidate) {
  const Settings& s = candidate->settings;
  double compute_s = 0, exchange_s = 0;
  for (size_t m = 0; m < crew.ranks.size(); ++m)
    compute_s = std::max(compute_s, crew.fixed_s + s.shares[m] * static_cast<double>(s.batch) * crew.sample_s[m]);
  for (const auto& [codec, seconds] : crew.exchange_s) {
    if (codec == s.codec) exchange_s = seconds;
  }
  candidate->exposed_s = s.sync == "ssgd" ? std::max(exchange_s * kLeastExposed, exchange_s - kHiding * compute_s)
                                          : exchange_s / static_cast<double>(s.local_steps);
  candidate->step_s = compute_s + candidate->exposed_s;
  const double steps = (1 + kNoiseBatch / static_cast<double>(s.batch)) * samples_factor(s, crew.ranks.size());
  candidate->cost = steps * candidate->step_s;
}

std::string percent(double share) { return fmt::format("{:.0f} %", 100 * share); }

std::string shares_text(const std::vector<double>& shares, size_t batch) {
  std::string text;
  for (double s : shares) text += fmt::format("{}{:.0f}", text.empty() ? "" : "/", s * static_cast<double>(batch));
  return text;
}

}  // namespace

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
    const Crew& crew = survey.crews[c];
    if (goal.max_ranks > 0 && static_cast<int>(crew.ranks.size()) > goal.max_ranks) continue;
    for (size_t batch : batches) {
      for (const auto& [codec, seconds] : crew.exchange_s) {
        for (const Way& way : kWays) {
          const bool local = way.local_steps > 1;
          if ((local && crew.ranks.size() == 1) || batch < crew.ranks.size()) continue;
          Candidate candidate{.settings = {.crew = c,
                                           .sync = way.sync,
                                           .codec = codec,
                                           .batch = batch,
                                           .local_steps = way.local_steps,
                                           .shares = shares_by_rate(crew.sample_s, kAlike)}};
          // Local steps of unlike size would weigh the ranks' models differently.
          if (local)
            candidate.settings.shares.assign(crew.ranks.size(), 1.0 / static_cast<double>(crew.ranks.size()));
          predict(crew, &candidate);
          // For a number of samples the batch is no matter of progress, only of how long they take.
          if (goal.kind == Goal::Kind::kSamples)
            candidate.cost =
                candidate.step_s / static_cast<double>(batch) * samples_factor(candidate.settings, crew.ranks.size());
          all.push_back(std::move(candidate));
        }
      }
    }
  }
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.cost < b.cost; });
  // The plainest of those that are as good as equal: an exact sum before codes, all steps together before local ones.
  const auto plainness = [](const Candidate& c) {
    return (c.settings.sync == "ssgd"    ? 0
            : c.settings.sync == "local" ? 2
                                         : 4) +
           (c.settings.codec == "none" ? 0 : 1);
  };
  const auto equal_end =
      std::find_if(all.begin(), all.end(), [&](const auto& c) { return c.cost > all[0].cost * 1.02; });
  std::stable_sort(all.begin(), equal_end, [&](const auto& a, const auto& b) { return plainness(a) < plainness(b); });
  const double best = all.empty() ? 1 : all[0].cost;
  for (Candidate& c : all) c.cost /= best;
  return all;
}

std::string to_string(const std::vector<Candidate>& candidates, const Survey& survey, size_t most) {
  std::string out = fmt::format("{:<26} {:>7} {:>7} {:>6} {:>22} {:>9} {:>9} {:>7}\n", "ranks", "sync", "codec",
                                "batch", "samples by rank", "step ms", "exposed", "time");
  for (const Candidate& c : std::span(candidates).first(std::min(most, candidates.size()))) {
    const Settings& s = c.settings;
    out += fmt::format("{:<26} {:>7} {:>7} {:>6} {:>22} {:>9.2f} {:>9} {:>6.2f}x\n", survey.crews[s.crew].name,
                       s.sync, s.codec, s.batch, shares_text(s.shares, s.batch), 1e3 * c.step_s,
                       c.tried ? "measured" : percent(c.exposed_s / c.step_s), c.cost);
  }
  return out;
}

Agent::Agent(Survey survey, Candidate chosen) : survey_(std::move(survey)), settings_(std::move(chosen.settings)) {}

std::optional<Decision> Agent::observe(const Observation& seen) {
  if (settings_.sync != "ssgd") return std::nullopt;  // the times of ranks that step alone say little of each other
  double step_s = 0;
  for (size_t m = 0; m < seen.compute_s.size(); ++m)
    step_s = std::max(step_s, (seen.compute_s[m] + seen.exposed_s[m]) / static_cast<double>(seen.steps));
  if (trial_) {
    if (auto decision = judge(seen, step_s)) return decision;
  }
  for (const auto look : {&Agent::balance, &Agent::compress, &Agent::resize_buckets}) {
    if (auto decision = (this->*look)(seen, step_s)) return decision;
  }
  return std::nullopt;
}

Decision Agent::change(const Observation& seen, double step_s, Settings next, std::string why, std::string what) {
  trial_ = Trial{settings_, step_s, what};
  settings_ = std::move(next);
  return {seen.step, std::move(why), std::move(what), std::exchange(outcome_, {})};
}

std::optional<Decision> Agent::judge(const Observation& seen, double step_s) {
  const Trial trial = *std::exchange(trial_, std::nullopt);
  outcome_ = fmt::format("{}: {:.2f} ms a step, {:.2f} before", trial.what, 1e3 * step_s, 1e3 * trial.step_s);
  if (step_s < trial.step_s * kGain) return std::nullopt;
  tried_.push_back(trial.what);
  balanced_in_vain_ += settings_.shares != trial.before.shares;
  settings_ = trial.before;
  return Decision{seen.step, fmt::format("a step takes {:.2f} ms, {:.2f} before", 1e3 * step_s, 1e3 * trial.step_s),
                  "back: not " + trial.what, std::exchange(outcome_, {})};
}

std::optional<Decision> Agent::balance(const Observation& seen, double step_s) {
  if (seen.samples.size() < 2) return std::nullopt;
  std::vector<double> sample_s;
  for (size_t m = 0; m < seen.samples.size(); ++m) {
    if (seen.samples[m] == 0) return std::nullopt;  // nothing known of it
    sample_s.push_back(seen.compute_s[m] / static_cast<double>(seen.samples[m]));
  }
  const auto slowest = std::max_element(seen.compute_s.begin(), seen.compute_s.end());
  const double mean = sum(seen.compute_s) / static_cast<double>(seen.compute_s.size());
  if (*slowest < (kSlower + kInVain * balanced_in_vain_) * mean) return std::nullopt;
  Settings next = settings_;
  next.shares = shares_by_rate(sample_s);
  const auto who = survey_.crews[settings_.crew].ranks[static_cast<size_t>(slowest - seen.compute_s.begin())];
  std::string what = fmt::format("samples by rank {} -> {}", shares_text(settings_.shares, settings_.batch),
                                 shares_text(next.shares, next.batch));
  if (std::find(tried_.begin(), tried_.end(), what) != tried_.end()) return std::nullopt;
  return change(seen, step_s, std::move(next),
                fmt::format("rank {} computes {:.2f} times as long as the ranks' mean", who, *slowest / mean),
                std::move(what));
}

std::optional<Decision> Agent::compress(const Observation& seen, double step_s) {
  // Of the rank that waits least: what the others wait beyond that, they wait for slower ranks, not for bytes.
  const double least =
      *std::min_element(seen.exposed_s.begin(), seen.exposed_s.end()) / static_cast<double>(seen.steps);
  if (least < kExposed * step_s) return std::nullopt;
  const auto& known = survey_.crews[settings_.crew].exchange_s;
  const auto now =
      std::find_if(known.begin(), known.end(), [&](const auto& e) { return e.first == settings_.codec; });
  const auto* best = now == known.end() ? nullptr : &*now;
  for (const auto& exchange : known) {
    const std::string what = fmt::format("codec {} -> {}", settings_.codec, exchange.first);
    if (best && exchange.second < best->second && std::find(tried_.begin(), tried_.end(), what) == tried_.end())
      best = &exchange;
  }
  // Only where the measured exchanges promise more than noise.
  if (!best || best->first == settings_.codec || step_s - (now->second - best->second) > kGain * step_s)
    return std::nullopt;
  Settings next = settings_;
  next.codec = best->first;
  return change(seen, step_s, std::move(next),
                fmt::format("{} of a step waits for the exchange", percent(least / step_s)),
                fmt::format("codec {} -> {}", settings_.codec, best->first));
}

std::optional<Decision> Agent::resize_buckets(const Observation& seen, double step_s) {
  const double least =
      *std::min_element(seen.exposed_s.begin(), seen.exposed_s.end()) / static_cast<double>(seen.steps);
  if (least < kExposed * step_s) return std::nullopt;
  for (const size_t kib : {settings_.bucket_kib * 4, settings_.bucket_kib / 4}) {
    // Larger than all gradients is no other setting.
    if (kib < kLeastBucketKib || kib > kMostBucketKib || kib << 10 > 4 * survey_.gradient_bytes) continue;
    std::string what = fmt::format("buckets of {} -> {} KiB", settings_.bucket_kib, kib);
    if (std::find(tried_.begin(), tried_.end(), what) != tried_.end()) continue;
    // There and back is no way on.
    tried_.push_back(fmt::format("buckets of {} -> {} KiB", kib, settings_.bucket_kib));
    Settings next = settings_;
    next.bucket_kib = kib;
    return change(seen, step_s, std::move(next),
                  fmt::format("{} of a step waits for the exchange", percent(least / step_s)), std::move(what));
  }
  return std::nullopt;
}

Decision Agent::go_on_with(size_t step, const std::vector<int>& ranks, const std::string& cause) {
  Crew& crew = survey_.crews[settings_.crew];
  const std::string before = shares_text(settings_.shares, settings_.batch);
  Crew next = crew;
  next.ranks = ranks;
  next.sample_s.clear();
  std::vector<double> shares;
  for (int rank : ranks) {
    const auto known = std::find(crew.ranks.begin(), crew.ranks.end(), rank);
    const auto m = static_cast<size_t>(known - crew.ranks.begin());
    const auto of = [&](const std::vector<double>& values) {
      return known == crew.ranks.end() ? sum(values) / static_cast<double>(values.size()) : values[m];
    };
    next.sample_s.push_back(of(crew.sample_s));
    shares.push_back(of(settings_.shares));
  }
  const double all = sum(shares);
  for (double& s : shares) s = all > 0 ? s / all : 1.0 / static_cast<double>(shares.size());
  crew = std::move(next);
  settings_.shares = std::move(shares);
  trial_.reset();
  return {step, cause,
          fmt::format("goes on with {} rank{}, samples by rank {} -> {}", ranks.size(), ranks.size() == 1 ? "" : "s",
                      before, shares_text(settings_.shares, settings_.batch)),
          std::exchange(outcome_, {})};
}

}  // namespace ringfold::train
