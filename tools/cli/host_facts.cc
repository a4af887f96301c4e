#include "tools/cli/host_facts.h"

#include <fmt/format.h>
#include <hwloc.h>
#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <sstream>
#include <thread>

namespace ringfold::cli {
namespace {

// The folders of this process's cgroup and all above it: any may hold a limit. `controller` is for version 1 ("cpu").
std::vector<std::string> cgroup_folders(const std::string& controller) {
  std::vector<std::string> folders;
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (second == line.npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1);
    std::string root = "/sys/fs/cgroup";
    if (!names.empty()) {
      if (("," + names + ",").find("," + controller + ",") == std::string::npos) continue;
      root += "/" + controller;
    }
    for (std::string path = line.substr(second + 1); path.size() > 1; path.resize(path.rfind('/')))
      folders.push_back(root + path);
    folders.push_back(root);  // in a container, the path may be that of outside
  }
  return folders;
}

void read_cpu_limit(HostFacts* facts) {
  const auto keep = [&](double quota, double period, const std::string& from) {
    if (quota <= 0 || period <= 0) return;
    if (facts->cpu_limit > 0 && quota / period >= facts->cpu_limit) return;
    facts->cpu_limit = quota / period;
    facts->cgroup_limit_from = from;
  };
  for (const auto& folder : cgroup_folders("cpu")) {
    std::istringstream text(first_line(folder + "/cpu.max"));  // "max 100000" means no limit: no number
    double quota = 0, period = 0;
    if (text >> quota >> period) keep(quota, period, folder + "/cpu.max");
    const std::string old = first_line(folder + "/cpu.cfs_quota_us");
    if (!old.empty())
      keep(std::atof(old.c_str()), std::atof(first_line(folder + "/cpu.cfs_period_us").c_str()),
           folder + "/cpu.cfs_quota_us");
  }
}

void read_memory(HostFacts* facts) {
  std::ifstream file("/proc/meminfo");
  for (std::string name; file >> name;) {
    uint64_t kib = 0;
    std::string rest;
    file >> kib;
    std::getline(file, rest);
    if (name == "MemTotal:") facts->memory = kib << 10;
    if (name == "MemAvailable:") facts->memory_free = kib << 10;
  }
  for (const auto& folder : cgroup_folders("memory")) {
    for (const char* file_name : {"/memory.max", "/memory.limit_in_bytes"}) {
      const uint64_t limit = std::strtoull(first_line(folder + file_name).c_str(), nullptr, 10);
      if (limit == 0 || limit >= facts->memory) continue;  // absent, "max", or more than there is
      if (facts->memory_limit == 0 || limit < facts->memory_limit) facts->memory_limit = limit;
    }
  }
}

void read_topology(HostFacts* facts) {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return;
  const std::unique_ptr<hwloc_topology, decltype(&hwloc_topology_destroy)> topology(raw, &hwloc_topology_destroy);
  if (hwloc_topology_load(raw) != 0) return;
  const auto count = [&](hwloc_obj_type_t type) { return std::max(0, hwloc_get_nbobjs_by_type(raw, type)); };
  facts->sockets = count(HWLOC_OBJ_PACKAGE);
  facts->numa_nodes = count(HWLOC_OBJ_NUMANODE);
  facts->cores = count(HWLOC_OBJ_CORE);
  facts->cpus = count(HWLOC_OBJ_PU);
  const std::array<hwloc_obj_type_t, 4> levels = {HWLOC_OBJ_L1CACHE, HWLOC_OBJ_L2CACHE, HWLOC_OBJ_L3CACHE,
                                                  HWLOC_OBJ_L4CACHE};
  for (size_t level = 0; level < levels.size(); ++level) {
    const hwloc_obj_t cache = hwloc_get_obj_by_type(raw, levels[level], 0);
    if (cache == nullptr) continue;
    facts->caches.push_back(
        fmt::format("L{} {} x {}", level + 1, memory_text(cache->attr->cache.size), count(levels[level])));
  }
  if (const hwloc_obj_t package = hwloc_get_obj_by_type(raw, HWLOC_OBJ_PACKAGE, 0); package != nullptr) {
    if (const char* model = hwloc_obj_get_info_by_name(package, "CPUModel"); model != nullptr)
      facts->processor = model;
  }
}

}  // namespace

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string memory_text(uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  return fmt::format("{:.3g} {}", value, kUnits[unit]);
}

HostFacts host_facts() {
  HostFacts facts;
  utsname system{};
  if (::uname(&system) == 0) {
    facts.name = system.nodename;
    facts.kernel = fmt::format("{} {} {}", system.sysname, system.release, system.machine);
  }
  read_topology(&facts);
  if (facts.cpus == 0) facts.cpus = static_cast<int>(std::thread::hardware_concurrency());
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof(set), &set) == 0) {
    facts.allowed_cpus = CPU_COUNT(&set);
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &set) || (cpu > 0 && CPU_ISSET(cpu - 1, &set))) continue;
      int last = cpu;
      while (last + 1 < CPU_SETSIZE && CPU_ISSET(last + 1, &set)) ++last;
      facts.allowed +=
          fmt::format("{}{}{}", facts.allowed.empty() ? "" : ",", cpu, last > cpu ? fmt::format("-{}", last) : "");
    }
  }
  read_cpu_limit(&facts);
  read_memory(&facts);
  const std::string pages = first_line("/sys/kernel/mm/transparent_hugepage/enabled");
  if (const auto open = pages.find('['), close = pages.find(']'); close != pages.npos && open < close) {
    facts.huge_pages = pages.substr(open + 1, close - open - 1);
  }
  return facts;
}

double usable_cpus(const HostFacts& facts) {
  const double allowed = facts.allowed_cpus > 0 ? facts.allowed_cpus : std::max(1, facts.cpus);
  return facts.cpu_limit > 0 ? std::min(allowed, facts.cpu_limit) : allowed;
}

}  // namespace ringfold::cli
