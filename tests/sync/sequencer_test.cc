// The order of updates: no bound is exceeded and nobody waits for ever, whatever the order in which workers come.
#include "sync/sequencer.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <set>

namespace ringfold::sync {
namespace {

struct Played {
  std::vector<int> order;
  std::vector<uint64_t> histogram;
  uint64_t versions = 0;
};

// Workers finish in random order, each with a speed of its own; `slow` > 1 slows worker 0 down.
Played play(Sequencer::Options options, size_t items, uint64_t seed, double slow = 1) {
  const int workers = options.workers;
  auto sequencer = Sequencer::make(std::move(options));
  EXPECT_TRUE(sequencer.ok()) << sequencer.status().to_string();
  std::mt19937_64 random(seed);
  std::vector<uint64_t> all(items);
  std::iota(all.begin(), all.end(), 0);
  sequencer->begin(all);
  const auto n = static_cast<size_t>(workers);
  std::multiset<uint64_t> done;
  std::vector<double> ready_at(n, -1);  // when its gradient is complete; -1: waits, or has ended
  std::vector<uint64_t> item(n), read(n);
  const auto work = [&](size_t w, double now) {
    ready_at[w] = now + (w == 0 ? slow : 1) * std::uniform_real_distribution<>(0.5, 1.5)(random);
  };
  for (size_t w = 0; w < n; ++w) {
    if (!sequencer->has_item(static_cast<int>(w))) continue;
    item[w] = sequencer->item(static_cast<int>(w));
    work(w, 0);
  }
  uint64_t tickets = 0, version = 0;
  std::vector<size_t> in_update;
  while (!sequencer->idle()) {
    size_t next = n;
    for (size_t w = 0; w < n; ++w) {
      if (ready_at[w] >= 0 && (next == n || ready_at[w] < ready_at[next])) next = w;
    }
    if (next == n) {
      ADD_FAILURE() << "nobody computes and nobody may update, after " << tickets << " tickets";
      break;
    }
    const double now = ready_at[next];
    ready_at[next] = -1;
    EXPECT_TRUE(sequencer->ask(static_cast<int>(next)).ok());
    for (;;) {
      auto grant = sequencer->grant();
      EXPECT_TRUE(grant.ok()) << grant.status().to_string();
      if (!grant.ok() || !grant->has_value()) break;
      const Grant g = **grant;
      const auto w = static_cast<size_t>(g.worker);
      EXPECT_EQ(g.ticket, tickets++);
      EXPECT_EQ(g.staleness, version - read[w]);
      EXPECT_LE(g.staleness, sequencer->most());
      done.insert(item[w]);
      in_update.push_back(w);
      if (g.closes) {
        ++version;
        for (size_t member : in_update) read[member] = version;
        in_update.clear();
      }
      if (g.more) item[w] = g.item, work(w, now);
    }
  }
  EXPECT_EQ(done.size(), items);
  EXPECT_EQ(std::set<uint64_t>(done.begin(), done.end()).size(), items) << "an item was done twice";
  EXPECT_EQ(std::accumulate(sequencer->histogram().begin(), sequencer->histogram().end(), uint64_t{0}), items);
  EXPECT_TRUE(in_update.empty());
  return {sequencer->order(), sequencer->histogram(), version};
}

TEST(Sequencer, KeepsEveryBoundAndNeverLocksUp) {
  uint64_t reached = 0, runs = 0;
  for (int workers : {1, 2, 3, 4, 7, 16}) {
    for (uint64_t bound : {uint64_t{0}, uint64_t{1}, uint64_t{2}, uint64_t{4}, Sequencer::kUnbounded}) {
      for (uint64_t seed = 0; seed < 20; ++seed) {
        const double slow = seed % 3 == 0 ? 1 : seed % 3 == 1 ? 4 : 50;
        const Played run = play({.workers = workers, .bound = bound}, 50 + seed * 7, seed, slow);
        if (bound == 0) {
          EXPECT_EQ(run.histogram.size(), 1U);
        }
        ++runs;
        if (workers > 1 && bound > 0 && bound < 5 &&
            run.histogram.size() == bound * static_cast<uint64_t>(workers) + 1)
          ++reached;
      }
    }
  }
  EXPECT_GT(reached, runs / 20) << "a bound that is never reached proves nothing";
}

TEST(Sequencer, BoundThatTheSlowOneStaysWithinHoldsUpNobody) {
  const Played bounded = play({.workers = 4, .bound = 4}, 2000, 1, 3);
  const Played free = play({.workers = 4}, 2000, 1, 3);
  EXPECT_EQ(bounded.order, free.order);
  // 3 others are up to 4.5 / 0.5 times as fast as the slow one, and it is not in the way of most of the work.
  EXPECT_LT(std::count(free.order.begin(), free.order.end(), 0), 2000 / 8);
}

TEST(Sequencer, WithoutABoundTheSlowOneIsAsStaleAsItIsSlow) {
  const Played run = play({.workers = 4}, 4000, 3, 20);
  EXPECT_GT(run.histogram.size(), 40U);
}

TEST(Sequencer, WithBoundZeroFoldsOneGradientOfEachWorker) {
  const Played run = play({.workers = 4, .bound = 0}, 4 * 25 + 2, 5, 4);
  EXPECT_EQ(run.versions, 26U);
  for (size_t i = 0; i < 100; ++i) EXPECT_EQ(run.order[i], static_cast<int>(i % 4));
}

TEST(Sequencer, DrawsTheSameOrderFromTheSameSeedWhoeverComesFirst) {
  for (uint64_t bound : {uint64_t{1}, uint64_t{4}, Sequencer::kUnbounded}) {
    const Sequencer::Options drawn{.workers = 5, .bound = bound, .seed = 11};
    const Played a = play(drawn, 500, 1), b = play(drawn, 500, 2, 10);
    EXPECT_EQ(a.order, b.order);
    EXPECT_EQ(a.histogram, b.histogram);
    EXPECT_NE(a.order, play({.workers = 5, .bound = bound, .seed = 12}, 500, 1).order);
    EXPECT_GT(a.histogram.size(), 4U) << "drawn orders are stale, too";
  }
}

TEST(Sequencer, FollowsARecordedOrder) {
  const Played first = play({.workers = 4, .bound = 2}, 300, 1, 4);
  const Played again = play({.workers = 4, .bound = 2, .order = first.order}, 300, 99);
  EXPECT_EQ(first.order, again.order);
  EXPECT_EQ(first.histogram, again.histogram);
}

TEST(Sequencer, RefusesOrdersThatCannotBe) {
  EXPECT_EQ(Sequencer::make({.workers = 0}).status().code(), Code::kInvalid);
  EXPECT_EQ(Sequencer::make({.workers = 2, .seed = 1, .order = {0}}).status().code(), Code::kInvalid);
  EXPECT_EQ(Sequencer::make({.workers = 2, .order = {0, 2}}).status().code(), Code::kInvalid);
  const auto first_grant = [](uint64_t bound, std::vector<int> order, int asks) {
    auto sequencer = Sequencer::make({.workers = 3, .bound = bound, .order = std::move(order)});
    EXPECT_TRUE(sequencer.ok());
    std::vector<uint64_t> items(30);
    sequencer->begin(items);
    Status last;
    for (int i = 0; i < asks; ++i) {
      EXPECT_TRUE(sequencer->ask(i % 3).ok());
      for (;;) {
        auto grant = sequencer->grant();
        last = grant.status();
        if (!grant.ok() || !grant->has_value()) break;
      }
    }
    return last;
  };
  const Status ends = first_grant(4, {0}, 2);
  EXPECT_EQ(ends.code(), Code::kInvalid);
  EXPECT_NE(ends.message().find("shorter run"), std::string::npos) << ends.message();
  // Worker 0 again and again: with a bound of one step the fifth update in a row is one too many for the others.
  auto sequencer = Sequencer::make({.workers = 3, .bound = 1, .order = std::vector<int>(20, 0)});
  sequencer->begin(std::vector<uint64_t>(30));
  Status status;
  int updates = 0;
  for (; status.ok() && updates < 20; ++updates) {
    EXPECT_TRUE(sequencer->ask(0).ok());
    status = sequencer->grant().status();
  }
  EXPECT_EQ(status.code(), Code::kInvalid);
  EXPECT_NE(status.message().find("other options"), std::string::npos) << status.message();
  EXPECT_LE(updates, 4);
}

TEST(Sequencer, RefusesToBeAskedOutOfTurn) {
  auto sequencer = Sequencer::make({.workers = 2});
  EXPECT_EQ(sequencer->ask(0).code(), Code::kInvalid);  // no work yet
  sequencer->begin({1, 2, 3});
  EXPECT_EQ(sequencer->ask(2).code(), Code::kInvalid);
  EXPECT_EQ(sequencer->ask(-1).code(), Code::kInvalid);
  EXPECT_TRUE(sequencer->ask(0).ok());
  EXPECT_EQ(sequencer->ask(0).code(), Code::kInvalid);
}

TEST(Sequencer, NamesWhoHoldsUpTheOthers) {
  auto sequencer = Sequencer::make({.workers = 3, .bound = 0});
  sequencer->begin(std::vector<uint64_t>(9));
  EXPECT_EQ(sequencer->holds_up(), -1);
  for (int w : {0, 2}) EXPECT_TRUE(sequencer->ask(w).ok());
  EXPECT_FALSE((*sequencer->grant()).has_value());
  EXPECT_EQ(sequencer->holds_up(), 1);
}

}  // namespace
}  // namespace ringfold::sync
