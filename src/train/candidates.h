// What the agent plans: from a goal and what was measured to settings, with reasons. Arithmetic alone: it measures
// nothing and makes no calls, and gives the same answers on all ranks when all give it the same figures.
//
// Time to the goal = steps(settings) * seconds per step(settings).
//
//   seconds per step  the slowest rank's samples at its measured rate, a fixed cost, and the part of the exchange
//   that
//                     does not hide behind the backward pass. Of a pipeline: what its ranks idle, and all of the
//                     activations' way, since what hides of it differs from schedule to schedule.
//   steps             in proportion to 1 + B_noise / B for a global batch of B (McCandlish et al. 2018,
//                     arXiv:1812.06162, equation 2.7), times what the way of synchronising and the codec cost in
//                     progress per sample
//
// Only ratios between settings count, so the number of steps itself need not be known.
#pragma once

#include <cstddef>
#include <cstdint>
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
  std::string name;        // for people: "all 4 ranks", "one rank of each host"
  std::vector<int> ranks;  // of the communicator
  // By member: forward and backward, per sample. Until all are done, as steps together take; and by itself, which is
  // less where now one is late and now another.
  std::vector<double> sample_s, own_sample_s;
  double fixed_s = 0;  // of forward and backward, per step
  std::vector<std::pair<std::string, double>>
      exchange_s;  // codec and the time of one sum of all gradients; "none" first
};

// A way of cutting a replica of the model over ranks (sync/mesh.h).
struct Cut {
  int pipeline = 1;  // ranks that have some of the layers each
  int tensor = 1;    // ranks that share each layer
  friend bool operator==(const Cut&, const Cut&) = default;
};

struct Survey {
  std::vector<Crew> crews;
  size_t gradient_bytes = 0;
  // What a sample sends from one stage of a pipeline to the next, the most of any two; and what is summed over ranks
  // that share layers, of all layers, forward.
  size_t stage_bytes = 0, layer_bytes = 0;
  size_t batch = 256;               // global, that the user or the default asks for
  size_t samples = SIZE_MAX;        // of an epoch
  std::vector<size_t> batches;      // others that may be taken; empty: none
  std::vector<Cut> cuts = {Cut()};  // of the model, that may be made
  size_t least_replicas = 2;        // of a model that is cut: a rank that dies takes its replica with it
  // Ways of synchronising that may be taken.
  std::vector<std::string> syncs = {"ssgd", "asgd", "local", "diloco"};
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
  int64_t staleness = 4;   // of asgd
  Cut cut;
  int micro_batches = 1;  // of a pipeline
  size_t bucket_kib = 1024;
  std::vector<double> shares;  // of a batch, by replica; they add up to 1
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

// Equal ones where rates differ no more than by `alike`.
std::vector<double> shares_by_rate(const std::vector<double>& sample_s, double alike = 1);
// "64/64/20": samples by replica.
std::string shares_text(const std::vector<double>& shares, size_t batch);

}  // namespace ringfold::train
