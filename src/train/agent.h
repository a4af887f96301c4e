// The agent while a run goes on: from what is seen to what is changed. Arithmetic alone, as the planning before
// (candidates.h): the same answers on all ranks when all show it the same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ringfold/status.h"
#include "train/candidates.h"

namespace ringfold::train {

// What all ranks saw since the observation before; by member of the crew.
struct Observation {
  size_t step = 0;   // of the whole run, the last of these
  size_t steps = 0;  // that it covers
  std::vector<double> compute_s, exposed_s;
  std::vector<size_t> samples;  // that each member worked through
  double loss = 0;              // mean over these steps' targets; 0: not known
  // Of asgd: updates whose gradient was k updates old, of these steps.
  std::vector<uint64_t> staleness;
};

struct Decision {
  size_t step = 0;
  std::string seen, changed;
  std::string outcome;  // of the decision before this, when known
};

// Watches a run and changes one thing at a time: after a change it looks at one whole observation, keeps what made
// steps at least 3 % faster and did not let the loss rise, takes back what did not, and does not try the same again.
//
//   whole models, ssgd   parts of the batch, codec, buckets
//   cut models           micro-batches
//   asgd                 the bound of staleness: larger where it holds up fast ranks, smaller where the loss rises
//   local, diloco        nothing: the times of ranks that step alone say little of each other
class Agent {
 public:
  Agent(Survey survey, Candidate chosen);

  const Settings& settings() const { return settings_; }
  // What changed, if anything did; settings() are those to go on with.
  std::optional<Decision> observe(const Observation& seen);
  // These ranks go on, in this order: some of the crew were lost, and the others' shares grow; or some have come, and
  // are taken to be as fast as the others on average. Of a cut model they are as many whole replicas.
  Decision go_on_with(size_t step, const std::vector<int>& ranks, const std::string& cause);

  // All that it knows, for a rank that has joined or has seen less than the others; and back. kProtocol.
  std::string to_text() const;
  static Result<Agent> from_text(const std::string& text);

 private:
  struct Trial {
    Settings before;
    double step_s = 0, loss = 0;  // before it
    std::string what;
  };
  std::optional<Decision> judge(const Observation& seen, double step_s);
  std::optional<Decision> balance(const Observation& seen, double step_s);
  std::optional<Decision> compress(const Observation& seen, double step_s);
  std::optional<Decision> resize_buckets(const Observation& seen, double step_s);
  std::optional<Decision> recut_batch(const Observation& seen, double step_s);
  std::optional<Decision> bound_staleness(const Observation& seen, double step_s);
  Decision change(const Observation& seen, double step_s, Settings next, std::string why, std::string what);
  // The same if it has not been tried, and for good: there and back is no way on. `text`: what is changed, in words.
  std::optional<Decision> change_once(const Observation& seen, double step_s, Settings next, std::string why,
                                      std::string (*text)(const Settings& from, const Settings& to));

  Survey survey_;
  Settings settings_;
  std::optional<Trial> trial_;
  std::vector<std::string> tried_;  // that did not help
  int balanced_in_vain_ = 0;
  double least_loss_ = 0;  // of an observation; 0: none
  std::string outcome_;    // of the last trial, until a decision says it
};

}  // namespace ringfold::train
