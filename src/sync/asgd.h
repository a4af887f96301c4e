// Asgd: asynchronous SGD by a parameter server whose shards lie on the same ranks as the workers.
//
// A worker computes a gradient, pushes each shard's part of it to the shard's server, and goes on with the parameters
// that come back, while others do the same; nobody waits for the slowest, up to the bound (sequencer.h). Work is
// handed out as it is asked for: an epoch's global batches are cut into as many parts as there are ranks, and whoever
// is free takes the next. A gradient counts as its part of the global batch's mean, so n updates move the parameters
// about as far as one synchronous step. At the end of an epoch all ranks meet.
//
// With a bound of 0 it is synchronous SGD: the same steps within rounding.
//
// When ranks are lost. A worker goes on when every server of every shard has its update, so with `replicas` of each
// shard an update that a worker knows of outlives so many ranks. Those that are left take each shard from the server
// of it that has applied most (a replica takes over where the first is lost), and compare which items (parts of a
// batch) the shards hold. What all hold is done. What some hold and others do not (its worker, or a server, died
// on the way) is computed again, and counts only in the shards that lack it; what none holds is just computed. So
// each item's gradient is in each element of the model once.
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
  void set_staleness(uint64_t steps) override;
  bool in_step() const override { return false; }
  size_t steps_done() const override { return done_; }
  Result<Losses> losses() override;
  StrategyStats stats() const override;
  uint64_t bytes_per_step() const override { return 2 * elems_ * sizeof(float); }
  void save(State& state) override;
  Status load(const State& state) override;
  // kUnavailable: all servers of a shard are lost.
  Result<State> collect(Communicator& comm, bool has, uint64_t* steps) override;
  std::string account() const override { return account_; }

  void abort(const std::string& cause) override {
    messages_.abort(cause);
    comm_.abort(cause);
  }

  // Rank 0: who got the tickets so far: what Sequencer::Options::order takes to make the run again.
  std::vector<int> order() const { return server_ ? server_->order() : std::vector<int>(); }

 private:
  Asgd(Communicator& comm, const ServerOptions& options) : Strategy(comm), options_(options) {}
  Status serve();
  Status exchange(const StepInfo& info);
  // What is left of an epoch in which ranks were lost.
  struct Rest {
    size_t begun_at = 0;  // step of the run
    size_t from = 0;      // steps of it that are done
  };
  State index(uint64_t steps) const;
  Status load_rest(const State& state);

  ServerOptions options_;
  Communicator messages_;
  std::unique_ptr<ParameterServer> server_;
  Buffer<float> own_gradients_;
  size_t steps_ = 0, done_ = 0;
  int parts_ = 0;                // that a global batch of the epoch is cut into
  uint64_t round_ = 0;           // begin_epoch was called so often, in the run
  std::vector<uint64_t> items_;  // that were to be computed then, or are as soon as it is called
  uint64_t finished_ = 0;        // items of the epoch that were not
  uint64_t first_ticket_ = 0;    // of the epoch
  std::optional<Rest> rest_;     // until begin_epoch comes to it
  std::string account_;
  std::optional<uint64_t> item_;  // in work
  double exposed_s_ = 0;
  uint64_t bytes_ = 0, sent_bytes_ = 0;
};

}  // namespace ringfold::sync
