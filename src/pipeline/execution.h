// One rank's list under way: which action is next, what it needs, and what it leaves. Never waits, so the simulated
// network can run it, too.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "pipeline/exchange.h"
#include "pipeline/play.h"

namespace ringfold::pipeline {

class Execution {
 public:
  struct Options {
    int rank = 0;
    RunnerOptions runner;
    std::function<base::TimePoint()> now = [] { return base::Clock::now(); };
  };
  // The schedule is checked, the boundaries are agreed.
  Execution(const Schedule& schedule, Stages& stages, std::shared_ptr<Port> port, const Options& options);

  enum class Progress { kMoved, kBlocked, kDone };
  // Begins a step: the list from its start.
  void begin(base::Deadline deadline);
  // The next action, if what it needs is here. An error is the first cause on this rank; Failure::own: of a callback.
  Result<Progress> advance();
  // After kBlocked: drives until what is missing is here.
  Status wait() { return exchange_.wait(*missing_); }

  Exchange& exchange() { return exchange_; }
  // The action whose callback failed; null: none did.
  const Action* failed() const { return failed_ ? &*failed_ : nullptr; }
  std::string position() const;
  int peak_activations() const { return peak_; }
  // Of the steps since the last clear_spans(); begin and end in seconds of the clock.
  std::vector<Span>& spans() { return spans_; }

 private:
  struct Held {  // from F to W
    Memory input, output_gradient;
  };
  struct Need {  // a message that an action needs
    size_t index = 0;
    Name name;
    int peer = 0;
  };
  size_t key(int stage, int micro_batch) const {
    return static_cast<size_t>(stage) * static_cast<size_t>(schedule_.micro_batches) +
           static_cast<size_t>(micro_batch);
  }
  int rank_of(int stage) const { return schedule_.rank_of[static_cast<size_t>(stage)]; }
  Envelope envelope_of(const Name& name, int peer) const;
  Status post_ahead();
  Result<Memory> take(const Name& name, int from);
  void hand_on(const Name& name, int to, Memory memory);
  Status run(const Action& action);
  Status call(const Pass& pass);

  const Schedule& schedule_;
  Stages& stages_;
  const Options options_;
  const std::vector<Action>& list_;
  Exchange exchange_;
  std::vector<Need> needs_;        // of the list, in order
  size_t posted_ = 0, taken_ = 0;  // of needs_
  std::atomic<size_t> next_;       // of list_
  base::Deadline deadline_;
  std::map<size_t, Held> held_;   // by stage and micro-batch
  std::map<Name, Memory> local_;  // between stages of this rank
  std::optional<Name> missing_;
  std::optional<Action> failed_;
  int activations_ = 0, peak_ = 0;
  std::vector<Span> spans_;
};

}  // namespace ringfold::pipeline
