// all_reduce in one kernel on every GPU (kernels/simt/all_reduce.h), on memory of a mesh: for sums so small that the
// turns of streams would take longer than the bytes. Kernels wait for each other, so ranks must be on GPUs of their
// own.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/device_reducer.h"
#include "device/memory.h"
#include "kernels/simt/all_reduce.h"
#include "transports/nvlink/mesh.h"

namespace ringfold::comm {

enum class GpuKernel : uint8_t {
  kNone,
  kOneShot,  // everything to everybody, in packets
  kTwoShot,  // each rank folds its part
};
// The one for an all_reduce; what all ranks know decides. kNone: by copies.
GpuKernel kernel_for(DataType type, uint64_t elems, int ranks);

class GpuKernels {
 public:
  // Of a rank's block in the mesh: its state, and room for packets and values; the first `zeroed` are zeros at first.
  struct Room {
    uint64_t zeroed = 0, bytes = 0;
  };
  static Room room(int ranks);
  // "" or why this process has no such kernels.
  static std::string why_not();

  // Arguments and outcome of one call, in pinned memory while it runs.
  struct Call {
    union {
      kernels::simt::OneShotArgs one_shot;
      kernels::simt::TwoShotArgs two_shot;
    };
    uint32_t failure;
  };

  // Pins memory for calls.
  static Result<std::unique_ptr<GpuKernels>> make(nvlink::Mesh& mesh, int rank, int size);
  // Null: as many are in flight as can be.
  Call* take();
  bool full() const { return free_.empty(); }
  void give(Call* call) { free_.push_back(call); }
  // Puts the kernel and what belongs to it on a stream of the mesh's context. It ends within `seconds` of its start.
  Status launch(device::Stream stream, GpuKernel kernel, const DeviceReducer& reducer, const void* in, void* out,
                uint64_t elems, double seconds, Call* call);
  // The same on a stream that is captured: graphs find the call's arguments and counters in memory and may be
  // replayed for as long as this lives. kUnavailable where there is no room for more.
  Status capture(device::Stream stream, GpuKernel kernel, const DeviceReducer& reducer, const void* in, void* out,
                 uint64_t elems, double seconds);
  // Of all replays so far.
  Status captured_outcome(bool* told) const;
  // Of a call that is over: ok, or what it waited for in vain. `told`: by another rank's kernel, which knows more.
  static Status outcome(const Call& call, bool* told);
  // Kernels end, now and from now on. On a stream that waits for nothing.
  Status raise_abort(device::OwnStream& stream);

 private:
  GpuKernels(nvlink::Mesh& mesh, int rank, int size) : mesh_(mesh), rank_(rank), size_(size) {}
  std::byte* room_of(int rank, uint64_t offset) const;

  nvlink::Mesh& mesh_;
  const int rank_, size_;
  device::Pinned calls_;
  std::vector<Call*> free_, for_graphs_, captured_;
};

}  // namespace ringfold::comm
