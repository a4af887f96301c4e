// A job of chaos_worker processes as seen by the test that starts, harms and judges them.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/clock.h"

namespace ringfold::chaos {

// One line of a worker.
struct Event {
  std::string kind, text, code;
  int round = 0;             // how often the worker had reconfigured
  int rank = -1;             // "verdict": the culprit, as a rank of that round's communicator
  std::vector<int> members;  // "ready": the communicator's ranks, as ranks of the job
  int fds = 0, segments = 0;
  double at = 0;  // seconds on the monotonic clock
};

double now_s();

// How much later than its limit something may come that began at `since`: what the machine itself stood still. A
// thread that sleeps 10 ms at a time notices, as do the ranks: one whose timer comes late gives the others some times
// as much, a grace at most (comm/agreement.h), before it judges them.
double standstill_since(double since);

// One thread at a time. Ends with no process and no file left behind.
class Job {
 public:
  struct Options {
    int size = 2;
    uint64_t seed = 0;
    std::string transport = "auto";
    bool large = false;                             // calls, in slots of 8 KiB
    double deadline_s = 10;                         // of calls
    double timeout_s = 20;                          // of joining and reconfiguring
    std::map<int, std::string> faults;              // by rank, see chaos_worker.cc
    std::string rendezvous;                         // "": a directory of the job's own
    std::map<int, std::string> keys, rendezvouses;  // by rank, instead of the job's
    std::vector<int> late;                          // not started by the constructor
  };
  explicit Job(Options options);
  ~Job();

  void start(int rank, const std::string& key = "");  // "": the job's
  // Takes in what the workers say until `done`; false when that lasts longer than `seconds`.
  bool wait(double seconds, const std::function<bool()>& done);
  void signal(int rank, int number);
  // Asks all to end; the ranks agree on when.
  void ask_to_end();
  bool wait_for_exit(int rank, double seconds);

  const std::vector<Event>& events(int rank) const { return ranks_[static_cast<size_t>(rank)].events; }
  // The first event of that kind in that round (any round: -1), or null.
  const Event* find(int rank, const std::string& kind, int round = -1) const;
  pid_t pid(int rank) const { return ranks_[static_cast<size_t>(rank)].pid; }
  int exit_status(int rank) const { return ranks_[static_cast<size_t>(rank)].status; }  // as of waitpid
  bool running(int rank) const {
    return ranks_[static_cast<size_t>(rank)].pid > 0 && ranks_[static_cast<size_t>(rank)].status == kRunning;
  }
  const std::string& folder() const { return folder_; }
  // What lies in the job's folder that neither the test nor a running worker owns.
  std::vector<std::string> leftovers() const;
  // The last events and log lines of all.
  std::string logs() const;

 private:
  static constexpr int kRunning = -1;
  struct Worker {
    pid_t pid = -1;
    int status = kRunning;
    int events_fd = -1, stdin_fd = -1;
    std::string partial;
    std::vector<Event> events;
    std::vector<std::string> lines;
  };
  void read_events(int timeout_ms);
  void reap();

  const Options options_;
  std::string folder_;
  std::vector<Worker> ranks_;
};

}  // namespace ringfold::chaos
