// The words that say what is measured, the same for `ringfold perf` and the programs of bench/peers.
#pragma once

#include "tools/cli/cli.h"

namespace CLI {
class App;
}

namespace ringfold::cli {

void add_measuring_options(CLI::App* app, PerfOptions* options);

}  // namespace ringfold::cli
