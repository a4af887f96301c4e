// `ringfold info`: what this host offers, and what Ringfold would do with it.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "comm/config.h"
#include "comm/interfaces.h"
#include "comm/launch.h"
#include "comm/wiring.h"
#include "ringfold/version.h"
#include "tools/cli/cli.h"
#include "tools/cli/host_facts.h"
#include "tools/cli/probes.h"
#include "transports/nvlink/survey.h"
#include "transports/ucx/ucx.h"
#include "transports/verbs/verbs.h"

namespace ringfold::cli {
namespace {

using nlohmann::ordered_json;

struct TransportRow {
  std::string name, state;  // "available", or "unavailable"
  std::string note;
};

// "nvlink" carries no links of the executor, but collectives on device memory (docs/gpu.md).
TransportRow nvlink_row(const nvlink::Survey& gpus) {
  const auto shares = [](const auto& row) { return row.why_not.empty(); };
  if (!gpus.none.empty()) return {"nvlink", "unavailable", gpus.none};
  if (std::none_of(gpus.rows.begin(), gpus.rows.end(), shares)) {
    return {"nvlink", "unavailable", gpus.rows.front().why_not};
  }
  return {"nvlink", "available", "collectives on device memory of ranks on this host"};
}

std::vector<TransportRow> transports(const verbs::Survey& ports, const nvlink::Survey& gpus) {
  const Probe shm = probe_proc_fd(), tcp = probe_tcp_loopback();
  const auto ucx = transport::ucx::presence();
  const auto state = [](bool works) { return works ? "available" : "unavailable"; };
  std::string rdma = ports.none.text;
  for (const auto& p : ports.ports) {
    rdma += fmt::format("{}{} {} ", rdma.empty() ? "" : "; ", p.name(), p.link);
    rdma += p.usable ? fmt::format("{}, {:g} Gbit/s, MTU {}, GIDs {}, dma-buf {}", p.state, p.gbps, p.mtu,
                                   fmt::join(p.gids, ", "), p.dma_buf ? "yes" : "no")
                     : fmt::format("{} ({})", p.findings.front().text, p.findings.front().mend);
  }
  return {{"shm", state(shm.works), shm.works ? "ranks on this host" : shm.reason},
          {"verbs", state(ports.usable()), rdma},
          {"tcp", state(tcp.works), tcp.works ? "ranks on any host" : tcp.reason},
          {"ucx", state(ucx.there), ucx.there ? ucx.text + ", where it is asked for (--transport ucx)" : ucx.text},
          nvlink_row(gpus),
          {"loopback", "available", "ranks as threads of one process"}};
}

// What each GPU can do with the memory of the others.
std::string reach_of(const nvlink::Survey::Row& row) {
  if (!row.why_not.empty()) return row.why_not;
  std::string text = "its memory can be shared";
  if (!row.reaches.empty()) text += fmt::format("; it reaches GPU {}", fmt::join(row.reaches, ", "));
  for (const auto& why : row.why_no_reach) text += "; " + why;
  text +=
      row.why_no_multicast.empty() ? "; its switch adds (NVLS)" : "; no sums in a switch: " + row.why_no_multicast;
  return text;
}

void head(std::string_view title) { fmt::print("\n{}\n", title); }
void row(std::string_view name, std::string_view value) { fmt::print("  {:<12} {}\n", name, value); }

void print_host(const HostFacts& f) {
  fmt::print("ringfold {} on {}\n", version(), f.name);
  head("Host");
  row("kernel", f.kernel);
  row("processor",
      fmt::format("{}{}{} socket{}, {} NUMA node{}, {} cores, {} CPUs", f.processor, f.processor.empty() ? "" : ", ",
                  f.sockets, f.sockets == 1 ? "" : "s", f.numa_nodes, f.numa_nodes == 1 ? "" : "s", f.cores, f.cpus));
  row("caches", fmt::to_string(fmt::join(f.caches, ", ")));
  row("affinity", fmt::format("{} of {} CPUs: {}", f.allowed_cpus, f.cpus, f.allowed));
  row("cpu quota", f.cpu_limit > 0 ? fmt::format("{:g} CPUs ({})", f.cpu_limit, f.cgroup_limit_from) : "none");
  row("memory",
      fmt::format(
          "{}, {} free{}", memory_text(f.memory), memory_text(f.memory_free),
          f.memory_limit > 0 ? fmt::format(", limited to {} by the cgroup", memory_text(f.memory_limit)) : ""));
  row("huge pages", f.huge_pages.empty() ? "no transparent huge pages" : "transparent: " + f.huge_pages);
}

}  // namespace

int info(const InfoOptions& options) {
  const HostFacts facts = host_facts();
  const auto environment = comm::process_environment();
  const auto config = comm::Config::from_environment(environment);
  const auto interfaces = comm::list_interfaces();
  Result<comm::Launch> launch =
      config.ok() ? comm::read_launch(environment, *config) : Result<comm::Launch>(config.status());
  const int result = config.ok() && launch.ok() ? kExitOk : kExitEnvironment;

  const verbs::Survey ports = verbs::survey(config.ok() ? comm::rdma_options(*config) : verbs::Options());

  const nvlink::Survey gpus = nvlink::survey();

  if (options.json) {
    ordered_json all = {{"ringfold", version()}};
    all["host"] = {{"name", facts.name},
                   {"kernel", facts.kernel},
                   {"processor", facts.processor},
                   {"sockets", facts.sockets},
                   {"numa_nodes", facts.numa_nodes},
                   {"cores", facts.cores},
                   {"cpus", facts.cpus},
                   {"affinity", facts.allowed},
                   {"allowed_cpus", facts.allowed_cpus},
                   {"cpu_limit", facts.cpu_limit},
                   {"caches", facts.caches},
                   {"memory", facts.memory},
                   {"memory_free", facts.memory_free},
                   {"memory_limit", facts.memory_limit},
                   {"huge_pages", facts.huge_pages}};
    all["interfaces"] = ordered_json::array();
    if (interfaces.ok()) {
      for (const auto& i : *interfaces) {
        all["interfaces"].push_back(
            {{"name", i.name}, {"address", i.address}, {"prefix", i.prefix}, {"kind", name_of(i.kind)}});
      }
    }
    all["transports"] = ordered_json::array();
    for (const auto& t : transports(ports, gpus))
      all["transports"].push_back({{"name", t.name}, {"state", t.state}, {"note", t.note}});
    all["gpus"] = ordered_json::array();
    for (const auto& g : gpus.rows) {
      all["gpus"].push_back(
          {{"number", g.gpu.ordinal},
           {"name", g.gpu.name},
           {"uuid", g.gpu.uuid},
           {"shared", g.why_not.empty()},
           {"reaches", g.reaches},
           {"multicast", g.why_no_multicast.empty()},
           {"why_no_multicast", g.why_no_multicast},
           {"why_not", g.why_not.empty() ? fmt::to_string(fmt::join(g.why_no_reach, "; ")) : g.why_not}});
    }
    all["settings"] = ordered_json::array();
    if (config.ok()) {
      for (const auto& s : config->rows()) {
        all["settings"].push_back(
            {{"name", s.name}, {"value", s.value}, {"source", s.source}, {"meaning", s.meaning}});
      }
    } else {
      all["error"] = config.status().message();
    }
    all["ucx_settings"] = ordered_json::array();
    for (const auto& s : transport::ucx::settings())
      all["ucx_settings"].push_back({{"name", s.name}, {"value", s.value}, {"why", s.why}});
    if (launch.ok()) {
      all["launch"] = {{"source", launch->source},
                       {"rank", launch->rank},
                       {"size", launch->size},
                       {"rendezvous", launch->rendezvous}};
    } else {
      all["error"] = launch.status().message();
    }
    fmt::print("{}\n", all.dump(1));
    return result;
  }

  print_host(facts);
  head("Interfaces (most promising first)");
  if (!interfaces.ok()) row("none", interfaces.status().message());
  for (size_t i = 0; interfaces.ok() && i < interfaces->size(); ++i) {
    const auto& entry = (*interfaces)[i];
    row(entry.name, fmt::format("{:<28} {}", fmt::format("{}/{}", entry.address, entry.prefix), name_of(entry.kind)));
  }
  head("Transports");
  for (const auto& t : transports(ports, gpus)) row(t.name, fmt::format("{}: {}", t.state, t.note));
  if (!gpus.rows.empty()) head("GPUs");
  for (const auto& g : gpus.rows) row(fmt::to_string(g.gpu.ordinal), fmt::format("{}: {}", g.gpu.name, reach_of(g)));
  if (const auto settings = transport::ucx::settings(); !settings.empty()) {
    head("Settings of UCX that are not its defaults");
    for (const auto& s : settings) fmt::print("  {:<32} {:<16} {}\n", s.name, s.value, s.why);
  }
  head("Launcher");
  row(launch.ok() ? "found" : "error", launch.ok() ? launch->to_string() : launch.status().message());
  head("Settings");
  if (!config.ok()) row("error", config.status().message());
  if (config.ok()) {
    for (const auto& s : config->rows()) {
      fmt::print("  {:<24} {:<10} {:<12} {}\n", s.name, s.value.empty() ? "-" : s.value, s.source, s.meaning);
    }
  }
  return result;
}

}  // namespace ringfold::cli
