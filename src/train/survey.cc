#include "train/survey.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "ringfold/memory.h"

namespace ringfold::train {
namespace {

constexpr int kTimes = 3;  // after one to warm up; the median counts
constexpr const char* kCodecs[] = {"none", "int8", "int4"};

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> times) {
  std::nth_element(times.begin(), times.begin() + static_cast<long>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

Status measure(Communicator& comm, std::span<float> gradients, size_t samples, const Compute& compute, Crew* crew) {
  std::vector<double> times;
  for (int i = 0; i <= kTimes; ++i) {
    RINGFOLD_TRY(comm.barrier().wait());
    const double taken = compute(samples);
    if (i > 0) times.push_back(taken);
  }
  const double own = median(times) / static_cast<double>(samples);
  crew->sample_s.resize(static_cast<size_t>(comm.size()));
  RINGFOLD_TRY(comm.all_gather(&own, crew->sample_s.data(), 1, DataType::kF64).wait());

  for (const char* name : kCodecs) {
    if (comm.size() == 1) {
      crew->exchange_s = {{"none", 0.0}};
      break;
    }
    CallOptions options;
    options.codec = *parse_codec(name);
    times.clear();
    for (int i = 0; i <= kTimes; ++i) {
      RINGFOLD_TRY(comm.barrier().wait());
      const double begin = seconds();
      RINGFOLD_TRY(
          comm.all_reduce(gradients.data(), gradients.data(), gradients.size(), DataType::kF32, kSum, options)
              .wait());
      if (i > 0) times.push_back(seconds() - begin);
    }
    double slowest = median(times);
    RINGFOLD_TRY(comm.all_reduce(&slowest, &slowest, 1, DataType::kF64, kMax).wait());
    crew->exchange_s.emplace_back(name, slowest);
  }
  return {};
}

std::vector<Crew> crews_of(const Communicator& comm, int max_ranks) {
  const int n = comm.size();
  std::vector<Crew> all;
  const auto add = [&](const std::string& name, std::vector<int> ranks) {
    if (max_ranks > 0 && static_cast<int>(ranks.size()) > max_ranks) ranks.resize(static_cast<size_t>(max_ranks));
    for (const Crew& crew : all) {
      if (crew.ranks == ranks) return;
    }
    all.push_back({});
    all.back().name = max_ranks > 0 && static_cast<int>(ranks.size()) == max_ranks && max_ranks < n
                          ? fmt::format("{} ranks", max_ranks)
                          : name;
    all.back().ranks = std::move(ranks);
  };
  std::vector<int> every, first_of_host, half;
  std::set<std::string> hosts;
  for (int r = 0; r < n; ++r) {
    every.push_back(r);
    if (hosts.insert(comm.host_of(r)).second) first_of_host.push_back(r);
    if (r < (n + 1) / 2) half.push_back(r);
  }
  add(fmt::format("all {}", n), every);
  if (hosts.size() > 1) add(fmt::format("one of each of {} hosts", hosts.size()), first_of_host);
  add(fmt::format("{} of {}", half.size(), n), half);
  add("1", {0});
  return all;
}

// Rank 0's figures for all.
Status share(Communicator& comm, Crew* crew) {
  std::vector<double> figures = crew->sample_s;
  figures.resize(crew->ranks.size());
  std::vector<double> times(std::size(kCodecs));
  for (size_t i = 0; i < crew->exchange_s.size(); ++i) times[i] = crew->exchange_s[i].second;
  figures.insert(figures.end(), times.begin(), times.end());
  RINGFOLD_TRY(comm.broadcast(figures.data(), figures.data(), figures.size(), DataType::kF64, crew->ranks[0]).wait());
  const auto codecs = figures.begin() + static_cast<long>(crew->ranks.size());
  crew->sample_s.assign(figures.begin(), codecs);
  crew->exchange_s.clear();
  for (size_t i = 0; i < (crew->ranks.size() == 1 ? 1 : std::size(kCodecs)); ++i)
    crew->exchange_s.emplace_back(kCodecs[i], codecs[static_cast<long>(i)]);
  return {};
}

}  // namespace

Result<Survey> survey(Communicator& comm, size_t gradient_elems, size_t batch, int max_ranks,
                      const Compute& compute) {
  auto gradients = allocate_buffer<float>(std::max<size_t>(gradient_elems, 1));
  if (!gradients.ok()) return gradients.status();
  const std::span<float> values(gradients->get(), gradient_elems);
  for (size_t i = 0; i < values.size(); ++i) values[i] = 1e-3F * static_cast<float>(i % 17);

  Survey out;
  out.gradient_bytes = gradient_elems * sizeof(float);
  out.batch = batch;
  for (Crew& crew : crews_of(comm, max_ranks)) {
    const bool member = std::find(crew.ranks.begin(), crew.ranks.end(), comm.rank()) != crew.ranks.end();
    auto part = comm.split(member ? 0 : -1);
    if (!part.ok()) return part.status();
    if (member) {
      const size_t samples = std::max<size_t>(1, batch / crew.ranks.size());
      RINGFOLD_TRY(measure(*part, values, samples, compute, &crew));
    }
    RINGFOLD_TRY(share(comm, &crew));
    out.crews.push_back(std::move(crew));
  }
  return out;
}

}  // namespace ringfold::train
