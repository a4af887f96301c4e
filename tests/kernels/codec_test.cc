// The codecs against their definitions, on every instruction set, in memory that ends where it should.
#include "kernels/codec.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "tests/kernels/codec_oracle.h"
#include "tests/kernels/targets.h"

namespace ringfold::test {
namespace {

using kernels::Draw;
using kernels::find_cpu_codec;

constexpr size_t kGroup = Codec::kGroup;
const size_t kSizes[] = {0,   1,    2,    3,    15,   16,   17,   31,   32,
                         33,  63,   64,   65,   100,  127,  128,  129,  255,
                         257, 1000, 1023, 1024, 1025, 1055, 2048, 3001, 5 * 1024 + 700};

// Memory between two pages that may not be touched, flush with one of them.
class Guarded {
 public:
  Guarded(size_t bytes, bool at_end) {
    page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    inner_ = (bytes + page_ - 1) / page_ * page_ + page_;
    void* map = mmap(nullptr, inner_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    base_ = static_cast<std::byte*>(map);
    mprotect(base_ + page_, inner_, PROT_READ | PROT_WRITE);
    data_ = base_ + page_ + (at_end ? inner_ - bytes : 0);
  }
  ~Guarded() { munmap(base_, inner_ + 2 * page_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  std::byte* bytes() const { return data_; }
  float* floats() const { return reinterpret_cast<float*>(data_); }

 private:
  size_t page_, inner_;
  std::byte *base_, *data_;
};

enum Data { kGaussian, kHeavy, kAnyFinite, kAnyBits, kTies, kTiny, kEqual, kZeros, kHuge, kDataCount };

std::vector<float> make(Data data, size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (size_t i = 0; i < n; ++i) {
    const auto bits = static_cast<uint32_t>(random());
    switch (data) {
      case kGaussian: x[i] = normal(random); break;
      case kHeavy: x[i] = normal(random) * std::exp(3 * normal(random)); break;
      case kAnyFinite:
        x[i] = std::bit_cast<float>((bits & 0x7F800000) == 0x7F800000 ? bits & 0xBFFFFFFF : bits);
        break;
      case kAnyBits:  // a NaN or an infinity here and there
        x[i] = random() % 200 != 0 ? normal(random) : std::bit_cast<float>(bits | 0x7F800000 | (bits % 3 ? 1 : 0));
        if (random() % 300 == 0) x[i] = bits & 1 ? INFINITY : -INFINITY;
        break;
      case kTies: x[i] = static_cast<float>(static_cast<int>(bits % 509) - 254) * 0.5f; break;
      case kTiny: x[i] = std::bit_cast<float>(bits & 0x80FFFFFF); break;
      case kEqual: x[i] = i / 32 % 2 != 0 ? -3.25f : 0.1f; break;
      case kZeros: x[i] = bits & 1 ? 0.0f : -0.0f; break;
      case kHuge: x[i] = std::bit_cast<float>((bits & 0x80FFFFFF) | 0x7E000000); break;
      default: break;
    }
  }
  return x;
}

std::string describe(const Codec& codec, size_t n, int data) {
  return to_string(codec) + ", " + std::to_string(n) + " elements, data " + std::to_string(data);
}

template <class T>
testing::AssertionResult same_bits(const std::vector<T>& want, const void* got) {
  if (want.empty() || std::memcmp(want.data(), got, want.size() * sizeof(T)) == 0) return testing::AssertionSuccess();
  const auto* bytes = static_cast<const std::byte*>(got);
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::memcmp(&want[i], bytes + i * sizeof(T), sizeof(T)) == 0) continue;
    T there;
    std::memcpy(&there, bytes + i * sizeof(T), sizeof(T));
    auto failure = testing::AssertionFailure() << "at " << i << ": want ";
    if constexpr (sizeof(T) == 1) return failure << int(want[i]) << ", got " << int(there);
    if constexpr (sizeof(T) == 4) return failure << want[i] << ", got " << there;
  }
  return testing::AssertionFailure();
}

float sum_of(float a, float b) {
  const float v = a + b;
  return std::isnan(v) ? std::bit_cast<float>(0x7FC00000u) : v;
}

// Decodes `code` into guarded memory: both ways, both ends.
testing::AssertionResult decodes(const Codec& codec, const Bytes& code, size_t n, bool at_end,
                                 const std::vector<float>& want) {
  const auto kernels = find_cpu_codec(codec);
  Guarded from(code.size(), at_end), out(n * 4, at_end), sum(n * 4, at_end);
  if (!code.empty()) std::memcpy(from.bytes(), code.data(), code.size());
  const auto before = make(kAnyBits, n, 77);
  if (n != 0) std::memcpy(sum.bytes(), before.data(), n * 4);
  std::vector<float> added(n);
  for (size_t i = 0; i < n; ++i) added[i] = sum_of(before[i], want[i]);
  kernels.decode(codec, from.bytes(), n, out.floats());
  if (auto same = same_bits(want, out.bytes()); !same) return same << " (decode)";
  kernels.decode_add(codec, from.bytes(), n, sum.floats());
  if (auto same = same_bits(added, sum.bytes()); !same) return same << " (decode_add)";
  return testing::AssertionSuccess();
}

testing::AssertionResult codes_and_back(const Codec& codec, const std::vector<float>& x, bool at_end,
                                        const Draw& draw, const Bytes& want, const std::vector<float>& values) {
  const size_t n = x.size();
  if (want.size() != encoded_bytes(codec, n)) return testing::AssertionFailure() << "encoded_bytes";
  Guarded in(n * 4, at_end), code(want.size(), at_end);
  if (n != 0) std::memcpy(in.bytes(), x.data(), n * 4);
  find_cpu_codec(codec).encode(codec, in.floats(), n, code.bytes(), draw);
  if (auto same = same_bits(want, code.bytes()); !same) return same << " (encode)";
  return decodes(codec, want, n, at_end, values);
}

TEST(Codec, BitsAreThoseOfTheDefinitionOnEveryTarget) {
  for (const Codec& codec : all_codecs()) {
    for (size_t n : kSizes) {
      for (int data = 0; data < kDataCount; ++data) {
        const auto x = make(static_cast<Data>(data), n, n * 31 + data);
        const Draw draw{.key = n * 0x9E3779B97F4A7C15u, .first = 5 * n};
        const auto want = expected_code(codec, x, draw);
        const auto values = expected_values(codec, want, n);
        on_every_target([&] {
          ASSERT_TRUE(codes_and_back(codec, x, (n + data) % 2 != 0, draw, want, values)) << describe(codec, n, data);
        });
      }
    }
  }
}

// A decoder gets what a peer sent: any bytes.
TEST(Codec, AnyBytesDecodeAsDefinedAndStayInBounds) {
  std::mt19937_64 random(5);
  for (const Codec& codec : all_codecs()) {
    for (size_t n : kSizes) {
      for (int round = 0; round < 4; ++round) {
        Bytes code(encoded_bytes(codec, n));
        for (auto& b : code) b = round == 3 ? std::byte{0xFF} : static_cast<std::byte>(random());
        const auto values = expected_values(codec, code, n);
        on_every_target(
            [&] { ASSERT_TRUE(decodes(codec, code, n, round % 2 != 0, values)) << describe(codec, n, -1); });
      }
    }
  }
}

TEST(Codec, AnySizeAnyData) {
  const bool holds = rc::check("codes and values equal the definition's", [] {
    const auto codecs = all_codecs();
    const Codec codec = codecs[*rc::gen::inRange<size_t>(0, codecs.size())];
    const auto n = *rc::gen::inRange<size_t>(0, 3 * kGroup);
    const auto x = make(static_cast<Data>(*rc::gen::inRange(0, int{kDataCount})), n, *rc::gen::arbitrary<uint64_t>());
    const Draw draw{*rc::gen::arbitrary<uint64_t>(), *rc::gen::arbitrary<uint64_t>() >> 1};
    const auto want = expected_code(codec, x, draw);
    const auto result =
        codes_and_back(codec, x, *rc::gen::arbitrary<bool>(), draw, want, expected_values(codec, want, n));
    if (!result) RC_FAIL(describe(codec, n, 0) + ": " + result.message());
  });
  EXPECT_TRUE(holds);
}

TEST(Codec, ErrorStaysWithinTheDocumentedBound) {
  for (const Codec& codec : all_codecs()) {
    const auto bound = oracle_bound(codec);
    const auto kernels = find_cpu_codec(codec);
    for (int data : {kGaussian, kHeavy, kTies, kTiny, kEqual, kZeros}) {
      for (size_t n : {size_t{1}, size_t{33}, size_t{1024}, size_t{5000}}) {
        const auto x = make(static_cast<Data>(data), n, n + data);
        Bytes code(encoded_bytes(codec, n));
        std::vector<float> y(n);
        kernels.encode(codec, x.data(), n, code.data(), {.key = 3});
        kernels.decode(codec, code.data(), n, y.data());
        for (size_t i = 0; i < n; ++i) {
          if (codec.kind == CodecKind::kF16 && std::fabs(x[i]) > 65504) continue;
          double largest = 0;
          for (size_t k = i / bound.block * bound.block; k < std::min(n, (i / bound.block + 1) * bound.block); ++k) {
            largest = std::max(largest, std::fabs(double{x[k]}));
          }
          ASSERT_LE(std::fabs(double{x[i]} - y[i]), bound.relative * largest + bound.least)
              << describe(codec, n, data) << " at " << i << ": " << x[i] << " became " << y[i];
        }
      }
    }
  }
}

TEST(Codec, NotFiniteMeansNaNForItsBlockOnly) {
  for (const Codec& codec : all_codecs()) {
    if (codec.kind == CodecKind::kF16 || codec.kind == CodecKind::kBF16 || codec.kind == CodecKind::kTopK) continue;
    const size_t block = codec.kind == CodecKind::kNVFP4                                       ? 16
                         : codec.kind == CodecKind::kSign || codec.kind == CodecKind::kTernary ? 128
                                                                                               : 32;
    for (float bad : {INFINITY, -INFINITY, NAN}) {
      for (size_t n : {size_t{1024}, size_t{700}}) {
        auto x = make(kGaussian, n, 1);
        const auto kernels = find_cpu_codec(codec);
        x[300] = bad;
        Bytes code(encoded_bytes(codec, n));
        std::vector<float> y(n);
        kernels.encode(codec, x.data(), n, code.data(), {});
        kernels.decode(codec, code.data(), n, y.data());
        for (size_t i = 0; i < n; ++i) {
          ASSERT_EQ(std::isnan(y[i]), i / block == 300 / block) << describe(codec, n, -1) << " at " << i;
        }
      }
    }
  }
}

TEST(Codec, EncodingWhatWasDecodedGivesTheSameCodeWhereThatIsClaimed) {
  for (CodecKind kind : {CodecKind::kF16, CodecKind::kBF16, CodecKind::kMXFP8, CodecKind::kMXFP4, CodecKind::kSign,
                         CodecKind::kTernary, CodecKind::kTopK}) {
    Codec codec(kind);
    if (kind == CodecKind::kTopK) codec.keep = 20;
    const auto kernels = find_cpu_codec(codec);
    for (int data : {kGaussian, kHeavy, kTies, kEqual}) {
      const size_t n = 3001;
      const auto x = make(static_cast<Data>(data), n, data);
      std::vector<float> y(n), z(n);
      Bytes code(encoded_bytes(codec, n));
      kernels.encode(codec, x.data(), n, code.data(), {});
      kernels.decode(codec, code.data(), n, y.data());
      kernels.encode(codec, y.data(), n, code.data(), {});
      kernels.decode(codec, code.data(), n, z.data());
      ASSERT_TRUE(same_bits(y, z.data())) << describe(codec, n, data);
    }
  }
}

TEST(Codec, EveryCodeOf16BitsIsReadAndWrittenBack) {
  for (CodecKind kind : {CodecKind::kF16, CodecKind::kBF16}) {
    const size_t n = 65536;
    Bytes code(2 * n);
    for (size_t i = 0; i < n; ++i) {
      code[2 * i] = static_cast<std::byte>(i & 255);
      code[2 * i + 1] = static_cast<std::byte>(i >> 8);
    }
    const auto want = expected_values(kind, code, n);
    on_every_target([&] {
      const auto kernels = find_cpu_codec(kind);
      std::vector<float> y(n);
      Bytes again(2 * n);
      kernels.decode(kind, code.data(), n, y.data());
      ASSERT_TRUE(same_bits(want, y.data()));
      kernels.encode(kind, y.data(), n, again.data(), {});
      for (size_t i = 0; i < n; ++i) {
        if (std::isnan(y[i])) continue;
        ASSERT_TRUE(again[2 * i] == code[2 * i] && again[2 * i + 1] == code[2 * i + 1]) << i;
      }
    });
  }
}

// With a scale of one: all 256 codes, and what rounds to each of the finite ones.
TEST(Codec, EveryCodeOf8BitsIsReadAndWrittenBack) {
  for (CodecKind kind : {CodecKind::kE4M3, CodecKind::kE5M2, CodecKind::kMXFP8}) {
    const size_t head = kind == CodecKind::kMXFP8 ? 32 : 64;
    Bytes code(encoded_bytes(kind, kGroup));
    for (size_t b = 0; b < 32; ++b) {
      if (head == 32) code[b] = std::byte{127};
      if (head == 64) code[2 * b] = std::byte{0x80}, code[2 * b + 1] = std::byte{0x3F};
    }
    const unsigned largest = kind == CodecKind::kE5M2 ? 0x7B : 0x7E;
    for (size_t i = 0; i < kGroup; ++i) code[head + i] = static_cast<std::byte>(i / 4);
    on_every_target([&] {
      const auto kernels = find_cpu_codec(kind);
      std::vector<float> y(kGroup);
      kernels.decode(kind, code.data(), kGroup, y.data());
      ASSERT_TRUE(same_bits(expected_values(kind, code, kGroup), y.data()));
      // Each value in a block whose largest number keeps the scale at one.
      for (size_t i = 0; i < kGroup; ++i) {
        const auto bits = static_cast<unsigned>(code[head + i]);
        const unsigned size = bits & 0x7F;
        if (size > largest) continue;
        const size_t at = i % 4 * 256 + i / 4;  // byte i holds the code of this element
        std::vector<float> block(32, 0.0f);
        block[0] = kind == CodecKind::kE5M2 ? 57344.0f : 448.0f;
        block[1] = y[at];
        Bytes one(encoded_bytes(kind, 32));
        kernels.encode(kind, block.data(), 32, one.data(), {});
        const auto got = expected_values(kind, one, 32);
        ASSERT_EQ(got[1], y[at]) << to_string(kind) << " " << bits;
      }
    });
  }
}

TEST(Codec, StochasticRoundingIsUnbiased) {
  for (CodecKind kind : {CodecKind::kInt8, CodecKind::kInt6, CodecKind::kInt5, CodecKind::kInt4}) {
    for (bool rotate : {false, true}) {
      Codec codec(kind);
      codec.rounding = Rounding::kStochastic;
      codec.rotate = rotate;
      const auto kernels = find_cpu_codec(codec);
      const size_t n = kGroup;
      const auto x = make(kGaussian, n, 9);
      constexpr int kRounds = 2000;
      std::vector<double> mean(n), square(n);
      Bytes code(encoded_bytes(codec, n));
      std::vector<float> y(n);
      for (int round = 0; round < kRounds; ++round) {
        kernels.encode(codec, x.data(), n, code.data(), {.key = static_cast<uint64_t>(round), .first = 1});
        kernels.decode(codec, code.data(), n, y.data());
        for (size_t i = 0; i < n; ++i) {
          const double error = double{y[i]} - x[i];
          mean[i] += error / kRounds;
          square[i] += error * error / kRounds;
        }
      }
      // Means of errors in units of their own deviation; for 1024 of them 5 is hardly ever passed by chance. What is
      // added keeps the elements out that are integers but for a rounding error, whose error is always the same.
      double total = 0;
      for (size_t i = 0; i < n; ++i) {
        const double z = mean[i] / std::sqrt(square[i] / kRounds + 1e-9);
        ASSERT_LT(std::fabs(z), 5.5) << to_string(codec) << " at " << i;
        total += z * z;
      }
      EXPECT_NEAR(total / n, 1.0, 0.25) << to_string(codec);
    }
  }
}

TEST(Codec, ACodeDoesNotDependOnHowTheBufferWasCut) {
  for (const Codec& codec : all_codecs()) {
    const auto kernels = find_cpu_codec(codec);
    const size_t n = 5 * kGroup + 77;
    const auto x = make(kHeavy, n, 4);
    Bytes whole(encoded_bytes(codec, n)), pieces(whole.size());
    kernels.encode(codec, x.data(), n, whole.data(), {.key = 42, .first = 12345});
    for (size_t at = 0; at < n;) {
      const size_t piece = std::min(n - at, kGroup * (1 + at / kGroup % 3));
      kernels.encode(codec, &x[at], piece, &pieces[encoded_bytes(codec, at)], {.key = 42, .first = 12345 + at});
      at += piece;
    }
    EXPECT_EQ(whole, pieces) << to_string(codec);
  }
}

TEST(Codec, TopKKeepsTheFirstOfEquals) {
  Codec codec(CodecKind::kTopK);
  codec.keep = 5;
  std::vector<float> x(kGroup, 1.0f), y(kGroup);
  x[700] = -2;
  Bytes code(encoded_bytes(codec, kGroup));
  const auto kernels = find_cpu_codec(codec);
  kernels.encode(codec, x.data(), kGroup, code.data(), {});
  kernels.decode(codec, code.data(), kGroup, y.data());
  for (size_t i = 0; i < kGroup; ++i) EXPECT_EQ(y[i], i < 4 ? 1.0f : i == 700 ? -2.0f : 0.0f) << i;
}

TEST(Codec, NamesAreReadBack) {
  for (const Codec& codec : all_codecs()) {
    EXPECT_TRUE(check(codec).ok());
    const auto parsed = parse_codec(to_string(codec));
    ASSERT_TRUE(parsed.ok()) << to_string(codec) << ": " << parsed.status().to_string();
    EXPECT_EQ(*parsed, codec) << to_string(codec);
  }
  for (uint16_t keep = 1; keep <= kGroup / 4; ++keep) {
    Codec codec(CodecKind::kTopK);
    codec.keep = keep;
    const auto parsed = parse_codec(to_string(codec));
    ASSERT_TRUE(parsed.ok()) << to_string(codec);
    EXPECT_EQ(parsed->keep, keep) << to_string(codec);
  }
  EXPECT_EQ(*parse_codec("none"), Codec());
  EXPECT_EQ(to_string(*parse_codec("int4+rotate+stochastic")), "int4+stochastic+rotate");
  EXPECT_EQ(parse_codec("topk:0.01")->keep, 10);
}

TEST(Codec, WhatIsNoCodecIsRefused) {
  for (const char* text : {"", "int7", "int8+", "int8+fast", "int8+rotate+rotate", "bf16+stochastic", "e4m3+rotate",
                           "topk", "topk:", "topk:0", "topk:0.3", "topk:1e-9", "topk:-0.1", "topk:nan", "topk:0.1x",
                           "int8:0.1", "INT8", "none+rotate"}) {
    const auto parsed = parse_codec(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_EQ(parsed.status().code(), Code::kInvalid);
  }
  Codec codec(static_cast<CodecKind>(200));
  EXPECT_FALSE(check(codec).ok());
  codec = CodecKind::kInt8;
  codec.keep = 3;
  EXPECT_FALSE(check(codec).ok());
}

TEST(Codec, SizesAreThoseOfTheFormats) {
  EXPECT_EQ(encoded_bytes(CodecKind::kInt8, kGroup), 1088u);  // 8.5 bits
  EXPECT_EQ(encoded_bytes(CodecKind::kInt4, kGroup), 576u);
  EXPECT_EQ(encoded_bytes(CodecKind::kNVFP4, kGroup), 580u);
  EXPECT_EQ(encoded_bytes(CodecKind::kSign, kGroup), 144u);
  EXPECT_EQ(encoded_bytes(CodecKind::kInt8, 33), 68u);
  for (const Codec& codec : all_codecs()) {
    EXPECT_EQ(encoded_bytes(codec, 0), 0u);
    for (uint64_t n = 1; n <= 2 * kGroup; ++n) {
      EXPECT_GE(encoded_bytes(codec, n), encoded_bytes(codec, n - 1));
      EXPECT_EQ(encoded_bytes(codec, n + 7 * kGroup), encoded_bytes(codec, n) + 7 * encoded_bytes(codec, kGroup));
    }
  }
}

}  // namespace
}  // namespace ringfold::test
