// `ringfold tune`: measures this set of hosts, and keeps the figures for later jobs on it.
#include <fmt/format.h>

#include <cstdio>

#include "ringfold/communicator.h"
#include "tools/cli/cli.h"

namespace ringfold::cli {
namespace {

int complain(const Status& status) {
  fmt::print(stderr, "ringfold tune: {}\n", status.to_string());
  return status.code() == Code::kInvalid ? kExitUsage : kExitEnvironment;
}

}  // namespace

int tune(const TuneOptions& options, const std::vector<std::string>& self) {
  if (options.ranks > 0 || !options.hosts.empty()) {
    JobOptions job;
    job.command = self;
    job.ranks = options.ranks;
    job.hosts = options.hosts;
    job.prefix = false;
    return run_job(job);
  }
  Options settings;
  if (options.transport != "auto") settings.transport = options.transport;
  auto comm = Communicator::init(settings);
  if (!comm.ok()) return complain(comm.status());
  if (comm->size() < 2) {
    fmt::print(stderr, "ringfold tune: one rank has no links to measure; say how many with --ranks\n");
    return kExitUsage;
  }
  if (Status status = comm->tune(options.seconds); !status.ok()) return complain(status);
  if (comm->rank() == 0) fmt::print("{}", comm->tuning());
  if (Status status = comm->barrier().wait(); !status.ok()) return complain(status);
  return kExitOk;
}

}  // namespace ringfold::cli
