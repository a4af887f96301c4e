// Sequencer: in which order the workers of a parameter server update the model. Pure: no clock, no thread, no I/O.
//
// Updates are numbered by *tickets*; every shard of the model applies them in the order of tickets. So all shards go
// through the same versions, a worker that was given ticket t next reads exactly the model after update t, and a run
// is determined by one thing: which worker gets which ticket. Record that order, or draw it from a seed, and an
// asynchronous run can be made again, bit for bit.
//
// Staleness of an update: how many others were applied between the version that its gradient was computed at and
// itself. With n workers a step of the whole is n updates, so a bound of s steps is S = s n updates.
//
// The bound is kept by holding back others. With V updates applied and the workers that are computing read versions
// v_0 <= v_1 <= ... (oldest first), the bound can be kept if and only if V + k <= v_k + S for all k: should all of
// them arrive now, oldest first, the k-th finds k more. A worker may update if that still holds afterwards. While
// S >= n - 1 the oldest of those that compute may always go, so nobody waits for ever; and a worker that is slow by a
// factor f ages by about f (n - 1) updates while it computes one: it holds up nobody as long as that is within S.
// (Stale synchronous parallel, which bounds how many *clocks* workers are apart, lets a permanently slow worker set
// the pace of all, whatever its bound.)
//
// s = 0 is another rule, since n updates in a row are never all fresh: the gradients of all workers make one update,
// which is synchronous SGD.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ringfold/status.h"

namespace ringfold::sync {

struct Grant {
  int worker = 0;
  uint64_t ticket = 0;
  uint64_t staleness = 0;
  bool closes = true;  // the last gradient of its update
  bool more = false;   // the worker goes on with `item`
  uint64_t item = 0;
};

class Sequencer {
 public:
  static constexpr uint64_t kUnbounded = UINT64_MAX;
  struct Options {
    int workers = 1;
    uint64_t bound = kUnbounded;   // in steps of `workers` updates
    std::optional<uint64_t> seed;  // the order is drawn from it, uniformly among the workers that may go
    std::vector<int> order;        // or given, as of order() of another run; must last
  };
  // kInvalid: no workers, both a seed and an order, or no such worker in it.
  static Result<Sequencer> make(Options options);

  // A new round of work, when nobody computes: what items are called, in the order they are handed out. Worker w
  // begins with items[w], if there are so many.
  void begin(std::vector<uint64_t> items);
  // Before it, too: another bound. Neither it nor the one before is 0.
  void set_bound(uint64_t steps) { options_.bound = steps; }
  bool has_item(int worker) const { return workers_[static_cast<size_t>(worker)].busy; }
  uint64_t item(int worker) const { return workers_[static_cast<size_t>(worker)].item; }

  // The worker has its gradient. kInvalid: it has no item, or has asked already.
  Status ask(int worker);
  // The next that may update, if it has asked. Call again until there is none. kInvalid: the order to follow names a
  // worker that may not go, or has ended.
  Result<std::optional<Grant>> grant();

  // Nobody has an item any more.
  bool idle() const;
  // A worker that all who have asked wait for; -1: nobody waits.
  int holds_up() const;
  uint64_t version() const { return version_; }
  uint64_t tickets() const { return ticket_; }
  // For a job that goes on after others have been served.
  void set_tickets(uint64_t tickets, uint64_t version);
  // The largest staleness the bound allows, in updates.
  uint64_t most() const;
  const std::vector<uint64_t>& histogram() const { return histogram_; }
  // Who got the tickets so far.
  const std::vector<int>& order() const { return order_; }

 private:
  struct Worker {
    bool busy = false;  // has an item
    bool asked = false;
    uint64_t read = 0;  // version its gradient is computed at
    uint64_t item = 0;
    uint64_t arrival = 0;  // order of asking
  };
  explicit Sequencer(Options options);
  bool folds() const { return options_.bound == 0; }
  bool may_go(int worker) const;
  Result<int> choose();
  Grant give(int worker, bool closes);

  Options options_;
  std::vector<Worker> workers_;
  std::vector<uint64_t> items_;
  size_t next_item_ = 0;
  uint64_t ticket_ = 0, version_ = 0, arrivals_ = 0;
  int drawn_ = -1;            // by the seed, and has not asked yet
  std::vector<int> closing_;  // s = 0: who still gets a ticket of this update
  std::vector<uint64_t> histogram_;
  std::vector<int> order_;
};

}  // namespace ringfold::sync
