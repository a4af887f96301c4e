// What changes while a run goes on: settings, and the ranks that make it.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>

#include "sync/mesh_recovery.h"
#include "train/loop.h"
#include "train/passes.h"
#include "train/plan.h"

namespace ringfold::train {

// On all ranks after the same step; of asgd between two rounds of an epoch.
Status Loop::change_to(const Settings& settings) {
  if (strategy_->in_step()) shard_->set_shares(settings.shares);
  if (args_.sync == "asgd") {
    args_.staleness = settings.staleness;
    strategy_->set_staleness(static_cast<uint64_t>(settings.staleness));
    return {};
  }
  const bool recut = args_.pipeline > 1 && settings.micro_batches != args_.micro_batches;
  if (settings.codec == args_.codec && settings.bucket_kib == args_.bucket_kib && !recut) return {};
  save_points_->settle();
  sync::State state;
  RINGFOLD_TRY(strategy_->save_replica(state));
  // Error feedback is kept by bucket: other buckets begin without.
  if (settings.bucket_kib != args_.bucket_kib) state.blobs.clear();
  apply(settings, args_);
  const size_t done = strategy_->steps_done();
  const sync::StrategyStats before = stats();
  if (recut) RINGFOLD_TRY(remake_passes());
  auto next = new_strategy(comm_);
  if (!next.ok()) return next.status();
  RINGFOLD_TRY((*next)->load(state));
  passes_->bind(**next);
  strategy_ = std::move(*next);
  before_ = before;
  if (recut) passes_->make_room(std::min(args_.batch, data_.train.size()));
  return strategy_->begin_epoch(until_, done);
}

// With other arguments, or another place in a mesh.
Status Loop::remake_passes() {
  drop_passes();
  auto made = make_passes_(args_);
  if (!made.ok()) return made.status();
  passes_ = *std::move(made);
  waited_before_s_ -= passes_->waited_s();  // a tensor group goes on counting
  return {};
}

void Loop::drop_passes() {
  if (passes_) waited_before_s_ += passes_->waited_s();
  passes_.reset();
}

// A recovery that failed may have left nothing to go on with.
bool Loop::goes_on_after(const Status& failed) const {
  return args_.elastic && failed.verdict() != nullptr && passes_ != nullptr;
}

Result<std::unique_ptr<sync::Strategy>> Loop::new_strategy(Communicator& comm) {
  auto made = make_strategy(comm, args_, passes_->shapes(), passes_->device_gradients());
  if (made.ok() && args_.elastic && axes_.parts)
    RINGFOLD_TRY((*made)->agree_by([this] { return axes_.job.barrier().wait(); }));
  return made;
}

// Those that are left, and the steps that are behind all of them.
Result<uint64_t> Loop::recover(uint64_t steps) {
  left_over_.clear();
  if (axes_.parts == nullptr) {
    return sync::recover(
        comm_, strategy_,
        [&](Communicator& comm) -> Result<std::unique_ptr<sync::Strategy>> {
          RINGFOLD_TRY(share_settings(comm));
          return new_strategy(comm);
        },
        steps);
  }
  const sync::Remake remake{.drop = [&] { drop_passes(); },
                            .make = [&]() -> Result<std::unique_ptr<sync::Strategy>> {
                              RINGFOLD_TRY(share_settings(axes_.job));
                              RINGFOLD_TRY(remake_passes());
                              return new_strategy(comm_);
                            }};
  auto recovered = sync::recover(axes_.job, *axes_.parts, strategy_, remake, steps);
  if (!recovered.ok()) return recovered.status();
  member_ = recovered->member;
  left_over_ = std::move(recovered->left_over);
  return recovered->steps;
}

// The ranks that are left go on from the newest state that one of them has: the step in which a rank was lost is
// either done or made again, by all. Not ok, with a verdict: one more was lost; to be called again.
Status Loop::go_on(const Status& why) {
  if (save_points_) saved_at_ = save_points_->saved_at();
  save_points_.reset();  // it uses the communicator that is no more
  const bool was_there = strategy_ != nullptr;
  const sync::StrategyStats before = was_there ? stats() : before_;
  const bool undoes = was_there && strategy_->undone() > 0;
  auto done = recover(begun_ ? steps_done() : begun_at_.step);
  if (!done.ok()) return done.status();
  before_ = before;
  if (!member_) return {};
  begun_ = false;
  passes_->bind(*strategy_);
  RINGFOLD_TRY(make_room());  // of the agent's batches, where this rank did not know it
  if (undoes && !learned_before_.empty()) learned_ = learned_before_.front();
  // An epoch whose last step is done may lack its end.
  begun_at_.step = *done;
  begun_at_.epoch = *done == 0 ? 1 : static_cast<int>((*done - 1) / shard_->steps()) + 1;
  begun_at_.in_epoch = *done - shard_->steps() * static_cast<size_t>(begun_at_.epoch - 1);
  spent_.exposed_s = exposed_s();  // also of the step that failed, of which no other time counts
  logged_ = shared_ = spent_;
  shared_at_ = *done;
  staleness_shared_.clear();
  auto ranks = share_place();
  if (!ranks.ok()) return ranks.status();
  std::vector<int> back;
  std::copy_if(ranks->begin(), ranks->end(), std::back_inserter(back),
               [&](int r) { return std::find(ranks_.begin(), ranks_.end(), r) == ranks_.end(); });
  // As the job numbers them, whatever communicator heard of it.
  std::vector<int> lost;
  std::copy_if(ranks_.begin(), ranks_.end(), std::back_inserter(lost), [&](int r) {
    return std::find(ranks->begin(), ranks->end(), r) == ranks->end() &&
           std::find(left_over_.begin(), left_over_.end(), r) == left_over_.end();
  });
  std::string seen;
  if (!lost.empty()) {
    seen = fmt::format("rank {} {} lost ({})", fmt::join(lost, ", "), lost.size() == 1 ? "is" : "are",
                       why.verdict() ? why.verdict()->cause : why.message());
  } else if (back.empty()) {
    seen = why.message();
  }
  if (!back.empty())
    seen += fmt::format("{}rank {} {} come back", lost.empty() ? "" : "; ", fmt::join(back, ", "),
                        back.size() == 1 ? "has" : "have");
  ranks_ = *ranks;
  if (!back.empty()) asked_in_vain_ = 0;
  std::string with = fmt::format("{} rank{}", axes_.job.size(), axes_.job.size() == 1 ? "" : "s");
  if (axes_.parts) with += ", " + axes_.parts->mesh.to_string();
  if (!left_over_.empty())
    with += fmt::format(", without rank {}, for which no replica is left", fmt::join(left_over_, ", "));
  Decision decision{.step = *done,
                    .seen = seen,
                    .changed = fmt::format("goes on with {}, from step {}{}{}", with, *done + 1,
                                           strategy_->account().empty() ? "" : "; ", strategy_->account())};
  if (agent_) decision = agent_->go_on_with(*done, *ranks, seen);
  RINGFOLD_TRY(make_room());
  save_points_ = make_save_points(saved_at_);
  writes_ = axes_.job.rank() == 0;
  RINGFOLD_TRY(open_record());
  if (writes_) RINGFOLD_TRY(reporter_.take_over(args_, start_));
  reporter_.decision(decision);
  return {};
}

// In the place of a rank that was lost: what the others have, and where they are.
Status Loop::join() {
  saved_at_ = SIZE_MAX;  // the others know
  RINGFOLD_TRY(make_room());
  Status status = go_on(Status(Code::kAborted, "joined"));
  while (!status.ok() && goes_on_after(status)) status = go_on(status);
  return status;
}

// Some may have seen the agent change its mind and others not.
Status Loop::share_settings(Communicator& comm) {
  std::string text = agent_ && comm.rank() == 0 ? agent_->to_text() : "";
  uint64_t size = text.size();
  RINGFOLD_TRY(comm.broadcast(&size, &size, 1, DataType::kU64, 0).wait());
  if (size == 0) return {};
  text.resize(size);
  RINGFOLD_TRY(comm.broadcast(text.data(), text.data(), size, DataType::kU8, 0).wait());
  auto agent = Agent::from_text(text);
  if (!agent.ok()) return agent.status();
  agent_ = std::move(*agent);
  apply(agent_->settings(), args_);
  return comm.broadcast(&args_.lr, &args_.lr, 1, DataType::kF64, 0).wait();  // which went with the batch
}

// How far log and checkpoints are, alike on all. The ranks that go on, as the job numbers them.
Result<std::vector<int>> Loop::share_place() {
  const std::array<uint64_t, 4> mine = {static_cast<uint64_t>(comm_.job_rank()), told_, saved_at_, changes_ + 1};
  std::vector<std::array<uint64_t, 4>> all(static_cast<size_t>(axes_.job.size()));
  RINGFOLD_TRY(axes_.job.all_gather(&mine, all.data(), mine.size(), DataType::kU64).wait());
  std::vector<int> ranks;
  for (const auto& [rank, told, saved_at, changes] : all) {
    ranks.push_back(static_cast<int>(rank));
    changes_ = std::max(changes_, changes);
    told_ = std::max<size_t>(told_, told);
    saved_at_ = std::min<size_t>(saved_at_, saved_at);
  }
  return ranks;
}

// A process that has come back is taken in as a lost one is left out: by a verdict, after which all go on together.
void Loop::ask_for_those_who_wait() {
  if (!args_.elastic || axes_.parts || comm_.rank() != 0 || steps_done() < ask_at_) return;
  const auto waiting = comm_.waiting();
  if (waiting.empty()) return;
  ask_at_ = steps_done() + (size_t{1} << std::min<size_t>(asked_in_vain_++, 10));
  strategy_->abort(fmt::format("rank {} has come back", fmt::join(waiting, ", ")));
}

}  // namespace ringfold::train
