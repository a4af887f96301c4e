// Tagged messages: any order on both sides, any source, unexpected ones, limits and mistakes.
#include <atomic>
#include <numeric>
#include <random>

#include "tests/exec/world.h"

namespace ringfold::test {
namespace {

using exec::kAnySource;
using exec::Message;
using exec::Ref;
using Data = std::vector<uint64_t>;

Data numbers(uint64_t first, size_t count) {
  Data data(count);
  std::iota(data.begin(), data.end(), first);
  return data;
}

// Ranks that are about to stop driving must have taken in what others wait to send.
void barrier(Rank& rank, int n) {
  Call call;
  call.shape = {Collective::kBarrier, n};
  call.algorithm = "tree";
  rank.perform(call);
}

TEST(Messages, AnyOrderOfSendsAndReceivesOnBothSides) {
  constexpr int kRanks = 4, kMessages = 24;
  World world(kRanks);
  world.each([&](Rank& rank) {
    const int me = rank.rank();
    std::mt19937_64 random(static_cast<uint64_t>(me));
    struct Item {
      bool send;
      int peer;
      int64_t tag;
      Data data;
    };
    std::vector<Item> items;
    auto content = [](int from, int to, int64_t tag) {
      return numbers(static_cast<uint64_t>(from * 100 + to) * 1000 + static_cast<uint64_t>(tag),
                     static_cast<size_t>(tag * tag * 3));
    };
    for (int peer = 0; peer < kRanks; ++peer) {
      for (int64_t tag = 0; tag < kMessages; ++tag) {
        items.push_back({true, peer, tag, content(me, peer, tag)});
        items.push_back({false, peer, tag, Data(content(peer, me, tag).size())});
      }
    }
    std::shuffle(items.begin(), items.end(), random);
    std::vector<Ref<Message>> all;
    for (auto& item : items) all.push_back(rank.message(item.send, item.peer, item.tag, item.data));
    for (auto& m : all) rank.finish(*m);
    for (auto& item : items)
      EXPECT_EQ(item.data, item.send ? content(me, item.peer, item.tag) : content(item.peer, me, item.tag));
    barrier(rank, kRanks);
  });
}

TEST(Messages, EqualTagsArriveInTheOrderOfTheirSends) {
  World world(2);
  world.each([](Rank& rank) {
    std::vector<Data> data;
    std::vector<Ref<Message>> all;
    for (uint64_t k = 0; k < 50; ++k) data.push_back(rank.rank() == 0 ? Data{k, k * k} : Data(2));
    for (auto& d : data) all.push_back(rank.message(rank.rank() == 0, 1 - rank.rank(), 5, d));
    for (auto& m : all) rank.finish(*m);
    for (uint64_t k = 0; k < 50; ++k) EXPECT_EQ(data[k], (Data{k, k * k}));
    barrier(rank, 2);
  });
}

TEST(Messages, AnySourceTakesFromEverybodyOnceAndTellsWho) {
  constexpr int kRanks = 5;
  World world(kRanks);
  world.each([](Rank& rank) {
    if (rank.rank() != 0) {
      Data data = {static_cast<uint64_t>(rank.rank())};
      rank.finish(*rank.message(true, 0, 9, data));
    } else {
      Data own = {0}, got(1);
      rank.finish(*rank.message(true, 0, 9, own));
      int sum = 0;
      for (int k = 0; k < kRanks; ++k) {
        auto m = rank.message(false, kAnySource, 9, got);
        rank.finish(*m);
        EXPECT_EQ(static_cast<uint64_t>(m->peer), got[0]);
        sum += 1 << m->peer;
      }
      EXPECT_EQ(sum, (1 << kRanks) - 1);
    }
    barrier(rank, kRanks);
  });
}

TEST(Messages, ASendCompletesBeforeItsReceiveIsPosted) {
  World world(2);
  Data source = numbers(7, 5000), target(5000), empty_source, empty_target;
  Data other(1);
  auto waiting = world.rank(1).message(false, 0, 99, other);  // so that rank 1 is driven
  auto send = world.rank(0).message(true, 1, 1, source);
  auto nothing = world.rank(0).message(true, 1, 2, empty_source);
  world.drive([&] { return send->done() && nothing->done(); });
  world.settle();
  EXPECT_EQ(world.rank(1).domain().messages().buffered_bytes(), 40000u);
  auto receive_nothing = world.rank(1).message(false, 0, 2, empty_target);
  EXPECT_TRUE(receive_nothing->done());
  auto receive = world.rank(1).message(false, 0, 1, target);
  EXPECT_TRUE(receive->done());
  EXPECT_EQ(target, numbers(7, 5000));
  EXPECT_EQ(world.rank(1).domain().messages().buffered_bytes(), 0u);
  world.rank(0).engine->abort(world.rank(0).domain(), Status(Code::kAborted, "end"));
  world.rank(1).engine->abort(world.rank(1).domain(), Status(Code::kAborted, "end"));
  EXPECT_EQ(waiting->status().code(), Code::kAborted);
}

TEST(Messages, AReceivePostedWhenHalfOfTheMessageIsThereGetsAllOfIt) {
  World world(2, {.loopback = {.slots = 2, .slot_bytes = 64 << 10}});
  Data source = numbers(1, 100000), target(100000), other(1);
  auto waiting = world.rank(1).message(false, 0, 99, other);
  auto send = world.rank(0).message(true, 1, 1, source);
  // Two slots are on their way: rank 1 takes them, and has begun.
  world.rank(1).engine->poll();
  EXPECT_GT(world.rank(1).domain().messages().buffered_bytes(), 0u);
  EXPECT_FALSE(send->done());
  auto receive = world.rank(1).message(false, 0, 1, target);
  Data second_source = {4}, second_target(1);
  auto second_send = world.rank(0).message(true, 1, 1, second_source);
  auto second = world.rank(1).message(false, 0, 1, second_target);
  world.drive([&] { return receive->done() && send->done() && second->done() && second_send->done(); });
  EXPECT_EQ(target, numbers(1, 100000));
  EXPECT_EQ(second_target, second_source);
  EXPECT_EQ(world.rank(1).domain().messages().buffered_bytes(), 0u);
  world.rank(1).engine->abort(world.rank(1).domain(), Status(Code::kAborted, "end"));
}

// Else a rank that ends a call after its neighbour copies twice what that has sent since.
TEST(Messages, WhoeverHasJustGotFurtherTakesInNothingUntilItWaitsAgain) {
  World world(2);
  Data source = numbers(3, 200), target(200), other(1);
  const Call call{.shape = {Collective::kBroadcast, 2}, .algorithm = "tree", .count = 1};
  Buffers sent(call, 0), got(call, 1);
  auto waiting = world.rank(1).message(false, 0, 99, other);
  auto late = world.rank(1).start(call, got);
  auto early = world.rank(0).start(call, sent);
  ASSERT_TRUE(early->done());
  auto send = world.rank(0).message(true, 1, 1, source);
  ASSERT_FALSE(late->done());
  world.rank(1).engine->poll();
  EXPECT_TRUE(late->done());
  EXPECT_EQ(world.rank(1).domain().messages().buffered_bytes(), 0u);
  world.rank(1).engine->poll();  // nothing else is to be done
  EXPECT_EQ(world.rank(1).domain().messages().buffered_bytes(), 1600u);
  auto receive = world.rank(1).message(false, 0, 1, target);
  EXPECT_TRUE(receive->done());
  EXPECT_EQ(target, source);
  world.drive([&] { return send->done(); });
  world.rank(1).engine->abort(world.rank(1).domain(), Status(Code::kAborted, "end"));
  EXPECT_EQ(waiting->status().code(), Code::kAborted);
}

TEST(Messages, BeyondTheBufferLimitTheSenderWaitsForTheReceive) {
  World world(2, {.loopback = {.slots = 2, .slot_bytes = 64 << 10, .reference_bytes = 512}});
  world.rank(1).domain().messages().set_limits(1000, 64 << 10);
  Data small = numbers(0, 100), large = numbers(5, 200), small_target(100), large_target(200), other(1);
  auto waiting = world.rank(1).message(false, 0, 99, other);
  auto first = world.rank(0).message(true, 1, 1, small);
  auto second = world.rank(0).message(true, 1, 2, large);
  world.drive([&] { return first->done(); });
  world.settle();
  EXPECT_FALSE(second->done()) << "nobody keeps 1600 bytes for it";
  EXPECT_EQ(world.rank(1).domain().messages().buffered_bytes(), 800u);
  auto receive = world.rank(1).message(false, 0, 2, large_target);
  world.drive([&] { return second->done() && receive->done(); });
  EXPECT_EQ(large_target, large);
  auto receive_first = world.rank(1).message(false, 0, 1, small_target);
  EXPECT_TRUE(receive_first->done());
  EXPECT_EQ(small_target, small);
  world.rank(1).engine->abort(world.rank(1).domain(), Status(Code::kAborted, "end"));
}

TEST(Messages, AMessageThatDoesNotFitItsReceiveIsAMismatch) {
  for (bool wrong_type : {false, true}) {
    for (bool receive_first : {false, true}) {
      World world(2);
      Data source(10, 3), target(wrong_type ? 10 : 11, 8), other(1);
      auto waiting = world.rank(1).message(false, 0, 99, other);
      Ref<Message> send, receive;
      auto post_receive = [&] {
        Ref<Message> m(new Message);
        m->peer = 0;
        m->tag = 4;
        m->format.type = wrong_type ? DataType::kI64 : DataType::kU64;
        m->bytes = target.size() * 8;
        m->target = reinterpret_cast<std::byte*>(target.data());
        world.rank(1).engine->start(world.rank(1).domain(), m.get());
        receive = m;
      };
      if (receive_first) post_receive();
      send = world.rank(0).message(true, 1, 4, source);
      if (!receive_first) {
        world.drive([&] { return world.rank(1).domain().messages().buffered_bytes() > 0; });
        post_receive();
      }
      world.drive([&] { return world.rank(1).fault_count() == 1; });
      const exec::Fault& fault = world.rank(1).faults[0];
      EXPECT_EQ(fault.kind, exec::FaultKind::kMismatch);
      EXPECT_EQ(fault.peer, 0);
      EXPECT_EQ(fault.status.code(), Code::kMismatch);
      EXPECT_NE(fault.status.message().find("u64 x10"), std::string::npos) << fault.status.message();
      EXPECT_NE(fault.status.message().find(wrong_type ? "i64 x10" : "u64 x11"), std::string::npos);
      EXPECT_EQ(target, Data(target.size(), 8)) << "nothing was written";
      world.rank(1).engine->abort(world.rank(1).domain(), fault.status);
      EXPECT_EQ(receive->status().code(), Code::kMismatch);
      EXPECT_EQ(waiting->status().code(), Code::kMismatch);
    }
  }
}

// A send or receive at once, as Communicator makes it: false, it has to be started.
bool attempt(Rank& rank, bool send, int peer, int64_t tag, Data& data, exec::Transfer* transfer) {
  auto* bytes = reinterpret_cast<std::byte*>(data.data());
  *transfer = {.send = send,
               .peer = peer,
               .tag = tag,
               .format = {.type = DataType::kU64},
               .source = bytes,
               .target = bytes,
               .bytes = data.size() * sizeof(uint64_t)};
  exec::Engine::Hold hold(*rank.engine);
  return rank.engine->attempt(hold, rank.domain(), transfer);
}

// The same with the request that it then needs; null: done at once.
Ref<Message> move(Rank& rank, bool send, int peer, int64_t tag, Data& data) {
  exec::Transfer transfer;
  if (attempt(rank, send, peer, tag, data, &transfer)) return {};
  exec::Engine::Hold hold(*rank.engine);
  auto message = rank.domain().take_message();
  static_cast<exec::Transfer&>(*message) = transfer;
  message->deadline = base::Deadline::after(kPatience);
  rank.engine->start(hold, rank.domain(), message.get());
  return message;
}

TEST(Messages, WhatWaitsForNothingIsMovedAtOnce) {
  World world(2);
  exec::Transfer transfer;
  Data source = numbers(3, 20), target(20);
  EXPECT_FALSE(attempt(world.rank(1), false, 0, 5, target, &transfer)) << "nothing is there";
  EXPECT_TRUE(attempt(world.rank(0), true, 1, 5, source, &transfer));
  Data other(20), shorter(19);
  EXPECT_FALSE(attempt(world.rank(1), false, 0, 6, other, &transfer)) << "another tag";
  EXPECT_FALSE(attempt(world.rank(1), false, 0, 5, shorter, &transfer)) << "a mismatch, to be told of";
  EXPECT_TRUE(attempt(world.rank(1), false, 0, 5, target, &transfer));
  EXPECT_EQ(target, source);
  EXPECT_EQ(world.rank(0).domain().active() + world.rank(1).domain().active(), 0u);
}

TEST(Messages, AReceiveDoesNotOvertakeOneThatIsPosted) {
  for (int poster : {0, kAnySource}) {
    World world(2);
    Data one = {1}, two = {2}, first(1), second(1);
    auto posted = world.rank(1).message(false, poster, 5, first);
    exec::Transfer transfer;
    EXPECT_TRUE(attempt(world.rank(0), true, 1, 5, one, &transfer));
    EXPECT_TRUE(attempt(world.rank(0), true, 1, 5, two, &transfer));
    auto later = move(world.rank(1), false, 0, 5, second);
    world.drive([&] { return posted->done() && (!later || later->done()); });
    EXPECT_EQ(first, one);
    EXPECT_EQ(second, two);
  }
}

TEST(Messages, ReceivesFromOneAndFromAnybodyTakeTheirTurnsAsPosted) {
  World world(2);
  Data got[4] = {Data(1), Data(1), Data(1), Data(1)}, sent[4] = {{0}, {1}, {2}, {3}};
  std::vector<Ref<Message>> receives;
  for (int k = 0; k < 4; ++k)
    receives.push_back(world.rank(1).message(false, k % 2 == 0 ? kAnySource : 0, 5, got[k]));
  std::vector<Ref<Message>> sends;
  for (auto& data : sent) sends.push_back(move(world.rank(0), true, 1, 5, data));
  world.drive([&] { return std::all_of(receives.begin(), receives.end(), [](auto& r) { return r->done(); }); });
  for (int k = 0; k < 4; ++k) EXPECT_EQ(got[k], sent[k]);
}

TEST(Messages, OrderIsKeptBetweenMessagesMovedAtOnceAndQueuedOnes) {
  World world(2, {.loopback = {.slots = 2, .slot_bytes = 4096, .reference_bytes = 512}});
  constexpr uint64_t kMessages = 3000;
  world.each([](Rank& rank) {
    const bool sends = rank.rank() == 0;
    std::mt19937_64 sizes(1), pauses(static_cast<uint64_t>(rank.rank()));
    std::vector<Data> data;
    std::vector<Ref<Message>> waiting;
    for (uint64_t k = 0; k < kMessages; ++k) {
      const size_t count = sizes() % 8 == 0 ? 100 + sizes() % 1000 : sizes() % 4;  // by reference or in tiles, too
      data.push_back(sends ? numbers(k, count) : Data(count));
    }
    for (uint64_t k = 0; k < kMessages; ++k) {
      if (auto m = move(rank, sends, 1 - rank.rank(), 5, data[k])) waiting.push_back(std::move(m));
      if (pauses() % 16 != 0) continue;
      for (auto& m : waiting) rank.finish(*m);
      waiting.clear();
    }
    for (auto& m : waiting) rank.finish(*m);
    for (uint64_t k = 0; k < kMessages; ++k) ASSERT_EQ(data[k], numbers(k, data[k].size())) << k;
    barrier(rank, 2);
  });
}

TEST(Messages, TheyComeFromAPoolAndMayBeDroppedAfterTheEnd) {
  World world(2);
  Data data(1);
  Ref<Message> kept;
  {
    const Message* address = nullptr;
    for (int k = 0; k < 5; ++k) {
      auto receive = move(world.rank(1), false, 0, 5, data);
      ASSERT_TRUE(receive);
      if (k > 0) {
        EXPECT_EQ(receive.get(), address);
      }
      address = receive.get();
      EXPECT_FALSE(move(world.rank(0), true, 1, 5, data));
      world.drive([&] { return receive->done(); });
    }
    kept = move(world.rank(1), false, 0, 5, data);
  }
  world.rank(1).engine->abort(world.rank(1).domain(), Status(Code::kAborted, "end"));
  EXPECT_EQ(kept->status().code(), Code::kAborted);
  auto late = move(world.rank(1), false, 0, 5, data);
  EXPECT_EQ(late->status().code(), Code::kAborted);
}

TEST(Messages, TheyDoNotDisturbCollectivesOfTheSameRanks) {
  constexpr int kRanks = 3;
  World world(kRanks);
  world.each([](Rank& rank) {
    const int me = rank.rank();
    std::mt19937_64 random(static_cast<uint64_t>(me));
    for (uint64_t round = 0; round < 30; ++round) {
      Data source = numbers(round, 700), target(700);
      Call call{
          .shape = {Collective::kAllReduce, kRanks}, .algorithm = round % 2 == 0 ? "ring" : "tree", .count = 999};
      Buffers buffers(call, me);
      const bool early = random() % 2 == 0;
      Ref<Message> receive;
      if (early) receive = rank.message(false, (me + kRanks - 1) % kRanks, 3, target);
      auto send = rank.message(true, (me + 1) % kRanks, 3, source);
      auto run = rank.start(call, buffers);
      if (!early) receive = rank.message(false, kAnySource, 3, target);
      rank.finish(*run);
      rank.finish(*receive);
      rank.finish(*send);
      EXPECT_EQ(buffers.check(), "");
      EXPECT_EQ(target, source);
      if (testing::Test::HasFailure()) return;
    }
    barrier(rank, kRanks);
  });
}

}  // namespace
}  // namespace ringfold::test
