// Slots and wake-ups of the transports over slot rings, between two threads, each beside what the hardware or the
// system needs for the same without them: `limit` in the same unit, measured in turns with it, and `times_limit`.
//
// Latencies are of one way: half of a round trip. Under a hypervisor two processors may share a core now and then, so
// look at ratios.
#include <benchmark/benchmark.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "transports/loopback/loopback.h"

namespace ringfold {
namespace {

using transport::Arrival;
using transport::Link;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

std::vector<int> processors() {
  cpu_set_t set;
  std::vector<int> found;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return {0};
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) found.push_back(cpu);
  }
  return found;
}

// Binds the calling thread while it lives.
class Pinned {
 public:
  explicit Pinned(int cpu) {
    sched_getaffinity(0, sizeof before_, &before_);
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
  }
  ~Pinned() { sched_setaffinity(0, sizeof before_, &before_); }

 private:
  cpu_set_t before_;
};

// A second thread that does what it is given.
class Partner {
 public:
  explicit Partner(int cpu)
      : thread_([this, cpu] {
          const Pinned pinned(cpu);
          for (int state; (state = state_.load(std::memory_order_acquire)) != kStop;) {
            if (state == kIdle) {
              sched_yield();
              continue;
            }
            job_();
            state_.store(kIdle, std::memory_order_release);
          }
        }) {}
  ~Partner() {
    finish();
    state_.store(kStop, std::memory_order_release);
    thread_.join();
  }
  void start(std::function<void()> job) {
    finish();
    job_ = std::move(job);
    state_.store(kBusy, std::memory_order_release);
  }
  void finish() {
    while (state_.load(std::memory_order_acquire) == kBusy) sched_yield();
  }

 private:
  enum : int { kIdle, kBusy, kStop };
  std::atomic<int> state_{kIdle};
  std::function<void()> job_;
  std::thread thread_;
};

// Two ranks of one hub, wired.
struct Pair {
  explicit Pair(const loopback::Options& options = {}) {
    auto hub = loopback::Hub::create(2, options);
    for (int r = 0; r < 2; ++r) ranks.push_back(*(*hub)->make(r));
    for (int r = 0; r < 2; ++r) (void)ranks[r]->add_peer(1 - r, ranks[1 - r]->address());
    for (int r = 0; r < 2; ++r) links.push_back(ranks[r]->open(1 - r, 0));
  }
  std::vector<std::unique_ptr<transport::Transport>> ranks;
  std::vector<Link*> links;  // of rank 0 to 1, of rank 1 to 0
};

void put(Link* link, const std::byte* data, size_t bytes) {
  while (!link->writable()) pause();
  link->put(data, bytes, nullptr);
}

// Reads a word of every cache line, as whoever uses the payload does.
void take(Link* link) {
  Arrival arrival;
  while (!link->arrived(&arrival, nullptr, 0)) pause();
  uint64_t sum = 0;
  for (size_t i = 0; i + 8 <= arrival.bytes; i += 64) {
    uint64_t word;
    std::memcpy(&word, arrival.data + i, sizeof word);
    sum += word;
  }
  benchmark::DoNotOptimize(sum);
  link->release();
}

void report(benchmark::State& state, double value, double limit, bool rate = false) {
  state.counters["value"] = value;
  state.counters["limit"] = limit;
  state.counters["times_limit"] = rate ? limit / value : value / limit;
}

constexpr int kBatch = 2000;
const loopback::Options kCopies = {.slots = 8, .slot_bytes = 128 << 10, .reference_bytes = SIZE_MAX};

// Nanoseconds one way; the limit is a word that two threads hand to each other.
void SlotLatency(benchmark::State& state) {
  const auto cpus = processors();
  if (cpus.size() < 2) return state.SkipWithError("needs two processors");
  const auto bytes = static_cast<size_t>(state.range(0));
  const int rounds = bytes > 4096 ? kBatch / 10 : kBatch;
  Pair pair(kCopies);
  const Pinned pinned(cpus[0]);
  Partner partner(cpus[1]);
  const std::vector<std::byte> here(bytes), there(bytes);
  struct alignas(128) Word {
    std::atomic<int> value{0};
  } words[2];
  double slots = 0, bare = 0;
  for (auto _ : state) {
    for (Word& word : words) word.value = 0;
    partner.start([&] {
      for (int i = 1; i <= rounds; ++i) {
        while (words[0].value.load(std::memory_order_acquire) != i) pause();
        words[1].value.store(i, std::memory_order_release);
      }
    });
    auto begin = Clock::now();
    for (int i = 1; i <= rounds; ++i) {
      words[0].value.store(i, std::memory_order_release);
      while (words[1].value.load(std::memory_order_acquire) != i) pause();
      if (i == 1) begin = Clock::now();  // the partner had to start
    }
    bare += seconds_since(begin);
    partner.start([&] {
      for (int i = 0; i < rounds; ++i) {
        take(pair.links[1]);
        put(pair.links[1], there.data(), bytes);
      }
    });
    for (int i = 0; i < rounds; ++i) {
      put(pair.links[0], here.data(), bytes);
      take(pair.links[0]);
      if (i == 0) begin = Clock::now();
    }
    const double seconds = seconds_since(begin);
    slots += seconds;
    state.SetIterationTime(seconds);
  }
  const double passes = static_cast<double>(state.iterations()) * 2 * (rounds - 1);
  report(state, 1e9 * slots / passes, 1e9 * bare / passes);
}
BENCHMARK(SlotLatency)->ArgName("bytes")->Arg(8)->Arg(88)->Arg(1024)->Arg(65536)->UseManualTime();

// GB/s of puts that are copied into slots and read there; the limit is a thread that copies as much on its own.
void SlotStream(benchmark::State& state) {
  const auto cpus = processors();
  if (cpus.size() < 2) return state.SkipWithError("needs two processors");
  const auto bytes = static_cast<size_t>(state.range(0));
  Pair pair(kCopies);
  const Pinned pinned(cpus[0]);
  Partner partner(cpus[1]);
  const std::vector<std::byte> source(bytes);
  std::vector<std::byte> copy(bytes);
  double slots = 0, bare = 0;
  for (auto _ : state) {
    auto begin = Clock::now();
    for (int i = 0; i < kBatch; ++i) {
      std::memcpy(copy.data(), source.data(), bytes);
      benchmark::ClobberMemory();
    }
    bare += seconds_since(begin);
    partner.start([&] {
      for (int i = 0; i < kBatch; ++i) take(pair.links[1]);
    });
    begin = Clock::now();
    for (int i = 0; i < kBatch; ++i) put(pair.links[0], source.data(), bytes);
    partner.finish();
    const double seconds = seconds_since(begin);
    slots += seconds;
    state.SetIterationTime(seconds);
  }
  const double all = 1e-9 * static_cast<double>(state.iterations()) * kBatch * static_cast<double>(bytes);
  report(state, all / slots, all / bare, true);
}
BENCHMARK(SlotStream)->ArgName("bytes")->Arg(4096)->Arg(65536)->Arg(131072)->UseManualTime();

// Nanoseconds of code for a message, without an exchange: one thread is both ranks. The limit is a copy of its bytes.
void SlotCode(benchmark::State& state) {
  const auto bytes = static_cast<size_t>(state.range(0));
  Pair pair(kCopies);
  const std::vector<std::byte> source(bytes);
  std::vector<std::byte> copy(bytes);
  double slots = 0, bare = 0;
  for (auto _ : state) {
    auto begin = Clock::now();
    for (int i = 0; i < kBatch; ++i) {
      std::memcpy(copy.data(), source.data(), bytes);
      benchmark::ClobberMemory();
    }
    bare += seconds_since(begin);
    begin = Clock::now();
    for (int i = 0; i < kBatch; ++i) {
      put(pair.links[0], source.data(), bytes);
      take(pair.links[1]);
    }
    const double seconds = seconds_since(begin);
    slots += seconds;
    state.SetIterationTime(seconds);
  }
  const double all = static_cast<double>(state.iterations()) * kBatch;
  report(state, 1e9 * slots / all, 1e9 * bare / all);
}
BENCHMARK(SlotCode)->ArgName("bytes")->Arg(8)->Arg(88)->UseManualTime();

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
  return values[values.size() / 2];
}

// Microseconds from a put to the arrival at a thread that sleeps in poll(2); medians. The limit is an eventfd that
// wakes the same thread. `cores`: the two threads are on one processor or on two.
void WakeUp(benchmark::State& state) {
  const auto cpus = processors();
  if (cpus.size() < static_cast<size_t>(state.range(0))) return state.SkipWithError("needs two processors");
  Pair pair;
  const Pinned pinned(cpus[0]);
  Partner partner(cpus[static_cast<size_t>(state.range(0)) - 1]);
  const int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  const auto asleep = std::chrono::microseconds(300);  // by then the partner is in poll(2)
  constexpr int kMostMs = 1000;
  std::vector<double> slots, bare;
  for (auto _ : state) {
    Clock::time_point end;
    partner.start([&] {
      pollfd fd{event, POLLIN, 0};
      ::poll(&fd, 1, kMostMs);
      end = Clock::now();
      uint64_t count;
      [[maybe_unused]] auto n = read(event, &count, sizeof count);
    });
    std::this_thread::sleep_for(asleep);
    auto begin = Clock::now();
    const uint64_t one = 1;
    [[maybe_unused]] auto n = write(event, &one, sizeof one);
    partner.finish();
    bare.push_back(1e6 * std::chrono::duration<double>(end - begin).count());

    partner.start([&] {
      transport::Transport& mine = *pair.ranks[1];
      Arrival arrival;
      while (!pair.links[1]->arrived(&arrival, nullptr, 0)) {
        pollfd fd{mine.wake_fd(), POLLIN, 0};
        if (mine.prepare_to_sleep()) ::poll(&fd, 1, kMostMs);
        mine.awake();
      }
      end = Clock::now();
      pair.links[1]->release();
    });
    std::this_thread::sleep_for(asleep);
    begin = Clock::now();
    put(pair.links[0], nullptr, 0);
    partner.finish();
    const double seconds = std::chrono::duration<double>(end - begin).count();
    slots.push_back(1e6 * seconds);
    state.SetIterationTime(seconds);
  }
  close(event);
  report(state, median(slots), median(bare));
}
BENCHMARK(WakeUp)->ArgName("cores")->Arg(1)->Arg(2)->Iterations(300)->UseManualTime();

}  // namespace
}  // namespace ringfold

BENCHMARK_MAIN();
