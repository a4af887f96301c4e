#include "tools/cli/perf/pattern.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

namespace ringfold::cli {
namespace {

constexpr uint64_t mix(uint64_t x) {
  x *= 0x9e3779b97f4a7c15u;
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93u;
  return x ^ (x >> 32);
}

constexpr size_t kind_of(uint64_t position) { return mix(position + 1) >> 56; }

// To nearest even, as the hardware rounds; the values here are finite and in range.
uint16_t to_f16(float value) {
  if (value == 0) return std::signbit(value) ? 0x8000 : 0;
  const int exponent = std::max(std::ilogb(value), -14);
  const float units =
      std::nearbyint(std::ldexp(std::fabs(value), 10 - exponent));  // 1024 to 2048, less for subnormals
  const auto bits = static_cast<uint32_t>((exponent + 14) << 10) + static_cast<uint32_t>(units);
  return static_cast<uint16_t>(bits | (std::signbit(value) ? 0x8000u : 0));
}
uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

uint64_t bits_of(DataType type, double value) {
  switch (type) {
    case DataType::kF64: return std::bit_cast<uint64_t>(value);
    case DataType::kF32: return std::bit_cast<uint32_t>(static_cast<float>(value));
    case DataType::kF16: return to_f16(static_cast<float>(value));
    case DataType::kBF16: return to_bf16(static_cast<float>(value));
    default: break;
  }
  const auto whole = static_cast<uint64_t>(static_cast<int64_t>(value));
  const size_t bits = 8 * size_of(type);
  return bits == 64 ? whole : whole & ((uint64_t{1} << bits) - 1);
}

bool is_signed(DataType type) {
  return is_float(type) || type == DataType::kI8 || type == DataType::kI32 || type == DataType::kI64;
}

// Up to which whole numbers are exact; integers wrap, so any is.
double exact_limit(DataType type) {
  switch (type) {
    case DataType::kBF16: return 256;
    case DataType::kF16: return 2048;
    default: return 1 << 24;
  }
}

// Rank r's contribution of kind v.
double contribution(DataType type, ReduceKind kind, int ranks, int rank, size_t v) {
  const uint64_t random = mix(v * 65537 + static_cast<uint64_t>(rank) * 0x51ed27 + 99);
  const double limit = exact_limit(type);
  switch (kind) {
    case ReduceKind::kSum:
    case ReduceKind::kAvg:
    case ReduceKind::kScaledSum: {
      const auto most = static_cast<uint64_t>(std::clamp(limit / ranks, 1.0, 100.0));
      return rank < limit ? static_cast<double>(random % (most + 1)) : 0;
    }
    case ReduceKind::kProd: {  // at most 6 twos, at ranks that depend on v
      const auto start = static_cast<uint64_t>(mix(v)) % static_cast<uint64_t>(ranks);
      const auto distance = (static_cast<uint64_t>(rank) + start) % static_cast<uint64_t>(ranks);
      return distance < v % 7 ? 2 : 1;
    }
    case ReduceKind::kMin:
    case ReduceKind::kMax: return static_cast<double>(random % 120) - (is_signed(type) ? 60 : 0);
  }
  return 0;
}

double fold(ReduceKind kind, double a, double b) {
  switch (kind) {
    case ReduceKind::kProd: return a * b;
    case ReduceKind::kMin: return std::min(a, b);
    case ReduceKind::kMax: return std::max(a, b);
    default: return a + b;
  }
}

// The definition in types.h, on a complete sum that is exact in the type.
double finish(DataType type, ReduceOp op, int ranks, double sum) {
  if (op.kind != ReduceKind::kAvg && op.kind != ReduceKind::kScaledSum) return sum;
  if (!is_float(type)) {  // i8 and u8 wrap before they are divided
    auto whole = static_cast<int64_t>(sum);
    if (type == DataType::kI8) whole = static_cast<int8_t>(whole);
    if (type == DataType::kU8) whole = static_cast<uint8_t>(whole);
    return static_cast<double>(whole / ranks);
  }
  const double factor = op.kind == ReduceKind::kAvg ? 1.0 / ranks : op.scale;
  return type == DataType::kF64 ? sum * factor : static_cast<float>(sum) * static_cast<float>(factor);
}

template <typename Visit>
auto with_word(size_t width, const Visit& visit) {
  switch (width) {
    case 1: return visit(uint8_t{});
    case 2: return visit(uint16_t{});
    case 4: return visit(uint32_t{});
    default: return visit(uint64_t{});
  }
}

template <typename Word>
std::array<Word, 256> narrow(const Table& table, Word flip) {
  std::array<Word, 256> result;  // NOLINT: all of it is set
  for (size_t v = 0; v < result.size(); ++v) result[v] = static_cast<Word>(static_cast<Word>(table[v]) ^ flip);
  return result;
}

void write(void* data, size_t elems, size_t width, const Table& table, size_t from, bool flip) {
  with_word(width, [&](auto word) {
    using Word = decltype(word);
    const auto values = narrow<Word>(table, flip ? static_cast<Word>(~Word{0}) : Word{0});
    auto* out = static_cast<Word*>(data);
    for (size_t k = 0; k < elems; ++k) out[k] = values[kind_of(from + k)];
  });
}

}  // namespace

Pattern::Pattern(DataType type, ReduceOp op, bool reduced, int ranks, double error)
    : width_(size_of(type)), tables_(static_cast<size_t>(ranks)) {
  for (size_t v = 0; v < reduced_.size(); ++v) {
    double total = 0;
    for (int r = 0; r < ranks; ++r) {
      auto& cell = tables_[static_cast<size_t>(r)][v];
      if (!reduced) {
        cell = mix(v * 1000003 + static_cast<uint64_t>(r));
        continue;
      }
      const double value = contribution(type, op.kind, ranks, r, v);
      cell = bits_of(type, value);
      total = r == 0 ? value : fold(op.kind, total, value);
    }
    if (reduced) reduced_[v] = bits_of(type, finish(type, op, ranks, total));
  }
  if (!reduced || type != DataType::kF32 || error <= 0) return;
  // Each rank's values are encoded once, and so is their sum with those errors; a block's largest value is at most
  // 100 here.
  tolerance_ = finish(type, op, ranks, 100.0 * ranks) * (error + (1 + error) * error);
}

void Pattern::fill(void* data, size_t elems, int source, size_t from) const {
  write(data, elems, width_, table(source), from, false);
}

void Pattern::poison(void* data, size_t elems, int source, size_t from) const {
  write(data, elems, width_, table(source), from, true);
}

size_t Pattern::wrong(const void* data, size_t elems, int source, size_t from) const {
  if (tolerance_ != 0) {
    const auto* in = static_cast<const float*>(data);
    size_t count = 0;
    for (size_t k = 0; k < elems; ++k) {
      const auto right = std::bit_cast<float>(static_cast<uint32_t>(table(source)[kind_of(from + k)]));
      count += !(std::fabs(in[k] - right) <= std::fabs(tolerance_));
    }
    return count;
  }
  return with_word(width_, [&](auto word) {
    using Word = decltype(word);
    const auto values = narrow<Word>(table(source), Word{0});
    const auto* in = static_cast<const Word*>(data);
    size_t count = 0;
    for (size_t k = 0; k < elems; ++k) count += in[k] != values[kind_of(from + k)];
    return count;
  });
}

}  // namespace ringfold::cli
