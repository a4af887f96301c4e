// Asgd: asynchronous SGD by a parameter server whose shards lie on the same ranks as the workers.
//
// A worker computes a gradient, pushes each shard's part of it to the shard's server, and goes on with the parameters
// that come back, while others do the same; nobody waits for the slowest, up to the bound (sequencer.h). Work is
// handed out as it is asked for: an epoch's global batches are cut into as many parts as there are ranks, and whoever
// is free takes the next. A gradient counts as its part of the global batch's mean, so n updates move the parameters
// about as far as one synchronous step. At the end of an epoch all ranks meet.
//
// With a bound of 0 it is synchronous SGD: the same steps within rounding.
#pragma once

#include <memory>
#include <vector>

#include "sync/parameter_server.h"
#include "sync/strategy.h"

namespace ringfold::sync {

class Asgd : public Strategy {
 public:
  // Collective (it splits the communicator). kInvalid as Sequencer::make and ParameterServer::make.
  static Result<std::unique_ptr<Strategy>> make(Communicator& comm, std::span<const size_t> counts,
                                                const ServerOptions& options);
  ~Asgd() override;

  Status start() override;
  Status begin_epoch(size_t steps, size_t from) override;
  Result<std::optional<Task>> next() override;
  Status step(const StepInfo& info) override;
  Status merge(bool last) override;
  bool in_step() const override { return false; }
  size_t steps_done() const override { return done_; }
  Result<Losses> losses() override;
  StrategyStats stats() const override;
  uint64_t bytes_per_step() const override { return 2 * elems_ * sizeof(float); }
  void save(State& state) override;
  Status load(const State& state) override;

  // Ends the messages on all ranks, with a verdict that names this one.
  void abort(const std::string& cause) { messages_.abort(cause); }

  // Rank 0: who got the tickets so far: what Sequencer::Options::order takes to make the run again.
  std::vector<int> order() const { return server_ ? server_->order() : std::vector<int>(); }

 private:
  Asgd(Communicator& comm, const ServerOptions& options) : Strategy(comm), options_(options) {}
  Status serve();
  Status exchange(const StepInfo& info);

  ServerOptions options_;
  Communicator messages_;
  std::unique_ptr<ParameterServer> server_;
  Buffer<float> own_gradients_;
  size_t steps_ = 0, from_ = 0, done_ = 0;
  uint64_t first_ticket_ = 0;     // of the epoch
  std::optional<uint64_t> item_;  // in work
  double exposed_s_ = 0;
  uint64_t bytes_ = 0, sent_bytes_ = 0;
};

}  // namespace ringfold::sync
