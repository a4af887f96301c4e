// Error feedback of a communicator: over many calls nothing is lost, it goes on from a checkpoint and passes to the
// survivors; and what is refused.
#include <cmath>
#include <latch>
#include <limits>
#include <mutex>

#include "tests/comm/coded.h"

namespace ringfold::test {
namespace {

// Sum of results = sum of inputs - what is held back, and what is held back does not grow.
TEST(ErrorFeedback, LosesNothingOverManyCalls) {
  for (int n : {2, 3, 4}) {
    for (ReduceOp op : {ReduceOp(kSum), ReduceOp(kAvg)}) {
      for (CodecKind kind : {CodecKind::kInt4, CodecKind::kSign, CodecKind::kTernary, CodecKind::kMXFP4}) {
        constexpr size_t kCount = 2500;
        constexpr int kSteps = 60;
        Ranks ranks(n);
        std::mutex mutex;
        std::vector<double> held(kCount), given(kCount), taken(kCount), lossy(kCount);
        ranks.each([&](Communicator& comm) {
          const auto x = draw(comm.rank(), kCount, false);
          Floats y(kCount);
          for (int step = 0; step < kSteps; ++step) {
            expect_ok(comm.all_reduce(x.data(), y.data(), kCount, DataType::kF32, op, with(kind, "w")));
            if (comm.rank() == 0) {
              for (size_t i = 0; i < kCount; ++i) taken[i] += static_cast<double>(y[i]);
            }
            expect_ok(comm.all_reduce(x.data(), y.data(), kCount, DataType::kF32, op, with(kind)));
            if (comm.rank() == 0) {
              for (size_t i = 0; i < kCount; ++i) lossy[i] += static_cast<double>(y[i]);
            }
          }
          const auto back = comm.error_feedback().get("w");
          ASSERT_EQ(back.size(), kCount);
          const std::lock_guard lock(mutex);
          for (size_t i = 0; i < kCount; ++i) {
            held[i] += static_cast<double>(back[i]);
            given[i] += kSteps * static_cast<double>(x[i]);
          }
        });
        const double scale = op.kind == ReduceKind::kAvg ? n : 1;
        double with_feedback = 0, without = 0;
        for (size_t i = 0; i < kCount; ++i) {
          ASSERT_NEAR(scale * taken[i], given[i] - held[i], 2e-3) << name_of(kind) << " element " << i << " of " << n;
          with_feedback += std::abs(scale * taken[i] - given[i]);
          without += std::abs(scale * lossy[i] - given[i]);
        }
        EXPECT_LT(with_feedback, without / 2) << name_of(kind) << " with " << n << " ranks";
      }
    }
  }
}

TEST(ErrorFeedback, StartsAgainWhereAValueWasNotFinite) {
  Ranks ranks(2);
  ranks.each([](Communicator& comm) {
    Floats x = draw(comm.rank(), 200, false), y(200);
    if (comm.rank() == 0) x[70] = std::numeric_limits<float>::infinity();
    const auto options = with(CodecKind::kInt4, "w");
    expect_ok(comm.all_reduce(x.data(), y.data(), x.size(), DataType::kF32, kSum, options));
    EXPECT_FALSE(std::isfinite(y[70]));  // the caller sees it
    for (float v : comm.error_feedback().get("w")) ASSERT_TRUE(std::isfinite(v));
    x = draw(comm.rank(), 200, false);
    expect_ok(comm.all_reduce(x.data(), y.data(), x.size(), DataType::kF32, kSum, options));
    for (float v : y) ASSERT_TRUE(std::isfinite(v));
  });
}

TEST(ErrorFeedback, GoesOnFromACheckpoint) {
  constexpr size_t kCount = 1500;
  const auto options = with(CodecKind::kInt4, "w");
  std::vector<std::string> saved(2);
  std::vector<Floats> expected(2);
  auto steps = [&](Communicator& comm, int from, int to) {
    Floats y(kCount);
    for (int step = from; step < to; ++step) {
      const auto x = draw(10 * step + comm.rank(), kCount, false);
      expect_ok(comm.all_reduce(x.data(), y.data(), kCount, DataType::kF32, kSum, options));
    }
    return y;
  };
  {
    Ranks ranks(2);
    ranks.each([&](Communicator& comm) {
      const auto me = static_cast<size_t>(comm.rank());
      steps(comm, 0, 3);
      saved[me] = comm.error_feedback().save();
      expected[me] = steps(comm, 3, 6);
    });
  }
  Ranks ranks(2);
  ranks.each([&](Communicator& comm) {
    const auto me = static_cast<size_t>(comm.rank());
    ASSERT_TRUE(comm.error_feedback().load(saved[me]).ok());
    EXPECT_EQ(comm.error_feedback().names(), std::vector<std::string>{"w"});
    EXPECT_EQ(steps(comm, 3, 6), expected[me]);
  });
}

TEST(ErrorFeedback, RefusesDamageAndOtherSizes) {
  ErrorFeedback state;
  ASSERT_TRUE(state.state("a", 3).ok());
  (*state.state("a", 3)).get()[1] = 2.5F;
  EXPECT_EQ(state.state("a", 4).status().code(), Code::kInvalid);
  const auto saved = state.save();
  for (size_t cut = 0; cut < saved.size(); ++cut) {
    if (cut == 5) continue;  // no tensors
    EXPECT_EQ(state.load(saved.substr(0, cut)).code(), Code::kInvalid) << cut;
  }
  EXPECT_EQ(state.get("a"), (Floats{0, 2.5F, 0}));
  ASSERT_TRUE(state.add(saved).ok());
  EXPECT_EQ(state.get("a"), (Floats{0, 5.0F, 0}));
  ErrorFeedback other;
  ASSERT_TRUE(other.state("a", 2).ok());
  EXPECT_EQ(other.add(saved).code(), Code::kInvalid);
  state.reset("a");
  EXPECT_TRUE(state.names().empty());
}

// A tensor's name stands for one size on a communicator.
TEST(ErrorFeedback, OfAnotherSizeIsRefusedBeforeTheCallStarts) {
  Ranks ranks(2);
  ranks.each([](Communicator& comm) {
    Floats x(100, 1.0F);
    const auto options = with(CodecKind::kInt8, "w");
    expect_ok(comm.all_reduce(x.data(), x.data(), 100, DataType::kF32, kSum, options));
    const Status s = comm.all_reduce(x.data(), x.data(), 50, DataType::kF32, kSum, options).wait();
    EXPECT_EQ(s.code(), Code::kInvalid);
    EXPECT_NE(s.to_string().find("\"w\""), std::string::npos) << s.to_string();
  });
}

TEST(ErrorFeedback, PassesToTheSurvivors) {
  Ranks ranks(3);
  std::latch both(2);  // have made the call: the verdict of a rank that goes on would end it on one that is slow
  ranks.each([&](Communicator& comm) {
    Floats x = draw(comm.rank(), 600, false), y(600);
    expect_ok(comm.all_reduce(x.data(), y.data(), 600, DataType::kF32, kSum, with(CodecKind::kInt4, "w")));
    const auto held = comm.error_feedback().get("w");
    if (comm.rank() == 2) {
      comm = Communicator();  // leaves
      return;
    }
    both.arrive_and_wait();
    EXPECT_FALSE(comm.barrier().wait().ok());
    auto next = comm.reconfigure();
    ASSERT_TRUE(next.ok()) << next.status().to_string();
    EXPECT_EQ(next->error_feedback().get("w"), held);
  });
}

}  // namespace
}  // namespace ringfold::test
