#include "comm/launch.h"

#include <fmt/format.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <filesystem>
#include <functional>
#include <optional>
#include <vector>

#include "base/log.h"

namespace ringfold::comm {
namespace {

// One launcher: the names of its variables, and how its processes meet when it does not say.
struct Launcher {
  std::string_view name;    // for people
  std::string_view option;  // as RINGFOLD_LAUNCHER names it
  std::string_view rank, size, local_rank, local_size;
  std::function<Result<std::string>(const Environment&, const Launch&)> rendezvous;
};

constexpr int kPortsTried = 16;

std::optional<int> parse_int(std::string_view text) {
  int value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::string port_range(std::string_view host, int first) {
  return fmt::format("{}:{}-{}", host, first, std::min(first + kPortsTried - 1, 65535));
}

// torchrun's agent usually keeps its own store on MASTER_PORT, so rank 0 takes the first free port of a few beyond
// it.
Result<std::string> meet_at_master(const Environment& environment, const Launch&) {
  auto address = lookup(environment, "MASTER_ADDR"), text = lookup(environment, "MASTER_PORT");
  auto port = parse_int(text);
  if (address.empty() || !port || *port < 1 || *port > 65535) {
    return Status(
        Code::kInvalid,
        fmt::format("torchrun's RANK and WORLD_SIZE are set, but MASTER_ADDR=\"{}\" and MASTER_PORT=\"{}\" are not "
                    "an address and a port; set them or RINGFOLD_RENDEZVOUS",
                    address, text));
  }
  bool occupied = lookup(environment, "TORCHELASTIC_USE_AGENT_STORE") == "True";
  std::string host(address.find(':') == address.npos ? address : fmt::format("[{}]", address));
  return port_range(host, std::min(*port + (occupied ? 1 : 0), 65535));
}

// Slurm says which hosts, but no port: all ranks derive the same few from the job and step.
Result<std::string> meet_at_first_node(const Environment& environment, const Launch&) {
  auto nodes = lookup(environment, "SLURM_STEP_NODELIST");
  if (nodes.empty()) nodes = lookup(environment, "SLURM_NODELIST");
  if (nodes.empty()) {
    return Status(Code::kInvalid, "Slurm gives a rank but no SLURM_STEP_NODELIST; set RINGFOLD_RENDEZVOUS=host:port");
  }
  auto number = [&](std::string_view name) { return parse_int(lookup(environment, name)).value_or(0); };
  unsigned mixed =
      static_cast<unsigned>(number("SLURM_JOB_ID")) * 7919u + static_cast<unsigned>(number("SLURM_STEP_ID")) * 31u;
  return port_range(first_host(nodes), 20000 + static_cast<int>(mixed % 1000) * kPortsTried);
}

// mpirun says nothing about meeting: on one host a directory that only this user can enter does, named after the job.
Result<std::string> meet_in_directory(const Environment& environment, const Launch& launch) {
  if (launch.local_size >= 0 && launch.local_size < launch.size) {
    return Status(Code::kInvalid,
                  fmt::format("{} started {} ranks on several hosts but gives no address where they can meet; set "
                              "RINGFOLD_RENDEZVOUS to host:port (a free port of rank 0's host) or to dir:/path (a "
                              "shared directory)",
                              launch.source, launch.size));
  }
  std::string job;
  for (auto name : {"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID", "PMI_PORT", "HYDI_CONTROL_FD"}) {
    if (auto value = lookup(environment, name); !value.empty()) job += fmt::format("{}.", value);
  }
  job += fmt::format("{}", ::getppid());  // all ranks on a host are children of one agent
  for (char& c : job) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-') c = '_';
  }
  std::string base(lookup(environment, "XDG_RUNTIME_DIR"));
  struct stat info {};
  if (base.empty() || ::stat(base.c_str(), &info) != 0 || info.st_uid != ::geteuid()) {
    base = fmt::format("/tmp/ringfold-{}", ::geteuid());
  } else {
    base += "/ringfold";
  }
  ::mkdir(base.c_str(), 0700);
  if (::lstat(base.c_str(), &info) != 0 || !S_ISDIR(info.st_mode) || info.st_uid != ::geteuid() ||
      (info.st_mode & 077) != 0) {
    return Status(Code::kDenied, fmt::format("{} must be a directory of this user with mode 0700; remove it, or set "
                                             "RINGFOLD_RENDEZVOUS",
                                             base));
  }
  return fmt::format("dir:{}/{}", base, job);
}

// Kubernetes gives every pod of an indexed job its number, and nothing else. The number of pods is for the job's
// author to pass on, and the first pod has a name that the job's headless service resolves: JOB-0.SERVICE.
Result<std::string> meet_at_first_pod(const Environment& environment, const Launch& launch) {
  auto host = lookup(environment, "HOSTNAME"), service = lookup(environment, "RINGFOLD_SERVICE");
  const std::string suffix = fmt::format("-{}", launch.rank);
  if (service.empty() || !host.ends_with(suffix)) {
    return Status(
        Code::kInvalid,
        fmt::format("Kubernetes started pod {} of {} (HOSTNAME=\"{}\") but does not say where they can meet; "
                    "set RINGFOLD_SERVICE to the name of the job's headless service (its subdomain) or "
                    "RINGFOLD_RENDEZVOUS to host:port",
                    launch.rank, launch.size, host));
  }
  return port_range(fmt::format("{}-0.{}", host.substr(0, host.size() - suffix.size()), service), 29400);
}

Result<std::string> ask_for_rendezvous(const Environment&, const Launch& launch) {
  return Status(
      Code::kInvalid,
      fmt::format("RINGFOLD_RANK and RINGFOLD_SIZE={} are set but RINGFOLD_RENDEZVOUS is not; it must be host:port "
                  "(rank 0 listens there) or dir:/path",
                  launch.size));
}

const std::array<Launcher, 7>& launchers() {
  static const std::array<Launcher, 7> kLaunchers = {{
      {"ringfold run", "ringfold", "RINGFOLD_RANK", "RINGFOLD_SIZE", "RINGFOLD_LOCAL_RANK", "RINGFOLD_LOCAL_SIZE",
       ask_for_rendezvous},
      {"torchrun", "torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", meet_at_master},
      {"Slurm", "slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE",
       meet_at_first_node},
      {"Open MPI", "openmpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
       "OMPI_COMM_WORLD_LOCAL_SIZE", meet_in_directory},
      {"MPICH", "mpich", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", meet_in_directory},
      // PMIx tells the rank by a variable and the rest by its library only; most launchers that speak it say the rest
      // in variables of their own, above. (The names of the sizes are ours, for whoever has no libpmix.)
      {"PMIx", "pmix", "PMIX_RANK", "PMIX_SIZE", "PMIX_LOCAL_RANK", "PMIX_LOCAL_SIZE", meet_in_directory},
      {"Kubernetes", "kubernetes", "JOB_COMPLETION_INDEX", "JOB_COMPLETIONS", "", "", meet_at_first_pod},
  }};
  return kLaunchers;
}

// A batch script carries Slurm's variables without being a task of a step: only srun's own tasks count. And a
// torchrun that srun started once per node is no contradiction: its agents are Slurm's tasks.
// PMIX_RANK alone says too little to contradict anybody, and Open MPI's and Slurm's processes have it besides their
// own. In a pod of an indexed job another launcher may have started us.
bool applies(const Launcher& launcher, const Environment& environment, bool wanted) {
  if (launcher.option == "pmix" && lookup(environment, "PMIX_SIZE").empty()) {
    return wanted ||
           (lookup(environment, "OMPI_COMM_WORLD_RANK").empty() && lookup(environment, "SLURM_PROCID").empty());
  }
  if (launcher.option == "kubernetes") {
    return lookup(environment, "RINGFOLD_RANK").empty() && lookup(environment, "RANK").empty() &&
           lookup(environment, "OMPI_COMM_WORLD_RANK").empty() && lookup(environment, "PMI_RANK").empty();
  }
  if (launcher.option != "slurm") return true;
  auto step = lookup(environment, "SLURM_STEP_ID");
  if (step.empty() || step.size() > 9) return false;  // batch, interactive and extern steps have numbers near 2^32
  auto node = lookup(environment, "GROUP_RANK");
  return node.empty() || node != lookup(environment, "SLURM_PROCID") ||
         lookup(environment, "GROUP_WORLD_SIZE") != lookup(environment, "SLURM_NTASKS");
}

// What PMIx's server says of this process; kInvalid where a variable of the launcher's says something else.
Result<PmixJob> ask_pmix(const Launcher& launcher, const Environment& environment, const Config& config,
                         const Pmix& pmix) {
  auto job = pmix.job(config.timeout);
  if (!job.ok()) return job;
  for (auto [name, number] : {std::pair(launcher.rank, job->rank), std::pair(launcher.size, job->size)}) {
    const auto value = lookup(environment, name);
    if (value.empty() || parse_int(value) == number) continue;
    return Status(Code::kInvalid,
                  fmt::format("{}={} but PMIx's server says rank {} of {}: unset {}, or set RINGFOLD_RENDEZVOUS to "
                              "host:port or dir:/path if the variable is right",
                              name, value, job->rank, job->size, name));
  }
  return job;
}

// nullopt: this launcher did not start us.
Result<std::optional<Launch>> read_one(const Launcher& launcher, const Environment& environment, const Config& config,
                                       const Pmix& pmix) {
  auto rank = lookup(environment, launcher.rank), size = lookup(environment, launcher.size);
  if ((rank.empty() && size.empty()) || !applies(launcher, environment, config.launcher.value() == launcher.option)) {
    return std::optional<Launch>();
  }
  if (launcher.option == "pmix" && size.empty() && has_pmix_server(environment)) {
    auto job = ask_pmix(launcher, environment, config, pmix);
    if (job.ok()) {
      return std::optional(Launch{.rank = job->rank,
                                  .size = job->size,
                                  .local_rank = job->local_rank >= 0 ? job->local_rank : job->rank,
                                  .local_size = job->local_size,
                                  .source = std::string(launcher.name)});
    }
    if (job.status().code() != Code::kUnavailable) return job.status();
    return Status(
        Code::kUnavailable,
        fmt::format("PMIX_RANK is set but PMIX_SIZE is not, and PMIx cannot be asked ({}): install libpmix2, "
                    "set PMIX_SIZE, or RINGFOLD_LAUNCHER=none for a job of one rank",
                    job.status().message()));
  }
  if (rank.empty() || size.empty()) {
    return Status(
        Code::kUnavailable,
        fmt::format("{} is set but {} is not: set it, or RINGFOLD_LAUNCHER=none for a job of one rank",
                    rank.empty() ? launcher.size : launcher.rank, rank.empty() ? launcher.rank : launcher.size));
  }
  Launch launch;
  launch.source = launcher.name;
  auto r = parse_int(rank), n = parse_int(size);
  if (!r || !n || *n < 1 || *r < 0 || *r >= *n) {
    return Status(Code::kInvalid,
                  fmt::format("{}=\"{}\" with {}=\"{}\" is no rank of a job: it takes numbers with 0 <= rank < size",
                              launcher.rank, rank, launcher.size, size));
  }
  launch.rank = *r;
  launch.size = *n;
  launch.local_rank = parse_int(lookup(environment, launcher.local_rank)).value_or(*r);
  launch.local_size = parse_int(lookup(environment, launcher.local_size)).value_or(-1);
  return std::optional(launch);
}

// Where the ranks meet if nobody has said so. PMIx carries cards for ranks on any hosts, but takes its library.
Status choose_meeting(const Launcher& launcher, const Environment& environment, const Config& config,
                      const Pmix& pmix, Launch* launch) {
  Status why;
  const bool on_hosts = launcher.option == "openmpi" && launch->local_size >= 0 && launch->local_size < launch->size;
  if ((launcher.option == "pmix" || on_hosts) && has_pmix_server(environment)) {
    auto job = ask_pmix(launcher, environment, config, pmix);
    if (job.ok()) {
      launch->exchange = pmix.exchange;
      return {};
    }
    if (job.status().code() != Code::kUnavailable) return job.status();
    why = job.status();
  }
  auto place = launcher.rendezvous(environment, *launch);
  if (place.ok()) {
    launch->rendezvous = *std::move(place);
    if (!why.ok()) {
      log::info(
          "not meeting through PMIx: {}. If ranks on other hosts do, make it work on all, or set "
          "RINGFOLD_RENDEZVOUS for all",
          why.message());
    }
    return {};
  }
  if (why.ok()) return place.status();
  return {place.status().code(),
          fmt::format("{}; nor can they meet through PMIx: {}", place.status().message(), why.message())};
}

}  // namespace

std::string Launch::to_string() const {
  return fmt::format("rank {} of {} (from {}){}", rank, size, source,
                     !rendezvous.empty() ? ", meeting at " + rendezvous
                     : exchange          ? ", meeting through PMIx"
                                         : "");
}

std::string first_host(std::string_view node_list) {
  auto open = node_list.find('['), comma = node_list.find(',');
  if (open == node_list.npos || comma < open) return std::string(node_list.substr(0, comma));
  auto close = node_list.find(']', open);
  if (close == node_list.npos) return std::string(node_list);
  auto inside = node_list.substr(open + 1, close - open - 1);
  auto rest = node_list.substr(close + 1);
  return fmt::format("{}{}{}", node_list.substr(0, open), inside.substr(0, inside.find_first_of(",-")),
                     rest.substr(0, rest.find(',')));
}

Result<Launch> read_launch(const Environment& environment, const Config& config, const Pmix& pmix) {
  const std::string& wanted = config.launcher;
  std::optional<Launch> chosen;
  const Launcher* launcher = nullptr;
  std::optional<Status> partial;  // a half-set launcher only matters when no other one speaks
  for (const auto& candidate : launchers()) {
    if (wanted != "auto" && wanted != candidate.option) continue;
    // PMIx's server is asked where nobody else speaks: what a launcher started inside of its task inherits its
    // variables.
    if (chosen && candidate.option == "pmix" && lookup(environment, candidate.size).empty()) continue;
    auto found = read_one(candidate, environment, config, pmix);
    if (!found.ok() && found.status().code() != Code::kUnavailable) return found.status();
    if (!found.ok()) {
      if (!partial) partial = found.status();
      continue;
    }
    if (!found->has_value()) continue;
    const Launch& launch = **found;
    if (!chosen) {
      chosen = launch;
      launcher = &candidate;
    } else if (launch.rank != chosen->rank || launch.size != chosen->size) {
      return Status(
          Code::kInvalid,
          fmt::format(
              "launchers disagree: {} says rank {} of {} ({}={}, {}={}), {} says rank {} of {} ({}={}, {}={}). Set "
              "RINGFOLD_LAUNCHER={} or RINGFOLD_LAUNCHER={} to say which is meant",
              chosen->source, chosen->rank, chosen->size, launcher->rank, chosen->rank, launcher->size, chosen->size,
              launch.source, launch.rank, launch.size, candidate.rank, launch.rank, candidate.size, launch.size,
              launcher->option, candidate.option));
    }
  }
  if (!chosen) {
    if (partial) return Status(Code::kInvalid, partial->message());
    if (wanted != "auto" && wanted != "none") {
      return Status(Code::kInvalid,
                    fmt::format("RINGFOLD_LAUNCHER={} but the variables of that launcher are not set", wanted));
    }
    Launch alone;
    alone.source = kNoLauncher;
    alone.local_size = 1;
    return alone;
  }
  chosen->rendezvous = lookup(environment, "RINGFOLD_RENDEZVOUS");
  if (chosen->size > 1 && chosen->rendezvous.empty()) {
    RINGFOLD_TRY(choose_meeting(*launcher, environment, config, pmix, &*chosen));
  }
  log::info("{}", chosen->to_string());
  return *std::move(chosen);
}

Result<base::Key> load_key(const Config& config, const Environment& environment) {
  if (!config.key_file.value().empty()) {
    log::info("job key: {} ({})", config.key_file.value(), name_of(config.key_file.source()));
    return base::Key::load(config.key_file);
  }
  std::string state(lookup(environment, "XDG_STATE_HOME"));
  if (state.empty()) {
    std::string home(lookup(environment, "HOME"));
    if (const auto* user = ::getpwuid(::geteuid()); home.empty() && user != nullptr) home = user->pw_dir;
    if (home.empty()) return Status(Code::kInvalid, "no home directory for the job key; set RINGFOLD_KEY_FILE");
    state = home + "/.local/state";
  }
  const std::string folder = state + "/ringfold", path = folder + "/key";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    std::filesystem::create_directories(folder, error);
    if (error)
      return Status(Code::kIo, fmt::format("cannot create {} for the job key: {}; set RINGFOLD_KEY_FILE", folder,
                                           error.message()));
    auto key = base::Key::generate();
    if (!key.ok()) return key.status();
    // Complete before it gets its name, so that of several ranks that start at once one wins and all read the same.
    const std::string fresh = fmt::format("{}.{}.{}", path, ::getpid(), fmt::ptr(&key));
    RINGFOLD_TRY(key->save(fresh));
    const bool linked = ::link(fresh.c_str(), path.c_str()) == 0;
    const int reason = errno;
    ::unlink(fresh.c_str());
    if (!linked && reason != EEXIST)
      return Status(Code::kIo, fmt::format("cannot create {}: {}", path, std::generic_category().message(reason)));
    if (linked) log::info("job key: created {}", path);
  }
  log::info("job key: {} (the user's own)", path);
  return base::Key::load(path);
}

}  // namespace ringfold::comm
