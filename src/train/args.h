// What ringfold-train is asked to do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "train/about.h"

namespace ringfold::train {

struct Args {
  std::string model = "cnn";                                  // mlp, cnn, transformer
  int64_t layers = 4, width = 128, heads = 4, context = 128;  // of a transformer: about.h
  int tensor_parallel = 1;                                    // ranks that share each layer
  // Ranks that share the layers of a replica, one after another, and how they take turns (ringfold/pipeline.h).
  int pipeline = 1;
  std::string pipeline_schedule = "1f1b";
  int pipeline_chunks = 0;                      // stages of a rank; 0: as the schedule is usually run
  int micro_batches = 0;                        // parts of a replica's batch; 0: up to 4 for each rank of a pipeline
  std::string pipeline_balance = "parameters";  // parameters, time, layers, or the layers of each stage: 3,2,2,3
  std::string optimizer = "sgd";                // sgd, adam, adamw
  std::string schedule = "cosine";              // cosine, constant
  int epochs = 5;
  size_t batch = 256;  // of all ranks together
  uint64_t seed = 1;
  double lr = 0;  // peak; 0: 0.1 with sgd, 0.002 with the others
  double momentum = 0.9;
  double weight_decay = 1e-4;
  std::string codec = "none";      // how gradients travel: codec.h
  bool error_feedback = true;      // what codes miss is added to the next step's gradients
  size_t power_sgd = 0;            // rank of the products that gradients are exchanged as; 0: whole gradients
  uint64_t power_sgd_warm_up = 0;  // steps with whole gradients before
  // How ranks are kept together (sync/strategy.h), and its options; 0 or unset: as the strategy is usually run.
  std::string sync = "ssgd";      // ssgd, zero1, asgd, local, diloco
  int64_t staleness = 4;          // asgd: steps that a gradient may be behind; < 0: without a bound
  double delay_compensation = 0;  // asgd: lambda
  bool delay_compensation_adaptive = false;
  double delay_compensation_of_part = 0;    // asgd: lambda, in samples of a rank's part of a batch; 0: as above
  size_t delay_compensation_gradients = 0;  // asgd: of the covariance; 0: a diagonal
  std::optional<uint64_t> order_seed;       // asgd: the order of updates is drawn from it
  std::string record_order, replay_order;   // asgd: files
  int shard_replicas = -1;                  // asgd; -1: 1 if elastic, else 0
  double stall_timeout_s = 300;             // asgd: how long one rank may hold up the others
  uint64_t local_steps = 0;                 // local, diloco: between two meetings
  double outer_lr = 0;                      // diloco
  std::optional<double> outer_momentum;
  size_t fragments = 1;
  uint64_t overlap_steps = 0;
  double mix = 0.5;
  bool elastic = false;  // all but zero1, parts of the model with ssgd only: ranks that are left go on
  // The agent (train/agent.h); "": none.
  std::string goal;
  double goal_samples = 0;  // that it asks for; 0: none
  double within_s = 0;      // 0: no limit. Training ends then, after a test
  int max_ranks = 0;        // 0: all
  bool dry_run = false;
  bool free_batch = false, free_lr = false, free_tests = false, free_sync = true;  // not given: the agent may choose
  // For experiments: this rank's computing takes so many times as long.
  int slow_rank = -1;
  double slow_factor = 1;
  std::string data;            // "": Fashion-MNIST as Debian installs it; of a transformer, the Bible
  size_t limit_samples = 0;    // 0: all
  double target_accuracy = 0;  // > 0: stop when reached; not reaching it is a failure
  int eval_every = 1;          // epochs
  size_t test_every = 0;       // samples trained on, between tests within an epoch; 0: none
  int check_every = 0;         // steps between replica checks, besides those at the end of each epoch; 0: none
  int log_every = 50;          // steps between losses over all ranks
  size_t bucket_kib = 1024;
  std::string device;           // cpu, cuda, cuda:N; "": the host, without copies
  bool background = false;      // a thread drives communication
  std::string json;             // "": no log
  std::string record_samples;   // folder; "": not recorded
  std::string save;             // "": not saved
  std::string checkpoint;       // folder; "": none
  size_t checkpoint_every = 0;  // steps; 0: after each epoch
  bool resume = false;

  uint64_t local_step_count() const { return local_steps > 0 ? local_steps : sync == "diloco" ? 50 : 10; }
  double outer_rate() const { return outer_lr > 0 ? outer_lr : sync == "diloco" ? 0.7 : 1; }
  double outer_beta() const { return outer_momentum.value_or(sync == "diloco" ? 0.9 : 0); }
  double peak_lr() const { return lr > 0 ? lr : optimizer == "sgd" ? 0.1 : 0.002; }
  bool cut() const { return pipeline > 1 || tensor_parallel > 1; }  // a rank holds a part of the model
  ModelSpec spec() const { return {model, layers, width, heads, context}; }
};

// "3,2,2,3" as --pipeline-balance takes it; nothing: it is no such list.
std::optional<std::vector<size_t>> parse_stage_layers(const std::string& text);

// What the model is trained on, in words.
std::string describe_data(const Args& args);

constexpr int kWrongArguments = 2;  // exit status

// Fills `args` from the command line. A value is the exit status with which the program should end now: 0 after
// --help, kWrongArguments after an error; either has been printed.
std::optional<int> parse_args(int argc, char** argv, Args& args);

}  // namespace ringfold::train
