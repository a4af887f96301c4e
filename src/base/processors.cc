#include "base/processors.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <charconv>
#include <fstream>

namespace ringfold::base {
namespace {

constexpr size_t kMost = 8192;  // processors of a host

double cgroup_limit() {
  double limit = Processors().limit;
  const auto of = [&](double quota, double period) {
    if (quota > 0 && period > 0) limit = quota / period;
  };
  std::string quota;
  double period = 0;
  if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2 >> quota >> period && quota != "max") {
    of(std::strtod(quota.c_str(), nullptr), period);
  }
  double v1_quota = 0;
  if (std::ifstream q("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), p("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
      q >> v1_quota && p >> period) {
    of(v1_quota, period);
  }
  return limit;
}

}  // namespace

Processors Processors::mine() {
  Processors result;
  for (size_t room = 1024; room <= kMost; room *= 2) {  // the kernel refuses sets smaller than its own
    cpu_set_t* set = CPU_ALLOC(room);
    const size_t bytes = CPU_ALLOC_SIZE(room);
    const bool got = sched_getaffinity(0, bytes, set) == 0;
    for (size_t i = 0; got && i < room; ++i) {
      if (!CPU_ISSET_S(i, bytes, set)) continue;
      result.mask.resize(i + 1);
      result.mask[i] = true;
    }
    CPU_FREE(set);
    if (got) break;
  }
  if (result.mask.empty()) result.mask = {true};
  result.limit = cgroup_limit();
  return result;
}

int Processors::count() const { return static_cast<int>(std::count(mask.begin(), mask.end(), true)); }

double Processors::usable() const { return std::min<double>(count(), limit); }

bool Processors::contains(const Processors& other) const {
  for (size_t i = 0; i < other.mask.size(); ++i) {
    if (other.mask[i] && (i >= mask.size() || !mask[i])) return false;
  }
  return true;
}

void Processors::add(const Processors& other) {
  mask.resize(std::max(mask.size(), other.mask.size()));
  for (size_t i = 0; i < other.mask.size(); ++i) mask[i] = mask[i] || other.mask[i];
  limit = std::max(limit, other.limit);
}

std::string Processors::to_string() const {
  std::string text;
  for (size_t i = 0; i < mask.size(); ++i) {
    if (!mask[i]) continue;
    size_t last = i;
    while (last + 1 < mask.size() && mask[last + 1]) ++last;
    text += fmt::format("{}{}", text.empty() ? "" : ",", i);
    if (last > i) text += fmt::format("-{}", last);
    i = last;
  }
  if (limit < Processors().limit) text += fmt::format("/{:.3g}", limit);
  return text;
}

Processors Processors::parse(std::string_view text) {
  Processors result;
  const char *at = text.data(), *const end = at + text.size();
  const auto number = [&](auto* value) {
    const auto [next, error] = std::from_chars(at, end, *value);
    at = next;
    return error == std::errc();
  };
  bool good = true;
  while (good && at != end && *at != '/') {
    size_t first = 0;
    good = number(&first);
    size_t last = first;
    if (good && at != end && *at == '-') ++at, good = number(&last);
    good = good && first <= last && last < kMost;
    if (good && result.mask.size() <= last) result.mask.resize(last + 1);
    for (size_t i = first; good && i <= last; ++i) result.mask[i] = true;
    if (at != end && *at == ',') ++at;
  }
  if (good && at != end && *at == '/') ++at, good = number(&result.limit) && result.limit > 0;
  return good && at == end && result.count() > 0 ? result : Processors{{true}};
}

bool one_for_each(std::span<const Processors> ranks, size_t me) {
  Processors all = ranks[me];
  int rivals = 0;  // that run nowhere but where this rank may run
  for (const Processors& rank : ranks) {
    all.add(rank);
    rivals += ranks[me].contains(rank);
  }
  return static_cast<double>(ranks.size()) <= all.usable() && rivals <= ranks[me].usable();
}

size_t last_level_cache() {
  static const size_t kBytes = [] {
    size_t most = 0;
    for (int index = 0; index < 8; ++index) {
      std::ifstream file(fmt::format("/sys/devices/system/cpu/cpu0/cache/index{}/size", index));
      size_t kib = 0;
      if (file >> kib) most = std::max(most, kib * 1024);
    }
    return most > 0 ? most : size_t{32} << 20;
  }();
  return kBytes;
}

}  // namespace ringfold::base
