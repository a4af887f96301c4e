// The agent: from a goal and what was measured to settings, with reasons; then, while the run goes on, from what is
// seen to what is changed. Arithmetic alone: it measures nothing and makes no calls, and gives the same answers on
// all ranks when all give it the same figures.
//
// Time to the goal = steps(settings) * seconds per step(settings).
//
//   seconds per step  the slowest rank's samples at its measured rate, a fixed cost, and the part of the exchange
//   that does
//                     not hide behind the backward pass
//   steps             in proportion to 1 + B_noise / B for a global batch of B (McCandlish et al. 2018,
//   arXiv:1812.06162,
//                     equation 2.7), times what the way of synchronising and the codec cost in progress per sample
//
// Only ratios between settings count, so the number of steps itself need not be known.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ringfold/status.h"

namespace ringfold::train {

struct Goal {
  enum class Kind { kAccuracy, kSamples };
  Kind kind = Kind::kAccuracy;
  double value = 0;  // share of right answers, or samples (of text: tokens) to train on
  double within_s = 0;
  int max_ranks = 0;  // 0: all there are
};
// "accuracy=0.91", "samples=1e6", "tokens=1e6". kInvalid says what is wrong.
Result<Goal> parse_goal(const std::string& text);

// A set of ranks that could do the work, as measured while its members, and nobody else, worked.
struct Crew {
  std::string name;              // for people: "all 4 ranks", "one rank of each host"
  std::vector<int> ranks;        // of the communicator
  std::vector<double> sample_s;  // by member: forward and backward, per sample
  double fixed_s = 0;            // of forward and backward, per step
  std::vector<std::pair<std::string, double>>
      exchange_s;  // codec and the time of one sum of all gradients; "none" first
};

struct Survey {
  std::vector<Crew> crews;
  size_t gradient_bytes = 0;
  size_t batch = 256;           // global, that the user or the default asks for
  std::vector<size_t> batches;  // others that may be taken; empty: none
};

// Learning rate for a batch, as a multiple of that for another: in proportion to 1 / (1 + B_noise / B), so that
// smaller batches make smaller steps (McCandlish et al., equation 2.9).
double rate_for(size_t batch, size_t other);

struct Settings {
  size_t crew = 0;  // index in Survey::crews
  std::string sync = "ssgd";
  std::string codec = "none";
  size_t batch = 256;
  size_t local_steps = 1;  // of diloco: steps between exchanges
  size_t bucket_kib = 1024;
  std::vector<double> shares;  // of a batch, by member; they add up to 1
};

struct Candidate {
  Settings settings;
  double step_s = 0;     // predicted, or measured:
  bool tried = false;    // in a rehearsal
  double exposed_s = 0;  // of it: communication that holds ranks up
  double cost = 0;       // predicted time to the goal, as a multiple of the best candidate's
};

// All that was considered, the best first. A crew's shares are in proportion to its members' rates.
std::vector<Candidate> consider(const Goal& goal, const Survey& survey);
// The table of them for people, the best `most`.
std::string to_string(const std::vector<Candidate>& candidates, const Survey& survey, size_t most = 8);

// What all ranks saw since the observation before; by member of the crew.
struct Observation {
  size_t step = 0;   // of the whole run, the last of these
  size_t steps = 0;  // that it covers
  std::vector<double> compute_s, exposed_s;
  std::vector<size_t> samples;  // that each member worked through
};

struct Decision {
  size_t step = 0;
  std::string seen, changed;
  std::string outcome;  // of the decision before this, when known
};

// Watches a run of synchronous SGD and changes one thing at a time: after a change it looks at one whole observation,
// keeps what made steps at least 3 % faster, takes back what did not, and does not try the same again.
class Agent {
 public:
  Agent(Survey survey, Candidate chosen);

  const Settings& settings() const { return settings_; }
  // What changed, if anything did; settings() are those to go on with.
  std::optional<Decision> observe(const Observation& seen);
  // These ranks go on, in this order: some of the crew were lost, and the others' shares grow; or some have come, and
  // are taken to be as fast as the others on average.
  Decision go_on_with(size_t step, const std::vector<int>& ranks, const std::string& cause);

  // All that it knows, for a rank that has joined or has seen less than the others; and back. kProtocol.
  std::string to_text() const;
  static Result<Agent> from_text(const std::string& text);

 private:
  struct Trial {
    Settings before;
    double step_s = 0;  // before it
    std::string what;
  };
  std::optional<Decision> judge(const Observation& seen, double step_s);
  std::optional<Decision> balance(const Observation& seen, double step_s);
  std::optional<Decision> compress(const Observation& seen, double step_s);
  std::optional<Decision> resize_buckets(const Observation& seen, double step_s);
  Decision change(const Observation& seen, double step_s, Settings next, std::string why, std::string what);

  Survey survey_;
  Settings settings_;
  std::optional<Trial> trial_;
  std::vector<std::string> tried_;  // that did not help
  int balanced_in_vain_ = 0;
  std::string outcome_;  // of the last trial, until a decision says it
};

}  // namespace ringfold::train
