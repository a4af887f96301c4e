#include "sync/power_sgd.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "tests/support/expect_log.h"
#include "tests/sync/power_ranks.h"

namespace ringfold::sync {
namespace {

using namespace test_power;  // NOLINT

double norm(const Values& v) {
  double sum = 0;
  for (float x : v) sum += static_cast<double>(x) * x;
  return std::sqrt(sum);
}

double distance(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2);
  return std::sqrt(sum);
}

Values mean_noise(const Tensors& tensors, int ranks, int step, size_t t) {
  Values mean(tensors[t].rows * tensors[t].cols);
  for (int r = 0; r < ranks; ++r) {
    const Values v = noise(tensors, r, step, t);
    for (size_t i = 0; i < mean.size(); ++i) mean[i] += v[i] / static_cast<float>(ranks);
  }
  return mean;
}

// left x right of the given inner size, times scale.
Values product(size_t rows, size_t inner, size_t cols, const Values& left, const Values& right, float scale = 1) {
  Values m(rows * cols);
  for (size_t i = 0; i < rows; ++i) {
    for (size_t k = 0; k < inner; ++k) {
      for (size_t j = 0; j < cols; ++j) m[i * cols + j] += left[i * inner + k] * right[k * cols + j] * scale;
    }
  }
  return m;
}

std::unique_ptr<PowerSgd> make(Communicator& comm, const Tensors& tensors, const PowerSgdOptions& options) {
  auto power = PowerSgd::make(comm, tensors, options);
  EXPECT_TRUE(power.ok()) << power.status().to_string();
  return power.ok() ? std::move(*power) : nullptr;
}

// Ranks' gradients are of full rank together in what differs between them; their sum has rank 3.
TEST(PowerSgd, RecoversASumOfRankUpToRInOneStep) {
  constexpr size_t kRows = 60, kCols = 530, kTrue = 3;
  for (float scale : {1.0F, 1e-25F, 1e25F}) {
    for (int ranks = 1; ranks <= 4; ++ranks) {
      for (size_t r : {3U, 4U, 8U}) {
        test::on_ranks(ranks, [&](Communicator& comm) {
          auto power = make(comm, {{"m", kRows, kCols}}, {.rank = r, .op = kSum});
          for (int step = 0; step < 3; ++step) {
            const Values left = normal(kRows * kTrue, 50),
                         right = normal(kTrue * kCols, 60 + static_cast<uint32_t>(step));
            const Values whole = product(kRows, kTrue, kCols, left, right, scale);
            Values mine = whole, apart = normal(kRows * kCols, 70);
            for (size_t i = 0; i < mine.size(); ++i) {
              mine[i] = mine[i] / static_cast<float>(ranks);
              if (ranks >= 2 && comm.rank() < 2) mine[i] += (comm.rank() == 0 ? 1 : -1) * apart[i] * scale;
            }
            power->begin();
            put(*power, 0, mine);
            ASSERT_TRUE(power->finish().ok());
            // The next steps' rows have nothing to do with the last Q, so little of them shows in P, beside its
            // rounding.
            const double bound = step == 0 ? 1e-5 : 1e-3;
            EXPECT_LT(distance(copy_of(power->gradient(0)), whole), bound * norm(whole))
                << ranks << " ranks, r " << r << ", step " << step << ", scale " << scale;
          }
        });
      }
    }
  }
}

TEST(PowerSgd, WhatWasDecodedAndTheErrorsAddUpToAllGradients) {
  constexpr int kSteps = 25;
  for (int ranks = 1; ranks <= 4; ++ranks) {
    std::vector<std::vector<Values>> errors(static_cast<size_t>(ranks));
    std::vector<Values> decoded;
    test::on_ranks(ranks, [&](Communicator& comm) {
      auto power = make(comm, kMixed, {.rank = 2});
      std::vector<Values> sums;
      for (size_t t = 0; t < kMixed.size(); ++t) sums.emplace_back(power->gradient(t).size());
      for (int step = 0; step < kSteps; ++step) {
        power->begin();
        for (size_t t = 0; t < kMixed.size(); ++t) put(*power, t, noise(kMixed, comm.rank(), step, t));
        ASSERT_TRUE(power->finish().ok());
        for (size_t t = 0; t < kMixed.size(); ++t) {
          for (size_t i = 0; i < sums[t].size(); ++i) sums[t][i] += power->gradient(t)[i];
        }
      }
      for (size_t t : {0U, 2U}) errors[static_cast<size_t>(comm.rank())].push_back(copy_of(power->error(t)));
      if (comm.rank() == 0) decoded = sums;
    });
    for (size_t t = 0; t < kMixed.size(); ++t) {
      Values all(decoded[t].size()), together = decoded[t];
      for (int step = 0; step < kSteps; ++step) {
        const Values mean = mean_noise(kMixed, ranks, step, t);
        for (size_t i = 0; i < all.size(); ++i) all[i] += mean[i];
      }
      const bool compressed = t == 0 || t == 2;
      for (int r = 0; compressed && r < ranks; ++r) {
        const Values& error = errors[static_cast<size_t>(r)][t / 2];
        for (size_t i = 0; i < all.size(); ++i) together[i] += error[i] / static_cast<float>(ranks);
      }
      EXPECT_LE(distance(together, all), 1e-5 * norm(all)) << kMixed[t].name << ", " << ranks << " ranks";
      if (compressed) {
        EXPECT_GT(distance(decoded[t], all), 0.1 * norm(all));  // the errors do matter
      }
    }
  }
}

// A gradient of rank 6 through products of rank 1, for ever: its mean over steps arrives.
TEST(PowerSgd, ErrorFeedbackBringsEveryDirectionInTime) {
  constexpr size_t kRows = 40, kCols = 90;
  constexpr int kSteps = 200;
  const Values whole = product(kRows, 6, kCols, normal(kRows * 6, 1), normal(6 * kCols, 2));
  test::on_ranks(2, [&](Communicator& comm) {
    auto power = make(comm, {{"m", kRows, kCols}}, {.rank = 1});
    Values mean(whole.size());
    double first = 0;
    for (int step = 0; step < kSteps; ++step) {
      power->begin();
      put(*power, 0, whole);
      ASSERT_TRUE(power->finish().ok());
      if (step == 0) first = distance(copy_of(power->gradient(0)), whole);
      for (size_t i = 0; i < mean.size(); ++i) mean[i] += power->gradient(0)[i] / kSteps;
    }
    EXPECT_GT(first, 0.3 * norm(whole));
    EXPECT_LT(distance(mean, whole), 0.1 * norm(whole));
  });
}

// Ranks that differ from their mean for ever, in a direction that is decoded: the difference is not kept.
TEST(PowerSgd, ErrorsDoNotGrowByWhatRanksDifferIn) {
  constexpr size_t kRows = 30, kCols = 50;
  const Values both = normal(kRows, 1), right = normal(kCols, 2), other = normal(kCols, 3);
  const Values common = product(kRows, 1, kCols, both, right), apart = product(kRows, 1, kCols, both, other);
  test::on_ranks(2, [&](Communicator& comm) {
    auto power = make(comm, {{"m", kRows, kCols}}, {.rank = 1});
    for (int step = 0; step < 100; ++step) {
      power->begin();
      Values mine = common;
      for (size_t i = 0; i < mine.size(); ++i) mine[i] += (comm.rank() == 0 ? 1 : -1) * apart[i];
      put(*power, 0, mine);
      ASSERT_TRUE(power->finish().ok());
    }
    EXPECT_LT(norm(copy_of(power->error(0))), 1e-4 * norm(apart));
  });
}

TEST(PowerSgd, GivesAllRanksTheSameBits) {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    std::vector<std::vector<Values>> seen(static_cast<size_t>(ranks));
    test::on_ranks(ranks, [&](Communicator& comm) {
      auto power = make(comm, kMixed, {.rank = 2, .warm_up_steps = 2});
      for (int step = 0; step < 8; ++step) {
        power->begin();
        for (size_t t = 0; t < kMixed.size(); ++t) put(*power, t, noise(kMixed, comm.rank(), step, t));
        ASSERT_TRUE(power->finish().ok());
        auto& mine = seen[static_cast<size_t>(comm.rank())];
        for (size_t t = 0; t < kMixed.size(); ++t) mine.push_back(copy_of(power->gradient(t)));
        for (size_t t : {0U, 2U}) mine.push_back(copy_of(power->factor(t)));
      }
    });
    for (const auto& other : seen) {
      for (size_t i = 0; i < other.size(); ++i) EXPECT_TRUE(same_bits(other[i], seen[0][i])) << ranks << ": " << i;
    }
  }
}

// Flat tensors always, and everything during warm-up, are what all_reduce makes of the same memory.
TEST(PowerSgd, LeavesFlatTensorsAndWarmUpToAllReduce) {
  const Tensors flat = {{"bias", 1, 1000}, {"column", 777, 1}, {"small", 3, 3}};
  Tensors tensors = flat;
  tensors.push_back({"m", 64, 300});
  test::on_ranks(3, [&](Communicator& comm) {
    auto power = make(comm, tensors, {.rank = 2, .warm_up_steps = 1});
    EXPECT_EQ(power->compressed(), 1U);
    for (int step = 0; step < 3; ++step) {
      Values plain;
      power->begin();
      for (size_t t = 0; t < tensors.size(); ++t) {
        const Values mine = noise(tensors, comm.rank(), step, t);
        put(*power, t, mine);
        if (t < flat.size() || step == 0) plain.insert(plain.end(), mine.begin(), mine.end());
      }
      ASSERT_TRUE(power->finish().ok());
      ASSERT_TRUE(comm.all_reduce(plain.data(), plain.data(), plain.size(), DataType::kF32, kAvg).wait().ok());
      Values reduced;
      for (size_t t = 0; t < tensors.size(); ++t) {
        const auto g = power->gradient(t);
        if (t < flat.size() || step == 0) reduced.insert(reduced.end(), g.begin(), g.end());
      }
      EXPECT_TRUE(same_bits(plain, reduced)) << "step " << step;
      if (step == 0) {
        EXPECT_EQ(norm(copy_of(power->error(3))), 0);
      }
    }
  });
}

TEST(PowerSgd, SendsWhatTheFormulaSays) {
  auto comms = Communicator::init_local(1);
  ASSERT_TRUE(comms.ok());
  auto power = make(comms->front(), kMixed, {.rank = 2, .warm_up_steps = 1});
  const size_t plain = 4 * (40 * 700 + 41 + 33 * 17 + 9), thin = 4 * (2 * (40 + 700) + 41 + 2 * (33 + 17) + 9);
  EXPECT_EQ(power->plain_bytes(), plain);
  EXPECT_EQ(power->compressed_bytes(), thin);
  for (uint64_t step = 0; step < 3; ++step) {
    const uint64_t bytes = power->times().bytes, calls = power->times().calls;
    power->begin();
    ASSERT_TRUE(power->finish().ok());
    EXPECT_EQ(power->times().bytes - bytes, step == 0 ? plain : thin);
    EXPECT_EQ(power->times().calls - calls, step == 0 ? 1U : 3U);
    EXPECT_EQ(power->step(), step + 1);
  }
}

// r (rows + cols) = rows cols is no gain: 4 x 4 at rank 2.
TEST(PowerSgd, CompressesOnlyWhatBecomesSmaller) {
  auto comms = Communicator::init_local(1);
  ASSERT_TRUE(comms.ok());
  const Tensors tensors = {{"4x4", 4, 4},     {"4x5", 4, 5},   {"row", 1, 99},
                           {"column", 99, 1}, {"none", 0, 99}, {"2x99", 2, 99}};
  auto power = make(comms->front(), tensors, {.rank = 2});
  for (size_t t = 0; t < tensors.size(); ++t) EXPECT_EQ(power->is_compressed(t), t == 1) << tensors[t].name;
  auto nothing = make(comms->front(), {}, {.rank = 2});
  nothing->begin();
  EXPECT_TRUE(nothing->finish().ok());
}

TEST(PowerSgd, TakesZerosAndLearnsAgainAfterThem) {
  const Tensors tensors = {{"m", 20, 30}};
  const Values one = product(20, 1, 30, normal(20, 1), normal(30, 2));
  test::on_ranks(2, [&](Communicator& comm) {
    auto power = make(comm, tensors, {.rank = 3});
    for (int step = 0; step < 6; ++step) {
      power->begin();
      if (step % 2 == 1) put(*power, 0, one);  // of rank 1 where three would fit
      ASSERT_TRUE(power->finish().ok());
      const Values got = copy_of(power->gradient(0));
      if (step % 2 == 1) {
        EXPECT_LT(distance(got, one), 1e-5 * norm(one)) << step;
      } else {
        EXPECT_LT(norm(got), 1e-5 * norm(one)) << step;
      }
    }
    const Values factor = copy_of(power->factor(0));
    for (size_t k = 0; k < 3; ++k) {
      EXPECT_NEAR(norm({factor.begin() + static_cast<long>(k) * 30, factor.begin() + static_cast<long>(k + 1) * 30}),
                  1, 1e-5);
    }
  });
}

TEST(PowerSgd, HandsOnWhatIsNotFiniteAndForgetsItAfterwards) {
  using Limits = std::numeric_limits<float>;
  const Tensors tensors = {{"hit", 40, 30}, {"spared", 20, 30}};
  for (float bad : {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity()}) {
    std::vector<Values> later(2);
    test::on_ranks(2, [&](Communicator& comm) {
      auto power = make(comm, tensors, {.rank = 2}), undisturbed = make(comm, tensors, {.rank = 2});
      for (int step = 0; step < 4; ++step) {
        for (PowerSgd* p : {power.get(), undisturbed.get()}) {
          p->begin();
          for (size_t t = 0; t < 2; ++t) put(*p, t, noise(tensors, comm.rank(), step, t));
          if (p == power.get() && step == 1 && comm.rank() == 1) p->gradient(0)[777] = bad;
          ASSERT_TRUE(p->finish().ok());
        }
        const Values hit = copy_of(power->gradient(0));
        EXPECT_EQ(std::ranges::count_if(hit, [](float v) { return std::isnan(v); }), step == 1 ? 1200 : 0) << bad;
        if (step == 1) {
          EXPECT_EQ(norm(copy_of(power->error(0))), 0);
        }
        EXPECT_TRUE(all_finite(power->factor(0)));
        EXPECT_TRUE(same_bits(copy_of(power->gradient(1)), copy_of(undisturbed->gradient(1))));
      }
      later[static_cast<size_t>(comm.rank())] = copy_of(power->gradient(0));
    });
    EXPECT_TRUE(same_bits(later[0], later[1]));
  }
}

// Finite on every rank, but not the sum: in P where rows add up, in Q where columns do.
TEST(PowerSgd, TreatsOverflowLikeWhatIsNotFinite) {
  const float large = 0.9F * std::numeric_limits<float>::max();
  test::on_ranks(2, [&](Communicator& comm) {
    auto power = make(comm, {{"m", 20, 30}}, {.rank = 1, .op = kSum});
    power->begin();
    std::ranges::fill(power->gradient(0), large);
    ASSERT_TRUE(power->finish().ok());
    EXPECT_TRUE(std::isnan(power->gradient(0)[5]));
    power->begin();
    std::ranges::fill(power->gradient(0), 1.0F);
    ASSERT_TRUE(power->finish().ok());
    EXPECT_NEAR(power->gradient(0)[5], 2, 1e-4);
  });
}

TEST(PowerSgd, AfterAFailedStepGradientsAreZeroAndErrorsAsBefore) {
  test::expect_log("rank 1");
  test::on_ranks(2, [](Communicator& comm) {
    auto power = make(comm, kMixed, {.rank = 2});
    for (int step = 0; step < 2; ++step) {
      power->begin();
      for (size_t t = 0; t < kMixed.size(); ++t) put(*power, t, noise(kMixed, comm.rank(), step, t));
      if (step == 0) {
        ASSERT_TRUE(power->finish().ok());
      }
    }
    const Values error = copy_of(power->error(0)), factor = copy_of(power->factor(0));
    if (comm.rank() == 1) comm.abort("out of ideas");
    const Status status = power->finish();
    ASSERT_NE(status.verdict(), nullptr) << status.to_string();
    EXPECT_EQ(norm(copy_of(power->gradient(0))), 0);
    EXPECT_EQ(norm(copy_of(power->gradient(1))), 0);
    EXPECT_TRUE(same_bits(error, copy_of(power->error(0))));
    EXPECT_TRUE(same_bits(factor, copy_of(power->factor(0))));
    EXPECT_EQ(power->step(), 1U);
  });
}

TEST(PowerSgd, RefusesWhatCannotBe) {
  auto comms = Communicator::init_local(1);
  ASSERT_TRUE(comms.ok());
  auto code = [&](const Tensors& tensors, const PowerSgdOptions& options) {
    return PowerSgd::make(comms->front(), tensors, options).status().code();
  };
  EXPECT_EQ(code(kMixed, {.rank = 0}), Code::kInvalid);
  EXPECT_EQ(code(kMixed, {.rank = PowerSgd::kMaxRank + 1}), Code::kInvalid);
  EXPECT_EQ(code(kMixed, {.op = kMax}), Code::kInvalid);
  EXPECT_EQ(code({{"m", 2, 2}, {"m", 3, 3}}, {}), Code::kInvalid);
  EXPECT_EQ(code({{"huge", SIZE_MAX / 2, 3}}, {}), Code::kInvalid);
  EXPECT_EQ(code({{"a", SIZE_MAX / 16, 1}, {"b", SIZE_MAX / 16, 1}, {"c", SIZE_MAX / 16, 1}}, {}), Code::kInvalid);
}

}  // namespace
}  // namespace ringfold::sync
