#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <random>
#include <set>
#include <string>

#include "kernels/reducer.h"
#include "tests/kernels/oracle.h"
#include "tests/kernels/targets.h"

namespace ringfold::test {
namespace {

using kernels::find_cpu_reducer;
using kernels::Post;

constexpr DataType kTypes[] = {DataType::kF64, DataType::kF32, DataType::kF16, DataType::kBF16, DataType::kI8,
                               DataType::kU8,  DataType::kI32, DataType::kU32, DataType::kI64,  DataType::kU64};
constexpr ReduceKind kKinds[] = {ReduceKind::kSum, ReduceKind::kProd, ReduceKind::kMin,
                                 ReduceKind::kMax, ReduceKind::kAvg,  ReduceKind::kScaledSum};
static_assert(std::size(kTypes) == kDataTypes && std::size(kKinds) == kReduceKinds);

// A mixture of what is dangerous in the type: NaNs (quiet, signalling, with payloads), infinities, both zeros,
// subnormals, the largest numbers, and numbers near 1 whose sums need rounding; for integers any bits.
void fill(DataType type, unsigned char* p, size_t elems, std::mt19937_64& random) {
  const size_t size = size_of(type);
  const int fraction_bits = type == DataType::kF64   ? 52
                            : type == DataType::kF32 ? 23
                            : type == DataType::kF16 ? 10
                                                     : 7;
  const uint64_t sign = uint64_t{1} << (size * 8 - 1);
  const uint64_t infinity = (sign - 1) >> fraction_bits << fraction_bits;
  const uint64_t one = infinity / 2 >> fraction_bits << fraction_bits;
  const uint64_t fraction = (uint64_t{1} << fraction_bits) - 1;
  for (size_t i = 0; i < elems; ++i) {
    const uint64_t noise = random();
    uint64_t bits = random();
    if (is_float(type)) {
      switch (noise % 16) {
        case 0: bits = infinity | (bits & (fraction | sign)); break;  // a NaN, or rarely infinity
        case 1: bits = infinity | (bits & sign); break;
        case 2: bits &= sign; break;
        case 3: bits &= fraction | sign; break;
        case 4: bits = (infinity - 1) ^ (bits & (sign | 3)); break;
        case 5: break;
        default: bits = one + (bits & ((fraction << 2) | 3 | sign)) - (uint64_t{2} << fraction_bits); break;
      }
    }
    std::memcpy(p + i * size, &bits, size);
  }
}

struct Case {
  DataType type;
  ReduceKind kind;
  bool complete;
  int inputs;
  size_t elems;
  int alias;     // the input that is also the output, or -1
  size_t shift;  // elements that the buffers start after an alignment of 64 bytes, growing from input to input
  uint64_t seed;
};

kernels::ReduceFn form_of(const kernels::Reducer& reducer, bool complete, bool streaming) {
  if (streaming) return complete ? reducer.fold_complete_streaming : reducer.fold_streaming;
  return complete ? reducer.fold_complete : reducer.fold;
}

testing::AssertionResult holds_with(const Case& c, bool streaming);

// Runs one case against the oracle with both kinds of stores, and looks at the bytes around the output too.
testing::AssertionResult holds(const Case& c) {
  auto ordinary = holds_with(c, false);
  return ordinary ? holds_with(c, true) : ordinary;
}

testing::AssertionResult holds_with(const Case& c, bool streaming) {
  const size_t size = size_of(c.type), bytes = c.elems * size, margin = 128;
  std::mt19937_64 random(c.seed);
  std::vector<std::vector<unsigned char>> memory;
  std::vector<const void*> in;
  std::vector<unsigned char*> starts;
  for (int k = 0; k <= c.inputs; ++k) {  // the last one is the output
    memory.emplace_back(2 * margin + 128 + bytes, 0xA5);
    auto at = reinterpret_cast<uintptr_t>(memory.back().data()) + margin;
    at = (at + 63) / 64 * 64 + (c.shift * (k + 1)) % 64 / size * size;
    starts.push_back(reinterpret_cast<unsigned char*>(at));
    if (k < c.inputs) {
      fill(c.type, starts.back(), c.elems, random);
      in.push_back(starts.back());
    }
  }
  const Post post{.factor = 1.0 / 3 * c.inputs, .divisor = c.inputs + 2};
  const auto want = expected(c.type, c.kind, c.complete, in, c.elems, post);
  const size_t target = c.alias >= 0 ? c.alias : c.inputs;
  unsigned char* out = starts[target];
  auto whole = memory;  // what memory must look like afterwards
  if (bytes != 0) std::memcpy(whole[target].data() + (out - memory[target].data()), want.data(), bytes);

  const auto reducer = find_cpu_reducer(c.type, c.kind);
  form_of(reducer, c.complete, streaming)(out, in.data(), c.inputs, c.elems, post);
  const bool right = whole == memory;
  if (right) return testing::AssertionSuccess();
  auto result = testing::AssertionFailure();
  result << name_of(c.type) << ' ' << name_of(c.kind) << (c.complete ? " complete" : "")
         << (streaming ? " streaming" : "") << " inputs " << c.inputs << " elems " << c.elems << " alias " << c.alias
         << " shift " << c.shift << " seed " << c.seed;
  for (size_t i = 0; i < bytes; ++i) {
    if (out[i] == want[i]) continue;
    const size_t first = i / size * size;
    result << ": element " << i / size << " is";
    for (size_t b = size; b-- > 0;) result << ' ' << std::hex << int{out[first + b]};
    result << ", not";
    for (size_t b = size; b-- > 0;) result << ' ' << std::hex << int{want[first + b]};
    for (size_t k = 0; k < in.size() && c.alias < 0; ++k) {
      result << "; input";
      for (size_t b = size; b-- > 0;) result << ' ' << std::hex << int{starts[k][first + b]};
    }
    return result;
  }
  return result << ": memory outside of the output changed";
}

bool has_meaning(DataType type, ReduceKind kind) { return kind != ReduceKind::kScaledSum || is_float(type); }

// Each distinct function once: `fold_complete` only where it differs from `fold`.
template <class Body>
void for_each_function(Body body) {
  for (DataType type : kTypes) {
    for (ReduceKind kind : kKinds) {
      if (!has_meaning(type, kind)) continue;
      const auto reducer = find_cpu_reducer(type, kind);
      body(type, kind, false);
      if (reducer.fold != reducer.fold_complete) body(type, kind, true);
    }
  }
}

TEST(Reducer, AgreesWithTheOracleForEveryTypeOperationArityAndSizeAroundVectors) {
  constexpr int kInputs[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 17};
  on_every_target([&] {
    for_each_function([&](DataType type, ReduceKind kind, bool complete) {
      for (int inputs : kInputs) {
        const size_t lanes = 64 / size_of(type);
        for (size_t elems : {size_t{0}, size_t{1}, size_t{2}, size_t{3}, size_t{5}, lanes / 4 + 1, lanes / 2 - 1,
                             lanes - 1, lanes, lanes + 1, 2 * lanes + 3, 4 * lanes - 1, 4 * lanes, 9 * lanes + 7}) {
          ASSERT_TRUE(holds({type, kind, complete, inputs, elems, -1, 0, elems + inputs * 1000u}));
        }
      }
    });
  });
}

TEST(Reducer, TheOutputMayBeAnyInput) {
  on_every_target([&] {
    for_each_function([&](DataType type, ReduceKind kind, bool complete) {
      for (int inputs : {1, 2, 3, 4, 8, 9}) {
        for (int alias = 0; alias < inputs; ++alias) {
          ASSERT_TRUE(holds({type, kind, complete, inputs, 5 * 64 / size_of(type) + 3, alias, 0, 7u}));
        }
      }
    });
  });
}

TEST(Reducer, BuffersNeedNoAlignmentBeyondTheElements) {
  on_every_target([&] {
    for_each_function([&](DataType type, ReduceKind kind, bool complete) {
      for (size_t shift = 1; shift < 64; shift = shift * 2 + 1) {
        ASSERT_TRUE(holds({type, kind, complete, 3, 300, -1, shift * size_of(type), shift}));
      }
    });
  });
}

// Buffers that end where readable memory ends: a vector that reached past the last element would fault.
TEST(Reducer, NothingPastTheEndIsTouched) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  auto* memory = static_cast<unsigned char*>(
      mmap(nullptr, 6 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(memory, MAP_FAILED);
  unsigned char* ends[3];
  for (int k = 0; k < 3; ++k) {
    ends[k] = memory + (2 * k + 1) * page;
    ASSERT_EQ(mprotect(ends[k], page, PROT_NONE), 0);
  }
  on_every_target([&] {
    for_each_function([&](DataType type, ReduceKind kind, bool complete) {
      const auto reducer = find_cpu_reducer(type, kind);
      for (size_t elems = 1; elems <= 130; ++elems) {
        const size_t bytes = elems * size_of(type);
        const std::vector<const void*> in = {ends[0] - bytes, ends[1] - bytes};
        const Post post{.factor = 0.5, .divisor = 2};
        const auto want = expected(type, kind, complete, in, elems, post);
        for (bool streaming : {false, true}) {
          std::memset(ends[2] - bytes, 0xA5, bytes);
          form_of(reducer, complete, streaming)(ends[2] - bytes, in.data(), 2, elems, post);
          ASSERT_EQ(std::memcmp(ends[2] - bytes, want.data(), bytes), 0) << name_of(type) << ' ' << name_of(kind);
        }
      }
    });
  });
  munmap(memory, 6 * page);
}

TEST(Reducer, AveragesOfIntegersAreRightAcrossTheBlocksTheyAreDividedIn) {
  on_every_target([&] {
    for (DataType type : kTypes) {
      for (size_t elems : {4096 / size_of(type) - 1, 4096 / size_of(type), 8192 / size_of(type) + 5}) {
        ASSERT_TRUE(holds({type, ReduceKind::kAvg, true, 3, elems, 1, 0, elems}));
      }
    }
  });
}

TEST(Reducer, AnyCallAgreesWithTheOracleOnEveryTarget) {
  on_every_target([&] {
    const bool ok = rc::check("fold equals the oracle", [] {
      Case c;
      c.type = *rc::gen::elementOf(std::vector<DataType>(std::begin(kTypes), std::end(kTypes)));
      c.kind = *rc::gen::suchThat(rc::gen::elementOf(std::vector<ReduceKind>(std::begin(kKinds), std::end(kKinds))),
                                  [&](ReduceKind kind) { return has_meaning(c.type, kind); });
      c.complete = *rc::gen::arbitrary<bool>();
      c.inputs = *rc::gen::inRange(1, 21);
      c.elems = *rc::gen::inRange<size_t>(0, 700);
      c.alias = *rc::gen::inRange(-1, c.inputs);
      c.shift = *rc::gen::inRange<size_t>(0, 64);
      c.seed = *rc::gen::arbitrary<uint64_t>();
      const auto result = holds(c);
      if (!result) RC_FAIL(std::string(result.message()));
    });
    ASSERT_TRUE(ok);
  });
}

TEST(Reducer, EveryHalfSurvivesWideningAndRounding) {
  for (DataType type : {DataType::kF16, DataType::kBF16}) {
    std::vector<uint16_t> all(65536), out(65536);
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
    on_every_target([&] {
      const void* in = all.data();
      find_cpu_reducer(type, ReduceKind::kScaledSum).fold_complete(out.data(), &in, 1, all.size(), {.factor = 1.0});
      for (size_t i = 0; i < all.size(); ++i) {
        const bool nan = std::isnan(value_of_half(type, all[i]));
        const uint16_t quiet = type == DataType::kF16 ? 0x7E00 : 0x7FC0;
        ASSERT_EQ(out[i], nan ? quiet : all[i]) << name_of(type);
      }
    });
  }
}

// All halves times factors that make ties, near ties, overflow and subnormal results, and halves plus halves.
TEST(Reducer, ProductsAndSumsOfHalvesAreRoundedOnceToNearestEven) {
  std::vector<uint16_t> all(65536), other(65536), out(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  std::vector<double> factors = {0.5,  0.1,   1.0 / 3, 3.0, 1e-3, 0x1p-10, 0x1.8p-14, 65521.0 / 65504,
                                 1e30, 1e-30, -0.7};
  for (int bit = 7; bit <= 13; ++bit) {
    factors.push_back(1 + std::ldexp(1.0, -bit));
    factors.push_back(1 - std::ldexp(1.0, -bit));
    factors.push_back(1 + std::ldexp(3.0, -bit) + 0x1p-23);
  }
  on_every_target([&] {
    for (DataType type : {DataType::kF16, DataType::kBF16}) {
      const std::vector<const void*> one = {all.data()}, two = {all.data(), other.data()};
      for (double factor : factors) {
        find_cpu_reducer(type, ReduceKind::kScaledSum).fold_complete(out.data(), one.data(), 1, 65536, {factor});
        for (size_t i = 0; i < all.size(); ++i) {
          const float product = static_cast<float>(value_of_half(type, all[i])) * static_cast<float>(factor);
          ASSERT_EQ(out[i], round_to_half(type, product)) << name_of(type) << ' ' << all[i] << " * " << factor;
        }
      }
      for (uint16_t step : {1, 0x8000, 0x8001, 0x13, 0x411, 0x87FF, 0x3C01, 0x2A55}) {
        for (size_t i = 0; i < all.size(); ++i) other[i] = static_cast<uint16_t>((i * (step | 1)) ^ step);
        find_cpu_reducer(type, ReduceKind::kSum).fold(out.data(), two.data(), 2, 65536, {});
        for (size_t i = 0; i < all.size(); ++i) {
          // f16 + f16 is exact in double; bf16 is first rounded to f32, as the contract says.
          double sum = value_of_half(type, all[i]) + value_of_half(type, other[i]);
          if (type == DataType::kBF16) sum = static_cast<float>(sum);
          ASSERT_EQ(out[i], round_to_half(type, sum)) << name_of(type) << ' ' << all[i] << " + " << other[i];
        }
      }
    }
  });
}

TEST(Reducer, ManyHalvesAreAccumulatedInF32AndNotRoundedInBetween) {
  // 1 + 16 * 2^-11: each addend alone vanishes when an f16 sum is rounded at every step.
  const uint16_t one = 0x3C00, small = round_to_half(DataType::kF16, 0x1p-11);
  std::vector<const void*> in(17, &small);
  in[0] = &one;
  uint16_t out = 0;
  find_cpu_reducer(DataType::kF16, ReduceKind::kSum).fold(&out, in.data(), 17, 1, {});
  EXPECT_EQ(value_of_half(DataType::kF16, out), 1 + 16 * 0x1p-11);
}

TEST(Reducer, FoldsFromTheLeft) {
  const float big = 1e8f, minus = -1e8f, one = 1;
  const void* in[] = {&big, &minus, &one};
  const void* other[] = {&one, &big, &minus};
  float out = 0;
  on_every_target([&] {
    const auto sum = find_cpu_reducer(DataType::kF32, ReduceKind::kSum);
    sum.fold(&out, in, 3, 1, {});
    EXPECT_EQ(out, 1);
    sum.fold(&out, other, 3, 1, {});
    EXPECT_EQ(out, 0);
  });
}

TEST(Reducer, ScaledSumOfIntegersHasNoReducerAndEverythingElseHas) {
  for (DataType type : kTypes) {
    for (ReduceKind kind : kKinds) {
      const auto reducer = find_cpu_reducer(type, kind);
      EXPECT_EQ(reducer.fold != nullptr, has_meaning(type, kind));
      EXPECT_EQ(reducer.fold_complete != nullptr, has_meaning(type, kind));
    }
  }
}

TEST(Reducer, EachTargetHasItsOwnFunctionsSoTheTestsAboveRunWhatTheySay) {
  std::set<kernels::ReduceFn> functions;
  on_every_target([&] { functions.insert(find_cpu_reducer(DataType::kF32, ReduceKind::kSum).fold); });
  EXPECT_EQ(functions.size(), hwy::SupportedAndGeneratedTargets().size());
}

}  // namespace
}  // namespace ringfold::test
