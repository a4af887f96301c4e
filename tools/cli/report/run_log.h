// The log of a training run (`ringfold train --json FILE`): one JSON object per line, each with its "event".
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ringfold/status.h"

namespace ringfold::cli {

struct RunLog {
  struct Step {
    size_t step = 0;
    double loss = 0, lr = 0, samples_per_s = 0, comm_share = 0;
  };
  struct Test {
    size_t step = 0;  // at the end of an epoch: the last that was logged before
    double epoch = 0;
    std::optional<double> loss, accuracy;
  };
  // Where the ranks' time went since the event before, in seconds, by rank.
  struct Times {
    size_t step = 0;
    size_t steps = 0;  // that it covers
    std::vector<double> compute_s;
    std::vector<double> exposed_s;  // held up by communication
  };
  // What the ranks of a pipeline did in its last steps, in milliseconds from the first.
  struct Span {
    int rank = 0;
    std::string kind;
    int stage = 0, micro_batch = 0;
    double begin = 0, end = 0;
  };
  struct Timeline {
    double step_s = 0, idle = 0;  // a step's time, and the share of it that ranks do not compute, on average
    std::vector<Span> spans;
  };
  struct Decision {
    size_t step = 0;
    std::string seen, changed, outcome;
  };
  using Facts = std::vector<std::pair<std::string, std::string>>;

  Facts start;  // in the order of the log
  Facts end;    // empty: the run did not come to its end
  std::string error;
  std::vector<Step> steps;
  std::vector<Test> tests;
  std::vector<Times> times;
  std::vector<Decision> decisions;
  std::optional<Timeline> timeline;
  bool cut = false;  // the last line is not whole, as of a run that was killed

  // What a fact of the start or the end says; "" where it is not there.
  std::string fact(const std::string& name) const;
};

// kIo: cannot be read. kInvalid: not such a log; the message names the line.
Result<RunLog> read_run_log(const std::string& path);

}  // namespace ringfold::cli
