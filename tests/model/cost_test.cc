// The cost model against closed formulas, and its sanity as properties.
#include <gtest/gtest.h>

#include <cmath>

#include "plan/lower.h"
#include "tests/model/support.h"

namespace ringfold::model {
namespace {

using C = Collective;

// Calls `test(collective, algorithm)` for all of them.
template <typename Test>
void for_each_algorithm(Test test) {
  for (int c = 0; c < kCollectives; ++c) {
    for (const auto& algorithm : algo::algorithms_for(collective_of(c))) test(collective_of(c), algorithm);
  }
}

std::string title(Collective collective, std::string_view algorithm, int ranks) {
  return std::string(name_of(collective)) + " " + std::string(algorithm) + " n=" + std::to_string(ranks);
}

TEST(Cost, OfOneMessageIsTheSumOfItsParts) {
  for (const char* transport : {"shm", "tcp", "loopback"}) {
    const ClusterModel cluster = cluster_of(2, 1, 2, transport);
    const LinkFigures& link = cluster.links[0];
    for (const uint64_t bytes : {0UL, 8UL, 1000UL, 131072UL}) {
      const double per_byte = link.put + link.wire + std::max(link.take, cluster.node.copy);
      EXPECT_NEAR(seconds_of(cluster, C::kBroadcast, "direct", bytes),
                  2 * link.overhead + link.latency + per_byte * static_cast<double>(bytes), 1e-12);
    }
  }
}

TEST(Cost, TermsSumUpToTheTime) {
  for (const auto& cluster : {cluster_of(6, 1, 2), cluster_of(6, 3, 2), cluster_of(5, 1, 8, "tcp")}) {
    for_each_algorithm([&](Collective collective, std::string_view algorithm) {
      Predictor predictor = predictor_of(cluster, collective, algorithm);
      for (const uint64_t bytes : {0UL, 64UL, 65536UL, 3UL << 20, 1UL << 30}) {
        SCOPED_TRACE(title(collective, algorithm, cluster.ranks()) + " bytes=" + std::to_string(bytes));
        const Cost cost = predictor.cost(bytes);
        double sum = 0;
        for (const double term : cost.terms) {
          EXPECT_GE(term, 0);
          sum += term;
        }
        EXPECT_NEAR(sum, cost.seconds, 1e-9 * cost.seconds);
        EXPECT_NEAR(predictor.seconds(bytes), cost.seconds, 1e-9 * cost.seconds);
      }
    });
  }
}

TEST(Cost, GrowsWithBytes) {
  for (const auto& cluster : {cluster_of(2, 1, 2), cluster_of(5, 1, 8), cluster_of(8, 4, 2), cluster_of(7, 7, 1)}) {
    for_each_algorithm([&](Collective collective, std::string_view algorithm) {
      for (const int lanes : {1, 2}) {
        SCOPED_TRACE(title(collective, algorithm, cluster.ranks()));
        Predictor predictor = predictor_of(cluster, collective, algorithm, lanes);
        double before = 0;
        for (int i = 0; i < kGridSizes; ++i) {
          const double seconds = predictor.seconds(grid_size(i));
          if (std::isinf(seconds)) break;
          // A rank that gets its turn a little later or earlier can shift others: by no more than this.
          EXPECT_GE(seconds, before * 0.93) << bytes_text(grid_size(i));
          before = seconds;
        }
      }
    });
  }
}

TEST(Cost, GrowsWithEveryFigure) {
  // Each rank with a core of its own: where they share, a slower rank may find its message there already, and so
  // keep its core.
  for (const auto& cluster : {cluster_of(5, 1, 5), cluster_of(6, 3, 2)}) {
    const auto grows = [&](const ClusterModel& larger, std::string_view figure) {
      for_each_algorithm([&](Collective collective, std::string_view algorithm) {
        const auto s = schedule_of(cluster, collective, algorithm);
        for (const uint64_t bytes : {8UL, 200'000UL, 64UL << 20}) {
          // The hub of a star sends in the order in which its turns come, as an inner node of two trees does: a
          // slower link may leave it in a better one.
          const double least = algorithm == "star" ? 0.8 : algorithm == "tree" ? 0.9 : 0.98;
          EXPECT_GE(Predictor(*s, larger).seconds(bytes), least * Predictor(*s, cluster).seconds(bytes))
              << figure << " " << title(collective, algorithm, cluster.ranks()) << " bytes=" << bytes;
        }
      });
    };
    for (const auto& figure : link_figures()) {
      ClusterModel larger = cluster;
      for (LinkFigures& link : larger.links) link.*figure.value = 3 * link.*figure.value + 1e-9;
      grows(larger, figure.name);
    }
    for (const auto& figure : node_figures()) {
      ClusterModel larger = cluster;
      larger.node.*figure.value = 3 * larger.node.*figure.value + 1e-9;
      grows(larger, figure.name);
    }
  }
}

TEST(Cost, ScalesWithAllFigures) {
  holds("all figures doubled: all times doubled", [] {
    ClusterModel cluster = cluster_of(*rc::gen::inRange(1, 9), 1, *rc::gen::inRange(1, 5));
    const auto collective = collective_of(*rc::gen::inRange(0, kCollectives));
    const auto algorithm = *rc::gen::elementOf(algo::algorithms_for(collective));
    const uint64_t bytes = *rc::gen::inRange<uint64_t>(0, 1 << 22);
    const double before = seconds_of(cluster, collective, algorithm, bytes);
    const double k = std::ldexp(1, *rc::gen::inRange(1, 10));  // exact, so ties stay ties
    for (const auto& figure : link_figures()) cluster.links[0].*figure.value *= k;
    for (const auto& figure : node_figures()) cluster.node.*figure.value *= k;
    const double after = seconds_of(cluster, collective, algorithm, bytes);
    if (std::isinf(before)) {  // it does not fit the slots
      RC_ASSERT(std::isinf(after));
    } else {
      RC_ASSERT(std::abs(after - k * before) <= 1e-12 * after);
    }
  });
}

// A host per rank, and links whose wire is all that costs.
ClusterModel wires(int ranks) {
  ClusterModel cluster = cluster_of(ranks, ranks, 1);
  cluster.links[1] = {.latency = 1e-6, .overhead = 1e-9, .wire = 1e-9, .put = 1e-12, .take = 1e-12};
  cluster.node = {.port = 1e-9, .copy = 1e-12, .reduce = 1e-12};
  return cluster;
}

constexpr uint64_t kLarge = 1UL << 30;

TEST(Cost, OfRingsReachesTheBandwidthBound) {
  for (const int n : {2, 3, 4, 8, 16}) {
    const double bound = 2.0 * (n - 1) / n * static_cast<double>(kLarge) * 1e-9;
    const double seconds = seconds_of(wires(n), C::kAllReduce, "ring", kLarge);
    EXPECT_GE(seconds, bound * 0.999) << n;
    EXPECT_LE(seconds, bound * 1.02) << n;
  }
}

TEST(Cost, IsNeverBelowWhatPortsCanCarry) {
  for (const int n : {3, 4, 8, 16}) {
    const ClusterModel cluster = wires(n);
    const double bound = 2.0 * (n - 1) / n * static_cast<double>(kLarge) * 1e-9;
    for (const auto& algorithm : algo::algorithms_for(C::kAllReduce)) {
      EXPECT_GE(seconds_of(cluster, C::kAllReduce, algorithm, kLarge), bound * 0.999) << algorithm << " " << n;
    }
    // A rank in the middle of a chain sends the buffer up and down: only a filled pipe shows that.
    if (n > 2) {
      EXPECT_GE(seconds_of(cluster, C::kAllReduce, "chain", kLarge), 1.85e-9 * kLarge) << n;
    }
  }
}

TEST(Cost, OfChainsPipelinesTiles) {
  for (const int n : {4, 16}) {
    const double seconds = seconds_of(wires(n), C::kBroadcast, "chain", kLarge);
    EXPECT_LE(seconds, 1.05e-9 * kLarge) << n;
  }
}

TEST(Cost, PrefersFewRoundsForTinyMessages) {
  for (const auto& cluster : {cluster_of(16, 1, 16), cluster_of(16, 16, 1), cluster_of(16, 1, 16, "tcp")}) {
    const double ring = seconds_of(cluster, C::kAllReduce, "ring", 8);
    EXPECT_LT(seconds_of(cluster, C::kAllReduce, "tree", 8), ring);
    EXPECT_LT(seconds_of(cluster, C::kAllReduce, "recursive", 8), ring);
  }
}

TEST(Cost, PrefersDirectAtMiddleSizesOfFewRanks) {
  for (const int n : {4, 5, 6, 7, 8}) {
    for (const auto& cluster : {cluster_of(n, 1, n), cluster_of(n, 1, n, "tcp"), cluster_of(n, 1, 2)}) {
      for (const uint64_t bytes : {4096UL, 65536UL}) {
        EXPECT_LT(seconds_of(cluster, C::kAllReduce, "direct", bytes),
                  seconds_of(cluster, C::kAllReduce, "ring", bytes))
            << n << " " << bytes;
      }
    }
  }
}

TEST(Cost, CountsTurnsOfRanksThatShareCores) {
  for (const char* algorithm : {"ring", "direct", "recursive"}) {
    const auto at = [&](int cores) { return seconds_of(cluster_of(4, 1, cores), C::kAllReduce, algorithm, kLarge); };
    EXPECT_DOUBLE_EQ(at(4), at(8)) << algorithm;
    EXPECT_NEAR(at(2) / at(4), 2, 0.1) << algorithm;
    EXPECT_NEAR(at(1) / at(4), 4, 0.2) << algorithm;
  }
}

TEST(Cost, LanesHelpWhereOneStreamDoesNotFillThePort) {
  ClusterModel cluster = wires(4);
  const auto gain = [&] {
    return seconds_of(cluster, C::kAllReduce, "ring", kLarge, 1) /
           seconds_of(cluster, C::kAllReduce, "ring", kLarge, 4);
  };
  EXPECT_NEAR(gain(), 1, 0.05);
  cluster.node.port = cluster.links[1].wire / 4;
  EXPECT_NEAR(gain(), 4, 0.2);
}

TEST(Cost, IsInfiniteExactlyWhereLoweringRefuses) {
  for (const auto& [n, slots] : {std::pair{24, 8}, std::pair{5, 2}, std::pair{6, 4}}) {
    const ClusterModel cluster = cluster_of(n, n / 3, 3);
    for_each_algorithm([&](Collective collective, std::string_view algorithm) {
      const auto s = schedule_of(cluster, collective, algorithm);
      const Cutting cutting{.tile_bytes = 1024, .slots = slots};
      Predictor predictor(*s, cluster, cutting);
      for (const uint64_t count : {1UL, 100UL, 2000UL, 1'000'000UL}) {
        const plan::LowerRequest request{.schedule = &*s,
                                         .layout = {.shape = s->shape, .rank = 1, .count = count},
                                         .tile_bytes = cutting.tile_bytes,
                                         .slots = cutting.slots};
        EXPECT_EQ(std::isfinite(predictor.seconds(count * size_of(request.type))), plan::lower(request).ok())
            << title(collective, algorithm, n) << " count=" << count;
      }
    });
  }
}

TEST(Cost, OfLongSchedulesIsEstimatedWithoutPlaying) {
  const int n = 1024;
  const ClusterModel cluster = cluster_of(n, n, 1);
  const LinkFigures& link = cluster.links[1];
  Predictor ring = predictor_of(cluster, C::kAllReduce, "ring");
  const double rounds = 2.0 * (n - 1);
  EXPECT_NEAR(ring.seconds(0) / (rounds * (link.latency + 2 * link.overhead)), 1, 0.01);
  const double bound = rounds / n * static_cast<double>(kLarge) * cluster.node.port;
  EXPECT_GE(ring.seconds(kLarge), bound);
  EXPECT_LE(ring.seconds(kLarge), 1.1 * bound);
  EXPECT_EQ(ring.tiles(), 0u);
  Predictor tree = predictor_of(cluster, C::kAllReduce, "tree");  // few steps: played
  EXPECT_LT(tree.seconds(8), ring.seconds(8) / 10);
  EXPECT_GT(tree.tiles(), 0u);
}

TEST(Cost, IsTheSameWhereTheSameIsPlayed) {
  const ClusterModel one = cluster_of(8, 1, 8), several = cluster_of(8, 4, 8);
  const Predictor direct = predictor_of(one, C::kAllReduce, "direct");
  EXPECT_TRUE(direct.same_as(predictor_of(one, C::kAllReduce, "hierarchical")));  // a host is all there is
  EXPECT_FALSE(direct.same_as(predictor_of(one, C::kAllReduce, "direct", 2)));
  EXPECT_FALSE(direct.same_as(predictor_of(one, C::kAllReduce, "ring")));
  EXPECT_FALSE(
      predictor_of(several, C::kAllReduce, "direct").same_as(predictor_of(several, C::kAllReduce, "hierarchical")));
  EXPECT_FALSE(direct.same_as(predictor_of(several, C::kAllReduce, "direct")));
}

// The clock of a loaded machine says little; the number of tiles that are played is exact. Some 10 million a second.
TEST(Cost, OfATuningIsAFewTiles) {
  const auto tiles = [](int ranks, int hosts) {
    const ClusterModel cluster = cluster_of(ranks, hosts, 8);
    uint64_t sum = 0;
    for (const auto& algorithm : algo::algorithms_for(C::kAllReduce)) {
      for (const int lanes : {1, 2, 4}) {
        Predictor predictor = predictor_of(cluster, C::kAllReduce, algorithm, lanes);
        for (int i = 0; i < kGridSizes; i += 2) static_cast<void>(predictor.seconds(grid_size(i)));
        sum += predictor.tiles();
      }
    }
    return sum;
  };
  EXPECT_LT(tiles(8, 1), 300'000u);
  EXPECT_LT(tiles(64, 8), 15'000'000u);
}

}  // namespace
}  // namespace ringfold::model
