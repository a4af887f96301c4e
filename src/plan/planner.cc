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

int hosts_of(const World& world) {
  return world.host_of.empty() ? 1 : *std::max_element(world.host_of.begin(), world.host_of.end()) + 1;
}

// All bytes of the collective's data on the rank that has most of it.
uint64_t data_bytes(const Layout& layout, DataType type) {
  uint64_t elems = 0;
  const auto n = static_cast<uint64_t>(layout.shape.ranks);
  if (schedule::blocks_of(layout.shape) == 1) {
    elems = layout.count;
  } else if (layout.sizes.empty()) {
    elems = n * layout.count;
  } else if (layout.shape.collective == Collective::kAllToAll) {
    return 0;  // differs by rank, and must not decide
  } else {
    for (uint64_t s : layout.sizes) elems += s;
  }
  return elems * size_of(type);
}

}  // namespace

Choice default_choice(Collective collective, uint64_t bytes, int ranks, int hosts) {
  const bool few = ranks <= 8;
  switch (collective) {
    case Collective::kAllReduce:
      if (few && bytes <= 4096) return {"oneshot", 1, "one round for few ranks and few bytes"};
      if (hosts > 1 && hosts < ranks)
        return {"hierarchical", 1, "several ranks per host: the slow links carry each byte once"};
      if (few) return {"direct", 1, "two rounds, least bytes, for few ranks"};
      return bytes <= 65536 ? Choice{"recursive", 1, "logarithmic rounds for many ranks"}
                            : Choice{"ring", 1, "least bytes, with neighbours only"};
    case Collective::kReduceScatter:
    case Collective::kAllGather:
      if (few) return {"direct", 1, "one round for few ranks"};
      return bytes <= 65536 ? Choice{"recursive", 1, "logarithmic rounds for many ranks"}
                            : Choice{"ring", 1, "least bytes, with neighbours only"};
    case Collective::kBroadcast:
    case Collective::kReduce:
      if (ranks <= 4 && bytes <= 65536) return {"direct", 1, "one round for few ranks and few bytes"};
      return bytes <= 65536 ? Choice{"tree", 1, "logarithmic rounds"}
                            : Choice{"chain", 1, "pipelined: the root sends each byte once"};
    case Collective::kGather:
    case Collective::kScatter:
    case Collective::kAllToAll: return {"direct", 1, "every byte goes straight to its place"};
    case Collective::kBarrier:
      return few ? Choice{"oneshot", 1, "one round for few ranks"} : Choice{"recursive", 1, "logarithmic rounds"};
  }
  return {"direct", 1, ""};
}

Choice choose(const World& world, const Layout& layout, DataType type) {
  const auto c = layout.shape.collective;
  const uint64_t bytes = data_bytes(layout, type);
  if (world.deterministic && reduces(c)) {
    // All of these fold in rank order and round 16-bit floats once, so the bits do not depend on which is taken.
    const bool small = c == Collective::kAllReduce && bytes <= 4096;
    return {small ? "oneshot" : "direct", 1, "deterministic mode: folds in rank order, one rounding"};
  }
  if (!layout.sizes.empty() && c == Collective::kAllToAll)
    return {"direct", 1, "sizes are known to the two ends only"};
  Choice choice =
      world.choose ? world.choose(c, bytes) : default_choice(c, bytes, layout.shape.ranks, hosts_of(world));
  return choice;
}

Status force(World* world, const std::string& algorithm) {
  if (algorithm.empty() || algorithm == "auto") return {};
  std::set<std::string> known = {"auto"};
  for (int c = 0; c < kCollectives; ++c) {
    for (auto& name : algo::algorithms_for(static_cast<Collective>(c))) known.insert(std::move(name));
  }
  if (!known.contains(algorithm)) {
    std::string allowed;
    for (const auto& name : known) allowed += (allowed.empty() ? "" : ", ") + name;
    return {Code::kInvalid, fmt::format("\"{}\" is no algorithm: it must be one of {}", algorithm, allowed)};
  }
  world->choose = [algorithm, otherwise = world->choose, ranks = static_cast<int>(world->host_of.size()),
                   hosts = hosts_of(*world)](Collective collective, uint64_t bytes) {
    const auto all = algo::algorithms_for(collective);
    if (std::find(all.begin(), all.end(), algorithm) != all.end()) return Choice{algorithm, 1, "asked for"};
    return otherwise ? otherwise(collective, bytes) : default_choice(collective, bytes, ranks, hosts);
  };
  return {};
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
    planned.choice = {"direct", 1, planned.choice.algorithm + " does not fit the slots at this size"};
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
