// Collectives on device memory over RDMA, straight from GPU to GPU: two doubles together, that of CUDA's driver,
// which gives memory away as files, and that of libibverbs, which registers them. That calls go that way, what has
// all ranks stage them instead, and what goes wrong.
#include <atomic>
#include <barrier>
#include <cerrno>
#include <cstring>
#include <memory>
#include <random>
#include <thread>

#include "tests/device/device_buffers.h"
#include "tests/transport/verbs_double.h"
#include "transports/verbs/library.h"

namespace ringfold::test {
namespace {

using transport::test::VerbsDouble;
using Settings = VerbsDouble::Settings;

constexpr Collective kMoves[] = {Collective::kAllGather, Collective::kBroadcast, Collective::kGather,
                                 Collective::kScatter, Collective::kAllToAll};

class OverVerbs : public DeviceTest {
 protected:
  ~OverVerbs() override { verbs::stand_in(nullptr); }
  VerbsDouble& network(const Settings& settings = {}) {
    network_.reset();  // there is one at a time
    network_ = std::make_unique<VerbsDouble>(settings);
    verbs::stand_in(network_->api());
    return *network_;
  }
  static int through_the_host() { return cuda::calls("cuMemcpyHtoDAsync") + cuda::calls("cuMemcpyDtoHAsync"); }
  static Call call_of(Collective c, int ranks, uint64_t count, uint64_t salt = 1) {
    Call call;
    call.shape = {c, ranks, has_root(c) ? static_cast<int>(salt % static_cast<uint64_t>(ranks)) : 0};
    call.count = count;
    call.salt = salt;
    return call;
  }
  const Variable stage_{"RINGFOLD_STAGE", "4K"};  // so that a call that is staged takes several pieces

 private:
  std::unique_ptr<VerbsDouble> network_;
};

TEST_F(OverVerbs, CallsThatMoveBytesDoNotPassThroughTheHost) {
  for (const int lag : {0, 200}) {
    cuda::set_lag(lag);
    VerbsDouble& rdma = network({.lag_us = lag});
    for (const int n : {2, 3, 4}) {
      const int before = through_the_host(), registered = rdma.dma_bufs_ever();
      Ranks ranks(n, patient("verbs"));
      each(ranks, [&](Communicator& comm) {
        uint64_t salt = 0;
        for (const auto c : kMoves) {
          for (const uint64_t count : {uint64_t{1}, uint64_t{5003}}) {
            for (const bool in_place : {false, true}) {
              Call call = call_of(c, n, count, ++salt);
              call.in_place = in_place && has_in_place_form(c) && c != Collective::kAllToAll;
              perform(comm, call);
            }
          }
        }
      });
      EXPECT_EQ(through_the_host(), before);
      EXPECT_GE(rdma.dma_bufs_ever(), registered + n);
    }
  }
}

TEST_F(OverVerbs, BlocksOfDifferentSizesArriveWhereTheyBelong) {
  network();
  const int before = through_the_host();
  Ranks ranks(3, patient("verbs"));
  for (const auto& sizes : {std::vector<uint64_t>{5, 7000, 1}, {300, 1, 2000}}) {
    Call call = call_of(Collective::kAllGather, 3, 0);
    call.sizes = sizes;
    each(ranks, [&](Communicator& comm) { perform(comm, call); });
  }
  EXPECT_EQ(through_the_host(), before);
}

TEST_F(OverVerbs, CallsInFlightKeepTheirOrderAmongAllOthers) {
  for (unsigned seed = 1; seed <= 2; ++seed) {
    cuda::set_lag(200, seed);
    network({.lag_us = 100, .seed = seed});
    Ranks ranks(3, patient("verbs"));
    each(ranks, [&](Communicator& comm) {
      std::mt19937 random(seed);
      std::vector<std::unique_ptr<DeviceBuffers>> buffers;
      std::vector<Work> works;
      std::vector<Call> calls;
      for (int i = 0; i < 30; ++i) {
        const bool moves = random() % 3 != 0;
        Call call = call_of(moves ? kMoves[random() % 5] : Collective::kAllReduce, 3, 1 + random() % 6000, random());
        const bool device = random() % 4 != 0;
        calls.push_back(call);
        buffers.push_back(std::make_unique<DeviceBuffers>(call, comm.rank(), OnDevice{device, device}));
        works.push_back(start(comm, call, buffers.back()->input(), buffers.back()->output()));
      }
      for (size_t i = works.size(); i-- > 0;) {
        const Status s = works[i].wait();
        ASSERT_TRUE(s.ok()) << calls[i].to_string() << ": " << s.to_string();
        EXPECT_EQ(buffers[i]->check(), "") << calls[i].to_string();
      }
    });
  }
}

TEST_F(OverVerbs, AStreamOrdersThemAmongItsOtherWork) {
  constexpr size_t kCount = 3000;
  cuda::set_lag(300);
  network({.lag_us = 100});
  Ranks ranks(3, patient("verbs"));
  const int before = through_the_host();
  each(ranks, [&](Communicator& comm) {
    auto stream = cuda::make_stream();
    CallOptions options;
    options.stream = stream;
    void *from = cuda::allocate(kCount * 4), *to = cuda::allocate(3 * kCount * 4);
    auto* in = reinterpret_cast<float*>(cuda::alias(from));
    auto* out = reinterpret_cast<float*>(cuda::alias(to));
    std::vector<std::vector<float>> seen;
    for (int step = 0; step < 8; ++step) {
      seen.emplace_back(3 * kCount);
      cuda::launch(stream, [=, &comm] { std::fill(in, in + kCount, static_cast<float>(10 * step + comm.rank())); });
      Work work = comm.all_gather(from, to, kCount, DataType::kF32, options);
      cuda::launch(stream, [=, copy = seen.back().data()] { std::copy(out, out + 3 * kCount, copy); });
    }
    ASSERT_TRUE(cuda::synchronize(stream));
    for (int step = 0; step < 8; ++step) {
      for (size_t i = 0; i < 3 * kCount; ++i) {
        ASSERT_EQ(seen[static_cast<size_t>(step)][i], static_cast<float>(10 * step) + static_cast<float>(i / kCount));
      }
    }
    cuda::free(from);
    cuda::free(to);
    cuda::destroy(stream);
  });
  EXPECT_EQ(through_the_host(), before);
}

// ---- registered memory ----

// What is to begin after a call on the same stream does not stand in the way of that call's own end.
TEST_F(OverVerbs, OneBehindAStagedCallOnItsStreamLetsThatEnd) {
  constexpr size_t kCount = 30'000;
  cuda::set_lag(200);
  network({.lag_us = 100});
  Ranks ranks(2, patient("verbs"));
  each(ranks, [&](Communicator& comm) {
    auto stream = cuda::make_stream();
    auto* sum = static_cast<std::byte*>(cuda::allocate(4 * kCount));
    auto* all = static_cast<std::byte*>(cuda::allocate(8 * kCount));
    auto* values = reinterpret_cast<float*>(cuda::alias(sum));
    CallOptions on;
    on.stream = stream;
    std::vector<Work> works;
    for (int i = 0; i < 5; ++i) {
      cuda::launch(stream, [=] { std::fill(values, values + kCount, 1.0f); });
      works.push_back(comm.all_reduce(sum, sum, kCount, DataType::kF32, kSum, on));
      works.push_back(comm.all_gather(sum, all, kCount, DataType::kF32, on));
    }
    for (Work& work : works) expect_ok(work);
    ASSERT_TRUE(cuda::synchronize(stream));
    for (size_t i = 0; i < 2 * kCount; ++i) ASSERT_EQ(reinterpret_cast<float*>(cuda::alias(all))[i], 2.0f);
    cuda::free(sum);
    cuda::free(all);
    cuda::destroy(stream);
  });
}

TEST_F(OverVerbs, MemoryIsRegisteredOnceAndGivenBackWhenItWasFreed) {
  VerbsDouble& rdma = network();
  Ranks ranks(2, patient("verbs"));
  const auto gather = [&](Communicator& comm, void* memory) {
    EXPECT_TRUE(
        comm.all_gather(static_cast<std::byte*>(memory) + 512 * comm.rank(), memory, 512, DataType::kU8).wait().ok());
  };
  std::barrier together(2);
  each(ranks, [&](Communicator& comm) {
    void* memory = cuda::allocate(5000);
    for (int i = 0; i < 5; ++i) gather(comm, memory);
    together.arrive_and_wait();
    EXPECT_EQ(rdma.dma_bufs_ever(), 2);
    together.arrive_and_wait();
    for (int i = 0; i < 6; ++i) {  // at the addresses of what was freed, or at others
      void* fresh = i % 2 == 0 ? cuda::allocate(5000) : nullptr;
      cuda::free(memory);
      memory = fresh != nullptr ? fresh : cuda::allocate(5000);
      gather(comm, memory);
    }
    together.arrive_and_wait();
    EXPECT_EQ(rdma.dma_bufs_ever(), 14);
    EXPECT_EQ(rdma.dma_bufs(), 2);
    together.arrive_and_wait();
    cuda::free(memory);
  });
}

// ---- what has all ranks stage a call ----

TEST_F(OverVerbs, WhateverOneRankCannotHasAllStageIt) {
  struct {
    const char* what;
    std::function<void()> break_it;
    Settings settings = {};
    const char* setting = "auto";
  } cases[] = {
      {"the driver exports nothing", [] { cuda::let_export(false); }},
      {"the GPU never sees what was written", [] { cuda::let_see_writes(false, false); }},
      {"the card takes no dma-buf", [] {}, {.dma_buf_error = EOPNOTSUPP}},
      {"an old rdma-core", [] {}, {.dma_buf_error = 0}},
      {"switched off", [] {}, {}, "off"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.what);
    cuda::let_export(true);
    cuda::let_see_writes(true);
    c.break_it();
    const Variable setting("RINGFOLD_GPU_DIRECT", c.setting);
    VerbsDouble& rdma = network(c.settings);
    const int before = through_the_host();
    Ranks ranks(3, patient("verbs"));
    each(ranks, [&](Communicator& comm) {
      for (const auto kind : kMoves) perform(comm, call_of(kind, 3, 3000));
    });
    EXPECT_GT(through_the_host(), before);
    EXPECT_EQ(rdma.dma_bufs_ever(), 0);
  }
}

TEST_F(OverVerbs, OneRefusedRegistrationIsTheEndOfNoOther) {
  network();
  Ranks ranks(2, patient("verbs"));
  int before = through_the_host();
  const Call call = call_of(Collective::kAllGather, 2, 4000);
  cuda::fail("cuMemGetHandleForAddressRange", 801);  // of one rank, whichever comes first
  each(ranks, [&](Communicator& comm) { perform(comm, call); });
  EXPECT_GT(through_the_host(), before);
  before = through_the_host();
  each(ranks, [&](Communicator& comm) { perform(comm, call); });
  EXPECT_EQ(through_the_host(), before);
}

TEST_F(OverVerbs, ADeviceThatDoesNotSeeWritesByItselfIsTold) {
  network();
  for (const bool by_itself : {true, false}) {
    cuda::let_see_writes(by_itself, true);
    const int before = cuda::calls("cuFlushGPUDirectRDMAWrites"), host = through_the_host();
    Ranks ranks(2, patient("verbs"));
    each(ranks, [&](Communicator& comm) { perform(comm, call_of(Collective::kAllToAll, 2, 500)); });
    EXPECT_EQ(cuda::calls("cuFlushGPUDirectRDMAWrites") - before, by_itself ? 0 : 2);
    EXPECT_EQ(through_the_host(), host);
  }
}

// ---- failures ----

// Both ranks are within a call that cannot end.
void expect_one_end(Ranks& ranks, const std::function<void()>& harm, Code code, const std::string& words) {
  std::barrier ready(2, [&]() noexcept { harm(); });
  Status ends[2];
  ranks.each([&](Communicator& comm) {
    cuda::set_device(comm.rank());
    auto stream = cuda::make_stream();
    void* memory = cuda::allocate(8000);
    CallOptions options;
    options.stream = stream;
    auto* mine = static_cast<std::byte*>(memory) + 4000 * comm.rank();
    EXPECT_TRUE(comm.all_gather(mine, memory, 4000, DataType::kU8, options).wait().ok());
    ready.arrive_and_wait();
    auto& end = ends[comm.rank()];
    end = comm.all_gather(mine, memory, 4000, DataType::kU8, options).wait();
    EXPECT_TRUE(cuda::synchronize(stream, 20)) << "the stream stands";
    cuda::free(memory);
    cuda::destroy(stream);
  });
  for (const Status& end : ends) {
    EXPECT_EQ(end.code(), code) << end.to_string();
    EXPECT_NE(end.message().find(words), std::string::npos) << end.to_string();
  }
}

TEST_F(OverVerbs, ACallThatCannotEndHasOneCauseAndLetsItsStreamGo) {
  {
    VerbsDouble& rdma = network();
    Ranks ranks(2, patient("verbs"));
    expect_one_end(
        ranks, [&] { rdma.cut(); }, Code::kPeerLost, "transport retry counter exceeded");
  }
  {
    VerbsDouble& rdma = network();
    Ranks ranks(2, patient("verbs"));
    expect_one_end(
        ranks, [&] { rdma.end_write_with(IBV_WC_RETRY_EXC_ERR, 4); }, Code::kPeerLost,
        "transport retry counter exceeded");
  }
}

TEST_F(OverVerbs, ARankThatDoesNotComeIsNamedAtTheDeadline) {
  network();
  Options options = patient("verbs");
  options.timeout_s = 0.5;
  Ranks ranks(2, options);
  std::atomic<bool> go{false};
  each(ranks, [&](Communicator& comm) {
    auto stream = cuda::make_stream();
    void* memory = cuda::allocate(8000);
    CallOptions on;
    on.stream = stream;
    // Rank 1 takes part in the question, but its stream never comes to the call.
    if (comm.rank() == 1) {
      cuda::launch(stream, [&] {
        while (!go) std::this_thread::yield();
      });
    }
    auto* mine = static_cast<std::byte*>(memory) + 4000 * comm.rank();
    const Status end = comm.all_gather(mine, memory, 4000, DataType::kU8, on).wait();
    EXPECT_EQ(end.code(), Code::kTimeout) << end.to_string();
    go = true;  // rank 0 has its end, and rank 1's copies may have theirs
    EXPECT_TRUE(cuda::synchronize(stream, 20));
    cuda::free(memory);
    cuda::destroy(stream);
  });
}

}  // namespace
}  // namespace ringfold::test
