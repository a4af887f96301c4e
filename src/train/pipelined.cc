#include "train/pipelined.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <numeric>
#include <utility>

namespace ringfold::train {
namespace {

constexpr int64_t kTestTag = 0x74657374;
using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

constexpr int kTimelineSteps = 2;
constexpr size_t kTestsAtOnce = 16;  // batches that are on their way through the stages

Status misfit(const std::string& text) { return Status(Code::kInvalid, text); }

Result<pipeline::Schedule> schedule_of(const Args& args, int ranks, size_t samples, int replicas) {
  const size_t most = samples / static_cast<size_t>(replicas);
  int micro_batches = args.micro_batches;
  if (micro_batches == 0) {  // a multiple of the ranks, as some schedules need it
    micro_batches = static_cast<int>(std::clamp<size_t>(most, 1, 4 * static_cast<size_t>(ranks)));
    if (micro_batches > ranks) micro_batches -= micro_batches % ranks;
  }
  if (static_cast<size_t>(micro_batches) > std::max<size_t>(most, 1)) {
    return misfit(
        fmt::format("--micro-batches {}: each of {} replicas has {} of the {} samples of a batch, so some would be "
                    "empty in every step; take fewer, or a larger --batch",
                    micro_batches, replicas, most, samples));
  }
  return pipeline::make(args.pipeline_schedule,
                        {.ranks = ranks, .micro_batches = micro_batches, .chunks = args.pipeline_chunks});
}

Chain chain_of(const Model& model) {
  Chain chain;
  for (size_t i = 0; i < model.layers().size(); ++i) {
    const auto layer = model.layers()[i];
    ChainLayer& link = chain.emplace_back();
    link.gives = model.gives()[i];
    if (!layer) continue;
    link.forward = [layer](const torch::Tensor& x) { return layer->forward(x); };
    for (const Parameter& p : layer->own_parameters()) link.parameters.push_back(p.local);
  }
  return chain;
}

// One layer is there at a time; other random numbers than in training make no difference to its time.
std::vector<double> measured_alone(const Args& args, TensorGroup* tensor, size_t layers,
                                   const torch::Tensor& example) {
  std::vector<double> costs;
  torch::Tensor x = example;
  for (size_t i = 0; i < layers; ++i) {
    const auto alone = make_model(args.spec(), args.seed, tensor,
                                  {.here = [i](size_t layer) { return layer == i; }, .draw_others = false});
    const Chain chain = {chain_of(*alone)[i]};
    costs.push_back(measured_costs(chain, x, /*by_input=*/i > 0).front());
    const torch::NoGradGuard no_grad;
    x = chain[0].forward(x);
  }
  return costs;
}

// The first layer of each stage, the same on all ranks. `model`: its forms are there.
Result<std::vector<size_t>> cuts_of(Communicator& job, const Args& args, const Model& model, TensorGroup* tensor,
                                    int stages, const torch::Tensor& example) {
  const size_t layers = model.layers().size();
  if (static_cast<size_t>(stages) > layers) {
    return misfit(
        fmt::format("--pipeline {} with --pipeline-schedule {} makes {} stages, and the model has {} layers: "
                    "take a smaller --pipeline, {}a model of more layers",
                    args.pipeline, args.pipeline_schedule, stages, layers,
                    stages > args.pipeline ? "fewer --pipeline-chunks, another schedule, or " : "or "));
  }
  if (const auto given = parse_stage_layers(args.pipeline_balance)) {
    if (given->size() != static_cast<size_t>(stages) ||
        std::accumulate(given->begin(), given->end(), size_t{0}) != layers) {
      return misfit(
          fmt::format("--pipeline-balance {}: it must be {} numbers, one for each stage, whose sum is {}, the "
                      "number of layers",
                      args.pipeline_balance, stages, layers));
    }
    std::vector<size_t> cuts(given->size(), 0);
    std::partial_sum(given->begin(), given->end() - 1, cuts.begin() + 1);
    return cuts;
  }
  std::vector<double> costs(layers, args.pipeline_balance == "layers" ? 1 : 0);
  if (args.pipeline_balance == "parameters") {
    for (const Model::Form& form : model.forms()) costs[form.layer] += static_cast<double>(form.elems());
  } else if (args.pipeline_balance == "time") {
    costs = measured_alone(args, tensor, layers, example);
    RINGFOLD_TRY(job.broadcast(costs.data(), costs.data(), costs.size(), DataType::kF64, 0).wait());
  }
  return balanced_cuts(costs, stages);
}

// Tensors under way to other ranks, kept until they are there.
class Outbox {
 public:
  explicit Outbox(Communicator& comm) : comm_(comm) {}
  ~Outbox() {
    for (auto& [tensor, work] : sent_) {
      if (!work.test()) comm_.abort("a test was given up");
      (void)work.wait();
    }
  }
  void send(torch::Tensor tensor, DataType type, int to, const CallOptions& options) {
    std::erase_if(sent_, [](auto& sent) { return sent.second.test(); });
    const auto count = static_cast<size_t>(tensor.numel());
    Work work = comm_.send(tensor.data_ptr(), count, type, to, kTestTag, options);
    sent_.emplace_back(std::move(tensor), std::move(work));
  }
  Status wait() {
    for (auto& [tensor, work] : sent_) RINGFOLD_TRY(work.wait());
    sent_.clear();
    return {};
  }

 private:
  Communicator& comm_;
  std::vector<std::pair<torch::Tensor, Work>> sent_;
};

}  // namespace

at::Tensor PipelinedPasses::Turn::cut(const at::Tensor& whole, int micro_batch) const {
  const sync::Part& part = parts[static_cast<size_t>(micro_batch)];
  return whole.narrow(0, static_cast<int64_t>(part.begin), static_cast<int64_t>(part.size()));
}

PipelinedPasses::PipelinedPasses(std::shared_ptr<Model> model, const Dataset& data, Communicator& comm,
                                 pipeline::Schedule schedule, std::vector<size_t> cuts)
    : Passes(std::move(model), data), comm_(comm), schedule_(std::move(schedule)), cuts_(std::move(cuts)) {}

Result<std::unique_ptr<Passes>> PipelinedPasses::make(Communicator& job, Communicator& pipeline, TensorGroup* tensor,
                                                      const Dataset& data, const Args& args, int replicas) {
  auto schedule = schedule_of(args, pipeline.size(), std::min(args.batch, data.train.size()), replicas);
  if (!schedule.ok()) return schedule.status();
  Batch one(data.train, 1);
  one.fill(data.train, std::vector<uint32_t>{0});
  const auto outline =
      make_model(args.spec(), args.seed, tensor, {.here = [](size_t) { return false; }, .draw_others = false});
  auto cuts = cuts_of(job, args, *outline, tensor, schedule->stages(), one.inputs());
  if (!cuts.ok()) return cuts.status();
  std::vector<int> rank_of;  // by layer
  for (size_t s = 0; s < cuts->size(); ++s) {
    const size_t end = s + 1 < cuts->size() ? (*cuts)[s + 1] : outline->layers().size();
    rank_of.resize(end, schedule->rank_of[s]);
  }
  auto model = make_model(args.spec(), args.seed, tensor,
                          {.here = [&](size_t layer) { return rank_of[layer] == pipeline.rank(); }});
  model->lies_on(pipeline, rank_of);
  auto turn = std::make_unique<Turn>();
  auto stages = ChainStages::make(
      chain_of(*model), *cuts, *schedule, pipeline.rank(), one.inputs(),
      {.input = [t = turn.get()](int i) { return t->cut(t->inputs, i); },
       .loss = [t = turn.get()](const torch::Tensor& logits,
                                int i) { return loss_sum(logits, t->cut(t->targets, i)) / t->divisor; },
       .samples = [t = turn.get()](int i) { return static_cast<int64_t>(t->parts[static_cast<size_t>(i)].size()); },
       .complete = [t = turn.get()](int stage) { t->complete(stage); }});
  if (!stages.ok()) return stages.status();
  turn->parts.resize(static_cast<size_t>(schedule->micro_batches));
  std::unique_ptr<PipelinedPasses> passes(
      new PipelinedPasses(std::move(model), data, pipeline, std::move(*schedule), std::move(*cuts)));
  turn->complete = [p = passes.get()](int stage) { p->tell(stage); };
  passes->turn_ = std::move(turn);
  passes->stages_ = std::move(*stages);
  auto runner = pipeline::Runner::make(pipeline, passes->schedule_, *passes->stages_, {.keep_steps = kTimelineSteps});
  if (!runner.ok()) return runner.status();
  passes->runner_ = std::move(*runner);
  return std::unique_ptr<Passes>(std::move(passes));
}

// The gradients of a stage are complete: those of its last layer came first.
void PipelinedPasses::tell(int stage) {
  const auto since = Clock::now();
  const auto at = static_cast<size_t>(stage);
  const size_t begin = cuts_[at], end = at + 1 < cuts_.size() ? cuts_[at + 1] : model().layers().size();
  std::vector<size_t> complete;
  size_t own = 0;  // number among this rank's parameters
  for (const Model::Form& form : model().forms()) {
    if (!model().layers()[form.layer]) continue;
    if (form.layer >= begin && form.layer < end) complete.push_back(own);
    ++own;
  }
  for (size_t i = complete.size(); i-- > 0;) strategy().ready(complete[i]);
  telling_s_ += seconds_since(since);  // the strategy counts it as its own
}

Result<double> PipelinedPasses::learn(std::span<const uint32_t> samples, double divisor) {
  if (has(0) || has(schedule_.stages() - 1)) {
    batch().fill(data().train, samples);
    turn_->inputs = batch().inputs();
    turn_->targets = batch().targets();
  }
  turn_->divisor = divisor;
  for (int i = 0; i < schedule_.micro_batches; ++i)
    turn_->parts[static_cast<size_t>(i)] = sync::part_of(samples.size(), i, schedule_.micro_batches);
  const auto begin = Clock::now();
  RINGFOLD_TRY(runner_->step());
  ++steps_;
  const double busy_s = stages_->take_busy_s() + std::exchange(telling_s_, 0);
  idle_s_ += std::max(0.0, seconds_since(begin) - busy_s);
  return stages_->take_loss() * divisor;
}

// Forward passes alone: each rank takes some batches through its first stage, then the same ones through its next.
Result<Passes::Score> PipelinedPasses::test(sync::Part part) {
  torch::NoGradGuard no_grad;
  const size_t batches = (part.size() + test_batch() - 1) / test_batch();
  std::vector<uint32_t> samples;
  const auto fill = [&](size_t b) {
    const size_t begin = part.begin + b * test_batch();
    samples.resize(std::min(test_batch(), part.end - begin));
    std::iota(samples.begin(), samples.end(), static_cast<uint32_t>(begin));
    batch().fill(data().test, samples);
  };
  const auto size = [&](size_t b) {
    return static_cast<int64_t>(std::min(test_batch(), part.size() - b * test_batch()));
  };
  Score score;
  Outbox outbox(comm_);
  std::map<size_t, torch::Tensor> here;  // by batch: what a stage of this rank has made for the next, here too
  const int last = schedule_.stages() - 1;
  for (size_t from = 0; from < batches; from += kTestsAtOnce) {
    for (const int stage : schedule_.stages_of(comm_.rank())) {
      const std::string label = fmt::format("a test's activations, between stages {} and {}", stage, stage + 1);
      const std::string label_before =
          fmt::format("a test's activations, between stages {} and {}", stage - 1, stage);
      for (size_t b = from; b < std::min(batches, from + kTestsAtOnce); ++b) {
        torch::Tensor x;
        if (stage == 0) {
          fill(b);
          x = batch().inputs();
        } else if (has(stage - 1)) {
          x = std::move(here.at(b));
        } else {
          x = stages_->room(stage - 1, size(b));
          RINGFOLD_TRY(comm_
                           .recv(x.data_ptr(), static_cast<size_t>(x.numel()), DataType::kF32,
                                 schedule_.rank_of[static_cast<size_t>(stage) - 1], kTestTag, {.label = label_before})
                           .wait());
        }
        x = stages_->infer(stage, x);
        if (stage == last) {
          fill(b);
          score.right += right_answers(x, batch().targets());
          score.loss += loss_sum(x, batch().targets()).item<double>();
        } else if (has(stage + 1)) {
          here[b] = std::move(x);
        } else {
          outbox.send(x.contiguous(), DataType::kF32, schedule_.rank_of[static_cast<size_t>(stage) + 1],
                      {.label = label});
        }
      }
    }
  }
  RINGFOLD_TRY(outbox.wait());
  return score;
}

Result<std::optional<pipeline::Timing>> PipelinedPasses::timeline() {
  if (steps_ == 0) return std::optional<pipeline::Timing>();
  auto timing = runner_->timeline(std::min(steps_, kTimelineSteps));
  if (!timing.ok()) return timing.status();
  return std::optional(std::move(*timing));
}

void PipelinedPasses::describe(StartEvent& event) const {
  event.micro_batches = schedule_.micro_batches;
  for (size_t s = 0; s < cuts_.size(); ++s)
    event.layers_of_stages.push_back((s + 1 < cuts_.size() ? cuts_[s + 1] : model().layers().size()) - cuts_[s]);
}

}  // namespace ringfold::train
