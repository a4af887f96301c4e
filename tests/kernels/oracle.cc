#include "tests/kernels/oracle.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

namespace ringfold::test {
namespace {

struct Format {
  int fraction_bits;
  int min_exponent;  // of the smallest normal number
  int max_exponent;
};
Format format_of(DataType type) { return type == DataType::kF16 ? Format{10, -14, 15} : Format{7, -126, 127}; }

template <class T>
T load(const void* p, size_t i) {
  T v;
  std::memcpy(&v, static_cast<const unsigned char*>(p) + i * sizeof(T), sizeof(T));
  return v;
}

template <class F>
F fold_two(ReduceKind kind, F a, F b) {
  switch (kind) {
    case ReduceKind::kProd: return a * b;
    case ReduceKind::kMin:
      if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<F>::quiet_NaN();
      if (a == b) return std::signbit(a) ? a : b;
      return a < b ? a : b;
    case ReduceKind::kMax:
      if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<F>::quiet_NaN();
      if (a == b) return std::signbit(a) ? b : a;
      return a > b ? a : b;
    default: return a + b;
  }
}

template <class I>
I fold_two_integers(ReduceKind kind, I a, I b) {
  using Wrap = uint64_t;
  switch (kind) {
    case ReduceKind::kProd: return static_cast<I>(static_cast<Wrap>(a) * static_cast<Wrap>(b));
    case ReduceKind::kMin: return a < b ? a : b;
    case ReduceKind::kMax: return a > b ? a : b;
    default: return static_cast<I>(static_cast<Wrap>(a) + static_cast<Wrap>(b));
  }
}

template <class F>
F quiet(F v) {
  return std::isnan(v) ? std::numeric_limits<F>::quiet_NaN() : v;
}

template <class F, class Read, class Write>
void fold_floats(ReduceKind kind, bool scaled, size_t inputs, size_t elems, double factor, Read read, Write write) {
  for (size_t i = 0; i < elems; ++i) {
    F acc = read(0, i);
    for (size_t k = 1; k < inputs; ++k) acc = fold_two<F>(kind, acc, read(k, i));
    if (scaled) acc *= static_cast<F>(factor);
    write(i, quiet(acc));
  }
}

template <class T>
void fold_typed(ReduceKind kind, bool complete, const std::vector<const void*>& in, size_t elems,
                const kernels::Post& post, unsigned char* out) {
  if constexpr (std::is_floating_point_v<T>) {
    const bool scaled = complete && (kind == ReduceKind::kAvg || kind == ReduceKind::kScaledSum);
    fold_floats<T>(
        kind, scaled, in.size(), elems, post.factor, [&](size_t k, size_t i) { return load<T>(in[k], i); },
        [&](size_t i, T v) { std::memcpy(out + i * sizeof(T), &v, sizeof(T)); });
  } else {
    for (size_t i = 0; i < elems; ++i) {
      T acc = load<T>(in[0], i);
      for (size_t k = 1; k < in.size(); ++k) acc = fold_two_integers<T>(kind, acc, load<T>(in[k], i));
      if (complete && kind == ReduceKind::kAvg)
        acc = static_cast<T>(acc /
                             static_cast<std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>(post.divisor));
      std::memcpy(out + i * sizeof(T), &acc, sizeof(T));
    }
  }
}

}  // namespace

double value_of_half(DataType type, uint16_t bits) {
  const Format f = format_of(type);
  const int fraction = bits & ((1 << f.fraction_bits) - 1);
  const int exponent = (bits & 0x7FFF) >> f.fraction_bits;
  double size;
  if (exponent > f.max_exponent - f.min_exponent + 1) {
    size = fraction != 0 ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
  } else if (exponent == 0) {
    size = std::ldexp(fraction, f.min_exponent - f.fraction_bits);
  } else {
    size = std::ldexp((1 << f.fraction_bits) + fraction, exponent - 1 + f.min_exponent - f.fraction_bits);
  }
  return (bits & 0x8000) != 0 ? -size : size;
}

uint16_t round_to_half(DataType type, double value) {
  const Format f = format_of(type);
  const auto infinity = static_cast<uint16_t>((f.max_exponent - f.min_exponent + 2) << f.fraction_bits);
  if (std::isnan(value)) return static_cast<uint16_t>(infinity | (1 << (f.fraction_bits - 1)));
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double size = std::fabs(value);
  if (size == 0) return sign;
  if (std::isinf(size)) return sign | infinity;
  // In units of the last place the nearest even integer is the fraction, with the leading one if it is normal, so it
  // adds to an exponent field that is one lower; rounding up to the next power of two carries into it.
  const int exponent = std::max(std::ilogb(size), f.min_exponent);
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(size, f.fraction_bits - exponent)));
  const int bits = ((exponent - f.min_exponent) << f.fraction_bits) + units;
  return sign | (bits < infinity ? static_cast<uint16_t>(bits) : infinity);
}

std::vector<unsigned char> expected(DataType type, ReduceKind kind, bool complete, const std::vector<const void*>& in,
                                    size_t elems, const kernels::Post& post) {
  std::vector<unsigned char> out(elems * size_of(type));
  const bool scaled = complete && (kind == ReduceKind::kAvg || kind == ReduceKind::kScaledSum);
  const bool divided = scaled && !is_float(type);
  if (in.size() == 1 && !scaled && !divided) {
    if (!out.empty()) std::memcpy(out.data(), in[0], out.size());
    return out;
  }
  switch (type) {
    case DataType::kF64: fold_typed<double>(kind, complete, in, elems, post, out.data()); break;
    case DataType::kF32: fold_typed<float>(kind, complete, in, elems, post, out.data()); break;
    case DataType::kF16:
    case DataType::kBF16:
      fold_floats<float>(
          kind, scaled, in.size(), elems, post.factor,
          [&](size_t k, size_t i) { return static_cast<float>(value_of_half(type, load<uint16_t>(in[k], i))); },
          [&](size_t i, float v) {
            const uint16_t bits = round_to_half(type, v);
            std::memcpy(out.data() + 2 * i, &bits, 2);
          });
      break;
    case DataType::kI8: fold_typed<int8_t>(kind, complete, in, elems, post, out.data()); break;
    case DataType::kU8: fold_typed<uint8_t>(kind, complete, in, elems, post, out.data()); break;
    case DataType::kI32: fold_typed<int32_t>(kind, complete, in, elems, post, out.data()); break;
    case DataType::kU32: fold_typed<uint32_t>(kind, complete, in, elems, post, out.data()); break;
    case DataType::kI64: fold_typed<int64_t>(kind, complete, in, elems, post, out.data()); break;
    case DataType::kU64: fold_typed<uint64_t>(kind, complete, in, elems, post, out.data()); break;
  }
  return out;
}

}  // namespace ringfold::test
