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
#include "kernels/simt/multicast.h"
#include "transports/nvlink/multicast.h"

namespace ringfold::comm {

enum class GpuKernel : uint8_t {
  kNone,
  kOneShot,  // everything to everybody, in packets
  kTwoShot,  // each rank folds its part
  kInPlace,  // two-shot, where the users' memory lies
  kSwitch,   // the switch between the GPUs adds, in an order of its own
};
// The one for an all_reduce; what all ranks know decides. kNone: by copies.
GpuKernel kernel_for(DataType type, uint64_t elems, int ranks);
// Is it one that the switch may add instead, where there is one (nvlink::Multicast)?
bool for_switch(DataType type, ReduceKind kind, uint64_t elems, int ranks);
// Is it one that may go straight between users' memory, where that is open (nvlink::Opened)?
bool for_opened(DataType type, uint64_t elems, int ranks);

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
      kernels::simt::MulticastArgs by_switch[2];  // of whole pieces, and of the last
    };
    uint32_t failure;
  };

  // Pins memory for calls.
  static Result<std::unique_ptr<GpuKernels>> make(nvlink::Mesh& mesh, int rank, int size);
  // What calls by the switch are to use: bytes of memory for make() to multicast.
  static constexpr uint64_t kSwitched = 16 << 20;
  void use(std::unique_ptr<nvlink::Multicast> memory) { switched_ = std::move(memory); }
  bool by_switch() const { return switched_ != nullptr; }
  // Null: as many are in flight as can be.
  Call* take();
  bool full() const { return free_.empty(); }
  void give(Call* call) { free_.push_back(call); }
  // Puts the kernel and what belongs to it on a stream of the mesh's context. It ends within `seconds` of its start.
  Status launch(device::Stream stream, GpuKernel kernel, const DeviceReducer& reducer, const void* in, void* out,
                uint64_t elems, double seconds, Call* call);
  // A two-shot of memory that is open to all ranks: `in` and `out` of each.
  struct Places {
    std::byte *in[kernels::simt::kMostRanks] = {}, *out[kernels::simt::kMostRanks] = {};
  };
  Status launch(device::Stream stream, const Places& at, const DeviceReducer& reducer, uint64_t elems, double seconds,
                Call* call);
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
  kernels::simt::Ranks ranks(double seconds) const;
  GpuKernels(nvlink::Mesh& mesh, int rank, int size) : mesh_(mesh), rank_(rank), size_(size) {}
  std::byte* room_of(int rank, uint64_t offset) const;
  Status launch_one(device::Stream stream, GpuKernel kernel, const DeviceReducer& reducer, const void* args,
                    int blocks);
  Status launch_by_switch(device::Stream stream, const DeviceReducer& reducer, const void* in, void* out,
                          uint64_t bytes, const kernels::simt::Ranks& at, Call* call);
  // Tells how the calls on the stream so far have ended.
  Status tell_outcome(device::Stream stream, Call* call) const;

  nvlink::Mesh& mesh_;
  const int rank_, size_;
  device::Pinned calls_;
  std::unique_ptr<nvlink::Multicast> switched_;  // null: no switch adds
  std::vector<Call*> free_, for_graphs_, captured_;
};

}  // namespace ringfold::comm
