// Collectives on device memory that only move bytes, between ranks that RDMA joins: network cards write from one
// GPU's memory straight into another's (exec/direct.h), where the driver gives that memory to them as a dma-buf and
// they can register it. All other calls on device memory are staged (comm/staging.h, which drives this).
//
// Ranks decide together, as they do about calls from GPU to GPU (comm/gpu_path.h), and by the same first bytes, an
// all_reduce under the call's own contract: does every rank have its memory registered? What stands against it on one
// rank has all of them stage the call.
//
// Memory is registered as a whole, whatever part of it a call uses, and stays so while it is the same memory: an
// allocation's id in the driver is never given again. Registered memory that was freed is the device's again when the
// next one is registered, or at the communicator's end.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "device/direct.h"
#include "exec/engine.h"
#include "plan/layout.h"

namespace ringfold::comm {

// Is it a collective that may go here?
bool only_moves(Collective collective);
// Who writes what to whom: this rank's part of a collective that only moves bytes. A broadcast goes in parts from the
// root to one rank each, which writes it to all others, so that nobody's way out carries more than the whole.
// `elem`: bytes of an element.
exec::DirectPlan direct_plan(const plan::Layout& layout, size_t elem);
// What is this rank's own in its output and comes from its input.
struct OwnBlock {
  uint64_t from = 0, to = 0, bytes = 0;
};
OwnBlock own_block(const plan::Layout& layout, size_t elem);

class DirectPath {
 public:
  struct Options {
    exec::Engine* engine = nullptr;
    std::shared_ptr<exec::Domain> domain;
    std::string name;   // of the communicator, for people
    std::string never;  // "" or why no call goes here, as all ranks know
  };
  explicit DirectPath(Options options);

  // Have the ranks found out that it does not work? Then calls need not ask. The same on all ranks between calls.
  bool never() const;
  // Some rank said that it could not, ever.
  void give_up(const std::string& why);
  // Could this rank use it for some calls?
  bool could() const { return transport_ != nullptr; }

  // On the caller's thread, before its stream is held: has the memory around `memory` registered. "" or why not.
  std::string why_not(const device::Place& place, const std::byte* memory);
  // Buffers of which why_not() was "".
  exec::Ref<exec::Direct> make(exec::DirectPlan plan, const std::byte* input, std::byte* output,
                               uint64_t output_bytes) const;

 private:
  struct Known {
    device::Context context = nullptr;
    device::Range range;
  };
  void forget_freed();
  Status add(device::Context context, const device::Range& range);

  const Options options_;
  transport::Direct* transport_ = nullptr;  // that reaches all ranks; null: there is none
  std::string mine_;                        // why not, then
  mutable std::mutex mutex_;
  std::string never_;
  std::map<device::Context, std::string> contexts_;  // why their memory is not given away
  std::map<uint64_t, Known> known_;                  // by id: what is registered
  std::map<uint64_t, std::string> refused_;          // and what could not be, which is not tried again
};

}  // namespace ringfold::comm
