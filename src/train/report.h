// What a training run tells: the JSON log, the progress line, the last word.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ringfold/pipeline.h"
#include "ringfold/status.h"
#include "train/agent.h"
#include "train/args.h"

namespace ringfold::train {

struct StartEvent {
  int ranks = 1;
  int tensor_parallel = 1;
  int pipeline = 1;  // where it is more, also:
  int micro_batches = 1;
  std::vector<size_t> layers_of_stages;
  std::string transport;          // to the next rank
  size_t parameters = 0;          // of the model
  size_t parameters_of_rank = 0;  // fewer, where ranks share layers
  size_t buckets = 0;
  size_t bytes_per_step = 0;  // that a rank gives to collectives and messages, on average; after warm-up
  size_t train_samples = 0;
  size_t test_samples = 0;
  size_t steps = 0;       // of the whole run
  size_t resumed_at = 0;  // step that a checkpoint was taken after
};

struct StepEvent {
  int epoch = 0;    // from 1
  size_t step = 0;  // of the whole run, from 1
  double loss = 0;  // mean over all ranks' targets since the event before, in nats
  double lr = 0;
  double samples_per_s = 0;  // of all ranks, since the event before
  double comm_share = 0;     // of this rank, since the event before
};

struct EpochEvent {
  int epoch = 0;
  double train_loss = 0;
  bool tested = false;  // then test_loss and test_accuracy hold
  double test_loss = 0;
  double test_accuracy = 0;
  bool replicas_equal = false;
  double seconds = 0;    // of training and testing
  double elapsed_s = 0;  // since the run began
  double trained_s = 0;  // of those, without tests and checks
};

// A test within an epoch.
struct TestEvent {
  double epochs = 0;  // made so far
  size_t step = 0;    // of the whole run
  double test_loss = 0;
  double test_accuracy = 0;
  double elapsed_s = 0, trained_s = 0;  // as of an epoch
};

// Everything a run came to; also what train() returns.
struct Summary {
  bool left_out = false;  // the agent did without this rank, or was only asked for its plan; then nothing else holds
  int ranks = 1;
  int epochs = 0;    // whole ones that were made; fewer than asked for when the target was reached
  size_t steps = 0;  // made
  double train_loss = 0;
  double test_loss = 0;
  double test_accuracy = 0;
  bool stopped = false;  // by SIGTERM: what is left is in the checkpoint
  bool replicas_equal = false;
  uint64_t replica_hash = 0;
  double samples_per_s = 0;         // while training
  double seconds = 0;               // with tests and checks
  double bytes_per_step = 0;        // that a rank gave to collectives and messages; mean of all steps
  double sent_bytes = 0;            // by all ranks to others, where all_reduce of M bytes sends 2 M (n-1)/n from each
  std::vector<uint64_t> staleness;  // [k]: updates whose gradient was k updates old (sync/sequencer.h)
  double comm_share = 0;  // share of the steps' time in which a rank was held up by communication; mean over ranks
  double overlap = 0;     // share of the time with calls in flight in which the rank was not held up; mean over ranks
};

// On rank 0 it writes; on the others it does nothing. Threads: one at a time.
class Reporter {
 public:
  // kIo when the log cannot be written.
  static Result<Reporter> make(const Args& args, int rank);
  Reporter(Reporter&&) noexcept;
  ~Reporter();

  // This rank tells, of all.
  bool tells() const { return impl_ != nullptr; }
  void start(const StartEvent& event);
  void step(const StepEvent& event);
  void epoch(const EpochEvent& event);
  void test(const TestEvent& event);
  // What was changed while the run went on, and why.
  void decision(const Decision& decision);
  // On a rank that has become rank 0 because others were lost: writes from here on, behind what they wrote; nothing
  // to do where it writes already. `start`: what the run began as. kIo as make.
  Status take_over(const Args& args, const StartEvent& start);
  // Where the ranks' time went.
  void times(const Observation& seen);
  // Of the agent, before the run: what it considered, as a table, and what it made of the arguments; after `seconds`.
  void plan(const Args& args, const std::string& table, const std::string& transport, double seconds);
  // Of the first replica's pipeline: its last steps.
  void timeline(const pipeline::Timing& timing);
  void end(const Summary& summary);
  void failed(const Status& status);
  // Between events: cheap enough for every step. `done` of the run's steps are made, at `seconds` each.
  void progress(int epoch, size_t done, double seconds_per_step);
  // kIo when part of the log could not be written.
  Status close();

 private:
  struct Impl;
  explicit Reporter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ringfold::train
