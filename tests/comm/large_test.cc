// One call of more than 4 GiB.
#include <cstring>
#include <fstream>
#include <memory>

#include "tests/comm/ranks.h"

namespace ringfold::test {
namespace {

uint64_t available_bytes() {
  std::ifstream in("/proc/meminfo");
  std::string word;
  for (uint64_t kib = 0; in >> word;) {
    if (word == "MemAvailable:" && in >> kib) return kib << 10;
  }
  return 0;
}

// 4 GiB + 3 in one buffer, not one byte early or late.
TEST(LargeCalls, BroadcastMoreThan4GiB) {
  const uint64_t bytes = (uint64_t{4} << 30) + 3;
  const uint64_t needed = 2 * bytes + (uint64_t{2} << 30);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the shadow memory of a sanitizer multiplies what this needs";
#endif
  if (available_bytes() < needed) {
    GTEST_SKIP() << "needs " << (needed >> 30) << " GiB of free memory, and there are " << (available_bytes() >> 30);
  }
  Ranks ranks(2);
  ranks.each([&](Communicator& comm) {
    std::unique_ptr<std::byte[]> memory(new std::byte[bytes + 1]);
    std::byte* data = memory.get();
    // A word per 4 KiB that says where it is: cheap to write and to check, and no two pages are alike.
    auto word = [&](uint64_t at) { return at * 0x9e3779b97f4a7c15ULL; };
    if (comm.rank() == 1) {
      for (uint64_t at = 0; at + 4096 <= bytes; at += 4096) {
        const uint64_t w = word(at);
        std::memcpy(data + at, &w, sizeof w);
      }
      data[bytes - 1] = std::byte{0x5a};
    }
    data[bytes] = std::byte{0xc3};
    expect_ok(comm.broadcast(data, data, bytes, DataType::kU8, 1));
    uint64_t wrong = 0;
    for (uint64_t at = 0; at + 4096 <= bytes; at += 4096) {
      uint64_t w = 0;
      std::memcpy(&w, data + at, sizeof w);
      wrong += w != word(at);
    }
    EXPECT_EQ(wrong, 0U);
    EXPECT_EQ(data[bytes - 1], std::byte{0x5a});
    EXPECT_EQ(data[bytes], std::byte{0xc3});
  });
}

}  // namespace
}  // namespace ringfold::test
