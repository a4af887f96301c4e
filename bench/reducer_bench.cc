// Sums of 2, 4 and 8 inputs of every type, beside what the memory gives: each row's rate of bytes moved (inputs and
// output) is printed as a ratio to memcpy, and to the plain loop c = a + b of f32, both timed just before it over
// buffers of the same size. In "L2" all buffers together take 512 KiB, in "DRAM" 256 MiB, more than last-level caches
// hold. The rows "copy" show copy_streaming in the same way.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/copy.h"
#include "kernels/reducer.h"

namespace ringfold {
namespace {

constexpr size_t kL2 = size_t{512} << 10;
constexpr size_t kDram = size_t{256} << 20;

// `count` page-aligned buffers of `bytes` each, touched. Their starts are spread over cache sets.
class Buffers {
 public:
  Buffers(int count, size_t bytes) {
    constexpr size_t kPage = 4096;
    const size_t stride = (bytes + kPage - 1) / kPage * kPage + kPage;
    memory_.reset(static_cast<unsigned char*>(std::aligned_alloc(kPage, count * stride)));
    std::memset(memory_.get(), 0x11, count * stride);
    for (int k = 0; k < count; ++k) pointers_.push_back(memory_.get() + k * stride + 128 * (k % 16));
  }
  void* operator[](int k) const { return pointers_[k]; }
  const void* const* data() const { return pointers_.data(); }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<unsigned char, Free> memory_;
  std::vector<void*> pointers_;
};

// The best of a few timings: the reference wants the machine's limit, not its load.
template <class Body>
double best_seconds(size_t total, Body body) {
  using Clock = std::chrono::steady_clock;
  const int repeats = total > kL2 ? 1 : 64;
  double best = 1e9;
  for (int round = 0; round < 7; ++round) {
    const auto start = Clock::now();
    for (int i = 0; i < repeats; ++i) body();
    const std::chrono::duration<double> took = Clock::now() - start;
    best = std::min(best, took.count() / repeats);
  }
  return best;
}

double memcpy_rate(size_t total) {
  const size_t bytes = total / 2;
  Buffers buffers(2, bytes);
  return 2.0 * bytes / best_seconds(total, [&] {
           std::memcpy(buffers[0], buffers[1], bytes);
           benchmark::ClobberMemory();
         });
}

double add_rate(size_t total) {
  const size_t elems = total / 3 / sizeof(float);
  Buffers buffers(3, elems * sizeof(float));
  auto* c = static_cast<float*>(buffers[0]);
  auto *a = static_cast<const float*>(buffers[1]), *b = static_cast<const float*>(buffers[2]);
  return 3.0 * elems * sizeof(float) / best_seconds(total, [&] {
           for (size_t i = 0; i < elems; ++i) c[i] = a[i] + b[i];
           benchmark::ClobberMemory();
         });
}

// The ratios compare best timings of both sides; the benchmark's own time is the mean.
template <class Body>
void report(benchmark::State& state, size_t total, size_t moved, Body body) {
  const double memcpy_limit = memcpy_rate(total), add_limit = add_rate(total);
  const double rate = static_cast<double>(moved) / best_seconds(total, [&] {
                        body();
                        benchmark::ClobberMemory();
                      });
  for (auto _ : state) {
    body();
    benchmark::ClobberMemory();
  }
  state.counters["GBps"] = rate / 1e9;
  state.counters["of_memcpy"] = rate / memcpy_limit;
  state.counters["of_add"] = rate / add_limit;
}

void sum(benchmark::State& state, DataType type, int inputs, size_t total) {
  const size_t elems = total / (inputs + 1) / size_of(type), bytes = elems * size_of(type);
  Buffers buffers(inputs + 1, bytes);
  const auto reducer = kernels::find_cpu_reducer(type, ReduceKind::kSum);
  report(state, total, bytes * (inputs + 1),
         [&] { reducer.fold(buffers[inputs], buffers.data(), inputs, elems, {}); });
}

void streaming(benchmark::State& state, size_t total) {
  Buffers buffers(2, total / 2);
  report(state, total, total, [&] { kernels::copy_streaming(buffers[0], buffers[1], total / 2); });
}

}  // namespace
}  // namespace ringfold

int main(int argc, char** argv) {
  using namespace ringfold;
  for (size_t total : {kL2, kDram}) {
    const std::string where = total == kL2 ? "L2" : "DRAM";
    for (int t = 0; t < kDataTypes; ++t) {
      const auto type = static_cast<DataType>(t);
      for (int inputs : {2, 4, 8}) {
        const std::string name = "sum/" + where + "/" + std::string(name_of(type)) + "/" + std::to_string(inputs);
        benchmark::RegisterBenchmark(name.c_str(), sum, type, inputs, total)->MinTime(0.1);
      }
    }
    benchmark::RegisterBenchmark(("copy/" + where).c_str(), streaming, total)->MinTime(0.1);
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
