// Calls on device memory and on streams, cut into pieces for comm/staging.h.
#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <tuple>

#include "comm/group.h"
#include "comm/impl.h"
#include "comm/scaling.h"

namespace ringfold {

using comm::Side;
using comm::Staged;

namespace {

// Does a rank's input, or output, have a block for every rank?
bool gives_to_all(Collective c) {
  return c == Collective::kReduceScatter || c == Collective::kScatter || c == Collective::kAllToAll;
}
bool takes_from_all(Collective c) {
  return c == Collective::kAllGather || c == Collective::kGather || c == Collective::kAllToAll;
}

// Blocks one after another.
std::vector<Side::Block> in_a_row(std::span<const size_t> sizes, size_t elem) {
  std::vector<Side::Block> blocks;
  uint64_t offset = 0;
  for (size_t s : sizes) {
    blocks.push_back({offset, s * elem});
    offset += s * elem;
  }
  return blocks;
}

Side side_of(void* memory, const device::Place& place, std::vector<Side::Block> blocks) {
  return {static_cast<std::byte*>(memory), place, std::move(blocks)};
}

Status places_of(const void* input, const void* output, device::Place* in, device::Place* out) {
  for (auto [memory, place] : {std::pair{input, in}, std::pair{output, out}}) {
    auto found = device::place_of(memory);
    if (!found.ok()) return found.status();
    *place = *found;
  }
  return {};
}

// Options of a call that begins after the user's strings are gone.
struct KeptOptions {
  explicit KeptOptions(const CallOptions& o) : options(o), feedback(o.feedback), label(o.label) {
    options.stream = nullptr;
    options.group = nullptr;
  }
  CallOptions with(double seconds) const {
    CallOptions o = options;
    o.timeout_s = seconds;
    o.feedback = feedback;
    o.label = label;
    return o;
  }
  CallOptions options;
  std::string feedback, label;
};

}  // namespace

// A sum by the switch moves (1 + 1/n) of the bytes over each GPU's links in each direction, one by two shots
// 2 (n - 1)/n of them. Its order of addition is not ours, so never where every way is to give the same bits.
std::string Communicator::Impl::why_no_switch() const {
  constexpr int kFewest = 4;
  const std::string& set = session->config.multicast.value();
  if (set == "off") return "RINGFOLD_MULTICAST=off";
  if (world_.deterministic) return "deterministic mode";
  if (set == "auto" && size() < kFewest) return "it moves less only from 4 ranks on (RINGFOLD_MULTICAST=on)";
  return "";
}

comm::Staging& Communicator::Impl::staging() {
  std::call_once(staging_once_, [this] {
    constexpr size_t kPiece = 2 << 20;
    comm::GpuPath::Options gpus{
        .control = session->control.get(), .members = members_, .me = me_, .name = fmt::format("{}.{}", id_, epoch_)};
    const auto& config = session->config;
    constexpr uint64_t kAlign = 256;  // of slots, for the kernels
    if (config.slot_bytes != 0) gpus.links.slot_bytes = static_cast<uint64_t>(config.slot_bytes) / kAlign * kAlign;
    if (config.slots != 0) gpus.links.slots = std::max(2, static_cast<int>(config.slots));
    const auto& hosts = world_.host_of;
    gpus.kernels = config.nvlink.value() != "copies";
    if (config.nvlink.value() == "off") gpus.never = "RINGFOLD_NVLINK=off";
    if (size() < 2) gpus.never = "one rank alone";
    gpus.no_switch = why_no_switch();
    if (std::any_of(hosts.begin(), hosts.end(), [&](int host) { return host != hosts.front(); })) {
      gpus.never = "the ranks are on several hosts";
    }
    gpus_ = std::make_unique<comm::GpuPath>(std::move(gpus));
    direct_ = std::make_unique<comm::DirectPath>(
        comm::DirectPath::Options{.engine = session->engine.get(),
                                  .domain = domain_,
                                  .name = fmt::format("{}.{}", id_, epoch_),
                                  .never = size() < 2                           ? "one rank alone"
                                           : config.gpu_direct.value() == "off" ? "RINGFOLD_GPU_DIRECT=off"
                                                                                : ""});
    const auto set = static_cast<size_t>(session->config.stage_bytes.value());
    staging_ = std::make_unique<comm::Staging>(comm::Staging::Options{.engine = session->engine.get(),
                                                                      .domain = domain_,
                                                                      .guard = guard_.get(),
                                                                      .gpus = gpus_.get(),
                                                                      .direct = direct_.get(),
                                                                      .piece_bytes = set != 0 ? set : kPiece});
    staging_now_.store(staging_.get(), std::memory_order_release);
  });
  return *staging_;
}

Work Communicator::Impl::add_staged(exec::Ref<Staged> call, const CallOptions& options) {
  if (driver_ == nullptr) {
    return Work(
        Status(Code::kUnavailable, fmt::format("{}: it is on a stream, but {}", call->text, device::why_none())));
  }
  call->deadline = deadline(options);
  auto failed = [&](const Status& s) {
    return Work(Status(s.code(), fmt::format("{}: {}", call->text, s.message())));
  };
  if (Status s = staging().prepare(call); !s.ok()) return failed(s);
  Group::Impl::OnStream* group = nullptr;
  if (options.stream != nullptr) {
    auto* stream = static_cast<device::Stream>(options.stream);
    // A default stream is that of the device whose memory it is.
    const bool ours = reinterpret_cast<uintptr_t>(stream) <= 2 && call->on_device();
    auto context = ours ? Result<device::Context>(call->context()) : device::context_of(stream);
    if (!context.ok()) return failed(context.status());
    if (options.group != nullptr) {
      auto on = options.group->impl_->on(*context, stream);
      if (!on.ok()) return failed(on.status());
      group = *on;
      call->after = group->begin;
    } else {
      auto now = device::Moment::now(*context, stream);
      if (!now.ok()) return failed(now.status());
      auto gate = device::Gate::hold(*context, stream);
      if (!gate.ok()) return failed(gate.status());
      call->after = std::make_shared<device::Moment>(*std::move(now));
      call->gate = *std::move(gate);
    }
  }
  staging().add(call);
  Work work = WorkAccess::make(call.release());
  if (group != nullptr) {
    group->works.push_back(work);
    options.group->add(work);
  }
  return work;
}

// A call on a stream that is captured into a graph. The ranks agree on it now; replays ask nobody.
Work Communicator::Impl::capture(const exec::Ref<Staged>& call, const CallOptions& options) {
  auto refused = [&](const std::string& why) {
    return Work(
        Status(Code::kInvalid, fmt::format("{}: its stream is being captured into a graph: {}", call->text, why)));
  };
  if (options.group != nullptr) {
    return refused("in a group, since ranks that one thread plays would wait for each other here");
  }
  if (const std::string why = gpus_->why_not_captured(*call->on_gpu); !why.empty()) return refused(why);
  if (!staging().idle()) return refused("calls before it are in flight: wait for them before the capture");
  const bool fits = call->fits && call->on_gpu->why_not.empty() && gpus_->is_here(call->in.place) &&
                    gpus_->is_here(call->out.place);
  const Staged::Answers can = {fits, true, gpus_->has_kernels()};
  Staged::Answers all{};
  const KeptOptions kept(options);
  const double seconds = std::max(base::seconds_of(deadline(options).left()), 1e-3);
  if (Status s = start(call->on_gpu->ask, can.data(), all.data(), kept.with(seconds)).wait(); !s.ok()) return Work(s);
  if (all[0] == 0 || all[2] == 0) return refused("not all ranks have kernels that wait, and memory of their own GPU");
  const Status s = gpus_->capture(*call->on_gpu, static_cast<device::Stream>(options.stream), call->in.memory,
                                  call->out.memory, seconds);
  staging().watch_graphs();
  return Work(s);
}

Status Communicator::Impl::share_memory(void* memory, size_t bytes, bool share) {
  if (driver_ == nullptr) return {Code::kUnavailable, device::why_none()};
  const std::string name =
      fmt::format("{} of {} bytes at {}", share ? "share_memory" : "unshare_memory", bytes, memory);
  Status dead;
  engine().inspect([&] { dead = domain_->dead(); });
  if (!dead.ok()) return dead;
  const std::string unwilling = staging().idle() ? "" : "calls are in flight: wait for them first";
  auto* const from = static_cast<std::byte*>(memory);
  const auto until = deadline({});
  const Status s = share ? gpus_->open(from, bytes, unwilling, until) : gpus_->close(from, unwilling, until);
  if (s.ok()) return s;
  const Status told(s.code(), fmt::format("{}: {}", name, s.message()));
  const bool agreed = s.code() == Code::kUnavailable || s.code() == Code::kInvalid || s.code() == Code::kMismatch;
  if (!agreed) guard_->request_abort(told.message());
  return told;
}

std::optional<Work> Communicator::Impl::stage(Call call, const void* input, void* output,
                                              const CallOptions& options) {
  device::Place in, out;
  if (Status s = places_of(input, output, &in, &out); !s.ok()) return Work(s);
  if (!in && !out && options.stream == nullptr && !queued(Staged::kCollective)) return std::nullopt;
  call.codec = codec_of(call, options);
  if (Status s = check(call); !s.ok()) return Work(s);
  if (Status s = check_factor(call, options); !s.ok()) return Work(s);

  exec::Ref<Staged> staged(new Staged);
  staged->text = fmt::format("{} {}", name_of(call.collective), name_of(call.type));
  KeptOptions kept(options);
  std::vector<size_t> sizes(call.sizes.begin(), call.sizes.end()),
      receive_sizes(call.receive_sizes.begin(), call.receive_sizes.end());
  const size_t elem = size_of(call.type);
  const bool variable = !sizes.empty();
  const uint64_t largest = variable ? *std::max_element(sizes.begin(), sizes.end()) : call.count;
  const bool both_variable = !receive_sizes.empty();
  if ((!in && !out) || (largest == 0 && !both_variable)) {
    // On host memory, and it only waits for its turn or its stream. (Where nobody has a byte, nobody can tell whose
    // memory it is, so that must not matter.)
    staged->start = [this, call, sizes, receive_sizes, kept, input, output](uint64_t, const std::byte*, std::byte*,
                                                                            double seconds) mutable {
      call.sizes = sizes;
      call.receive_sizes = receive_sizes;
      return start_on_host(Call(call), input, output, kept.with(seconds));
    };
    return add_staged(std::move(staged), options);
  }

  const plan::Layout layout = layout_of(call);
  const uint64_t input_elems = layout.input_elems(), output_elems = layout.output_elems();
  if (!call.in_place) {
    const Status s = check_buffers(call, input_elems * elem, output_elems * elem, input, output);
    if (!s.ok()) return Work(s);
  } else if (sizes != receive_sizes) {
    return Work(Status(Code::kInvalid, "all_to_all_v: in place needs equal counts for sending and receiving"));
  }
  auto blocks = [&](bool for_all, uint64_t elems, const std::vector<size_t>& of_ranks) {
    if (!variable) return in_a_row(std::vector<size_t>(call.count != 0 ? elems / call.count : 0, call.count), elem);
    return for_all ? in_a_row(of_ranks, elem) : in_a_row(std::vector<size_t>{sizes[static_cast<size_t>(me_)]}, elem);
  };
  staged->in = side_of(const_cast<void*>(input), in, blocks(gives_to_all(call.collective), input_elems, sizes));
  staged->out = side_of(output, out,
                        blocks(takes_from_all(call.collective), output_elems, both_variable ? receive_sizes : sizes));
  // Ranks cut alike: by what they all know. Only two know each size of an all_to_all_v; and the error feedback of a
  // coded sum belongs to the whole tensor.
  const bool whole = both_variable || (call.codec && reduces(call.collective));
  const bool many = gives_to_all(call.collective) || takes_from_all(call.collective);
  const uint64_t piece_bytes = staging().piece_bytes();
  const uint64_t step = whole
                            ? uint64_t{1} << 60
                            : std::max<uint64_t>(1, piece_bytes / elem / (many ? static_cast<uint64_t>(size()) : 1));
  staged->step = step * elem;
  staged->pieces = whole ? 1 : (largest + step - 1) / step;
  const bool in_place = call.in_place;
  call.staged = !both_variable;  // an all_to_all_v is the same call whatever the memory
  call.in_place = false;
  if (options.input_factor) {
    staged->before = [type = call.type, factor = *options.input_factor](std::byte* from, uint64_t bytes) {
      comm::multiply(type, from, bytes / size_of(type), factor);
    };
    kept.options.input_factor.reset();
  }
  staged->text += " of device memory";
  // Whether ranks ask about it depends on what they all know; whether it can be, each says for itself.
  if (!both_variable && !gpus_->never()) {
    auto plan = gpu_plan_for(call);
    if (!plan.ok()) return Work(plan.status());
    staged->on_gpu = *std::move(plan);
    staged->fits = !in_place && !options.input_factor;
    if (options.stream != nullptr) {
      auto captured = device::is_captured(staged->context(), static_cast<device::Stream>(options.stream));
      if (!captured.ok()) return Work(captured.status());
      if (*captured) return capture(staged, options);
    }
    gpus_->prepare(in ? in : out);
    if (staged->on_gpu->coder.codec && !options.feedback.empty()) {
      if (const Status s = check_feedback(call.collective, options); !s.ok()) return Work(s);
      auto missed = gpus_->feedback(*feedback, kept.feedback, input_elems);
      // Without room for it there the call is staged.
      if (!missed.ok() && missed.status().code() == Code::kInvalid) return Work(missed.status());
      staged->fits &= missed.ok() && *missed != nullptr;
      if (missed.ok()) staged->missed = *std::move(missed);
    }
    staged->ask = [this, kept, plan = staged->on_gpu](const uint8_t* can, uint8_t* all_can, double seconds) {
      return start(plan->ask, can, all_can, kept.with(seconds));
    };
  }
  // Codes are made where calls are staged.
  const bool wants_codes = call.codec && !call.codec.when_faster;
  if (!whole && !in_place && !wants_codes && gpus_->ruled_out() && !direct_->never() &&
      comm::only_moves(call.collective)) {
    auto plan = gpu_plan_for(call);
    if (!plan.ok()) return Work(plan.status());
    staged->ask = [this, kept, plan = (*plan)->ask](const uint8_t* can, uint8_t* all_can, double seconds) {
      return start(plan, can, all_can, kept.with(seconds));
    };
    let_go_straight(staged.get(), layout, elem);
  }
  // (Where hosts have several ranks each, those fold their values before any code goes to other hosts.)
  const std::set<int> hosts(world_.host_of.begin(), world_.host_of.end());
  const bool flat = hosts.size() == 1 || static_cast<int>(hosts.size()) == size();
  if (wants_codes && call.collective == Collective::kAllReduce && !in_place && !world_.deterministic && flat &&
      gpus_->ruled_out() && size() > 1 && comm::DeviceCodes::why_not(call.codec, call.count, size()).empty()) {
    if (const Status s = check_feedback(call.collective, options); !options.feedback.empty() && !s.ok())
      return Work(s);
    auto plan = gpu_plan_for(call);
    if (!plan.ok()) return Work(plan.status());
    staged->ask = [this, kept, plan = (*plan)->ask](const uint8_t* can, uint8_t* all_can, double seconds) {
      return start(plan, can, all_can, kept.with(seconds));
    };
    if ((*plan)->coder.codec) let_go_as_codes(staged.get(), call, **plan, options);
  }
  staged->start = [this, call, sizes, receive_sizes, kept, step](uint64_t piece, const std::byte* from, std::byte* to,
                                                                 double seconds) {
    auto part = [&](uint64_t elems) { return std::min(step, elems - std::min(elems, piece * step)); };
    Call c = call;
    c.count = part(call.count);
    std::vector<size_t> s(sizes), r(receive_sizes);
    for (auto* list : {&s, &r}) {
      for (size_t& elems : *list) elems = part(elems);
    }
    c.sizes = s;
    c.receive_sizes = r;
    CallOptions o = kept.with(seconds);
    o.codec = call.codec;
    return start_on_host(std::move(c), from, to, o);
  };
  return add_staged(std::move(staged), options);
}

// What stands against it is this rank's answer when it is asked.
void Communicator::Impl::let_go_straight(Staged* staged, const plan::Layout& layout, size_t elem) {
  const Side &in = staged->in, &out = staged->out;
  staged->own = comm::own_block(layout, elem);
  staged->fits = true;
  for (const Side* side : {&in, &out}) {
    if (!side->place) continue;  // of no bytes, or on the host
    if (const std::string why = direct_->why_not(side->place, side->memory); !why.empty()) staged->fits = false;
  }
  exec::DirectPlan plan = comm::direct_plan(layout, elem);
  plan.text = staged->text;
  staged->straight = [this, plan = std::move(plan), input = in.memory, output = out.memory,
                      bytes = layout.output_elems() * elem](double seconds) {
    auto call = direct_->make(plan, input, output, bytes);
    call->deadline = base::Deadline::after(base::duration_of(seconds));
    engine().start(*domain_, call.get());
    return WorkAccess::make(call.release());
  };
}

// What stands against it is this rank's answer when it is asked.
void Communicator::Impl::let_go_as_codes(Staged* staged, const Call& call, const comm::GpuPlan& plan,
                                         const CallOptions& options) {
  const uint64_t slot = comm::DeviceCodes::slot_bytes(call.codec, call.count, size());
  // Codes are bytes to the host.
  const auto bytes_by = [&](Collective collective) {
    Call bytes;
    bytes.collective = collective;
    bytes.type = DataType::kU8;
    bytes.count = slot;
    bytes.staged = true;
    CallOptions plain = options;
    plain.codec = Codec();
    plain.feedback = {};
    plain.input_factor.reset();
    return [this, bytes, kept = KeptOptions(plain)](const std::byte* in, std::byte* out, double seconds) {
      return start_on_host(Call(bytes), in, out, kept.with(seconds));
    };
  };
  comm::DeviceCodes::Options codes{.coder = plan.coder,
                                   .me = me_,
                                   .ranks = size(),
                                   .elems = call.count,
                                   .draw = plan.draw ^ ++coded_calls_,
                                   .to_owners = bytes_by(Collective::kAllToAll),
                                   .to_all = bytes_by(Collective::kAllGather)};
  const auto make = [&]() -> Status {
    if (!(staged->in.place && staged->in.place == staged->out.place))
      return {Code::kUnavailable, "not on one device"};
    if (options.input_factor) return {Code::kUnavailable, "a factor"};
    if (const std::string why = plan.coder.why_not(); !why.empty()) return {Code::kUnavailable, why};
    const device::Current current(staged->in.place.context);
    RINGFOLD_TRY(current.status());
    int ordinal = 0;
    RINGFOLD_TRY(device::check(driver_->context_device(&ordinal), "cuCtxGetDevice"));
    auto gpu = nvlink::Gpu::of(ordinal);
    if (!gpu.ok()) return gpu.status();
    if (!options.feedback.empty()) {
      const device::Context context = staged->in.place.context;
      auto missed = feedback->state_at(context, options.feedback, call.count, [&](std::span<const float> values) {
        auto fresh = comm::GpuFeedback::make(context, *gpu, call.count, values);
        return fresh.ok() ? Result<std::shared_ptr<ErrorFeedback::Elsewhere>>(*fresh) : fresh.status();
      });
      if (!missed.ok()) return missed.status();
      staged->missed = std::static_pointer_cast<comm::GpuFeedback>(*missed);
    }
    auto made = comm::DeviceCodes::make(codes, ordinal);
    if (!made.ok()) return made.status();
    staged->codes = *std::move(made);
    return {};
  };
  staged->fits = make().ok();
  // A rank that cannot asks all the same, so that the others know.
  if (staged->codes == nullptr) staged->codes = std::make_shared<comm::DeviceCodes>(codes);
}

// The program of a call from GPU to GPU, and the plan of what ranks ask each other before: an all_reduce of two bytes
// under the call's own contract.
Result<std::shared_ptr<const comm::GpuPlan>> Communicator::Impl::gpu_plan_for(const Call& call) {
  const comm::PlanKey key = key_of(call);
  {
    const std::lock_guard lock(gpu_plans_mutex_);
    if (const auto* plan = gpu_plans_.find(key); plan != nullptr && are_sizes_of((*plan)->sizes, call)) return *plan;
  }
  auto plan = std::make_shared<comm::GpuPlan>();
  // GPUs reach each other all alike, so that each sends its part straight to whom it belongs; small sums go to
  // everybody at once, which takes one step instead of two.
  constexpr uint64_t kSmall = 64 << 10, kSmallCoded = 4096;  // with codes as in deterministic mode on hosts
  plan::World world = world_;
  world.tile_bytes = gpus_->links().slot_bytes;
  world.slots = gpus_->links().slots;
  world.deterministic = false;
  // With codes too, unless the call wants them only where they are faster: between GPUs nobody has measured that.
  bool asked_for = false;  // by RINGFOLD_ALGORITHM
  world.choose = [&](Collective c, uint64_t bytes, const Codec& codec) {
    plan::Choice choice{"direct", 1, "GPUs of one host", codec.when_faster ? Codec() : codec};
    if (c == Collective::kAllReduce && bytes <= (choice.codec ? kSmallCoded : kSmall)) choice.algorithm = "oneshot";
    const std::string wanted = choice.codec || world_.deterministic ? "" : choices_->wanted(c, bytes);
    if (!wanted.empty()) choice = {wanted, 1, "RINGFOLD_ALGORITHM", {}};
    asked_for = !wanted.empty();
    return choice;
  };
  const plan::Layout layout = layout_of(call);
  auto planned = plan::make_plan(world, layout, call.type, call.op, call.codec);
  if (!planned.ok()) return planned.status();
  plan->program = std::move(planned->program);
  plan->sizes = layout.sizes;
  plan->sizes.insert(plan->sizes.end(), layout.receive_sizes.begin(), layout.receive_sizes.end());
  plan->reducer = {.type = call.type, .kind = call.op.kind, .post = post_of(call.op, size())};
  plan->coder = {.codec = planned->choice.codec, .post = plan->reducer.post};
  plan->draw = draw_key();
  const bool coded = static_cast<bool>(plan->coder.codec);
  if (call.collective == Collective::kAllReduce && !coded && !asked_for) {
    plan->kernel = comm::kernel_for(call.type, call.count, size());
    plan->for_opened = comm::for_opened(call.type, call.count, size());
    plan->for_switch = comm::for_switch(call.type, call.op.kind, call.count, size());
  }
  plan->elems = call.count;
  if (plan->program.reduces) plan->why_not = plan->reducer.why_not();
  if (coded && plan->why_not.empty()) plan->why_not = plan->coder.why_not();
  const int most = coded ? comm::DeviceCoder::kMostTerms : comm::DeviceReducer::kMostInputs;
  if (plan->program.lanes.size() > 1 || static_cast<int>(plan->program.most_inputs) > most) {
    plan->why_not = "its program has several lanes, or folds of too many inputs";
  }
  Call ask;
  ask.type = DataType::kU8;
  ask.op = ReduceOp(ReduceKind::kMin);
  ask.count = std::tuple_size_v<comm::Staged::Answers>;
  auto built = build(ask);
  if (!built.ok()) return built.status();
  auto asking = std::make_shared<exec::Plan>(**built);
  asking->contract = contract_of(call, layout, planned->details);
  asking->contract.codec = planned->choice.codec.kind;
  plan->ask = std::move(asking);
  const std::lock_guard lock(gpu_plans_mutex_);
  gpu_plans_.insert(key, plan);
  return std::shared_ptr<const comm::GpuPlan>(std::move(plan));
}

std::optional<Work> Communicator::Impl::stage_message(const MessageCall& m, const CallOptions& options) {
  const auto [send, type, peer, data, count, tag] = m;
  const auto kind = send ? Staged::kSend : Staged::kReceive;
  auto place = device::place_of(data);
  if (!place.ok()) return Work(place.status());
  if (!*place && options.stream == nullptr && !queued(kind)) return std::nullopt;
  const bool known = static_cast<int>(type) < kDataTypes && count <= (uint64_t{1} << 60);
  if (!known || (*place && count == 0)) place = device::Place();  // refused later, or nothing to copy
  exec::Ref<Staged> staged(new Staged);
  staged->kind = kind;
  staged->text = fmt::format("{} rank {} {} x{} tag {}{}", send ? "send to" : "receive from", peer,
                             known ? name_of(type) : "?", count, tag, *place ? " of device memory" : "");
  staged->step = known ? count * size_of(type) : 0;
  (send ? staged->in : staged->out) = side_of(data, *place, {{0, staged->step}});
  staged->start = [this, m, on_device = bool(*place), kept = KeptOptions(options)](uint64_t, const std::byte* from,
                                                                                   std::byte* to, double seconds) {
    MessageCall call = m;
    if (on_device) call.data = m.send ? const_cast<std::byte*>(from) : to;
    return message_on_host(call, kept.with(seconds));
  };
  return add_staged(std::move(staged), options);
}

}  // namespace ringfold
