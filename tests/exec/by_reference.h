// Ranks that read each other's memory where it lies, and memory that they can read so.
#pragma once

#include "ringfold/memory.h"
#include "tests/exec/world.h"
#include "transports/shm/shm.h"

namespace ringfold::test {

// Over shared memory, where everything that does not fit in the line of a slot goes by reference.
inline World::Options by_reference() {
  return {.make = [](int n) {
    World::Transports all;
    for (int r = 0; r < n; ++r) {
      auto transport = shm::make(r, n, 42, {.slots = 4, .slot_bytes = 4096, .lines = 4, .region_bytes = 1});
      EXPECT_TRUE(transport.ok()) << transport.status().to_string();
      all.push_back(std::move(*transport));
    }
    return all;
  }};
}

inline Buffer<std::byte> shared_memory(size_t bytes) {
  auto memory = allocate_buffer<std::byte>(bytes);
  EXPECT_TRUE(memory.ok()) << memory.status().to_string();
  return std::move(*memory);
}

// How many ranks have found that a sender had stopped while they read its memory.
inline int stops_seen(World& world) {
  int seen = 0;
  for (int r = 0; r < world.size(); ++r) {
    for (const auto& fault : world.rank(r).faults) {
      if (fault.status.message().find("stopped while") == std::string::npos) continue;
      EXPECT_EQ(fault.status.code(), Code::kPeerLost);
      EXPECT_EQ(fault.kind, exec::FaultKind::kPeer);
      ++seen;
    }
  }
  return seen;
}

// Gives up alone: the others have not heard of it.
inline void give_up(Rank& rank) { rank.engine->abort(rank.domain(), Status(Code::kAborted, "gives up")); }

}  // namespace ringfold::test
