#include "sync/strategy.h"

#include <algorithm>

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

}  // namespace ringfold::sync
