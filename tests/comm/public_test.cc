// A program that knows only the installed headers and links only libringfold.so: every function of the interface is
// there.
#include <gtest/gtest.h>

#include <thread>

#include "ringfold/ringfold.hpp"

namespace {

using namespace ringfold;  // NOLINT: this is what a user writes

void play(Communicator& comm) {
  const int n = comm.size(), me = comm.rank();
  const auto blocks = static_cast<size_t>(n);
  const std::vector<size_t> ones(blocks, 1);
  std::vector<float> x(blocks, 1), y(blocks);
  Group group;
  group.add(comm.all_reduce(x.data(), y.data(), 1, DataType::kF32, ReduceOp::scaled_sum(2)));
  group.add(comm.reduce(x.data(), y.data(), 1, DataType::kF32, kProd, 0));
  group.add(comm.reduce_scatter(x.data(), y.data(), 1, DataType::kF32, kMin));
  group.add(comm.all_gather(x.data(), y.data(), 1, DataType::kF32));
  group.add(comm.broadcast(x.data(), y.data(), 1, DataType::kF32, 0));
  group.add(comm.gather(x.data(), y.data(), 1, DataType::kF32, 0));
  group.add(comm.scatter(x.data(), y.data(), 1, DataType::kF32, 0));
  group.add(comm.all_to_all(x.data(), y.data(), 1, DataType::kF32));
  group.add(comm.all_gather_v(x.data(), y.data(), ones, DataType::kF32));
  group.add(comm.reduce_scatter_v(x.data(), y.data(), ones, DataType::kF32, kMax));
  group.add(comm.all_to_all_v(x.data(), ones, y.data(), ones, DataType::kF32));
  group.add(comm.barrier({.timeout_s = 30}));
  group.add(comm.send_recv(x.data(), 1, (me + 1) % n, y.data(), 1, (me + n - 1) % n, DataType::kF32, 4));
  const Status s = group.wait();
  EXPECT_TRUE(s.ok()) << s.to_string();
  EXPECT_EQ(y[0], 1);
  auto persistent = comm.persistent_all_reduce(x.data(), y.data(), 1, DataType::kF32, kAvg);
  ASSERT_TRUE(persistent.ok());
  EXPECT_TRUE(persistent->start().wait().ok());
  EXPECT_TRUE(comm.persistent_all_gather(x.data(), y.data(), 1, DataType::kF32).ok());
  EXPECT_TRUE(comm.persistent_reduce_scatter(x.data(), y.data(), 1, DataType::kF32).ok());
  EXPECT_TRUE(comm.persistent_broadcast(x.data(), y.data(), 1, DataType::kF32, 0).ok());
  auto part = comm.split(0, me);
  ASSERT_TRUE(part.ok()) << part.status().to_string();
  EXPECT_EQ(part->epoch(), 0U);
  EXPECT_EQ(part->transport_to(me), "self");
  EXPECT_FALSE(part->host_of(me).empty());
  EXPECT_NE(part->explain(Collective::kAllReduce, 1, DataType::kF32).find("all_reduce"), std::string::npos);
  EXPECT_FALSE(part->algorithm_for(Collective::kBroadcast, 1, DataType::kF32).empty());
  Work work = part->recv(x.data(), 1, DataType::kF32, Communicator::kAnySource, 1);
  EXPECT_FALSE(work.test());
  EXPECT_EQ(work.source(), -1);
  EXPECT_EQ(work.wait_for(0.001).code(), Code::kTimeout);
  int calls = 0;
  work.then([&](const Status& end) { calls += end.verdict() != nullptr; });
  EXPECT_TRUE(comm.barrier().wait().ok());  // nobody ends it before all have come so far
  part->abort("the end");
  EXPECT_EQ(work.wait().code(), Code::kAborted);
  EXPECT_EQ(part->send(x.data(), 1, DataType::kF32, 0).wait().code(), Code::kAborted);
  EXPECT_EQ(part->status().verdict()->epoch, 0U);
  while (!work.test()) std::this_thread::yield();
  auto next = part->reconfigure();
  ASSERT_TRUE(next.ok()) << next.status().to_string();
  EXPECT_EQ(next->epoch(), 1U);
  EXPECT_TRUE(comm.status().ok());
}

TEST(SharedLibrary, OffersTheWholePublicInterface) {
  EXPECT_STREQ(version(), RINGFOLD_VERSION);
  EXPECT_EQ(parse_data_type(name_of(DataType::kBF16)), DataType::kBF16);
  EXPECT_EQ(parse_reduce_kind("max"), ReduceKind::kMax);
  EXPECT_EQ(parse_collective("gather"), Collective::kGather);
  EXPECT_EQ(name_of(Code::kPeerLost), "peer lost");
  auto memory = allocate_buffer<float>(10);
  ASSERT_TRUE(memory.ok());
  EXPECT_EQ(memory->get()[9], 0);
  Options options;
  options.timeout_s = 60;
  auto ranks = Communicator::init_local(3, options);
  ASSERT_TRUE(ranks.ok()) << ranks.status().to_string();
  std::vector<std::thread> threads;
  for (auto& comm : *ranks) threads.emplace_back([&comm] { play(comm); });
  for (auto& t : threads) t.join();
  options.rank = 0;
  options.size = 1;
  auto alone = Communicator::init(options);
  ASSERT_TRUE(alone.ok()) << alone.status().to_string();
  EXPECT_EQ(alone->size(), 1);
}

}  // namespace
