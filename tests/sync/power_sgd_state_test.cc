#include <gtest/gtest.h>

#include <cstring>

#include "sync/power_sgd.h"
#include "tests/sync/power_ranks.h"

namespace ringfold::sync {
namespace {

using namespace test_power;  // NOLINT
using Bytes = std::vector<std::byte>;

void take_step(PowerSgd& power, const Tensors& tensors, int rank, int step, bool reversed = false) {
  power.begin();
  for (size_t t = 0; t < tensors.size(); ++t) {
    put(power, reversed ? tensors.size() - 1 - t : t, noise(tensors, rank, step, t));
  }
  ASSERT_TRUE(power.finish().ok());
}

TEST(PowerSgdState, GoesOnBitForBitWhateverTheOrderOfTensors) {
  const Tensors reversed(kMixed.rbegin(), kMixed.rend());
  for (uint64_t warm_up : {0U, 4U}) {
    test::on_ranks(3, [&](Communicator& comm) {
      const PowerSgdOptions options{.rank = 2, .warm_up_steps = warm_up};
      auto first = PowerSgd::make(comm, kMixed, options), same = PowerSgd::make(comm, kMixed, options);
      auto other = PowerSgd::make(comm, reversed, options);
      ASSERT_TRUE(first.ok() && same.ok() && other.ok());
      for (int step = 0; step < 3; ++step) take_step(**first, kMixed, comm.rank(), step);
      const Bytes state = (*first)->export_state();
      ASSERT_TRUE((*same)->import_state(state).ok());
      ASSERT_TRUE((*other)->import_state(state).ok());
      EXPECT_EQ((*same)->step(), 3U);
      EXPECT_TRUE(same_bits(copy_of((*other)->error(4)), copy_of((*first)->error(0))));
      for (int step = 3; step < 7; ++step) {
        take_step(**first, kMixed, comm.rank(), step);
        take_step(**same, kMixed, comm.rank(), step);
        for (size_t t = 0; t < kMixed.size(); ++t) {
          EXPECT_TRUE(same_bits(copy_of((*first)->gradient(t)), copy_of((*same)->gradient(t)))) << step << ": " << t;
        }
        EXPECT_EQ((*first)->export_state(), (*same)->export_state());
      }
      const Bytes again = (*other)->export_state();
      auto back = PowerSgd::make(comm, kMixed, options);
      ASSERT_TRUE(back.ok() && (*back)->import_state(again).ok());
      EXPECT_EQ((*back)->export_state(), state);
    });
  }
}

TEST(PowerSgdState, ResetIsANewBeginning) {
  auto comms = Communicator::init_local(1);
  ASSERT_TRUE(comms.ok());
  auto power = PowerSgd::make(comms->front(), kMixed, {.rank = 2, .seed = 7});
  ASSERT_TRUE(power.ok());
  const Bytes fresh = (*power)->export_state();
  take_step(**power, kMixed, 0, 0);
  EXPECT_NE((*power)->export_state(), fresh);
  (*power)->reset();
  EXPECT_EQ((*power)->export_state(), fresh);
  auto other = PowerSgd::make(comms->front(), kMixed, {.rank = 2, .seed = 8});
  ASSERT_TRUE(other.ok());
  EXPECT_NE((*other)->export_state(), fresh);
}

TEST(PowerSgdState, RefusesWhatDoesNotFitAndChangesNothing) {
  test::on_ranks(2, [](Communicator& comm) {
    auto power = PowerSgd::make(comm, kMixed, {.rank = 2});
    ASSERT_TRUE(power.ok());
    take_step(**power, kMixed, comm.rank(), 0);
    const Bytes state = (*power)->export_state();
    auto expect_refused = [&](PowerSgd& into, const Bytes& bytes, const std::string& why) {
      const Bytes before = into.export_state();
      const Status status = into.import_state(bytes);
      EXPECT_EQ(status.code(), Code::kInvalid) << why;
      EXPECT_NE(status.message().find(why), std::string::npos) << status.message();
      EXPECT_EQ(into.export_state(), before);
    };
    expect_refused(**power, {}, "too short");
    expect_refused(**power, Bytes(state.begin(), state.end() - 1), "damaged");
    expect_refused(**power, Bytes(500), "something else");
    for (size_t at = 8; at < state.size(); at += 9973) {
      Bytes flipped = state;
      flipped[at] ^= std::byte{16};
      expect_refused(**power, flipped, "damaged");
    }
    const std::pair<Tensors, std::string> others[] = {
        {{{"a", 40, 700}}, "2 matrices, not 1"},
        {{{"a", 40, 700}, {"c", 33, 17}}, "no tensor 'b'"},
        {{{"a", 700, 40}, {"b", 33, 17}}, "'a' is 40 x 700 there and 700 x 40 here"},
    };
    for (const auto& [tensors, why] : others) {
      auto other = PowerSgd::make(comm, tensors, {.rank = 2});
      ASSERT_TRUE(other.ok());
      expect_refused(**other, state, why);
    }
    auto thicker = PowerSgd::make(comm, kMixed, {.rank = 3});
    ASSERT_TRUE(thicker.ok());
    expect_refused(**thicker, state, "rank 2, not 3");
    Bytes both(state.size());
    ASSERT_TRUE(comm.send_recv(state.data(), state.size(), 1 - comm.rank(), both.data(), both.size(), 1 - comm.rank(),
                               DataType::kU8)
                    .wait()
                    .ok());
    expect_refused(**power, both, "reset()");
  });
}

}  // namespace
}  // namespace ringfold::sync
