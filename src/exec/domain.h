// A domain is one communicator's share of the engine: its transports, its lane queues, its messages, and what is in
// flight. All of it is guarded by the engine's lock, except what comes back to the pools.
#pragma once

#include <algorithm>
#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "exec/direct.h"
#include "exec/list.h"
#include "exec/messages.h"
#include "exec/pool.h"
#include "exec/request.h"
#include "exec/run.h"
#include "ringfold/counters.h"
#include "ringfold/transport.h"

namespace ringfold::exec {

class Engine;

// Calls that a domain remembers, so that ranks whose calls differ can find out where they parted.
inline constexpr uint32_t kRemembered = 64;

// Where this rank stands, for agreement on a verdict.
struct Standing {
  Contract contract;             // of the current or last collective; sequence 0: none yet
  bool inside = false;           // it has not completed here
  int waits_for = -1;            // peer
  std::string text;              // "all_reduce f32 sum x100 #57", or a send or receive
  std::vector<Contract> recent;  // of the last collectives that were called, finished or not, in their order
};

class Domain : public std::enable_shared_from_this<Domain> {
 public:
  // Transports in order of preference; route[p] is the index of the one that reaches rank p (ignored for p == rank).
  Domain(int rank, int size, std::vector<std::unique_ptr<transport::Transport>> transports, std::vector<int> route);
  ~Domain();

  int rank() const { return rank_; }
  int size() const { return size_; }
  transport::Link* link(int peer, int lane);
  transport::Transport* transport_to(int peer) { return transports_[route_[peer]].get(); }
  const std::vector<std::unique_ptr<transport::Transport>>& transports() const { return transports_; }

  // Called once, without locks, with the first fault; the domain moves nothing more until Engine::abort ends it.
  std::function<void(const Fault&)> on_fault;

  // What comes back keeps its domain, and a run its plan, for the next call. Taking needs the engine's lock. `place`:
  // that of the plan which the run is for.
  Ref<Run> take_run(uint32_t place = 0) { return take(&idle_runs_, place); }
  Ref<Message> take_message() { return take(&idle_messages_, 0); }
  void recycle(Run* run) { idle_runs_.give(run, run->place()); }
  void recycle(Message* message) { idle_messages_.give(message, 0); }
  // From now on what comes back is destroyed, and with it what it keeps of the domain. Idempotent; under the lock.
  void close_pools() {
    idle_runs_.close();
    idle_messages_.close();
  }
  uint32_t next_sequence() { return ++sequence_; }
  Messages& messages() { return messages_; }
  Standing standing() const;
  Counters counters() const;
  // Collectives, sends and receives in flight.
  size_t active() const { return active_.size(); }
  const Status& dead() const { return dead_; }
  // Drives the domain, from Engine::add() on.
  Engine* engine() const { return engine_.get(); }

 private:
  friend class Engine;
  template <typename T>
  Ref<T> take(Pool<T>* pool, uint32_t place) {
    T* item = pool->take(place);
    if (item == nullptr) {
      item = new T;
      item->domain = shared_from_this();
    }
    item->reset();
    return Ref<T>(item);
  }
  // `waiting`: the caller has no further calls to make first.
  bool advance(bool waiting, std::vector<std::function<void()>>* deferred);
  // Of that, only collectives, as far as what the transports have brought already goes.
  bool advance_runs(std::vector<std::function<void()>>* deferred);
  // Of that, only what the request waits for first, and where that shows.
  bool advance_for(const Request& request, std::vector<std::function<void()>>* deferred);
  transport::Watch watch(const Request& request) const;
  bool check_deadlines(base::TimePoint now, std::vector<std::function<void()>>* deferred);
  bool waits_on(int peer) const;
  base::TimePoint earliest_deadline() const;
  void enqueue(Run* run);
  // Of a run that ended without having been in flight.
  void remember(const Run& run) {
    touched_bytes_ += run.touched_bytes;
    note(run.contract());
  }
  void note(const Contract& contract) { recent_[contract.sequence % kRemembered] = last_ = contract; }
  // In flight, on some lane. (Comparing arrays is a call of memcmp.)
  bool collectives() const { return head_[0] != nullptr || collectives_beside(); }
  bool collectives_beside() const {
    return std::any_of(head_.begin() + 1, head_.end(), [](Run* r) { return r != nullptr; });
  }
  // Posts a message and moves what that may have made possible: a window of messages would otherwise look at
  // everything once for each of them. Collectives in flight move on, too.
  void post(Message* message, std::vector<std::function<void()>>* deferred);
  // Moves on the oldest call that goes straight to devices, and those behind it where it ends.
  bool advance_direct(std::vector<std::function<void()>>* deferred);
  // The peer that a request waits for first; -1: none, or nobody can tell.
  int waits_for(Request* request) const;
  // Ends what `finished_` holds, and raises the fault if there is one.
  void settle(Fault fault, std::vector<std::function<void()>>* deferred);
  void track(Request* request);
  void complete(Request* request, const Status& status, std::vector<std::function<void()>>* deferred);
  void raise(Fault fault, std::vector<std::function<void()>>* deferred);
  void finish_messages(std::vector<std::function<void()>>* deferred);
  void abort(const Status& status, std::vector<std::function<void()>>* deferred);

  const int rank_, size_;
  std::shared_ptr<Engine> engine_;
  std::vector<std::unique_ptr<transport::Transport>> transports_;
  std::vector<int> route_;
  std::array<Run*, transport::kCollectiveLanes> head_{}, tail_{};
  std::vector<Run*> retiring_;                 // lanes finished, sources still referred to
  List<Request, &Request::in_flight> active_;  // each holds a reference
  std::deque<Direct*> direct_;                 // in the order of calls
  std::vector<Request*> finished_;             // of messages, scratch
  uint64_t touched_bytes_ = 0;                 // of the runs that are over
  Messages messages_;
  uint32_t sequence_ = 0;
  Contract last_;
  std::array<Contract, kRemembered> recent_;  // call s at s % kRemembered
  uint32_t late_ = 0;                         // calls in a row that waited a moment in vain, or did not try
  bool suspended_ = false;
  Status dead_;
  Pool<Run> idle_runs_;  // these two may be given to without the lock
  Pool<Message> idle_messages_;
};

}  // namespace ringfold::exec
