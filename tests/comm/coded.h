// What tests of calls with codecs share.
#pragma once

#include <random>
#include <string_view>
#include <vector>

#include "tests/comm/ranks.h"

namespace ringfold::test {

using Floats = std::vector<float>;

inline CallOptions with(const Codec& codec, std::string_view feedback = {}) {
  return {.codec = codec, .feedback = feedback};
}

// Values of a rank: small integers, which 16 bits hold exactly, and so do sums of a few of them; or any from -1 to 1.
inline Floats draw(int rank, size_t n, bool integers) {
  std::mt19937 random(static_cast<uint32_t>(rank) * 7919U + 17U);
  Floats x(n);
  for (auto& v : x) {
    v = integers ? static_cast<float>(random() % 15) - 7.0F : static_cast<float>(random() % 20001) / 10000.0F - 1.0F;
  }
  return x;
}

}  // namespace ringfold::test
