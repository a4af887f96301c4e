// What the executor costs above the work itself.
//
//   Step          a program of many small moves over a link that does nothing, run by exec::Run, against a loop
//   written by hand
//                 that makes the same calls on the same link. The difference, per step, is what dispatch costs.
//   PlanCacheHit  finding the plan of a shape again.
//   AllReduceAlone, AllReducePair   a whole 8-byte call: one rank; two ranks as threads, against a bare exchange of
//   one
//                 cache line between two spinning threads.
//   MessageAlone, MessageWindow   8 bytes from one rank to another, both on this thread, each call done at once; 64
//                 receives posted first, then as many sends, which fill the link and then wait.
// "allocations" counts operator new on the measuring thread.
#include <benchmark/benchmark.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>

#include "comm/plan_cache.h"
#include "exec/run.h"
#include "ringfold/communicator.h"

namespace {
thread_local size_t t_allocations = 0;
}  // namespace
[[gnu::noinline]] void* operator new(size_t n) {
  ++t_allocations;
  if (void* p = std::malloc(n)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace ringfold {
namespace {

constexpr size_t kBytes = 64;  // of a step

// Always writable, always something there. Not inlined: real links are reached through the interface in both loops.
class NullLink final : public transport::Link {
 public:
  explicit NullLink(bool with_preamble) : with_preamble_(with_preamble) {}
  transport::Preamble preamble;  // of the first arrival of a run

  [[gnu::noipa]] bool writable() override { return true; }
  [[gnu::noipa]] void put(const std::byte* data, size_t, const transport::Preamble*) override {
    last_ = data;
    ++issued_;
  }
  [[gnu::noipa]] std::byte* reserve(size_t) override { return slot_.data(); }
  [[gnu::noipa]] void commit(size_t, const transport::Preamble*) override { ++issued_; }
  [[gnu::noipa]] uint64_t issued() const override { return issued_; }
  [[gnu::noipa]] uint64_t retired() override { return issued_; }
  bool announced(transport::Arrival* arrival, size_t expected) override {
    return arrived(arrival, nullptr, expected);
  }
  [[gnu::noipa]] bool arrived(transport::Arrival* arrival, std::byte*, size_t expected) override {
    *arrival = {slot_.data(), expected, with_preamble_ && released_ == 0 ? &preamble : nullptr, false};
    return true;
  }
  [[gnu::noipa]] Status fetch(std::byte*) override { return {}; }
  [[gnu::noipa]] void release() override { ++released_; }
  void start_again() { released_ = 0; }

 private:
  const bool with_preamble_;
  std::array<std::byte, kBytes> slot_{};
  const std::byte* last_ = nullptr;
  uint64_t issued_ = 0, released_ = 0;
};

// Moves of `tiles` tiles each on one lane, `steps` tiles in all: receive, add to what is there, keep and send on (as
// a ring does). A step is a tile of a move.
std::shared_ptr<exec::Plan> make_plan(uint32_t steps, uint32_t tiles, NullLink* in, NullLink* out) {
  using program::Where;
  auto plan = std::make_shared<exec::Plan>();
  auto& p = plan->program;
  p.type = DataType::kF32;
  p.reduces = true;
  p.links = {{.peer = 0, .lane = 0}, {.peer = 1, .lane = 0}};
  const uint32_t moves = steps / tiles;
  p.chunks_per_block = moves;
  p.segment_elems = steps * kBytes / sizeof(float);
  p.tile_bytes = kBytes;
  p.most_inputs = 2;
  p.lanes.emplace_back();
  for (uint32_t i = 0; i < moves; ++i) {
    program::Move move;
    move.operands = static_cast<uint32_t>(p.operands.size());
    move.inputs = 2;
    move.outputs = 2;
    move.flags = program::kReduce;
    move.chunk = i;
    move.block_elems = p.segment_elems;
    move.full = {i * tiles * kBytes, tiles * kBytes};
    const uint8_t first = i == 0 ? program::kFirst : 0;
    p.operands.push_back({.where = Where::kLink, .flags = first, .link = 0});
    p.operands.push_back({.where = Where::kInput});
    p.operands.push_back({.where = Where::kOutput});
    p.operands.push_back({.where = Where::kLink, .flags = first, .link = 1});
    p.lanes[0].push_back(move);
  }
  plan->links = {in, out};
  plan->reducer = kernels::find_cpu_reducer(DataType::kF32, ReduceKind::kSum);
  plan->contract.count = p.segment_elems;
  plan->input_bytes = plan->output_bytes = steps * kBytes;
  return plan;
}

void report(benchmark::State& state, uint64_t steps, size_t allocations) {
  state.counters["per_step"] = benchmark::Counter(
      static_cast<double>(steps), benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  state.counters["allocations"] = static_cast<double>(allocations) / static_cast<double>(state.iterations());
}

void StepByRun(benchmark::State& state) {
  const auto steps = static_cast<uint32_t>(state.range(0));
  NullLink in(true), out(false);
  auto plan = make_plan(steps, static_cast<uint32_t>(state.range(1)), &in, &out);
  exec::Contract contract = plan->contract;
  contract.sequence = 1;
  in.preamble = contract.encode();
  std::vector<std::byte> input(steps * kBytes), output(steps * kBytes);
  exec::Run run;
  exec::Fault fault;
  run.prepare(plan, input.data(), output.data(), 1);
  const size_t before = t_allocations;
  for (auto _ : state) {
    in.start_again();
    run.prepare(plan, input.data(), output.data(), 1);
    const auto end = run.advance(0, &fault);
    if (end != exec::Advance::kFinished || !run.retired()) state.SkipWithError(fault.status.to_string().c_str());
    benchmark::DoNotOptimize(output.data());
  }
  report(state, steps, t_allocations - before);
}

void StepByHand(benchmark::State& state) {
  const auto steps = static_cast<uint32_t>(state.range(0));
  NullLink first(true), second(false);
  transport::Link *in = &first, *out = &second;
  benchmark::DoNotOptimize(in);
  benchmark::DoNotOptimize(out);
  auto reducer = kernels::find_cpu_reducer(DataType::kF32, ReduceKind::kSum);
  benchmark::DoNotOptimize(reducer);
  std::vector<std::byte> input(steps * kBytes), output(steps * kBytes);
  const size_t before = t_allocations;
  for (auto _ : state) {
    first.start_again();
    for (uint32_t i = 0; i < steps; ++i) {
      transport::Arrival a;
      while (!in->arrived(&a, nullptr, kBytes)) {
      }
      while (!out->writable()) {
      }
      const void* sources[] = {a.data, input.data() + i * kBytes};
      std::byte* to = output.data() + i * kBytes;
      reducer.fold(to, sources, 2, kBytes / sizeof(float), {});
      out->put(to, kBytes, nullptr);
      benchmark::DoNotOptimize(out->issued());
      in->release();
    }
    benchmark::DoNotOptimize(out->retired());
    benchmark::DoNotOptimize(output.data());
  }
  report(state, steps, t_allocations - before);
}
BENCHMARK(StepByRun)->ArgNames({"steps", "tiles_per_move"})->Args({1024, 1})->Args({1024, 8});
BENCHMARK(StepByHand)->ArgName("steps")->Arg(1024);

void PlanCacheHit(benchmark::State& state) {
  comm::PlanCache cache;
  const auto shapes = static_cast<uint64_t>(state.range(0));
  for (uint64_t i = 0; i < 200; ++i) {
    comm::PlanKey key;
    key.count = i;
    cache.insert(key, std::make_shared<exec::Plan>());
  }
  uint64_t next = 0;
  const size_t before = t_allocations;
  for (auto _ : state) {
    comm::PlanKey key;
    key.count = next++ % shapes;
    benchmark::DoNotOptimize(cache.find(key));
  }
  report(state, 1, t_allocations - before);
}
BENCHMARK(PlanCacheHit)->ArgName("shapes")->Arg(1)->Arg(100);

void AllReduceAlone(benchmark::State& state) {
  auto ranks = Communicator::init_local(1);
  if (!ranks.ok()) return state.SkipWithError(ranks.status().to_string().c_str());
  double x = 1, y = 0;
  (void)(*ranks)[0].all_reduce(&x, &y, 1, DataType::kF64).wait();
  const size_t before = t_allocations;
  for (auto _ : state) {
    const Status s = (*ranks)[0].all_reduce(&x, &y, 1, DataType::kF64).wait();
    if (!s.ok()) return state.SkipWithError(s.to_string().c_str());
  }
  report(state, 1, t_allocations - before);
}
BENCHMARK(AllReduceAlone);

// The other rank makes as many calls as this one: it learns after every batch whether there is another.
constexpr int kBatch = 256;

void AllReducePair(benchmark::State& state) {
  auto ranks = Communicator::init_local(2);
  if (!ranks.ok()) return state.SkipWithError(ranks.status().to_string().c_str());
  std::atomic<uint64_t> batches{0};
  std::atomic<bool> stop{false};
  auto play = [](Communicator& comm) {
    double x = 1, y = 0;
    for (int i = 0; i < kBatch; ++i) (void)comm.all_reduce(&x, &y, 1, DataType::kF64).wait();
  };
  std::thread other([&] {
    for (uint64_t done = 0;;) {
      if (batches.load(std::memory_order_acquire) > done) {
        play((*ranks)[1]);
        ++done;
      } else if (stop) {
        return;
      }
    }
  });
  ++batches;
  play((*ranks)[0]);
  const size_t before = t_allocations;
  for (auto _ : state) {
    batches.fetch_add(1, std::memory_order_release);
    play((*ranks)[0]);
  }
  const size_t allocations = t_allocations - before;
  stop = true;
  other.join();
  report(state, kBatch, allocations);
}
BENCHMARK(AllReducePair)->UseRealTime();

void MessageAlone(benchmark::State& state) {
  auto ranks = Communicator::init_local(2);
  if (!ranks.ok()) return state.SkipWithError(ranks.status().to_string().c_str());
  auto pass = [&] {
    double x = 1, y = 0;
    const Status sent = (*ranks)[0].send(&x, 1, DataType::kF64, 1).wait();
    const Status received = (*ranks)[1].recv(&y, 1, DataType::kF64, 0).wait();
    return sent.ok() && received.ok() && y == 1;
  };
  bool right = pass();
  const size_t before = t_allocations;
  for (auto _ : state) right &= pass();
  report(state, 1, t_allocations - before);
  if (!right) state.SkipWithError("a message was lost");
}
BENCHMARK(MessageAlone);

void MessageWindow(benchmark::State& state) {
  constexpr size_t kWindow = 64;
  auto ranks = Communicator::init_local(2);
  if (!ranks.ok()) return state.SkipWithError(ranks.status().to_string().c_str());
  std::array<double, kWindow> x{}, y{};
  std::array<Work, 2 * kWindow> works;
  auto pass = [&] {
    for (size_t i = 0; i < kWindow; ++i) works[i] = (*ranks)[1].recv(&y[i], 1, DataType::kF64, 0);
    for (size_t i = 0; i < kWindow; ++i) works[kWindow + i] = (*ranks)[0].send(&x[i], 1, DataType::kF64, 1);
    Work &received = works[kWindow - 1], &sent = works.back();  // the last: of equal tags, they end in order
    while (!received.test() || !sent.test()) sent.test();
  };
  for (int i = 0; i < 10; ++i) pass();
  const size_t before = t_allocations;
  for (auto _ : state) pass();
  report(state, kWindow, t_allocations - before);
}
BENCHMARK(MessageWindow);

void SpinPair(benchmark::State& state) {
  struct alignas(128) Line {
    std::atomic<uint64_t> number{0};
    double value = 0;
  };
  Line mine, theirs;
  std::atomic<bool> stop{false};
  std::thread other([&] {
    for (uint64_t k = 1;; ++k) {
      theirs.value = 1;
      theirs.number.store(k, std::memory_order_release);
      while (mine.number.load(std::memory_order_acquire) < k) {
        if (stop.load(std::memory_order_relaxed)) return;
      }
      benchmark::DoNotOptimize(mine.value + 1);
    }
  });
  uint64_t k = 0;
  for (auto _ : state) {
    for (int i = 0; i < kBatch; ++i) {
      mine.value = 1;
      mine.number.store(++k, std::memory_order_release);
      while (theirs.number.load(std::memory_order_acquire) < k) {
      }
      benchmark::DoNotOptimize(theirs.value + 1);
    }
  }
  stop = true;
  other.join();
  report(state, kBatch, 0);
}
BENCHMARK(SpinPair)->UseRealTime();

}  // namespace
}  // namespace ringfold

BENCHMARK_MAIN();
