#include "train/agent.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace ringfold::train {
namespace {

// What an agent needs to see before it acts.
constexpr double kSlower = 1.15;   // computing of one rank, beside the mean
constexpr double kInVain = 0.15;   // more than that, after each change of parts that did not help: it was noise
constexpr double kExposed = 0.10;  // of a step, before the exchange is worth a change
constexpr double kGain = 0.97;     // a step that takes less of its former time is faster beyond noise
constexpr double kWorse = 1.25;    // a loss beside one before: more than batches differ by
constexpr size_t kMostBucketKib = 16 << 10, kLeastBucketKib = 64;
constexpr int64_t kMostStaleness = 64;

double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

std::string percent(double share) { return fmt::format("{:.0f} %", 100 * share); }

}  // namespace

Agent::Agent(Survey survey, Candidate chosen) : survey_(std::move(survey)), settings_(std::move(chosen.settings)) {}

std::optional<Decision> Agent::observe(const Observation& seen) {
  const bool asgd = settings_.sync == "asgd", cut = settings_.cut != Cut();
  if (settings_.sync != "ssgd" && !asgd) return std::nullopt;
  double step_s = 0;
  for (size_t m = 0; m < seen.compute_s.size(); ++m)
    step_s = std::max(step_s, (seen.compute_s[m] + seen.exposed_s[m]) / static_cast<double>(seen.steps));
  std::optional<Decision> decision;
  if (trial_) decision = judge(seen, step_s);
  const auto look = [&](std::optional<Decision> (Agent::*at)(const Observation&, double)) {
    if (!decision) decision = (this->*at)(seen, step_s);
  };
  if (asgd) {
    look(&Agent::bound_staleness);
  } else if (cut) {
    look(&Agent::recut_batch);
  } else {
    look(&Agent::balance);
    look(&Agent::compress);
    look(&Agent::resize_buckets);
  }
  if (seen.loss > 0 && (least_loss_ == 0 || seen.loss < least_loss_)) least_loss_ = seen.loss;
  return decision;
}

Decision Agent::change(const Observation& seen, double step_s, Settings next, std::string why, std::string what) {
  trial_ = Trial{settings_, step_s, seen.loss, what};
  settings_ = std::move(next);
  return {seen.step, std::move(why), std::move(what), std::exchange(outcome_, {})};
}

std::optional<Decision> Agent::change_once(const Observation& seen, double step_s, Settings next, std::string why,
                                           std::string (*text)(const Settings& from, const Settings& to)) {
  std::string what = text(settings_, next);
  if (std::find(tried_.begin(), tried_.end(), what) != tried_.end()) return std::nullopt;
  tried_.push_back(text(next, settings_));
  return change(seen, step_s, std::move(next), std::move(why), std::move(what));
}

std::optional<Decision> Agent::judge(const Observation& seen, double step_s) {
  const Trial trial = *std::exchange(trial_, std::nullopt);
  outcome_ = fmt::format("{}: {:.2f} ms a step, {:.2f} before", trial.what, 1e3 * step_s, 1e3 * trial.step_s);
  const bool worse = trial.loss > 0 && seen.loss > kWorse * trial.loss;
  if (step_s < trial.step_s * kGain && !worse) return std::nullopt;
  tried_.push_back(trial.what);
  balanced_in_vain_ += settings_.shares != trial.before.shares;
  settings_ = trial.before;
  return Decision{seen.step,
                  worse ? fmt::format("the loss is {:.4f}, {:.4f} before", seen.loss, trial.loss)
                        : fmt::format("a step takes {:.2f} ms, {:.2f} before", 1e3 * step_s, 1e3 * trial.step_s),
                  "back: not " + trial.what, std::exchange(outcome_, {})};
}

std::optional<Decision> Agent::balance(const Observation& seen, double step_s) {
  if (seen.samples.size() < 2) return std::nullopt;
  std::vector<double> sample_s;
  for (size_t m = 0; m < seen.samples.size(); ++m) {
    if (seen.samples[m] == 0 || seen.compute_s[m] <= 0) return std::nullopt;  // nothing known of it
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
    Settings next = settings_;
    next.bucket_kib = kib;
    auto decision = change_once(seen, step_s, std::move(next),
                                fmt::format("{} of a step waits for the exchange", percent(least / step_s)),
                                [](const Settings& from, const Settings& to) {
                                  return fmt::format("buckets of {} -> {} KiB", from.bucket_kib, to.bucket_kib);
                                });
    if (decision) return decision;
  }
  return std::nullopt;
}

// More micro-batches let the ranks of a pipeline idle less, and cost more calls.
std::optional<Decision> Agent::recut_batch(const Observation& seen, double step_s) {
  const int stages = settings_.cut.pipeline;
  if (stages == 1) return std::nullopt;
  const double idle = sum(seen.exposed_s) / static_cast<double>(seen.exposed_s.size() * seen.steps);
  if (idle < kExposed * step_s) return std::nullopt;
  const size_t most = std::min(settings_.batch, survey_.samples) / settings_.shares.size();
  for (const int count : {settings_.micro_batches * 2, settings_.micro_batches / 2}) {
    if (count < stages || static_cast<size_t>(count) > most || count % stages != 0) continue;
    Settings next = settings_;
    next.micro_batches = count;
    auto decision = change_once(seen, step_s, std::move(next),
                                fmt::format("ranks wait for each other for {} of a step", percent(idle / step_s)),
                                [](const Settings& from, const Settings& to) {
                                  return fmt::format("micro-batches {} -> {}", from.micro_batches, to.micro_batches);
                                });
    if (decision) return decision;
  }
  return std::nullopt;
}

std::optional<Decision> Agent::bound_staleness(const Observation& seen, double step_s) {
  const size_t n = seen.compute_s.size();
  if (n < 2 || seen.staleness.empty()) return std::nullopt;
  const auto bound = static_cast<size_t>(settings_.staleness);
  const size_t most = seen.staleness.size() - 1;  // seen, in updates
  Settings next = settings_;
  if (least_loss_ > 0 && seen.loss > kWorse * least_loss_ && bound > 1 && most > bound * n / 2) {
    next.staleness /= 2;
    const std::string what = fmt::format("staleness up to {} -> {} steps", settings_.staleness, next.staleness);
    tried_.push_back(fmt::format("staleness up to {} -> {} steps", next.staleness, settings_.staleness));
    settings_ = std::move(next);
    return Decision{seen.step,
                    fmt::format("the loss is {:.4f}, {:.4f} before, and updates are up to {} others late", seen.loss,
                                least_loss_, most),
                    what, std::exchange(outcome_, {})};
  }
  // The bound holds somebody up when it is reached, and some wait far longer than others.
  double longest = 0, shortest = 1;
  for (size_t m = 0; m < n; ++m) {
    const double all = seen.compute_s[m] + seen.exposed_s[m];
    const double share = all > 0 ? seen.exposed_s[m] / all : 0;
    longest = std::max(longest, share);
    shortest = std::min(shortest, share);
  }
  if (most < bound * n || longest - shortest < kExposed || settings_.staleness >= kMostStaleness) return std::nullopt;
  next.staleness *= 2;
  std::string what = fmt::format("staleness up to {} -> {} steps", settings_.staleness, next.staleness);
  if (std::find(tried_.begin(), tried_.end(), what) != tried_.end()) return std::nullopt;
  return change(
      seen, step_s, std::move(next),
      fmt::format("updates are up to {} others late, which is the bound, and one rank waits {} of its time, "
                  "another {}",
                  most, percent(longest), percent(shortest)),
      std::move(what));
}

Decision Agent::go_on_with(size_t step, const std::vector<int>& ranks, const std::string& cause) {
  Crew& crew = survey_.crews[settings_.crew];
  const std::string before = shares_text(settings_.shares, settings_.batch);
  const size_t share = static_cast<size_t>(settings_.cut.pipeline * settings_.cut.tensor);
  Crew next = crew;
  next.ranks = ranks;
  next.sample_s.clear();
  next.own_sample_s.clear();
  std::vector<double> shares;
  for (int rank : ranks) {
    const auto known = std::find(crew.ranks.begin(), crew.ranks.end(), rank);
    const auto m = static_cast<size_t>(known - crew.ranks.begin());
    const auto of = [&](const std::vector<double>& values) {
      return known == crew.ranks.end() ? sum(values) / static_cast<double>(values.size()) : values[m];
    };
    next.sample_s.push_back(of(crew.sample_s));
    next.own_sample_s.push_back(of(crew.own_sample_s));
    if (share == 1) shares.push_back(of(settings_.shares));
  }
  if (share > 1) shares.assign(std::max<size_t>(ranks.size() / share, 1), 1);
  const double all = sum(shares);
  for (double& s : shares) s = all > 0 ? s / all : 1.0 / static_cast<double>(shares.size());
  crew = std::move(next);
  settings_.shares = std::move(shares);
  trial_.reset();
  return {step, cause,
          fmt::format("goes on with {} rank{}, samples by {} {} -> {}", ranks.size(), ranks.size() == 1 ? "" : "s",
                      share > 1 ? "replica" : "rank", before, shares_text(settings_.shares, settings_.batch)),
          std::exchange(outcome_, {})};
}

}  // namespace ringfold::train
