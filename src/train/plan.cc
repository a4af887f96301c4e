#include "train/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "train/layout.h"
#include "train/loop.h"
#include "train/model.h"
#include "train/passes.h"
#include "train/survey.h"

namespace ringfold::train {
namespace {

constexpr size_t kCompensating = 16;  // gradients of a covariance: docs/benchmarks.md, "Delay compensation"
// Cut models beside whole ones: as many as a survey can tell apart.
constexpr int kMostStages = 8, kMostParts = 4;

void apply_rate(const Settings& settings, Args& args) {
  if (args.free_lr) args.lr = args.peak_lr() * rate_for(settings.batch, args.batch);
}

size_t sample_bytes(const std::vector<int64_t>& gives) {
  size_t elems = 1;
  for (int64_t d : gives) elems *= static_cast<size_t>(d);
  return elems * sizeof(float);
}

// What crosses links inside a layer that ranks share: a sum behind the attention and one behind the feed-forward part
// of each block, as large as what the block gives.
constexpr size_t kSumsOfBlock = 2;

// What may be cut, and what crosses links then.
void survey_model(const Args& args, const Model& model, int ranks, Survey* survey) {
  const auto& gives = model.gives();
  size_t all_bytes = 0;
  for (size_t i = 0; i + 1 < gives.size(); ++i) {
    survey->stage_bytes = std::max(survey->stage_bytes, sample_bytes(gives[i]));
    all_bytes += sample_bytes(gives[i]);
  }
  survey->layer_bytes = kSumsOfBlock * all_bytes;
  survey->cuts.clear();
  for (int tensor = 1; tensor <= std::min(ranks, std::max(kMostParts, args.tensor_parallel)); ++tensor) {
    if (tensor > 1 && !check(args.spec(), tensor).ok()) continue;
    for (int stages = 1; stages <= std::min(ranks, std::max(kMostStages, args.pipeline)); ++stages) {
      if (stages * tensor > ranks || static_cast<size_t>(stages) > gives.size()) continue;
      if (args.cut() && (stages != args.pipeline || tensor != args.tensor_parallel)) continue;
      survey->cuts.push_back({.pipeline = stages, .tensor = tensor});
    }
  }
}

}  // namespace

void apply(const Settings& settings, Args& args) {
  args.sync = settings.sync;
  args.codec = settings.codec;
  args.batch = settings.batch;
  args.bucket_kib = settings.bucket_kib;
  if (args.sync == "local" || args.sync == "diloco") args.local_steps = settings.local_steps;
  if (args.sync == "diloco") {  // a run to a goal is short: docs/benchmarks.md, "The agent"
    if (args.outer_lr == 0) args.outer_lr = 1;
    if (!args.outer_momentum) args.outer_momentum = 0.5;
  }
  if (args.sync == "asgd") {
    args.staleness = settings.staleness;
    args.delay_compensation_gradients = kCompensating;
    args.delay_compensation_of_part = 2;
  }
  args.pipeline = settings.cut.pipeline;
  args.tensor_parallel = settings.cut.tensor;
  args.micro_batches = settings.cut.pipeline > 1 ? settings.micro_batches : 0;
}

Result<std::optional<Agent>> plan_run(Communicator& comm, Args& args, const Dataset& data, Reporter& reporter,
                                      Communicator* crew) {
  const auto begin = std::chrono::steady_clock::now();
  auto goal = parse_goal(args.goal);
  if (!goal.ok()) return goal.status();
  goal->within_s = args.within_s;
  goal->max_ranks = args.max_ranks;
  auto device = device_of(args, comm.rank());
  if (!device.ok()) return device.status();
  args.elastic = true;
  const auto model = make_model(args.spec(), args.seed);
  const auto passes = [&](const Args&) -> Result<std::unique_ptr<Passes>> {
    return std::make_unique<Passes>(model, data, *device);
  };
  Loop probe({.job = comm}, passes, args, data, reporter, false);
  RINGFOLD_TRY(probe.prepare());
  const Rehearsal rehearsal{.compute = [&](size_t samples) { return probe.measure(samples); },
                            .step = [&](Communicator& part, const Settings& settings) -> Result<double> {
                              Args tried = args;
                              apply_rate(settings, tried);
                              apply(settings, tried);
                              auto layout = Layout::make(part, tried);
                              if (!layout.ok()) return layout.status();
                              const auto make = [&](const Args& now) { return (*layout)->make_passes(now, data); };
                              Loop loop((*layout)->axes(), make, tried, data, reporter, false);
                              RINGFOLD_TRY(loop.prepare());
                              RINGFOLD_TRY(loop.watched_by(Agent({}, {.settings = settings})));  // for its shares
                              return loop.measure_steps(kRehearsed);
                            }};
  auto found =
      survey(comm, probe.elems(), args.batch, args.max_ranks, args.pipeline * args.tensor_parallel, rehearsal);
  if (!found.ok()) return found.status();
  if (args.free_batch) {
    for (size_t batch = args.batch / 2; batch >= args.batch / 8; batch /= 2) found->batches.push_back(batch);
  }
  found->samples = data.train.size();
  survey_model(args, *model, comm.size(), &*found);
  const int asked = args.pipeline * args.tensor_parallel;
  if (asked > 1 && (args.max_ranks > 0 ? std::min(args.max_ranks, comm.size()) : comm.size()) < 2 * asked)
    found->least_replicas = 1;
  if (args.optimizer != "sgd") std::erase(found->syncs, "asgd");       // n updates in turn would go n times as far
  if (!args.free_sync && comm.size() > 1) found->syncs = {args.sync};  // one rank alone has nobody to keep to
  auto candidates = consider(*goal, *found);
  if (candidates.empty()) {
    return Status(Code::kInvalid,
                  fmt::format("--goal on {} rank{} with --pipeline {}, --tensor-parallel {}{}, batches of {}: no "
                              "such plan can be made",
                              comm.size(), comm.size() == 1 ? "" : "s", args.pipeline, args.tensor_parallel,
                              args.free_sync ? "" : " and --sync " + args.sync, args.batch));
  }
  RINGFOLD_TRY(rehearse(comm, *found, rehearsal, &candidates));
  const Candidate& best = candidates.front();
  const Crew& chosen = found->crews[best.settings.crew];
  apply_rate(best.settings, args);
  apply(best.settings, args);
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
