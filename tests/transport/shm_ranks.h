// Ranks of one process over shared memory, for its tests.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <string_view>
#include <utility>

#include "tests/transport/conformance.h"
#include "transports/shm/shm.h"

namespace ringfold::transport::test {

inline Fabric make_shm(int n, const shm::Options& options) {
  Fabric fabric;
  for (int r = 0; r < n; ++r) {
    auto transport = shm::make(r, n, 42, options);
    EXPECT_TRUE(transport.ok()) << transport.status().to_string();
    if (transport.ok()) fabric.ranks.push_back(std::move(*transport));
  }
  wire(fabric.ranks);
  return fabric;
}

// Of this process, of files whose name has `name` in it.
inline size_t mappings_of(std::string_view name) {
  std::ifstream maps("/proc/self/maps");
  size_t count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find(name) != std::string::npos;
  return count;
}

}  // namespace ringfold::transport::test
