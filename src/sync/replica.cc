#include "sync/replica.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "sync/mix.h"

namespace ringfold::sync {

void ReplicaHash::add(std::span<const std::byte> bytes) {
  // Four independent chains keep the multipliers busy; each step is a bijection of its chain, so a changed word is
  // never lost.
  constexpr uint64_t kOdd = 0xd6e8feb86659fd93;
  std::array<uint64_t, 4> chain;
  for (size_t i = 0; i < chain.size(); ++i) chain[i] = mix(value_ + i + 1);
  const std::byte* p = bytes.data();
  size_t left = bytes.size();
  for (; left >= 32; left -= 32, p += 32) {
    std::array<uint64_t, 4> words;
    std::memcpy(words.data(), p, 32);
    for (size_t i = 0; i < 4; ++i) {
      const uint64_t h = (chain[i] ^ words[i]) * kOdd;
      chain[i] = h ^ (h >> 29);
    }
  }
  std::array<uint64_t, 4> tail{};
  if (left > 0) std::memcpy(tail.data(), p, left);
  value_ = mix(value_ ^ bytes.size());
  for (size_t i = 0; i < 4; ++i) value_ = mix(value_ + mix(chain[i] ^ tail[i]));
}

Result<std::vector<int>> differing_ranks(Communicator& comm, uint64_t hash) {
  std::vector<uint64_t> all(static_cast<size_t>(comm.size()));
  RINGFOLD_TRY(comm.all_gather(&hash, all.data(), 1, DataType::kU64).wait());
  uint64_t common = all[0];
  for (uint64_t h : all) {
    if (std::count(all.begin(), all.end(), h) > std::count(all.begin(), all.end(), common)) common = h;
  }
  std::vector<int> different;
  for (size_t r = 0; r < all.size(); ++r) {
    if (all[r] != common) different.push_back(static_cast<int>(r));
  }
  return different;
}

}  // namespace ringfold::sync
