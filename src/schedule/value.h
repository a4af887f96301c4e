// What a cell holds while a schedule (or a lowered program) is checked: not numbers, but who is in it and how.
#pragma once

#include <algorithm>
#include <cstdint>

namespace ringfold::schedule {

constexpr uint64_t mix(uint64_t x) {  // a bijection that spreads every bit (splitmix64's finaliser)
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// A symbolic value. `sum` adds random 64-bit contributions: it is right only if each is in once. `expression` hashes
// the expression with its order, brackets and codings: equal hashes mean bitwise equal results for any operation and
// any deterministic codec. Empty (all zero) until something is written.
struct Value {
  uint64_t sum = 0;
  uint64_t expression = 0;
  uint16_t first = 0;    // lowest contribution of an ordered value
  uint16_t count = 0;    // contributions; 0: the cell holds nothing
  uint16_t depth = 0;    // most codings on the way of any contribution into this value
  bool ordered = false;  // a single contribution, or ((x_first + x_{first+1}) + ...)
  bool coded = false;    // decoded from a message and unchanged since: coding it again changes nothing

  bool empty() const { return count == 0; }
  // Is this the fold of all `ranks` contributions in rank order?
  bool canonical(int ranks) const { return ordered && first == 0 && count == ranks; }
};
static_assert(sizeof(Value) == 24);

// The contribution of `rank` to `chunk`.
constexpr Value contribution(uint64_t seed, int rank, uint64_t chunk) {
  const uint64_t key = mix(seed ^ (chunk << 20) ^ static_cast<uint64_t>(rank));
  return {.sum = key, .expression = mix(key), .first = static_cast<uint16_t>(rank), .count = 1, .ordered = true};
}

// left + right, in this order.
constexpr Value fold(const Value& left, const Value& right) {
  return {.sum = left.sum + right.sum,
          .expression = mix(left.expression * 3 + mix(right.expression)),
          .first = left.first,
          .count = static_cast<uint16_t>(left.count + right.count),
          .depth = std::max(left.depth, right.depth),
          .ordered = left.ordered && right.count == 1 && right.first == left.first + left.count,
          .coded = false};
}

// What both ends of a message hold when it is sent through a lossy codec: the sender uses the decoded value, too.
constexpr Value code(Value value) {
  if (value.coded || value.empty()) return value;
  value.expression = mix(~value.expression);
  ++value.depth;
  value.coded = true;
  return value;
}

// In a barrier a value is a set of ranks, 64 of which are looked at at once.
constexpr Value arrival(int rank, int window) {
  const bool inside = rank / 64 == window;
  return {.sum = inside ? uint64_t{1} << (rank % 64) : 0, .count = 1};
}
constexpr Value unite(const Value& a, const Value& b) { return {.sum = a.sum | b.sum, .count = 1}; }

}  // namespace ringfold::schedule
