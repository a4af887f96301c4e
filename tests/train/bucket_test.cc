#include "sync/bucket.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "tests/support/expect_log.h"
#include "tests/train/ranks.h"

namespace ringfold::sync {
namespace {

using Counts = std::vector<size_t>;

// Small integers, so that every order of adding them gives the same float.
float gradient_of(int rank, size_t parameter, size_t i, int step) {
  return static_cast<float>((static_cast<size_t>(rank) * 7 + parameter * 13 + i * 3 + static_cast<size_t>(step)) %
                            101);
}

float expected(ReduceOp op, int ranks, size_t parameter, size_t i, int step) {
  float sum = 0;
  for (int r = 0; r < ranks; ++r) sum += gradient_of(r, parameter, i, step);
  return op == kAvg ? sum * (1.0F / static_cast<float>(ranks)) : sum;
}

// Each rank's gradients become ready in an order of its own; some are never said to be ready.
void expect_reduced(int ranks, const Counts& counts, const BucketOptions& options, uint32_t seed, int steps = 2) {
  test::on_ranks(ranks, [&](Communicator& comm) {
    auto reducer = BucketReducer::make(comm, counts, options);
    ASSERT_TRUE(reducer.ok()) << reducer.status().to_string();
    std::mt19937 random(seed + static_cast<uint32_t>(comm.rank()));
    for (int step = 0; step < steps; ++step) {
      (*reducer)->begin();
      Counts order(counts.size());
      std::iota(order.begin(), order.end(), size_t{0});
      std::shuffle(order.begin(), order.end(), random);
      for (size_t p : order) {
        const auto gradient = (*reducer)->gradient(p);
        ASSERT_EQ(gradient.size(), counts[p]);
        for (size_t i = 0; i < gradient.size(); ++i) gradient[i] += gradient_of(comm.rank(), p, i, step);
        if (random() % 8 != 0) (*reducer)->ready(p);
      }
      const Status status = (*reducer)->finish();
      ASSERT_TRUE(status.ok()) << status.to_string();
      for (size_t p = 0; p < counts.size(); ++p) {
        const auto gradient = (*reducer)->gradient(p);
        for (size_t i = 0; i < gradient.size(); ++i) {
          ASSERT_FLOAT_EQ(gradient[i], expected(options.op, ranks, p, i, step))
              << "parameter " << p << " element " << i;
        }
      }
    }
  });
}

TEST(BucketReducer, AveragesParametersOfAnySizesInAnyOrder) {
  EXPECT_TRUE(rc::check([] {
    const auto counts = *rc::gen::container<Counts>(rc::gen::inRange<size_t>(0, 60));
    const BucketOptions options{.bucket_bytes = *rc::gen::inRange<size_t>(1, 600),
                                .first_bucket_bytes = *rc::gen::inRange<size_t>(1, 600),
                                .op = *rc::gen::element(kAvg, kSum)};
    expect_reduced(*rc::gen::inRange(1, 5), counts, options, *rc::gen::arbitrary<uint32_t>());
    RC_ASSERT(!testing::Test::HasFatalFailure());
  }));
}

TEST(BucketReducer, TakesOneHugeParameter) { expect_reduced(3, {3 << 20}, {}, 1); }

TEST(BucketReducer, TakesManyTinyParameters) { expect_reduced(3, Counts(5000, 3), {}, 2); }

TEST(BucketReducer, TakesNoParametersAndEmptyOnes) {
  expect_reduced(3, {}, {}, 3);
  expect_reduced(3, {0}, {}, 3);
  expect_reduced(3, {0, 0, 5, 0}, {.bucket_bytes = 4, .first_bucket_bytes = 4}, 3);
}

TEST(BucketReducer, CutsBucketsInReverseOrderTheFirstSmaller) {
  auto comms = Communicator::init_local(1);
  ASSERT_TRUE(comms.ok());
  const Counts counts = {100, 100, 200, 10, 20, 5};  // from the back: 5 + 20, then 10 + 200, 100 + 100
  auto reducer = BucketReducer::make(comms->front(), counts, {.bucket_bytes = 900, .first_bucket_bytes = 120});
  ASSERT_TRUE(reducer.ok());
  auto& r = **reducer;
  EXPECT_EQ(r.buckets(), 3U);
  auto same_bucket = [&](size_t p, size_t next) {
    return r.gradient(p).data() + counts[p] == r.gradient(next).data();
  };
  EXPECT_TRUE(same_bucket(5, 4) && same_bucket(3, 2) && same_bucket(1, 0));
  EXPECT_FALSE(same_bucket(4, 3) || same_bucket(2, 1));
  r.begin();
  auto calls_after = [&](size_t p) {
    r.ready(p);
    return r.times().calls;
  };
  EXPECT_EQ(calls_after(5), 0U);
  EXPECT_EQ(calls_after(2), 0U);
  EXPECT_EQ(calls_after(3), 0U);  // full, but the bucket before it is not: the order of calls is fixed
  EXPECT_EQ(calls_after(4), 2U);
  EXPECT_EQ(calls_after(1), 2U);
  EXPECT_EQ(calls_after(0), 3U);  // before finish(): communication starts while backward runs
  EXPECT_TRUE(r.finish().ok());
  EXPECT_EQ(r.times().bytes, 435 * sizeof(float));
}

TEST(BucketReducer, WithoutReadyGradientsSumsZeros) {
  test::on_ranks(2, [](Communicator& comm) {
    auto reducer = BucketReducer::make(comm, Counts{4, 9}, {.op = kSum});
    ASSERT_TRUE(reducer.ok());
    for (int step = 0; step < 2; ++step) {
      (*reducer)->begin();
      if (comm.rank() == 0) {
        std::ranges::fill((*reducer)->gradient(1), 2.5F);
        (*reducer)->ready(1);
      }
      ASSERT_TRUE((*reducer)->finish().ok());
      EXPECT_EQ((*reducer)->gradient(1)[8], 2.5F);
      EXPECT_EQ((*reducer)->gradient(0)[0], 0.0F);
    }
  });
}

TEST(BucketReducer, ReadyTwiceOrUnknownIsAnErrorAndLeavesNoPeerWaiting) {
  for (size_t bad : {size_t{1}, size_t{2}}) {
    test::on_ranks(2, [bad](Communicator& comm) {
      auto reducer = BucketReducer::make(comm, Counts{4, 9});
      ASSERT_TRUE(reducer.ok());
      (*reducer)->begin();
      std::ranges::fill((*reducer)->gradient(0), 1.0F);
      (*reducer)->ready(1);
      if (comm.rank() == 0) (*reducer)->ready(bad);
      const Status status = (*reducer)->finish();
      if (comm.rank() == 1) {
        EXPECT_TRUE(status.ok()) << status.to_string();
        EXPECT_EQ((*reducer)->gradient(0)[3], 1.0F);
      } else {
        EXPECT_EQ(status.code(), Code::kInvalid);
        EXPECT_EQ((*reducer)->gradient(0)[3], 0.0F);
      }
      (*reducer)->begin();  // the next step is as if nothing had been
      EXPECT_TRUE((*reducer)->finish().ok());
    });
  }
}

// One rank gives up after some of its buckets have been started: on all ranks finish() ends with the verdict, and the
// gradients are zero, not partial sums.
TEST(BucketReducer, AfterAnAbortAnywhereGradientsAreZeroAndTheVerdictIsShared) {
  test::expect_log("rank 1");
  for (size_t given_up_after : {size_t{0}, size_t{1}, size_t{3}}) {
    std::vector<Status> statuses(3);
    test::on_ranks(3, [&](Communicator& comm) {
      const Counts counts(5, 1000);
      auto reducer = BucketReducer::make(comm, counts, {.bucket_bytes = 4000, .first_bucket_bytes = 4000});
      ASSERT_TRUE(reducer.ok());
      (*reducer)->begin();
      for (size_t p = counts.size(); p-- > 0;) {
        if (comm.rank() == 1 && counts.size() - 1 - p == given_up_after) comm.abort("out of ideas");
        std::ranges::fill((*reducer)->gradient(p), 1.0F);
        (*reducer)->ready(p);
      }
      Status& status = statuses[static_cast<size_t>(comm.rank())];
      status = (*reducer)->finish();
      for (size_t p = 0; p < counts.size(); ++p) {
        EXPECT_TRUE(std::ranges::all_of((*reducer)->gradient(p), [](float g) { return g == 0.0F; }))
            << "parameter " << p;
      }
    });
    for (const Status& status : statuses) {
      ASSERT_NE(status.verdict(), nullptr) << status.to_string();
      EXPECT_EQ(status.verdict()->rank, 1);
      EXPECT_NE(status.verdict()->cause.find("out of ideas"), std::string::npos) << status.to_string();
    }
  }
}

// A step can be given up half-way (an exception in the model): neither the next begin() nor the destructor may pull
// the memory from under calls in flight.
TEST(BucketReducer, AStepGivenUpHalfWayIsDrained) {
  test::on_ranks(2, [](Communicator& comm) {
    const Counts counts(4, 50000);
    auto reducer =
        BucketReducer::make(comm, counts, {.bucket_bytes = 200000, .first_bucket_bytes = 200000, .op = kSum});
    ASSERT_TRUE(reducer.ok());
    (*reducer)->begin();
    (*reducer)->ready(3);
    (*reducer)->begin();
    std::ranges::fill((*reducer)->gradient(0), 1.0F);
    ASSERT_TRUE((*reducer)->finish().ok());
    EXPECT_EQ((*reducer)->gradient(0)[49999], 2.0F);
    (*reducer)->begin();
    (*reducer)->ready(3);
  });
}

TEST(BucketReducer, RefusesBucketsOfNoSize) {
  auto comms = Communicator::init_local(1);
  ASSERT_TRUE(comms.ok());
  EXPECT_EQ(BucketReducer::make(comms->front(), Counts{1}, {.bucket_bytes = 0}).status().code(), Code::kInvalid);
  EXPECT_EQ(BucketReducer::make(comms->front(), Counts{1}, {.first_bucket_bytes = 0}).status().code(),
            Code::kInvalid);
}

TEST(BucketReducer, TimesAreWithinTheStepsThatTheyMeasure) {
  test::on_ranks(2, [](Communicator& comm) {
    auto reducer = BucketReducer::make(comm, Counts(20, 10000));
    ASSERT_TRUE(reducer.ok());
    const auto begin = std::chrono::steady_clock::now();
    for (int step = 0; step < 5; ++step) {
      (*reducer)->begin();
      for (size_t p = 20; p-- > 0;) (*reducer)->ready(p);
      ASSERT_TRUE((*reducer)->finish().ok());
    }
    const double all_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    EXPECT_GT((*reducer)->times().exposed_s, 0);
    EXPECT_LT((*reducer)->times().exposed_s, all_s);
    EXPECT_GT((*reducer)->times().in_flight_s, 0);
    EXPECT_LT((*reducer)->times().in_flight_s, all_s);
    EXPECT_EQ((*reducer)->times().bytes, 5 * 20 * 10000 * sizeof(float));
  });
}

}  // namespace
}  // namespace ringfold::sync
