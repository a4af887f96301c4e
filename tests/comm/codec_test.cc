// Calls whose links carry codes: exact where the code is, within the codec's error elsewhere, the same bits on all
// ranks; what is chosen, and what is refused.
#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <random>

#include "tests/comm/coded.h"

namespace ringfold::test {
namespace {

std::vector<Codec> all_codecs() {
  std::vector<Codec> codecs;
  for (int k = 1; k < kCodecKinds; ++k) {
    Codec codec(static_cast<CodecKind>(k));
    if (codec.kind == CodecKind::kTopK) codec.keep = 100;
    codecs.push_back(codec);
  }
  Codec stochastic(CodecKind::kInt8), rotated(CodecKind::kInt4);
  stochastic.rounding = Rounding::kStochastic;
  rotated.rotate = true;
  codecs.push_back(stochastic);
  codecs.push_back(rotated);
  return codecs;
}

// What each rank's buffers are, of one call; block r belongs to rank r.
struct Shape {
  Collective collective;
  size_t count;
  bool in_place;
};
size_t input_blocks(const Shape& s, int n) {
  return s.collective == Collective::kReduceScatter ? static_cast<size_t>(n) : 1;
}
size_t output_blocks(const Shape& s, int n) {
  return s.collective == Collective::kAllGather ? static_cast<size_t>(n) : 1;
}

// Makes the call and returns the output.
Floats call(Communicator& comm, const Shape& s, const Floats& input, ReduceOp op, const CallOptions& options) {
  const int n = comm.size();
  const auto me = static_cast<size_t>(comm.rank());
  Floats output(output_blocks(s, n) * s.count, -99.0F);
  const float* in = input.data();
  float* out = output.data();
  Floats both;
  if (s.in_place) {
    both.assign(std::max(input.size(), output.size()), -99.0F);
    const bool gathers = s.collective == Collective::kAllGather,
               scatters = s.collective == Collective::kReduceScatter;
    const bool root_only = s.collective == Collective::kBroadcast && comm.rank() != n - 1;
    if (!root_only)
      std::copy(input.begin(), input.end(), both.begin() + static_cast<long>(gathers ? me * s.count : 0));
    in = both.data() + (gathers ? me * s.count : 0);
    out = both.data() + (scatters ? me * s.count : 0);
  }
  Work work;
  switch (s.collective) {
    case Collective::kAllReduce: work = comm.all_reduce(in, out, s.count, DataType::kF32, op, options); break;
    case Collective::kReduceScatter: work = comm.reduce_scatter(in, out, s.count, DataType::kF32, op, options); break;
    case Collective::kAllGather: work = comm.all_gather(in, out, s.count, DataType::kF32, options); break;
    default: work = comm.broadcast(in, out, s.count, DataType::kF32, n - 1, options); break;
  }
  expect_ok(work);
  return s.in_place ? Floats(out, out + output.size()) : output;
}

// The exact output of `rank`, in double.
std::vector<double> exact(const Shape& s, int n, int rank, const std::vector<Floats>& inputs, double factor) {
  std::vector<double> out;
  switch (s.collective) {
    case Collective::kAllReduce:
    case Collective::kReduceScatter: {
      out.assign(s.count, 0.0);
      const size_t at = s.collective == Collective::kReduceScatter ? static_cast<size_t>(rank) * s.count : 0;
      for (int r = 0; r < n; ++r) {
        for (size_t i = 0; i < s.count; ++i) out[i] += static_cast<double>(inputs[static_cast<size_t>(r)][at + i]);
      }
      for (auto& v : out) v *= factor;
      break;
    }
    case Collective::kAllGather:
      for (const auto& x : inputs) out.insert(out.end(), x.begin(), x.end());
      break;
    default: out.assign(inputs.back().begin(), inputs.back().end());
  }
  return out;
}

std::vector<Shape> shapes(std::initializer_list<size_t> counts) {
  std::vector<Shape> all;
  for (Collective c :
       {Collective::kAllReduce, Collective::kReduceScatter, Collective::kAllGather, Collective::kBroadcast}) {
    for (size_t count : counts) {
      all.push_back({c, count, false});
      all.push_back({c, count, true});
    }
  }
  return all;
}

// Whether outputs that must be equal are, across ranks that are threads.
class Replicas {
 public:
  void add(const std::string& name, const Floats& output) {
    const std::lock_guard lock(mutex_);
    const auto [it, added] = first_.try_emplace(name, output);
    EXPECT_TRUE(added || (it->second.size() == output.size() &&
                          std::memcmp(it->second.data(), output.data(), output.size() * sizeof(float)) == 0))
        << name << ": ranks hold different bits";
  }

 private:
  std::mutex mutex_;
  std::map<std::string, Floats> first_;
};

std::string text_of(const Shape& s, const Codec& codec) {
  return fmt::format("{} x{}{} {}", name_of(s.collective), s.count, s.in_place ? " in place" : "", to_string(codec));
}

void check_exact(Communicator& comm, const std::vector<Shape>& all) {
  const int n = comm.size();
  for (const Shape& s : all) {
    std::vector<Floats> inputs;
    for (int r = 0; r < n; ++r) inputs.push_back(draw(r, input_blocks(s, n) * s.count, true));
    for (CodecKind kind : {CodecKind::kBF16, CodecKind::kF16}) {
      const auto out = call(comm, s, inputs[static_cast<size_t>(comm.rank())], kSum, with(kind));
      const auto expected = exact(s, n, comm.rank(), inputs, 1);
      ASSERT_EQ(out.size(), expected.size());
      for (size_t i = 0; i < out.size(); ++i) {
        ASSERT_EQ(static_cast<double>(out[i]), expected[i])
            << text_of(s, kind) << " element " << i << " of " << n << " ranks";
      }
    }
  }
}

class CodedCalls : public testing::TestWithParam<int> {};

TEST_P(CodedCalls, AreExactWhereTheCodeIs) {
  Ranks ranks(GetParam());
  ranks.each([](Communicator& comm) { check_exact(comm, shapes({0, 1, 2, 31, 33, 1023, 4097, 70'001})); });
}

TEST_P(CodedCalls, AreExactInManyTilesAndPasses) {
  const Variable tile("RINGFOLD_TILE", "1K"), slots("RINGFOLD_SLOTS", "4");
  Ranks ranks(GetParam());
  ranks.each([](Communicator& comm) { check_exact(comm, shapes({5, 1025, 30'011})); });
}

TEST_P(CodedCalls, GiveAllRanksTheSameBitsWithinTheCodecsError) {
  const int n = GetParam();
  Ranks ranks(n);
  Replicas replicas;
  ranks.each([&](Communicator& comm) {
    for (const Shape& s : shapes({3, 1000, 5000})) {
      std::vector<Floats> inputs;
      for (int r = 0; r < n; ++r) inputs.push_back(draw(r, input_blocks(s, n) * s.count, false));
      for (const Codec& codec : all_codecs()) {
        for (ReduceOp op : {ReduceOp(kSum), ReduceOp(kAvg), ReduceOp::scaled_sum(-0.5)}) {
          const bool sums = reduces(s.collective);
          if (!sums && op.kind != ReduceKind::kSum) continue;
          const auto out = call(comm, s, inputs[static_cast<size_t>(comm.rank())], op, with(codec));
          const auto name = text_of(s, codec) + std::string(name_of(op.kind));
          if (s.collective != Collective::kReduceScatter) replicas.add(name, out);
          const double factor = op.kind == ReduceKind::kAvg ? 1.0 / n : op.kind == ReduceKind::kScaledSum ? -0.5 : 1;
          const auto expected = exact(s, n, comm.rank(), inputs, factor);
          // Each of n - 1 ranks codes values of at most 1, then the owner a sum of at most n and those errors.
          const double unit = n == 1 ? 1e-6 : error_bound(codec);
          const double bound = (sums ? std::abs(factor) * (n * unit + n * (1 + unit) * unit) : unit) + 1e-5;
          for (size_t i = 0; i < out.size() && std::isfinite(unit); ++i) {
            ASSERT_NEAR(out[i], expected[i], bound) << name << " element " << i << " of " << n << " ranks";
          }
        }
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, CodedCalls, testing::Values(1, 2, 3, 4, 5, 8));

TEST(CodedCalls, CarryBlocksOfDifferentSizes) {
  constexpr int kRanks = 4;
  const size_t counts[kRanks] = {5, 0, 3000, 33};
  Ranks ranks(kRanks);
  ranks.each([&](Communicator& comm) {
    const auto me = static_cast<size_t>(comm.rank());
    const size_t all = 5 + 0 + 3000 + 33;
    Floats whole(all), own(counts[me]);
    for (size_t i = 0; i < all; ++i) whole[i] = static_cast<float>(i % 50);
    expect_ok(comm.reduce_scatter_v(whole.data(), own.data(), counts, DataType::kF32, kSum, with(CodecKind::kBF16)));
    size_t before = 0;
    for (size_t r = 0; r < me; ++r) before += counts[r];
    for (size_t i = 0; i < own.size(); ++i) ASSERT_EQ(own[i], 4.0F * static_cast<float>((before + i) % 50));
    Floats gathered(all);
    expect_ok(comm.all_gather_v(own.data(), gathered.data(), counts, DataType::kF32, with(CodecKind::kBF16)));
    for (size_t i = 0; i < all; ++i) ASSERT_EQ(gathered[i], 4.0F * static_cast<float>(i % 50));
  });
}

// The same calls on new communicators.
TEST(CodedCalls, GiveTheSameBitsRunAfterRun) {
  Codec stochastic(CodecKind::kInt4);
  stochastic.rounding = Rounding::kStochastic;
  Floats first;
  for (int run = 0; run < 3; ++run) {
    Ranks ranks(3);
    ranks.each([&](Communicator& comm) {
      const auto x = draw(comm.rank(), 5000, false);
      Floats once(x.size()), twice(x.size());
      expect_ok(comm.all_reduce(x.data(), once.data(), x.size(), DataType::kF32, kSum, with(stochastic)));
      expect_ok(comm.all_reduce(x.data(), twice.data(), x.size(), DataType::kF32, kSum, with(stochastic)));
      EXPECT_NE(once, twice) << "two calls drew the same random numbers";
      if (comm.rank() != 0) return;
      if (run == 0) first = once;
      EXPECT_EQ(once, first);
    });
  }
}

TEST(CodedCalls, MayAllBeInFlightAtOnce) {
  Ranks ranks(4);
  ranks.each([](Communicator& comm) {
    std::vector<Floats> buffers;
    for (size_t k = 0; k < 30; ++k) buffers.emplace_back(k * 37, static_cast<float>(k + 1));
    Group group;
    for (auto& b : buffers) {
      const CallOptions options = b.size() % 2 == 0 ? with(CodecKind::kInt8) : CallOptions();
      group.add(comm.all_reduce(b.data(), b.data(), b.size(), DataType::kF32, kSum, options));
    }
    expect_ok(group.wait());
    for (size_t k = 0; k < 30; ++k) {
      for (float v : buffers[k]) ASSERT_NEAR(v, 4 * static_cast<float>(k + 1), 0.02 * static_cast<double>(k + 1));
    }
  });
}

// ---- messages ----

TEST(CodedMessages, ArriveWithinTheCodecsErrorWhicheverSideIsFirst) {
  Ranks ranks(2);
  ranks.each([](Communicator& comm) {
    for (size_t count : {0, 1, 33, 5000, 400'000}) {
      for (const Codec& codec : all_codecs()) {
        const auto x = draw(0, count, false);
        Floats y(count, -99.0F);
        if (comm.rank() == 0) {
          if (count % 2 == 0) expect_ok(comm.recv(nullptr, 0, DataType::kU8, 1, 9));  // the receive is posted first
          expect_ok(comm.send(x.data(), count, DataType::kF32, 1, 7, with(codec)));
          continue;
        }
        Work receive;
        if (count % 2 == 0) {
          receive = comm.recv(y.data(), count, DataType::kF32, 0, 7, with(codec));
          expect_ok(comm.send(nullptr, 0, DataType::kU8, 0, 9));
        } else {
          receive = comm.recv(y.data(), count, DataType::kF32, Communicator::kAnySource, 7, with(codec));
        }
        expect_ok(receive);
        const double bound = error_bound(codec);
        for (size_t i = 0; i < count; ++i) {
          ASSERT_NE(y[i], -99.0F);
          ASSERT_TRUE(!std::isfinite(bound) || std::abs(y[i] - x[i]) <= bound + 1e-7)
              << to_string(codec) << " element " << i << ": " << y[i] << " for " << x[i];
        }
      }
    }
  });
}

TEST(CodedMessages, ToItselfAreCodedToo) {
  Ranks ranks(1);
  const auto x = draw(3, 100, false);
  Floats y(100);
  Work send = ranks[0].send(x.data(), 100, DataType::kF32, 0, 1, with(CodecKind::kBF16));
  expect_ok(ranks[0].recv(y.data(), 100, DataType::kF32, 0, 1, with(CodecKind::kBF16)));
  expect_ok(send);
  EXPECT_NE(x, y);
  for (size_t i = 0; i < 100; ++i) ASSERT_NEAR(y[i], x[i], 0x1p-8);
}

TEST(CodedMessages, OfAnotherCodecAreAMismatchThatNamesBoth) {
  Ranks ranks(2);
  ranks.each([](Communicator& comm) {
    Floats x(100, 1.0F);
    const bool sends = comm.rank() == 0;
    Work work = sends ? comm.send(x.data(), 100, DataType::kF32, 1, 0, with(CodecKind::kInt8))
                      : comm.recv(x.data(), 100, DataType::kF32, 0, 0, with(CodecKind::kE4M3));
    const Status s = work.wait();
    if (sends) return;  // it may be done before the other looks
    EXPECT_EQ(s.code(), Code::kMismatch) << s.to_string();
    for (const char* name : {"int8", "e4m3"}) EXPECT_NE(s.to_string().find(name), std::string::npos) << s.to_string();
  });
  // Codes of 20 and of 32 elements have the same bytes.
  Ranks pair(2);
  pair.each([](Communicator& comm) {
    Floats x(32, 1.0F), y(32, -99.0F);
    if (comm.rank() == 0) {
      (void)comm.send(x.data(), 20, DataType::kF32, 1, 0, with(CodecKind::kInt8)).wait();
      return;
    }
    const Status s = comm.recv(y.data(), 32, DataType::kF32, 0, 0, with(CodecKind::kInt8)).wait();
    EXPECT_EQ(s.code(), Code::kMismatch) << s.to_string();
    EXPECT_NE(s.to_string().find("x20"), std::string::npos) << s.to_string();
    for (float v : y) ASSERT_EQ(v, -99.0F);
  });
  Floats x(3);
  Ranks alone(1);
  const Status s = alone[0].send(x.data(), 3, DataType::kI32, 0, 0, with(CodecKind::kInt8)).wait();
  EXPECT_EQ(s.code(), Code::kInvalid);
}

// ---- between processes ----

class CodedTransports : public testing::TestWithParam<std::string> {};

TEST_P(CodedTransports, AreExactWhereTheCodeIs) {
  processes(3, patient(GetParam()), [](Communicator& comm) { check_exact(comm, shapes({1, 1023, 300'001})); });
}

INSTANTIATE_TEST_SUITE_P(Transports, CodedTransports, testing::Values("shm", "tcp"),
                         [](const auto& info) { return info.param; });

// ---- defaults and choices ----

TEST(CodecChoice, FollowsTheCommunicatorsDefaultOnlyWhereItMakesSense) {
  Options options = patient();
  options.codec = "int4";
  Ranks ranks(2, options);
  ranks.each([](Communicator& comm) {
    const auto x = draw(0, 3000, false);
    Floats coded(x.size()), plain(x.size()), gathered(2 * x.size());
    expect_ok(comm.all_reduce(x.data(), coded.data(), x.size(), DataType::kF32));
    expect_ok(comm.all_reduce(x.data(), plain.data(), x.size(), DataType::kF32, kSum, with(CodecKind::kNone)));
    EXPECT_NE(coded, plain);
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(plain[i], 2 * x[i]);
    // A maximum, other types and what is not summed travel as they are.
    Floats most(x.size());
    expect_ok(comm.all_reduce(x.data(), most.data(), x.size(), DataType::kF32, kMax));
    EXPECT_EQ(most, x);
    expect_ok(comm.all_gather(x.data(), gathered.data(), x.size(), DataType::kF32));
    EXPECT_EQ(Floats(gathered.begin(), gathered.begin() + 3000), x);
    std::vector<int32_t> numbers(1000, 1'000'003);
    expect_ok(comm.all_reduce(numbers.data(), numbers.data(), numbers.size(), DataType::kI32));
    EXPECT_EQ(numbers[7], 2'000'006);
  });
}

TEST(CodecChoice, IsPlainWhereTheLinkIsFasterThanTheCodec) {
  Ranks ranks(2);
  ranks.each([](Communicator& comm) {
    Codec codec(CodecKind::kInt8);
    EXPECT_EQ(comm.algorithm_for(Collective::kAllReduce, 1 << 20, DataType::kF32, kSum, 0, codec), "direct+int8");
    codec.when_faster = true;
    const auto x = draw(comm.rank(), 10'000, false);
    Floats chosen(x.size()), plain(x.size());
    expect_ok(comm.all_reduce(x.data(), chosen.data(), x.size(), DataType::kF32, kSum, with(codec)));
    expect_ok(comm.all_reduce(x.data(), plain.data(), x.size(), DataType::kF32));
    EXPECT_EQ(chosen, plain);
  });
}

// Whether it is faster is not for a test to say; that all ranks decide alike is.
TEST(CodecChoice, OfAutoIsMeasuredOnceAndTheSameOnAllRanks) {
  Options options = patient("tcp");
  options.codec = "auto:int4";
  const Variable cache("RINGFOLD_CACHE_DIR", testing::TempDir() + "/auto-codec-" + std::to_string(::getpid()));
  for (int run = 0; run < 2; ++run) {
    processes(3, options, [](Communicator& comm) {
      EXPECT_NE(comm.tuning().find("measured figures"), std::string::npos) << comm.tuning();
      for (size_t count : {1, 1000, 300'000}) {
        const auto x = draw(comm.rank(), count, true);
        Floats y(count), all(3 * count);
        expect_ok(comm.all_reduce(x.data(), y.data(), count, DataType::kF32));
        const bool coded =
            comm.algorithm_for(Collective::kAllReduce, count, DataType::kF32).find('+') != std::string::npos;
        const double bound = coded ? 21 * (error_bound(CodecKind::kInt4) * 2.1) : 0;
        for (size_t i = 0; i < count; ++i) {
          double sum = 0;
          for (int r = 0; r < 3; ++r) sum += static_cast<double>(draw(r, i + 1, true)[i]);
          ASSERT_NEAR(y[i], sum, bound) << i;
          if (i > 50) break;
        }
        expect_ok(comm.all_gather(y.data(), all.data(), count, DataType::kF32));
        for (int r = 1; r < 3; ++r) {
          EXPECT_EQ(std::memcmp(all.data(), all.data() + static_cast<size_t>(r) * count, count * sizeof(float)), 0);
        }
      }
      auto half = comm.split(comm.rank() % 2);
      ASSERT_TRUE(half.ok());
      EXPECT_TRUE(half->size() == 1 || half->tuning().find("measured figures") != std::string::npos);
    });
  }
}

TEST(CodecChoice, RefusesWhatHasNoMeaning) {
  Ranks ranks(2);
  ranks.each([](Communicator& comm) {
    Floats x(10), y(20);
    std::vector<int32_t> i(10);
    auto refused = [&](Work work) {
      const Status s = work.wait();
      EXPECT_EQ(s.code(), Code::kInvalid) << s.to_string();
      EXPECT_NE(s.to_string().find("codec"), std::string::npos) << s.to_string();
    };
    const auto int8 = with(CodecKind::kInt8);
    refused(comm.all_reduce(i.data(), i.data(), 10, DataType::kI32, kSum, int8));
    refused(comm.all_reduce(x.data(), x.data(), 10, DataType::kF32, kMax, int8));
    refused(comm.all_to_all(x.data(), y.data(), 5, DataType::kF32, int8));
    refused(comm.gather(x.data(), y.data(), 10, DataType::kF32, 0, int8));
    EXPECT_EQ(comm.broadcast(x.data(), x.data(), 10, DataType::kF32, 0, with(CodecKind::kInt8, "w")).wait().code(),
              Code::kInvalid);
    Codec choosy(CodecKind::kInt8);
    choosy.when_faster = true;
    EXPECT_EQ(comm.send(x.data(), 10, DataType::kF32, 1 - comm.rank(), 0, with(choosy)).wait().code(),
              Code::kInvalid);
    Codec nothing(CodecKind::kTopK);
    refused(comm.all_reduce(x.data(), x.data(), 10, DataType::kF32, kSum, with(nothing)));
    expect_ok(comm.barrier());  // nothing was lost
  });
  Options options = patient();
  options.codec = "int9";
  const auto refused = Communicator::init_local(2, options);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.status().to_string().find("int9"), std::string::npos) << refused.status().to_string();
}

TEST(CodecChoice, OfAnotherCodecOnOneRankIsAVerdictThatNamesIt) {
  Ranks ranks(3);
  ranks.each([](Communicator& comm) {
    const Floats x(5000, 1.0F);
    Floats y(5000, -99.0F);
    const Codec mine(comm.rank() == 1 ? CodecKind::kInt4 : CodecKind::kInt8);
    const Status s = comm.all_reduce(x.data(), y.data(), x.size(), DataType::kF32, kSum, with(mine)).wait();
    EXPECT_EQ(s.code(), Code::kMismatch) << s.to_string();
    EXPECT_NE(s.to_string().find("rank 1"), std::string::npos) << s.to_string();
    EXPECT_NE(s.to_string().find("int4"), std::string::npos) << s.to_string();
    for (float v : y) ASSERT_EQ(v, -99.0F);
  });
}

}  // namespace
}  // namespace ringfold::test
