// torch.distributed's process group on a Communicator.
#pragma once

#include <torch/version.h>
#include <unistd.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "ringfold/communicator.h"
#include "torch/device.h"
#include "torch/tensors.h"
#include "torch/work.h"

// The one difference between PyTorch 1.13 and 2.x that the source sees: since 2.0 a ProcessGroup passes calls on to
// backends, one for each kind of device. What only 2.x calls is declared without `override`.
#if TORCH_VERSION_MAJOR >= 2
#include <torch/csrc/distributed/c10d/Backend.hpp>
namespace ringfold::pytorch {
using GroupBase = c10d::Backend;
}
#else
namespace ringfold::pytorch {
using GroupBase = c10d::ProcessGroup;
}
#endif

namespace ringfold::pytorch {

using WorkPtr = c10::intrusive_ptr<c10d::Work>;

// How a group is made; from Python's ringfold_torch.Options.
struct GroupOptions {
  double timeout_s = 0;
  std::vector<int64_t> global_ranks;  // of a group within the default group; empty: the default group itself
  std::string codec, algorithm, transport;
  bool deterministic = false;
  bool own() const { return !algorithm.empty() || !transport.empty() || deterministic; }
};

// Calls return at once; a thread of the runtime's moves them while nobody waits. Calls of one group take effect in
// their order, which must be the same on all ranks; those of different groups are independent. Any thread.
//
// Errors are thrown as Error: at once where the arguments of this rank are wrong (nothing was started then), from
// wait() and the future otherwise. Tensors must stay as they are until the call is complete, and are kept alive.
// Of calls on device tensors see device.h: there wait() and the future do not wait for the end, so a failure shows in
// them only if it has happened, and in every later call.
class ProcessGroupRingfold : public GroupBase {
 public:
  // Meets the other ranks through `store`. Blocks. A group within the default group becomes a subset of its
  // communicator, which needs no new connections between processes.
  static c10::intrusive_ptr<ProcessGroupRingfold> create(const c10::intrusive_ptr<c10d::Store>& store, int rank,
                                                         int size, const GroupOptions& options);
  ProcessGroupRingfold(c10::intrusive_ptr<c10d::Store> store, int rank, int size, const GroupOptions& options,
                       std::shared_ptr<Communicator> communicator);
  ~ProcessGroupRingfold() override;
  // Of all groups that this process has made (not the one that it was forked from) and still has. PyTorch 2.x keeps
  // no Python object of a group, so Python cannot know which these are.
  static void abort_all(const std::string& cause);
  static void shutdown_all();
  const std::string getBackendName() const override { return "ringfold"; }

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options = {}) override;
  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options = {}) override;
  WorkPtr allreduce_sparse(Tensors& tensors, const c10d::AllreduceOptions& options = {}) {
    return allreduce(tensors, options);
  }
  WorkPtr allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& options = {}) override;
  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& options = {}) override;
  WorkPtr allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                    const c10d::AllgatherOptions& options = {}) override;
  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions& options = {}) override;
  WorkPtr allgather_coalesced(std::vector<Tensors>& outputs, Tensors& inputs,
                              const c10d::AllgatherOptions& options = {}) override;
  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& options = {});
  WorkPtr gather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::GatherOptions& options = {}) override;
  WorkPtr scatter(Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ScatterOptions& options = {}) override;
  WorkPtr reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                         const c10d::ReduceScatterOptions& options = {}) override;
  WorkPtr _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                               const c10d::ReduceScatterOptions& options = {}) override;
  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::ReduceScatterOptions& options = {});
  WorkPtr alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_splits,
                        std::vector<int64_t>& input_splits, const c10d::AllToAllOptions& options = {}) override;
  WorkPtr alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& options = {}) override;
  WorkPtr send(Tensors& tensors, int to, int tag) override;
  WorkPtr recv(Tensors& tensors, int from, int tag) override;
  WorkPtr recvAnysource(Tensors& tensors, int tag) override;
  WorkPtr barrier(const c10d::BarrierOptions& options = {}) override;
  // Throws on all ranks unless all have come within the time; names all that are missing, or with `wait_all` false
  // the first. Goes through the store, so the group stays usable after it has failed.
  void monitoredBarrier(const c10d::BarrierOptions& options, bool wait_all = false) override;
  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override { return sequence_; }

  // The all-reduce of compressing hooks: the mean, with values as `codec` on the links (nullopt: the group's), and
  // with the error feedback of that name, if any.
  WorkPtr compressed_mean(const at::Tensor& tensor, const std::optional<Codec>& codec, const std::string& feedback);
  // Of this rank (error_feedback.h). Throws once the group was shut down.
  ErrorFeedback& error_feedback() { return communicator()->error_feedback(); }

  // Ends the group on all ranks: every call, here and elsewhere, fails with an error that names this rank and
  // `cause`.
  void abort_for(const std::string& cause);
  void abort() { abort_for("the program called abort()"); }
  // Leaves in order, with the other ranks if they come within a few seconds. Later calls fail here; those that the
  // others still wait for fail there, naming this rank.
  void shutdown();

 private:
  class Starter;
  std::shared_ptr<Communicator> communicator() const;
  WorkPtr reduce_all(const char* title, c10d::OpType type, const Tensors& tensors, const c10d::ReduceOp& op,
                     std::chrono::milliseconds timeout);
  WorkPtr sum_of_sparse(const at::Tensor& tensor, const c10d::AllreduceOptions& options);
  WorkPtr gather_all(const char* title, c10d::OpType type, const Tensors& outputs, const Tensors& inputs,
                     const std::vector<int64_t>& counts, std::chrono::milliseconds timeout);
  WorkPtr scatter_sums(const char* title, c10d::OpType type, const at::Tensor& output, const Tensors& inputs,
                       const std::vector<int64_t>& counts, const c10d::ReduceScatterOptions& options);
  WorkPtr exchange_all(const char* title, c10d::OpType type, const Tensors& outputs, const Tensors& inputs,
                       const std::vector<int64_t>& output_counts, const std::vector<int64_t>& input_counts,
                       std::chrono::milliseconds timeout);
  WorkPtr message(const char* title, c10d::OpType type, const Tensors& tensors, int peer, int tag);

  const c10::intrusive_ptr<c10d::Store> store_;
  const double timeout_s_;
  const pid_t process_ = ::getpid();
  std::optional<Codec> codec_;  // of f32 sums, where the communicator's is not meant
  std::atomic<uint64_t> sequence_{0};
  uint64_t barriers_ = 0;
  DeviceStreams streams_;
  const std::shared_ptr<Completer> completer_ = std::make_shared<Completer>();
  mutable std::mutex mutex_;
  std::shared_ptr<Communicator> communicator_;  // null after shutdown
};

}  // namespace ringfold::pytorch
