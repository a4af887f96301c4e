// Element types, reductions and the small value types of Ringfold's public interface.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#define RINGFOLD_API [[gnu::visibility("default")]]

namespace ringfold {

enum class DataType : uint8_t { kF64, kF32, kF16, kBF16, kI8, kU8, kI32, kU32, kI64, kU64 };
inline constexpr int kDataTypes = 10;

// Bytes of one element.
constexpr size_t size_of(DataType type) {
  switch (type) {
    case DataType::kF64:
    case DataType::kI64:
    case DataType::kU64: return 8;
    case DataType::kF32:
    case DataType::kI32:
    case DataType::kU32: return 4;
    case DataType::kF16:
    case DataType::kBF16: return 2;
    case DataType::kI8:
    case DataType::kU8: return 1;
  }
  return 0;
}

constexpr bool is_float(DataType type) { return type <= DataType::kBF16; }

// How contributions x_0 .. x_{n-1} become one value. Integers wrap; min and max of floats return NaN when any
// input is NaN; kAvg divides the complete sum by n (floats: times 1/n; integers: truncating division of the
// wrapped sum); kScaledSum multiplies the complete sum by ReduceOp::scale (floating types only).
enum class ReduceKind : uint8_t { kSum, kProd, kMin, kMax, kAvg, kScaledSum };
inline constexpr int kReduceKinds = 6;

struct ReduceOp {
  ReduceKind kind = ReduceKind::kSum;
  double scale = 1.0;  // kScaledSum only; the same on all ranks

  constexpr ReduceOp() = default;
  constexpr ReduceOp(ReduceKind k) : kind(k) {}  // NOLINT: a kind is an operation
  static constexpr ReduceOp scaled_sum(double factor) {
    ReduceOp op(ReduceKind::kScaledSum);
    op.scale = factor;
    return op;
  }
  friend constexpr bool operator==(const ReduceOp&, const ReduceOp&) = default;
};
inline constexpr ReduceOp kSum{ReduceKind::kSum}, kProd{ReduceKind::kProd}, kMin{ReduceKind::kMin},
    kMax{ReduceKind::kMax}, kAvg{ReduceKind::kAvg};

enum class Collective : uint8_t {
  kAllReduce,
  kReduce,
  kReduceScatter,
  kAllGather,
  kBroadcast,
  kGather,
  kScatter,
  kAllToAll,
  kBarrier,
};
inline constexpr int kCollectives = 9;

constexpr bool reduces(Collective c) {
  return c == Collective::kAllReduce || c == Collective::kReduce || c == Collective::kReduceScatter;
}
constexpr bool has_root(Collective c) {
  return c == Collective::kReduce || c == Collective::kBroadcast || c == Collective::kGather ||
         c == Collective::kScatter;
}

// Names as users write them ("f32", "scaled_sum", "all_reduce"), and back; parsing an unknown name gives nullopt.
RINGFOLD_API std::string_view name_of(DataType type);
RINGFOLD_API std::string_view name_of(ReduceKind kind);
RINGFOLD_API std::string_view name_of(Collective collective);
RINGFOLD_API std::optional<DataType> parse_data_type(std::string_view name);
RINGFOLD_API std::optional<ReduceKind> parse_reduce_kind(std::string_view name);
RINGFOLD_API std::optional<Collective> parse_collective(std::string_view name);

}  // namespace ringfold
