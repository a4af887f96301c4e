#include "sync/replica.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <random>
#include <set>

#include "tests/train/ranks.h"

namespace ringfold::sync {
namespace {

using Bytes = std::vector<std::byte>;

uint64_t hash_of(const Bytes& bytes) {
  ReplicaHash hash;
  hash.add(bytes);
  return hash.value();
}

Bytes random_bytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  Bytes bytes(size);
  for (auto& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

TEST(ReplicaHash, NoticesEverySingleBitAtEveryLength) {
  for (size_t size : {1U, 7U, 8U, 31U, 32U, 33U, 64U, 100U}) {
    Bytes bytes = random_bytes(size, 5);
    std::set<uint64_t> seen = {hash_of(bytes)};
    for (size_t bit = 0; bit < size * 8; ++bit) {
      bytes[bit / 8] ^= std::byte{1} << static_cast<int>(bit % 8);
      EXPECT_TRUE(seen.insert(hash_of(bytes)).second) << "size " << size << " bit " << bit;
      bytes[bit / 8] ^= std::byte{1} << static_cast<int>(bit % 8);
    }
  }
}

TEST(ReplicaHash, NoticesOrderLengthAndWherePiecesEnd) {
  std::set<uint64_t> seen;
  for (size_t zeros = 0; zeros < 200; ++zeros) EXPECT_TRUE(seen.insert(hash_of(Bytes(zeros))).second) << zeros;
  Bytes bytes = random_bytes(256, 6);
  seen.insert(hash_of(bytes));
  for (ptrdiff_t i = 0; i + 16 <= std::ssize(bytes); i += 8) {  // two neighbouring words change places
    Bytes swapped = bytes;
    std::swap_ranges(swapped.begin() + i, swapped.begin() + i + 8, swapped.begin() + i + 8);
    EXPECT_TRUE(seen.insert(hash_of(swapped)).second) << i;
  }
  for (size_t cut = 1; cut < bytes.size(); ++cut) {
    ReplicaHash hash;
    hash.add(std::span(bytes).first(cut));
    hash.add(std::span(bytes).subspan(cut));
    EXPECT_TRUE(seen.insert(hash.value()).second) << cut;
  }
}

TEST(ReplicaHash, IsTheSameInEveryBuild) {
  Bytes bytes(100);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  EXPECT_EQ(hash_of(bytes), uint64_t{13989381529547960829U});
}

TEST(DifferingRanks, AreTheMinorityAndKnownToAll) {
  struct Case {
    std::vector<uint64_t> hashes;
    std::vector<int> different;
  };
  for (const Case& c : std::vector<Case>{{{4, 4, 4, 4}, {}},
                                         {{4, 4, 9, 4}, {2}},
                                         {{9, 4, 4, 4}, {0}},
                                         {{1, 2, 2, 3}, {0, 3}},
                                         {{5, 6}, {1}},
                                         {{3}, {}}}) {
    test::on_ranks(static_cast<int>(c.hashes.size()), [&](Communicator& comm) {
      auto different = differing_ranks(comm, c.hashes[static_cast<size_t>(comm.rank())]);
      ASSERT_TRUE(different.ok()) << different.status().to_string();
      EXPECT_EQ(*different, c.different);
    });
  }
}

}  // namespace
}  // namespace ringfold::sync
