// What lossy codes have missed of a tensor (ringfold/error_feedback.h), where its codes are made on a GPU.
//
// It is the tensor's state until somebody asks for it on the host. Work on streams uses it in the order in which it
// was put there, whichever streams: each use waits for the one before. A call that fails may have left anything here,
// since streams that are let go use what never arrived: then it starts again from zeros.
#pragma once

#include <memory>
#include <mutex>

#include "device/stream.h"
#include "ringfold/error_feedback.h"
#include "transports/nvlink/memory.h"

namespace ringfold::comm {

class GpuFeedback final : public ErrorFeedback::Elsewhere {
 public:
  // `values`: its state so far; empty: zeros. Nothing waits for the device.
  static Result<std::shared_ptr<GpuFeedback>> make(device::Context context, const nvlink::Gpu& gpu, size_t elems,
                                                   std::span<const float> values);

  // Between the two, what is put on the stream may use it. Any thread; one use at a time.
  Result<float*> begin(device::OwnStream& stream);
  Status end(device::OwnStream& stream);
  void lose();

  const void* place() const override { return context_; }
  Status fetch(float* to) override;

 private:
  GpuFeedback(device::Context context, size_t elems) : context_(context), elems_(elems) {}
  size_t bytes() const { return elems_ * sizeof(float); }

  const device::Context context_;
  const size_t elems_;
  std::mutex mutex_;
  std::unique_ptr<nvlink::Mapping> memory_;
  device::Pinned before_;  // its state before the first use, and until that is over; null: zeros
  bool used_ = false;      // or else the memory has no meaning yet
  device::Moment last_;    // of its uses
};

}  // namespace ringfold::comm
