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

std::vector<std::string> algorithms_for_codecs(Collective collective, const std::vector<int>& host_of) {
  const bool several = std::any_of(host_of.begin(), host_of.end(), [](int host) { return host > 0; });
  using Names = std::vector<std::string>;
  switch (collective) {
    case Collective::kAllReduce:
      return several ? Names{"direct", "hierarchical", "oneshot"} : Names{"direct", "oneshot"};
    case Collective::kReduceScatter: return several ? Names{"direct", "hierarchical"} : Names{"direct"};
    case Collective::kAllGather: return {"direct", "ring"};
    case Collective::kBroadcast: return {"direct", "chain", "tree"};
    default: return {};
  }
}

bool carries_codes(std::string_view algorithm, const std::vector<int>& host_of, int rank, int peer) {
  const bool handed_on = algorithm == "ring" || algorithm == "chain" || algorithm == "tree";
  const bool several = std::any_of(host_of.begin(), host_of.end(), [](int host) { return host > 0; });
  return handed_on || !several || host_of[static_cast<size_t>(rank)] != host_of[static_cast<size_t>(peer)];
}

Choice choose(const World& world, const Layout& layout, DataType type, const Codec& codec) {
  const auto c = layout.shape.collective;
  const uint64_t bytes = block_bytes(layout, type);
  if (world.deterministic && reduces(c)) {
    // All of these fold in rank order and round 16-bit floats once, so the bits do not depend on which is taken.
    const bool small = c == Collective::kAllReduce && bytes <= 4096;
    return {small ? "oneshot" : "direct", 1, "deterministic mode: folds in rank order, one rounding",
            codec.when_faster ? Codec() : codec};
  }
  if (!layout.sizes.empty() && c == Collective::kAllToAll)
    return {"direct", 1, "sizes are known to the two ends only"};
  if (world.choose) return world.choose(c, bytes, codec);
  Choice choice = simplest_choice(c);
  choice.codec = codec;
  return choice;
}

Result<schedule::Schedule> make_schedule(const World& world, const schedule::Shape& shape, const Choice& choice) {
  return algo::make(choice.algorithm, shape, {choice.lanes, world.host_of, static_cast<bool>(choice.codec)});
}

Result<Planned> make_plan(const World& world, const Layout& layout, DataType type, const ReduceOp& op,
                          const Codec& codec) {
  Planned planned;
  planned.choice = choose(world, layout, type, codec);
  for (int attempt = 0;; ++attempt) {
    auto schedule = make_schedule(world, layout.shape, planned.choice);
    if (!schedule.ok()) return schedule.status();
    LowerRequest request;
    request.schedule = &*schedule;
    request.layout = layout;
    request.type = type;
    request.tile_bytes = std::min(world.tile_bytes, planned.choice.tile_bytes);
    request.slots = world.slots;
    if (planned.choice.codec) {
      request.coded = [&, algorithm = planned.choice.algorithm](int peer) {
        return carries_codes(algorithm, world.host_of, layout.rank, peer);
      };
    }
    auto program = lower(request);
    if (program.ok()) {
      planned.program = *std::move(program);
      break;
    }
    if (attempt > 0 || program.status().code() != Code::kInvalid) return program.status();
    const std::string reason = planned.choice.algorithm + " does not fit the slots at this size";
    planned.choice = {.algorithm = simplest_choice(layout.shape.collective).algorithm,
                      .reason = reason,
                      .codec = planned.choice.codec};
  }
  Hash hash;
  hash.add(planned.choice.algorithm).add(static_cast<uint64_t>(planned.choice.lanes));
  hash.add(planned.program.tile_bytes);
  hash.add(static_cast<uint64_t>(world.slots)).add(to_string(planned.choice.codec));
  if (op.kind == ReduceKind::kScaledSum) hash.add(std::bit_cast<uint64_t>(op.scale));
  if (layout.shape.collective != Collective::kAllToAll) {
    for (uint64_t s : layout.sizes) hash.add(s);
  }
  hash.add(static_cast<uint64_t>(layout.shape.root));
  planned.details = hash.value();
  return planned;
}

}  // namespace ringfold::plan
