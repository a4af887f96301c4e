// Memory that a user has made with cudaMalloc, on every rank, used where it lies by the GPUs of all (cudaIpc).
//
// CUDA leaves undefined what becomes of memory that is freed while another process has it open, so this lasts from
// one collective call to another, between which the user keeps it. Who frees it all the same and makes other memory
// at its address is found out by the allocation's id.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "transports/nvlink/multicast.h"

namespace ringfold::nvlink {

class Opened {
 public:
  // Collective, of a mesh that is connected: `bytes` from `memory` on, as many on every rank. Null: no rank has it,
  // for the reason that is put in `why`, the same on all. Not ok: the ranks may disagree.
  static Result<std::unique_ptr<Opened>> make(Mesh& mesh, std::byte* memory, uint64_t bytes,
                                              const Multicast::Exchange& exchange, std::string* why);
  // No work on it may be left here. Owners may free theirs when all ranks have come to this.
  ~Opened();
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

  const std::byte* memory() const { return memory_; }
  // Do so many bytes lie in it, and is it the memory that it was?
  bool holds(const std::byte* from, uint64_t bytes) const;
  // Where a rank's lies, as this rank's GPU reaches it.
  std::byte* of(int rank, uint64_t offset) const { return at_[static_cast<size_t>(rank)] + offset; }

 private:
  Opened(device::Context context, std::byte* memory, uint64_t bytes)
      : context_(context), memory_(memory), bytes_(bytes) {}
  Result<std::string> card(const Mesh& mesh);
  Status open(const Mesh& mesh, const std::vector<std::string>& cards);

  const device::Context context_;
  std::byte* const memory_;
  const uint64_t bytes_;
  uint64_t id_ = 0;  // of the allocation
  std::vector<std::byte*> at_;
  std::vector<device::Address> opened_;
};

}  // namespace ringfold::nvlink
