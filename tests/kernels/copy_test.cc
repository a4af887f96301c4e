#include "kernels/copy.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "tests/kernels/targets.h"

namespace ringfold::test {
namespace {

TEST(Copy, MovesExactlyTheBytesAskedForAtAnyAlignment) {
  std::vector<uint8_t> src(1 << 16);
  for (size_t i = 0; i < src.size(); ++i) src[i] = static_cast<uint8_t>(i * 167 + i / 256);
  on_every_target([&] {
    for (auto copy : {kernels::copy, kernels::copy_streaming}) {
      for (size_t bytes : {0, 1, 15, 16, 63, 64, 65, 127, 128, 129, 1000, 4096, 65000}) {
        for (size_t to : {0, 1, 31, 63}) {
          for (size_t from : {0, 1, 33}) {
            std::vector<uint8_t> dst(bytes + 200, 0xEE), want = dst;
            for (size_t i = 0; i < bytes; ++i) want[to + i] = src[from + i];
            copy(dst.data() + to, src.data() + from, bytes);
            ASSERT_EQ(dst, want) << bytes << " bytes to " << to << " from " << from;
          }
        }
      }
    }
  });
}

}  // namespace
}  // namespace ringfold::test
