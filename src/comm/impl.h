// The inside of a Communicator.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/stores.h"
#include "comm/guard.h"
#include "comm/plan_cache.h"
#include "comm/session.h"
#include "comm/spare.h"
#include "comm/staging.h"
#include "comm/tuning.h"
#include "plan/planner.h"
#include "ringfold/communicator.h"

namespace ringfold {

// What a collective call asks for, in one form for all of them.
struct Call {
  Collective collective = Collective::kAllReduce;
  DataType type = DataType::kF32;
  ReduceOp op;
  int root = 0;
  uint64_t count = 0;                     // as given
  std::span<const size_t> sizes;          // -v forms
  std::span<const size_t> receive_sizes;  // all_to_all_v
  bool in_place = false;                  // all_to_all: input and output are the same
  Codec codec = {};                       // of the links
  bool staged = false;                    // a piece of a call on device memory
};

// What a send or receive asks for.
struct MessageCall {
  bool send;
  DataType type;
  int peer;
  void* data;
  size_t count;
  int64_t tag;
};

class Communicator::Impl : public std::enable_shared_from_this<Communicator::Impl> {
 public:
  // Collective among `members`.
  static Result<std::shared_ptr<Impl>> make(std::shared_ptr<comm::Session> session, std::vector<int> members,
                                            std::string id, uint32_t epoch, base::Deadline deadline,
                                            const Impl* parent = nullptr);
  ~Impl();

  int rank() const { return me_; }
  int size() const { return static_cast<int>(members_.size()); }

  // Calls as users make them, on any memory and stream.
  Work start(Call&& call, const void* input, void* output, const CallOptions& options) {
    if (may_be_staged(options)) {
      if (auto work = stage(call, input, output, options)) return *std::move(work);
    }
    return start_on_host(std::move(call), input, output, options);
  }
  Work message(const MessageCall& m, const CallOptions& options);
  // Could it be a call for comm/staging.h? A quick look.
  bool may_be_staged(const CallOptions& options) const { return driver_ != nullptr || options.stream != nullptr; }
  // Nothing: it is not one.
  std::optional<Work> stage(Call call, const void* input, void* output, const CallOptions& options);
  std::optional<Work> stage_message(const MessageCall& m, const CallOptions& options);
  // On host memory, now.
  Work start_on_host(Call&& call, const void* input, void* output, const CallOptions& options);
  Work message_on_host(const MessageCall& m, const CallOptions& options);
  Work start(const std::shared_ptr<const exec::Plan>& plan, const void* input, void* output,
             const CallOptions& options);
  Work refuse_message(const MessageCall& m) const;
  // A message that has to wait.
  Work post(exec::Engine::Hold& hold, const exec::Transfer& transfer, const CallOptions& options);
  Work coded_message(const MessageCall& m, const CallOptions& options);
  Work start(exec::Engine::Hold& hold, const std::shared_ptr<const exec::Plan>& plan, const void* input, void* output,
             const CallOptions& options);
  Work start(exec::Engine::Hold& hold, exec::Ref<exec::Run> run, const std::shared_ptr<const exec::Plan>& plan,
             const void* input, void* output, const CallOptions& options);
  Work start_on_scaled(const Call& call, const void* input, void* output, CallOptions options);
  Work start_on_copy(const Call& call, const std::shared_ptr<const exec::Plan>& plan, void* output,
                     const CallOptions& options);
  Result<std::shared_ptr<const exec::Plan>> plan_for(const Call& call);
  // Null: not made yet. Under the engine's lock.
  const std::shared_ptr<const exec::Plan>* known_plan(const Call& call);
  // What links carry in a call: what it says, or else the communicator's, where that makes sense.
  Codec codec_of(const Call& call, const CallOptions& options) const {
    if (options.codec) return *options.codec;
    return default_codec_ && knows_codecs(call) && reduces(call.collective) ? default_codec_ : Codec();
  }
  static bool knows_codecs(const Call& call);
  // What this rank's random numbers here differ by from those of other ranks and communicators.
  uint64_t draw_key() const {
    return (std::hash<std::string>()(id_) ^ epoch_) * 0x9e3779b97f4a7c15ULL ^ static_cast<uint64_t>(me_) << 32;
  }
  // Is it to decide whether a codec pays, by figures that nobody has measured?
  bool wants_figures() const {
    return default_codec_.when_faster && size() > 1 && !world_.deterministic && !choices_->cluster().measured;
  }
  static Status check_factor(const Call& call, const CallOptions& options);
  static Status check_feedback(Collective collective, const CallOptions& options);
  // Arguments that no rank may give, whatever the others do.
  Status check(const Call& call) const;
  Status check_buffers(const Call& call, uint64_t input_bytes, uint64_t output_bytes, const void* input,
                       const void* output) const;
  plan::Layout layout_of(const Call& call) const;
  base::Duration timeout(const CallOptions& options) const;
  base::Deadline deadline(const CallOptions& options) const { return base::Deadline::about_after(timeout(options)); }
  Status status() const;

  Status share_memory(void* memory, size_t bytes, bool share);
  Status tune(Communicator& self, double budget_s);
  comm::Choices& choices() { return *choices_; }

  Result<std::shared_ptr<Impl>> split(int color, int key);
  Result<std::shared_ptr<Impl>> subset(std::span<const int> ranks, double timeout_s);
  Result<std::shared_ptr<Impl>> reconfigure(bool admit);
  // Of a process that has come back to a job: waits to be taken in.
  static Result<std::shared_ptr<Impl>> join(const std::shared_ptr<comm::Session>& session, base::Deadline until);

  std::shared_ptr<comm::Session> session;
  std::shared_ptr<ErrorFeedback> feedback = std::make_shared<ErrorFeedback>();
  const plan::World& world() const { return world_; }
  comm::Guard& guard() { return *guard_; }
  const std::vector<int>& members() const { return members_; }
  uint32_t epoch() const { return epoch_; }
  exec::Domain& domain() { return *domain_; }
  exec::Engine& engine() { return *session->engine; }

 private:
  Impl() = default;
  Status prepare(const std::string& name, base::Deadline deadline, const Impl* parent);
  Result<std::shared_ptr<const exec::Plan>> build(const Call& call);
  Result<std::shared_ptr<const comm::GpuPlan>> gpu_plan_for(const Call& call);
  std::string why_no_switch() const;
  void let_go_as_codes(comm::Staged* staged, const Call& call, const comm::GpuPlan& plan, const CallOptions& options);
  comm::Staging& staging();
  // Must a call of this kind wait for others on device memory?
  bool queued(comm::Staged::Kind kind) const {
    const comm::Staging* staging = staging_now_.load(std::memory_order_acquire);
    return staging != nullptr && staging->waiting(kind);
  }
  Work add_staged(exec::Ref<comm::Staged> call, const CallOptions& options);
  Work capture(const exec::Ref<comm::Staged>& call, const CallOptions& options);
  // Lets a call go straight from device to device, if all ranks can.
  void let_go_straight(comm::Staged* staged, const plan::Layout& layout, size_t elem);

  static constexpr uint64_t kSmallCopy = 8192;  // from here on a copy must lie where neighbours can read it

  std::vector<int> members_;  // by rank here: rank in the control mesh
  int me_ = 0;
  std::string id_;  // equal on all members, unique in the job together with the epoch
  uint32_t epoch_ = 0;
  plan::World world_;
  std::shared_ptr<exec::Domain> domain_;
  std::unique_ptr<comm::Guard> guard_;
  std::shared_ptr<comm::Choices> choices_ = std::make_shared<comm::Choices>();
  comm::PlanCache plans_;
  std::shared_ptr<comm::Spare> spare_ = std::make_shared<comm::Spare>();  // inputs of calls in place
  std::mutex copy_mutex_;
  base::StoresBySize copy_stores_;  // of copies there; guarded by copy_mutex_
  const device::Driver* driver_ = nullptr;
  std::once_flag staging_once_;
  std::unique_ptr<comm::GpuPath> gpus_;
  std::atomic<uint64_t> coded_calls_{0};
  std::unique_ptr<comm::DirectPath> direct_;
  std::mutex gpu_plans_mutex_;
  comm::CacheOf<comm::GpuPlan> gpu_plans_;
  std::unique_ptr<comm::Staging> staging_;
  std::atomic<comm::Staging*> staging_now_{nullptr};
  int tunings_ = 0;
  std::atomic<uint32_t> built_{0};  // plans
  Codec default_codec_;
  std::atomic<uint64_t> draws_{0};  // coded messages sent: each rounds by random numbers of its own
  std::atomic<uint32_t> splits_{0};
  std::mutex subsets_mutex_;
  std::map<std::vector<int>, int> subsets_;  // how often subset() was called for these ranks
};

// What plans are made of, and kept by.
exec::Contract contract_of(const Call& call, const plan::Layout& layout, uint64_t details);
kernels::Post post_of(const ReduceOp& op, int ranks);
comm::PlanKey key_of(const Call& call);
// Are these the sizes of a call of a -v form? The key only hashes them.
bool are_sizes_of(std::span<const uint64_t> sizes, const Call& call);

// Lets Ringfold's own parts make handles.
struct WorkAccess {
  static Work make(exec::Request* owned) {
    Work work;
    work.request_ = owned;
    return work;
  }
  // Of a call that was complete before there was a request for it. `source`: of a receive.
  static Work done(int source) {
    Work work;
    work.source_ = source;
    return work;
  }
};

}  // namespace ringfold
