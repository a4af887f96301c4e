// Plans by the shape of a call, never by its buffers.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <memory>
#include <unordered_map>

#include "exec/plan.h"
#include "ringfold/types.h"

namespace ringfold::comm {

// 40 bytes, compared whole.
struct PlanKey {
  uint8_t collective = 0, type = 0, op = 0;
  uint8_t form = 0;  // 1: a -v form, 2: all_to_all in place, 4: staged
  int32_t root = 0;
  uint64_t count = 0;
  double scale = 0;
  uint64_t sizes_hash = 0;  // of the -v forms; the caller compares Plan::sizes
  uint64_t codec = 0;       // all members of a Codec
  // Word by word: the default is a call of memcmp. Two scales that differ in their bits are two keys.
  friend bool operator==(const PlanKey& a, const PlanKey& b) {
    using Words = std::array<uint64_t, 5>;
    const auto x = std::bit_cast<Words>(a), y = std::bit_cast<Words>(b);
    return ((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]) | (x[4] ^ y[4])) == 0;
  }
};
static_assert(sizeof(PlanKey) == 40);

// Guarded by the engine's lock, which a call needs anyway. Keeps at most kMost plans; when it is full it starts
// again, which costs a job of ever new shapes little. In front of the table is a small one in which every shape has
// one place: a loop of a few shapes, which is what training is, finds them there.
template <typename P>
class CacheOf {
 public:
  static constexpr size_t kMost = 2048;

  // Null: not there. What it points to holds until the cache changes.
  const std::shared_ptr<const P>* find(const PlanKey& key) {
    Recent& recent = recent_[HashKey()(key) % kRecent];
    if (recent.plan != nullptr && recent.key == key) return recent.plan;
    auto it = plans_.find(key);
    if (it == plans_.end()) return nullptr;
    recent = {key, &it->second};
    return recent.plan;
  }
  void insert(const PlanKey& key, std::shared_ptr<const P> plan) {
    if (plans_.size() >= kMost) clear();
    recent_[HashKey()(key) % kRecent] = {key, &(plans_[key] = std::move(plan))};
  }
  void clear() {
    plans_.clear();
    recent_ = {};
  }

 private:
  static constexpr size_t kRecent = 16;
  struct Recent {
    PlanKey key;
    const std::shared_ptr<const P>* plan = nullptr;  // in plans_, whose values stay where they are
  };
  struct HashKey {
    size_t operator()(const PlanKey& k) const {
      uint64_t h = k.count * 0x9e3779b97f4a7c15ULL ^ k.sizes_hash ^ k.codec * 0x94d049bb133111ebULL;
      h ^= (static_cast<uint64_t>(k.collective) << 24 | k.type << 16 | k.op << 8 | k.form) * 0xbf58476d1ce4e5b9ULL;
      return (h ^ h >> 29) + (h >> 60) + static_cast<uint64_t>(k.root);
    }
  };
  std::array<Recent, kRecent> recent_;
  std::unordered_map<PlanKey, std::shared_ptr<const P>, HashKey> plans_;
};

using PlanCache = CacheOf<exec::Plan>;

}  // namespace ringfold::comm
