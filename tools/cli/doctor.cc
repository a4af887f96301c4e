// `ringfold doctor`: tries what a job needs, and says what is wrong and how to mend it.
#include <fmt/format.h>
#include <netdb.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <set>

#include "base/clock.h"
#include "comm/config.h"
#include "comm/interfaces.h"
#include "comm/launch.h"
#include "comm/wiring.h"
#include "tools/cli/cli.h"
#include "tools/cli/findings.h"
#include "tools/cli/host_facts.h"
#include "tools/cli/probes.h"
#include "tools/cli/rdma_checks.h"
#include "tools/cli/run/capture.h"
#include "tools/cli/run/hosts.h"

namespace ringfold::cli {
namespace {

void check_settings(Findings* report) {
  const auto environment = comm::process_environment();
  const auto config = comm::Config::from_environment(environment);
  if (!config.ok()) return report->fail("settings", config.status().message(), "correct or unset the variable");
  report->ok("settings", "all RINGFOLD_* variables are valid");
  const auto launch = comm::read_launch(environment, *config);
  if (!launch.ok()) {
    report->fail("launcher", launch.status().message(),
                 "unset the variables of all launchers but one, or start with `ringfold run`");
  } else {
    report->ok("launcher", launch->to_string());
  }
  const auto key = comm::load_key(*config, environment);
  if (key.ok())
    return report->ok("key", config->key_file.value().empty() ? "the user's own" : config->key_file.value());
  report->fail("key", key.status().message(),
               "chmod 600 the key file and make it the user's own, or name another in RINGFOLD_KEY_FILE");
}

void check_limits(const DoctorOptions& options, Findings* report) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const auto needed =
      static_cast<rlim_t>(128 + 16 * options.ranks);  // two links and three streams a peer, and some room
  if (limit.rlim_cur >= needed) {
    report->ok("open files",
               fmt::format("{} allowed, some {} needed for {} ranks", limit.rlim_cur, needed, options.ranks));
  } else {
    const bool can = limit.rlim_max >= needed;
    report->fail("open files",
                 fmt::format("{} allowed, some {} needed for {} ranks", limit.rlim_cur, needed, options.ranks),
                 can ? fmt::format("ulimit -n {}", needed)
                     : "raise nofile in /etc/security/limits.conf (or LimitNOFILE= of the service)");
  }
}

void check_host(const DoctorOptions& options, Findings* report) {
  const HostFacts facts = host_facts();
  const double cpus = usable_cpus(facts);
  const auto found =
      fmt::format("{:g} CPUs for {} ranks ({} by affinity{})", cpus, options.ranks, facts.allowed_cpus,
                  facts.cpu_limit > 0 ? fmt::format(", {:g} by the cgroup's quota", facts.cpu_limit) : "");
  if (cpus >= options.ranks) {
    report->ok("cpus", found);
  } else {
    report->warn("cpus", found, "fewer ranks, or more CPUs: ranks that share one take turns, which costs latency");
  }
  const uint64_t needed = static_cast<uint64_t>(options.ranks) << 27,
                 limit = facts.memory_limit > 0 ? facts.memory_limit : facts.memory;
  const auto memory = fmt::format("{} free of {}", memory_text(facts.memory_free), memory_text(limit));
  if (std::min(facts.memory_free, limit) >= needed) {
    report->ok("memory", memory);
  } else {
    report->warn("memory", memory,
                 fmt::format("{} ranks with their buffers take some {}", options.ranks, memory_text(needed)));
  }
  if (facts.huge_pages == "always" || facts.huge_pages == "madvise") {
    report->ok("huge pages", "transparent: " + facts.huge_pages);
  } else {
    report->warn("huge pages", facts.huge_pages.empty() ? "none" : "transparent: " + facts.huge_pages,
                 "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (large buffers gain a little)");
  }
  constexpr int kReads = 2000;
  const auto begin = base::Clock::now();
  for (int i = 0; i < kReads; ++i) static_cast<void>(base::Clock::now());
  const double nanoseconds = 1e9 * base::seconds_of(base::Clock::now() - begin) / kReads;
  const auto source = first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource");
  const auto clock = fmt::format("{:.0f} ns a reading{}", nanoseconds, source.empty() ? "" : ", from " + source);
  if (nanoseconds < 500) {
    report->ok("clock", clock);
  } else {
    report->warn("clock", clock,
                 "boot with clocksource=tsc, or let the hypervisor offer a clock that needs no system call");
  }
  const char* base = std::getenv("TMPDIR");
  const std::string folder = base != nullptr && *base != '\0' ? base : "/tmp";
  if (::access(folder.c_str(), W_OK | X_OK) == 0) {
    report->ok("job folder", folder);
  } else {
    report->fail("job folder", folder + " is not writable", "set TMPDIR to a folder that is");
  }
}

void check_sharing(Findings* report) {
  const Probe segments = probe_proc_fd();
  if (segments.works) {
    report->ok("shared memory", "processes of this user can map each other's segments");
  } else {
    report->fail("shared memory", segments.reason,
                 "run all ranks as one user and in one PID namespace, with /proc mounted without hidepid; or set "
                 "RINGFOLD_TRANSPORT=tcp");
  }
  const Probe reading = probe_vm_readv();
  if (reading.works) {
    report->ok("peer memory", "process_vm_readv works");
  } else {
    report->warn("peer memory", reading.reason + "; ordinary buffers are copied through slots instead",
                 "sysctl kernel.yama.ptrace_scope=0, or in a container --cap-add SYS_PTRACE; buffers from "
                 "ringfold::allocate() need neither");
  }
}

void check_network(Findings* report) {
  const Probe loopback = probe_tcp_loopback();
  if (loopback.works) {
    report->ok("tcp on this host", "127.0.0.1 answers");
  } else {
    report->fail("tcp on this host", loopback.reason, "ip link set lo up");
  }
  const auto config = comm::Config::from_environment(comm::process_environment());
  const auto all = comm::list_interfaces();
  if (!all.ok() || !config.ok())
    return report->fail("interfaces", (all.ok() ? config.status() : all.status()).message(), "see above");
  const auto usable = comm::select_interfaces(*all, config->interfaces);
  if (!usable.ok())
    return report->fail("interfaces", usable.status().message(),
                        "name one that is up in RINGFOLD_INTERFACE, or unset it");
  std::string names;
  bool outside = false;
  for (const auto& i : *usable) {
    names += (names.empty() ? "" : ", ") + i.to_string();
    outside |= i.kind == comm::AddressKind::kNetwork;
  }
  if (outside) {
    report->ok("interfaces", names);
  } else {
    report->warn("interfaces", names + ": none leads to other hosts",
                 "bring a network interface up, if other hosts are wanted");
  }
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(name.data(), nullptr, nullptr, &found);
  if (error == 0) {
    ::freeaddrinfo(found);
    report->ok("own name", fmt::format("{} resolves", name.data()));
  } else {
    report->warn("own name", fmt::format("{}: {}", name.data(), ::gai_strerror(error)),
                 "add it to /etc/hosts; launchers that pass host names around need it");
  }
}

// True: there is RDMA that works.
bool check_rdma(const DoctorOptions& options, Findings* report) {
  const auto config = comm::Config::from_environment(comm::process_environment());
  if (!config.ok()) return false;  // said before
  const std::string& transport = config->transport.value();
  const bool works = check_verbs(comm::rdma_options(*config), options.ranks, transport == "verbs", report);
  check_ucx(transport == "ucx", report);
  return works;
}

// Names differ? Is the program there? Is its clock near? Answers "ringfold 0.1.0\n1700000000".
void check_hosts(const std::vector<Host>& hosts, Findings* report) {
  for (const Host& host : hosts) {
    if (host.local) continue;
    auto command = ssh_command(host.name);
    command.push_back(
        fmt::format("exec sh -c {}", sh_quoted(fmt::format("{} --version; date +%s", sh_quoted(own_path())))));
    const auto begin = ::time(nullptr);
    const auto answer = capture(command, 20);
    const std::string what = "host " + host.name;
    if (!answer.ok() || answer->status != 0) {
      report->fail(
          what,
          answer.ok()
              ? fmt::format("status {}: {}", answer->status, answer->output.substr(0, answer->output.find('\n')))
              : answer.status().message(),
          fmt::format("`{} true` must work without a password (ssh keys; RINGFOLD_SSH names another program)",
                      host.name));
      continue;
    }
    const auto line = answer->output.find('\n');
    const std::string version = answer->output.substr(0, line);
    const auto clock = line == std::string::npos ? 0 : std::atoll(answer->output.c_str() + line + 1);
    if (!version.starts_with("ringfold ")) {
      report->fail(what, "no Ringfold at " + own_path(), "install it at the same path, as a shared folder does");
    } else if (std::llabs(clock - begin) > 60) {
      report->warn(what, fmt::format("{}; its clock is {} s off", version, clock - begin),
                   "synchronise the clocks, so that logs can be compared");
    } else {
      report->ok(what, version);
    }
  }
}

void self_test(const DoctorOptions& options, const std::string& transport, Findings* report) {
  const std::vector<std::string> command = {
      own_path(), "perf", "all_reduce", "--transport", transport, "--max",        "64K",
      "--factor", "64",   "--quiet",    "--warmup",    "1",       "--iterations", "2"};
  int result = kExitOk;
  if (transport == "loopback") {
    PerfOptions perf_options;
    perf_options.op = "all_reduce";
    perf_options.ranks = options.ranks;
    perf_options.max = "64K";
    perf_options.factor = 64;
    perf_options.transport = transport;
    perf_options.iterations = 2;
    perf_options.quiet = true;
    result = perf(perf_options, {});
  } else {
    JobOptions job;
    job.command = command;
    job.ranks = options.ranks;
    job.hosts = options.hosts;
    job.timeout_s = 60;
    job.quiet = true;
    result = run_job(job);
  }
  const std::string what = "test " + transport;
  if (result == kExitOk) return report->ok(what, fmt::format("all_reduce over {} ranks is right", options.ranks));
  report->fail(what, result == 124 ? "did not end within 60 s" : fmt::format("ended with status {}", result),
               fmt::format("RINGFOLD_LOG=info ringfold perf all_reduce --ranks {} --transport {}{} says more",
                           options.ranks, transport, options.hosts.empty() ? "" : " --hosts " + options.hosts));
}

}  // namespace

int doctor(const DoctorOptions& options) {
  const auto hosts = parse_hosts(options.hosts);
  if (!hosts.ok()) {
    fmt::print(stderr, "ringfold doctor: {}\n", hosts.status().message());
    return kExitUsage;
  }
  Findings report;
  check_settings(&report);
  check_limits(options, &report);
  check_host(options, &report);
  check_sharing(&report);
  check_network(&report);
  const bool rdma = check_rdma(options, &report);
  check_hosts(*hosts, &report);
  if (options.self_test) {
    // Processes first: they are forked best while there are no threads.
    if (std::all_of(hosts->begin(), hosts->end(), [](const Host& h) { return h.local; }))
      self_test(options, "shm", &report);
    self_test(options, "tcp", &report);
    if (rdma) self_test(options, "verbs", &report);
    self_test(options, "loopback", &report);
  }
  return report.finish();
}

}  // namespace ringfold::cli
