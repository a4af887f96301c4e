#include "ringfold/types.h"

#include <array>

namespace ringfold {
namespace {

constexpr std::array<std::string_view, kDataTypes> kTypeNames = {"f64", "f32", "f16", "bf16", "i8",
                                                                 "u8",  "i32", "u32", "i64",  "u64"};
constexpr std::array<std::string_view, kReduceKinds> kOpNames = {"sum", "prod", "min", "max", "avg", "scaled_sum"};
constexpr std::array<std::string_view, kCollectives> kCollectiveNames = {
    "all_reduce", "reduce", "reduce_scatter", "all_gather", "broadcast", "gather", "scatter", "all_to_all", "barrier"};

template <typename E, size_t N>
std::optional<E> parse(const std::array<std::string_view, N>& names, std::string_view name) {
  for (size_t i = 0; i < N; ++i) {
    if (names[i] == name) return static_cast<E>(i);
  }
  return std::nullopt;
}

}  // namespace

std::string_view name_of(DataType type) { return kTypeNames[static_cast<size_t>(type)]; }
std::string_view name_of(ReduceKind kind) { return kOpNames[static_cast<size_t>(kind)]; }
std::string_view name_of(Collective collective) { return kCollectiveNames[static_cast<size_t>(collective)]; }
std::optional<DataType> parse_data_type(std::string_view name) { return parse<DataType>(kTypeNames, name); }
std::optional<ReduceKind> parse_reduce_kind(std::string_view name) { return parse<ReduceKind>(kOpNames, name); }
std::optional<Collective> parse_collective(std::string_view name) { return parse<Collective>(kCollectiveNames, name); }

}  // namespace ringfold
