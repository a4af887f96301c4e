#include "comm/gpu_path.h"

#include <fmt/format.h>

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
    auto mesh = nvlink::Mesh::make(options_.me, static_cast<int>(options_.members.size()), place.context, ordinal,
                                   options_.links);
    if (mesh.ok()) mesh_ = *std::move(mesh);
    s = mesh.status();
  }
  if (!s.ok()) mine_ = s.message();
}

bool GpuPath::could() {
  const std::lock_guard lock(mutex_);
  return mesh_ != nullptr && never_.empty();
}

bool GpuPath::is_here(const device::Place& place) {
  const std::lock_guard lock(mutex_);
  return mesh_ != nullptr && mesh_->context() == place.context;
}

void GpuPath::give_up(const std::string& why) {
  const std::lock_guard lock(mutex_);
  if (!never_.empty()) return;
  never_ = mine_.empty() ? why : mine_;
  mesh_.reset();
  log::info("{}: calls on device memory go through the host: {}", options_.name, never_);
}

Status GpuPath::connect(base::Deadline deadline) {
  const auto exchange = [&](const char* step, const std::string& text) {
    return options_.control->exchange(fmt::format("nvlink/{}/{}", options_.name, step), options_.members, text,
                                      deadline, Control::WhenGone::kFail);
  };
  auto addresses = exchange("addresses", mesh_->address());
  if (!addresses.ok()) return addresses.status();
  const Status mine = mesh_->connect(*addresses, deadline);
  auto all = exchange("works", mine.message());
  if (!all.ok()) return all.status();
  for (size_t r = 0; r < all->size(); ++r) {
    if (!(*all)[r].empty()) {
      give_up(fmt::format("rank {}: {}", r, (*all)[r]));
      return {};
    }
  }
  connected_ = true;
  log::info("{}: calls on device memory go from GPU to GPU", options_.name);
  return {};
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

Result<device::Moment> GpuPath::play(const GpuPlan& plan, const std::byte* input, std::byte* output,
                                     const device::Moment* after, device::Gate& gate, std::function<void()> wake) {
  constexpr uint64_t kAlign = 4096;
  const uint64_t first = (plan.program.tile_bytes + kAlign - 1) / kAlign * kAlign;
  auto memory = scratch(first + plan.program.scratch_bytes);
  if (!memory.ok()) return memory.status();
  if (after != nullptr) RINGFOLD_TRY(mesh_->stream().wait_for(*after));
  const PlayedOn on{.input = input, .output = output, .scratch = *memory + first, .bounce = *memory};
  RINGFOLD_TRY(comm::play(plan.program, plan.reducer, on, *mesh_));
  RINGFOLD_TRY(gate.open_after(mesh_->stream()));
  return mesh_->stream().mark(std::move(wake));
}

void GpuPath::let_go() {
  if (const Status s = mesh_->let_go(); !s.ok()) log::info("{}: {}", options_.name, s.message());
}

void GpuPath::keep() {
  static std::mutex mutex;
  static auto& kept = *new std::vector<std::unique_ptr<nvlink::Mesh>>;
  static auto& memory = *new std::vector<std::unique_ptr<nvlink::Mapping>>;
  const std::lock_guard lock(mutex);
  kept.push_back(std::move(mesh_));
  for (auto& mapping : scratch_) memory.push_back(std::move(mapping));
  scratch_.clear();
}

}  // namespace ringfold::comm
