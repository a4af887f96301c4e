#include "sync/lockstep.h"

#include <chrono>

namespace ringfold::sync {
namespace {

double lockstep_now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Status Lockstep::start() {
  updates_ = 0;
  return broadcast_parameters();
}

Status Lockstep::begin_epoch(size_t steps, size_t from) {
  steps_ = steps;
  done_ = from;
  return {};
}

Result<std::optional<Task>> Lockstep::next() {
  if (done_ >= steps_) return std::optional<Task>();
  begin_gradients();
  return std::optional<Task>(Task{done_, comm_.rank(), comm_.size()});
}

Result<std::unique_ptr<Strategy>> Ssgd::make(Communicator& comm, std::span<const size_t> counts,
                                             const OptimizerOptions& optimizer, const BucketOptions& buckets,
                                             const std::vector<bool>& plain) {
  BucketOptions summed = buckets;
  summed.op = kSum;
  auto reducer = BucketReducer::make(comm, counts, summed, plain);
  if (!reducer.ok()) return reducer.status();
  std::unique_ptr<Ssgd> ssgd(new Ssgd(comm));
  ssgd->reducer_ = std::move(*reducer);
  std::vector<size_t> offsets;
  for (size_t p = 0; p < counts.size(); ++p) offsets.push_back(ssgd->reducer_->offset(p));
  RINGFOLD_TRY(ssgd->lay_out(counts, offsets, ssgd->reducer_->all().size()));
  ssgd->gradients_ = ssgd->reducer_->all().data();
  ssgd->optimizer_options_ = optimizer;
  ssgd->optimizer_ = Optimizer(optimizer, ssgd->room_);
  return std::unique_ptr<Strategy>(std::move(ssgd));
}

Result<std::unique_ptr<Strategy>> Ssgd::make(Communicator& comm, std::span<const PowerSgdTensor> tensors,
                                             const OptimizerOptions& optimizer, const PowerSgdOptions& power) {
  PowerSgdOptions summed = power;
  summed.op = kSum;
  auto made = PowerSgd::make(comm, tensors, summed);
  if (!made.ok()) return made.status();
  std::unique_ptr<Ssgd> ssgd(new Ssgd(comm));
  ssgd->power_ = std::move(*made);
  std::vector<size_t> counts, offsets;
  for (size_t t = 0; t < tensors.size(); ++t) {
    counts.push_back(tensors[t].rows * tensors[t].cols);
    offsets.push_back(static_cast<size_t>(ssgd->power_->gradient(t).data() - ssgd->power_->all().data()));
  }
  RINGFOLD_TRY(ssgd->lay_out(counts, offsets, ssgd->power_->all().size()));
  ssgd->gradients_ = ssgd->power_->all().data();
  ssgd->optimizer_options_ = optimizer;
  ssgd->optimizer_ = Optimizer(optimizer, ssgd->room_);
  return std::unique_ptr<Strategy>(std::move(ssgd));
}

void Ssgd::begin_gradients() { power_ ? power_->begin() : reducer_->begin(); }

void Ssgd::ready(size_t p) {
  if (reducer_) reducer_->ready(p);
}

Status Ssgd::step(const StepInfo& info) {
  RINGFOLD_TRY(power_ ? power_->finish() : reducer_->finish());
  if (agree_) {
    pending_ = info;
    RINGFOLD_TRY(agree_());
  }
  update(info);
  return {};
}

void Ssgd::update(const StepInfo& info) {
  optimizer_.step(all_parameters(), {gradients_, room_}, info.lr);
  count_loss(info);
  count_update();
  ++done_;
  pending_.reset();
}

Status Ssgd::agree_by(std::function<Status()> agree) {
  agree_ = std::move(agree);
  return {};
}

bool Ssgd::catch_up() {
  if (!pending_) return false;
  update(*pending_);
  return true;
}

StrategyStats Ssgd::stats() const {
  const BucketTimes& t = times();
  return {.exposed_s = t.exposed_s,
          .in_flight_s = t.in_flight_s,
          .bytes = t.bytes,
          .sent_bytes = static_cast<uint64_t>(sent(2, t.bytes)),
          .staleness = {updates_}};
}

uint64_t Ssgd::bytes_per_step() const { return power_ ? power_->compressed_bytes() : reducer_->bytes(); }

// Replicas hold the same, so each rank saves a part of it: of the parameters' order, so that parts are equal in size.
void Ssgd::save(State& state) {
  const size_t n = static_cast<size_t>(comm_.size()), r = static_cast<size_t>(comm_.rank());
  save_part(state, room_ * r / n, room_ * (r + 1) / n);
  save_feedback(comm_, state);
  if (!power_) return;
  const auto bytes = power_->export_state();
  state.blobs["power_sgd " + std::to_string(comm_.rank())] =
      std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

Status Ssgd::save_replica(State& state) {
  save_part(state, 0, room_);
  save_feedback(comm_, state);
  return {};
}

void Ssgd::save_part(State& state, size_t begin, size_t end) const {
  save_range(state, "parameters", {parameters_.get(), room_}, begin, end);
  const auto names = Optimizer::slot_names(optimizer_options_);
  for (size_t i = 0; i < names.size(); ++i) save_range(state, names[i], optimizer_.slots()[i], begin, end);
  state.numbers["updates"] = optimizer_.steps();
}

Status Ssgd::load(const State& state) {
  RINGFOLD_TRY(load_range(state, "parameters", all_parameters(), 0, room_));
  const auto names = Optimizer::slot_names(optimizer_options_);
  for (size_t i = 0; i < names.size(); ++i)
    RINGFOLD_TRY(load_range(state, names[i], optimizer_.slots()[i], 0, room_));
  if (const auto n = state.numbers.find("updates"); n != state.numbers.end()) optimizer_.set_steps(n->second);
  updates_ = optimizer_.steps();
  RINGFOLD_TRY(load_feedback(comm_, state));
  // Of another number of ranks: its errors belong to ranks that are no more; they begin anew, on all.
  if (!power_) return {};
  power_->reset();
  const auto last = state.blobs.find("power_sgd " + std::to_string(comm_.size() - 1));
  const auto beyond = state.blobs.find("power_sgd " + std::to_string(comm_.size()));
  if (last == state.blobs.end() || beyond != state.blobs.end()) return {};
  const std::string& bytes = state.blobs.at("power_sgd " + std::to_string(comm_.rank()));
  return power_->import_state(std::as_bytes(std::span(bytes.data(), bytes.size())));
}

Result<std::unique_ptr<Strategy>> Zero1::make(Communicator& comm, std::span<const size_t> counts,
                                              const OptimizerOptions& optimizer, const BucketOptions& buckets,
                                              const std::vector<bool>& plain) {
  BucketOptions scattered = buckets;
  scattered.op = kSum;
  scattered.scatter = true;
  auto reducer = BucketReducer::make(comm, counts, scattered, plain);
  if (!reducer.ok()) return reducer.status();
  std::unique_ptr<Zero1> zero(new Zero1(comm));
  zero->reducer_ = std::move(*reducer);
  std::vector<size_t> offsets;
  for (size_t p = 0; p < counts.size(); ++p) offsets.push_back(zero->reducer_->offset(p));
  RINGFOLD_TRY(zero->lay_out(counts, offsets, zero->reducer_->all().size()));
  zero->gradients_ = zero->reducer_->all().data();
  zero->optimizer_options_ = optimizer;
  for (size_t b = 0; b < zero->reducer_->buckets(); ++b) zero->state_elems_ += zero->reducer_->block(b).elems;
  zero->optimizer_ = Optimizer(optimizer, zero->state_elems_);
  return std::unique_ptr<Strategy>(std::move(zero));
}

template <typename Function>
Status Zero1::for_each_block(Function function) const {
  size_t at = 0;
  for (size_t b = 0; b < reducer_->buckets(); ++b) {
    const auto block = reducer_->block(b);
    RINGFOLD_TRY(function(at, block.offset, block.elems));
    at += block.elems;
  }
  return {};
}

Status Zero1::step(const StepInfo& info) {
  RINGFOLD_TRY(reducer_->finish());
  optimizer_.advance();
  Group group;
  RINGFOLD_TRY(for_each_block([&](size_t at, size_t offset, size_t elems) -> Status {
    float* w = parameters_.get() + offset;
    optimizer_.update(at, {w, elems}, {gradients_ + offset, elems}, info.lr);
    if (elems == 0) return {};
    float* bucket = w - static_cast<size_t>(comm_.rank()) * elems;
    group.add(comm_.all_gather(w, bucket, elems, DataType::kF32, {.codec = Codec()}));
    gathered_bytes_ += elems * sizeof(float) * static_cast<size_t>(comm_.size());
    return {};
  }));
  const double begin_s = lockstep_now_s();
  RINGFOLD_TRY(group.wait());
  gather_s_ += lockstep_now_s() - begin_s;
  count_loss(info);
  count_update();
  ++done_;
  return {};
}

StrategyStats Zero1::stats() const {
  const BucketTimes& t = reducer_->times();
  return {.exposed_s = t.exposed_s + gather_s_,
          .in_flight_s = t.in_flight_s + gather_s_,
          .bytes = t.bytes + gathered_bytes_,
          .sent_bytes = static_cast<uint64_t>(sent(1, t.bytes + gathered_bytes_)),
          .staleness = {updates_}};
}

void Zero1::save(State& state) {
  std::vector<float> whole(room_);  // one slot at a time, in the layout
  const auto names = Optimizer::slot_names(optimizer_options_);
  const auto add = [&](const std::string& name, std::span<const float> memory) {
    return for_each_block([&](size_t, size_t offset, size_t elems) -> Status {
      save_range(state, name, memory, offset, offset + elems);
      return {};
    });
  };
  (void)add("parameters", all_parameters());
  for (size_t i = 0; i < names.size(); ++i) {
    (void)for_each_block([&](size_t at, size_t offset, size_t elems) -> Status {
      std::copy_n(optimizer_.slots()[i].data() + at, elems, whole.data() + offset);
      return {};
    });
    (void)add(names[i], whole);
  }
  state.numbers["updates"] = optimizer_.steps();
  state.numbers["ranks"] = static_cast<uint64_t>(comm_.size());
  save_feedback(comm_, state);
}

Status Zero1::load(const State& state) {
  RINGFOLD_TRY(load_range(state, "parameters", all_parameters(), 0, room_));
  const auto names = Optimizer::slot_names(optimizer_options_);
  std::vector<float> whole(room_);
  for (size_t i = 0; i < names.size(); ++i) {
    RINGFOLD_TRY(for_each_block([&](size_t at, size_t offset, size_t elems) -> Status {
      RINGFOLD_TRY(load_range(state, names[i], whole, offset, offset + elems));
      std::copy_n(whole.data() + offset, elems, optimizer_.slots()[i].data() + at);
      return {};
    }));
  }
  if (const auto n = state.numbers.find("updates"); n != state.numbers.end()) optimizer_.set_steps(n->second);
  updates_ = optimizer_.steps();
  // Buckets are padded to the number of ranks, so what codes missed fits the same number only.
  comm_.error_feedback().reset();
  const auto ranks = state.numbers.find("ranks");
  if (ranks == state.numbers.end() || ranks->second != static_cast<uint64_t>(comm_.size())) return {};
  return load_feedback(comm_, state);
}

}  // namespace ringfold::sync
