// The programs of the peers: `mpirun.openmpi -np 2 peer_openmpi all_reduce`.
#include <CLI/CLI.hpp>
#include <cstdlib>
#include <cstring>

#include "bench/peers/peer.h"
#include "tools/cli/perf/command_line.h"
#include "tools/cli/perf/sweep.h"

namespace ringfold::peers {

Result<cli::Memory> aligned_memory(size_t bytes) {
  constexpr size_t kAlign = size_t{2} << 20;
  auto* memory = static_cast<char*>(std::aligned_alloc(kAlign, (bytes + kAlign - 1) / kAlign * kAlign));
  if (memory == nullptr) return Status(Code::kUnavailable, "no memory for a buffer");
  std::memset(memory, 0, bytes);
  return cli::Memory(memory, {&std::free});
}

}  // namespace ringfold::peers

int main(int argc, char** argv) {
  using namespace ringfold;
  peers::PeerOptions options;
  options.perf.program = peers::kProgram;
  CLI::App app("Measures a library that Ringfold is compared with, in the way of `ringfold perf`", peers::kProgram);
  app.failure_message(CLI::FailureMessage::simple);
  cli::add_measuring_options(&app, &options.perf);
  app.add_option("--transport", options.transport, "Name for the rows; the launcher decides what is used");
  app.add_option("--store", options.store, "Gloo: an empty folder that all ranks see");
  app.add_option("--interface", options.interface, "Gloo: the network device")->capture_default_str();
  app.footer(
      "Examples:\n"
      "  mpirun.openmpi -np 2 peer_openmpi all_reduce --max 1M\n"
      "  ringfold run -n 2 --no-prefix -- peer_gloo all_reduce --store $(mktemp -d)\n"
      "Side by side, round after round: tools/compare.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const bool asked = error.get_exit_code() == 0;
    app.exit(error);
    return asked ? cli::kExitOk : cli::kExitUsage;
  }
  cli::Sweep sweep;
  if (const int result = cli::plan_sweep(options.perf, &sweep); result != cli::kExitOk) return result;
  auto library = peers::join(options);
  if (!library.ok()) return cli::complain(options.perf, library.status());
  return cli::run_sweep(**library, options.perf, sweep, false);
}
