// Every call on device memory, against the exact oracle: whole and in pieces, in and out of place, beside host
// memory, with copies that take their time.
#include <chrono>
#include <cstring>
#include <random>
#include <thread>

#include "tests/device/device_buffers.h"

namespace ringfold::test {
namespace {

constexpr Collective kAll[] = {Collective::kAllReduce, Collective::kReduce,    Collective::kReduceScatter,
                               Collective::kAllGather, Collective::kBroadcast, Collective::kGather,
                               Collective::kScatter,   Collective::kAllToAll,  Collective::kBarrier};
constexpr OnDevice kWhere[] = {{true, true}, {true, false}, {false, true}};

// As wanted, with the buffer on the device that all ranks have: a collective is on devices everywhere or nowhere.
OnDevice agreed(const Call& call, OnDevice wanted) {
  const Collective c = call.shape.collective;
  if (c == Collective::kReduce || c == Collective::kGather) wanted.input = true;
  if (c == Collective::kBroadcast || c == Collective::kScatter) wanted.output = true;
  return wanted;
}

// Every collective with every count and place of buffers, with type, operation and root drawn from a seed. Pieces are
// of 4 KiB here, so that the larger counts take many.
std::vector<Call> calls_for(int ranks, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<Call> calls;
  for (Collective c : kAll) {
    for (uint64_t count : {0, 1, 7, 1023, 1024, 1025, 5003}) {
      for (bool in_place : {false, true}) {
        if (in_place && !has_in_place_form(c)) continue;
        Call call;
        call.shape = {c, ranks, has_root(c) ? static_cast<int>(random() % static_cast<unsigned>(ranks)) : 0};
        do {
          call.type = static_cast<DataType>(random() % kDataTypes);
          const auto kind = static_cast<ReduceKind>(random() % kReduceKinds);
          call.op = kind == ReduceKind::kScaledSum ? ReduceOp::scaled_sum(0.25) : ReduceOp(kind);
        } while (!has_meaning(call.type, call.op.kind));
        call.count = c == Collective::kBarrier ? 0 : count;
        call.in_place = in_place;
        call.salt = random();
        calls.push_back(call);
      }
    }
  }
  return calls;
}

class DeviceCollectives : public DeviceTest, public testing::WithParamInterface<int> {
 protected:
  const Variable stage_{"RINGFOLD_STAGE", "4K"};
};

TEST_P(DeviceCollectives, AreExactWhereverTheBuffersAre) {
  const int n = GetParam();
  const auto calls = calls_for(n, static_cast<uint32_t>(n));
  Ranks ranks(n);
  each(ranks, [&](Communicator& comm) {
    for (const auto& call : calls) {
      for (const auto& where : kWhere) perform(comm, call, agreed(call, where));
    }
  });
}

TEST_P(DeviceCollectives, MayAllBeInFlightAtOnceAmongCallsOnHostMemory) {
  const int n = GetParam();
  for (unsigned seed = 1; seed <= 3; ++seed) {
    cuda::set_lag(300, seed);
    const auto calls = calls_for(n, 100 + seed);
    Ranks ranks(n);
    each(ranks, [&](Communicator& comm) {
      std::vector<std::unique_ptr<DeviceBuffers>> buffers;
      std::vector<Work> works;
      for (size_t i = 0; i < calls.size(); ++i) {
        const OnDevice where = i % 3 == 1 ? OnDevice{false, false} : agreed(calls[i], kWhere[i % 2]);
        buffers.push_back(std::make_unique<DeviceBuffers>(calls[i], comm.rank(), where));
        works.push_back(start(comm, calls[i], buffers.back()->input(), buffers.back()->output()));
      }
      for (size_t i = calls.size(); i-- > 0;) {
        const Status s = works[i].wait();
        ASSERT_TRUE(s.ok()) << calls[i].to_string() << ": " << s.to_string();
        EXPECT_EQ(buffers[i]->check(), "");
      }
    });
  }
}

TEST_P(DeviceCollectives, TakeBlocksOfDifferentSizes) {
  const int n = GetParam();
  const auto calls = calls_of_blocks(n, 60);
  Ranks ranks(n);
  each(ranks, [&](Communicator& comm) {
    for (size_t i = 0; i < calls.size(); ++i) perform(comm, calls[i], kWhere[i % 3]);
  });
}

// Only two ranks know a size there, so the memory is each rank's own matter.
TEST_P(DeviceCollectives, AnAllToAllVMayMixRanksOnHostsAndDevices) {
  const int n = GetParam();
  Call call;
  call.shape = {Collective::kAllToAll, n, 0};
  for (int r = 0; r < n; ++r) call.matrix.emplace_back(static_cast<size_t>(n), static_cast<uint64_t>(10 * r + 1));
  Ranks ranks(n);
  each(ranks, [&](Communicator& comm) {
    const bool device = comm.rank() % 2 == 0;
    perform(comm, call, {device, device});
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, DeviceCollectives, testing::Values(1, 2, 3, 4),
                         [](const auto& info) { return std::to_string(info.param); });

using DeviceCalls = DeviceTest;

Call sum_of(int ranks, uint64_t count, uint64_t salt = 1) {
  Call call;
  call.shape = {Collective::kAllReduce, ranks, 0};
  call.count = count;
  call.salt = salt;
  return call;
}

TEST_F(DeviceCalls, OfTheUsualPieceAreExactOverEveryTransport) {
  const auto large = sum_of(2, 3'000'017);  // 12 MB: six pieces
  for (const char* transport : {"shm", "tcp", "loopback"}) {
    Ranks ranks(2, patient(transport));
    each(ranks, [&](Communicator& comm) { perform(comm, large); });
  }
}

TEST_F(DeviceCalls, CopiesAndCommunicationOverlap) {
  const Variable stage("RINGFOLD_STAGE", "64K");
  Ranks ranks(2);
  // No piece can be over while copies out are held; each rank's second is copied in all the same.
  cuda::hold_copies_out(true);
  const int before = cuda::calls("cuMemcpyDtoHAsync");
  each(ranks, [&](Communicator& comm) {
    const auto call = sum_of(2, 200'000);
    DeviceBuffers buffers(call, comm.rank());
    Work work = start(comm, call, buffers.input(), buffers.output());
    if (comm.rank() == 0) {
      const auto begun = [&] { return cuda::calls("cuMemcpyDtoHAsync") - before; };
      const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
      // One rank has at most four under way: of six the other has two.
      while (begun() < 6 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
      EXPECT_GE(begun(), 6);
      cuda::hold_copies_out(false);
    }
    expect_ok(work);
    EXPECT_EQ(buffers.check(), "");
  });
}

TEST_F(DeviceCalls, OfAPersistentKindStartAgainAndAgain) {
  Ranks ranks(3);
  each(ranks, [&](Communicator& comm) {
    const auto call = sum_of(3, 5000);
    DeviceBuffers buffers(call, comm.rank());
    auto again = comm.persistent_all_reduce(buffers.input(), buffers.output(), call.count, call.type);
    ASSERT_TRUE(again.ok()) << again.status().to_string();
    for (int i = 0; i < 5; ++i) {
      expect_ok(again->start());
      EXPECT_EQ(buffers.check(), "");
      std::memset(cuda::alias(buffers.output()), 0, call.count * 4);
    }
  });
}

TEST_F(DeviceCalls, WithCodesAreThoseOfTheHost) {
  constexpr size_t kCount = 100'000;
  Options in_rank_order = patient();
  in_rank_order.deterministic = true;  // or they are a GPU's: staged_codes_test.cc
  Ranks ranks(2, in_rank_order);
  each(ranks, [&](Communicator& comm) {
    std::vector<float> input(kCount), host(kCount);
    for (size_t i = 0; i < kCount; ++i)
      input[i] = static_cast<float>((i * 37 + static_cast<size_t>(comm.rank())) % 101);
    CallOptions options;
    options.codec = *parse_codec("int8");
    auto* device = static_cast<std::byte*>(cuda::allocate(kCount * 4));
    std::memcpy(cuda::alias(device), input.data(), kCount * 4);
    options.feedback = "a";
    expect_ok(comm.all_reduce(input.data(), host.data(), kCount, DataType::kF32, kSum, options));
    options.feedback = "b";
    expect_ok(comm.all_reduce(device, device, kCount, DataType::kF32, kSum, options));
    EXPECT_EQ(std::memcmp(cuda::alias(device), host.data(), kCount * 4), 0);
    EXPECT_EQ(comm.error_feedback().get("a"), comm.error_feedback().get("b"));
    cuda::free(device);
  });
}

TEST_F(DeviceCalls, MessagesGoFromAndToAnyMemory) {
  cuda::set_lag(200);
  constexpr size_t kCounts[] = {0, 1, 1000, 1'000'003};
  Ranks ranks(2);
  each(ranks, [&](Communicator& comm) {
    const int me = comm.rank(), peer = 1 - me;
    // All at once, in an order that differs on the two sides, and behind a collective that the peer makes later.
    std::vector<std::unique_ptr<std::vector<int>>> kept;
    std::vector<Work> works;
    struct Wanted {
      const std::byte* seen;
      size_t count;
      int tag;
    };
    std::vector<Wanted> wanted;
    const auto call = sum_of(2, 5000);
    DeviceBuffers buffers(call, me);
    if (me == 0) works.push_back(start(comm, call, buffers.input(), buffers.output()));
    std::vector<std::byte*> to_free;
    for (bool sending : {me == 0, me != 0}) {
      int tag = 0;
      for (size_t count : kCounts) {
        for (int kind = 0; kind < 4; ++kind, ++tag) {
          const bool on_device = sending ? (kind & 1) != 0 : (kind & 2) != 0;
          auto& memory = *kept.emplace_back(std::make_unique<std::vector<int>>(count + 1));
          std::byte* place = reinterpret_cast<std::byte*>(memory.data());
          if (on_device) to_free.push_back(place = static_cast<std::byte*>(cuda::allocate(4 * count + 4)));
          std::byte* seen = on_device ? cuda::alias(place) : place;
          if (sending) {
            for (size_t i = 0; i < count; ++i) {
              const int value = static_cast<int>(i) + 1000 * tag + me;
              std::memcpy(seen + 4 * i, &value, 4);
            }
            works.push_back(comm.send(place, count, DataType::kI32, peer, tag));
          } else {
            works.push_back(comm.recv(place, count, DataType::kI32, peer, tag));
            wanted.push_back({seen, count, tag});
          }
        }
      }
    }
    if (me == 1) works.push_back(start(comm, call, buffers.input(), buffers.output()));
    expect_ok(Work::all(works));
    EXPECT_EQ(buffers.check(), "");
    for (const auto& w : wanted) {
      for (size_t i = 0; i < w.count; ++i) {
        int value = 0;
        std::memcpy(&value, w.seen + 4 * i, 4);
        ASSERT_EQ(value, static_cast<int>(i) + 1000 * w.tag + peer) << "tag " << w.tag;
      }
    }
    for (auto* memory : to_free) cuda::free(memory);
  });
}

TEST_F(DeviceCalls, ReceivesFromAnybodyTellWhoItWas) {
  Ranks ranks(3);
  each(ranks, [&](Communicator& comm) {
    void* memory = cuda::allocate(4);
    if (comm.rank() == 2) {
      bool seen[2] = {};
      for (int i = 0; i < 2; ++i) {
        Work work = comm.recv(memory, 1, DataType::kI32, Communicator::kAnySource);
        expect_ok(work.wait());
        int value = 0;
        std::memcpy(&value, cuda::alias(memory), 4);
        ASSERT_TRUE(work.source() == 0 || work.source() == 1);
        EXPECT_EQ(value, work.source() + 40);
        seen[work.source()] = true;
      }
      EXPECT_TRUE(seen[0] && seen[1]);
    } else {
      const int value = comm.rank() + 40;
      std::memcpy(cuda::alias(memory), &value, 4);
      expect_ok(comm.send(memory, 1, DataType::kI32, 2));
    }
    cuda::free(memory);
  });
}

}  // namespace
}  // namespace ringfold::test
