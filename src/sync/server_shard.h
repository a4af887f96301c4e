// ServerShard: one shard of the model at a parameter server, as a state machine. It is fed gradients in the order of
// their tickets; equal gradients in equal order give equal bits, which is what makes replicas of a shard replicas.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "sync/delay_compensation.h"
#include "sync/optimizer.h"
#include "sync/state.h"

namespace ringfold::sync {

// A gradient on its way to a shard, as its header.
struct Push {
  uint64_t ticket = 0;
  uint64_t item = 0;  // what was computed, for exact counts after a failure
  double lr = 0;
  double parts = 1;  // the gradient is this part of a mean over the worker's own samples
  int32_t worker = 0;
  uint32_t closes = 1;  // the last gradient of its update
};

// Server-side momentum is the momentum of one worker's small updates, n of them a step: its memory is n times shorter
// than that of synchronous SGD with the same coefficient, and its sum the same. The trap: updates that arrive late
// work like momentum themselves (with n workers about 1 - 1/n of it, Mitliagkas et al. 2016), and the two add up.
// What is stable with one worker may diverge with many; then lower the coefficient, not the learning rate first.
//
// Threads: one at a time.
class ServerShard {
 public:
  // The shard is elements [begin, begin + initial.size()) of the model.
  ServerShard(size_t begin, std::span<const float> initial, int workers, const OptimizerOptions& optimizer,
              const DelayCompensation& compensation);

  size_t begin() const { return begin_; }
  size_t elems() const { return parameters_.size(); }
  uint64_t next_ticket() const { return next_ticket_; }
  // The gradient with ticket next_ticket(). True: it closed an update, and all workers in closed() may read.
  bool apply(const Push& push, std::span<const float> gradient);
  std::span<const int> closed() const { return members_; }
  // An update whose last gradients will not come is made of those that did.
  void close_partial();
  std::span<const float> parameters() const { return parameters_; }
  // Copies the parameters to where the worker's next gradient is compared with; valid until its next update.
  std::span<const float> read(int worker);
  void read_by_all();
  // An item's gradient in elements [begin, end) of the model.
  struct Held {
    uint64_t item = 0, begin = 0, end = 0;
  };
  // What of whose gradients the parameters hold, of those since clear_items() or (`before`) of those before only; and
  // how many tickets went into it.
  std::vector<Held> held(bool before = false) const;
  uint64_t applied() const { return next_ticket_ - (open_ ? members_.size() : 0); }
  void clear_items();
  // The parameters hold this already (as far as it is of this shard): when the item's gradient is made again it
  // counts in the other elements only.
  void skip(const Held& held);

  void save(State& state) const;
  Status load(const State& state);
  void set_next_ticket(uint64_t ticket) { next_ticket_ = ticket; }

 private:
  std::vector<float> without_skipped(uint64_t item, std::span<const float> gradient) const;  // zeros there

  size_t begin_;
  OptimizerOptions options_;
  DelayCompensator compensator_;
  std::vector<float> parameters_, gradient_;
  std::vector<std::vector<float>> backups_;  // by worker: what it read last
  Optimizer optimizer_;
  uint64_t next_ticket_ = 0;
  double lr_ = 0;
  bool open_ = false;         // gradients of an update that is not closed
  std::vector<int> members_;  // workers of the open update, or of the last that closed
  std::vector<uint64_t> items_;
  std::multimap<uint64_t, Held> skipped_;  // by item
};

}  // namespace ringfold::sync
