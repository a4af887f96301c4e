// Calls that repeat themselves allocate nothing. This program counts every malloc of the threads that make them.
#include <array>
#include <barrier>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <ostream>

#include "tests/comm/ranks.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define RF_COUNTS 0  // the sanitizers' own malloc is in place
#else
#define RF_COUNTS 1
#endif

namespace {
thread_local bool t_counting = false;
thread_local size_t t_count = 0;
}  // namespace

#if RF_COUNTS
extern "C" {
// NOLINTBEGIN: the names are the C library's
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void* malloc(size_t n) {
  t_count += t_counting;
  return __libc_malloc(n);
}
void* calloc(size_t n, size_t size) {
  t_count += t_counting;
  return __libc_calloc(n, size);
}
void* realloc(void* p, size_t n) {
  t_count += t_counting;
  return __libc_realloc(p, n);
}
void* aligned_alloc(size_t alignment, size_t n) {
  t_count += t_counting;
  return __libc_memalign(alignment, n);
}
int posix_memalign(void** p, size_t alignment, size_t n) {
  t_count += t_counting;
  *p = __libc_memalign(alignment, n);
  return *p == nullptr ? ENOMEM : 0;
}
// NOLINTEND
}
#endif

namespace ringfold::test {
namespace {

size_t allocations_of(const std::function<void()>& play) {
  t_count = 0;
  t_counting = true;
  play();
  t_counting = false;
  return t_count;
}

void expect_none(Communicator& comm, const char* what, const std::function<void()>& call) {
  for (int i = 0; i < 100; ++i) call();
  const size_t count = allocations_of([&] {
    for (int i = 0; i < 400; ++i) call();
  });
  EXPECT_EQ(count, 0U) << what << " on rank " << comm.rank() << " of " << comm.size();
}

struct Way {
  std::string transport;
  int ranks;
};
void PrintTo(const Way& way, std::ostream* out) { *out << way.transport << " x" << way.ranks; }

class Allocations : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    if (!RF_COUNTS) GTEST_SKIP() << "a sanitizer has replaced malloc";
    EXPECT_GE(allocations_of([] { delete new volatile int(1); }), 1U) << "the counter does not count";
  }
};

TEST_P(Allocations, AreNoneInCallsThatRepeat) {
  const auto [transport, n] = GetParam();
  Ranks ranks(n, patient(transport));
  std::barrier together(n);
  ranks.each([&together](Communicator& comm) {
    double x = 1, y = 0;
    expect_none(comm, "an all_reduce of 8 bytes", [&] { (void)comm.all_reduce(&x, &y, 1, DataType::kF64).wait(); });
    EXPECT_EQ(y, comm.size());
    expect_none(comm, "a barrier", [&] { (void)comm.barrier().wait(); });
    std::vector<float> big(20'000, 1);
    expect_none(comm, "an all_reduce of 80 kB",
                [&] { (void)comm.all_reduce(big.data(), big.data(), big.size(), DataType::kF32, kMax).wait(); });
    // Shapes that take turns are found in the plan cache.
    expect_none(comm, "one of three shapes", [&] {
      (void)comm.all_reduce(&x, &y, 1, DataType::kF64).wait();
      (void)comm.broadcast(&x, &y, 1, DataType::kF64, 0).wait();
      (void)comm.all_reduce(&x, &y, 1, DataType::kF64, kMin).wait();
    });
    auto persistent = comm.persistent_all_reduce(&x, &y, 1, DataType::kF64);
    ASSERT_TRUE(persistent.ok());
    expect_none(comm, "a persistent all_reduce", [&] { (void)persistent->start().wait(); });
    std::array<Work, 10> works;
    std::array<double, 10> sums;
    const auto start_ten = [&] {
      for (size_t i = 0; i < works.size(); ++i) works[i] = comm.all_reduce(&x, &sums[i], 1, DataType::kF64);
    };
    const auto wait_for_ten = [&] {
      for (auto& work : works) (void)work.wait();
    };
    // Some may end at once. So that each rank has had ten in flight, each is the first for once.
    for (int first = 0; first < comm.size(); ++first) {
      if (comm.rank() == first) start_ten();
      together.arrive_and_wait();
      if (comm.rank() != first) start_ten();
      wait_for_ten();
    }
    expect_none(comm, "ten calls in flight", [&] {
      start_ten();
      wait_for_ten();
    });
  });
}

INSTANTIATE_TEST_SUITE_P(Of, Allocations,
                         testing::Values(Way{"loopback", 1}, Way{"loopback", 2}, Way{"loopback", 4}, Way{"shm", 3},
                                         Way{"tcp", 2}),
                         [](const auto& info) {
                           return info.param.transport + "_" + std::to_string(info.param.ranks);
                         });

}  // namespace
}  // namespace ringfold::test
