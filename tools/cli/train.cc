// `ringfold train`: runs ringfold-train, which is a program of its own so that this one needs no libtorch.
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "tools/cli/cli.h"

namespace ringfold::cli {

int train(const TrainOptions& options) {
  const std::string program = std::filesystem::path(own_path()).replace_filename("ringfold-train");
  if (::access(program.c_str(), X_OK) != 0) {
    fmt::print(stderr,
               "ringfold train: {}: {}. It is built when libtorch is there: `tools/install-deps`, then `meson setup "
               "--reconfigure build -Dtorch=enabled && ninja -C build`\n",
               program, std::strerror(errno));
    return kExitEnvironment;
  }
  JobOptions job;
  job.command = {program};
  job.command.insert(job.command.end(), options.arguments.begin(), options.arguments.end());
  if (options.ranks > 0 || !options.hosts.empty()) {
    job.ranks = options.ranks;
    job.hosts = options.hosts;
    job.prefix = false;
    return run_job(job);
  }
  std::vector<char*> words;
  for (const std::string& word : job.command) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  ::execv(program.c_str(), words.data());
  fmt::print(stderr, "ringfold train: {}: {}\n", program, std::strerror(errno));
  return kExitEnvironment;
}

}  // namespace ringfold::cli
