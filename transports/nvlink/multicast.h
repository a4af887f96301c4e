// Memory of all ranks' GPUs at one address (NVLS): the switch between them gives the sum of all copies to who reads
// there, and writes what is written there to all copies.
//
// Every rank has memory of its own and an address of it; that memory is bound to one object, which rank 0 makes and
// the others get as they get blocks of a mesh (mesh.h). The driver waits for all devices where memory is bound and
// where the object is mapped, so ranks agree before each of these steps, and one that cannot go on has all of them do
// without.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "transports/nvlink/mesh.h"

namespace ringfold::nvlink {

class Multicast {
 public:
  // What every rank said under that name, in the order of ranks.
  using Exchange = std::function<Result<std::vector<std::string>>(const char* step, const std::string& text)>;
  // Collective, of a mesh that is connected and whose ranks are on GPUs of their own. `unwilling`: "" or why this
  // rank will not. Null: no rank has it, for the reason that is put in `why`, the same on all. Not ok: the ranks may
  // disagree.
  static Result<std::unique_ptr<Multicast>> make(Mesh& mesh, uint64_t bytes, const std::string& unwilling,
                                                 const Exchange& exchange, base::Deadline deadline, std::string* why);
  // No work on it may be left, on any rank.
  ~Multicast();
  Multicast(const Multicast&) = delete;
  Multicast& operator=(const Multicast&) = delete;

  uint64_t bytes() const { return object_->bytes(); }
  device::Address own() const { return own_->address(); }  // of this rank's memory
  device::Address all() const { return all_->address(); }  // of all ranks'

 private:
  explicit Multicast(const Gpu& gpu) : gpu_(gpu) {}
  Status get_object(Mesh& mesh, const std::string& card, const base::Fd& mine, base::Deadline deadline);
  Status join();
  Status bind();

  const Gpu gpu_;
  int device_ = 0;
  std::shared_ptr<Allocation> object_, memory_;
  std::unique_ptr<Mapping> own_, all_;
  bool bound_ = false;
};

// "" or why memory of this GPU cannot be multicast.
std::string why_not_multicast(const Gpu& gpu);

}  // namespace ringfold::nvlink
