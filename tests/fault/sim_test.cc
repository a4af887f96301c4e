// Ten thousand jobs under random harm, each replayable: no hang in virtual time, right results of all calls that
// complete, one verdict on all survivors, which names the culprit, and a stream that goes on.
//
//   RINGFOLD_SIM_SEEDS=1-10000    which seeds (default: those that the build registers)
//   RINGFOLD_SIM_SEED=4711        this one only, with a trace
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "tests/fault/simulation.h"

namespace ringfold::test {
namespace {

struct Seeds {
  uint64_t first = 1, last = 400;
};

Seeds seeds() {
  Seeds s;
  if (const char* range = std::getenv("RINGFOLD_SIM_SEEDS")) {
    unsigned long long first = 0, last = 0;
    EXPECT_EQ(std::sscanf(range, "%llu-%llu", &first, &last), 2) << "RINGFOLD_SIM_SEEDS=FIRST-LAST";
    s = {first, last};
  }
  return s;
}

class Harmed : public testing::TestWithParam<Harm> {};

TEST_P(Harmed, JobsEndEveryCallRightOrWithOneVerdictAndGoOn) {
  const char* one = std::getenv("RINGFOLD_SIM_SEED");
  const uint64_t only = one != nullptr ? std::strtoull(one, nullptr, 10) : 0;
  const Seeds range = one != nullptr ? Seeds{only, only} : seeds();
  uint64_t runs = 0, calls = 0, verdicts = 0, undecidable = 0, failures = 0;
  for (uint64_t seed = range.first; seed <= range.last && failures < 5; ++seed) {
    if (harm_of(seed) != GetParam()) continue;
    const Outcome outcome = Simulation(seed, one != nullptr).run();
    ++runs;
    calls += outcome.calls;
    verdicts += static_cast<uint64_t>(outcome.verdicts);
    undecidable += static_cast<uint64_t>(outcome.undecidable);
    if (outcome.wrong.empty()) continue;
    ++failures;
    ADD_FAILURE() << "seed " << seed << ": " << outcome.wrong.front() << "\n  replay: RINGFOLD_SIM_SEED=" << seed
                  << " fault_sim_test --gtest_filter='*/" << name_of(GetParam()) << "'";
  }
  std::printf("  %s: %llu jobs, %llu calls right, %llu verdicts (%llu undecidable)\n",
              std::string(name_of(GetParam())).c_str(), static_cast<unsigned long long>(runs),
              static_cast<unsigned long long>(calls), static_cast<unsigned long long>(verdicts),
              static_cast<unsigned long long>(undecidable));
  if (runs >= 20) {
    EXPECT_LE(undecidable, runs / 8) << "verdicts that name nobody, or the wrong one of two";
  }
  const bool fails = GetParam() == Harm::kKill || GetParam() == Harm::kStop || GetParam() == Harm::kMismatch ||
                     GetParam() == Harm::kCut;
  if (runs >= 20 && fails) {
    EXPECT_GT(verdicts, runs / 4) << "the harm does no harm";
  }
}

INSTANTIATE_TEST_SUITE_P(Simulated, Harmed,
                         testing::Values(Harm::kNone, Harm::kKill, Harm::kStop, Harm::kStopAndResume, Harm::kSkip,
                                         Harm::kMismatch, Harm::kSlow, Harm::kCut, Harm::kSeveral),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST(Simulation, ASeedReplays) {
  for (uint64_t seed = 1; seed <= 16; ++seed) {
    const Outcome a = Simulation(seed, false).run(), b = Simulation(seed, false).run();
    EXPECT_EQ(a.calls, b.calls);
    EXPECT_EQ(a.verdicts, b.verdicts);
    EXPECT_EQ(a.wrong, b.wrong);
  }
}

}  // namespace
}  // namespace ringfold::test
