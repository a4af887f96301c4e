// Which algorithm a communicator uses for which size: the tuner (src/model) on this communicator's cluster, and the
// measuring that gives it figures.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "comm/session.h"
#include "comm/wiring.h"
#include "model/cache.h"
#include "model/tuner.h"
#include "plan/planner.h"

namespace ringfold::comm {

// Any thread. Equal on all ranks, since a table is a pure function of the cluster, which all ranks have from rank 0.
class Choices {
 public:
  // kInvalid: `override_text` (RINGFOLD_ALGORITHM) does not make sense.
  static Status check(const std::string& override_text);

  void set(model::ClusterModel cluster, std::string override_text, uint64_t tile_bytes, int slots);
  // `bytes` of one block. Tables are built when a collective is first asked for, in small sizes, large or huge.
  plan::Choice choose(Collective collective, uint64_t bytes, const Codec& codec = {});
  // The algorithm that the override asks for; "": none.
  std::string wanted(Collective collective, uint64_t bytes);
  // The ranges of a collective with their reasons; and the figures they come from.
  std::string ranges(Collective collective);
  std::string figures();
  model::ClusterModel cluster();

 private:
  // One that knows `bytes`.
  const Result<model::Tuner>& tuner(Collective collective, const Codec& codec, uint64_t bytes);
  // By the best algorithm; a reason without an algorithm: there is none.
  model::Choice best(Collective collective, uint64_t bytes, const Codec& codec);

  std::mutex mutex_;
  model::ClusterModel cluster_;
  model::TunerOptions options_;
  // Also by the codec's text, and by the most bytes that they know.
  std::map<std::tuple<Collective, std::string, uint64_t>, Result<model::Tuner>> tuners_;
};

// The cluster that a communicator's members make, with default figures.
model::ClusterModel cluster_of(const Session& session, const std::vector<int>& members, const Wiring& wiring);
// Where and under which key measured figures of these members are kept.
model::CacheKey cache_key(const Session& session, const std::vector<int>& members,
                          const model::ClusterModel& cluster);
std::string cache_directory(const Config& config);

// Rank 0 measures, the others answer. Collective; returns the figures on rank 0, and ok elsewhere.
Result<model::ClusterModel> measure(Communicator& comm, const model::ClusterModel& known, double budget_s);

}  // namespace ringfold::comm
