// A network in virtual time, on which the shipping executor runs: one thread, one clock, one queue of events, and
// every choice drawn from a seed. A failure found under a seed happens again under that seed.
//
// TIME stands still while ranks compute and jumps to the next event (World::step) when the driver says that nobody
// can move. A put, a release and the opening of a link each become an event at the other end after a random delay; a
// put also waits for the bytes before it on its link (bandwidth). On one direction of one link events keep their
// order; between links anything may overtake anything, which is what the program's matching must stand.
//
// MEMORY. Each put with a payload is, by lot, copied at once (and retired at once), readable in place at the
// receiver, or remote, to be fetched; the latter two are retired when their release has come back. A wanted landing
// is, by lot, filled when the put arrives. So one stream of puts takes all the ways that real transports have, in
// random order.
//
// PROCESSES own transports. They can be *killed*: what they had put may still arrive up to a random point of each
// link, nothing of theirs moves or can be fetched any more, and every peer's transport notices after a detection
// delay of its own. They can be *stopped* and resumed: nothing fails, the driver just does not run them, and messages
// to them wait. They can be *slow*: after each turn they are busy for a while. And what joins two of them can be
// *cut*: what is on its way is lost, each side notices in its own time, and both live on and reach each other by
// post().
//
// REFEREE. The network watches the rules of ringfold/transport.h that real transports must trust: put only with
// credit, sources unchanged until retired, the same landing for the same arrival, nothing between reserve and commit.
// What it sees goes to violations().
//
// Threads: all of it from one.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <queue>
#include <random>
#include <string>
#include <vector>

#include "base/clock.h"
#include "ringfold/transport.h"

namespace ringfold::sim {

struct Options {
  int slots = 4;
  size_t slot_bytes = 4096;
  base::Duration min_delay = std::chrono::microseconds(1), max_delay = std::chrono::microseconds(50);
  double bytes_per_us = 1000;        // of one direction of one link
  uint64_t fetches_per_refusal = 0;  // on average; 0: none is refused
  base::Duration min_detection = std::chrono::milliseconds(1), max_detection = std::chrono::milliseconds(20);
};

class Endpoint;

class World {
 public:
  using Task = std::function<void()>;
  explicit World(uint64_t seed, const Options& options = {});
  ~World();

  // ---- time and chance ----
  base::TimePoint now() const { return now_; }
  void at(base::TimePoint when, Task task);
  void after(base::Duration delay, Task task) { at(now_ + delay, std::move(task)); }
  // Jumps to the next event and runs it. False: there is none.
  bool step();
  uint64_t roll(uint64_t below) { return random_() % below; }  // 0 .. below-1
  base::Duration between(base::Duration least, base::Duration most);

  // ---- processes, known by number ----
  void kill(int process);
  void cut(int a, int b);
  void stop(int process);
  void resume(int process);
  // After each turn (ran()) the process is busy for up to `most`.
  void slow(int process, base::Duration most);
  bool alive(int process) const;
  bool runnable(int process) const;  // alive, not stopped, not busy
  void ran(int process);
  // A message outside the transports: runs `task` in the life of process `to` after a delay; in order for each pair,
  // not while `to` is stopped, never when it is dead.
  void post(int from, int to, base::Duration delay, Task task);

  // The transport of a process in the communicator `nonce`, to be made once. It must go before the world.
  std::unique_ptr<transport::Transport> make(int process, uint64_t nonce);

  const Options& options() const { return options_; }
  const std::vector<std::string>& violations() const { return violations_; }

 private:
  friend class Endpoint;
  struct Event {
    base::TimePoint when;
    uint64_t number;
    Task task;
    bool operator<(const Event& o) const { return when != o.when ? when > o.when : number > o.number; }
  };
  struct Process {
    bool dead = false, stopped = false;
    base::TimePoint busy_until{};
    base::Duration slowness{};
    std::vector<Task> inbox;  // came while it was stopped
  };
  Process& process(int p) { return processes_[p]; }

  const Options options_;
  std::mt19937_64 random_;
  base::TimePoint now_{std::chrono::hours(1)};
  uint64_t next_number_ = 0;
  std::priority_queue<Event> events_;
  mutable std::map<int, Process> processes_;
  std::map<std::pair<int, int>, base::TimePoint> last_post_;
  std::map<std::pair<uint64_t, int>, Endpoint*> endpoints_;  // by communicator and process
  std::vector<std::string> violations_;
};

}  // namespace ringfold::sim
