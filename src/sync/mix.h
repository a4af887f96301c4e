#pragma once

#include <cstdint>

namespace ringfold::sync {

// A bijection of 64 bits in which every input bit reaches every output bit: multiply by odd constants, fold the high
// half down.
constexpr uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93;
  return x ^ (x >> 32);
}

}  // namespace ringfold::sync
