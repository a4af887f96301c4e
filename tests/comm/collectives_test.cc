// Results of collectives through the public interface, against an exact oracle: types, operations, sizes, algorithms,
// transports.
#include <fmt/format.h>

#include <random>

#include "algo/algo.h"
#include "tests/comm/ranks.h"

namespace ringfold::test {
namespace {

constexpr Collective kAll[] = {Collective::kAllReduce, Collective::kReduce,    Collective::kReduceScatter,
                               Collective::kAllGather, Collective::kBroadcast, Collective::kGather,
                               Collective::kScatter,   Collective::kAllToAll,  Collective::kBarrier};

// Every type with every operation that it has, for every collective, with the rest drawn from a seed.
std::vector<Call> sample(int ranks, uint32_t seed, int times = 1) {
  std::mt19937 random(seed);
  auto below = [&](uint64_t n) { return random() % n; };
  const uint64_t counts[] = {
      0, 1, 2, 3, 5, 7, 13, 97, 1009, static_cast<uint64_t>(ranks) - 1, static_cast<uint64_t>(ranks), 4099};
  std::vector<Call> calls;
  for (int time = 0; time < times; ++time) {
    for (Collective c : kAll) {
      for (int t = 0; t < kDataTypes; ++t) {
        for (int k = 0; k < (reduces(c) ? kReduceKinds : 1); ++k) {
          const auto type = static_cast<DataType>(t);
          const auto kind = static_cast<ReduceKind>(k);
          if (!has_meaning(type, kind)) continue;
          Call call;
          call.shape = {c, ranks, has_root(c) ? static_cast<int>(below(static_cast<uint64_t>(ranks))) : 0};
          call.type = type;
          call.op = kind == ReduceKind::kScaledSum ? ReduceOp::scaled_sum(0.25) : ReduceOp(kind);
          call.count = c == Collective::kBarrier ? 0 : counts[below(std::size(counts))];
          call.in_place = has_in_place_form(c) && below(2) == 0;
          call.salt = random();
          calls.push_back(call);
        }
      }
    }
  }
  return calls;
}

class Collectives : public testing::TestWithParam<int> {};

TEST_P(Collectives, AreExactForEveryTypeAndOperation) {
  const int n = GetParam();
  const auto calls = sample(n, 7 * static_cast<uint32_t>(n), 4);
  Ranks ranks(n);
  ranks.each([&](Communicator& comm) {
    for (const auto& call : calls) perform(comm, call);
  });
}

// Tiles of 1 KiB: nearly every call takes several, and many take several passes.
TEST_P(Collectives, AreExactInManyTilesAndPasses) {
  const int n = GetParam();
  const auto calls = sample(n, 1000 + static_cast<uint32_t>(n), 3);
  const Variable tile("RINGFOLD_TILE", "1K"), slots("RINGFOLD_SLOTS", "4");
  Ranks ranks(n);
  ranks.each([&](Communicator& comm) {
    for (const auto& call : calls) perform(comm, call);
  });
}

TEST_P(Collectives, MayAllBeInFlightAtOnce) {
  const int n = GetParam();
  const auto calls = sample(n, 2000 + static_cast<uint32_t>(n));
  Ranks ranks(n);
  ranks.each([&](Communicator& comm) {
    std::vector<std::unique_ptr<Buffers>> buffers;
    std::vector<Work> works;
    for (const auto& call : calls) {
      buffers.push_back(std::make_unique<Buffers>(call, comm.rank()));
      works.push_back(start(comm, call, *buffers.back()));
    }
    for (size_t i = calls.size(); i-- > 0;) {
      const Status s = works[i].wait();
      ASSERT_TRUE(s.ok()) << calls[i].to_string() << ": " << s.to_string();
      EXPECT_EQ(buffers[i]->check(), "");
    }
  });
}

TEST_P(Collectives, TakeBlocksOfDifferentSizes) {
  const int n = GetParam();
  const auto calls = calls_of_blocks(n, 60);
  Ranks ranks(n);
  ranks.each([&](Communicator& comm) {
    for (const auto& call : calls) perform(comm, call);
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, Collectives, testing::Values(1, 2, 3, 4, 5, 6, 7, 8),
                         [](const auto& info) { return std::to_string(info.param); });

struct Way {
  std::string transport;
  int ranks;
};

class Transports : public testing::TestWithParam<Way> {};

TEST_P(Transports, GiveTheSameExactResults) {
  const auto [transport, n] = GetParam();
  auto calls = sample(n, 3000 + static_cast<uint32_t>(n));
  // More than all slots of a link together.
  for (Collective c : kAll) {
    Call call;
    call.shape = {c, n, n - 1};
    if (!has_root(c)) call.shape.root = 0;
    call.count = c == Collective::kBarrier ? 0 : 700'001;
    call.in_place = has_in_place_form(c);
    calls.push_back(call);
  }
  Ranks ranks(n, patient(transport));
  EXPECT_EQ(ranks[0].transport_to(0), "self");
  EXPECT_EQ(ranks[0].transport_to(1), transport);
  ranks.each([&](Communicator& comm) {
    for (const auto& call : calls) perform(comm, call);
  });
}

INSTANTIATE_TEST_SUITE_P(
    All, Transports, testing::Values(Way{"loopback", 3}, Way{"shm", 2}, Way{"shm", 5}, Way{"tcp", 2}, Way{"tcp", 5}),
    [](const auto& info) { return info.param.transport + "_" + std::to_string(info.param.ranks); });

TEST(Algorithms, EachThatIsAskedForIsUsedAndExact) {
  std::set<std::string> names;
  for (Collective c : kAll) {
    for (const auto& name : algo::algorithms_for(c)) names.insert(name);
  }
  ASSERT_GE(names.size(), 7U);
  for (const auto& name : names) {
    for (int n : {2, 3, 6, 8}) {
      Ranks ranks(n, patient("", name));
      auto calls = sample(n, 4000 + static_cast<uint32_t>(n));
      std::erase_if(calls, [&](const Call& call) {
        const auto all = algo::algorithms_for(call.shape.collective);
        return std::find(all.begin(), all.end(), name) == all.end() || call.type == DataType::kU64;
      });
      ASSERT_FALSE(calls.empty());
      ranks.each([&](Communicator& comm) {
        for (const auto& call : calls) {
          perform(comm, call);
          EXPECT_EQ(comm.algorithm_for(call.shape.collective, call.count, call.type, call.op, call.shape.root), name);
        }
      });
    }
  }
}

TEST(Algorithms, UnknownOnesAreRefusedWithTheListOfThoseThatExist) {
  auto made = Communicator::init_local(2, patient("", "ringg"));
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.status().code(), Code::kInvalid);
  EXPECT_NE(made.status().message().find("ringg"), std::string::npos);
  EXPECT_NE(made.status().message().find("hierarchical"), std::string::npos);
}

TEST(Algorithms, AreExplainedToPeople) {
  Ranks ranks(2);
  const std::string text = ranks[0].explain(Collective::kAllReduce, 1 << 20, DataType::kF32);
  const std::string used = ranks[0].algorithm_for(Collective::kAllReduce, 1 << 20, DataType::kF32);
  for (const auto& part : {std::string("all_reduce"), std::string("f32"), std::string("2 ranks"), used}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
  }
}

TEST(AllToAll, InPlaceKeepsWhatItsReceivesOverwrite) {
  const int n = 4;
  const size_t count = 1009;
  Ranks ranks(n);
  ranks.each([&](Communicator& comm) {
    std::vector<int32_t> data(n * count);
    for (int d = 0; d < n; ++d)
      std::fill_n(data.begin() + static_cast<int64_t>(d * count), count, 10 * comm.rank() + d);
    expect_ok(comm.all_to_all(data.data(), data.data(), count, DataType::kI32));
    for (int s = 0; s < n; ++s) {
      for (size_t i = 0; i < count; ++i) ASSERT_EQ(data[s * count + i], 10 * s + comm.rank());
    }
  });
}

// Sums in which the order of rounding shows: 1 + 2^-11 + 2^-11 is 1 + 2^-10 in f16 only when it is rounded once.
TEST(SixteenBitFloats, AreRoundedOnceByDirectAlgorithms) {
  for (const char* algorithm : {"direct", "oneshot"}) {
    Ranks ranks(3, patient("", algorithm));
    ranks.each([&](Communicator& comm) {
      const uint16_t inputs[] = {0x3c00, 0x1000, 0x1000};  // 1, 2^-11, 2^-11
      std::vector<uint16_t> in(300, inputs[comm.rank()]), out(300);
      expect_ok(comm.all_reduce(in.data(), out.data(), in.size(), DataType::kF16));
      for (uint16_t v : out) ASSERT_EQ(v, 0x3c01) << algorithm;
      const uint16_t wide[] = {0x3f80, 0x3b80, 0x3b80};  // the same in bf16: 1, 2^-8, 2^-8
      std::fill(in.begin(), in.end(), wide[comm.rank()]);
      expect_ok(comm.all_reduce(in.data(), out.data(), in.size(), DataType::kBF16));
      for (uint16_t v : out) ASSERT_EQ(v, 0x3f81) << algorithm;
    });
  }
}

TEST(Averages, OfIntegersTruncateTowardsZero) {
  Ranks ranks(3);
  ranks.each([&](Communicator& comm) {
    const std::vector<int32_t> in = {comm.rank() == 0 ? 5 : 0, comm.rank() == 0 ? -5 : 0, 7};
    std::vector<int32_t> out(3);
    expect_ok(comm.all_reduce(in.data(), out.data(), 3, DataType::kI32, kAvg));
    EXPECT_EQ(out, (std::vector<int32_t>{1, -1, 7}));
  });
}

}  // namespace
}  // namespace ringfold::test
