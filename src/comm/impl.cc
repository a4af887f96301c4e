#include "comm/impl.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "base/log.h"
#include "base/processors.h"
#include "comm/elsewhere.h"
#include "comm/scaling.h"
#include "comm/wiring.h"
#include "kernels/copy.h"

namespace ringfold {

using comm::PlanKey;

Result<std::shared_ptr<Communicator::Impl>> Communicator::Impl::make(std::shared_ptr<comm::Session> session,
                                                                     std::vector<int> members, std::string id,
                                                                     uint32_t epoch, base::Deadline deadline,
                                                                     const Impl* parent) {
  // Its end waits for the threads that call back.
  auto impl = std::shared_ptr<Impl>(new Impl, [](Impl* over) {
    if (!exec::Engine::calling_back()) return delete over;
    comm::run_elsewhere([over] { delete over; });
  });
  impl->session = session;
  impl->members_ = std::move(members);
  impl->me_ = static_cast<int>(std::find(impl->members_.begin(), impl->members_.end(), session->control->rank()) -
                               impl->members_.begin());
  impl->id_ = std::move(id);
  impl->epoch_ = epoch;
  const std::string name = fmt::format("{}.{}", impl->id_, epoch);
  // Either all living members get this communicator, or none does: when one dies meanwhile, some may have all that
  // they need from it and others not. So each says whether it is ready, and then goes by what the living said. Who is
  // ready also hears of failures; a member that died after all the others were ready becomes the communicator's first
  // verdict.
  const Status prepared = impl->prepare(name, deadline, parent);
  auto votes = session->control->exchange("ready/" + name, impl->members_, prepared.ok() ? "" : prepared.message(),
                                          prepared.ok() ? deadline : base::Deadline::after({}),
                                          comm::Control::WhenGone::kGoOn);
  if (!prepared.ok()) return prepared;
  if (!votes.ok()) return votes.status();
  for (int r = 0; r < impl->size(); ++r) {
    if (!(*votes)[r].empty())
      return Status(Code::kPeerLost, fmt::format("rank {} could not join: {}", r, (*votes)[r]));
  }
  return impl;
}

// All that can fail.
Status Communicator::Impl::prepare(const std::string& name, base::Deadline deadline, const Impl* parent) {
  auto wiring = comm::wire(*session, members_, me_, name, epoch_, deadline);
  if (!wiring.ok()) return wiring.status();
  world_.host_of = wiring->host_of;
  world_.tile_bytes = wiring->tile_bytes;
  world_.slots = wiring->slots;
  world_.deterministic = session->config.deterministic;
  RINGFOLD_TRY(comm::Choices::check(session->config.algorithm));
  auto codec = parse_codec(session->config.codec.value());
  if (!codec.ok()) return codec.status();
  default_codec_ = *codec;
  auto cluster = comm::cluster_of(*session, members_, *wiring);
  if (size() > 1) {
    // The first member's figures are everybody's, so that all choose alike.
    std::string figures;
    if (me_ == 0) {
      const bool known = model::load_figures(comm::cache_directory(session->config),
                                             comm::cache_key(*session, members_, cluster), cluster);
      if (!known && parent != nullptr) cluster.take_figures(parent->choices_->cluster());
      figures = model::to_text(cluster);
    }
    const std::string mine = to_string(default_codec_);
    auto all = session->control->exchange("figures/" + name, members_, mine + "\n" + figures, deadline,
                                          comm::Control::WhenGone::kFail);
    if (!all.ok()) return all.status();
    for (int r = 0; r < size(); ++r) {
      const std::string theirs = (*all)[r].substr(0, (*all)[r].find('\n'));
      if (theirs == mine) continue;
      return {Code::kInvalid,
              fmt::format("rank {} has codec {} and rank {} has {}: give all ranks the same Options::codec or "
                          "RINGFOLD_CODEC",
                          r, theirs, me_, mine)};
    }
    auto agreed = model::cluster_from_text(all->front().substr(all->front().find('\n') + 1));
    if (!agreed.ok()) return agreed.status();
    cluster = *std::move(agreed);
  }
  choices_->set(std::move(cluster), session->config.algorithm, world_.tile_bytes, world_.slots);
  world_.choose = [choices = choices_](Collective c, uint64_t bytes, const Codec& codec) {
    return choices->choose(c, bytes, codec);
  };
  domain_ = std::make_shared<exec::Domain>(me_, size(), std::move(wiring->transports), wiring->route);
  domain_->messages().set_limits(static_cast<uint64_t>(session->config.message_buffer.value()),
                                 wiring->message_tile_bytes);
  session->engine->add(domain_);
  driver_ = device::driver();
  guard_ = std::make_unique<comm::Guard>(comm::Guard::Options{.control = session->control.get(),
                                                              .engine = session->engine.get(),
                                                              .domain = domain_,
                                                              .members = members_,
                                                              .me = me_,
                                                              .epoch = epoch_,
                                                              .name = name});
  return {};
}

Communicator::Impl::~Impl() {
  if (guard_) guard_->close();
  if (domain_) {
    session->engine->abort(*domain_,
                           Status(Code::kAborted, "the communicator was destroyed with this call in flight"));
    staging_.reset();
    session->engine->remove(domain_);
  }
}

base::Duration Communicator::Impl::timeout(const CallOptions& options) const {
  return options.timeout_s > 0 ? base::duration_of(options.timeout_s) : session->timeout;
}

Status Communicator::Impl::status() const {
  Status status;
  session->engine->inspect([&] { status = domain_->dead(); });
  return status;
}

Status Communicator::Impl::check(const Call& call) const {
  const auto name = name_of(call.collective);
  auto bad = [&](std::string text) { return Status(Code::kInvalid, fmt::format("{}: {}", name, text)); };
  if (static_cast<int>(call.type) >= kDataTypes)
    return bad(fmt::format("{} is no data type", static_cast<int>(call.type)));
  if (static_cast<int>(call.op.kind) >= kReduceKinds) {
    return bad(fmt::format("{} is no operation", static_cast<int>(call.op.kind)));
  }
  if (has_root(call.collective) && (call.root < 0 || call.root >= size())) {
    return bad(fmt::format("root {} is not a rank of 0..{}", call.root, size() - 1));
  }
  if (reduces(call.collective) && kernels::find_cpu_reducer(call.type, call.op.kind).fold == nullptr) {
    return bad(fmt::format("{} of {} is not defined; scaled sums are for floating point types", name_of(call.op.kind),
                           name_of(call.type)));
  }
  if (call.codec) {
    RINGFOLD_TRY(ringfold::check(call.codec));
    if (!knows_codecs(call)) {
      return bad(fmt::format(
          "no codec ({}) here: codecs are for f32 in all_reduce and reduce_scatter (sum, avg, scaled sum), "
          "all_gather, broadcast, send and recv",
          to_string(call.codec)));
    }
  }
  const uint64_t most = UINT64_MAX / 16 / static_cast<uint64_t>(size());
  auto too_large = [&](uint64_t c) { return c > most; };
  if (too_large(call.count) || std::any_of(call.sizes.begin(), call.sizes.end(), too_large) ||
      std::any_of(call.receive_sizes.begin(), call.receive_sizes.end(), too_large)) {
    return bad("the count exceeds the address space");
  }
  return {};
}

bool Communicator::Impl::knows_codecs(const Call& call) {
  if (call.type != DataType::kF32) return false;
  switch (call.collective) {
    case Collective::kAllReduce:
    case Collective::kReduceScatter:
      return call.op.kind == ReduceKind::kSum || call.op.kind == ReduceKind::kAvg ||
             call.op.kind == ReduceKind::kScaledSum;
    case Collective::kAllGather:
    case Collective::kBroadcast: return true;
    default: return false;
  }
}

plan::Layout Communicator::Impl::layout_of(const Call& call) const {
  plan::Layout layout;
  layout.shape = {call.collective, size(), has_root(call.collective) ? call.root : 0};
  layout.rank = me_;
  layout.count = call.count;
  layout.sizes.assign(call.sizes.begin(), call.sizes.end());
  layout.receive_sizes.assign(call.receive_sizes.begin(), call.receive_sizes.end());
  return layout;
}

namespace {

// Takes the moves from the input to the same place of the output out of a program.
void leave_own_block(program::Program* program) {
  for (auto& lane : program->lanes) {
    for (program::Move& move : lane) {
      if (move.inputs != 1 || move.outputs != 1) continue;
      const auto &from = program->operands[move.operands], &to = program->operands[move.operands + 1];
      if (from.where == program::Where::kInput && to.where == program::Where::kOutput) move.inputs = move.outputs = 0;
    }
  }
}

}  // namespace

// All but the sequence number and the codec.
exec::Contract contract_of(const Call& call, const plan::Layout& layout, uint64_t details) {
  uint64_t total = 0;
  for (uint64_t s : layout.sizes) total += s;
  exec::Contract contract;
  contract.collective = call.collective;
  contract.type = call.type;
  contract.op = reduces(call.collective) ? call.op.kind : ReduceKind::kSum;
  contract.variable = !layout.sizes.empty();
  contract.staged = call.staged;
  contract.count = !contract.variable ? call.count : call.collective == Collective::kAllToAll ? 0 : total;
  contract.root = static_cast<uint16_t>(layout.shape.root);
  contract.details = details & 0xffffffffffffULL;
  return contract;
}

// What an operation does to a sum that holds every contribution.
kernels::Post post_of(const ReduceOp& op, int ranks) {
  kernels::Post post;
  if (op.kind == ReduceKind::kAvg) {
    post.factor = 1.0 / ranks;
    post.divisor = ranks;
  } else if (op.kind == ReduceKind::kScaledSum) {
    post.factor = op.scale;
  }
  return post;
}

Result<std::shared_ptr<const exec::Plan>> Communicator::Impl::build(const Call& call) {
  const plan::Layout layout = layout_of(call);
  auto planned = plan::make_plan(world_, layout, call.type, call.op, call.codec);
  if (!planned.ok()) return planned.status();
  auto plan = std::make_shared<exec::Plan>();
  plan->program = std::move(planned->program);
  if (call.in_place) leave_own_block(&plan->program);
  plan->algorithm = planned->choice.algorithm;
  if (reduces(call.collective)) {
    plan->reducer = kernels::find_cpu_reducer(call.type, call.op.kind);
    plan->post = post_of(call.op, size());
  } else {
    plan->reducer = kernels::find_cpu_reducer(DataType::kU8, ReduceKind::kSum);  // a barrier's folds have no bytes
  }
  plan->contract = contract_of(call, layout, planned->details);
  if (planned->choice.codec) {
    const bool sums = reduces(call.collective);
    plan->coder = kernels::make_coder(planned->choice.codec, sums ? call.op.kind : ReduceKind::kSum);
    plan->draw = draw_key();
    plan->contract.codec = planned->choice.codec.kind;
  }
  plan->input_bytes = layout.input_elems() * size_of(call.type);
  plan->output_bytes = layout.output_elems() * size_of(call.type);
  const auto here =
      std::count(world_.host_of.begin(), world_.host_of.end(), world_.host_of[static_cast<size_t>(me_)]);
  const bool cached =
      (plan->input_bytes + plan->output_bytes) * static_cast<uint64_t>(here) <= base::last_level_cache();
  plan->folds = plan->copies = base::Stores(cached);
  plan->place = built_.fetch_add(1, std::memory_order_relaxed);
  plan->sizes = layout.sizes;
  plan->sizes.insert(plan->sizes.end(), layout.receive_sizes.begin(), layout.receive_sizes.end());
  session->engine->inspect([&] {
    if (!domain_->dead().ok()) return;
    for (const auto& key : plan->program.links) plan->links.push_back(domain_->link(key.peer, key.lane));
  });
  if (plan->links.size() != plan->program.links.size()) return status();
  plan->find_short_moves();
  plan->find_takes();
  return std::shared_ptr<const exec::Plan>(std::move(plan));
}

PlanKey key_of(const Call& call) {
  PlanKey key;
  key.collective = static_cast<uint8_t>(call.collective);
  key.type = static_cast<uint8_t>(call.type);
  key.op = static_cast<uint8_t>(call.op.kind);
  key.form = static_cast<uint8_t>((call.sizes.empty() ? 0 : 1) | (call.in_place ? 2 : 0) | (call.staged ? 4 : 0));
  key.root = call.root;
  key.count = call.count;
  key.codec = static_cast<uint64_t>(call.codec.kind) | static_cast<uint64_t>(call.codec.rounding) << 8 |
              (call.codec.rotate ? 1U << 16 : 0U) | (call.codec.when_faster ? 1U << 17 : 0U) |
              static_cast<uint64_t>(call.codec.keep) << 32;
  key.scale = call.op.kind == ReduceKind::kScaledSum ? call.op.scale : 0;
  if (call.sizes.empty()) return key;
  for (auto sizes : {call.sizes, call.receive_sizes}) {
    for (uint64_t s : sizes) key.sizes_hash = (key.sizes_hash ^ s) * 0x9e3779b97f4a7c15ULL + 1;
  }
  return key;
}

bool are_sizes_of(std::span<const uint64_t> sizes, const Call& call) {
  return sizes.size() == call.sizes.size() + call.receive_sizes.size() &&
         std::equal(call.sizes.begin(), call.sizes.end(), sizes.begin()) &&
         std::equal(call.receive_sizes.begin(), call.receive_sizes.end(), sizes.begin() + std::ssize(call.sizes));
}

const std::shared_ptr<const exec::Plan>* Communicator::Impl::known_plan(const Call& call) {
  const auto* plan = plans_.find(key_of(call));
  return plan != nullptr && (call.sizes.empty() || are_sizes_of((*plan)->sizes, call)) ? plan : nullptr;
}

Result<std::shared_ptr<const exec::Plan>> Communicator::Impl::plan_for(const Call& call) {
  {
    const exec::Engine::Hold hold(engine());
    if (const auto* plan = known_plan(call)) return *plan;
  }
  RINGFOLD_TRY(check(call));
  auto plan = build(call);
  if (plan.ok()) {
    const exec::Engine::Hold hold(engine());
    plans_.insert(key_of(call), *plan);
  }
  return plan;
}

Status Communicator::Impl::check_buffers(const Call& call, uint64_t input_bytes, uint64_t output_bytes,
                                         const void* input, const void* output) const {
  auto bad = [&](std::string_view text) {
    return Status(Code::kInvalid, fmt::format("{}: {}", name_of(call.collective), text));
  };
  if (input_bytes > 0 && input == nullptr) return bad("input is null");
  if (output_bytes > 0 && output == nullptr) return bad("output is null");
  if (input_bytes == 0 || output_bytes == 0) return {};
  const auto i = reinterpret_cast<uintptr_t>(input), o = reinterpret_cast<uintptr_t>(output);
  if (i >= o + output_bytes || o >= i + input_bytes) return {};
  // In place: equal buffers, or the smaller one is this rank's block of the larger.
  if (input_bytes == output_bytes && call.sizes.empty()) {
    return i == o ? Status() : bad("input and output overlap without being the same");
  }
  uint64_t before = static_cast<uint64_t>(me_) * call.count;
  if (!call.sizes.empty()) {
    before = 0;
    for (int r = 0; r < me_; ++r) before += call.sizes[r];
  }
  before *= size_of(call.type);
  const bool own = input_bytes < output_bytes ? i == o + before : o == i + before;
  if (own || (call.sizes.empty() && size() == 1 && i == o)) return {};
  return bad("input and output overlap; in place means that the smaller one is this rank's block of the larger");
}

Work Communicator::Impl::start_on_host(Call&& call, const void* input, void* output, const CallOptions& options) {
  call.codec = codec_of(call, options);
  if (options.input_factor) return start_on_scaled(call, input, output, options);
  {
    exec::Engine::Hold hold(engine());
    if (const auto* plan = known_plan(call); plan != nullptr && !call.in_place) {
      const Status s = check_buffers(call, (*plan)->input_bytes, (*plan)->output_bytes, input, output);
      if (!s.ok()) return Work(s);
      return start(hold, *plan, input, output, options);
    }
  }
  auto plan = plan_for(call);
  if (!plan.ok()) return Work(plan.status());
  if (call.in_place && (*plan)->input_bytes > 0) return start_on_copy(call, *plan, output, options);
  const Status s = check_buffers(call, (*plan)->input_bytes, (*plan)->output_bytes, input, output);
  if (!s.ok()) return Work(s);
  return start(*plan, input, output, options);
}

Status Communicator::Impl::check_factor(const Call& call, const CallOptions& options) {
  if (!options.input_factor || reduces(call.collective)) return {};
  return {Code::kInvalid,
          fmt::format("{}: input_factor is for all_reduce, reduce and reduce_scatter", name_of(call.collective))};
}

// The input is the caller's: what is multiplied is a copy.
Work Communicator::Impl::start_on_scaled(const Call& call, const void* input, void* output, CallOptions options) {
  if (Status s = check_factor(call, options); !s.ok()) return Work(s);
  if (Status s = check(call); !s.ok()) return Work(s);
  const plan::Layout layout = layout_of(call);
  const uint64_t elems = layout.input_elems(), size = size_of(call.type);
  if (Status s = check_buffers(call, elems * size, layout.output_elems() * size, input, output); !s.ok()) {
    return Work(s);
  }
  const double factor = *std::exchange(options.input_factor, std::nullopt);
  if (elems == 0) return start_on_host(Call(call), input, output, options);
  auto copy = spare_->take(elems * size);
  if (!copy.ok()) return Work(copy.status());
  std::memcpy(copy->get(), input, elems * size);
  comm::multiply(call.type, copy->get(), elems, factor);
  Work work = start_on_host(Call(call), copy->get(), output, options);
  work.then([copy = *std::move(copy)](const Status&) {});
  return work;
}

// An all_to_all in place sends from a copy of the blocks that its receives would overwrite. The own block stays where
// it is, and so its plan does not move it.
Work Communicator::Impl::start_on_copy(const Call& call, const std::shared_ptr<const exec::Plan>& plan, void* output,
                                       const CallOptions& options) {
  if (output == nullptr) return Work(check_buffers(call, plan->input_bytes, plan->output_bytes, output, output));
  if (call.sizes.size() != call.receive_sizes.size() ||
      !std::equal(call.sizes.begin(), call.sizes.end(), call.receive_sizes.begin())) {
    return Work(Status(Code::kInvalid, "all_to_all_v: in place needs equal counts for sending and receiving"));
  }
  const plan::Layout layout = layout_of(call);
  const uint64_t element = size_of(call.type), own = static_cast<uint64_t>(me_) * static_cast<uint64_t>(size() + 1);
  const uint64_t before = layout.input_offset(own).value() * element;
  const uint64_t after = before + layout.elems_of(own) * element;
  auto copy_others = [&](std::byte* to) {
    const auto* from = static_cast<const std::byte*>(output);
    const std::lock_guard lock(copy_mutex_);
    kernels::copy(copy_stores_.of(before), to, from, before);
    kernels::copy(copy_stores_.of(plan->input_bytes - after), to + after, from + after, plan->input_bytes - after);
    return to;
  };
  if (plan->input_bytes <= kSmallCopy) {
    exec::Engine::Hold hold(engine());
    exec::Ref<exec::Run> run = domain_->take_run(plan->place);
    const std::byte* input = copy_others(run->keep(plan->input_bytes));
    return start(hold, std::move(run), plan, input, output, options);
  }
  auto copy = spare_->take(plan->input_bytes);
  if (!copy.ok()) return Work(copy.status());
  copy_others(copy->get());
  Work work = start(plan, copy->get(), output, options);
  work.then([copy = *std::move(copy)](const Status&) {});
  return work;
}

Work Communicator::Impl::start(const std::shared_ptr<const exec::Plan>& plan, const void* input, void* output,
                               const CallOptions& options) {
  exec::Engine::Hold hold(engine());
  return start(hold, plan, input, output, options);
}

Work Communicator::Impl::start(exec::Engine::Hold& hold, const std::shared_ptr<const exec::Plan>& plan,
                               const void* input, void* output, const CallOptions& options) {
  return start(hold, domain_->take_run(plan->place), plan, input, output, options);
}

Work Communicator::Impl::start(exec::Engine::Hold& hold, exec::Ref<exec::Run> run,
                               const std::shared_ptr<const exec::Plan>& plan, const void* input, void* output,
                               const CallOptions& options) {
  if (!options.feedback.empty() && plan->coder.codec) {
    if (const Status s = check_feedback(plan->contract.collective, options); !s.ok()) return Work(s);
    auto state = feedback->state(options.feedback, plan->input_bytes / sizeof(float));
    if (!state.ok()) return Work(state.status());
    run->missed = *std::move(state);
  }
  const bool over = engine().start(hold, *domain_, run.get(), plan, static_cast<const std::byte*>(input),
                                   static_cast<std::byte*>(output), timeout(options));
  return over ? WorkAccess::done(-1) : WorkAccess::make(run.release());
}

Status Communicator::Impl::check_feedback(Collective collective, const CallOptions& options) {
  if (reduces(collective)) return {};
  return {Code::kInvalid, fmt::format("{}: error feedback (\"{}\") is for sums: all_reduce, reduce_scatter",
                                      name_of(collective), options.feedback)};
}

Status Communicator::Impl::tune(Communicator& self, double budget_s) {
  const auto known = choices_->cluster();
  auto found = comm::measure(self, known, budget_s);
  const std::string text = found.ok() && me_ == 0 ? model::to_text(*found) : std::string();
  const std::string name = fmt::format("tune/{}.{}/{}", id_, epoch_, tunings_++);
  auto all = session->control->exchange(name, members_, text, base::Deadline::after(session->timeout));
  RINGFOLD_TRY(found.ok() ? Status() : found.status());
  if (!all.ok()) return all.status();
  if (size() < 2) return {};
  auto agreed = model::cluster_from_text(all->front());
  if (!agreed.ok()) return agreed.status();
  choices_->set(*agreed, session->config.algorithm, world_.tile_bytes, world_.slots);
  {
    const exec::Engine::Hold hold(engine());
    plans_.clear();
  }
  if (me_ != 0) return {};
  // The figures are in force on all ranks; that they are not kept for later is no reason for this one to fail alone.
  const Status kept = model::save_figures(comm::cache_directory(session->config),
                                          comm::cache_key(*session, members_, *agreed), *agreed);
  if (!kept.ok()) log::warn("tune: {}; set RINGFOLD_CACHE_DIR to a folder that can be written", kept.message());
  return {};
}

Result<std::shared_ptr<Communicator::Impl>> Communicator::Impl::split(int color, int key) {
  RINGFOLD_TRY(status());
  const uint32_t number = splits_.fetch_add(1);
  const std::string name = fmt::format("{}.{}/{}", id_, epoch_, number);
  const auto until = base::Deadline::after(session->timeout);
  auto blobs = session->control->exchange("split/" + name, members_, fmt::format("{} {}", color, key), until);
  if (!blobs.ok()) {
    // Others may have all blobs: they are not to wait for what this rank thinks of its part.
    (void)session->control->exchange(fmt::format("ready/{}:{}.0", name, color), members_, blobs.status().message(),
                                     base::Deadline::after({}), comm::Control::WhenGone::kGoOn);
    return blobs.status();
  }
  struct Entry {
    int key, rank;
  };
  std::vector<Entry> mine;
  for (int r = 0; r < size(); ++r) {
    int c = 0, k = 0;
    if (std::sscanf((*blobs)[r].c_str(), "%d %d", &c, &k) != 2)
      return Status(Code::kProtocol, "damaged split from rank " + std::to_string(r));
    if (c == color) mine.push_back({k, r});
  }
  if (color < 0) return std::shared_ptr<Impl>();
  std::stable_sort(mine.begin(), mine.end(), [](const Entry& a, const Entry& b) { return a.key < b.key; });
  std::vector<int> members;
  for (const Entry& e : mine) members.push_back(members_[e.rank]);
  return make(session, std::move(members), fmt::format("{}:{}", name, color), 0, until, this);
}

// Only the members know of it, so its name is made of what they all know: who they are, and how often they have done
// it.
Result<std::shared_ptr<Communicator::Impl>> Communicator::Impl::subset(std::span<const int> ranks, double timeout_s) {
  RINGFOLD_TRY(status());
  std::vector<int> list(ranks.begin(), ranks.end()), sorted = list, members;
  std::sort(sorted.begin(), sorted.end());
  const bool valid = !sorted.empty() && sorted.front() >= 0 && sorted.back() < size() &&
                     std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end();
  if (!valid || !std::binary_search(sorted.begin(), sorted.end(), me_)) {
    return Status(Code::kInvalid,
                  fmt::format("subset: [{}] must name ranks of 0..{}, each once, and rank {}, which calls it",
                              fmt::join(list, ", "), size() - 1, me_));
  }
  for (int r : list) members.push_back(members_[r]);
  int number = 0;
  {
    const std::lock_guard lock(subsets_mutex_);
    number = subsets_[list]++;
  }
  const auto until = base::Deadline::after(timeout_s > 0 ? base::duration_of(timeout_s) : session->timeout);
  return make(session, std::move(members), fmt::format("{}.{}/{}:[{}]", id_, epoch_, number, fmt::join(list, ",")), 0,
              until, this);
}

}  // namespace ringfold
