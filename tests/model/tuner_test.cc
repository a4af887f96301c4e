// The tuner: tables without gaps, near the best choice, the user's will, and the same on all ranks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "plan/lower.h"
#include "tests/model/support.h"

namespace ringfold::model {
namespace {

using C = Collective;

Tuner tuner_of(const ClusterModel& cluster, const TunerOptions& options = {}) {
  auto tuner = Tuner::build(cluster, candidates_of(cluster), options);
  EXPECT_TRUE(tuner.ok()) << tuner.status().to_string();
  return tuner.ok() ? *tuner : Tuner();
}

Status failure_of(const ClusterModel& cluster, const TunerOptions& options) {
  return Tuner::build(cluster, candidates_of(cluster), options).status();
}

// Ranks on hosts in any order, figures over several decades.
ClusterModel any_cluster() {
  const int ranks = *rc::gen::inRange(1, 13);
  const int most_hosts = *rc::gen::inRange(1, 5);
  std::vector<int> host_of;
  int hosts = 0;
  for (int r = 0; r < ranks; ++r) {
    host_of.push_back(*rc::gen::inRange(0, std::min(hosts + 1, most_hosts)));
    hosts = std::max(hosts, host_of.back() + 1);
  }
  ClusterModel cluster =
      default_cluster(host_of, std::vector<int>(static_cast<size_t>(hosts), *rc::gen::inRange(1, 9)));
  const auto scale = [](double& figure) { figure *= std::pow(10, *rc::gen::inRange(-20, 21) / 10.0); };
  for (const auto& figure : link_figures()) {
    for (LinkFigures& link : cluster.links) scale(link.*figure.value);
  }
  for (const auto& figure : node_figures()) scale(cluster.node.*figure.value);
  return cluster;
}

// A few, to keep cases short.
std::vector<C> any_collectives() {
  return {collective_of(*rc::gen::inRange(0, kCollectives)), collective_of(*rc::gen::inRange(0, kCollectives))};
}

void expect_whole(const Table& table) {
  ASSERT_FALSE(table.ranges.empty());
  EXPECT_EQ(table.ranges.front().from, 0u);
  for (size_t r = 1; r < table.ranges.size(); ++r) {
    const Range &a = table.ranges[r - 1], &b = table.ranges[r];
    EXPECT_LT(a.from, b.from);
    EXPECT_FALSE(a.algorithm == b.algorithm && a.lanes == b.lanes && a.forced == b.forced) << "not merged";
  }
}

TEST(Tuner, TablesCoverAllSizesWithAlgorithmsThatExist) {
  holds("tables are whole", [] {
    const ClusterModel cluster = any_cluster();
    const std::vector<C> collectives = any_collectives();
    const Tuner tuner = tuner_of(cluster, {.collectives = collectives});
    for (const C collective : collectives) {
      RC_ASSERT(tuner.table(collective) != nullptr);
      expect_whole(*tuner.table(collective));
      const uint64_t any = *rc::gen::arbitrary<uint64_t>();
      for (const uint64_t bytes : {uint64_t{0}, uint64_t{1}, any % (1 << 24), any, UINT64_MAX}) {
        const Choice choice = tuner.choose(collective, bytes);
        RC_ASSERT(schedule_of(cluster, collective, choice.algorithm, choice.lanes).ok());
        RC_ASSERT(std::isfinite(choice.predicted_s) && choice.predicted_s >= 0);
        RC_ASSERT(!choice.reason.empty());
      }
    }
    RC_ASSERT(!testing::Test::HasFailure());
  });
}

TEST(Tuner, ForSmallSizesAnswersAsOneForAllSizes) {
  const ClusterModel cluster = cluster_of(6, 3, 1);
  for (const char* rules : {"", "all_reduce:4k-40k:ring,lanes=2", "broadcast:1m-:chain"}) {
    TunerOptions options{.override_text = rules};
    const Tuner all = Tuner::build(cluster, candidates_of(cluster), options).value();
    for (const uint64_t most : {uint64_t{0}, uint64_t{8}, uint64_t{100}, uint64_t{1} << 16, (uint64_t{1} << 20) - 1,
                                uint64_t{3} << 26, uint64_t{1} << 29, uint64_t{1} << 30}) {
      options.most_bytes = most;
      const Tuner small = Tuner::build(cluster, candidates_of(cluster), options).value();
      EXPECT_EQ(small, Tuner::from_text(small.to_text()).value());
      for (int c = 0; c < kCollectives; ++c) {
        const Collective collective = collective_of(c);
        const auto sizes = [&](const Tuner& tuner) { return tuner.table(collective)->seconds.size(); };
        EXPECT_EQ(sizes(small) < sizes(all), most < uint64_t{1} << 29) << most;
        for (uint64_t bytes = 0; bytes <= most; bytes = bytes * 5 / 3 + 1) {
          const Choice a = small.choose(collective, bytes), b = all.choose(collective, bytes);
          EXPECT_EQ(std::tie(a.algorithm, a.lanes, a.predicted_s), std::tie(b.algorithm, b.lanes, b.predicted_s))
              << name_of(collective) << " " << bytes << " of " << most;
        }
      }
    }
  }
}

TEST(Tuner, ChoosesWhatIsNearTheBest) {
  for (const auto& cluster : {cluster_of(4, 1, 2), cluster_of(6, 3, 4), cluster_of(8, 1, 8, "tcp")}) {
    const Tuner tuner = tuner_of(cluster);
    for (const C collective : {C::kAllReduce, C::kReduceScatter, C::kBroadcast}) {
      for (int i = 0; i < kGridSizes; i += 4) {
        const Choice choice = tuner.choose(collective, grid_size(i));
        double best = std::numeric_limits<double>::infinity();
        for (const auto& algorithm : algo::algorithms_for(collective)) {
          for (const int lanes : {1, 2, 4}) {
            best = std::min(best, seconds_of(cluster, collective, algorithm, grid_size(i), lanes));
          }
        }
        const double chosen = seconds_of(cluster, collective, choice.algorithm, grid_size(i), choice.lanes);
        EXPECT_LE(chosen, best * 1.06) << name_of(collective) << " " << bytes_text(grid_size(i));
        EXPECT_NEAR(choice.predicted_s, chosen, 1e-6 * chosen);
      }
    }
  }
}

TEST(Tuner, ChangesItsMindWithTheSize) {
  const ClusterModel cluster = cluster_of(8, 8, 1);
  const Tuner tuner = tuner_of(cluster);
  EXPECT_EQ(tuner.choose(C::kAllReduce, 8).algorithm, "doubling");
  EXPECT_EQ(tuner.choose(C::kAllReduce, 64 << 20).algorithm, "ring");
  EXPECT_LT(tuner.choose(C::kAllReduce, 8).predicted_s, tuner.choose(C::kAllReduce, 1 << 20).predicted_s);
}

// One message each way between two hosts, where a one-shot has as many as there are pairs of ranks.
TEST(Tuner, DoublesThroughLeadersBetweenHostsWhileBuffersAreSmall) {
  for (const auto& cluster : {cluster_of(4, 2, 2), cluster_of(8, 2, 2), cluster_of(8, 4, 2)}) {
    const Tuner tuner = tuner_of(cluster);
    for (const uint64_t bytes : {0, 64, 1024}) EXPECT_EQ(tuner.choose(C::kAllReduce, bytes).algorithm, "doubling");
    EXPECT_EQ(tuner.choose(C::kAllReduce, 64 << 20).algorithm, "hierarchical");
  }
}

// Of those that cost the same the first in the list is taken, also after sizes at which another was better.
TEST(Tuner, ReturnsToTheFirstOfEquals) {
  ClusterModel cluster = cluster_of(4, 4, 1);
  for (LinkFigures& link : cluster.links) link.wire *= 10;
  cluster.node.port *= 10;
  const Tuner tuner = tuner_of(cluster);
  const auto& ranges = tuner.table(C::kAllReduce)->ranges;
  EXPECT_TRUE(std::any_of(ranges.begin(), ranges.end(), [](const Range& r) { return r.algorithm == "recursive"; }));
  EXPECT_EQ(ranges.back().algorithm, "ring");
}

// Each message takes some core's time, whoever's: few messages count then, not few rounds.
TEST(Tuner, TakesAStarWhereRanksShareCoresAndTalkOverSockets) {
  for (const int ranks : {4, 8}) {
    const Tuner sockets = tuner_of(cluster_of(ranks, 1, 2, "tcp"));
    for (const C collective : {C::kAllReduce, C::kReduceScatter, C::kAllGather}) {
      EXPECT_EQ(sockets.choose(collective, 16).algorithm, "star") << name_of(collective) << " " << ranks;
      EXPECT_NE(sockets.choose(collective, 1 << 20).algorithm, "star") << name_of(collective) << " " << ranks;
    }
    const Tuner memory = tuner_of(cluster_of(ranks, 1, 2));
    EXPECT_EQ(memory.choose(C::kAllReduce, 8).algorithm, "oneshot");
  }
  EXPECT_EQ(tuner_of(cluster_of(4, 1, 2, "tcp")).choose(C::kBarrier, 0).algorithm, "hierarchical");
}

// Whoever leaves first has a processor, which not every rank has.
TEST(Tuner, LetsOneRankLeaveABarrierFirstWhereRanksTakeTurnsOnCores) {
  for (const auto& cluster : {cluster_of(3, 1, 2), cluster_of(4, 1, 2), cluster_of(8, 1, 2)}) {
    const Choice choice = tuner_of(cluster).choose(C::kBarrier, 0);
    EXPECT_EQ(choice.algorithm, "hierarchical");
    EXPECT_NE(choice.reason.find("take turns on cores"), std::string::npos) << choice.reason;
  }
  EXPECT_EQ(tuner_of(cluster_of(4, 1, 4)).choose(C::kBarrier, 0).algorithm, "oneshot");
  // Between hosts the model decides.
  EXPECT_EQ(tuner_of(cluster_of(8, 2, 2)).choose(C::kBarrier, 0).reason.find("take turns"), std::string::npos);
  const Tuner told = tuner_of(cluster_of(4, 1, 2), {.override_text = "barrier:recursive"});
  EXPECT_EQ(told.choose(C::kBarrier, 0).algorithm, "recursive");
}

TEST(Tuner, HasTwoNeighboursReadEachOthersInputsUpToMiddleSizes) {
  for (const char* transport : {"shm", "loopback"}) {
    const Tuner tuner = tuner_of(cluster_of(2, 1, 2, transport));
    for (const uint64_t bytes : {8, 4 << 10, 64 << 10, 256 << 10}) {
      EXPECT_EQ(tuner.choose(C::kAllReduce, bytes).algorithm, "oneshot") << transport << " " << bytes;
    }
    EXPECT_NE(tuner.choose(C::kAllReduce, 1 << 20).algorithm, "oneshot");
  }
  for (const auto& other :
       {cluster_of(2, 1, 1), cluster_of(2, 1, 2, "tcp"), cluster_of(2, 2, 2), cluster_of(4, 1, 4)})
    EXPECT_NE(tuner_of(other).choose(C::kAllReduce, 256 << 10).algorithm, "oneshot");
}

TEST(Tuner, SendsABroadcastToANeighbourOnOneLane) {
  const Tuner tuner = tuner_of(cluster_of(2, 1, 2, "shm"));
  for (const uint64_t bytes : {8, 4 << 10, 64 << 10, 4 << 20}) {
    const Choice choice = tuner.choose(C::kBroadcast, bytes);
    EXPECT_EQ(choice.algorithm, "direct") << bytes;
    EXPECT_EQ(choice.lanes, 1) << bytes;
    EXPECT_NE(choice.reason.find("neighbour"), std::string::npos) << choice.reason;
  }
  const Choice over_sockets = tuner_of(cluster_of(2, 1, 2, "tcp")).choose(C::kBroadcast, 64 << 10);
  EXPECT_EQ(over_sockets.reason.find("neighbour"), std::string::npos) << over_sockets.reason;
}

TEST(Tuner, ReasonsNameTermsAndTheNextBest) {
  const Tuner tuner = tuner_of(cluster_of(8, 8, 1));
  const std::string reason = tuner.choose(C::kAllReduce, 8).reason;
  EXPECT_NE(reason.find("latency"), std::string::npos) << reason;
  EXPECT_NE(reason.find("; next "), std::string::npos) << reason;
  EXPECT_NE(reason.find(" %)"), std::string::npos) << reason;
  const std::string text = tuner.to_string();
  EXPECT_NE(text.find("all_reduce\n  0 B to "), std::string::npos) << text;
  EXPECT_NE(text.find("  from "), std::string::npos) << text;
}

TEST(Tuner, IsCanonicalInDeterministicMode) {
  holds("only canonical algorithms", [] {
    const std::vector<C> collectives = any_collectives();
    const Tuner tuner = tuner_of(any_cluster(), {.deterministic = true, .collectives = collectives});
    for (const C collective : collectives) {
      for (const Range& range : tuner.table(collective)->ranges) {
        RC_ASSERT(algo::is_canonical(collective, range.algorithm));
      }
    }
  });
}

TEST(Tuner, ObeysTheUserToTheByte) {
  const ClusterModel cluster = cluster_of(4, 1, 4);
  const Tuner free = tuner_of(cluster);
  const Tuner told = tuner_of(
      cluster,
      {.override_text = "all_reduce:100-4k:chain;all_reduce:4k-:ring,lanes=3;broadcast:tree;all_reduce:1g-:auto"});
  const auto is = [](const Choice& choice, std::string_view algorithm, int lanes) {
    EXPECT_EQ(choice.algorithm, algorithm);
    EXPECT_EQ(choice.lanes, lanes);
  };
  is(told.choose(C::kAllReduce, 99), free.choose(C::kAllReduce, 99).algorithm, 1);
  EXPECT_EQ(told.choose(C::kAllReduce, 100).algorithm, "chain");
  EXPECT_EQ(told.choose(C::kAllReduce, 4095).algorithm, "chain");
  is(told.choose(C::kAllReduce, 4096), "ring", 3);
  is(told.choose(C::kAllReduce, (1 << 30) - 1), "ring", 3);
  EXPECT_EQ(told.choose(C::kAllReduce, 1 << 30).algorithm, free.choose(C::kAllReduce, 1 << 30).algorithm);
  EXPECT_EQ(told.choose(C::kBroadcast, 0).algorithm, "tree");
  EXPECT_EQ(told.choose(C::kBroadcast, 1UL << 40).algorithm, "tree");
  EXPECT_EQ(*told.table(C::kAllGather), *free.table(C::kAllGather));
  expect_whole(*told.table(C::kAllReduce));
  EXPECT_NE(told.to_string().find("(as told)"), std::string::npos);
}

TEST(Tuner, ObeysABareNameWhereverItExists) {
  const ClusterModel cluster = cluster_of(4, 2, 4);
  for (const char* name :
       {"ring", "tree", "recursive", "direct", "oneshot", "chain", "star", "doubling", "hierarchical"}) {
    const Tuner told = tuner_of(cluster, {.override_text = name});
    const Tuner free = tuner_of(cluster);
    for (int c = 0; c < kCollectives; ++c) {
      const auto names = algo::algorithms_for(collective_of(c));
      if (std::find(names.begin(), names.end(), name) == names.end()) {
        EXPECT_EQ(*told.table(collective_of(c)), *free.table(collective_of(c)));
      } else {
        for (const uint64_t bytes : {0UL, 5000UL, 1UL << 33}) {
          EXPECT_EQ(told.choose(collective_of(c), bytes).algorithm, name);
        }
      }
    }
  }
}

TEST(Tuner, RefusesWhatDeterministicModeExcludes) {
  const ClusterModel cluster = cluster_of(4, 1, 4);
  const Status status = failure_of(cluster, {.deterministic = true, .override_text = "all_reduce:ring"});
  EXPECT_EQ(status.code(), Code::kInvalid);
  EXPECT_NE(status.message().find("deterministic"), std::string::npos) << status.message();
  const Tuner tuner = tuner_of(cluster, {.deterministic = true, .override_text = "all_reduce:chain;all_gather:ring"});
  EXPECT_EQ(tuner.choose(C::kAllReduce, 1000).algorithm, "chain");
  EXPECT_EQ(tuner.choose(C::kAllGather, 1000).algorithm, "ring");
}

TEST(Tuner, LeavesWhatDoesNotFitTheSlots) {
  const ClusterModel cluster = cluster_of(24, 1, 24);
  const Tuner tuner = tuner_of(cluster, {.override_text = "all_gather:recursive", .collectives = {C::kAllGather}});
  EXPECT_EQ(tuner.choose(C::kAllGather, 1000).algorithm, "recursive");
  const Choice large = tuner.choose(C::kAllGather, 64 << 20);
  EXPECT_NE(large.algorithm, "recursive");
  EXPECT_NE(large.reason.find("recursive does not fit"), std::string::npos) << large.reason;
}

TEST(Tuner, ChoosesWhatCanBeLoweredAtEverySize) {
  for (const int n : {5, 13, 24}) {
    const ClusterModel cluster = cluster_of(n, 1, n);
    const Cutting cutting{.tile_bytes = 1024, .slots = 4};
    for (const char* told : {"", "recursive", "tree"}) {
      const Tuner tuner = tuner_of(
          cluster,
          {.override_text = told, .cutting = cutting, .collectives = {C::kAllGather, C::kGather, C::kReduceScatter}});
      for (const C collective : {C::kAllGather, C::kGather, C::kReduceScatter}) {
        for (uint64_t count = 1; count < 1'000'000; count += 1 + count / 9) {
          const Choice choice = tuner.choose(collective, count * size_of(DataType::kF32));
          const auto schedule = schedule_of(cluster, collective, choice.algorithm, choice.lanes);
          const plan::LowerRequest request{.schedule = &*schedule,
                                           .layout = {.shape = schedule->shape, .rank = 1, .count = count},
                                           .tile_bytes = cutting.tile_bytes,
                                           .slots = cutting.slots};
          ASSERT_TRUE(plan::lower(request).ok()) << n << " " << name_of(collective) << " " << count << " " << told;
        }
      }
    }
  }
}

TEST(Tuner, RefusesAClusterThatMakesNoSense) {
  ClusterModel cluster = cluster_of(4, 2, 4);
  cluster.cores.pop_back();
  EXPECT_EQ(failure_of(cluster, {}).code(), Code::kInvalid);
}

TEST(Tuner, SaysWhyThereIsNoAlgorithm) {
  const ClusterModel cluster = cluster_of(4, 1, 4);
  const Tuner tuner = tuner_of(cluster, {.collectives = {C::kAllReduce}});
  const Choice choice = tuner.choose(C::kGather, 8);
  EXPECT_EQ(choice.algorithm, "");
  EXPECT_NE(choice.reason.find("gather"), std::string::npos);
}

TEST(Tuner, TextGoesRound) {
  holds("text and back", [] {
    const Tuner tuner = tuner_of(any_cluster(), {.collectives = any_collectives()});
    const auto back = Tuner::from_text(tuner.to_text());
    RC_ASSERT(back.ok());
    RC_ASSERT(*back == tuner);
    RC_ASSERT(back->to_text() == tuner.to_text());
  });
}

TEST(Tuner, DamagedTextGivesAnErrorOrAWholeTable) {
  const ClusterModel cluster = cluster_of(4, 1, 2);
  const std::string good = tuner_of(cluster, {.collectives = {C::kAllReduce, C::kBarrier}}).to_text();
  int refused = 0;
  const auto feed = [&](const std::string& text) {
    const auto tuner = Tuner::from_text(text);
    refused += !tuner.ok();
    if (!tuner.ok()) return;
    for (int c = 0; c < kCollectives; ++c) {
      const Table* table = tuner->table(collective_of(c));
      if (table == nullptr) continue;
      ASSERT_FALSE(table->ranges.empty());
      EXPECT_EQ(table->ranges.front().from, 0u);
      const Choice choice = tuner->choose(collective_of(c), 12345);
      EXPECT_FALSE(choice.algorithm.empty());
      EXPECT_TRUE(choice.lanes >= 1 && choice.lanes <= 4);
    }
  };
  for (size_t i = 0; i < good.size(); ++i) {
    for (const int bit : {0, 2, 5}) {
      std::string text = good;
      text[i] = static_cast<char>(text[i] ^ (1 << bit));
      feed(text);
    }
    feed(good.substr(0, i));
  }
  EXPECT_GT(refused, static_cast<int>(good.size()));  // every cut one, and more
  for (const char* text : {"", "[]", "{}", "null", "{\"version\":1}", "{\"version\":2,\"tables\":[]}",
                           "{\"version\":1,\"tables\":[1]}", "{\"version\":1,\"tables\":[{\"collective\":7}]}"}) {
    EXPECT_FALSE(Tuner::from_text(text).ok()) << text;
  }
}

}  // namespace
}  // namespace ringfold::model
