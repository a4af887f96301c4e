#include "comm/gpu_path.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/log.h"

namespace ringfold::comm {

bool GpuPath::never() const {
  const std::lock_guard lock(mutex_);
  return !never_.empty();
}

std::string GpuPath::why_not() const {
  const std::lock_guard lock(mutex_);
  return never_.empty() ? mine_ : never_;
}

void GpuPath::prepare(const device::Place& place) {
  const std::lock_guard lock(mutex_);
  if (!never_.empty() || !mine_.empty() || mesh_ != nullptr) return;
  int ordinal = 0;
  const device::Current current(place.context);
  Status s = current.status();
  if (s.ok()) s = device::check(device::driver()->context_device(&ordinal), "cuCtxGetDevice");
  if (s.ok()) {
    const int size = static_cast<int>(options_.members.size());
    nvlink::Options options = options_.links;
    const GpuKernels::Room room = size <= kernels::simt::kMostRanks ? GpuKernels::room(size) : GpuKernels::Room();
    options.room = room.bytes;
    options.zeroed_room = room.zeroed;
    auto mesh = nvlink::Mesh::make(options_.me, size, place.context, ordinal, options);
    s = mesh.status();
    if (mesh.ok()) mesh_ = *std::move(mesh);
    if (s.ok() && options_.kernels && room.bytes > 0 && GpuKernels::why_not().empty()) {
      auto kernels = GpuKernels::make(*mesh_, options_.me, size);
      if (kernels.ok()) kernels_ = *std::move(kernels);
    }
  }
  if (!s.ok()) mine_ = s.message();
}

bool GpuPath::could() {
  const std::lock_guard lock(mutex_);
  return mesh_ != nullptr && never_.empty();
}

bool GpuPath::has_kernels() {
  const std::lock_guard lock(mutex_);
  return kernels_ != nullptr;
}

bool GpuPath::is_here(const device::Place& place) {
  const std::lock_guard lock(mutex_);
  return mesh_ != nullptr && mesh_->context() == place.context;
}

void GpuPath::give_up(const std::string& why) {
  const std::lock_guard lock(mutex_);
  if (!never_.empty()) return;
  never_ = mine_.empty() ? why : mine_;
  opened_.clear();
  kernels_.reset();
  mesh_.reset();
  log::info("{}: calls on device memory go through the host: {}", options_.name, never_);
}

Status GpuPath::connect(bool kernels, base::Deadline deadline) {
  const auto exchange = [&](const char* step, const std::string& text) {
    return options_.control->exchange(fmt::format("nvlink/{}/{}", options_.name, step), options_.members, text,
                                      deadline, Control::WhenGone::kFail);
  };
  auto addresses = exchange("addresses", mesh_->address());
  if (!addresses.ok()) return addresses.status();
  if (nvlink::Mesh::on_fabric(*addresses)) {
    const Status imported = mesh_->import_by_fabric(*addresses);
    auto all = exchange("fabric", imported.message());
    if (!all.ok()) return all.status();
    for (size_t r = 0; r < all->size(); ++r) {
      if ((*all)[r].empty()) continue;
      log::info("{}: fabric handles are of no use, rank {}: {}", options_.name, r, (*all)[r]);
      mesh_->forget_imports();
    }
  }
  const Status mine = mesh_->connect(*addresses, deadline);
  auto all = exchange("works", mine.message());
  if (!all.ok()) return all.status();
  for (size_t r = 0; r < all->size(); ++r) {
    if (!(*all)[r].empty()) {
      give_up(fmt::format("rank {}: {}", r, (*all)[r]));
      return {};
    }
  }
  if (kernels && mesh_->apart()) {
    std::string why;
    auto memory =
        nvlink::Multicast::make(*mesh_, GpuKernels::kSwitched, options_.no_switch, exchange, deadline, &why);
    if (!memory.ok()) return memory.status();
    if (*memory != nullptr) {
      const std::lock_guard lock(mutex_);
      kernels_->use(*std::move(memory));
    }
    log::info("{}: the switch between GPUs {}", options_.name, why.empty() ? "adds" : "does not add: " + why);
  }
  connected_ = true;
  log::info("{}: calls on device memory go from GPU to GPU", options_.name);
  return {};
}

GpuKernel GpuPath::kernel_of(const GpuPlan& plan) const {
  return plan.for_switch && kernels_ != nullptr && kernels_->by_switch() ? GpuKernel::kSwitch : plan.kernel;
}

Result<std::byte*> GpuPath::scratch(uint64_t bytes) {
  if (bytes > scratch_bytes_) {
    auto memory = nvlink::Allocation::make(mesh_->gpu().ordinal, bytes);
    if (!memory.ok()) return memory.status();
    const uint64_t got = (*memory)->bytes();
    auto mapping = nvlink::Mapping::make(*std::move(memory), mesh_->gpu().ordinal);
    if (!mapping.ok()) return mapping.status();
    scratch_.push_back(*std::move(mapping));
    scratch_bytes_ = got;
  }
  return reinterpret_cast<std::byte*>(scratch_.back()->address());
}

Result<device::Moment> GpuPath::play(const GpuPlan& plan, const Playing& how, GpuKernels::Call** call,
                                     std::function<void()> wake) {
  device::OwnStream& stream = mesh_->stream();
  if (how.after != nullptr) RINGFOLD_TRY(stream.wait_for(*how.after));
  const bool kernels = how.kernel && mesh_->apart() && !captured_;
  const GpuKernel kernel = kernels ? kernel_of(plan) : GpuKernel::kNone;
  if (kernels && how.opened && plan.for_opened && kernel != GpuKernel::kSwitch) {
    *call = kernels_->take();
    RINGFOLD_TRY(play_opened(plan, how, *call));
  } else if (kernel != GpuKernel::kNone) {
    *call = kernels_->take();
    RINGFOLD_TRY(kernels_->launch(stream.handle(), kernel, plan.reducer, how.input, how.output, plan.elems,
                                  how.seconds, *call));
  } else {
    RINGFOLD_TRY(play_program(plan, how));
  }
  RINGFOLD_TRY(how.gate->open_after(stream));
  return stream.mark(std::move(wake));
}

namespace {

constexpr char kUnwilling = '!';  // in front of why a rank does not take part

// What stands against it on any rank, the same on all.
Status objection(const std::vector<std::string>& said) {
  for (size_t r = 0; r < said.size(); ++r) {
    if (said[r].starts_with(kUnwilling)) return {Code::kInvalid, fmt::format("rank {}: {}", r, said[r].substr(1))};
  }
  return {};
}

}  // namespace

Result<std::vector<std::string>> GpuPath::say(const char* step, const std::string& text, base::Deadline deadline) {
  return options_.control->exchange(fmt::format("open/{}/{}/{}", options_.name, opens_, step), options_.members, text,
                                    deadline, Control::WhenGone::kFail);
}

Status GpuPath::open(std::byte* memory, uint64_t bytes, const std::string& unwilling, base::Deadline deadline) {
  if (never() || !connected_) {
    return {Code::kUnavailable,
            never() ? why_not() : "it needs what ranks share from their first call on device memory on: make one"};
  }
  constexpr size_t kMost = 200;
  const auto key = static_cast<uint16_t>(++opens_ % UINT16_MAX + 1);
  auto ready = say("ready", unwilling.empty() ? "" : kUnwilling + unwilling, deadline);
  if (!ready.ok()) return ready.status();
  RINGFOLD_TRY(objection(*ready));
  if (opened_.size() == kMost || opened_.contains(key))
    return {Code::kUnavailable, fmt::format("{} stretches of memory are open", opened_.size())};
  const auto exchange = [&](const char* step, const std::string& text) { return say(step, text, deadline); };
  std::string why;
  auto made = nvlink::Opened::make(*mesh_, memory, bytes, exchange, &why);
  if (!made.ok()) return made.status();
  if (*made == nullptr) return {Code::kUnavailable, why};
  const std::lock_guard lock(mutex_);
  opened_[key] = *std::move(made);
  return {};
}

Status GpuPath::close(std::byte* memory, const std::string& unwilling, base::Deadline deadline) {
  ++opens_;
  const auto found = std::find_if(opened_.begin(), opened_.end(),
                                  [&](const auto& entry) { return entry.second->memory() == memory; });
  const std::string mine = !unwilling.empty()       ? kUnwilling + unwilling
                           : found == opened_.end() ? kUnwilling + std::string("it is not memory that is shared")
                                                    : std::to_string(found->first);
  auto all = say("which", mine, deadline);
  if (!all.ok()) return all.status();
  RINGFOLD_TRY(objection(*all));
  for (size_t r = 1; r < all->size(); ++r) {
    if ((*all)[r] != all->front())
      return {Code::kMismatch, fmt::format("ranks 0 and {} name memory that they shared in different calls", r)};
  }
  {
    const std::lock_guard lock(mutex_);
    opened_.erase(found);
  }
  return say("closed", "", deadline).status();
}

GpuPath::Where GpuPath::where(const std::byte* input, const std::byte* output, uint64_t bytes) const {
  const std::lock_guard lock(mutex_);
  Where where{};
  size_t at = 0;
  for (const std::byte* buffer : {input, output}) {
    const auto found = std::find_if(opened_.begin(), opened_.end(),
                                    [&](const auto& entry) { return entry.second->holds(buffer, bytes); });
    if (found == opened_.end()) return {};
    auto offset = static_cast<uint64_t>(buffer - found->second->memory());
    where[at++] = static_cast<uint8_t>(found->first);
    where[at++] = static_cast<uint8_t>(found->first >> 8);
    for (int i = 0; i < 5; ++i, offset >>= 8) where[at++] = static_cast<uint8_t>(offset);
  }
  return where;
}

// All ranks have said that they have it at the same place.
Status GpuPath::play_opened(const GpuPlan& plan, const Playing& how, GpuKernels::Call* call) {
  GpuKernels::Places at;
  const uint64_t bytes = plan.elems * size_of(plan.reducer.type);
  const std::lock_guard lock(mutex_);
  for (const auto& [key, opened] : opened_) {
    for (auto [buffer, places] : {std::pair<const std::byte*, std::byte**>{how.input, at.in}, {how.output, at.out}}) {
      if (places[0] != nullptr || !opened->holds(buffer, bytes)) continue;
      for (size_t r = 0; r < options_.members.size(); ++r) {
        places[r] = opened->of(static_cast<int>(r), static_cast<uint64_t>(buffer - opened->memory()));
      }
    }
  }
  if (at.in[0] == nullptr || at.out[0] == nullptr) {
    return {Code::kInvalid, "memory that is shared was freed while a call used it"};
  }
  return kernels_->launch(mesh_->stream().handle(), at, plan.reducer, plan.elems, how.seconds, call);
}

std::string GpuPath::why_not_captured(const GpuPlan& plan) const {
  const std::lock_guard lock(mutex_);
  if (!never_.empty()) return never_;
  if (!connected_) return "graphs need memory that ranks share from their first call on: make one before the capture";
  if (kernel_of(plan) == GpuKernel::kNone) {
    return "graphs hold all_reduce of f32, f16 and bf16, of 2 to 8 ranks, up to 16 KiB, and up to 2 MiB of 2, 4 or 8";
  }
  return mesh_->apart() ? "" : "ranks share a GPU, where their kernels might wait for each other for good";
}

Status GpuPath::capture(const GpuPlan& plan, device::Stream stream, const void* input, void* output, double seconds) {
  const std::lock_guard lock(mutex_);
  captured_.store(true, std::memory_order_release);
  return kernels_->capture(stream, kernel_of(plan), plan.reducer, input, output, plan.elems, seconds);
}

Status GpuPath::outcome(GpuKernels::Call* call) {
  bool told = false;
  const Status s = GpuKernels::outcome(*call, &told);
  kernels_->give(call);
  return s;
}

Status GpuPath::play_program(const GpuPlan& plan, const Playing& how) {
  constexpr uint64_t kAlign = 4096;
  const uint64_t tile = (plan.program.tile_bytes + kAlign - 1) / kAlign * kAlign;
  auto memory = scratch(2 * tile + plan.program.scratch_bytes);
  if (!memory.ok()) return memory.status();
  PlayedOn on{.input = how.input,
              .output = how.output,
              .scratch = *memory + 2 * tile,
              .bounce = *memory,
              .code_bounce = *memory + tile,
              .draw = plan.draw ^ ++played_};
  if (plan.coder.codec && how.missed != nullptr) {
    auto missed = how.missed->begin(mesh_->stream());
    if (!missed.ok()) return missed.status();
    on.missed = *missed;
  }
  const Status played = comm::play(plan.program, plan.reducer, plan.coder, on, *mesh_);
  if (on.missed == nullptr) return played;
  const Status used = how.missed->end(mesh_->stream());
  return played.ok() ? used : played;
}

Result<std::shared_ptr<GpuFeedback>> GpuPath::feedback(ErrorFeedback& all, const std::string& name, size_t elems) {
  const std::lock_guard lock(mutex_);
  if (mesh_ == nullptr || !never_.empty()) return std::shared_ptr<GpuFeedback>();
  const device::Context context = mesh_->context();
  auto found = all.state_at(context, name, elems, [&](std::span<const float> values) {
    auto made = GpuFeedback::make(context, mesh_->gpu(), elems, values);
    return made.ok() ? Result<std::shared_ptr<ErrorFeedback::Elsewhere>>(*made) : made.status();
  });
  if (!found.ok()) return found.status();
  return std::static_pointer_cast<GpuFeedback>(*found);
}

void GpuPath::let_go() {
  Status s = mesh_->let_go();
  if (s.ok() && kernels_ != nullptr) s = kernels_->raise_abort(mesh_->rescue());
  if (!s.ok() && !std::exchange(told_, true)) log::info("{}: {}", options_.name, s.message());
}

void GpuPath::keep() {
  static std::mutex mutex;
  static auto& kept = *new std::vector<std::unique_ptr<nvlink::Mesh>>;
  static auto& memory = *new std::vector<std::unique_ptr<nvlink::Mapping>>;
  const std::lock_guard lock(mutex);
  kept.push_back(std::move(mesh_));
  static auto& calls = *new std::vector<std::unique_ptr<GpuKernels>>;
  calls.push_back(std::move(kernels_));
  for (auto& mapping : scratch_) memory.push_back(std::move(mapping));
  static auto& opened = *new std::vector<std::unique_ptr<nvlink::Opened>>;
  for (auto& [key, of] : opened_) opened.push_back(std::move(of));
  opened_.clear();
  scratch_.clear();
}

}  // namespace ringfold::comm
