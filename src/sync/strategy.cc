#include "sync/strategy.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace ringfold::sync {

Status Strategy::lay_out(std::span<const size_t> counts, std::span<const size_t> offsets, size_t room) {
  slots_.clear();
  elems_ = 0;
  for (size_t p = 0; p < counts.size(); ++p) {
    slots_.push_back({.offset = offsets.empty() ? elems_ : offsets[p], .elems = counts[p], .dense = elems_});
    elems_ += counts[p];
  }
  room_ = std::max(room, elems_);
  auto memory = allocate_buffer<float>(std::max<size_t>(room_, 1));
  if (!memory.ok()) return memory.status();
  parameters_ = std::move(*memory);
  return {};
}

Status Strategy::broadcast_parameters() {
  return comm_.broadcast(parameters_.get(), parameters_.get(), room_, DataType::kF32, 0).wait();
}

Result<Strategy::Losses> Strategy::reduce_losses() {
  double sums[2] = {since_.loss, since_.samples};
  RINGFOLD_TRY(comm_.all_reduce(sums, sums, 2, DataType::kF64).wait());
  since_ = {};
  return Losses{sums[0], sums[1]};
}

void Strategy::save_range(State& state, const std::string& name, std::span<const float> memory, size_t begin,
                          size_t end) const {
  for (const Slot& s : slots_) {
    const size_t from = std::max(begin, s.offset), to = std::min(end, s.offset + s.elems);
    if (from < to) state.add(name, s.dense + (from - s.offset), memory.subspan(from, to - from));
  }
}

Status Strategy::load_range(const State& state, const std::string& name, std::span<float> memory, size_t begin,
                            size_t end) const {
  for (const Slot& s : slots_) {
    const size_t from = std::max(begin, s.offset), to = std::min(end, s.offset + s.elems);
    if (from < to) RINGFOLD_TRY(state.get(name, s.dense + (from - s.offset), memory.subspan(from, to - from)));
  }
  return {};
}

namespace {
std::string feedback_blob(int rank) { return "error feedback of rank " + std::to_string(rank); }
}  // namespace

void Strategy::save_feedback(Communicator& comm, State& state) {
  if (!comm.error_feedback().names().empty()) state.blobs[feedback_blob(comm.rank())] = comm.error_feedback().save();
}

Status Strategy::load_feedback(Communicator& comm, const State& state) {
  comm.error_feedback().reset();
  for (int r = comm.rank();; r += comm.size()) {
    const auto found = state.blobs.find(feedback_blob(r));
    if (found == state.blobs.end()) return {};
    RINGFOLD_TRY(comm.error_feedback().add(found->second));
  }
}

Status Strategy::agree_by(std::function<Status()>) {
  return Status(Code::kUnavailable,
                "this way of synchronising does not wait for ranks that it exchanges nothing with");
}

Status Strategy::save_replica(State&) {
  return Status(
      Code::kUnavailable,
      "this way of synchronising cuts its state over the ranks: what a lost rank had is only in checkpoints");
}

Result<std::vector<std::string>> Strategy::gather(Communicator& comm, const std::string& mine) {
  const auto n = static_cast<size_t>(comm.size());
  const uint64_t size = mine.size();
  std::vector<uint64_t> sizes(n);
  RINGFOLD_TRY(comm.all_gather(&size, sizes.data(), 1, DataType::kU64).wait());
  const std::vector<size_t> counts(sizes.begin(), sizes.end());
  std::string all(std::accumulate(counts.begin(), counts.end(), size_t{0}), '\0');
  RINGFOLD_TRY(comm.all_gather_v(mine.data(), all.data(), counts, DataType::kU8).wait());
  std::vector<std::string> parts;
  size_t at = 0;
  for (const size_t count : counts) {
    parts.push_back(all.substr(at, count));
    at += count;
  }
  return parts;
}

Result<State> Strategy::collect(Communicator& comm, bool has, uint64_t* steps) {
  State state;
  uint64_t mine = 0;  // of those that have one, how new a state is; they differ by whole steps, or by a merge
  if (has && holds()) {
    RINGFOLD_TRY(save_replica(state));
    state.blobs.clear();
    mine = 2 * (*steps - undone()) + (merged() ? 1 : 0) + 1;
  }
  std::vector<uint64_t> all(static_cast<size_t>(comm.size()));
  RINGFOLD_TRY(comm.all_gather(&mine, all.data(), 1, DataType::kU64).wait());
  const int source = static_cast<int>(std::max_element(all.begin(), all.end()) - all.begin());
  const uint64_t newest = all[static_cast<size_t>(source)];
  if (newest == 0) return Status(Code::kPeerLost, "of the ranks that are left none has the run's state");
  *steps = (newest - 1) / 2;

  std::string bytes = comm.rank() == source ? state.serialise() : std::string();
  uint64_t size = bytes.size();
  RINGFOLD_TRY(comm.broadcast(&size, &size, 1, DataType::kU64, source).wait());
  bytes.resize(size);
  RINGFOLD_TRY(comm.broadcast(bytes.data(), bytes.data(), size, DataType::kU8, source).wait());
  auto common = State::parse(bytes);
  if (!common.ok()) return common;
  save_feedback(comm, *common);
  if (mine == newest) save_own(*common);
  return common;
}

namespace {

// Were the strategies of all that have one made for the same members? Collective.
Result<bool> all_have_the_same(Communicator& comm, const Strategy* mine) {
  const uint64_t epoch = mine != nullptr ? mine->epoch() : 0;
  uint64_t least[2] = {mine != nullptr ? epoch : UINT64_MAX, ~epoch};  // of it, and of its complement
  RINGFOLD_TRY(comm.all_reduce(least, least, 2, DataType::kU64, ReduceKind::kMin).wait());
  return least[0] == ~least[1];
}

}  // namespace

Result<uint64_t> recover(Communicator& comm, std::unique_ptr<Strategy>& strategy,
                         const std::function<Result<std::unique_ptr<Strategy>>(Communicator&)>& make,
                         uint64_t steps) {
  bool joined = strategy == nullptr;
  // The one before is kept until all have another: should one more rank be lost meanwhile, this one still has a
  // state.
  std::unique_ptr<Strategy> loaded;
  uint64_t newest = steps;
  for (;;) {
    if (!joined) {
      if (comm.status().ok()) {
        comm.abort("a communicator of its ranks has failed");
        (void)comm.barrier().wait();
      }
      auto next = comm.reconfigure();
      if (!next.ok()) return next.status();
      comm = std::move(*next);  // a strategy keeps the address of its communicator
    }
    joined = false;
    const auto begin = [&]() -> Status {
      // Whoever went on knows that all had loaded the same. So either all have that, or nobody went on with it.
      const Strategy* const mine = loaded ? loaded.get() : strategy.get();
      auto all = all_have_the_same(comm, mine);
      if (!all.ok()) return all.status();
      if (loaded && *all) {
        strategy = std::move(loaded);
        steps = newest;
      }
      loaded.reset();
      newest = steps;
      auto again = make(comm);
      if (!again.ok()) return again.status();
      auto state = (strategy ? *strategy : **again).collect(comm, strategy != nullptr, &newest);
      if (!state.ok()) return state.status();
      RINGFOLD_TRY((*again)->load(*state));
      loaded = std::move(*again);
      RINGFOLD_TRY(comm.barrier().wait());
      strategy = std::move(loaded);
      return {};
    };
    const Status begun = begin();
    if (begun.ok()) return newest;
    if (!begun.verdict()) return begun;
  }
}

}  // namespace ringfold::sync
