#include "comm/gpu_feedback.h"

#include <chrono>
#include <cstring>
#include <thread>

#include "base/clock.h"

namespace ringfold::comm {
namespace {

// Whoever asks on the host does so between calls, so there is little to wait for.
Status wait_for_end(const device::Moment& moment) {
  constexpr auto kPatience = std::chrono::seconds(10);
  const auto until = base::Deadline::after(kPatience);
  for (;;) {
    auto over = moment.over();
    if (!over.ok()) return over.status();
    if (*over) return {};
    if (until.passed()) return {Code::kTimeout, "the GPU has not ended its work on it in 10 s"};
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

}  // namespace

Result<std::shared_ptr<GpuFeedback>> GpuFeedback::make(device::Context context, const nvlink::Gpu& gpu, size_t elems,
                                                       std::span<const float> values) {
  std::shared_ptr<GpuFeedback> made(new GpuFeedback(context, elems));
  auto memory = nvlink::Allocation::make(gpu.ordinal, made->bytes());
  if (!memory.ok()) return memory.status();
  auto mapping = nvlink::Mapping::make(*std::move(memory), gpu.ordinal);
  if (!mapping.ok()) return mapping.status();
  made->memory_ = *std::move(mapping);
  if (values.empty()) return made;
  auto pinned = device::pin(context, made->bytes());
  if (!pinned.ok()) return pinned.status();
  made->before_ = *std::move(pinned);
  std::memcpy(made->before_.get(), values.data(), made->bytes());
  return made;
}

Result<float*> GpuFeedback::begin(device::OwnStream& stream) {
  const std::lock_guard lock(mutex_);
  auto* const memory = reinterpret_cast<std::byte*>(memory_->address());
  RINGFOLD_TRY(stream.wait_for(last_));
  if (!used_ && before_ != nullptr) {
    RINGFOLD_TRY(stream.to_device(memory, before_.get(), bytes()));
  } else if (!used_) {
    RINGFOLD_TRY(stream.zero(memory_->address(), bytes()));
  } else if (before_ != nullptr) {
    if (auto over = last_.over(); over.ok() && *over) before_.reset();
  }
  return reinterpret_cast<float*>(memory);
}

Status GpuFeedback::end(device::OwnStream& stream) {
  const std::lock_guard lock(mutex_);
  auto now = stream.now();
  if (!now.ok()) return now.status();
  last_ = *std::move(now);
  used_ = true;
  return {};
}

void GpuFeedback::lose() {
  const std::lock_guard lock(mutex_);
  if (auto over = last_.over(); over.ok() && *over) before_.reset();
  if (before_ != nullptr && used_) std::memset(before_.get(), 0, bytes());  // a stream may read it yet
  used_ = false;
}

Status GpuFeedback::fetch(float* to) {
  const std::lock_guard lock(mutex_);
  if (!used_) {
    before_ != nullptr ? std::memcpy(to, before_.get(), bytes()) : std::memset(to, 0, bytes());
    return {};
  }
  RINGFOLD_TRY(wait_for_end(last_));
  auto pinned = device::pin(context_, bytes());
  if (!pinned.ok()) return pinned.status();
  auto stream = device::OwnStream::make(context_);
  if (!stream.ok()) return stream.status();
  RINGFOLD_TRY((*stream)->to_host(pinned->get(), reinterpret_cast<const std::byte*>(memory_->address()), bytes()));
  auto end = (*stream)->now();
  if (!end.ok()) return end.status();
  RINGFOLD_TRY(wait_for_end(*end));
  std::memcpy(to, pinned->get(), bytes());
  return {};
}

}  // namespace ringfold::comm
