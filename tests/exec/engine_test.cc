// The engine: many runs, threads and communicators at once; faults, deadlines and aborts; what waiting costs.
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <random>

#include "tests/exec/world.h"

namespace ringfold::test {
namespace {

using exec::FaultKind;
using Handle = exec::Ref<exec::Run>;

Call all_reduce(int n, uint64_t count, const char* algorithm = "ring") {
  return {.shape = {Collective::kAllReduce, n}, .algorithm = algorithm, .count = count};
}

Call random_call(int n, std::mt19937_64& random) {
  static const std::vector<std::pair<Collective, const char*>> kinds = {
      {Collective::kAllReduce, "ring"},     {Collective::kAllReduce, "tree"},   {Collective::kAllReduce, "oneshot"},
      {Collective::kReduceScatter, "ring"}, {Collective::kAllGather, "direct"}, {Collective::kBroadcast, "tree"},
      {Collective::kReduce, "chain"},       {Collective::kAllToAll, "direct"},  {Collective::kScatter, "direct"},
  };
  Call call;
  const auto& [collective, algorithm] = kinds[random() % kinds.size()];
  call.shape = {collective, n, has_root(collective) ? static_cast<int>(random() % static_cast<uint64_t>(n)) : 0};
  call.algorithm = algorithm;
  call.lanes = 1 + static_cast<int>(random() % 4);
  call.count = random() % 3 == 0 ? random() % 9 : random() % 2000;
  call.type = static_cast<DataType>(random() % kDataTypes);
  call.salt = random();
  return call;
}

double cpu_seconds() {
  rusage u{};
  getrusage(RUSAGE_SELF, &u);
  auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(u.ru_utime) + seconds(u.ru_stime);
}

TEST(Engine, ManyRunsInFlightGiveTheResultsOfTheirOrder) {
  constexpr int kRanks = 4;
  World world(kRanks);
  world.each([](Rank& rank) {
    std::mt19937_64 random(5);
    std::vector<std::unique_ptr<Buffers>> buffers;
    std::vector<Handle> runs;
    for (int k = 0; k < 60; ++k) {
      const Call call = random_call(kRanks, random);
      buffers.push_back(std::make_unique<Buffers>(call, rank.rank()));
      runs.push_back(rank.start(call, *buffers.back()));
    }
    // Waits in another order on every rank.
    std::vector<size_t> order(runs.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::mt19937_64 own(static_cast<uint64_t>(rank.rank()));
    std::shuffle(order.begin(), order.end(), own);
    for (size_t i : order) {
      rank.finish(*runs[i]);
      EXPECT_EQ(buffers[i]->check(), "");
    }
  });
}

TEST(Engine, ThreadsWithACommunicatorEachRunSideBySide) {
  constexpr int kRanks = 3, kThreads = 3;
  for (bool background : {false, true}) {
    World world(kRanks, {.communicators = kThreads, .background = background});
    world.each([](Rank& rank) {
      std::vector<std::thread> threads;
      for (size_t c = 0; c < kThreads; ++c) {
        threads.emplace_back([&rank, c] {
          std::mt19937_64 random(c);
          for (int k = 0; k < 25; ++k) rank.perform(random_call(kRanks, random), c);
        });
      }
      for (auto& t : threads) t.join();
    });
  }
}

TEST(Engine, WaitsInAnotherOrderOnTwoCommunicatorsDoNotBlock) {
  World world(2, {.communicators = 2});
  world.each([](Rank& rank) {
    for (int round = 0; round < 30; ++round) {
      const Call call = all_reduce(2, 3000);
      Buffers first(call, rank.rank()), second(call, rank.rank());
      const size_t c = static_cast<size_t>(rank.rank());
      auto mine = rank.start(call, first, c);
      rank.finish(*([&] { return rank.start(call, second, 1 - c); }()));  // the peer waits for the other one first
      rank.finish(*mine);
      EXPECT_EQ(first.check() + second.check(), "");
    }
  });
}

TEST(Engine, AllThreadsThatWaitForOneRunReturn) {
  World world(2);
  const Call call = all_reduce(2, 500);
  Buffers a(call, 0), b(call, 1);
  auto run = world.rank(0).start(call, a);
  std::atomic<int> returned = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      world.rank(0).finish(*run);
      ++returned;
    });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(returned, 0);
  world.rank(1).finish(*world.rank(1).start(call, b));
  for (auto& t : threads) t.join();
  EXPECT_EQ(returned, 4);
}

TEST(Engine, TheBackgroundThreadFinishesWhatNobodyWaitsFor) {
  World world(3, {.background = true});
  const Call call = all_reduce(3, 20000);
  std::vector<std::unique_ptr<Buffers>> buffers;
  std::vector<Handle> runs;
  for (int r = 0; r < 3; ++r) {
    buffers.push_back(std::make_unique<Buffers>(call, r));
    runs.push_back(world.rank(r).start(call, *buffers.back()));
  }
  const auto end = base::Clock::now() + kPatience;
  auto done = [&] { return std::all_of(runs.begin(), runs.end(), [](auto& run) { return run->done(); }); };
  while (!done() && base::Clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_TRUE(done());
  for (auto& b : buffers) EXPECT_EQ(b->check(), "");
}

TEST(Engine, ThenIsCalledOnceWhetherBeforeOrAfterCompletion) {
  World world(2);
  const Call call = all_reduce(2, 10);
  Buffers a(call, 0), b(call, 1);
  auto run = world.rank(0).start(call, a);
  std::atomic<int> early = 0, late = 0;
  std::string seen;
  world.rank(0).engine->then(*run, [&](const Status& s) {
    EXPECT_TRUE(s.ok());
    seen = a.check();
    ++early;
  });
  EXPECT_EQ(early, 0);
  auto other = world.rank(1).start(call, b);
  world.drive([&] { return run->done() && other->done(); });
  EXPECT_EQ(early, 1);
  EXPECT_EQ(seen, "") << "the result is there when the callback runs";
  world.rank(0).engine->then(*run, [&](const Status&) { ++late; });
  EXPECT_EQ(late, 1);
  world.settle();
  EXPECT_EQ(early, 1);
}

TEST(Engine, AnIdleEngineUsesNoProcessor) {
  World world(2, {.background = true});
  world.each([](Rank& rank) { rank.perform(all_reduce(2, 100)); });
  const double before = cpu_seconds();
  std::this_thread::sleep_for(std::chrono::seconds(2));
  EXPECT_LT(cpu_seconds() - before, 0.02);
}

TEST(Engine, AWaiterSleepsWhileItsPeerIsAway) {
  World world(2);
  const Call call = all_reduce(2, 100);
  Buffers a(call, 0), b(call, 1);
  auto run = world.rank(0).start(call, a);
  const double before = cpu_seconds();
  std::thread waiter([&] { world.rank(0).finish(*run); });
  std::this_thread::sleep_for(std::chrono::milliseconds(800));
  EXPECT_LT(cpu_seconds() - before, 0.1);
  world.rank(1).finish(*world.rank(1).start(call, b));
  waiter.join();
  EXPECT_EQ(a.check(), "");
}

// Waiters that sleep as soon as they find nothing to do.
World::Options sleepers(bool background = false) {
  return {.communicators = 3, .background = background, .wait = exec::WaitPolicy{.spin_for = {}, .yield_for = {}}};
}

// A waiter whose wake-up is lost sleeps until its deadline and returns well then: only the time tells.
class NobodySleepsOn {
 public:
  ~NobodySleepsOn() {
    EXPECT_LT(base::Clock::now() - begun_, kPatience / 2) << "somebody slept although its request was done";
  }

 private:
  const base::TimePoint begun_ = base::Clock::now();
};

TEST(Engine, EveryWaiterReturnsWithItsOwnRequest) {
  constexpr size_t kWaiters = 3;  // a communicator each, of one engine
  for (bool background : {false, true}) {
    World world(2, sleepers(background));
    NobodySleepsOn check;
    const Call call = all_reduce(2, 300);
    std::mt19937_64 random(3);
    for (int round = 0; round < 100; ++round) {
      std::vector<std::unique_ptr<Buffers>> mine, theirs;
      std::vector<std::thread> waiters;
      for (size_t c = 0; c < kWaiters; ++c) {
        mine.push_back(std::make_unique<Buffers>(call, 0));
        theirs.push_back(std::make_unique<Buffers>(call, 1));
        waiters.emplace_back([&world, &call, &buffers = *mine[c], c] {
          world.rank(0).finish(*world.rank(0).start(call, buffers, c));
        });
      }
      std::vector<size_t> order = {0, 1, 2};
      std::shuffle(order.begin(), order.end(), random);
      for (size_t c : order) {
        if (random() % 2 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));
        world.rank(1).finish(*world.rank(1).start(call, *theirs[c], c));
        waiters[c].join();  // although the others' requests have not even begun
      }
      for (auto& b : mine) EXPECT_EQ(b->check(), "");
    }
  }
}

TEST(Engine, AStreamOfOneWaiterDoesNotHoldUpAnother) {
  World world(2, sleepers());
  NobodySleepsOn check;
  world.each([](Rank& rank) {
    std::thread stream([&rank] {
      for (int k = 0; k < 1000; ++k) rank.perform(all_reduce(2, 2000), 1);
    });
    for (int k = 0; k < 300; ++k) rank.perform(all_reduce(2, 300), 2);
    stream.join();
  });
}

TEST(Engine, ACallbackMayWaitForWhatAnotherWaiterGets) {
  World world(2, sleepers());
  NobodySleepsOn check;
  const Call call = all_reduce(2, 300);
  for (int round = 0; round < 20; ++round) {
    Buffers a0(call, 0), b0(call, 1), a1(call, 0), b1(call, 1);
    auto first = world.rank(0).start(call, a0, 0), second = world.rank(0).start(call, a1, 1);
    world.rank(0).engine->then(*first, [&](const Status&) {
      const auto end = base::Clock::now() + kPatience;
      while (!second->done() && base::Clock::now() < end) std::this_thread::sleep_for(std::chrono::microseconds(100));
    });
    std::vector<std::thread> waiters;
    waiters.emplace_back([&] { world.rank(0).finish(*first); });
    for (int t = 0; t < 2; ++t) waiters.emplace_back([&] { world.rank(0).finish(*second); });  // one may be in it
    if (round % 2 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    world.rank(1).finish(*world.rank(1).start(call, b0, 0));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    world.rank(1).finish(*world.rank(1).start(call, b1, 1));
    for (auto& t : waiters) t.join();
    EXPECT_EQ(a0.check() + a1.check(), "");
  }
}

// ---- what goes wrong ----

TEST(Faults, ADeadlineIsReportedOnceAndNothingCompletesBeforeTheAbort) {
  World world(2);
  const Call call = all_reduce(2, 100);
  Buffers a(call, 0);
  auto run = world.rank(0).start(call, a, 0, base::Deadline::after(std::chrono::milliseconds(30)));
  EXPECT_FALSE(world.rank(0).engine->wait(*run, base::Deadline::after(std::chrono::milliseconds(100))));
  ASSERT_EQ(world.rank(0).fault_count(), 1u);
  const exec::Fault& fault = world.rank(0).faults[0];
  EXPECT_EQ(fault.kind, FaultKind::kTimeout);
  EXPECT_NE(fault.status.message().find("all_reduce f32 sum x100 #1"), std::string::npos) << fault.status.message();
  world.rank(0).engine->abort(world.rank(0).domain(), fault.status);
  EXPECT_TRUE(run->done());
  EXPECT_EQ(run->status().code(), Code::kTimeout);
}

TEST(Faults, AFaultFoundByAWaiterMayAbortFromItsHook) {
  World world(2);
  Rank& rank = world.rank(0);
  rank.domain().on_fault = [&](const exec::Fault& fault) { rank.engine->abort(rank.domain(), fault.status); };
  const Call call = all_reduce(2, 100);
  Buffers a(call, 0);
  auto run = rank.start(call, a, 0, base::Deadline::after(std::chrono::milliseconds(30)));
  const auto begun = base::Clock::now();
  EXPECT_TRUE(rank.engine->wait(*run, base::Deadline::after(kPatience)));
  EXPECT_LT(base::Clock::now() - begun, kPatience / 4) << "it slept although the run was done";
  EXPECT_EQ(run->status().code(), Code::kTimeout);
}

TEST(Faults, AnAbortCompletesEverythingOnceWithItsCause) {
  World world(3);
  Rank& rank = world.rank(0);
  std::vector<std::unique_ptr<Buffers>> buffers;
  std::vector<Handle> runs;
  std::atomic<int> calls = 0;
  for (int k = 0; k < 5; ++k) {
    buffers.push_back(std::make_unique<Buffers>(all_reduce(3, 1000), 0));
    runs.push_back(rank.start(all_reduce(3, 1000), *buffers.back()));
    rank.engine->then(*runs.back(), [&](const Status& s) { calls += s.code() == Code::kPeerLost; });
  }
  std::vector<uint64_t> data(5000);
  auto receive = rank.message(false, exec::kAnySource, 1, data);
  auto send = rank.message(true, 1, 1, data);
  std::thread waiter([&] {
    EXPECT_TRUE(rank.engine->wait(*runs[3], base::Deadline::after(kPatience)));
    EXPECT_EQ(runs[3]->status().code(), Code::kPeerLost);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  rank.engine->abort(rank.domain(), Status(Code::kPeerLost, "rank 2 ended"));
  rank.engine->abort(rank.domain(), Status(Code::kAborted, "a second cause"));
  waiter.join();
  for (auto& run : runs) EXPECT_EQ(run->status().message(), "rank 2 ended");
  EXPECT_EQ(receive->status().code(), Code::kPeerLost);
  EXPECT_EQ(send->status().code(), Code::kPeerLost);
  EXPECT_EQ(calls, 5);
  EXPECT_EQ(rank.domain().active(), 0u);
  // What comes later fails at once, in the same way.
  Buffers later(all_reduce(3, 10), 0);
  auto plan = std::make_shared<exec::Plan>();
  plan->program.lanes.resize(1);
  auto run = rank.start(plan, later);
  EXPECT_TRUE(run->done());
  EXPECT_EQ(run->status().message(), "rank 2 ended");
}

TEST(Faults, APeerThatStopsIsAFaultOfThoseWhoWaitForIt) {
  World world(2);
  const Call call = all_reduce(2, 100);
  Buffers a(call, 0);
  auto run = world.rank(0).start(call, a);
  world.rank(1).engine->abort(world.rank(1).domain(), Status(Code::kAborted, "leaves"));
  world.drive([&] { return world.rank(0).fault_count() == 1; });
  EXPECT_EQ(world.rank(0).faults[0].kind, FaultKind::kPeer);
  EXPECT_EQ(world.rank(0).faults[0].peer, 1);
  world.rank(0).engine->abort(world.rank(0).domain(), world.rank(0).faults[0].status);
  EXPECT_EQ(run->status().code(), Code::kPeerLost);
}

// ---- calls that do not belong together ----

struct Change {
  const char* name;
  std::function<void(Call&)> apply;
  Collective of = Collective::kAllReduce;
};

std::vector<Change> changes() {
  return {
      {"count", [](Call& c) { c.count = 101; }},
      {"count_in_the_same_bytes", [](Call& c) { c.count = 50, c.type = DataType::kF64; }},
      {"type", [](Call& c) { c.type = DataType::kI32; }},
      {"operation", [](Call& c) { c.op = kMax; }},
      {"scale", [](Call& c) { c.op = ReduceOp::scaled_sum(2); }},
      {"kind", [](Call& c) { c.shape.collective = Collective::kReduceScatter, c.count = 50; }},
      {"algorithm", [](Call& c) { c.algorithm = "oneshot"; }},
      {"tile", [](Call& c) { c.tile_bytes = 64; }},
      {"root", [](Call& c) { c.shape.root = 1; }, Collective::kReduce},
      {"sizes",
       [](Call& c) {
         c.sizes = {20, 180};
       },
       Collective::kReduceScatter},
  };
}

class Mismatch : public testing::TestWithParam<Change> {};

TEST_P(Mismatch, IsFoundBeforeAnyOutputByteIsWritten) {
  World world(2);
  Call mine{.shape = {GetParam().of, 2}, .algorithm = "direct", .count = 100};
  if (GetParam().of == Collective::kReduceScatter) mine.sizes = {100, 100};
  Call theirs = mine;
  GetParam().apply(theirs);
  Buffers a(mine, 0), b(theirs, 1);
  auto first = world.rank(0).start(mine, a);
  auto second = world.rank(1).start(theirs, b);
  world.settle();
  size_t faults = 0;
  for (int r = 0; r < 2; ++r) {
    Rank& rank = world.rank(r);
    faults += rank.fault_count();
    for (const exec::Fault& fault : rank.faults) {
      EXPECT_EQ(fault.kind, FaultKind::kMismatch);
      EXPECT_EQ(fault.peer, 1 - r);
      EXPECT_EQ(fault.status.code(), Code::kMismatch);
      const std::string& text = fault.status.message();
      EXPECT_NE(text.find(theirs.contract().to_string()), std::string::npos) << text;
      EXPECT_NE(text.find(mine.contract().to_string()), std::string::npos) << text;
    }
    EXPECT_TRUE((r == 0 ? a : b).untouched());
    rank.engine->abort(rank.domain(), Status(Code::kMismatch, "calls differ"));
  }
  EXPECT_GE(faults, GetParam().of == Collective::kReduce ? 0u : 2u);
}

class OddOne : public Mismatch {};

TEST_P(OddOne, AmongManyKeepsEverybodyFromCompletingTheReduction) {
  for (const char* algorithm : {"ring", "tree", "recursive", "direct", "oneshot", "chain"}) {
    if (std::string(algorithm) == "oneshot" && std::string(GetParam().name) == "algorithm") continue;
    constexpr int kRanks = 5;
    World world(kRanks);
    const Call call = all_reduce(kRanks, 100, algorithm);
    Call odd = call;
    GetParam().apply(odd);
    if (odd.shape.collective != call.shape.collective) odd.algorithm = "direct";  // has all kinds
    std::vector<std::unique_ptr<Buffers>> buffers;
    std::vector<Handle> runs;
    size_t faults = 0, completed = 0;
    for (int r = 0; r < kRanks; ++r) {
      const Call& c = r == 2 ? odd : call;
      buffers.push_back(std::make_unique<Buffers>(c, r));
      runs.push_back(world.rank(r).start(c, *buffers.back()));
    }
    world.settle();
    for (int r = 0; r < kRanks; ++r) {
      faults += world.rank(r).fault_count();
      completed += runs[static_cast<size_t>(r)]->done();
      for (const exec::Fault& fault : world.rank(r).faults) EXPECT_TRUE(fault.peer == 2 || r == 2);
    }
    EXPECT_GE(faults, 1u) << algorithm;
    EXPECT_EQ(completed, 0u) << algorithm;
    for (int r = 0; r < kRanks; ++r)
      world.rank(r).engine->abort(world.rank(r).domain(), Status(Code::kMismatch, "odd"));
  }
}

std::string name_of_change(const testing::TestParamInfo<Change>& info) { return info.param.name; }
std::vector<Change> changes_of_all_reduce() {
  auto all = changes();
  std::erase_if(all, [](const Change& change) { return change.of != Collective::kAllReduce; });
  return all;
}
INSTANTIATE_TEST_SUITE_P(Contract, Mismatch, testing::ValuesIn(changes()), name_of_change);
INSTANTIATE_TEST_SUITE_P(Contract, OddOne, testing::ValuesIn(changes_of_all_reduce()), name_of_change);

// Starts a call as a communicator does; true: it was over at once.
bool start_short(Rank& rank, const std::shared_ptr<const exec::Plan>& plan, Buffers& buffers, Handle* run) {
  exec::Engine::Hold hold(*rank.engine);
  *run = rank.domain().take_run(plan->place);
  return rank.engine->start(hold, rank.domain(), run->get(), plan, buffers.input(), buffers.output(), kPatience);
}

TEST(Engine, AShortCallIsInFlightOnlyWhileAnAnswerIsMissing) {
  World world(2);
  const Call call = all_reduce(2, 2, "oneshot");
  const std::shared_ptr<const exec::Plan> plans[2] = {*bind_plan(call, world.rank(0).domain()),
                                                      *bind_plan(call, world.rank(1).domain())};
  for (int k = 0; k < 100; ++k) {
    Rank &early = world.rank(k % 2), &late = world.rank(1 - k % 2);
    Buffers first(call, early.rank()), second(call, late.rank());
    Handle begun, whole;
    EXPECT_FALSE(start_short(early, plans[early.rank()], first, &begun));
    EXPECT_FALSE(begun->done());
    EXPECT_EQ(early.domain().active(), 1U);
    EXPECT_TRUE(start_short(late, plans[late.rank()], second, &whole));
    EXPECT_EQ(late.domain().active(), 0U);
    EXPECT_EQ(second.check(), "");
    early.finish(*begun);
    EXPECT_EQ(first.check(), "");
    EXPECT_EQ(early.domain().standing().contract, late.domain().standing().contract);
    EXPECT_EQ(late.domain().standing().contract.sequence, static_cast<uint32_t>(k + 1));
  }
}

TEST(Engine, ShortCallsBetweenThreadsKeepTheirOrderWhetherInFlightOrNot) {
  World world(2);
  world.each([](Rank& rank) {
    std::mt19937_64 random(static_cast<uint64_t>(rank.rank()));
    const Call small = all_reduce(2, 2, "oneshot"), large = all_reduce(2, 5000, "ring");
    const auto plan = *bind_plan(small, rank.domain());
    for (int k = 0; k < 2000; ++k) {
      std::vector<std::unique_ptr<Buffers>> buffers;
      std::vector<Handle> runs;
      // One rank waits for every call, the other has some in flight, in places of its own choice.
      for (int i = 0; i < 4; ++i) {
        const bool is_large = i == k % 4;
        buffers.push_back(std::make_unique<Buffers>(is_large ? large : small, rank.rank()));
        Handle run;
        const bool over = is_large ? (run = rank.start(large, *buffers.back()), false)
                                   : start_short(rank, plan, *buffers.back(), &run);
        if (over) continue;
        if (random() % 2 == 0) rank.finish(*run);
        runs.push_back(std::move(run));
      }
      for (auto& run : runs) rank.finish(*run);
      for (auto& b : buffers) ASSERT_EQ(b->check(), "");
    }
  });
}

TEST(Faults, AShortCallThatDoesNotMatchIsAFaultBeforeItsOutputIsWritten) {
  World world(2);
  const Call mine = all_reduce(2, 2, "oneshot"), theirs = all_reduce(2, 3, "oneshot");
  const auto plan = *bind_plan(mine, world.rank(1).domain()), other = *bind_plan(theirs, world.rank(0).domain());
  Buffers first(theirs, 0), second(mine, 1);
  Handle a, b;
  EXPECT_FALSE(start_short(world.rank(0), other, first, &a));
  EXPECT_FALSE(start_short(world.rank(1), plan, second, &b));
  EXPECT_TRUE(second.untouched());
  ASSERT_EQ(world.rank(1).fault_count(), 1U);
  EXPECT_EQ(world.rank(1).faults.front().kind, FaultKind::kMismatch);
  for (int r : {0, 1}) world.rank(r).engine->abort(world.rank(r).domain(), Status(Code::kMismatch, "they differ"));
}

TEST(Faults, ADomainRemembersItsLastCallsInTheirOrder) {
  World world(1);
  Rank& rank = world.rank(0);
  EXPECT_TRUE(rank.domain().standing().recent.empty());
  for (uint64_t k = 1; k <= 100; ++k) {
    rank.perform(all_reduce(1, k));
    const auto recent = rank.domain().standing().recent;
    ASSERT_EQ(recent.size(), std::min<uint64_t>(k, exec::kRemembered));
    EXPECT_EQ(recent.back().count, k);
    for (size_t i = 0; i < recent.size(); ++i) EXPECT_EQ(recent[i].sequence, k + 1 - recent.size() + i);
  }
}

TEST(Faults, ASkippedCallIsTold) {
  World world(2);
  const Call first = all_reduce(2, 10), second = all_reduce(2, 20);
  Buffers a(first, 0), b(second, 1);
  auto run = world.rank(0).start(first, a);
  auto other = world.rank(1).start(second, b);
  world.settle();
  ASSERT_EQ(world.rank(0).fault_count(), 1u);
  EXPECT_TRUE(a.untouched() && b.untouched());
  for (int r = 0; r < 2; ++r) world.rank(r).engine->abort(world.rank(r).domain(), Status(Code::kMismatch, "skipped"));
}

TEST(Crowd, IsHereWhileYieldsGiveOthersATurnAndForAWhileAfterwards) {
  using exec::Crowd;
  const base::Duration alone = Crowd::kTurn / 4, turn = 2 * Crowd::kTurn, slice = 3 * Crowd::kSlice;
  Crowd crowd;
  EXPECT_FALSE(crowd.here());
  for (int i = 0; i < 1000; ++i) crowd.yielded(alone);
  EXPECT_FALSE(crowd.here());
  crowd.yielded(turn);
  for (int i = 0; i < Crowd::kForgotten; ++i) {
    EXPECT_TRUE(crowd.here()) << i;
    crowd.yielded(alone);
  }
  EXPECT_FALSE(crowd.here());
  for (int round = 0; round < 3; ++round) {
    crowd.yielded(turn);
    for (int i = 1; i < Crowd::kForgotten; ++i) crowd.yielded(alone);
    EXPECT_TRUE(crowd.here());
  }
  crowd.yielded(slice);  // somebody computes: spinning saves the next slice
  EXPECT_FALSE(crowd.here());
}

}  // namespace
}  // namespace ringfold::test
