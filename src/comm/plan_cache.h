// Plans by the shape of a call, never by its buffers.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

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
  friend bool operator==(const PlanKey&, const PlanKey&) = default;
};
static_assert(sizeof(PlanKey) == 40);

// Guarded by the engine's lock, which a call needs anyway. Keeps at most kMost plans; when it is full it starts
// again, which costs a job of ever new shapes little.
template <typename P>
class CacheOf {
 public:
  static constexpr size_t kMost = 2048;

  // Null: not there. What it points to holds until the cache changes.
  const std::shared_ptr<const P>* find(const PlanKey& key) {
    if (last_ != nullptr && last_key_ == key) return last_;  // training repeats itself
    auto it = plans_.find(key);
    if (it == plans_.end()) return nullptr;
    last_key_ = key;
    return last_ = &it->second;
  }
  void insert(const PlanKey& key, std::shared_ptr<const P> plan) {
    if (plans_.size() >= kMost) clear();
    last_ = &(plans_[key] = std::move(plan));
    last_key_ = key;
  }
  void clear() {
    plans_.clear();
    last_ = nullptr;
  }

 private:
  struct HashKey {
    size_t operator()(const PlanKey& k) const {
      uint64_t h = k.count * 0x9e3779b97f4a7c15ULL ^ k.sizes_hash ^ k.codec * 0x94d049bb133111ebULL;
      h ^= (static_cast<uint64_t>(k.collective) << 24 | k.type << 16 | k.op << 8 | k.form) * 0xbf58476d1ce4e5b9ULL;
      return h ^ h >> 29 ^ static_cast<uint64_t>(k.root);
    }
  };
  PlanKey last_key_;
  const std::shared_ptr<const P>* last_ = nullptr;  // in plans_, whose values stay where they are
  std::unordered_map<PlanKey, std::shared_ptr<const P>, HashKey> plans_;
};

using PlanCache = CacheOf<exec::Plan>;

}  // namespace ringfold::comm
