#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "bench/limits/figures.h"
#include "kernels/copy.h"
#include "kernels/reducer.h"

namespace ringfold::limits {
namespace {

using Clock = std::chrono::steady_clock;

// On huge pages where the system gives them, all touched.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : memory_(static_cast<char*>(std::aligned_alloc(kAlign, bytes))) {
    ::madvise(memory_.get(), bytes, MADV_HUGEPAGE);
    std::memset(memory_.get(), 1, bytes);
  }
  char* get() const { return memory_.get(); }
  static constexpr size_t kAlign = size_t{2} << 20;

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> memory_;
};

// What one thread works on: up to three buffers, not starting in the same cache sets.
struct Arena {
  explicit Arena(size_t bytes) : memory(3 * (bytes + kSkew) / Buffer::kAlign * Buffer::kAlign + Buffer::kAlign) {
    for (size_t i = 0; i < at.size(); ++i) at[i] = memory.get() + i * (bytes + kSkew);
  }
  static constexpr size_t kSkew = 4096 + 128;
  Buffer memory;
  std::array<char*, 3> at{};
};

using Body = void (*)(const Arena& arena, size_t bytes);

void copy_plain(const Arena& arena, size_t bytes) { std::memcpy(arena.at[0], arena.at[1], bytes); }
void copy_streaming(const Arena& arena, size_t bytes) { kernels::copy_streaming(arena.at[0], arena.at[1], bytes); }

void add(void* out, const void* a, const void* b, size_t bytes) {
  static const auto kReducer = kernels::find_cpu_reducer(DataType::kF32, ReduceKind::kSum);
  const std::array<const void*, 2> inputs = {a, b};
  kReducer.fold(out, inputs.data(), 2, bytes / sizeof(float), {});
}
void add_into(const Arena& arena, size_t bytes) { add(arena.at[0], arena.at[0], arena.at[1], bytes); }
void add_plain(const Arena& arena, size_t bytes) { add(arena.at[0], arena.at[1], arena.at[2], bytes); }
void add_streaming(const Arena& arena, size_t bytes) {
  static const auto kReducer = kernels::find_cpu_reducer(DataType::kF32, ReduceKind::kSum);
  const std::array<const void*, 2> inputs = {arena.at[1], arena.at[2]};
  kReducer.fold_streaming(arena.at[0], inputs.data(), 2, bytes / sizeof(float), {});
}

// Bytes per second of all threads together, each on its own arena and processor.
double rate(Body body, size_t threads, size_t bytes, int repeats) {
  const auto cpus = processors();
  std::atomic<size_t> ready{0};
  std::vector<double> seconds(threads);
  std::vector<std::thread> running;
  constexpr int kTries = 5;
  double best = 0;
  std::vector<std::unique_ptr<Arena>> arenas(threads);
  for (int attempt = 0; attempt < kTries; ++attempt) {
    ready = 0;
    running.clear();
    for (size_t t = 0; t < threads; ++t) {
      running.emplace_back([&, t] {
        pin(cpus[t % cpus.size()]);
        if (!arenas[t]) arenas[t] = std::make_unique<Arena>(bytes);
        body(*arenas[t], bytes);
        ++ready;
        while (ready < threads) sched_yield();
        const auto begin = Clock::now();
        for (int i = 0; i < repeats; ++i) body(*arenas[t], bytes);
        seconds[t] = std::chrono::duration<double>(Clock::now() - begin).count();
      });
    }
    for (auto& thread : running) thread.join();
    const double slowest = *std::max_element(seconds.begin(), seconds.end());
    best = std::max(best, static_cast<double>(threads * bytes) * repeats / slowest);
  }
  return best;
}

// The rate at which one core writes lines that another has just read: the median, since under a hypervisor two
// processors may share a core at one moment and not at the next.
double rewrite_rate(int here, int there, void (*copy)(void*, const void*, size_t)) {
  constexpr size_t kBytes = size_t{128} << 10;
  constexpr int kRounds = 201;
  const Buffer from(Buffer::kAlign), to(Buffer::kAlign);
  std::atomic<int> turn{0};  // even: the writer's
  std::thread reader([&] {
    pin(there);
    for (int k = 0; k < kRounds; ++k) {
      while (turn.load(std::memory_order_acquire) != 2 * k + 1) sched_yield();
      uint64_t sum = 0;
      for (size_t i = 0; i < kBytes; i += 64) sum += static_cast<unsigned char>(to.get()[i]);
      turn.store(sum == 1 ? -1 : 2 * k + 2, std::memory_order_release);  // never 1: the sum is used
    }
  });
  std::vector<double> rates;
  pin(here);
  for (int k = 0; k < kRounds; ++k) {
    const auto begin = Clock::now();
    copy(to.get(), from.get(), kBytes);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    if (k > 0) rates.push_back(static_cast<double>(kBytes) / seconds);
    turn.store(2 * k + 1, std::memory_order_release);
    while (turn.load(std::memory_order_acquire) != 2 * k + 2) sched_yield();
  }
  reader.join();
  std::nth_element(rates.begin(), rates.begin() + rates.size() / 2, rates.end());
  return rates[rates.size() / 2];
}

}  // namespace

void add_memory(Figures* figures) {
  struct Kind {
    const char* name;
    Body body;
    size_t buffers;
    bool in_cache;  // streaming stores are for memory
  };
  constexpr std::array<Kind, 5> kKinds = {{{"memcpy", copy_plain, 2, true},
                                           {"copy, streaming stores", copy_streaming, 2, false},
                                           {"a += b", add_into, 2, true},
                                           {"c = a + b", add_plain, 3, true},
                                           {"c = a + b, streaming stores", add_streaming, 3, false}}};
  // All buffers of a thread together: half of a small L2 cache; more than last-level caches hold.
  constexpr size_t kL2 = size_t{512} << 10, kMemory = size_t{256} << 20;
  const size_t most = std::min<size_t>(2, processors().size());
  for (const bool cached : {true, false}) {
    for (const Kind& kind : kKinds) {
      if (cached && !kind.in_cache) continue;
      const size_t bytes = (cached ? kL2 : kMemory) / kind.buffers / 4096 * 4096;
      for (size_t threads = 1; threads <= most; ++threads) {
        const std::string name = std::string(kind.name) + (cached ? ", L2, " : ", memory, ") +
                                 std::to_string(threads) + (threads == 1 ? " thread" : " threads");
        figures->push_back({name, "GB/s", rate(kind.body, threads, bytes, cached ? 2000 : 1) / 1e9});
      }
    }
  }
}

void add_exchange(Figures* figures) {
  struct alignas(128) Word {
    std::atomic<uint64_t> value{0};
  };
  const auto cpus = processors();
  const auto one_way_us = [](int here, int there, bool yields, int rounds) {
    double best = 1e9;
    for (int attempt = 0; attempt < 5; ++attempt) {
      std::array<Word, 2> words;
      const auto wait_for = [&](size_t which, uint64_t value) {
        while (words[which].value.load(std::memory_order_acquire) != value) {
          if (yields) {
            sched_yield();
          } else {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
          }
        }
      };
      const uint64_t last = static_cast<uint64_t>(rounds);
      std::thread other([&] {
        pin(there);
        for (uint64_t i = 1; i <= last; ++i) {
          wait_for(0, i);
          words[1].value.store(i, std::memory_order_release);
        }
      });
      pin(here);
      auto begin = Clock::now();
      for (uint64_t i = 1; i <= last; ++i) {
        if (i == 2) begin = Clock::now();  // the first waits for the other thread to start
        words[0].value.store(i, std::memory_order_release);
        wait_for(1, i);
      }
      const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
      other.join();
      best = std::min(best, 1e6 * seconds / (2.0 * (rounds - 1)));
    }
    return best;
  };
  std::thread([&] {  // so that this process's first thread keeps its processors
    if (cpus.size() > 1) {
      figures->push_back(
          {"shared word to another core, spinning, one way", "us", one_way_us(cpus[0], cpus[1], false, 200000)});
      figures->push_back({"rewriting 128 KiB that another core has read, memcpy", "GB/s",
                          rewrite_rate(cpus[0], cpus[1], kernels::copy) / 1e9});
      figures->push_back(
          {"the same, streaming stores", "GB/s", rewrite_rate(cpus[0], cpus[1], kernels::copy_streaming) / 1e9});
    }
    figures->push_back(
        {"shared word on the same core, sched_yield, one way", "us", one_way_us(cpus[0], cpus[0], true, 20000)});
  })
      .join();
}

std::vector<int> processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> result;
  if (::sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) result.push_back(cpu);
    }
  }
  if (result.empty()) result.push_back(0);
  return result;
}

void pin(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  ::sched_setaffinity(0, sizeof(set), &set);
}

}  // namespace ringfold::limits
