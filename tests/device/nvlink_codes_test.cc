// Collectives with codecs from GPU to GPU: the bits are those of calls on host memory, with what codes have missed on
// the GPU too, and it is where it is asked for.
#include <barrier>
#include <cstring>
#include <thread>

#include "kernels/codec.h"
#include "tests/device/device_buffers.h"

namespace ringfold::test {
namespace {

Options in_rank_order() {
  Options options = patient();
  options.deterministic = true;  // so that hosts choose as GPUs do
  return options;
}

class CodesOnGpus : public DeviceTest {
 protected:
  static int through_the_host() { return cuda::calls("cuMemcpyHtoDAsync"); }
  static int combined() { return cuda::calls("combine"); }
  const Variable nvlink_{"RINGFOLD_NVLINK", "auto"};
  const Variable slot_{"RINGFOLD_SLOT", "8K"};
  const Variable slots_{"RINGFOLD_SLOTS", "2"};
};

// Memory of a rank on host and device, and what goes in.
struct Both {
  explicit Both(size_t elems) : host(elems), device(static_cast<float*>(cuda::allocate(elems * sizeof(float)))) {}
  ~Both() { cuda::free(device); }
  void fill(int rank, uint64_t salt) {
    for (size_t i = 0; i < host.size(); ++i) {
      const uint64_t h =
          (i + 1) * 0x9E3779B97F4A7C15ULL ^ (static_cast<uint64_t>(rank) * 77 + salt) * 0xC2B2AE3D27D4EB4FULL;
      host[i] = static_cast<float>(static_cast<int64_t>(h >> 20) % 2001 - 1000) * 0.37f;
    }
    std::memcpy(seen(), host.data(), host.size() * sizeof(float));
  }
  float* seen() const { return reinterpret_cast<float*>(cuda::alias(device)); }
  bool same() const { return std::memcmp(seen(), host.data(), host.size() * sizeof(float)) == 0; }
  std::vector<float> host;
  float* device;
};

Work start_coded(Communicator& comm, Collective collective, float* in, float* out, size_t count, ReduceOp op,
                 const CallOptions& options) {
  switch (collective) {
    case Collective::kAllReduce: return comm.all_reduce(in, out, count, DataType::kF32, op, options);
    case Collective::kReduceScatter: return comm.reduce_scatter(in, out, count, DataType::kF32, op, options);
    case Collective::kAllGather: return comm.all_gather(in, out, count, DataType::kF32, options);
    default: return comm.broadcast(in, out, count, DataType::kF32, comm.size() - 1, options);
  }
}

// What receivers of `values` have, which are blocks of `count` elements. (Hosts choose among several ways for what is
// no sum.)
void decode_what_encoded(const Codec& codec, std::vector<float>& values, size_t count) {
  const auto kernels = kernels::find_cpu_codec(codec);
  std::vector<std::byte> code(encoded_bytes(codec, count));
  for (size_t block = 0; block < values.size(); block += count) {
    kernels.encode(codec, values.data() + block, count, code.data(), {});
    kernels.decode(codec, code.data(), count, values.data() + block);
  }
}

TEST_F(CodesOnGpus, HaveTheBitsOfCallsOnHostMemory) {
  const char* const codecs[] = {"f16",  "bf16", "int8",  "int8+rotate", "int6",  "int5", "int4",    "int4+rotate",
                                "e4m3", "e5m2", "mxfp8", "mxfp4",       "nvfp4", "sign", "ternary", "topk:0.1"};
  for (const int n : {2, 3, 4}) {
    Ranks ranks(n, in_rank_order());
    each(ranks, [&](Communicator& comm) {
      const auto size = static_cast<size_t>(n);
      int at = 0;
      for (const char* codec : codecs) {
        for (const size_t count : {size_t{1}, size_t{33}, size_t{1500}, size_t{20'011}}) {
          if (count == 20'011 && at++ % 3 != comm.size() % 3) continue;  // of the long ones, a third with each size
          for (const auto c :
               {Collective::kAllReduce, Collective::kReduceScatter, Collective::kAllGather, Collective::kBroadcast}) {
            const size_t in = c == Collective::kReduceScatter ? size * count : count;
            const size_t out = c == Collective::kAllGather ? size * count : count;
            Both from(in), to(out);
            CallOptions options;
            options.codec = *parse_codec(codec);
            const ReduceOp op = count % 2 != 0 ? kAvg : ReduceOp::scaled_sum(0.3);
            for (uint64_t salt = 1; salt <= (reduces(c) ? 2U : 1U); ++salt) {
              from.fill(comm.rank(), salt);
              to.fill(9, salt);
              const std::string name = std::string(codec) + std::to_string(count) + std::string(name_of(c));
              const std::string host = name + " host";
              if (reduces(c)) options.feedback = host;
              if (reduces(c)) {
                expect_ok(start_coded(comm, c, from.host.data(), to.host.data(), count, op, options));
              } else {
                expect_ok(start_coded(comm, c, from.host.data(), to.host.data(), count, op, {.codec = Codec()}));
                decode_what_encoded(*options.codec, to.host, count);
              }
              const int before = through_the_host();
              if (reduces(c)) options.feedback = name;
              expect_ok(start_coded(comm, c, from.device, to.device, count, op, options));
              EXPECT_EQ(through_the_host(), before);
              EXPECT_TRUE(to.same()) << name << ", call " << salt << " of " << n << " ranks";
              if (salt == 2) {
                EXPECT_EQ(comm.error_feedback().get(name), comm.error_feedback().get(host)) << name;
              }
            }
            comm.error_feedback().reset();
          }
        }
      }
    });
  }
  EXPECT_GT(combined(), 0);
}

// What codes have missed is looked at, saved and loaded between calls, and used by calls that pass through the host.
TEST_F(CodesOnGpus, WhatTheyMissIsOneStateWhereverItIsUsed) {
  constexpr size_t kCount = 9'000;
  Ranks ranks(2, in_rank_order());
  each(ranks, [&](Communicator& comm) {
    Both memory(kCount);
    CallOptions options;
    options.codec = *parse_codec("int4");
    std::string saved;
    for (uint64_t salt = 1; salt <= 8; ++salt) {
      memory.fill(comm.rank(), salt);
      options.feedback = "host";
      expect_ok(comm.all_reduce(memory.host.data(), memory.host.data(), kCount, DataType::kF32, kAvg, options));
      options.feedback = "device";
      // One rank's memory is another device's: all stage the call.
      const bool staged = salt == 3;
      if (staged && comm.rank() == 1) cuda::set_device(3);
      Both elsewhere(kCount);
      std::memcpy(elsewhere.seen(), memory.seen(), kCount * sizeof(float));
      const int before = through_the_host();
      float* const device = staged ? elsewhere.device : memory.device;
      expect_ok(comm.barrier());
      expect_ok(comm.all_reduce(device, device, kCount, DataType::kF32, kAvg, options));
      if (staged) std::memcpy(memory.seen(), elsewhere.seen(), kCount * sizeof(float));
      EXPECT_TRUE(memory.same()) << salt;
      // Once it is on the host it goes there again.
      EXPECT_EQ(through_the_host() > before, staged || salt == 4 || salt == 6 || salt == 7) << salt;
      cuda::set_device(comm.rank());
      if (salt == 5) {
        EXPECT_EQ(comm.error_feedback().get("device"), comm.error_feedback().get("host"));
      }
      if (salt == 6) {
        saved = comm.error_feedback().save();
        ASSERT_TRUE(comm.error_feedback().load(saved).ok());
      }
      expect_ok(comm.barrier());
    }
    CallOptions other = options;
    Status s = comm.all_reduce(memory.device, memory.device, 5, DataType::kF32, kAvg, other).wait();
    EXPECT_NE(s.message().find("has 9000 elements, not 5"), std::string::npos) << s.to_string();
    Both all(10);
    s = comm.all_gather(memory.device, all.device, 5, DataType::kF32, other).wait();
    EXPECT_NE(s.message().find("error feedback (\"device\") is for sums"), std::string::npos) << s.to_string();
  });
}

TEST_F(CodesOnGpus, RandomRoundingIsTheSameOnAllRanksAndNewInEachCall) {
  constexpr size_t kCount = 30'000;
  Ranks ranks(3);
  std::vector<float> results[3][2];
  each(ranks, [&](Communicator& comm) {
    CallOptions options;
    options.codec = *parse_codec("int4+stochastic");
    for (auto& result : results[comm.rank()]) {
      Both memory(kCount);
      memory.fill(comm.rank(), 1);
      std::vector<float> exact(kCount);
      expect_ok(comm.all_reduce(memory.host.data(), exact.data(), kCount, DataType::kF32));
      expect_ok(comm.all_reduce(memory.device, memory.device, kCount, DataType::kF32, kSum, options));
      result.assign(memory.seen(), memory.seen() + kCount);
      // 3 codes of values up to 370 in steps of 370 / 7, and one of the sum.
      double bias = 0;
      for (size_t i = 0; i < kCount; ++i) {
        ASSERT_LE(std::abs(result[i] - exact[i]), 3 * 53 + 3 * 53 + 1) << i;
        bias += (result[i] - exact[i]) / kCount;
      }
      EXPECT_LT(std::abs(bias), 2);
    }
  });
  EXPECT_NE(results[0][0], results[0][1]);
  for (const auto& rank : results) {
    EXPECT_EQ(rank[0], results[0][0]);
    EXPECT_EQ(rank[1], results[0][1]);
  }
}

TEST_F(CodesOnGpus, AreNotUsedWhereACallWantsThemOnlyIfTheyPay) {
  const int before = combined();
  Ranks ranks(2);
  each(ranks, [&](Communicator& comm) {
    Both memory(5000);
    memory.fill(comm.rank(), 1);
    CallOptions options;
    expect_ok(comm.all_reduce(memory.host.data(), memory.host.data(), 5000, DataType::kF32));
    options.codec = *parse_codec("auto:int4");
    expect_ok(comm.all_reduce(memory.device, memory.device, 5000, DataType::kF32, kSum, options));
    EXPECT_TRUE(memory.same());
  });
  EXPECT_EQ(combined(), before);
}

// Many in flight, each with the state of its tensor, behind streams.
TEST_F(CodesOnGpus, ManyAreInFlightOnStreams) {
  constexpr size_t kCount = 7'000, kCalls = 12;
  cuda::set_lag(100);
  Ranks ranks(2, in_rank_order());
  each(ranks, [&](Communicator& comm) {
    auto stream = cuda::make_stream();
    std::vector<std::unique_ptr<Both>> memory;
    std::vector<Work> works;
    CallOptions options, on;
    on.codec = options.codec = *parse_codec("int8");
    on.stream = stream;
    for (size_t i = 0; i < kCalls; ++i) {
      memory.push_back(std::make_unique<Both>(kCount));
      memory.back()->fill(comm.rank(), i);
      const std::string host = "host" + std::to_string(i % 2), device = "device" + std::to_string(i % 2);
      options.feedback = host;
      expect_ok(
          comm.all_reduce(memory[i]->host.data(), memory[i]->host.data(), kCount, DataType::kF32, kSum, options));
    }
    for (size_t i = 0; i < kCalls; ++i) {
      const std::string device = "device" + std::to_string(i % 2);
      on.feedback = device;
      works.push_back(comm.all_reduce(memory[i]->device, memory[i]->device, kCount, DataType::kF32, kSum, on));
    }
    ASSERT_TRUE(cuda::synchronize(stream));
    for (size_t i = 0; i < kCalls; ++i) EXPECT_TRUE(memory[i]->same()) << i;
    for (Work& work : works) expect_ok(work);
    EXPECT_EQ(comm.error_feedback().get("device1"), comm.error_feedback().get("host1"));
    cuda::destroy(stream);
  });
}

// A call that fails half way has its function's name, and leaves a state of zeros for the communicator after it.
TEST_F(CodesOnGpus, WhatFailsIsNamedAndItsStateStartsAgain) {
  constexpr size_t kCount = 20'000;
  Options options = in_rank_order();
  options.timeout_s = 20;
  for (const char* function : {"combine", "cuMemsetD8Async", "cuMemCreate"}) {
    for (const int after : {0, 3}) {
      Ranks ranks(2, options);
      Status ends[2];
      std::barrier ready(2, [&]() noexcept { cuda::fail(function, 987, after); });
      std::barrier both(2);
      each(ranks, [&](Communicator& comm) {
        Both memory(kCount);
        memory.fill(comm.rank(), 1);
        CallOptions on;
        on.codec = *parse_codec("int4");
        expect_ok(comm.all_reduce(memory.device, memory.device, kCount, DataType::kF32, kSum, on));
        ready.arrive_and_wait();
        on.feedback = "w";
        Status& end = ends[comm.rank()];
        end = comm.all_reduce(memory.device, memory.device, kCount, DataType::kF32, kSum, on).wait();
        both.arrive_and_wait();
        if (ends[0].ok() && ends[1].ok()) return;  // it was staged, or it was another call's that would have failed
        if (comm.status().ok()) comm.abort(end.message());
        cuda::mend();
        auto next = comm.reconfigure();
        ASSERT_TRUE(next.ok()) << next.status().to_string();
        for (const float v : next->error_feedback().get("w")) ASSERT_EQ(v, 0.0f);
        memory.fill(comm.rank(), 2);
        on.feedback = "host";
        expect_ok(next->all_reduce(memory.host.data(), memory.host.data(), kCount, DataType::kF32, kSum, on));
        on.feedback = "w";
        expect_ok(next->all_reduce(memory.device, memory.device, kCount, DataType::kF32, kSum, on));
        EXPECT_TRUE(memory.same());
      });
      cuda::mend();
      bool named = false;
      for (const Status& s : ends) named |= s.message().find(function) != std::string::npos;
      EXPECT_TRUE(named || std::string(function) != "combine") << ends[0].to_string() << " / " << ends[1].to_string();
    }
  }
}

}  // namespace
}  // namespace ringfold::test
