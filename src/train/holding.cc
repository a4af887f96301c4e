#include "train/holding.h"

#include <algorithm>
#include <optional>
#include <span>
#include <string_view>

namespace ringfold::train {
namespace {

// `name` without `suffix`; nothing: it has none.
std::optional<std::string> without(const std::string& name, std::string_view suffix) {
  if (!name.ends_with(suffix)) return std::nullopt;
  return name.substr(0, name.size() - suffix.size());
}

// What [from, from + elems) and a piece that begins at `begin` have in common goes to `to` onwards.
void add_common(sync::State& state, const std::string& name, size_t begin, std::span<const float> piece, size_t from,
                size_t to, size_t elems) {
  const size_t first = std::max(begin, from), end = std::min(begin + piece.size(), from + elems);
  if (first < end) state.add(name, to + (first - from), piece.subspan(first - begin, end - first));
}

}  // namespace

sync::State Holding::to_file(const sync::State& own) const {
  sync::State state;
  state.numbers = own.numbers;
  for (const auto& [name, bytes] : own.blobs) state.blobs[name + place] = bytes;
  own.for_each([&](const std::string& name, size_t begin, std::span<const float> piece) {
    for (const Range& r : ranges) add_common(state, name + part, begin, piece, r.own, r.model, r.elems);
  });
  return state;
}

sync::State Holding::from_files(const sync::State& all) const {
  sync::State state;
  state.numbers = all.numbers;
  for (const auto& [name, bytes] : all.blobs) {
    if (const auto own = without(name, place)) state.blobs[*own] = bytes;
  }
  all.for_each([&](const std::string& name, size_t begin, std::span<const float> piece) {
    const auto own = without(name, part);
    if (!own) return;
    for (const Range& r : ranges) add_common(state, *own, begin, piece, r.model, r.own, r.elems);
  });
  return state;
}

}  // namespace ringfold::train
