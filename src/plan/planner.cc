#include "plan/planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <set>

#include "algo/algo.h"
#include "plan/lower.h"

namespace ringfold::plan {
namespace {

class Hash {
 public:
  Hash& add(uint64_t v) {
    for (int i = 0; i < 8; ++i) state_ = (state_ ^ (v >> (8 * i) & 0xff)) * 0x100000001b3ULL;
    return *this;
  }
  Hash& add(std::string_view text) {
    for (char c : text) state_ = (state_ ^ static_cast<uint8_t>(c)) * 0x100000001b3ULL;
    return add(text.size());
  }
  uint64_t value() const { return state_ ^ state_ >> 32; }

 private:
  uint64_t state_ = 0xcbf29ce484222325ULL;
};

// Bytes of one block; of the average block in a -v form.
uint64_t block_bytes(const Layout& layout, DataType type) {
  uint64_t elems = layout.count;
  if (!layout.sizes.empty()) {
    for (uint64_t s : layout.sizes) elems += s;
    elems /= layout.sizes.size();
  }
  return elems * size_of(type);
}

}  // namespace

// One round, any size and number of ranks.
Choice simplest_choice(Collective collective) {
  return {collective == Collective::kBarrier ? "oneshot" : "direct", 1, "the simplest"};
}

Choice choose(const World& world, const Layout& layout, DataType type) {
  const auto c = layout.shape.collective;
  const uint64_t bytes = block_bytes(layout, type);
  if (world.deterministic && reduces(c)) {
    // All of these fold in rank order and round 16-bit floats once, so the bits do not depend on which is taken.
    const bool small = c == Collective::kAllReduce && bytes <= 4096;
    return {small ? "oneshot" : "direct", 1, "deterministic mode: folds in rank order, one rounding"};
  }
  if (!layout.sizes.empty() && c == Collective::kAllToAll)
    return {"direct", 1, "sizes are known to the two ends only"};
  return world.choose ? world.choose(c, bytes) : simplest_choice(c);
}

Result<schedule::Schedule> make_schedule(const World& world, const schedule::Shape& shape, const Choice& choice) {
  return algo::make(choice.algorithm, shape, {choice.lanes, world.host_of});
}

Result<Planned> make_plan(const World& world, const Layout& layout, DataType type, const ReduceOp& op) {
  Planned planned;
  planned.choice = choose(world, layout, type);
  for (int attempt = 0;; ++attempt) {
    auto schedule = make_schedule(world, layout.shape, planned.choice);
    if (!schedule.ok()) return schedule.status();
    LowerRequest request;
    request.schedule = &*schedule;
    request.layout = layout;
    request.type = type;
    request.tile_bytes = world.tile_bytes;
    request.slots = world.slots;
    auto program = lower(request);
    if (program.ok()) {
      planned.program = *std::move(program);
      break;
    }
    if (attempt > 0 || program.status().code() != Code::kInvalid) return program.status();
    const std::string reason = planned.choice.algorithm + " does not fit the slots at this size";
    planned.choice = simplest_choice(layout.shape.collective);
    planned.choice.reason = reason;
  }
  Hash hash;
  hash.add(planned.choice.algorithm).add(static_cast<uint64_t>(planned.choice.lanes)).add(world.tile_bytes);
  hash.add(static_cast<uint64_t>(world.slots));
  if (op.kind == ReduceKind::kScaledSum) hash.add(std::bit_cast<uint64_t>(op.scale));
  if (layout.shape.collective != Collective::kAllToAll) {
    for (uint64_t s : layout.sizes) hash.add(s);
  }
  hash.add(static_cast<uint64_t>(layout.shape.root));
  planned.details = hash.value();
  return planned;
}

}  // namespace ringfold::plan
