// Calls that no rank may make: refused at once, with text that says what is wrong, and without harm to the
// communicator.
#include <thread>

#include "tests/comm/ranks.h"

namespace ringfold::test {
namespace {

void expect_invalid(Work work, const std::vector<std::string>& parts) {
  ASSERT_TRUE(work.test());
  const Status s = work.wait();
  EXPECT_EQ(s.code(), Code::kInvalid) << s.to_string();
  for (const auto& part : parts)
    EXPECT_NE(s.message().find(part), std::string::npos) << part << " is not in: " << s.to_string();
}

// A communicator of two of which only rank 0 is used: what is refused must not need the other.
class Refused : public testing::Test {
 protected:
  Ranks ranks_{2};
  Communicator& comm_ = ranks_[0];
  std::vector<float> x_ = std::vector<float>(100, 1), y_ = std::vector<float>(100, 0);

  // Nothing was started: the next call of both is number 1 and works.
  void TearDown() override {
    std::vector<Work> works;
    std::vector<float> sums(2);
    for (int r = 0; r < 2; ++r)
      works.push_back(ranks_[r].all_reduce(x_.data(), &sums[static_cast<size_t>(r)], 1, DataType::kF32));
    ranks_.each([&](Communicator& c) { expect_ok(works[static_cast<size_t>(c.rank())]); });
    EXPECT_EQ(sums[0] + sums[1], 4);
  }
};

TEST_F(Refused, NullBuffers) {
  expect_invalid(comm_.all_reduce(nullptr, y_.data(), 5, DataType::kF32), {"all_reduce", "input is null"});
  expect_invalid(comm_.all_reduce(x_.data(), nullptr, 5, DataType::kF32), {"all_reduce", "output is null"});
  expect_invalid(comm_.reduce(x_.data(), nullptr, 5, DataType::kF32, kSum, 0), {"reduce", "output is null"});
  expect_invalid(comm_.broadcast(nullptr, y_.data(), 5, DataType::kF32, 0), {"broadcast", "input is null"});
  expect_invalid(comm_.gather(x_.data(), nullptr, 5, DataType::kF32, 0), {"gather", "output is null"});
  expect_invalid(comm_.scatter(nullptr, y_.data(), 5, DataType::kF32, 0), {"scatter", "input is null"});
  expect_invalid(comm_.send(nullptr, 5, DataType::kF32, 1), {"send", "data is null"});
  expect_invalid(comm_.recv(nullptr, 5, DataType::kF32, 1), {"recv", "data is null"});
}

TEST_F(Refused, RootsAndPeersOutsideOfTheGroup) {
  for (int rank : {-1, 2, 1 << 30}) {
    const std::string text = "root " + std::to_string(rank);
    expect_invalid(comm_.reduce(x_.data(), y_.data(), 5, DataType::kF32, kSum, rank), {"reduce", text, "0..1"});
    expect_invalid(comm_.broadcast(x_.data(), y_.data(), 5, DataType::kF32, rank), {"broadcast", text});
    expect_invalid(comm_.gather(x_.data(), y_.data(), 5, DataType::kF32, rank), {"gather", text});
    expect_invalid(comm_.scatter(x_.data(), y_.data(), 5, DataType::kF32, rank), {"scatter", text});
  }
  expect_invalid(comm_.send(x_.data(), 5, DataType::kF32, 2), {"send", "peer 2", "0..1"});
  expect_invalid(comm_.send(x_.data(), 5, DataType::kF32, Communicator::kAnySource), {"send", "peer -1"});
  expect_invalid(comm_.recv(x_.data(), 5, DataType::kF32, -2), {"recv", "peer -2"});
}

TEST_F(Refused, BuffersThatOverlapOtherwiseThanInPlace) {
  float* x = x_.data();
  expect_invalid(comm_.all_reduce(x, x + 1, 5, DataType::kF32), {"all_reduce", "overlap"});
  expect_invalid(comm_.all_gather(x + 5, x, 5, DataType::kF32), {"all_gather", "overlap", "block"});
  expect_invalid(comm_.reduce_scatter(x, x + 5, 5, DataType::kF32), {"reduce_scatter", "overlap"});
  expect_invalid(comm_.all_to_all(x, x + 5, 5, DataType::kF32), {"all_to_all", "overlap"});
  const size_t counts[] = {3, 7};
  expect_invalid(comm_.all_gather_v(x + 1, x, counts, DataType::kF32), {"all_gather", "overlap"});
}

TEST_F(Refused, CountsThatExceedTheAddressSpace) {
  const size_t huge = SIZE_MAX / 4;
  expect_invalid(comm_.all_reduce(x_.data(), y_.data(), huge, DataType::kF32),
                 {"all_reduce", "count", "address space"});
  expect_invalid(comm_.all_gather(x_.data(), y_.data(), SIZE_MAX, DataType::kU8), {"all_gather", "address space"});
  const size_t counts[] = {huge, huge};
  expect_invalid(comm_.reduce_scatter_v(x_.data(), y_.data(), counts, DataType::kF64),
                 {"reduce_scatter", "address space"});
  expect_invalid(comm_.send(x_.data(), huge, DataType::kF32, 1), {"send", "address space"});
}

TEST_F(Refused, OperationsAndTypesThatDoNotExist) {
  for (DataType type :
       {DataType::kI8, DataType::kU8, DataType::kI32, DataType::kU32, DataType::kI64, DataType::kU64}) {
    expect_invalid(comm_.all_reduce(x_.data(), y_.data(), 5, type, ReduceOp::scaled_sum(2)),
                   {"all_reduce", "scaled_sum", std::string(name_of(type)), "floating"});
  }
  expect_invalid(comm_.all_reduce(x_.data(), y_.data(), 5, static_cast<DataType>(10)),
                 {"all_reduce", "10", "data type"});
  expect_invalid(comm_.broadcast(x_.data(), y_.data(), 5, static_cast<DataType>(77), 0), {"broadcast", "77"});
  expect_invalid(comm_.send(x_.data(), 5, static_cast<DataType>(10), 1), {"send", "10"});
  expect_invalid(comm_.all_reduce(x_.data(), y_.data(), 5, DataType::kF32, static_cast<ReduceKind>(6)),
                 {"all_reduce", "6 is no operation"});
}

TEST_F(Refused, WrongNumbersOfCounts) {
  const std::vector<size_t> one = {5}, two = {5, 5}, three = {1, 2, 3}, other = {4, 5}, none;
  expect_invalid(comm_.all_gather_v(x_.data(), y_.data(), three, DataType::kF32),
                 {"all_gather", "3 counts for 2 ranks"});
  expect_invalid(comm_.reduce_scatter_v(x_.data(), y_.data(), one, DataType::kF32),
                 {"reduce_scatter", "1 counts for 2 ranks"});
  expect_invalid(comm_.all_gather_v(x_.data(), y_.data(), none, DataType::kF32),
                 {"all_gather", "0 counts for 2 ranks"});
  expect_invalid(comm_.reduce_scatter_v(x_.data(), y_.data(), none, DataType::kF32),
                 {"reduce_scatter", "0 counts for 2 ranks"});
  expect_invalid(comm_.all_to_all_v(x_.data(), two, y_.data(), three, DataType::kF32),
                 {"all_to_all_v", "3 counts for 2 ranks"});
  expect_invalid(comm_.all_to_all_v(x_.data(), two, y_.data(), other, DataType::kF32),
                 {"all_to_all_v", "itself 5", "receives 4"});
}

TEST_F(Refused, ReconfigureWithoutAFailure) {
  auto again = comm_.reconfigure();
  EXPECT_EQ(again.status().code(), Code::kInvalid);
  EXPECT_NE(again.status().message().find("no verdict"), std::string::npos);
}

TEST(RefusedOptions, SayWhatIsWrong) {
  auto message = [](const Result<Communicator>& r) { return r.status().to_string(); };
  Options options;
  options.rank = 2;
  options.size = 2;
  EXPECT_NE(message(Communicator::init(options)).find("rank 2 of 2"), std::string::npos);
  options.rank = 1;
  EXPECT_NE(message(Communicator::init(options)).find("rendezvous is empty"), std::string::npos);
  auto local = Communicator::init_local(0);
  EXPECT_EQ(local.status().code(), Code::kInvalid);
  auto transport = Communicator::init_local(2, patient("pigeon"));
  EXPECT_EQ(transport.status().code(), Code::kInvalid);
  EXPECT_NE(transport.status().message().find("pigeon"), std::string::npos);
}

}  // namespace
}  // namespace ringfold::test
