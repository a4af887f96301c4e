// Gradients that travel as codes: what is plain stays exact, the rest is within the code's error, and nothing is lost
// over many steps unless error feedback is off.
#include <gtest/gtest.h>

#include <cmath>

#include "sync/bucket.h"
#include "tests/train/ranks.h"

namespace ringfold::sync {
namespace {

// Weights and biases in turns, as layers have them.
const std::vector<size_t> kCounts = {3000, 30, 0, 5000, 50, 70, 7};
const std::vector<bool> kPlain = {false, true, false, false, true, false, true};

float coded_gradient(int rank, size_t parameter, size_t i) {
  uint64_t x = (static_cast<uint64_t>(rank) * 100'003 + parameter * 10'007 + i + 1) * 0x9e3779b97f4a7c15ULL;
  x = (x ^ x >> 29) * 0xbf58476d1ce4e5b9ULL;
  return static_cast<float>((x >> 32) % 2001) / 1000.0F - 1.0F;
}

// Mean distance, over the elements that travel coded, of the sum of all steps' results from what it should be; the
// others are exact.
double mean_gap(const BucketOptions& options, int steps) {
  constexpr int kRanks = 3;
  double gap = 0;
  test::on_ranks(kRanks, [&](Communicator& comm) {
    auto reducer = BucketReducer::make(comm, kCounts, options, kPlain);
    ASSERT_TRUE(reducer.ok()) << reducer.status().to_string();
    std::vector<std::vector<double>> sums;
    for (size_t count : kCounts) sums.emplace_back(count);
    for (int step = 0; step < steps; ++step) {
      (*reducer)->begin();
      for (size_t p = kCounts.size(); p-- > 0;) {
        auto gradient = (*reducer)->gradient(p);
        for (size_t i = 0; i < gradient.size(); ++i) gradient[i] = coded_gradient(comm.rank(), p, i);
        (*reducer)->ready(p);
      }
      const Status status = (*reducer)->finish();
      ASSERT_TRUE(status.ok()) << status.to_string();
      for (size_t p = 0; p < kCounts.size(); ++p) {
        for (size_t i = 0; i < kCounts[p]; ++i) {
          sums[p][i] += static_cast<double>((*reducer)->gradient(p)[i]);
        }
      }
    }
    EXPECT_EQ((*reducer)->times().bytes, static_cast<uint64_t>(steps) * (*reducer)->bytes());
    if (comm.rank() != 0) return;
    double elems = 0;
    for (size_t p = 0; p < kCounts.size(); ++p) {
      for (size_t i = 0; i < kCounts[p]; ++i) {
        float right = 0;
        for (int r = 0; r < kRanks; ++r) right += coded_gradient(r, p, i);
        const double distance = std::abs(sums[p][i] - static_cast<double>(right) * steps);
        if (kPlain[p]) {
          ASSERT_LT(distance, 1e-4 * steps) << "parameter " << p << " element " << i;
        } else {
          gap += distance;
          ++elems;
        }
      }
    }
    gap /= elems;
  });
  return gap;
}

TEST(CodedBuckets, KeepSmallTensorsExactAndLoseNothingOverManySteps) {
  for (const char* name : {"int8", "int4", "ternary", "topk:0.05"}) {
    BucketOptions options{.bucket_bytes = 16'000, .first_bucket_bytes = 4'000, .op = kSum};
    options.codec = *parse_codec(name);
    const double one = mean_gap(options, 1), many = mean_gap(options, 40);
    EXPECT_GT(one, 0) << name;
    options.feedback = false;
    const double forgetful = mean_gap(options, 40);
    EXPECT_LT(many, forgetful / 2) << name;
  }
}

TEST(CodedBuckets, SayWhatTravels) {
  test::on_ranks(2, [](Communicator& comm) {
    uint64_t elems = 0, plain = 0;
    for (size_t p = 0; p < kCounts.size(); ++p) (kPlain[p] ? plain : elems) += kCounts[p];
    const auto bytes = [&](const BucketOptions& options) {
      auto reducer = BucketReducer::make(comm, kCounts, options, kPlain);
      EXPECT_TRUE(reducer.ok());
      return (*reducer)->bytes();
    };
    BucketOptions options{.bucket_bytes = 1 << 20, .first_bucket_bytes = 1 << 20};
    EXPECT_EQ(bytes(options), 4 * (elems + plain));
    options.codec = CodecKind::kInt8;
    EXPECT_EQ(bytes(options), encoded_bytes(options.codec, elems) + 4 * plain);
    options.codec.when_faster = true;  // between threads it never is
    EXPECT_EQ(bytes(options), 4 * (elems + plain));
    options.codec = Codec(CodecKind::kTopK);  // keeps nothing
    EXPECT_EQ(BucketReducer::make(comm, kCounts, options, kPlain).status().code(), Code::kInvalid);
  });
}

}  // namespace
}  // namespace ringfold::sync
