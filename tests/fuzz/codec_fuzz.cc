// For libFuzzer (tools/fuzz): any bytes are a valid code, any floats can be encoded, any text is a codec or refused;
// and all instruction sets agree on the bits. Blocks have the size that they need and no more, so that the sanitizer
// sees what goes past their ends.
//
// An input is one byte that chooses the codec, or text; one that chooses a way and variants; two for the number of
// elements; and the rest.
#include "kernels/cpu/targets.h"
// The line above comes first.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>
#include <utility>

#include "hwy/highway.h"
#include "kernels/codec.h"

namespace ringfold {
namespace {

#define FUZZ_CHECK(condition) \
  if (!(condition)) std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition), std::abort()

template <class T>
struct Block {
  explicit Block(size_t n) : count(n), data(new T[n]()) {}
  // The first bytes; where there are too few, again from the first on.
  Block(size_t n, const uint8_t* from, size_t size) : Block(n) {
    auto* to = reinterpret_cast<uint8_t*>(data.get());
    for (size_t at = 0; size != 0 && at < n * sizeof(T); at += size) {
      std::memcpy(to + at, from, std::min(n * sizeof(T) - at, size));
    }
  }
  bool operator==(const Block& other) const {
    return count == 0 || std::memcmp(data.get(), other.data.get(), count * sizeof(T)) == 0;
  }
  T* get() const { return data.get(); }

  size_t count;
  std::unique_ptr<T[]> data;
};

template <class Body>
void on_targets(Body body) {
  bool first = true;
  for (int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body(first);
    first = false;
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

void parse(std::string_view text) {
  const auto codec = parse_codec(text);
  if (!codec.ok()) return;
  FUZZ_CHECK(check(*codec).ok());
  const auto again = parse_codec(to_string(*codec));
  FUZZ_CHECK(again.ok() && *again == *codec);
}

void decode_any(const Codec& codec, size_t n, const uint8_t* bytes, size_t size) {
  const Block<std::byte> code(encoded_bytes(codec, n), bytes, size);
  Block<float> first_values(n), first_sums(n);
  on_targets([&](bool first) {
    const auto kernels = kernels::find_cpu_codec(codec);
    Block<float> values(n), sums(n);
    for (size_t i = 0; i < n; ++i) sums.get()[i] = static_cast<float>(i) - 100;
    kernels.decode(codec, code.get(), n, values.get());
    kernels.decode_add(codec, code.get(), n, sums.get());
    for (size_t i = 0; i < n; ++i) {
      float sum = static_cast<float>(i) - 100 + values.get()[i];
      if (std::isnan(sum)) sum = std::bit_cast<float>(0x7FC00000u);
      FUZZ_CHECK(std::bit_cast<uint32_t>(sum) == std::bit_cast<uint32_t>(sums.get()[i]));
    }
    FUZZ_CHECK(first || (values == first_values && sums == first_sums));
    first_values = std::move(values);
    first_sums = std::move(sums);
  });
}

void encode_any(const Codec& codec, size_t n, const uint8_t* bytes, size_t size) {
  const Block<float> in(n, bytes, size);
  Block<std::byte> first_code(encoded_bytes(codec, n));
  on_targets([&](bool first) {
    const auto kernels = kernels::find_cpu_codec(codec);
    Block<std::byte> code(encoded_bytes(codec, n));
    kernels.encode(codec, in.get(), n, code.get(), {.key = size, .first = 3 * n});
    FUZZ_CHECK(first || code == first_code);
    first_code = std::move(code);
  });
  decode_any(codec, n, reinterpret_cast<const uint8_t*>(first_code.get()), first_code.count);
}

}  // namespace
}  // namespace ringfold

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ringfold;
  if (size < 4) return 0;
  const int kind = data[0] % kCodecKinds;
  const uint8_t way = data[1];
  if (kind == 0) {
    parse({reinterpret_cast<const char*>(data + 1), size - 1});
    return 0;
  }
  Codec codec(static_cast<CodecKind>(kind));
  const size_t n = (data[2] | data[3] << 8) % (3 * Codec::kGroup);
  codec.rounding = way & 2 ? Rounding::kStochastic : Rounding::kNearest;
  codec.rotate = (way & 4) != 0;
  if (!check(codec).ok()) codec = codec.kind;
  if (codec.kind == CodecKind::kTopK) codec.keep = static_cast<uint16_t>(1 + way % (Codec::kGroup / 4));
  if (way & 1) {
    encode_any(codec, n, data + 4, size - 4);
  } else {
    decode_any(codec, n, data + 4, size - 4);
  }
  return 0;
}
