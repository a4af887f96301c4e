// Are all ranks' parameters the same, bit by bit?
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "ringfold/communicator.h"

namespace ringfold::sync {

// 64-bit hash of everything added, in the order added. It depends on the bytes, and on where one piece ends and the
// next begins. Made to notice replicas that drifted apart, not to resist an adversary.
class ReplicaHash {
 public:
  void add(std::span<const std::byte> bytes);
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0x52696e67666f6c64;
};

// Collective. The ranks whose hash is not the one that most ranks have (with a tie: not that of the lowest rank among
// the tied), in order; empty when all are equal. The same answer on every rank.
Result<std::vector<int>> differing_ranks(Communicator& comm, uint64_t hash);

}  // namespace ringfold::sync
