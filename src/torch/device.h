// Tensors in the memory of a GPU. A call on them is work on a stream: it begins after what PyTorch has put on the
// current stream, runs on a stream of the group's own beside what PyTorch puts there later, and Work::wait() makes
// the current stream wait for it, not the program.
//
// All that a call does to tensors (copies of such that are not contiguous, casts, the call, what brings results back)
// happens on the group's stream, so only the caller's tensors have to be kept from being given away too early.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>

#include <map>
#include <mutex>
#include <optional>

#include "torch/tensors.h"

namespace ringfold::pytorch {

// What a stream of PyTorch's is to the driver (CUstream), for CallOptions::stream. Null: this build cannot say, and
// device tensors are refused. Tests put their own in its place.
using StreamHandle = void* (*)(const c10::Stream& stream);
StreamHandle& stream_handle();

// A group's streams. Any thread.
class DeviceStreams {
 public:
  // Of its collectives, one for each device: they take effect in their order.
  c10::Stream of(c10::Device device);
  // For one message: it may have to wait for a call that was made later, on either side. (PyTorch has 32 such streams
  // and takes turns, so with more messages in flight some wait for others.)
  static c10::Stream for_message(c10::Device device);

 private:
  std::mutex mutex_;
  std::map<c10::DeviceIndex, c10::Stream> streams_;
};

// Where the results of a call on a stream can be waited for.
class DeviceMark {
 public:
  explicit DeviceMark(const c10::Stream& stream) : event_(stream.device_type()), stream_(stream) {
    event_.record(stream);
  }
  // What comes later on `stream`, or on the device's current stream, comes after.
  void hold(const c10::Stream& stream) const { event_.block(stream); }
  void hold_current_stream() const;
  bool passed() const { return event_.query(); }
  const c10::Stream& stream() const { return stream_; }

 private:
  c10::Event event_;
  const c10::Stream stream_;
};

// While it lives, what this thread does with PyTorch happens on the group's stream, after what was on the current
// one. Nothing for tensors on the CPU.
class OnStream {
 public:
  OnStream(DeviceStreams& streams, const Tensors& tensors, bool message);
  // CallOptions::stream.
  void* handle() const { return stream_ ? stream_handle()(*stream_) : nullptr; }
  // Their memory is not given to others before the stream has come to here.
  void keep(const Tensors& tensors) const;
  // Of all that was done so far; nullopt on the CPU.
  std::optional<DeviceMark> mark() const;

 private:
  std::optional<c10::Stream> stream_;
  std::optional<c10::StreamGuard> guard_;
};

}  // namespace ringfold::pytorch
