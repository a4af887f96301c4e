// Collectives on device memory that go from GPU to GPU, where all ranks are on one host and their GPUs reach each
// other's memory (transports/nvlink); all other calls on device memory are staged (comm/staging.h, which drives
// this).
//
// Ranks decide together. A call that could go here begins with a few bytes over the usual transports: an all_reduce
// of "I can", which carries the call's own contract. So a call that does not match, a rank that does not come and one
// that dies are found as in any other call, before a byte of device memory is touched; and whatever stands against it
// on one rank (memory of another device, no kernel for a type) has all of them stage the call. From then on the host
// has no part in it: the call is a program played on a stream (comm/stream_player.h).
//
// The ranks' blocks of memory are made at the first such call, since it tells which device a rank is on.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "comm/control.h"
#include "comm/device_coder.h"
#include "comm/gpu_feedback.h"
#include "comm/gpu_kernels.h"
#include "comm/stream_player.h"
#include "exec/plan.h"
#include "transports/nvlink/opened.h"

namespace ringfold::comm {

// Of calls of one shape.
struct GpuPlan {
  std::shared_ptr<const exec::Plan> ask;  // the first bytes
  program::Program program;
  DeviceReducer reducer;
  DeviceCoder coder;                    // of links that carry codes
  uint64_t draw = 0;                    // as exec::Plan's
  GpuKernel kernel = GpuKernel::kNone;  // instead of the program, where all ranks can
  bool for_switch = false;              // may the switch between the GPUs add instead, where there is one?
  bool for_opened = false;              // may it go straight between the ranks' buffers, where they are open?
  uint64_t elems = 0;                   // of these
  std::string why_not;                  // "" or why this rank cannot play it
  std::vector<uint64_t> sizes;          // of a -v form: what the cache's key only hashes
};

class GpuPath {
 public:
  struct Options {
    Control* control = nullptr;
    std::vector<int> members;
    int me = 0;
    std::string name;  // unique to the communicator and epoch
    nvlink::Options links;
    bool kernels = true;    // may calls be kernels that wait?
    std::string never;      // "" or why no call goes here, as all ranks know
    std::string no_switch;  // "" or why this rank lets no switch add
  };
  explicit GpuPath(Options options) : options_(std::move(options)), never_(options_.never) {}

  // Tiles and slots of programs that are played here.
  const nvlink::Options& links() const { return options_.links; }
  // Was it said from the beginning that no call goes here? All ranks know.
  bool ruled_out() const { return !options_.never.empty(); }
  // Have the ranks found out that it does not work? Then calls need not ask. The same on all ranks between calls.
  bool never() const;
  // Why, for people; "" where it works or nobody has tried.
  std::string why_not() const;
  // On the caller's thread, before its stream is held: this rank's memory and streams, at the first call. What fails
  // is for the ranks to agree on.
  void prepare(const device::Place& place);

  // What the codes of a tensor have missed, on this rank's GPU; null: no call goes here.
  Result<std::shared_ptr<GpuFeedback>> feedback(ErrorFeedback& all, const std::string& name, size_t elems);

  // ---- users' memory that is open to all ranks: with nothing in flight ----
  // Collective, also where this rank is `unwilling`. Not ok, and neither kUnavailable, kInvalid nor kMismatch, which
  // are the same on all ranks: they may disagree.
  Status open(std::byte* memory, uint64_t bytes, const std::string& unwilling, base::Deadline deadline);
  Status close(std::byte* memory, const std::string& unwilling, base::Deadline deadline);
  // Where a call's buffers lie in it, as bytes to compare with other ranks'; zeros: they do not.
  using Where = std::array<uint8_t, 14>;
  Where where(const std::byte* input, const std::byte* output, uint64_t bytes) const;

  // ---- on the thread of Staging ----
  // Could this rank use it for some calls, and has it kernels that wait? Does it have this memory's device?
  bool could();
  bool has_kernels();
  bool is_here(const device::Place& place);
  // Collective, after all ranks said that they could: maps the others' memory, at the first call. Not ok: the ranks
  // may disagree, so the communicator is lost. Afterwards never() tells how it ended.
  // `kernels`: all ranks have kernels that wait.
  Status connect(bool kernels, base::Deadline deadline);
  bool connected() const { return connected_; }
  // Some rank said that it could not, ever.
  void give_up(const std::string& why);
  // Would a call that could be one kernel have to wait until another is over?
  bool full() const { return kernels_ != nullptr && kernels_->full(); }
  // The call begins after `after`, opens `gate` where it ends, and is over at the moment that is returned. After a
  // failure some of it may be on the stream, until the moment now().
  // `kernel`: all ranks have kernels that wait, so it is one where the plan has one and every rank a GPU of its own;
  // outcome() tells then how it ended, and takes `*call` back.
  struct Playing {
    const std::byte* input = nullptr;
    std::byte* output = nullptr;
    const device::Moment* after = nullptr;
    device::Gate* gate = nullptr;
    double seconds = 0;
    bool kernel = false;
    bool opened = false;            // all ranks have both buffers at the same place of what is open
    GpuFeedback* missed = nullptr;  // of the codes; null: it is dropped
  };
  Result<device::Moment> play(const GpuPlan& plan, const Playing& how, GpuKernels::Call** call,
                              std::function<void()> wake);
  Status outcome(GpuKernels::Call* call);

  // ---- graphs: with nothing in flight ----
  // "" or why such a call cannot be captured, as all ranks know.
  std::string why_not_captured(const GpuPlan& plan) const;
  // Puts the call's kernel on a stream that is captured. From then on calls that are not captured are copies: their
  // kernels might meet those of a replay.
  Status capture(const GpuPlan& plan, device::Stream stream, const void* input, void* output, double seconds);
  bool captured() const { return captured_.load(std::memory_order_acquire); }
  Status captured_outcome(bool* told) const {
    const std::lock_guard lock(mutex_);
    return kernels_->captured_outcome(told);
  }
  Result<device::Moment> now() { return mesh_->stream().now(); }
  void let_go();
  // Its stream never came to an end: it stays for good.
  void keep();

 private:
  // Of a call that may be one; kNone: it is a program. The same on all ranks once they are connected.
  GpuKernel kernel_of(const GpuPlan& plan) const;
  Status play_opened(const GpuPlan& plan, const Playing& how, GpuKernels::Call* call);
  Result<std::byte*> scratch(uint64_t bytes);
  Status play_program(const GpuPlan& plan, const Playing& how);

  const Options options_;
  mutable std::mutex mutex_;
  std::string never_;
  std::string mine_;  // why this rank cannot
  std::unique_ptr<nvlink::Mesh> mesh_;
  std::unique_ptr<GpuKernels> kernels_;                         // null: none here
  std::map<uint16_t, std::unique_ptr<nvlink::Opened>> opened_;  // by the number of the collective call
  Result<std::vector<std::string>> say(const char* step, const std::string& text, base::Deadline deadline);
  uint64_t opens_ = 0;  // and closes: collective calls
  std::atomic<bool> connected_{false}, captured_{false};
  // Of the thread of Staging:
  bool told_ = false;  // that let_go() fails
  std::vector<std::unique_ptr<nvlink::Mapping>>
      scratch_;  // the last is the largest; streams may use the others still
  uint64_t scratch_bytes_ = 0;
  uint64_t played_ = 0;  // programs
};

}  // namespace ringfold::comm
