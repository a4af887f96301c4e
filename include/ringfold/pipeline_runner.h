// Runs pipeline schedules (pipeline.h): the user computes, the runner says what and when, and moves activations and
// gradients between the ranks.
//
//   class MyStages : public ringfold::pipeline::Stages { ... };           // forward, backward_input, backward_weight
//   auto runner = ringfold::pipeline::Runner::make(comm, *ringfold::pipeline::make("zb-h1", {4, 8}), stages);
//   if (!runner.ok()) ...
//   for (...) {
//     ringfold::Status s = (*runner)->step();                             // one batch: all its micro-batches
//     ...                                                                 // sum gradients over replicas, optimize
//   }
//
// Rank r of the schedule is rank r of the communicator; to combine with other kinds of parallelism, split() one
// communicator for each pipeline.
//
// HOW MESSAGES GO. Both ends know from the schedule what will come, so each message has a name: activation or
// gradient, stage, micro-batch. A receiver gets the memory for the next `ahead` messages that its list needs, posts
// the receives, and tells each sender, by a message without content, that this one may come: a credit by name. A
// sender starts a message when it is computed and its credit is there; until then it keeps it and goes on computing.
// So a receiver buffers `ahead` messages at most, payloads land where they are used, no rank ever waits in order to
// send, and every schedule that check() accepts runs to its end, in whatever orders the two sides send and receive.
//
// Messages move while somebody drives the communicator (work.h): during long computations that is its background
// thread (Options::background).
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ringfold/codec.h"
#include "ringfold/communicator.h"
#include "ringfold/pipeline.h"

namespace ringfold::pipeline {

// What a stage hands to the one behind it for one micro-batch; the gradient that comes back has the same form.
struct Boundary {
  size_t count = 0;
  DataType type = DataType::kF32;
  size_t bytes() const { return count * size_of(type); }
};

// One action, and its memory, which is the runner's. A stage and micro-batch sees the same `input` in all its
// actions, the same `output_gradient` in B and W.
struct Pass {
  Action action;
  std::span<const std::byte> input;            // empty on the first stage. Unchanged until W is over
  std::span<std::byte> output;                 // F: to be written. Empty on the last stage
  std::span<const std::byte> output_gradient;  // B and W; empty on the last stage. Unchanged until W is over
  std::span<std::byte> input_gradient;         // B: to be written. Empty on the first stage
};

// The computation of one rank's stages. A status that is not ok ends the step on all ranks, with a verdict that names
// this rank, the stage and the micro-batch. Called by the thread that calls Runner::step(), one at a time; may make
// calls on other communicators (not on this one).
class RINGFOLD_API Stages {
 public:
  virtual ~Stages() = default;
  // What leaves `stage` (all but the last) for `micro_batch`. The ranks of both ends are asked, in every step, and
  // must agree; from one step to the next it may change. 0 elements are fine.
  virtual Boundary boundary(int stage, int micro_batch) const = 0;
  virtual Status forward(const Pass& pass) = 0;
  virtual Status backward_input(const Pass& pass) = 0;
  virtual Status backward_weight(const Pass& pass) = 0;
  // Both at once.
  virtual Status backward(const Pass& pass) {
    RINGFOLD_TRY(backward_input(pass));
    return backward_weight(pass);
  }
};

struct RunnerOptions {
  // Receives that are posted before the action that needs them; 1 or more. Two hide the way of a message, in each
  // direction two.
  int ahead = 4;
  double timeout_s = 0;  // of one step; 0: the communicator's, for each message
  // How f32 travels (codec.h); kNone: as it is. The same on all ranks.
  Codec activations = {}, gradients = {};
  bool record = true;  // keep spans for timeline()
  int keep_steps = 0;  // those of so many last steps at least; 0: of all
};

class RINGFOLD_API Runner {
 public:
  // Collective: kMismatch on all ranks unless all have the same schedule and codecs. kInvalid, before anything is
  // sent, for a schedule that check() refuses, one for another number of ranks, and options out of range.
  // The communicator and the stages must outlive the runner. One runner at a time on a communicator.
  static Result<std::unique_ptr<Runner>> make(Communicator& comm, Schedule schedule, Stages& stages,
                                              const RunnerOptions& options = {});
  // Waits for what flush() waits for.
  ~Runner();
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  // This rank's list, start to end. What it has sent may still be under way when it returns: ranks wait for each
  // other for activations and gradients only, so the next step may fill what this one leaves. After an error the
  // communicator is dead, and every further step returns the same.
  Status step();
  // Until all that this rank has sent is taken.
  Status flush();

  // "rank 1: 7 of 24 actions done, in backward of micro-batch 2 on stage 1, waiting for a gradient of rank 2". Any
  // thread.
  std::string position() const;
  // Most activations of stages that this rank has held at a time: what check() predicts.
  int peak_activations() const;
  // Most bytes that the runner had for activations and gradients.
  size_t peak_bytes() const;

  // Collective, with nothing in flight but the runner's own: what all ranks have done in `steps` last steps, by one
  // clock (that of rank 0's host; other hosts' is off by half a round trip at most), in seconds. kInvalid without
  // options.record.
  Result<Timing> timeline(int steps = 1);

 private:
  class Impl;
  explicit Runner(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ringfold::pipeline
