#include "schedule/schedule.h"

namespace ringfold::schedule {

uint64_t blocks_of(const Shape& shape) {
  const auto n = static_cast<uint64_t>(shape.ranks);
  switch (shape.collective) {
    case Collective::kAllReduce:
    case Collective::kReduce:
    case Collective::kBroadcast:
    case Collective::kBarrier: return 1;
    case Collective::kReduceScatter:
    case Collective::kAllGather:
    case Collective::kGather:
    case Collective::kScatter: return n;
    case Collective::kAllToAll: return n * n;
  }
  return 0;
}

bool starts_with(const Shape& shape, int rank, uint64_t block) {
  switch (shape.collective) {
    case Collective::kAllReduce:
    case Collective::kReduce:
    case Collective::kReduceScatter:
    case Collective::kBarrier: return true;
    case Collective::kBroadcast:
    case Collective::kScatter: return rank == shape.root;
    case Collective::kAllGather:
    case Collective::kGather: return block == static_cast<uint64_t>(rank);
    case Collective::kAllToAll: return block / static_cast<uint64_t>(shape.ranks) == static_cast<uint64_t>(rank);
  }
  return false;
}

bool ends_with(const Shape& shape, int rank, uint64_t block) {
  switch (shape.collective) {
    case Collective::kAllReduce:
    case Collective::kBroadcast:
    case Collective::kAllGather:
    case Collective::kBarrier: return true;
    case Collective::kReduce:
    case Collective::kGather: return rank == shape.root;
    case Collective::kReduceScatter:
    case Collective::kScatter: return block == static_cast<uint64_t>(rank);
    case Collective::kAllToAll: return block % static_cast<uint64_t>(shape.ranks) == static_cast<uint64_t>(rank);
  }
  return false;
}

}  // namespace ringfold::schedule
