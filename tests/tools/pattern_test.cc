// The data of `ringfold perf`: the predicted results are what the definition gives, in any order of reduction, and
// data that is in the wrong place is noticed.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <random>

#include "kernels/reducer.h"
#include "tools/cli/perf/pattern.h"

namespace ringfold::test {
namespace {

using cli::Pattern;

struct Combination {
  DataType type;
  ReduceKind kind;
};

std::vector<Combination> all_combinations() {
  std::vector<Combination> result;
  for (int t = 0; t < kDataTypes; ++t) {
    for (int k = 0; k < kReduceKinds; ++k) {
      const Combination c{static_cast<DataType>(t), static_cast<ReduceKind>(k)};
      if (c.kind != ReduceKind::kScaledSum || is_float(c.type)) result.push_back(c);
    }
  }
  return result;
}

class PatternOf : public testing::TestWithParam<Combination> {};

// Folds two at a time in a random order, rounding each time as a ring does.
TEST_P(PatternOf, PredictsWhatAnyOrderOfReductionGives) {
  const auto [type, kind] = GetParam();
  ReduceOp op(kind);
  op.scale = 0.25;
  const auto reducer = kernels::find_cpu_reducer(type, kind);
  constexpr size_t kElems = 3000, kFrom = 12345;
  std::mt19937 random(7);
  for (const int ranks : {1, 2, 3, 5, 8, 17, 64}) {
    const Pattern pattern(type, op, true, ranks);
    std::vector<std::vector<char>> data(static_cast<size_t>(ranks), std::vector<char>(kElems * size_of(type)));
    for (int r = 0; r < ranks; ++r) pattern.fill(data[static_cast<size_t>(r)].data(), kElems, r, kFrom);
    std::shuffle(data.begin(), data.end(), random);
    const kernels::Post post{kind == ReduceKind::kAvg ? 1.0 / ranks : op.scale, ranks};
    if (ranks == 1) {
      const std::array<const void*, 1> in = {data[0].data()};
      reducer.fold_complete(data[0].data(), in.data(), 1, kElems, post);
    }
    while (data.size() > 1) {
      const std::array<const void*, 2> in = {data[data.size() - 2].data(), data.back().data()};
      (data.size() == 2 ? reducer.fold_complete : reducer.fold)(data[data.size() - 2].data(), in.data(), 2, kElems,
                                                                post);
      data.pop_back();
    }
    EXPECT_EQ(pattern.wrong(data[0].data(), kElems, Pattern::kReduced, kFrom), 0u) << ranks << " ranks";
  }
}

INSTANTIATE_TEST_SUITE_P(Every, PatternOf, testing::ValuesIn(all_combinations()), [](const auto& info) {
  return std::string(name_of(info.param.type)) + "_" + std::string(name_of(info.param.kind));
});

class PatternSum : public testing::TestWithParam<DataType> {};

// Misplaced by one element, by a tile, by a chunk; from another rank; without one rank's contribution.
TEST_P(PatternSum, NoticesDataOutOfPlace) {
  constexpr size_t kElems = 4096;
  for (const bool reduced : {false, true}) {
    const Pattern pattern(GetParam(), kSum, reduced, 4);
    const int source = reduced ? Pattern::kReduced : 2;
    std::vector<char> data(kElems * size_of(GetParam()));
    for (const size_t shift : {1u, 16u, 256u, 1024u, 4096u, 65536u, 1u << 20, 1000u, 87381u}) {
      pattern.fill(data.data(), kElems, source, shift);
      EXPECT_EQ(pattern.wrong(data.data(), kElems, source, shift), 0u);
      EXPECT_GT(pattern.wrong(data.data(), kElems, source, 0), kElems / 2) << "shift " << shift;
    }
    pattern.fill(data.data(), kElems, 1, 0);
    EXPECT_GT(pattern.wrong(data.data(), kElems, source, 0), kElems / 2) << "another rank's data";
    pattern.poison(data.data(), kElems, source, 0);
    EXPECT_EQ(pattern.wrong(data.data(), kElems, source, 0), kElems) << "poison is wrong everywhere";
  }
  const Pattern four(GetParam(), kSum, true, 4), three(GetParam(), kSum, true, 3);
  std::vector<char> data(kElems * size_of(GetParam()));
  three.fill(data.data(), kElems, Pattern::kReduced, 0);
  EXPECT_GT(four.wrong(data.data(), kElems, Pattern::kReduced, 0), kElems / 2) << "a contribution is missing";
}

INSTANTIATE_TEST_SUITE_P(Every, PatternSum,
                         testing::Values(DataType::kF64, DataType::kF32, DataType::kBF16, DataType::kI8,
                                         DataType::kU64),
                         [](const auto& info) { return std::string(name_of(info.param)); });

}  // namespace
}  // namespace ringfold::test
