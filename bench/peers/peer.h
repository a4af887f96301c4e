// A library that Ringfold is compared with, as a program: it takes the words of `ringfold perf`, measures in the same
// way and prints the same table. main.cc is common; each peer's source supplies the two things below.
#pragma once

#include <memory>
#include <string>

#include "tools/cli/cli.h"
#include "tools/cli/perf/library.h"

namespace ringfold::peers {

struct PeerOptions {
  cli::PerfOptions perf;
  std::string transport = "-";          // what stands in the rows; the launcher decides what is used
  std::string store, interface = "lo";  // Gloo: the folder where the ranks meet, and the network device
};

// "peer_gloo"
extern const char* const kProgram;
// Joins the ranks that the peer's launcher has started.
Result<std::unique_ptr<cli::Library>> join(const PeerOptions& options);

// Ordinary memory at a multiple of 2 MiB, all of it touched: as good as a program gets it from these libraries.
Result<cli::Memory> aligned_memory(size_t bytes);

}  // namespace ringfold::peers
