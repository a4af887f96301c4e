#include "tests/kernels/codec_oracle.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "tests/kernels/oracle.h"

namespace ringfold::test {
namespace {

using kernels::Draw;

constexpr size_t kOracleGroup = Codec::kGroup;
const float kNaN = std::bit_cast<float>(0x7FC00000u);

// --- numbers

struct Small {
  int exponent_bits, mantissa_bits;
  unsigned largest;  // code; those above are NaN
};
constexpr Small kE4M3Format{4, 3, 0x7E}, kE5M2Format{5, 2, 0x7B}, kE2M1Format{2, 1, 7};

double small_value(const Small& f, unsigned code) {
  const unsigned sign = code >> (f.exponent_bits + f.mantissa_bits),
                 size = code & ((1u << (f.exponent_bits + f.mantissa_bits)) - 1);
  if (size > f.largest) return std::numeric_limits<double>::quiet_NaN();
  const int bias = (1 << (f.exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(size >> f.mantissa_bits);
  const double fraction = std::ldexp(size & ((1u << f.mantissa_bits) - 1), -f.mantissa_bits);
  const double value = exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
  return sign != 0 ? -value : value;
}

// The nearest of all numbers of the format; of two, the one with the even code.
unsigned small_code(const Small& f, float v) {
  unsigned best = 0;
  double distance = std::numeric_limits<double>::infinity();
  for (unsigned code = 0; code <= f.largest; ++code) {
    const double d = std::fabs(small_value(f, code) - std::fabs(static_cast<double>(v)));
    if (d < distance || (d == distance && code % 2 == 0)) best = code, distance = d;
  }
  return best | (std::signbit(v) ? 1u << (f.exponent_bits + f.mantissa_bits) : 0u);
}

float bf16_value(unsigned bits) {
  const auto v = static_cast<float>(value_of_half(DataType::kBF16, static_cast<uint16_t>(bits)));
  return std::isfinite(v) ? v : kNaN;
}

// The least bf16 that is not below v (> 0); 0 unless that is normal.
unsigned bf16_up(float v) {
  unsigned bits = std::bit_cast<uint32_t>(v) >> 16;
  if (value_of_half(DataType::kBF16, static_cast<uint16_t>(bits)) < v) ++bits;
  return bits < 0x80 ? 0 : bits;
}

unsigned bf16_near(float v) {
  if (!std::isfinite(v)) return 0x7F7F;
  const unsigned bits = round_to_half(DataType::kBF16, v);
  return bits < 0x80 ? 0 : std::min(bits, 0x7F7Fu);
}

// --- bytes

void put(Bytes& to, const void* from, size_t bytes) {
  const auto* p = static_cast<const std::byte*>(from);
  to.insert(to.end(), p, p + bytes);
}
void put16(Bytes& to, unsigned v) {
  to.push_back(static_cast<std::byte>(v & 255));
  to.push_back(static_cast<std::byte>(v >> 8));
}
void put8(Bytes& to, unsigned v) { to.push_back(static_cast<std::byte>(v)); }

// A plane of `bits` bits of each code, from bit `from` of the codes on.
void put_plane(Bytes& to, const std::vector<unsigned>& codes, int bits, int from) {
  const size_t words = codes.size() * bits / 32;
  std::vector<uint32_t> plane(words);
  for (size_t i = 0; i < codes.size(); ++i) {
    plane[i % words] |= (codes[i] >> from & ((1u << bits) - 1)) << (bits * (i / words));
  }
  for (uint32_t word : plane) {
    put16(to, word & 0xFFFF);
    put16(to, word >> 16);
  }
}

class Reader {
 public:
  explicit Reader(const Bytes& from) : from_(from) {}
  unsigned get8() { return static_cast<unsigned>(from_.at(at_++)); }
  unsigned get16() {
    const unsigned low = get8();
    return low | get8() << 8;
  }
  uint32_t get32() {
    const uint32_t low = get16();
    return low | get16() << 16;
  }
  float get_float() { return std::bit_cast<float>(get32()); }
  void add_plane(std::vector<unsigned>& codes, int bits, int from) {
    const size_t words = codes.size() * bits / 32;
    std::vector<uint32_t> plane(words);
    for (auto& word : plane) word = get32();
    for (size_t i = 0; i < codes.size(); ++i) {
      codes[i] |= (plane[i % words] >> (bits * (i / words)) & ((1u << bits) - 1)) << from;
    }
  }

 private:
  const Bytes& from_;
  size_t at_ = 0;
};

// --- formats of blocks

int code_bits(CodecKind kind) {
  switch (kind) {
    case CodecKind::kInt8:
    case CodecKind::kE4M3:
    case CodecKind::kE5M2:
    case CodecKind::kMXFP8: return 8;
    case CodecKind::kInt6: return 6;
    case CodecKind::kInt5: return 5;
    case CodecKind::kInt4:
    case CodecKind::kMXFP4:
    case CodecKind::kNVFP4: return 4;
    case CodecKind::kTernary: return 2;
    default: return 1;
  }
}
bool is_int(CodecKind kind) { return kind >= CodecKind::kInt8 && kind <= CodecKind::kInt4; }
size_t block_of(CodecKind kind) {
  if (kind == CodecKind::kNVFP4) return 16;
  return kind == CodecKind::kSign || kind == CodecKind::kTernary ? 128 : 32;
}
const Small* small_of(CodecKind kind) {
  switch (kind) {
    case CodecKind::kE4M3:
    case CodecKind::kMXFP8: return &kE4M3Format;
    case CodecKind::kE5M2: return &kE5M2Format;
    case CodecKind::kMXFP4:
    case CodecKind::kNVFP4: return &kE2M1Format;
    default: return nullptr;
  }
}

// Largest code of a plane of lower bits, as the formats split them.
int lower_bits(int bits) { return bits == 5 || bits == 6 ? 4 : bits; }

uint32_t random_word(uint64_t key, uint64_t counter, int word) {
  uint32_t x[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0};
  uint32_t k[2] = {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t p = uint64_t{0xD2511F53} * x[0], q = uint64_t{0xCD9E8D57} * x[2];
    const uint32_t next[4] = {static_cast<uint32_t>(q >> 32) ^ x[1] ^ k[0], static_cast<uint32_t>(q),
                              static_cast<uint32_t>(p >> 32) ^ x[3] ^ k[1], static_cast<uint32_t>(p)};
    std::copy(next, next + 4, x);
    k[0] += 0x9E3779B9;
    k[1] += 0xBB67AE85;
  }
  return x[word];
}

float uniform(const Draw& draw, uint64_t i) {
  const uint64_t at = draw.first + i;
  const uint32_t word = random_word(draw.key, at / 8, static_cast<int>(at % 8 / 2));
  const uint32_t bits = at % 2 != 0 ? word >> 16 : word & 0xFFFF;
  return static_cast<float>((bits + 0.5) / 65536);
}

void rotate(float* x, bool back) {
  constexpr uint32_t kSigns = 0x6A09E667;
  for (int i = 0; i < 32 && !back; ++i) x[i] = kSigns >> i & 1 ? -x[i] : x[i];
  for (int stride = 16; stride > 0; stride /= 2) {
    for (int i = 0; i < 32; ++i) {
      if (i & stride) continue;
      const float a = x[i], b = x[i + stride];
      x[i] = a + b;
      x[i + stride] = a - b;
    }
  }
  for (int i = 0; i < 32 && back; ++i) x[i] = (kSigns >> i & 1 ? -x[i] : x[i]) / 32;
}

float sum_by_halves(std::vector<float> v) {
  for (size_t half = v.size() / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) v[i] = v[i] + v[i + half];
  }
  return v[0];
}

// The head of a group and the code of each of its elements, which are padded with zeros to whole runs of 32.
struct Group {
  Bytes head;
  std::vector<unsigned> codes;
};

void encode_block(const Codec& codec, const float* x, size_t count, size_t padded, float nvfp4_group,
                  const Draw& draw, uint64_t first, Group& group) {
  const size_t full = block_of(codec.kind);
  float largest = 0;
  bool finite = true;
  for (size_t i = 0; i < padded; ++i) {
    finite &= std::isfinite(x[i]) != 0;
    largest = std::max(largest, std::fabs(x[i]));
  }
  const Small* small = small_of(codec.kind);
  const int bits = code_bits(codec.kind);
  if (is_int(codec.kind) || codec.kind == CodecKind::kE4M3 || codec.kind == CodecKind::kE5M2) {
    const float most = is_int(codec.kind) ? static_cast<float>((1 << (bits - 1)) - 1)
                                          : static_cast<float>(small_value(*small, small->largest));
    const unsigned scale = finite ? bf16_up(largest * (1.0f / most)) : 0x7FC0;
    put16(group.head, scale);
    const float inverse = finite && scale != 0 ? 1.0f / bf16_value(scale) : 0;
    for (size_t i = 0; i < padded; ++i) {
      const float y = inverse == 0 ? 0 : x[i] * inverse;
      if (small != nullptr) {
        group.codes.push_back(finite ? small_code(*small, inverse == 0 ? std::copysign(0.0f, x[i]) : y) : 0);
        continue;
      }
      float r = codec.rounding == Rounding::kNearest ? std::nearbyint(y) : std::floor(y + uniform(draw, first + i));
      r = std::clamp(r, -most, most);
      group.codes.push_back(static_cast<unsigned>(static_cast<int>(r)) & ((1u << bits) - 1));
    }
  } else if (codec.kind == CodecKind::kMXFP8 || codec.kind == CodecKind::kMXFP4) {
    const int emax = codec.kind == CodecKind::kMXFP8 ? 8 : 2;
    const int exponent = largest < 0x1p-126f ? -126 : std::max(std::ilogb(largest) - emax, -126);
    put8(group.head, finite ? static_cast<unsigned>(exponent + 127) : 255);
    for (size_t i = 0; i < padded; ++i) {
      group.codes.push_back(finite ? small_code(*small, x[i] * std::ldexp(1.0f, -exponent)) : 0);
    }
  } else if (codec.kind == CodecKind::kNVFP4) {
    const float wanted = finite && nvfp4_group != 0 ? largest * (1.0f / 6) * (1 / nvfp4_group) : 0;
    unsigned code = small_code(kE4M3Format, wanted);
    const float scale = static_cast<float>(small_value(kE4M3Format, code)) * nvfp4_group;
    if (scale < 0x1p-126f) code = 0;
    const float inverse = code == 0 ? 0 : 1 / scale;
    put8(group.head, finite ? code : 0x7F);
    for (size_t i = 0; i < padded; ++i) group.codes.push_back(finite ? small_code(*small, x[i] * inverse) : 0);
  } else {
    std::vector<float> sizes(full);
    for (size_t i = 0; i < padded; ++i) sizes[i] = std::fabs(x[i]);
    const float mean = sum_by_halves(sizes) / static_cast<float>(count);
    if (codec.kind == CodecKind::kSign) {
      put16(group.head, finite ? bf16_near(mean) : 0x7FC0);
      for (size_t i = 0; i < padded; ++i) group.codes.push_back(finite && std::signbit(x[i]) ? 1 : 0);
      return;
    }
    const float threshold = mean * 0.7f;
    int counted = 0;
    for (float& size : sizes) {
      counted += size > threshold ? 1 : 0;
      size = size > threshold ? size : 0;
    }
    const float magnitude = sum_by_halves(sizes) / static_cast<float>(std::max(counted, 1));
    put16(group.head, finite ? bf16_near(magnitude) : 0x7FC0);
    for (size_t i = 0; i < padded; ++i) {
      const bool counts = finite && std::fabs(x[i]) > threshold;
      group.codes.push_back(!counts ? 0 : std::signbit(x[i]) ? 3 : 1);
    }
  }
}

void encode_group(const Codec& codec, const float* values, size_t n, const Draw& draw, uint64_t first, Bytes& to) {
  const size_t padded = (n + 31) / 32 * 32, block = block_of(codec.kind);
  std::vector<float> x(values, values + n);
  x.resize(padded);
  for (size_t i = 0; i < padded && codec.rotate; i += 32) rotate(&x[i], false);
  Group group;
  float nvfp4_group = 0;
  if (codec.kind == CodecKind::kNVFP4) {
    for (size_t b = 0; b < padded; b += 16) {
      float largest = 0;
      bool finite = true;
      for (size_t i = b; i < b + 16; ++i) {
        finite &= std::isfinite(x[i]) != 0;
        largest = std::max(largest, std::fabs(x[i]));
      }
      if (finite) nvfp4_group = std::max(nvfp4_group, largest);
    }
    nvfp4_group = nvfp4_group * (1.0f / (448 * 6));
    if (nvfp4_group < 0x1p-126f) nvfp4_group = 0;
    put(group.head, &nvfp4_group, 4);
  }
  for (size_t b = 0; b < padded; b += block) {
    const size_t count = b < n ? std::min(block, n - b) : 1;
    encode_block(codec, &x[b], count, std::min(block, padded - b), nvfp4_group, draw, first + b, group);
  }
  put(to, group.head.data(), group.head.size());
  const int bits = code_bits(codec.kind), lower = lower_bits(bits);
  put_plane(to, group.codes, lower, 0);
  if (bits != lower) put_plane(to, group.codes, bits - lower, lower);
}

size_t kept(const Codec& codec, size_t n) {
  return static_cast<size_t>(std::ceil(static_cast<double>(codec.keep) * static_cast<double>(n) / kOracleGroup));
}

void encode_top(const Codec& codec, const float* x, size_t n, Bytes& to) {
  std::vector<uint16_t> order(n);
  for (size_t i = 0; i < n; ++i) order[i] = static_cast<uint16_t>(i);
  const auto size = [&](uint16_t i) { return std::bit_cast<uint32_t>(std::fabs(x[i])); };
  std::stable_sort(order.begin(), order.end(), [&](uint16_t a, uint16_t b) { return size(a) > size(b); });
  order.resize(kept(codec, n));
  std::sort(order.begin(), order.end());
  for (uint16_t i : order) put16(to, i);
  for (uint16_t i : order) put(to, x + i, 4);
}

void decode_group(const Codec& codec, Reader& from, size_t n, float* out) {
  const size_t padded = (n + 31) / 32 * 32, block = block_of(codec.kind);
  const int bits = code_bits(codec.kind), lower = lower_bits(bits);
  const float group = codec.kind == CodecKind::kNVFP4 ? from.get_float() : 0;
  std::vector<float> scales;
  for (size_t b = 0; b < padded; b += block) {
    if (codec.kind == CodecKind::kMXFP8 || codec.kind == CodecKind::kMXFP4) {
      const int scale = static_cast<int>(from.get8());
      scales.push_back(scale == 255 ? kNaN : std::ldexp(1.0f, scale - 127));
    } else if (codec.kind == CodecKind::kNVFP4) {
      const float scale = static_cast<float>(small_value(kE4M3Format, from.get8())) * group;
      scales.push_back(std::isfinite(scale) ? scale : kNaN);
    } else {
      scales.push_back(bf16_value(from.get16()));
    }
  }
  std::vector<unsigned> codes(padded);
  from.add_plane(codes, lower, 0);
  if (bits != lower) from.add_plane(codes, bits - lower, lower);
  std::vector<float> x(padded);
  for (size_t i = 0; i < padded; ++i) {
    float v;
    if (const Small* small = small_of(codec.kind)) {
      v = static_cast<float>(small_value(*small, codes[i]));
    } else if (codec.kind == CodecKind::kSign) {
      v = codes[i] != 0 ? -1 : 1;
    } else {
      const int top = 1 << (bits - 1), code = static_cast<int>(codes[i]);
      v = static_cast<float>(code >= top ? code - 2 * top : code);
    }
    x[i] = v * scales[i / block];
  }
  for (size_t i = 0; i < padded && codec.rotate; i += 32) rotate(&x[i], true);
  for (size_t i = 0; i < n; ++i) out[i] = std::isnan(x[i]) ? kNaN : x[i];
}

}  // namespace

Bytes expected_code(const Codec& codec, const std::vector<float>& values, const Draw& draw) {
  Bytes code;
  for (size_t at = 0; at < values.size(); at += kOracleGroup) {
    const size_t n = std::min(kOracleGroup, values.size() - at);
    if (codec.kind == CodecKind::kF16 || codec.kind == CodecKind::kBF16) {
      const auto type = codec.kind == CodecKind::kF16 ? DataType::kF16 : DataType::kBF16;
      for (size_t i = 0; i < n; ++i) put16(code, round_to_half(type, values[at + i]));
    } else if (codec.kind == CodecKind::kTopK) {
      encode_top(codec, &values[at], n, code);
    } else {
      encode_group(codec, &values[at], n, draw, at, code);
    }
  }
  return code;
}

std::vector<float> expected_values(const Codec& codec, const Bytes& code, size_t elems) {
  std::vector<float> values(elems);
  Reader from(code);
  for (size_t at = 0; at < elems; at += kOracleGroup) {
    const size_t n = std::min(kOracleGroup, elems - at);
    if (codec.kind == CodecKind::kF16 || codec.kind == CodecKind::kBF16) {
      const auto type = codec.kind == CodecKind::kF16 ? DataType::kF16 : DataType::kBF16;
      for (size_t i = 0; i < n; ++i) {
        const auto v = static_cast<float>(value_of_half(type, static_cast<uint16_t>(from.get16())));
        values[at + i] = std::isnan(v) ? kNaN : v;
      }
    } else if (codec.kind == CodecKind::kTopK) {
      std::vector<unsigned> indices(kept(codec, n));
      for (auto& i : indices) i = from.get16();
      for (auto i : indices) {
        const float v = from.get_float();
        if (i < n) values[at + i] = v;
      }
    } else {
      decode_group(codec, from, n, &values[at]);
    }
  }
  return values;
}

ErrorBound oracle_bound(const Codec& codec) {
  const double some = codec.rounding == Rounding::kStochastic ? 2 : 1, spread = codec.rotate ? 32 : 1;
  switch (codec.kind) {
    case CodecKind::kF16: return {0x1p-11, 0x1p-25, 1};
    case CodecKind::kBF16: return {0x1p-8, 0x1p-134, 1};
    case CodecKind::kInt8:
    case CodecKind::kInt6:
    case CodecKind::kInt5:
    case CodecKind::kInt4: {
      const int most = (1 << (code_bits(codec.kind) - 1)) - 1;
      return {1.008 * some * spread / (2 * most), most * 0x1p-126, 32};
    }
    case CodecKind::kE4M3: return {1.008 / 28, 448 * 0x1p-126, 32};
    case CodecKind::kE5M2: return {1.008 / 14, 57344 * 0x1p-126, 32};
    case CodecKind::kMXFP8: return {1.0 / 8, 0x1p-126, 32};
    case CodecKind::kMXFP4: return {1.0 / 4, 0x1p-126, 32};
    case CodecKind::kNVFP4: return {0.18, 2688 * 0x1p-126, kOracleGroup};
    case CodecKind::kSign:
    case CodecKind::kTernary: return {1.004, 0x1p-125, 128};
    default: return {1, 0, kOracleGroup};
  }
}

std::vector<Codec> all_codecs() {
  std::vector<Codec> all;
  for (int k = 1; k < kCodecKinds; ++k) {
    Codec codec(static_cast<CodecKind>(k));
    if (codec.kind == CodecKind::kTopK) codec.keep = 10;
    all.push_back(codec);
    if (!is_int(codec.kind)) continue;
    for (int variant = 1; variant < 4; ++variant) {
      codec.rounding = variant & 1 ? Rounding::kStochastic : Rounding::kNearest;
      codec.rotate = (variant & 2) != 0;
      all.push_back(codec);
    }
  }
  Codec most(CodecKind::kTopK);
  most.keep = kOracleGroup / 4;
  all.push_back(most);
  return all;
}

}  // namespace ringfold::test
