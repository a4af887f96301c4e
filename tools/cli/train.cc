// `ringfold train`, `export`, `predict` and `serve`: run ringfold-train and ringfold-model, which are programs of
// their own so that this one needs no libtorch.
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "tools/cli/cli.h"
#include "train/args.h"

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

}  // namespace

int use_model(const std::string& verb, const std::vector<std::string>& arguments) {
  std::vector<std::string> command = {neighbour("ringfold-model", verb), verb};
  if (command[0].empty()) return kExitEnvironment;
  command.insert(command.end(), arguments.begin(), arguments.end());
  return become(command, verb);
}

int train(const TrainOptions& options) {
  // What is wrong with the command line is said once, before any rank starts.
  std::vector<std::string> words = {"ringfold-train"};
  words.insert(words.end(), options.arguments.begin(), options.arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  train::Args args;
  if (const auto over = train::parse_args(static_cast<int>(argv.size()), argv.data(), args)) return *over;

  const std::string program = neighbour("ringfold-train", "train");
  if (program.empty()) return kExitEnvironment;
  JobOptions job;
  job.command = {program};
  job.command.insert(job.command.end(), options.arguments.begin(), options.arguments.end());
  job.elastic = args.elastic || !args.goal.empty();
  if (options.ranks > 0 || !options.hosts.empty()) {
    job.ranks = options.ranks;
    job.hosts = options.hosts;
    job.restarts = options.restarts;
    job.restart_all = !job.elastic;  // --resume goes on from a checkpoint
    job.prefix = false;
    return run_job(job);
  }
  return become(job.command, "train");
}

}  // namespace ringfold::cli
