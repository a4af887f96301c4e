#include "train/plan.h"

#include <algorithm>
#include <utility>

#include "train/loop.h"
#include "train/passes.h"
#include "train/survey.h"

namespace ringfold::train {

Result<std::optional<Agent>> plan_run(Communicator& comm, Args& args, const Dataset& data, Reporter& reporter,
                                      Communicator* crew) {
  auto goal = parse_goal(args.goal);
  if (!goal.ok()) return goal.status();
  goal->within_s = args.within_s;
  goal->max_ranks = args.max_ranks;
  Loop probe({.job = comm, .data = comm}, std::make_unique<Passes>(make_model(args.spec(), args.seed), data), args,
             data, reporter, false);
  RINGFOLD_TRY(probe.prepare());
  auto found =
      survey(comm, probe.elems(), args.batch, args.max_ranks, [&](size_t samples) { return probe.measure(samples); });
  if (!found.ok()) return found.status();
  const auto candidates = consider(*goal, *found);
  const Candidate& best = candidates.front();
  const Crew& chosen = found->crews[best.settings.crew];
  args.sync = best.settings.sync;
  args.codec = best.settings.codec;
  args.batch = best.settings.batch;
  args.bucket_kib = best.settings.bucket_kib;
  if (args.sync == "diloco") args.local_steps = best.settings.local_steps;
  args.elastic = args.sync == "ssgd";
  reporter.plan(args, to_string(candidates, *found), comm.transport_to((comm.rank() + 1) % comm.size()));
  if (chosen.ranks.size() < static_cast<size_t>(comm.size())) {
    const bool member = std::find(chosen.ranks.begin(), chosen.ranks.end(), comm.rank()) != chosen.ranks.end();
    auto part = comm.split(member ? 0 : -1);
    if (!part.ok()) return part.status();
    if (!member) return std::optional<Agent>();
    *crew = std::move(*part);
  }
  return std::optional<Agent>(Agent(*found, best));
}

}  // namespace ringfold::train
