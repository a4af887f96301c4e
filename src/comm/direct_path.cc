#include "comm/direct_path.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "base/log.h"

namespace ringfold::comm {
namespace {

// The part of `bytes` that rank `part` of `parts` passes on, in multiples of what a cache line is.
std::pair<uint64_t, uint64_t> part_of_whole(uint64_t bytes, uint64_t part, uint64_t parts) {
  constexpr uint64_t kUnit = 64;
  const uint64_t each = (bytes / parts + kUnit - 1) / kUnit * kUnit;
  const uint64_t from = std::min(bytes, part * each);
  return {from, part + 1 == parts ? bytes - from : std::min(each, bytes - from)};
}

exec::DirectPlan broadcast_plan(const plan::Layout& layout, size_t elem) {
  const int n = layout.shape.ranks, root = layout.shape.root;
  const uint64_t bytes = layout.count * elem;
  // Of the ranks but the root, in order from the one behind it.
  auto part = [&](int rank) {
    return part_of_whole(bytes, static_cast<uint64_t>((rank - root - 1 + n) % n), static_cast<uint64_t>(n - 1));
  };
  exec::DirectPlan plan;
  for (int r = 0; r < n; ++r) {
    if (r == layout.rank || r == root) continue;
    const auto [from, size] = part(layout.rank == root ? r : layout.rank);
    if (size > 0) plan.writes.push_back({r, from, from, size, layout.rank == root ? -1 : root});
  }
  for (int r = 0; r < n && layout.rank != root; ++r) {
    if (r != layout.rank && part(r == root ? layout.rank : r).second > 0) plan.expected.push_back(r);
  }
  return plan;
}

// The block that goes from one rank's input to another's output, or the same rank's.
std::optional<uint64_t> block_between(const schedule::Shape& shape, int from, int to) {
  const auto source = static_cast<uint64_t>(from), target = static_cast<uint64_t>(to);
  switch (shape.collective) {
    case Collective::kBroadcast: return from == shape.root ? std::optional<uint64_t>(0) : std::nullopt;
    case Collective::kAllGather: return source;
    case Collective::kGather: return to == shape.root ? std::optional(source) : std::nullopt;
    case Collective::kScatter: return from == shape.root ? std::optional(target) : std::nullopt;
    case Collective::kAllToAll: return source * static_cast<uint64_t>(shape.ranks) + target;
    default: return std::nullopt;
  }
}

}  // namespace

bool only_moves(Collective collective) { return block_between({collective, 2, 0}, 0, 0).has_value(); }

exec::DirectPlan direct_plan(const plan::Layout& layout, size_t elem) {
  if (layout.shape.collective == Collective::kBroadcast) return broadcast_plan(layout, elem);
  exec::DirectPlan plan;
  plan::Layout theirs = layout;
  for (int r = 0; r < layout.shape.ranks; ++r) {
    if (r == layout.rank) continue;
    theirs.rank = r;
    if (const auto b = block_between(layout.shape, layout.rank, r); b && layout.elems_of(*b) > 0) {
      plan.writes.push_back(
          {r, *layout.input_offset(*b) * elem, *theirs.output_offset(*b) * elem, layout.elems_of(*b) * elem});
    }
    if (const auto b = block_between(layout.shape, r, layout.rank); b && layout.elems_of(*b) > 0) {
      plan.expected.push_back(r);
    }
  }
  return plan;
}

OwnBlock own_block(const plan::Layout& layout, size_t elem) {
  const auto b = block_between(layout.shape, layout.rank, layout.rank);
  if (!b) return {};
  return {*layout.input_offset(*b) * elem, *layout.output_offset(*b) * elem, layout.elems_of(*b) * elem};
}

DirectPath::DirectPath(Options options) : options_(std::move(options)), never_(options_.never) {
  exec::Domain& domain = *options_.domain;
  options_.engine->inspect([&] {
    transport::Transport* one = nullptr;
    for (int r = 0; r < domain.size(); ++r) {
      if (r == domain.rank()) continue;
      transport::Transport* to = domain.transport_to(r);
      if (one != nullptr && one != to) mine_ = "more than one transport joins the ranks";
      one = to;
    }
    if (one == nullptr || !mine_.empty()) return;
    transport_ = one->direct();
    if (transport_ == nullptr) mine_ = fmt::format("{} does not reach the memory of devices", one->name());
  });
}

bool DirectPath::never() const {
  const std::lock_guard lock(mutex_);
  return !never_.empty();
}

void DirectPath::give_up(const std::string& why) {
  const std::lock_guard lock(mutex_);
  if (!never_.empty()) return;
  never_ = mine_.empty() ? why : mine_;
  log::info("{}: calls on device memory go through the host: {}", options_.name, never_);
}

// What is still the same memory has the same id.
void DirectPath::forget_freed() {
  std::erase_if(known_, [&](const auto& entry) {
    const auto& [id, known] = entry;
    auto place = device::place_of(known.range.base);
    if (place.ok() && *place) {
      auto now = device::range_of(place->context, known.range.base);
      if (now.ok() && now->id == id) return false;
    }
    options_.engine->inspect([&, gone = id] { transport_->remove(gone); });
    return true;
  });
}

Status DirectPath::add(device::Context context, const device::Range& range) {
  auto exported = device::export_range(context, range);
  if (!exported.ok()) return exported.status();
  Status added;
  options_.engine->inspect([&] {
    added = options_.domain->dead();
    if (added.ok()) added = transport_->add(range.id, exported->base, exported->bytes, exported->file.get());
  });
  return added;
}

std::string DirectPath::why_not(const device::Place& place, const std::byte* memory) {
  if (transport_ == nullptr) return mine_;
  const std::lock_guard lock(mutex_);
  auto context = contexts_.find(place.context);
  if (context == contexts_.end()) {
    context = contexts_.emplace(place.context, device::why_not_exported(place.context)).first;
  }
  if (!context->second.empty()) return context->second;
  auto range = device::range_of(place.context, memory);
  if (!range.ok()) return range.status().message();
  if (known_.contains(range->id)) return "";
  if (auto no = refused_.find(range->id); no != refused_.end()) return no->second;
  forget_freed();
  if (Status s = add(place.context, *range); !s.ok()) {
    log::info("{}: memory of a device is staged: {}", options_.name, s.message());
    if (refused_.size() >= 4096) refused_.clear();
    return refused_[range->id] = s.message();
  }
  known_[range->id] = {place.context, *range};
  return "";
}

exec::Ref<exec::Direct> DirectPath::make(exec::DirectPlan plan, const std::byte* input, std::byte* output,
                                         uint64_t output_bytes) const {
  exec::Ref<exec::Direct> call(new exec::Direct(transport_, std::move(plan), input, output, output_bytes));
  call->domain = options_.domain;
  return call;
}

}  // namespace ringfold::comm
