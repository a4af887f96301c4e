// `ringfold perf`: measures Ringfold's operations over a range of sizes, and checks every result.
#include <thread>

#include "tools/cli/cli.h"
#include "tools/cli/perf/ringfold_library.h"
#include "tools/cli/perf/sweep.h"

namespace ringfold::cli {
namespace {

int run_threads(const PerfOptions& options, const Sweep& sweep, const Options& settings) {
  auto comms = Communicator::init_local(options.ranks, settings);
  if (!comms.ok()) return complain(options, comms.status());
  std::vector<int> results(comms->size());
  std::vector<std::thread> threads;
  for (size_t r = 0; r < comms->size(); ++r) {
    threads.emplace_back([&, r] {
      RingfoldLibrary library((*comms)[r], options);
      results[r] = run_sweep(library, options, sweep, true);
    });
  }
  for (auto& thread : threads) thread.join();
  for (const int result : results) {
    if (result != kExitOk) return result;
  }
  return kExitOk;
}

}  // namespace

int perf(const PerfOptions& options, const std::vector<std::string>& self) {
  Sweep sweep;
  if (const int result = plan_sweep(options, &sweep); result != kExitOk) return result;
  Options settings;
  // "auto" is what the library does by itself, so RINGFOLD_TRANSPORT still counts then.
  if (options.transport != "auto") settings.transport = options.transport;
  if (options.algorithm != "auto") settings.algorithm = options.algorithm;
  settings.codec = options.codec;
  if (options.transport == "loopback") {
    if (options.ranks < 1) {
      return usage(options, "--transport loopback runs ranks as threads: say how many with --ranks");
    }
    settings.transport.clear();
    return run_threads(options, sweep, settings);
  }
  if (options.ranks > 0 || !options.hosts.empty()) {
    JobOptions job;
    job.command = self;
    job.ranks = options.ranks;
    job.hosts = options.hosts;
    job.prefix = false;
    job.expected_status = kExitFailed;
    return run_job(job);
  }
  auto comm = Communicator::init(settings);
  if (!comm.ok()) return complain(options, comm.status());
  RingfoldLibrary library(*comm, options);
  return run_sweep(library, options, sweep, false);
}

}  // namespace ringfold::cli
