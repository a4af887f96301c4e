#include "train/save_points.h"

#include <bit>

namespace ringfold::train {
namespace {

std::string loss_of_rank(int rank) { return "epoch loss of rank " + std::to_string(rank); }

}  // namespace

SavePoints::SavePoints(Communicator& comm, const Args& args, const Dataset& data, Holding holding, size_t parameters,
                       size_t saved_at)
    : comm_(comm),
      args_(args),
      data_(data),
      holding_(std::move(holding)),
      parameters_(parameters),
      saved_at_(saved_at),
      vote_(comm) {
  if (!args.checkpoint.empty()) checkpointer_ = std::make_unique<Checkpointer>(comm, args.checkpoint, identity());
}

Identity SavePoints::identity() const {
  const bool alike = args_.sync == "ssgd" || args_.sync == "zero1";  // each can go on where the other was
  const ModelSpec spec = args_.spec();
  const auto size = [&](int64_t n) { return spec.is_text() ? std::to_string(n) : std::string(); };
  return {{"--model", args_.model},
          {"--layers", size(spec.layers)},
          {"--width", size(spec.width)},
          {"--heads", size(spec.heads)},
          {"--context", size(spec.context)},
          {"--batch", std::to_string(args_.batch)},
          {"--seed", std::to_string(args_.seed)},
          {"--tensor-parallel", std::to_string(args_.tensor_parallel)},
          {"--epochs", std::to_string(args_.epochs)},
          {"--optimizer", args_.optimizer},
          {"--sync", alike ? "ssgd or zero1" : args_.sync},
          {"number of samples", std::to_string(data_.train.size())},
          {"number of parameters", std::to_string(parameters_)}};
}

Result<std::optional<Progress>> SavePoints::resume(sync::Strategy& strategy) {
  auto loaded = load_checkpoint(comm_, args_.checkpoint, identity());
  if (!loaded.ok()) return loaded.status();
  if (!loaded->has_value()) return std::optional<Progress>();
  const sync::State& state = (*loaded)->state;
  Progress progress{.position = (*loaded)->position};
  saved_at_ = progress.position.step;
  for (int r = comm_.rank(); r < (*loaded)->ranks; r += comm_.size()) {
    const auto loss = state.numbers.find(loss_of_rank(r));
    if (loss != state.numbers.end()) progress.epoch_loss += std::bit_cast<double>(loss->second);
  }
  RINGFOLD_TRY(strategy.load(holding_.from_files(state)));
  return std::optional<Progress>(progress);
}

Result<bool> SavePoints::after_step(sync::Strategy& strategy, const Progress& now, bool last_of_epoch) {
  if (!checkpointer_) return false;
  RINGFOLD_TRY(checkpointer_->advance(false));
  if (!strategy.in_step()) return false;
  auto stop = vote_.next();
  if (!stop.ok()) return stop.status();
  const bool due = args_.checkpoint_every > 0 && now.position.step % args_.checkpoint_every == 0;
  if ((*stop || due) && !last_of_epoch) RINGFOLD_TRY(save(strategy, now));
  return *stop;
}

Result<bool> SavePoints::after_epoch(sync::Strategy& strategy, const Progress& now, bool stop) {
  if (!checkpointer_) return stop;
  if (!strategy.in_step()) {
    auto asked = vote_.now();
    if (!asked.ok()) return asked.status();
    stop = *asked;
  }
  const bool due = args_.checkpoint_every == 0 || !strategy.in_step() || stop ||
                   now.position.step >= saved_at_ + args_.checkpoint_every;
  if (due) RINGFOLD_TRY(save(strategy, now));
  return stop;
}

Status SavePoints::finish() { return checkpointer_ ? checkpointer_->advance(true) : Status(); }

Status SavePoints::save(sync::Strategy& strategy, const Progress& now) {
  if (now.position.step == saved_at_) return {};
  saved_at_ = now.position.step;
  sync::State own;
  strategy.save(own);
  sync::State state = holding_.to_file(own);
  state.numbers[loss_of_rank(comm_.rank())] = std::bit_cast<uint64_t>(now.epoch_loss);
  return checkpointer_->begin(std::move(state), now.position);
}

}  // namespace ringfold::train
