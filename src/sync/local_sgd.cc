#include "sync/local_sgd.h"

#include <algorithm>
#include <chrono>

#include "sync/shard.h"

namespace ringfold::sync {
namespace {

double local_now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Result<std::unique_ptr<Strategy>> LocalSgd::make(Communicator& comm, std::span<const size_t> counts,
                                                 const LocalOptions& options) {
  const auto bad = [](const std::string& what) { return Status(Code::kInvalid, "local SGD: " + what); };
  if (options.local_steps == 0) return bad("ranks must meet after at least one step");
  if (options.fragments == 0 || options.fragments > options.local_steps)
    return bad("1 to H fragments, one for each local step, not " + std::to_string(options.fragments));
  if (options.keep_meetings && options.overlap >= options.local_steps / options.fragments && options.overlap > 0)
    return bad("an average on its way at every moment leaves none to go back to when a rank is lost: overlap " +
               std::to_string(options.overlap) +
               " is not below H / fragments = " + std::to_string(options.local_steps / options.fragments));
  if (options.overlap >= options.local_steps)
    return bad("an average must have arrived before the next departs: overlap " + std::to_string(options.overlap) +
               " is not below H = " + std::to_string(options.local_steps));
  if (!(options.mix >= 0 && options.mix <= 1)) return bad("mix must be between 0 and 1");
  if (!(options.outer_momentum >= 0 && options.outer_momentum < 1) || !(options.outer_lr > 0))
    return bad("the outer learning rate must be above 0 and the outer momentum in [0, 1)");
  RINGFOLD_TRY(check(options.codec));
  std::unique_ptr<LocalSgd> local(new LocalSgd(comm, options));
  RINGFOLD_TRY(local->lay_out(counts));
  for (Buffer<float>* buffer : {&local->own_gradients_, &local->delta_}) {
    auto memory = allocate_buffer<float>(std::max<size_t>(local->elems_, 1));
    if (!memory.ok()) return memory.status();
    *buffer = std::move(*memory);
  }
  local->gradients_ = local->own_gradients_.get();
  local->inner_ = Optimizer(options.inner, local->elems_);
  local->common_.resize(local->elems_);
  local->velocity_.resize(options.outer_momentum > 0 ? local->elems_ : 0);
  const auto fragments = static_cast<int>(options.fragments);
  for (int i = 0; i < fragments; ++i) {
    const Part part = part_of(local->elems_, i, fragments);
    Fragment f{.begin = part.begin,
               .elems = part.size(),
               .phase = options.local_steps * static_cast<uint64_t>(i) / options.fragments,
               .name = "pseudo-gradient " + std::to_string(i)};
    f.bytes = encoded_bytes(comm.codec_for(Collective::kAllReduce, f.elems, DataType::kF32, kAvg, 0, options.codec),
                            f.elems);
    local->fragments_.push_back(std::move(f));
  }
  return std::unique_ptr<Strategy>(std::move(local));
}

LocalSgd::~LocalSgd() {
  for (Fragment& f : fragments_) (void)f.work.wait();
}

Status LocalSgd::start() {
  RINGFOLD_TRY(broadcast_parameters());
  std::copy_n(parameters_.get(), elems_, common_.begin());
  keep();
  return {};
}

void LocalSgd::keep_own(Meeting& meeting) const {
  meeting.made = made_;
  meeting.own.assign(parameters_.get(), parameters_.get() + elems_);
  meeting.inner = inner_;
  meeting.updates = updates_;
}

void LocalSgd::keep() {
  if (!options_.keep_meetings) return;
  if (std::any_of(fragments_.begin(), fragments_.end(), [](const Fragment& f) { return f.in_flight; })) return;
  keep_own(kept_);
  kept_.merged = merged_;
  kept_.common = common_;
  kept_.velocity = velocity_;
}

// Steps that were made while the average was on its way are made again by those who go back: another rank may have
// died in them. They then have the average from the beginning.
void LocalSgd::keep_departed(const Fragment& landed) {
  if (departed_.own.empty()) return keep();  // it was on its way in a checkpoint
  if (!options_.keep_meetings) return;
  kept_ = departed_;
  kept_.common = common_;
  kept_.velocity = velocity_;
  const auto mix = static_cast<float>(options_.mix);
  for (size_t i = landed.begin; i < landed.begin + landed.elems; ++i)
    kept_.own[i] = mix * kept_.own[i] + (1 - mix) * common_[i];
}

Status LocalSgd::begin_epoch(size_t steps, size_t from) {
  steps_ = steps;
  done_ = from;
  return {};
}

Result<std::optional<Task>> LocalSgd::next() {
  show_own();
  if (done_ >= steps_) return std::optional<Task>();
  std::fill_n(gradients_, elems_, 0.0F);
  return std::optional<Task>(Task{done_, comm_.rank(), comm_.size()});
}

Status LocalSgd::step(const StepInfo& info) {
  if (info.samples > 0) {
    inner_.step({parameters_.get(), elems_}, {gradients_, elems_}, info.lr);
    ++updates_;
  }
  count_loss(info);
  ++made_;
  ++done_;
  const double begin_s = local_now_s();
  for (Fragment& f : fragments_) {
    if (!f.in_flight) continue;
    if (made_ == f.lands_at) {
      RINGFOLD_TRY(land(f, options_.mix));
      keep_departed(f);
    } else {
      f.work.test();
    }
  }
  bool met = false;
  for (Fragment& f : fragments_) {
    if ((made_ + f.phase) % options_.local_steps != 0) continue;
    if (options_.overlap > 0 && options_.keep_meetings) keep_own(departed_);
    depart(f);
    if (options_.overlap > 0) continue;
    RINGFOLD_TRY(land(f, 0));
    met = true;
  }
  if (met) keep();
  exposed_s_ += local_now_s() - begin_s;
  return {};
}

void LocalSgd::depart(Fragment& f) {
  float* delta = delta_.get() + f.begin;
  for (size_t i = 0; i < f.elems; ++i) delta[i] = common_[f.begin + i] - parameters_[f.begin + i];
  f.in_flight = true;
  f.lands_at = made_ + options_.overlap;
  f.work = f.elems == 0
               ? Work()
               : comm_.all_reduce(delta, delta, f.elems, DataType::kF32, kAvg,
                                  {.codec = options_.codec,
                                   .feedback = options_.codec && options_.feedback ? f.name : std::string_view()});
  bytes_ += f.bytes;
}

Status LocalSgd::land(Fragment& f, double mix) {
  f.in_flight = false;
  RINGFOLD_TRY(f.work.wait());
  const float* d = delta_.get() + f.begin;
  float* common = common_.data() + f.begin;
  float* own = parameters_.get() + f.begin;
  const auto rate = static_cast<float>(options_.outer_lr), momentum = static_cast<float>(options_.outer_momentum);
  const auto keep = static_cast<float>(mix);
  for (size_t i = 0; i < f.elems; ++i) {
    float along = d[i];
    if (momentum > 0) {
      float& v = velocity_[f.begin + i];
      v = momentum * v + d[i];
      along += momentum * v;
    }
    common[i] -= rate * along;
    own[i] = mix == 0 ? common[i] : keep * own[i] + (1 - keep) * common[i];
  }
  return {};
}

void LocalSgd::show_own() {
  if (!shows_common_) return;
  std::copy(own_.begin(), own_.end(), parameters_.get());
  shows_common_ = false;
}

Status LocalSgd::merge(bool last) {
  const double begin_s = local_now_s();
  show_own();
  if (last && merged_) {
    std::copy(common_.begin(), common_.end(), parameters_.get());
  } else if (last) {
    for (Fragment& f : fragments_) {
      if (f.in_flight) RINGFOLD_TRY(land(f, options_.mix));
    }
    for (Fragment& f : fragments_) depart(f);
    for (Fragment& f : fragments_) RINGFOLD_TRY(land(f, 0));
    merged_ = true;
    keep();
  } else {
    own_.assign(parameters_.get(), parameters_.get() + elems_);
    std::copy(common_.begin(), common_.end(), parameters_.get());
    shows_common_ = true;
  }
  exposed_s_ += local_now_s() - begin_s;
  return {};
}

// The common model is everybody's, so each rank saves a part of it; its own model and inner state are its own.
void LocalSgd::save(State& state) {
  const Part part = part_of(elems_, comm_.rank(), comm_.size());
  const std::string mine = " of rank " + std::to_string(comm_.rank());
  const auto cut = [&](std::span<const float> all) { return all.subspan(part.begin, part.size()); };
  state.add("parameters", part.begin, cut(common_));
  if (!velocity_.empty()) state.add("velocity", part.begin, cut(velocity_));
  state.add("own" + mine, 0, shows_common_ ? std::span<const float>(own_) : std::span(parameters_.get(), elems_));
  const auto names = Optimizer::slot_names(options_.inner);
  for (size_t i = 0; i < names.size(); ++i) state.add(names[i] + mine, 0, inner_.slots()[i]);
  state.numbers["updates" + mine] = inner_.steps();
  state.numbers["local steps"] = made_;
  for (size_t i = 0; i < fragments_.size(); ++i) {
    Fragment& f = fragments_[i];
    if (!f.in_flight) continue;
    (void)f.work.wait();  // an error shows again when it lands
    state.add("average", f.begin, {delta_.get() + f.begin, f.elems});
    state.numbers["lands " + std::to_string(i)] = f.lands_at;
  }
  save_feedback(comm_, state);
}

Status LocalSgd::save_replica(State& state) {
  if (!options_.keep_meetings)
    return Status(Code::kUnavailable, "ranks that step alone were not asked to keep what they had when they met");
  state.add("parameters", 0, kept_.common);
  if (!velocity_.empty()) state.add("velocity", 0, kept_.velocity);
  state.numbers["local steps"] = kept_.made;
  state.numbers["merged"] = kept_.merged ? 1 : 0;
  return {};
}

void LocalSgd::save_own(State& state) {
  state.add("own", 0, kept_.own);
  const auto names = Optimizer::slot_names(options_.inner);
  for (size_t i = 0; i < names.size(); ++i) state.add(names[i], 0, kept_.inner.slots()[i]);
  state.numbers["updates"] = kept_.inner.steps();
  state.numbers["updates made"] = kept_.updates;
}

// What save_replica() and save_own() gave. A rank that has none of its own begins with the common model.
Status LocalSgd::load_kept(const State& state) {
  const auto number = [&](const char* name) {
    const auto found = state.numbers.find(name);
    return found == state.numbers.end() ? 0 : found->second;
  };
  const std::span<float> own(parameters_.get(), elems_);
  made_ = number("local steps");
  merged_ = number("merged") != 0;
  inner_.set_steps(number("updates"));
  updates_ = number("updates made");
  if (!state.has("own")) {
    inner_ = Optimizer(options_.inner, elems_);
    std::copy(common_.begin(), common_.end(), own.begin());
  } else {
    RINGFOLD_TRY(state.get("own", 0, own));
    const auto names = Optimizer::slot_names(options_.inner);
    for (size_t i = 0; i < names.size(); ++i) RINGFOLD_TRY(state.get(names[i], 0, inner_.slots()[i]));
  }
  keep();
  return load_feedback(comm_, state);
}

// Of a checkpoint: a rank that there was not begins with the common model, and with the inner state of one that there
// was.
Status LocalSgd::load(const State& state) {
  RINGFOLD_TRY(state.get("parameters", 0, common_));
  if (!velocity_.empty()) RINGFOLD_TRY(state.get("velocity", 0, velocity_));
  if (state.numbers.contains("merged")) return load_kept(state);
  const auto of = [](int rank) { return " of rank " + std::to_string(rank); };
  int ranks = 0;
  while (state.has("own" + of(ranks))) ++ranks;
  if (ranks == 0) return Status(Code::kInvalid, "there is no rank's own model");
  const std::string from = of(comm_.rank() % ranks);
  const std::span<float> own(parameters_.get(), elems_);
  RINGFOLD_TRY(comm_.rank() < ranks ? state.get("own" + from, 0, own) : state.get("parameters", 0, own));
  shows_common_ = false;
  const auto names = Optimizer::slot_names(options_.inner);
  for (size_t i = 0; i < names.size(); ++i) RINGFOLD_TRY(state.get(names[i] + from, 0, inner_.slots()[i]));
  const auto number = [&](const std::string& name, uint64_t& value) {
    const auto found = state.numbers.find(name);
    if (found != state.numbers.end()) value = found->second;
    return found != state.numbers.end();
  };
  uint64_t updates = 0;
  if (number("updates" + from, updates)) inner_.set_steps(updates);
  (void)number("local steps", made_);
  for (size_t i = 0; i < fragments_.size(); ++i) {
    Fragment& f = fragments_[i];
    f.work = Work();
    f.in_flight = number("lands " + std::to_string(i), f.lands_at);
    if (f.in_flight) RINGFOLD_TRY(state.get("average", f.begin, {delta_.get() + f.begin, f.elems}));
  }
  departed_ = {};
  keep();
  return load_feedback(comm_, state);
}

uint64_t LocalSgd::bytes_per_step() const {
  uint64_t bytes = 0;
  for (const Fragment& f : fragments_) bytes += f.bytes;
  return bytes / options_.local_steps;
}

StrategyStats LocalSgd::stats() const {
  return {.exposed_s = exposed_s_,
          .in_flight_s = exposed_s_,
          .bytes = bytes_,
          .sent_bytes = static_cast<uint64_t>(sent(2, bytes_)),
          .staleness = {updates_}};
}

}  // namespace ringfold::sync
