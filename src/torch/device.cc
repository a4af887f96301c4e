#include "torch/device.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#ifdef RINGFOLD_TORCH_CUDA
#include <c10/cuda/CUDAStream.h>
#endif

namespace ringfold::pytorch {
namespace {

// The newest versions' streams say so themselves; before, PyTorch's library for CUDA knows, if this was built with
// it.
template <typename Stream>
StreamHandle known_handle() {
  if constexpr (requires(const Stream& stream) { stream.stream_handle(); }) {
    return [](const Stream& stream) { return stream.stream_handle(); };
  } else {
#ifdef RINGFOLD_TORCH_CUDA
    return [](const Stream& stream) -> void* {
      return c10::cuda::CUDAStream(c10::cuda::CUDAStream::UNCHECKED, stream).stream();
    };
#else
    return nullptr;
#endif
  }
}

}  // namespace

StreamHandle& stream_handle() {
  static StreamHandle handle = known_handle<c10::Stream>();
  return handle;
}

c10::Stream DeviceStreams::of(c10::Device device) {
  const std::lock_guard lock(mutex_);
  auto known = streams_.find(device.index());
  if (known == streams_.end()) {
    // Of high priority: what waits for communication waits for little work, behind much that can wait.
    const c10::impl::VirtualGuardImpl devices(device.type());
    known = streams_.emplace(device.index(), devices.getStreamFromGlobalPool(device, /*isHighPriority=*/true)).first;
  }
  return known->second;
}

c10::Stream DeviceStreams::for_message(c10::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device);
}

void DeviceMark::hold_current_stream() const {
  const c10::impl::VirtualGuardImpl devices(stream_.device_type());
  hold(devices.getStream(stream_.device()));
}

OnStream::OnStream(DeviceStreams& streams, const Tensors& tensors, bool message) {
  if (tensors.empty() || !tensors[0].defined() || !tensors[0].is_cuda() || stream_handle() == nullptr) return;
  const c10::Device device = tensors[0].device();
  const c10::impl::VirtualGuardImpl devices(device.type());
  stream_ = message ? DeviceStreams::for_message(device) : streams.of(device);
  DeviceMark(devices.getStream(device)).hold(*stream_);
  guard_.emplace(*stream_);
}

void OnStream::keep(const Tensors& tensors) const {
  if (!stream_) return;
  const c10::impl::VirtualGuardImpl devices(stream_->device_type());
  for (const at::Tensor& tensor : tensors) devices.recordDataPtrOnStream(tensor.storage().data_ptr(), *stream_);
}

std::optional<DeviceMark> OnStream::mark() const {
  if (!stream_) return std::nullopt;
  return std::optional<DeviceMark>(std::in_place, *stream_);
}

}  // namespace ringfold::pytorch
