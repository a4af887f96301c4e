// Sums with a codec that pass through the host as codes: made, folded and decoded on the GPU.
#include <atomic>
#include <barrier>
#include <cstring>
#include <random>
#include <thread>

#include "kernels/coding.h"
#include "tests/device/device_buffers.h"

namespace ringfold::test {
namespace {

int combined() { return cuda::calls("combine"); }

class StagedCodes : public DeviceTest {
  const Variable nvlink_{"RINGFOLD_NVLINK", "off"};
};

float value(int rank, uint64_t salt, size_t i) {
  const uint64_t h =
      (i + 1) * 0x9E3779B97F4A7C15ULL ^ (static_cast<uint64_t>(rank) * 77 + salt) * 0xC2B2AE3D27D4EB4FULL;
  return static_cast<float>(static_cast<int64_t>(h >> 20) % 2001 - 1000) * 0.37f;
}

// What all ranks must have, and what their codes miss, made of whole parts by the CPU's kernels.
struct Oracle {
  Oracle(const Codec& codec, ReduceOp op, int n, size_t elems)
      : coder(kernels::make_coder(codec, op.kind)), ranks(n), count(elems), missed(static_cast<size_t>(n)) {
    for (auto& m : missed) m.resize(elems);
  }
  std::vector<float> sum(uint64_t salt, const kernels::Post& post) {
    const auto n = static_cast<size_t>(ranks);
    const size_t each = ((count + 1023) / 1024 + n - 1) / n * 1024;
    std::vector<float> out(count);
    for (int owner = 0; owner < ranks; ++owner) {
      const size_t first = std::min(count, each * static_cast<size_t>(owner)), m = std::min(each, count - first);
      if (m == 0) continue;
      const size_t bytes = encoded_bytes(coder.codec, m);
      std::vector<std::vector<float>> in(n, std::vector<float>(m));
      std::vector<std::vector<std::byte>> codes(n, std::vector<std::byte>(bytes));
      std::vector<kernels::Term> terms(n);
      for (size_t r = 0; r < n; ++r) {
        for (size_t i = 0; i < m; ++i) in[r][i] = value(static_cast<int>(r), salt, first + i);
        const kernels::Term own{.values = in[r].data()};
        terms[r] = own;
        if (static_cast<int>(r) == owner) continue;
        kernels::combine(coder, &own, 1, m, nullptr, {.code = codes[r].data(), .residual = &missed[r][first]}, {});
        terms[r] = {.code = codes[r].data()};
      }
      const auto o = static_cast<size_t>(owner);
      kernels::combine(coder, terms.data(), ranks, m, &post,
                       {.values = &out[first], .code = codes[o].data(), .residual = &missed[o][first]}, {});
    }
    return out;
  }
  const kernels::Coder coder;
  const int ranks;
  const size_t count;
  std::vector<std::vector<float>> missed;
};

struct OnGpu {
  explicit OnGpu(size_t elems) : count(elems), memory(static_cast<float*>(cuda::allocate(elems * sizeof(float)))) {}
  ~OnGpu() { cuda::free(memory); }
  void fill(int rank, uint64_t salt) {
    for (size_t i = 0; i < count; ++i) seen()[i] = value(rank, salt, i);
  }
  float* seen() const { return reinterpret_cast<float*>(cuda::alias(memory)); }
  const size_t count;
  float* const memory;
};

TEST_F(StagedCodes, AreMadeOfWholePartsAndFeedErrorsBack) {
  for (const int n : {2, 3, 4}) {
    Ranks ranks(n);
    each(ranks, [&](Communicator& comm) {
      for (const char* name : {"int8", "int4", "e4m3", "bf16", "sign", "nvfp4", "topk:0.1"}) {
        for (const size_t count : {size_t{9'000}, size_t{61'003}}) {
          CallOptions options;
          options.codec = *parse_codec(name);
          const std::string tensor = name + std::to_string(count);
          options.feedback = tensor;
          Oracle oracle(*options.codec, kAvg, n, count);
          OnGpu in(count), out(count);
          for (uint64_t salt = 1; salt <= 3; ++salt) {
            const bool in_place = salt == 2;
            in.fill(comm.rank(), salt);
            const auto want = oracle.sum(salt, {.factor = 1.0 / n, .divisor = n});
            const auto& to = in_place ? in : out;
            expect_ok(comm.all_reduce(in.memory, to.memory, count, DataType::kF32, kAvg, options));
            EXPECT_EQ(std::memcmp(to.seen(), want.data(), count * sizeof(float)), 0)
                << tensor << ", " << n << ", " << salt;
          }
          EXPECT_EQ(comm.error_feedback().get(tensor), oracle.missed[static_cast<size_t>(comm.rank())]) << tensor;
        }
      }
    });
  }
}

TEST_F(StagedCodes, AloneCrossTheBus) {
  constexpr size_t kCount = 300'000;
  Ranks ranks(2);
  std::barrier both(2);
  each(ranks, [&](Communicator& comm) {
    OnGpu memory(kCount);
    memory.fill(comm.rank(), 1);
    CallOptions options;
    options.codec = *parse_codec("int8");
    both.arrive_and_wait();
    const int in = cuda::calls("cuMemcpyDtoHAsync"), out = cuda::calls("cuMemcpyHtoDAsync"), made = combined();
    both.arrive_and_wait();
    expect_ok(comm.all_reduce(memory.memory, memory.memory, kCount, DataType::kF32, kSum, options));
    both.arrive_and_wait();
    EXPECT_EQ(cuda::calls("cuMemcpyDtoHAsync") - in, 4);  // of each rank: a code for the other, and its sum's
    EXPECT_EQ(cuda::calls("cuMemcpyHtoDAsync") - out, 4);
    EXPECT_EQ(combined() - made, 6);
  });
}

TEST_F(StagedCodes, WhereOneRankCannotAllHaveThemMadeOnTheHost) {
  constexpr size_t kCount = 20'000;
  Ranks ranks(2);
  for (const bool elsewhere : {false, true}) {
    const int before = combined();
    if (!elsewhere) cuda::fail("cuMemCreate", 987);
    std::vector<float> results[2];
    each(ranks, [&](Communicator& comm) {
      OnGpu in(kCount);
      if (elsewhere && comm.rank() == 1) cuda::set_device(3);
      OnGpu out(kCount);
      in.fill(comm.rank(), 1);
      CallOptions options;
      options.codec = *parse_codec("int8");
      options.feedback = "w";
      expect_ok(comm.all_reduce(in.memory, out.memory, kCount, DataType::kF32, kSum, options));
      results[comm.rank()].assign(out.seen(), out.seen() + kCount);
      for (size_t i = 0; i < kCount; ++i) {
        ASSERT_NEAR(out.seen()[i], value(0, 1, i) + value(1, 1, i), 10) << i;
      }
      comm.error_feedback().reset();
    });
    EXPECT_EQ(results[0], results[1]);
    EXPECT_EQ(combined(), before);
    cuda::mend();
  }
}

TEST_F(StagedCodes, InDeterministicModeTheyAreTheHosts) {
  const int before = combined();
  Options options = patient();
  options.deterministic = true;
  Ranks ranks(2, options);
  each(ranks, [&](Communicator& comm) {
    OnGpu memory(9'000);
    memory.fill(comm.rank(), 1);
    CallOptions on;
    on.codec = *parse_codec("int8");
    expect_ok(comm.all_reduce(memory.memory, memory.memory, 9'000, DataType::kF32, kSum, on));
  });
  EXPECT_EQ(combined(), before);
}

// Between the two halves of such a call no other one begins, on any rank, whatever the order in which things end.
TEST_F(StagedCodes, KeepTheOrderOfAllOtherCalls) {
  constexpr size_t kCount = 12'000, kRounds = 10;
  cuda::set_lag(300);
  Ranks ranks(3);
  each(ranks, [&](Communicator& comm) {
    auto stream = cuda::make_stream();
    CallOptions coded, on;
    coded.codec = *parse_codec("int8");
    coded.stream = on.stream = stream;
    Oracle oracle(*coded.codec, kSum, 3, kCount);
    std::vector<std::unique_ptr<OnGpu>> codes, plain;
    std::vector<std::vector<int>> host;
    std::vector<Work> works;
    for (uint64_t i = 0; i < kRounds; ++i) {
      codes.push_back(std::make_unique<OnGpu>(kCount));
      plain.push_back(std::make_unique<OnGpu>(kCount));
      host.emplace_back(1000, comm.rank() + static_cast<int>(i));
      codes.back()->fill(comm.rank(), i);
      for (size_t k = 0; k < kCount; ++k) plain.back()->seen()[k] = static_cast<float>(comm.rank());
    }
    for (size_t i = 0; i < kRounds; ++i) {
      float *const a = codes[i]->memory, *const b = plain[i]->memory;
      // Half of them without a stream: they begin at once, beside the others.
      works.push_back(comm.all_reduce(a, a, kCount, DataType::kF32, kSum,
                                      i % 2 == 0 ? coded : CallOptions{.codec = coded.codec}));
      works.push_back(comm.all_reduce(b, b, kCount, DataType::kF32, kSum, i % 3 == 0 ? on : CallOptions()));
      works.push_back(comm.all_reduce(host[i].data(), host[i].data(), 1000, DataType::kI32));
    }
    for (Work& work : works) expect_ok(work);
    for (uint64_t i = 0; i < kRounds; ++i) {
      for (auto& m : oracle.missed) std::fill(m.begin(), m.end(), 0.0f);
      const auto want = oracle.sum(i, {});
      EXPECT_EQ(std::memcmp(codes[i]->seen(), want.data(), kCount * sizeof(float)), 0) << i;
      EXPECT_EQ(plain[i]->seen()[kCount - 1], 3.0f);
      EXPECT_EQ(host[i][999], 3 + 3 * static_cast<int>(i));
    }
    ASSERT_TRUE(cuda::synchronize(stream));
    cuda::destroy(stream);
  });
}

// Also where the next one is there on some ranks when the first half of the one before is under way, and on others
// later.
TEST_F(StagedCodes, FollowEachOtherAlikeOnRanksThatAreNotInStep) {
  constexpr size_t kCount = 12'000, kRounds = 40;
  cuda::set_lag(100);
  Ranks ranks(3);
  each(ranks, [&](Communicator& comm) {
    std::mt19937 random(static_cast<unsigned>(comm.rank()));
    const CallOptions coded{.codec = *parse_codec("int8")};
    std::vector<std::unique_ptr<OnGpu>> memory;
    std::vector<Work> works;
    for (size_t i = 0; i < kRounds; ++i) memory.push_back(std::make_unique<OnGpu>(kCount));
    for (auto& m : memory) {
      m->fill(comm.rank(), 1);
      works.push_back(comm.all_reduce(m->memory, m->memory, kCount, DataType::kF32, kSum, coded));
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 1500));
    }
    for (Work& work : works) expect_ok(work);
    for (auto& m : memory) EXPECT_EQ(std::memcmp(m->seen(), memory[0]->seen(), kCount * sizeof(float)), 0);
  });
}

// In either half: it has its function's name, all ranks have the verdict, and the tensor's state starts again.
TEST_F(StagedCodes, WhatFailsIsNamedAndItsStateStartsAgain) {
  constexpr size_t kCount = 20'000;
  for (const char* function : {"combine", "cuMemcpyDtoHAsync", "cuMemcpyHtoDAsync"}) {
    for (const int after : {0, 1, 2, 3}) {
      Ranks ranks(2);
      std::string said[2];
      std::barrier ready(2, [&]() noexcept { cuda::fail(function, 987, after); });
      std::barrier both(2);
      each(ranks, [&](Communicator& comm) {
        OnGpu memory(kCount);
        memory.fill(comm.rank(), 1);
        CallOptions on;
        on.codec = *parse_codec("int4");
        expect_ok(comm.all_reduce(memory.memory, memory.memory, kCount, DataType::kF32, kSum, on));
        on.feedback = "w";
        ready.arrive_and_wait();
        const Status end = comm.all_reduce(memory.memory, memory.memory, kCount, DataType::kF32, kSum, on).wait();
        said[comm.rank()] = end.to_string();
        // Where another rank fails to decode what all have, this one's call may be over.
        const bool last = function == std::string("cuMemcpyHtoDAsync") && after >= 2;
        EXPECT_TRUE(last || !end.ok()) << function << after;
        both.arrive_and_wait();
        cuda::mend();
        while (comm.status().ok()) std::this_thread::yield();
        auto next = comm.reconfigure();
        ASSERT_TRUE(next.ok()) << next.status().to_string();
        for (const float v : next->error_feedback().get("w")) ASSERT_TRUE(end.ok() || v == 0.0f);
        on.feedback = "fresh";
        memory.fill(comm.rank(), 2);
        Oracle oracle(*on.codec, kSum, 2, kCount);
        const auto want = oracle.sum(2, {});
        expect_ok(next->all_reduce(memory.memory, memory.memory, kCount, DataType::kF32, kSum, on));
        EXPECT_EQ(std::memcmp(memory.seen(), want.data(), kCount * sizeof(float)), 0) << function << after;
      });
      const bool named = said[0].find(function) != std::string::npos || said[1].find(function) != std::string::npos;
      EXPECT_TRUE(named) << said[0] << " / " << said[1];
    }
  }
}

}  // namespace
}  // namespace ringfold::test
