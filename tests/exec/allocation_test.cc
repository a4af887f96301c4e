// A call whose shape is known allocates nothing: counted by this program's operator new.
#include <atomic>
#include <cstdlib>
#include <new>

#include "tests/exec/world.h"

namespace {
std::atomic<uint64_t> g_allocations{0};
thread_local bool t_counted = false;

void* allocate(size_t bytes) {
  if (t_counted) ++g_allocations;
  if (void* p = std::malloc(bytes > 0 ? bytes : 1)) return p;
  std::abort();
}
}  // namespace

void* operator new(size_t bytes) { return allocate(bytes); }
void* operator new[](size_t bytes) { return allocate(bytes); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t) noexcept { std::free(p); }

namespace ringfold::test {
namespace {

TEST(Allocation, TheCounterCounts) {
  t_counted = true;
  delete new uint64_t(3);
  t_counted = false;
  EXPECT_EQ(g_allocations.exchange(0), 1u);
}

TEST(Allocation, SteadyCallsAllocateNothingAlsoWhenTheyMustWait) {
  for (const char* algorithm : {"oneshot", "ring", "tree"}) {
    constexpr int kRanks = 3;
    World world(kRanks);
    world.each([&](Rank& rank) {
      Call call;
      call.shape = {Collective::kAllReduce, kRanks};
      call.algorithm = algorithm;
      call.count = 1;
      call.type = DataType::kF64;
      Buffers buffers(call, rank.rank());
      auto plan = *bind_plan(call, rank.domain());
      const base::Deadline deadline = base::Deadline::after(kPatience);
      for (int k = 0; k < 400; ++k) {
        t_counted = k >= 100;
        exec::Ref<exec::Run> run;
        {
          exec::Engine::Hold hold(*rank.engine);
          run = rank.domain().take_run();
          run->deadline = deadline;
          rank.engine->start(hold, rank.domain(), run.get(), plan, buffers.input(), buffers.output());
        }
        rank.engine->wait(*run, deadline);
        if (k % 50 == rank.rank()) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // the others sleep
      }
      t_counted = false;
      EXPECT_EQ(buffers.check(), "");
    });
    EXPECT_EQ(g_allocations.exchange(0), 0u) << algorithm;
  }
}

}  // namespace
}  // namespace ringfold::test
