// The kernel bodies that GPUs run, on threads of this machine: the bits of the CPU's kernels and of the definitions,
// whatever the shape of the launch, the sizes and the alignment.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/coding.h"
#include "kernels/simt/exact.h"
#include "tests/kernels/codec_oracle.h"
#include "tests/kernels/oracle.h"
#include "tests/kernels/simt_host.h"

namespace ringfold::test {
namespace {

namespace simt = kernels::simt;

constexpr HostGrid kGrids[] = {{1, 1}, {3, 2}, {2, 5}};

// `count` elements at an address that is `off` bytes past a multiple of 64, between guard bytes that must stay.
class Placed {
 public:
  Placed(size_t bytes, size_t off) : bytes_(bytes), memory_(bytes + 256, std::byte{0xA5}) {
    const auto at = reinterpret_cast<uintptr_t>(memory_.data());
    start_ = (at + 127) / 64 * 64 - at + off;
  }
  std::byte* data() { return memory_.data() + start_; }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data());
  }
  bool surroundings_are_intact() const {
    for (size_t i = 0; i < memory_.size(); ++i) {
      if ((i < start_ || i >= start_ + bytes_) && memory_[i] != std::byte{0xA5}) return false;
    }
    return true;
  }

 private:
  size_t bytes_, start_;
  std::vector<std::byte> memory_;
};

// Anything that is dangerous in a type: NaNs with payloads, infinities, zeros, subnormals, large and ordinary
// numbers.
void fill_elements(DataType type, std::byte* p, size_t elems, std::mt19937_64& random) {
  const size_t size = size_of(type);
  const int fraction = type == DataType::kF64 ? 52 : type == DataType::kF32 ? 23 : type == DataType::kF16 ? 10 : 7;
  const uint64_t sign = uint64_t{1} << (size * 8 - 1), infinity = (sign - 1) >> fraction << fraction;
  const uint64_t one = infinity / 2 >> fraction << fraction;
  for (size_t i = 0; i < elems; ++i) {
    uint64_t bits = random();
    if (is_float(type)) {
      const uint64_t some = bits & ((uint64_t{1} << fraction) - 1);
      switch (random() % 16) {
        case 0: bits = infinity | some | (bits & sign); break;
        case 1: bits = infinity | (bits & sign); break;
        case 2: bits &= sign; break;
        case 3: bits = some | (bits & sign); break;
        case 4: bits = (infinity - 1 - (bits & 3)) | (bits & sign); break;
        case 5: break;
        default: bits = one + some + (bits & sign); break;
      }
    }
    std::memcpy(p + i * size, &bits, size);
  }
}

TEST(Simt, FoldsHaveTheBitsOfTheOracle) {
  std::mt19937_64 random(1);
  for (int t = 0; t < kDataTypes; ++t) {
    for (int k = 0; k < kReduceKinds; ++k) {
      const auto type = static_cast<DataType>(t);
      const auto kind = static_cast<ReduceKind>(k);
      const size_t size = size_of(type);
      for (bool complete : {false, true}) {
        for (int inputs : {1, 2, 3, 5, 8, 11}) {
          for (size_t elems : {size_t{0}, size_t{1}, 16 / size, 32 / size + 1, size_t{129}, size_t{1000}}) {
            for (int place = 0; place < 3; ++place) {  // all alike on 16 bytes, alike elsewhere, each its own
              std::vector<Placed> in;
              std::vector<const void*> pointers;
              for (int i = 0; i < inputs; ++i) {
                in.emplace_back(elems * size, place == 0 ? 0 : place == 1 ? size : size * (i % 3));
                fill_elements(type, in.back().data(), elems, random);
              }
              for (auto& each : in) pointers.push_back(each.data());
              const kernels::Post post{.factor = 1.0 / 3, .divisor = 7};
              const auto want = expected(type, kind, complete, pointers, elems, post);
              Placed apart(elems * size, place == 1 ? size : 0);
              const bool in_place = (elems + inputs) % 2 == 1;
              Placed& out = in_place ? in[inputs / 2] : apart;
              simt::FoldArgs args{};
              args.out = out.data();
              args.inputs = inputs;
              args.elems = elems;
              args.factor = post.factor;
              args.divisor = post.divisor;
              for (int i = 0; i < inputs; ++i) args.in[i] = pointers[i];
              const HostGrid grid = kGrids[(elems + place) % 3];
              ASSERT_EQ(fold_on_host(type, kind, complete, args, grid),
                        is_float(type) || kind != ReduceKind::kScaledSum);
              if (!is_float(type) && kind == ReduceKind::kScaledSum) continue;
              const bool copied = inputs == 1 && !(complete && kind >= ReduceKind::kAvg);
              if (copied) continue;  // launched as a copy of the bits
              ASSERT_TRUE(elems == 0 || std::memcmp(want.data(), out.data(), want.size()) == 0)
                  << name_of(type) << ' ' << name_of(kind) << " complete " << complete << " inputs " << inputs
                  << " elems " << elems << " place " << place;
              ASSERT_TRUE(out.surroundings_are_intact());
            }
          }
        }
      }
    }
  }
}

TEST(Simt, HalvesAreWidenedAndRoundedAsDefined) {
  for (uint32_t half = 0; half < 65536; ++half) {
    const auto bits = static_cast<uint16_t>(half);
    const double f16 = value_of_half(DataType::kF16, bits), bf16 = value_of_half(DataType::kBF16, bits);
    if (!std::isnan(f16)) {
      ASSERT_EQ(simt::widen_f16_bits(half), static_cast<float>(f16)) << half;
    }
    if (!std::isnan(bf16)) {
      ASSERT_EQ(simt::widen_bf16(half), static_cast<float>(bf16)) << half;
    }
  }
  // Every 16-bit value, and what lies around each boundary between two of them.
  for (uint64_t base = 0; base < (1u << 20); ++base) {
    for (uint32_t low : {0u, 1u, 0x7FFu, 0x800u, 0x801u, 0xFFFu}) {
      const float v = std::bit_cast<float>(static_cast<uint32_t>(base << 12) | low);
      if (std::isnan(v)) continue;
      ASSERT_EQ(simt::narrow_bf16(v), round_to_half(DataType::kBF16, v)) << v;
      ASSERT_EQ(simt::narrow_f16_bits(v), round_to_half(DataType::kF16, v)) << v;
    }
  }
}

enum Data { kNormal, kHeavy, kAnyBits, kTies, kTiny, kZeros, kHuge, kDataCount };
std::vector<float> some(Data data, size_t n, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& v : x) {
    const auto bits = static_cast<uint32_t>(random());
    switch (data) {
      case kHeavy: v = normal(random) * std::exp(3 * normal(random)); break;
      case kAnyBits:
        v = random() % 250 != 0 ? normal(random) : std::bit_cast<float>(bits | 0x7F800000u | (bits % 3 ? 1 : 0));
        if (random() % 400 == 0) v = INFINITY;
        break;
      case kTies: v = static_cast<float>(static_cast<int>(bits % 509) - 254) * 0.5f; break;
      case kTiny: v = std::bit_cast<float>(bits & 0x80FFFFFFu); break;
      case kZeros: v = bits & 1 ? 0.0f : -0.0f; break;
      case kHuge: v = std::bit_cast<float>((bits & 0x80FFFFFFu) | 0x7E000000u); break;
      default: v = normal(random); break;
    }
  }
  return x;
}

const size_t kSizes[] = {1,   2,   15,  16,  17,   31,   32,   33,   100,
                         127, 128, 129, 500, 1000, 1023, 1024, 1025, 3 * 1024 + 700};

TEST(Simt, CodesAndValuesHaveTheBitsOfTheDefinition) {
  std::mt19937_64 random(2);
  for (const Codec& codec : all_codecs()) {
    for (size_t n : kSizes) {
      for (int data = 0; data < kDataCount; ++data) {
        const auto x = some(static_cast<Data>(data), n, random);
        const uint64_t shift = data % 2 == 0 ? 8 * n : n;  // on the first of a counter's elements, or not
        const kernels::Draw draw{.key = random(), .first = shift};
        const Bytes want = expected_code(codec, x, draw);
        const auto values = expected_values(codec, want, n);
        const auto where = [&] {
          return to_string(codec) + " n " + std::to_string(n) + " data " + std::to_string(data);
        };
        const size_t off = data % 3 == 2 ? 4 : 0, code_off = data % 4 == 3 ? 1 : 0;
        Placed in(n * 4, off), code(want.size(), code_off), out(n * 4, off), sum(n * 4, 0);
        std::memcpy(in.data(), x.data(), n * 4);
        simt::CombineArgs args{};
        args.count = 1;
        args.elems = n;
        args.factor = 1;
        args.call.key = draw.key;
        args.call.first = draw.first;
        args.terms[0].values = in.as<float>();
        args.code = code.data();
        const HostGrid grid = kGrids[data % 3];
        combine_on_host(codec, args, grid);
        ASSERT_TRUE(std::memcmp(want.data(), code.data(), want.size()) == 0) << where() << " encode";
        ASSERT_TRUE(code.surroundings_are_intact()) << where() << " encode";

        args.terms[0] = {nullptr, code.data()};
        args.code = nullptr;
        args.values = out.as<float>();
        combine_on_host(codec, args, grid);
        ASSERT_TRUE(std::memcmp(values.data(), out.data(), n * 4) == 0) << where() << " decode";
        ASSERT_TRUE(out.surroundings_are_intact()) << where() << " decode";
      }
    }
  }
}

TEST(Simt, AnyBytesDecodeAsDefined) {
  std::mt19937_64 random(3);
  for (const Codec& codec : all_codecs()) {
    for (size_t n : kSizes) {
      for (int round = 0; round < 3; ++round) {
        Bytes bytes(encoded_bytes(codec, n));
        for (auto& b : bytes) b = round == 2 ? std::byte{0xFF} : static_cast<std::byte>(random());
        if (codec.kind == CodecKind::kTopK && round == 1) {  // the same elements again and again
          for (size_t i = 1; i < bytes.size(); i += 2) bytes[i] = std::byte{0};
        }
        const auto want = expected_values(codec, bytes, n);
        Placed code(bytes.size(), 0), out(n * 4, 0);
        std::memcpy(code.data(), bytes.data(), bytes.size());
        simt::CombineArgs args{};
        args.count = 1;
        args.elems = n;
        args.factor = 1;
        args.terms[0] = {nullptr, code.data()};
        args.values = out.as<float>();
        combine_on_host(codec, args, kGrids[round]);
        ASSERT_TRUE(std::memcmp(want.data(), out.data(), n * 4) == 0) << to_string(codec) << " n " << n;
        ASSERT_TRUE(out.surroundings_are_intact());
      }
    }
  }
}

// Terms of both kinds, with and without a factor, to values, code and residual: the bits of kernels/coding.h.
TEST(Simt, OnePassHasTheBitsOfTheCpu) {
  std::mt19937_64 random(4);
  for (const Codec& codec : all_codecs()) {
    for (ReduceKind op : {ReduceKind::kSum, ReduceKind::kAvg}) {
      const auto coder = kernels::make_coder(codec, op);
      const kernels::Post post{.factor = op == ReduceKind::kAvg ? 1.0 / 3 : 1.0};
      for (size_t n : {size_t{1}, size_t{333}, size_t{1024}, size_t{2 * 1024 + 96}}) {
        for (int count = 1; count <= simt::kMostTerms; count += count < 3 ? 1 : 5) {
          for (int form = 0; form < 5; ++form) {
            const auto codes = static_cast<unsigned>(random());
            std::vector<std::vector<float>> values;
            std::vector<Bytes> coded(count);
            std::vector<kernels::Term> terms(count);
            for (int t = 0; t < count; ++t) {
              values.push_back(some(t % 3 == 1 ? kAnyBits : kNormal, n, random));
              if ((codes >> t & 1u) == 0) {
                terms[t].values = values[t].data();
                continue;
              }
              coded[t].resize(encoded_bytes(codec, n));
              coder.kernels.encode(codec, values[t].data(), n, coded[t].data(), {.key = random()});
              terms[t].code = coded[t].data();
            }
            const bool has_values = form != 1 && form != 3, has_code = form != 0, has_residual = form >= 3;
            const kernels::Draw draw{random(), 8 * (random() >> 8)};
            std::vector<float> want(n, 1.0f), missed = some(kNormal, n, random), got = want, left = missed;
            Bytes code(encoded_bytes(codec, n)), made = code;
            kernels::combine(coder, terms.data(), count, n, &post,
                             {.values = has_values ? want.data() : nullptr,
                              .code = has_code ? code.data() : nullptr,
                              .residual = has_residual ? missed.data() : nullptr},
                             draw);
            simt::CombineArgs args{};
            args.count = count;
            for (int t = 0; t < count; ++t) args.terms[t] = {terms[t].values, terms[t].code};
            args.values = has_values ? got.data() : nullptr;
            args.code = has_code ? made.data() : nullptr;
            args.residual = has_residual ? left.data() : nullptr;
            args.elems = n;
            args.factor = static_cast<float>(post.factor);
            args.scale = op == ReduceKind::kAvg;
            args.call.key = draw.key;
            args.call.first = draw.first;
            combine_on_host(codec, args, kGrids[form % 3]);
            const auto where = [&] {
              return to_string(codec) + ", " + std::to_string(n) + " elements, " + std::to_string(count) +
                     " terms, codes " + std::to_string(codes & 255) + ", form " + std::to_string(form);
            };
            ASSERT_TRUE(std::memcmp(want.data(), got.data(), n * 4) == 0) << where() << " values";
            ASSERT_TRUE(code == made) << where() << " code";
            ASSERT_TRUE(std::memcmp(missed.data(), left.data(), n * 4) == 0) << where() << " residual";
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace ringfold::test
