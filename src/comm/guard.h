// The guard of a communicator: turns faults, losses and messages of the control mesh into one agreed verdict, and
// that into the end of the communicator's domain. It drives an Agreement (agreement.h) on the control thread.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "comm/agreement.h"
#include "comm/control.h"
#include "exec/engine.h"

namespace ringfold::comm {

// Threads: constructor, close() and destructor on the owner's; the rest on any.
class Guard {
 public:
  struct Options {
    Control* control = nullptr;
    exec::Engine* engine = nullptr;
    std::shared_ptr<exec::Domain> domain;
    std::vector<int> members;  // by rank of the communicator: rank in the control mesh
    int me = 0;
    uint32_t epoch = 0;
    std::string name;  // unique to this communicator and epoch
  };
  explicit Guard(Options options);
  ~Guard();
  // No callback runs afterwards.
  void close();

  // Evidence found by the engine, or a user's wish; returns at once.
  void report(const exec::Fault& fault);
  void request_abort(const std::string& cause);

  // The decision, once there is one.
  std::optional<Decision> decision() const;

 private:
  void post(std::function<void(base::TimePoint)> input);
  void pump();
  void set_timer();
  void conclude_soon();
  Standing standing() const;

  const Options options_;
  const std::string topic_ = "agree/" + options_.name;
  // On the control thread only:
  Agreement agreement_;
  std::optional<base::TimePoint> timer_;
  bool suspended_ = false, concluding_ = false;
  std::optional<Decision> decided_;  // the newest that was told to the others, or by them

  mutable std::mutex mutex_;
  std::optional<Decision> decision_;
};

}  // namespace ringfold::comm
