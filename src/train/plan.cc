#include "train/plan.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "train/loop.h"
#include "train/passes.h"
#include "train/survey.h"

namespace ringfold::train {
namespace {

void apply(const Settings& settings, Args& args) {
  args.sync = settings.sync;
  args.codec = settings.codec;
  if (args.free_lr) args.lr = args.peak_lr() * rate_for(settings.batch, args.batch);
  args.batch = settings.batch;
  args.bucket_kib = settings.bucket_kib;
  if (args.sync != "ssgd") args.local_steps = settings.local_steps;
}

}  // namespace

Result<std::optional<Agent>> plan_run(Communicator& comm, Args& args, const Dataset& data, Reporter& reporter,
                                      Communicator* crew) {
  const auto begin = std::chrono::steady_clock::now();
  auto goal = parse_goal(args.goal);
  if (!goal.ok()) return goal.status();
  goal->within_s = args.within_s;
  goal->max_ranks = args.max_ranks;
  auto device = device_of(args, comm.rank());
  if (!device.ok()) return device.status();
  const auto passes = [&](const Args&) -> Result<std::unique_ptr<Passes>> {
    return std::make_unique<Passes>(make_model(args.spec(), args.seed), data, *device);
  };
  Loop probe({.job = comm}, passes, args, data, reporter, false);
  RINGFOLD_TRY(probe.prepare());
  const Rehearsal rehearsal{.compute = [&](size_t samples) { return probe.measure(samples); },
                            .step = [&](Communicator& part, const Settings& settings) -> Result<double> {
                              Args tried = args;
                              apply(settings, tried);
                              Loop loop({.job = part}, passes, tried, data, reporter, false);
                              RINGFOLD_TRY(loop.prepare());
                              RINGFOLD_TRY(loop.watched_by(Agent({}, {.settings = settings})));  // for its shares
                              return loop.measure_steps(kRehearsed);
                            }};
  auto found = survey(comm, probe.elems(), args.batch, args.max_ranks, rehearsal);
  if (!found.ok()) return found.status();
  if (args.free_batch) {
    for (size_t batch = args.batch / 2; batch >= args.batch / 8; batch /= 2) found->batches.push_back(batch);
  }
  auto candidates = consider(*goal, *found);
  RINGFOLD_TRY(rehearse(comm, *found, rehearsal, &candidates));
  const Candidate& best = candidates.front();
  const Crew& chosen = found->crews[best.settings.crew];
  apply(best.settings, args);
  args.elastic = true;
  reporter.plan(args, to_string(candidates, *found), comm.transport_to((comm.rank() + 1) % comm.size()),
                std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
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
