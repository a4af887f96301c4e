// `ringfold train`, `export`, `predict` and `serve`: run ringfold-train and ringfold-model, which are programs of
// their own so that this one needs no libtorch.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "tools/cli/cli.h"

namespace ringfold::cli {
namespace {

// The program beside this one; "", with the reason printed, where it was not built.
std::string neighbour(const char* name, const std::string& verb) {
  const std::string program = std::filesystem::path(own_path()).replace_filename(name);
  if (::access(program.c_str(), X_OK) != 0) {
    fmt::print(stderr,
               "ringfold {}: {}: {}. It is built when libtorch is there: `tools/install-deps`, then `meson setup "
               "--reconfigure build -Dtorch=enabled && ninja -C build`\n",
               verb, program, std::strerror(errno));
    return "";
  }
  return program;
}

// This process becomes that program.
int become(const std::vector<std::string>& command, const std::string& verb) {
  std::vector<char*> words;
  for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  ::execv(words[0], words.data());
  fmt::print(stderr, "ringfold {}: {}: {}\n", verb, command[0], std::strerror(errno));
  return kExitEnvironment;
}

bool has(const std::vector<std::string>& words, const std::string& option) {
  return std::any_of(words.begin(), words.end(),
                     [&](const std::string& w) { return w == option || w.starts_with(option + "="); });
}

// After a rank was lost: how not to be stopped by the next one, and how to go on from this.
std::string way_on(const std::vector<std::string>& words) {
  const bool shared = has(words, "--pipeline") || has(words, "--tensor-parallel");
  const std::string why = shared ? "the lost rank alone had its part of a replica"
                          : has(words, "zero1") || has(words, "--sync=zero1")
                              ? "the lost rank alone had its part of the optimiser's state"
                              : "with --elastic the others go on when a rank is lost";
  return has(words, "--checkpoint")
             ? why +
                   "; with --resume this command goes on from the newest checkpoint, and with --resume --restarts N "
                   "it does so by itself"
             : why +
                   "; with --checkpoint FOLDER --resume --restarts N a job goes on from its newest checkpoint by "
                   "itself";
}

}  // namespace

int use_model(const std::string& verb, const std::vector<std::string>& arguments) {
  std::vector<std::string> command = {neighbour("ringfold-model", verb), verb};
  if (command[0].empty()) return kExitEnvironment;
  command.insert(command.end(), arguments.begin(), arguments.end());
  return become(command, verb);
}

int train(const TrainOptions& options) {
  const std::string program = neighbour("ringfold-train", "train");
  if (program.empty()) return kExitEnvironment;
  JobOptions job;
  job.command = {program};
  job.command.insert(job.command.end(), options.arguments.begin(), options.arguments.end());
  for (const std::string& word : options.arguments)
    job.elastic = job.elastic || word == "--elastic" || word == "--goal" || word.starts_with("--goal=");
  if (options.ranks > 0 || !options.hosts.empty()) {
    job.ranks = options.ranks;
    job.hosts = options.hosts;
    job.restarts = options.restarts;
    job.restart_all = !job.elastic;  // --resume goes on from a checkpoint
    job.prefix = false;
    const int result = run_job(job);
    const bool killed = result > 128 && result != 128 + SIGINT && result != 128 + SIGTERM;
    if (killed && !job.elastic) fmt::print(stderr, "ringfold train: {}\n", way_on(options.arguments));
    return result;
  }
  return become(job.command, "train");
}

}  // namespace ringfold::cli
