#include "train/survey.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "ringfold/memory.h"

namespace ringfold::train {
namespace {

constexpr int kTimes = 3;  // the median counts
constexpr const char* kCodecs[] = {"none", "int8", "int4"};
constexpr double kLong = 1;          // s: an exchange that takes longer is measured once
constexpr size_t kSmallPart = 8;     // a rank's part of the batch beside the least that is measured
constexpr double kMuchSlower = 2;    // of a rank beside the fastest: it may be left out
constexpr double kFewerMayDo = 1.3;  // of half the ranks' step beside all ranks': one alone may do as well

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> times) {
  std::nth_element(times.begin(), times.begin() + static_cast<long>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

// How long this rank computes, and how long it takes until all have, which on shared cores is what counts.
struct Took {
  double own_s = 0, all_s = 0;
};
Result<Took> time_computing(Communicator& comm, size_t samples, const Rehearsal& rehearsal) {
  std::vector<double> own, all;
  for (int i = 0; i < kTimes; ++i) {
    RINGFOLD_TRY(comm.barrier().wait());
    const double begin = seconds();
    own.push_back(rehearsal.compute(samples));
    RINGFOLD_TRY(comm.barrier().wait());
    all.push_back(seconds() - begin);
  }
  return Took{median(own), median(all)};
}

Status measure_computing(Communicator& comm, size_t part, const Rehearsal& rehearsal, Crew* crew) {
  const size_t small = std::max<size_t>(1, part / kSmallPart);
  (void)rehearsal.compute(small);  // to warm up
  auto few = time_computing(comm, small, rehearsal);
  if (!few.ok()) return few.status();
  auto many = time_computing(comm, part, rehearsal);
  if (!many.ok()) return many.status();
  double figures[2] = {few->all_s, many->all_s};
  RINGFOLD_TRY(comm.broadcast(figures, figures, 2, DataType::kF64, 0).wait());
  const auto [few_s, many_s] = figures;
  if (part > small) {
    const double per_sample = (many_s - few_s) / static_cast<double>(part - small);
    crew->fixed_s = std::clamp(few_s - per_sample * static_cast<double>(small), 0.0, few_s);
  }
  crew->sample_s.resize(static_cast<size_t>(comm.size()));
  RINGFOLD_TRY(comm.all_gather(&many->own_s, crew->sample_s.data(), 1, DataType::kF64).wait());
  const double longest = *std::max_element(crew->sample_s.begin(), crew->sample_s.end());
  for (double& s : crew->sample_s) {
    const auto of_sample = [&](double all_s) {
      return std::max(all_s - crew->fixed_s, 0.01 * many_s) / static_cast<double>(part);
    };
    crew->own_sample_s.push_back(of_sample(s));
    s = of_sample(s / longest * many_s);
  }
  return {};
}

Status measure_exchange(Communicator& comm, std::span<float> gradients, Crew* crew) {
  for (const char* name : kCodecs) {
    CallOptions options;
    options.codec = *parse_codec(name);
    double slowest = std::numeric_limits<double>::infinity();
    for (int i = 0; i < 1 || (i < 2 && slowest < kLong); ++i) {
      RINGFOLD_TRY(comm.barrier().wait());
      const double begin = seconds();
      RINGFOLD_TRY(
          comm.all_reduce(gradients.data(), gradients.data(), gradients.size(), DataType::kF32, kSum, options)
              .wait());
      double took = seconds() - begin;
      RINGFOLD_TRY(comm.all_reduce(&took, &took, 1, DataType::kF64, kMax).wait());
      slowest = std::min(slowest, took);
    }
    crew->exchange_s.emplace_back(name, slowest);
  }
  return {};
}

Status measure(Communicator& comm, std::span<float> gradients, size_t part, const Rehearsal& rehearsal, Crew* crew) {
  RINGFOLD_TRY(measure_computing(comm, part, rehearsal, crew));
  if (comm.size() == 1) {
    crew->exchange_s = {{"none", 0.0}};
    return {};
  }
  return measure_exchange(comm, gradients, crew);
}

double step_s(const Crew& crew, size_t batch) {
  const double part = static_cast<double>(batch) / static_cast<double>(crew.ranks.size());
  return crew.fixed_s + part * *std::max_element(crew.sample_s.begin(), crew.sample_s.end());
}

// Of `ranks`, at most so many.
Crew crew_of(std::string name, std::vector<int> ranks, int max_ranks) {
  if (max_ranks > 0 && static_cast<int>(ranks.size()) > max_ranks) {
    ranks.resize(static_cast<size_t>(max_ranks));
    name = fmt::format("{} rank{}", max_ranks, max_ranks == 1 ? "" : "s");
  }
  Crew crew;
  crew.name = std::move(name);
  crew.ranks = std::move(ranks);
  return crew;
}

// Rank 0's figures for all.
Status share(Communicator& comm, Crew* crew) {
  const size_t n = crew->ranks.size(), codecs = n == 1 ? 1 : std::size(kCodecs);
  crew->sample_s.resize(n);
  crew->own_sample_s.resize(n);
  crew->exchange_s.resize(codecs);
  std::vector<double> figures = crew->sample_s;
  figures.insert(figures.end(), crew->own_sample_s.begin(), crew->own_sample_s.end());
  figures.push_back(crew->fixed_s);
  for (const auto& [codec, time] : crew->exchange_s) figures.push_back(time);
  RINGFOLD_TRY(comm.broadcast(figures.data(), figures.data(), figures.size(), DataType::kF64, crew->ranks[0]).wait());
  std::copy_n(figures.begin(), n, crew->sample_s.begin());
  std::copy_n(figures.begin() + static_cast<long>(n), n, crew->own_sample_s.begin());
  auto next = figures.begin() + static_cast<long>(2 * n);
  crew->fixed_s = *next++;
  for (size_t i = 0; i < codecs; ++i) crew->exchange_s[i] = {kCodecs[i], *next++};
  return {};
}

}  // namespace

Result<Survey> survey(Communicator& comm, size_t gradient_elems, size_t batch, int max_ranks, int multiple,
                      const Rehearsal& rehearsal) {
  auto gradients = allocate_buffer<float>(std::max<size_t>(gradient_elems, 1));
  if (!gradients.ok()) return gradients.status();
  const std::span<float> values(gradients->get(), gradient_elems);
  for (size_t i = 0; i < values.size(); ++i) values[i] = 1e-3F * static_cast<float>(i % 17);

  Survey out;
  out.gradient_bytes = gradient_elems * sizeof(float);
  out.batch = batch;
  const auto look_at = [&](const std::string& name, const std::vector<int>& ranks) -> Status {
    Crew crew = crew_of(name, ranks, max_ranks);
    for (const Crew& known : out.crews)
      if (known.ranks == crew.ranks) return {};
    const bool member = std::find(crew.ranks.begin(), crew.ranks.end(), comm.rank()) != crew.ranks.end();
    auto part = comm.split(member ? 0 : -1);
    if (!part.ok()) return part.status();
    if (member)
      RINGFOLD_TRY(measure(*part, values, std::max<size_t>(1, batch / crew.ranks.size()), rehearsal, &crew));
    RINGFOLD_TRY(share(comm, &crew));
    out.crews.push_back(std::move(crew));
    return {};
  };

  std::vector<int> every(static_cast<size_t>(comm.size()));
  std::iota(every.begin(), every.end(), 0);
  RINGFOLD_TRY(look_at(fmt::format("all {}", comm.size()), every));
  const Crew first = out.crews.front();
  const double fastest = *std::min_element(first.sample_s.begin(), first.sample_s.end());
  std::vector<int> fast, first_of_host;
  std::set<std::string> hosts;
  for (size_t m = 0; m < first.ranks.size(); ++m) {
    if (first.sample_s[m] > kMuchSlower * fastest) continue;
    fast.push_back(first.ranks[m]);
    if (hosts.insert(comm.host_of(first.ranks[m])).second) first_of_host.push_back(first.ranks[m]);
  }
  RINGFOLD_TRY(look_at(fmt::format("the {} fastest of {}", fast.size(), comm.size()), fast));
  if (hosts.size() > 1) RINGFOLD_TRY(look_at(fmt::format("one of each of {} hosts", hosts.size()), first_of_host));
  const std::vector<int> half(fast.begin(), fast.begin() + static_cast<long>((fast.size() + 1) / 2));
  RINGFOLD_TRY(look_at(fmt::format("{} of {}", half.size(), comm.size()), half));
  if (batch < every.size() || step_s(out.crews.back(), batch) < kFewerMayDo * step_s(first, batch))
    RINGFOLD_TRY(look_at("1", {fast[0]}));
  const size_t most = max_ranks > 0 ? std::min(every.size(), static_cast<size_t>(max_ranks)) : every.size();
  if (const size_t whole = most - most % static_cast<size_t>(multiple); whole > 0 && whole < most)
    RINGFOLD_TRY(look_at(fmt::format("{} of {}", whole, comm.size()),
                         {every.begin(), every.begin() + static_cast<long>(whole)}));
  return out;
}

Status rehearse(Communicator& comm, const Survey& survey, const Rehearsal& rehearsal,
                std::vector<Candidate>* candidates) {
  constexpr int kTrials = 6;
  constexpr double kClearly = 0.98;
  const auto cheapest = [&](bool tried) {
    auto best = candidates->end();
    for (auto c = candidates->begin(); c != candidates->end(); ++c)
      // Of about equal ones the first: the plainest.
      if ((c->tried || !tried) && (best == candidates->end() || c->cost < kClearly * best->cost)) best = c;
    return best;
  };
  // Measured / predicted at first, by crew, way of synchronising and cut.
  std::map<std::tuple<size_t, std::string, int, int>, std::vector<double>> beside;
  for (int trial = 0; trial < kTrials && !cheapest(false)->tried; ++trial) {
    Candidate& c = *cheapest(false);
    const Crew& crew = survey.crews[c.settings.crew];
    const bool member = std::find(crew.ranks.begin(), crew.ranks.end(), comm.rank()) != crew.ranks.end();
    auto part = comm.split(member ? 0 : -1);
    if (!part.ok()) return part.status();
    double step_s = 0;
    if (member) {
      auto took = rehearsal.step(*part, c.settings);
      if (!took.ok()) return took.status();
      step_s = *took;
      // Meetings that are too rare for a rehearsal.
      if (c.settings.local_steps > kRehearsed) step_s += c.exposed_s;
    }
    RINGFOLD_TRY(comm.broadcast(&step_s, &step_s, 1, DataType::kF64, crew.ranks[0]).wait());
    const auto kind = [](const Candidate& of) {
      const Settings& s = of.settings;
      return std::tuple(s.crew, s.sync, s.cut.pipeline, s.cut.tensor);
    };
    auto& known = beside[kind(c)];
    const double before = known.empty() ? 1 : median(known);
    known.push_back(step_s / c.step_s * before);
    const double now = median(known);
    c.cost *= step_s / c.step_s;
    c.step_s = step_s;
    c.tried = true;
    for (Candidate& other : *candidates) {
      if (other.tried || kind(other) != kind(c)) continue;
      other.cost *= now / before;
      other.step_s *= now / before;
    }
  }
  const double best = cheapest(true)->cost;
  for (Candidate& c : *candidates) c.cost /= best;
  std::iter_swap(candidates->begin(), cheapest(true));
  std::stable_sort(candidates->begin() + 1, candidates->end(),
                   [](const auto& a, const auto& b) { return a.cost < b.cost; });
  return {};
}

}  // namespace ringfold::train
