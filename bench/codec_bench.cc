// Codecs of one thread: encode, decode and decode_add, in the second-level cache ("L2": 256 KiB of values) and from
// memory ("DRAM": 64 MiB). GBps is of f32 values. Each row is compared with limits of the same byte mix, timed in the
// same call and interleaved with it, best of both sides:
//   of_limit  encode: reading the values and writing as many bytes as the code has, with no work in between; decode:
//   the
//             other way round. From memory that is the ceiling. In the cache the loop's own counting holds it back,
//             codecs pass it, and the ratio says nothing.
//   of_add    decode_add: out = out + in of f32, by the reducer, for as many elements
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/codec.h"
#include "kernels/reducer.h"

namespace ringfold {
namespace {

constexpr size_t kSmall = size_t{64} << 10, kLarge = size_t{16} << 20;  // elements

using Words __attribute__((vector_size(32), aligned(4), may_alias)) = int;

// Reads `from` and writes `to`, whose sizes are as 4 to `part`, whichever is larger: the loads of a codec and its
// stores, in the same order, and one addition for a read that nobody stores.
[[gnu::target("avx2"), gnu::noinline]] void shrink(const float* from, std::byte* to, size_t elems, size_t bytes) {
  const size_t vectors = elems / 8, stores = bytes / 32;
  Words sum{};
  size_t done = 0;
  for (size_t i = 0, due = 0; i < vectors; ++i) {
    sum |= *reinterpret_cast<const Words*>(from + 8 * i);
    due += stores;
    if (due >= vectors) {
      due -= vectors;
      *reinterpret_cast<Words*>(to + 32 * done++) = sum;
    }
  }
}
[[gnu::target("avx2"), gnu::noinline]] void grow(const std::byte* from, float* to, size_t elems, size_t bytes) {
  const size_t vectors = elems / 8, loads = bytes / 32;
  Words word{};
  size_t done = 0;
  for (size_t i = 0, due = 0; i < vectors; ++i) {
    due += loads;
    if (due >= vectors) {
      due -= vectors;
      word = *reinterpret_cast<const Words*>(from + 32 * done++);
    }
    *reinterpret_cast<Words*>(to + 8 * i) = word;
  }
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
std::unique_ptr<T, Free> allocate(size_t bytes) {
  auto* p = static_cast<T*>(std::aligned_alloc(4096, (bytes + 8191) / 4096 * 4096));
  std::memset(p, 1, bytes);
  return std::unique_ptr<T, Free>(p);
}

using Clock = std::chrono::steady_clock;
template <class Body>
double seconds(int repeats, Body body) {
  const auto start = Clock::now();
  for (int i = 0; i < repeats; ++i) {
    body();
    benchmark::ClobberMemory();
  }
  return std::chrono::duration<double>(Clock::now() - start).count() / repeats;
}

enum class Way { kEncode, kDecode, kDecodeAdd };

void run(benchmark::State& state, Codec codec, Way way, size_t elems) {
  const size_t bytes = encoded_bytes(codec, elems);
  auto values = allocate<float>(4 * elems), other = allocate<float>(4 * elems);
  auto code = allocate<std::byte>(bytes);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < elems; ++i) values.get()[i] = normal(random);
  const auto kernels = kernels::find_cpu_codec(codec);
  kernels.encode(codec, values.get(), elems, code.get(), {});
  const auto fold = kernels::find_cpu_reducer(DataType::kF32, ReduceKind::kSum).fold;
  const auto work = [&] {
    if (way == Way::kEncode) kernels.encode(codec, values.get(), elems, code.get(), {});
    if (way == Way::kDecode) kernels.decode(codec, code.get(), elems, values.get());
    if (way == Way::kDecodeAdd) kernels.decode_add(codec, code.get(), elems, values.get());
  };
  const auto limit = [&] {
    if (way == Way::kEncode) shrink(values.get(), code.get(), elems, bytes);
    if (way == Way::kDecode) grow(code.get(), values.get(), elems, bytes);
    if (way == Way::kDecodeAdd) {
      const void* in[] = {values.get(), other.get()};
      fold(values.get(), in, 2, elems, {});
    }
  };
  const int repeats = elems > kSmall ? 1 : 20;
  double best = 1e9, best_limit = 1e9;
  for (int round = 0; round < 15; ++round) {
    best_limit = std::min(best_limit, seconds(repeats, limit));
    if (way != Way::kEncode) kernels.encode(codec, values.get(), elems, code.get(), {});  // the limit has no codes
    best = std::min(best, seconds(repeats, work));
  }
  for (auto _ : state) {
    work();
    benchmark::ClobberMemory();
  }
  state.counters["GBps"] = 4e-9 * static_cast<double>(elems) / best;
  state.counters[way == Way::kDecodeAdd ? "of_add" : "of_limit"] = best_limit / best;
}

}  // namespace
}  // namespace ringfold

int main(int argc, char** argv) {
  using namespace ringfold;
  for (size_t elems : {kSmall, kLarge}) {
    for (const char* name : {"bf16", "f16", "int8", "int6", "int5", "int4", "int8+stochastic", "int4+rotate", "e4m3",
                             "e5m2", "mxfp8", "mxfp4", "nvfp4", "sign", "ternary", "topk:0.01"}) {
      for (const auto& [way, label] : {std::pair{Way::kEncode, "encode"}, std::pair{Way::kDecode, "decode"},
                                       std::pair{Way::kDecodeAdd, "decode_add"}}) {
        const std::string full = std::string(name) + "/" + label + (elems == kSmall ? "/L2" : "/DRAM");
        benchmark::RegisterBenchmark(full.c_str(), run, *parse_codec(name), way, elems)->MinTime(0.01);
      }
    }
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
