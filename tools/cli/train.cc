// `ringfold train`, `export`, `predict` and `serve`: run ringfold-train and ringfold-model, which are programs of
// their own so that this one needs no libtorch.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/processors.h"
#include "comm/launch.h"
#include "comm/pmix.h"
#include "tools/cli/cli.h"
#include "train/args.h"
#include "train/main.h"

namespace ringfold::cli {
namespace {

constexpr int kMostRanksToChooseFrom = 64;  // each tries and rehearses

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

// An agent chooses among the ranks that it is given. Where neither a launcher nor the command line says how many,
// they are as many as this host's processors can run at once; 0: they do say.
int ranks_to_choose_from(const TrainOptions& options, const train::Args& args) {
  if (args.goal.empty() || options.ranks > 0 || !options.hosts.empty()) return 0;
  const auto config = comm::Config::from_environment(comm::process_environment());
  if (!config.ok()) return 0;  // ringfold-train says what is wrong
  // PMIx's server is not asked: who has met it must take leave of it, and this process may become ringfold-train.
  const comm::Pmix nobody = {.job = [](double) { return Result<comm::PmixJob>(Status(Code::kUnavailable, "")); },
                             .exchange = {}};
  const auto launch = comm::read_launch(comm::process_environment(), *config, nobody);
  if (!launch.ok() || launch->source != comm::kNoLauncher) return 0;
  const int processors = std::clamp(static_cast<int>(base::Processors::mine().usable()), 1, kMostRanksToChooseFrom);
  return args.max_ranks > 0 ? std::min(processors, args.max_ranks) : processors;
}

// After a rank was lost: how not to be stopped by the next one, and how to go on from this.
std::string way_on(const train::Args& args) {
  const std::string why = args.cut() && args.sync == "ssgd"
                              ? "with --elastic the others go on when a rank is lost, if they make a whole replica"
                          : args.cut()           ? "the lost rank alone had its part of a replica"
                          : args.sync == "zero1" ? "the lost rank alone had its part of the optimiser's state"
                          : !args.record_order.empty() || !args.replay_order.empty()
                              ? "an order that is recorded or replayed needs all its ranks"
                              : "with --elastic the others go on when a rank is lost";
  if (!args.replay_order.empty()) return why + "; a replay has to begin again, since it cannot be resumed";
  return why +
         (args.checkpoint.empty()
              ? "; with --checkpoint FOLDER --resume --restarts N a job goes on from its newest checkpoint by itself"
              : "; with --resume this command goes on from the newest checkpoint, and with --resume --restarts N "
                "it does so by itself");
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
  const int to_choose_from = ranks_to_choose_from(options, args);
  if (options.ranks > 0 || !options.hosts.empty() || to_choose_from > 1) {
    job.ranks = std::max(options.ranks, to_choose_from);
    job.hosts = options.hosts;
    job.restarts = options.restarts;
    job.restart_all = !job.elastic || args.cut();  // --resume goes on from a checkpoint
    job.left_out_status = train::kExitLeftOut;
    const std::string status = std::to_string(train::kExitLeftOut);
    ::setenv(train::kLeftOutVariable, status.c_str(), 1);
    job.pass.push_back(std::string(train::kLeftOutVariable) + "=" + status);
    job.prefix = false;
    const int result = run_job(job);
    const int signal = result - 128;  // 255 is ssh's own failure
    const bool killed =
        signal > 0 && signal < 65 && signal != SIGINT && signal != SIGTERM && signal != SIGHUP && signal != SIGQUIT;
    if (killed && !job.elastic && options.restarts == 0) fmt::print(stderr, "ringfold train: {}\n", way_on(args));
    return result;
  }
  return become(job.command, "train");
}

}  // namespace ringfold::cli
