#include "comm/gpu_kernels.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <new>

#include "kernels/cuda/all_reduce.h"

namespace ringfold::comm {
namespace {

namespace simt = kernels::simt;

constexpr uint64_t kPackets = 2048;          // of one rank: 16 KiB of values
constexpr uint64_t kShared = 2 << 20;        // bytes that a two-shot folds at most
constexpr int kBlocks = 32;                  // of the largest launch
constexpr uint64_t kQuadsOfBlock = 4 * 256;  // 16 KiB: less is not worth another block
constexpr uint64_t kPacketsOfBlock = 256;
constexpr size_t kCalls = 64;     // in flight
constexpr size_t kGraphs = 1024;  // calls of graphs

uint64_t round_up(uint64_t bytes) { return (bytes + 4095) / 4096 * 4096; }
uint64_t packets_at() { return round_up(sizeof(simt::RankState)); }
uint64_t shared_at(int ranks) { return packets_at() + round_up(32 * static_cast<uint64_t>(ranks) * kPackets); }

int blocks_for(uint64_t work, uint64_t of_block) {
  return static_cast<int>(std::clamp<uint64_t>((work + of_block - 1) / of_block, 1, kBlocks));
}

device::Address address_of(const void* memory) { return reinterpret_cast<device::Address>(memory); }

bool known(DataType type) { return type == DataType::kF32 || type == DataType::kF16 || type == DataType::kBF16; }

}  // namespace

bool for_switch(DataType type, ReduceKind kind, uint64_t elems, int ranks) {
  // The switch hands back f16: a sum that is scaled behind it could be too large for that.
  const bool scaled = kind == ReduceKind::kAvg || kind == ReduceKind::kScaledSum;
  const bool sums = kind == ReduceKind::kSum || (scaled && type != DataType::kF16);
  return known(type) && sums && ranks <= simt::kMostRanks && elems * size_of(type) > 8 * kPackets;
}

bool for_opened(DataType type, uint64_t elems, int ranks) {
  const bool played = ranks == 2 || ranks == 4 || ranks == simt::kMostRanks;
  return known(type) && played && elems * size_of(type) > 8 * kPackets;
}

GpuKernel kernel_for(DataType type, uint64_t elems, int ranks) {
  if (!known(type) || ranks < 2 || ranks > simt::kMostRanks) return GpuKernel::kNone;
  const uint64_t bytes = elems * size_of(type);
  if (bytes <= 8 * kPackets) return GpuKernel::kOneShot;
  return bytes <= kShared && (ranks & (ranks - 1)) == 0 ? GpuKernel::kTwoShot : GpuKernel::kNone;
}

GpuKernels::Room GpuKernels::room(int ranks) { return {shared_at(ranks), shared_at(ranks) + kShared}; }

std::string GpuKernels::why_not() {
  if (device::driver() == nullptr) return device::why_none();
  if (device::driver()->stand_in_all_reduce != nullptr) return "";
  if (const std::string& why = kernels::cuda::why_no_gpu(); !why.empty()) return why;
  const int fit = kernels::cuda::most_blocks(1);
  return fit >= kBlocks ? "" : fmt::format("only {} blocks of a kernel that waits fit the GPU", fit);
}

Result<std::unique_ptr<GpuKernels>> GpuKernels::make(nvlink::Mesh& mesh, int rank, int size) {
  std::unique_ptr<GpuKernels> made(new GpuKernels(mesh, rank, size));
  auto pinned = device::pin(mesh.context(), (kCalls + kGraphs) * sizeof(Call));
  if (!pinned.ok()) return pinned.status();
  made->calls_ = *std::move(pinned);
  for (size_t i = 0; i < kCalls + kGraphs; ++i) {
    auto& list = i < kCalls ? made->free_ : made->for_graphs_;
    list.push_back(new (made->calls_.get() + i * sizeof(Call)) Call);
  }
  return made;
}

GpuKernels::Call* GpuKernels::take() {
  if (free_.empty()) return nullptr;
  Call* call = free_.back();
  free_.pop_back();
  return call;
}

std::byte* GpuKernels::room_of(int rank, uint64_t offset) const {
  return reinterpret_cast<std::byte*>(mesh_.room(rank) + offset);
}

simt::Ranks GpuKernels::ranks(double seconds) const {
  simt::Ranks at{};
  at.rank = rank_;
  at.ranks = size_;
  at.timeout_ns = static_cast<uint64_t>(seconds * 1e9);
  for (int r = 0; r < size_; ++r) at.state[r] = reinterpret_cast<simt::RankState*>(room_of(r, 0));
  return at;
}

Status GpuKernels::launch(device::Stream stream, const Places& at, const DeviceReducer& reducer, uint64_t elems,
                          double seconds, Call* call) {
  call->failure = 0;
  auto& args = call->two_shot = {};
  args.at = ranks(seconds);
  for (int r = 0; r < size_; ++r) {
    args.in[r] = at.in[r];
    args.out[r] = at.out[r];
  }
  args.elems = elems;
  args.factor = reducer.post.factor;
  args.divisor = reducer.post.divisor;
  simt::set_alignment(args, size_of(reducer.type));
  const uint64_t bytes = elems * size_of(reducer.type);
  RINGFOLD_TRY(launch_one(stream, GpuKernel::kInPlace, reducer, &args,
                          blocks_for(bytes / 16 / static_cast<uint64_t>(size_), kQuadsOfBlock)));
  return tell_outcome(stream, call);
}

Status GpuKernels::launch(device::Stream stream, GpuKernel kernel, const DeviceReducer& reducer, const void* in,
                          void* out, uint64_t elems, double seconds, Call* call) {
  const device::Context context = mesh_.context();
  const uint64_t bytes = elems * size_of(reducer.type);
  const simt::Ranks at = ranks(seconds);
  call->failure = 0;
  if (kernel == GpuKernel::kSwitch) {
    RINGFOLD_TRY(launch_by_switch(stream, reducer, in, out, bytes, at, call));
    return tell_outcome(stream, call);
  }
  if (kernel == GpuKernel::kOneShot) {
    auto& args = call->one_shot = {};
    args.at = at;
    args.in = in;
    args.out = out;
    for (int r = 0; r < size_; ++r) args.packets[r] = room_of(r, packets_at());
    args.capacity = kPackets;
    args.elems = elems;
    args.factor = reducer.post.factor;
    args.divisor = reducer.post.divisor;
    RINGFOLD_TRY(launch_one(stream, kernel, reducer, &args, blocks_for(bytes / 8, kPacketsOfBlock)));
    return tell_outcome(stream, call);
  }
  auto& args = call->two_shot = {};
  args.at = at;
  for (int r = 0; r < size_; ++r) args.in[r] = args.out[r] = room_of(r, shared_at(size_));
  args.elems = elems;
  args.factor = reducer.post.factor;
  args.divisor = reducer.post.divisor;
  simt::set_alignment(args, size_of(reducer.type));
  const device::Address shared = address_of(room_of(rank_, shared_at(size_)));
  RINGFOLD_TRY(device::copy_on_devices(context, stream, shared, address_of(in), bytes));
  RINGFOLD_TRY(launch_one(stream, kernel, reducer, &args,
                          blocks_for(bytes / 16 / static_cast<uint64_t>(size_), kQuadsOfBlock)));
  RINGFOLD_TRY(device::copy_on_devices(context, stream, address_of(out), shared, bytes));
  return tell_outcome(stream, call);
}

// In pieces that fit the memory.
Status GpuKernels::launch_by_switch(device::Stream stream, const DeviceReducer& reducer, const void* in, void* out,
                                    uint64_t bytes, const simt::Ranks& at, Call* call) {
  const device::Context context = mesh_.context();
  const uint64_t step = switched_->bytes();
  for (size_t i = 0; i < 2; ++i) {
    auto& args = call->by_switch[i] = {};
    args.at = at;
    args.data.address = reinterpret_cast<std::byte*>(switched_->all());
    args.quads = ((i == 0 ? std::min(step, bytes) : bytes % step) + 15) / 16;
    args.factor = reducer.post.factor;
  }
  for (uint64_t done = 0; done < bytes; done += step) {
    const uint64_t piece = std::min(step, bytes - done);
    const auto& args = call->by_switch[done > 0 && piece < step ? 1 : 0];
    RINGFOLD_TRY(device::copy_on_devices(context, stream, switched_->own(), address_of(in) + done, piece));
    RINGFOLD_TRY(launch_one(stream, GpuKernel::kSwitch, reducer, &args,
                            blocks_for(args.quads / static_cast<uint64_t>(size_), kQuadsOfBlock)));
    RINGFOLD_TRY(device::copy_on_devices(context, stream, address_of(out) + done, switched_->own(), piece));
  }
  return {};
}

// `args` are of a call's, in pinned memory.
Status GpuKernels::launch_one(device::Stream stream, GpuKernel kernel, const DeviceReducer& reducer, const void* args,
                              int blocks) {
  const device::Current current(mesh_.context());
  RINGFOLD_TRY(current.status());
  device::Address address = 0;
  RINGFOLD_TRY(device::check(device::driver()->host_address(&address, const_cast<void*>(args), 0),
                             "cuMemHostGetDevicePointer"));
  const auto* on_gpu = reinterpret_cast<const void*>(address);
  const bool scale = reducer.kind != ReduceKind::kSum;
  const device::Driver& driver = *device::driver();
  const auto type = static_cast<int>(reducer.type), kind = static_cast<int>(reducer.kind);
  if (kernel == GpuKernel::kSwitch && driver.stand_in_multicast != nullptr) {
    return device::check(driver.stand_in_multicast(type, scale, on_gpu, blocks, stream), "multicast");
  }
  if (driver.stand_in_all_reduce != nullptr) {
    const bool one_shot = kernel == GpuKernel::kOneShot;
    return device::check(driver.stand_in_all_reduce(one_shot, type, kind, on_gpu, size_, blocks, stream),
                         one_shot ? "one_shot" : "two_shot");
  }
  int error = 0;
  switch (kernel) {
    case GpuKernel::kOneShot:
      error = kernels::cuda::one_shot(reducer.type, reducer.kind, static_cast<const simt::OneShotArgs*>(on_gpu), 1,
                                      blocks, stream);
      break;
    case GpuKernel::kSwitch:
      error = kernels::cuda::multicast(reducer.type, scale, static_cast<const simt::MulticastArgs*>(on_gpu), blocks,
                                       stream);
      break;
    default:
      error = kernels::cuda::two_shot(reducer.type, reducer.kind, static_cast<const simt::TwoShotArgs*>(on_gpu),
                                      size_, 1, blocks, stream);
  }
  if (error == 0) return {};
  return {Code::kIo, "all_reduce in one kernel: " + kernels::cuda::error_text(error)};
}

Status GpuKernels::tell_outcome(device::Stream stream, Call* call) const {
  return device::copy_to_host(mesh_.context(), stream, reinterpret_cast<std::byte*>(&call->failure),
                              room_of(rank_, offsetof(simt::RankState, failure)), sizeof call->failure);
}

Status GpuKernels::capture(device::Stream stream, GpuKernel kernel, const DeviceReducer& reducer, const void* in,
                           void* out, uint64_t elems, double seconds) {
  if (for_graphs_.empty()) {
    return {Code::kUnavailable, fmt::format("a communicator's graphs hold {} calls at most", kGraphs)};
  }
  captured_.push_back(for_graphs_.back());
  for_graphs_.pop_back();
  return launch(stream, kernel, reducer, in, out, elems, seconds, captured_.back());
}

Status GpuKernels::captured_outcome(bool* told) const {
  for (const Call* call : captured_) RINGFOLD_TRY(outcome(*call, told));
  return {};
}

Status GpuKernels::outcome(const Call& call, bool* told) {
  const uint32_t failure = simt::peek(&call.failure);
  *told = failure == simt::kAborted;
  if (failure == 0) return {};
  if (*told) return {Code::kAborted, "another rank's kernel gave up"};
  if (failure == simt::kBusy) {
    return {Code::kInvalid, "two collectives of one communicator ran on its GPU at the same time"};
  }
  return {Code::kTimeout, fmt::format("its kernel waited for rank {}'s in vain", failure - 1)};
}

Status GpuKernels::raise_abort(device::OwnStream& stream) {
  return stream.set(reinterpret_cast<device::Address>(room_of(rank_, offsetof(simt::RankState, abort))), 1);
}

}  // namespace ringfold::comm
