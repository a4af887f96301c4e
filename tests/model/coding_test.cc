// What codes do to the model: the slower the links, the more they win, and the cross-over rate is where both ways
// cost the same.
#include "model/coding.h"

#include <gtest/gtest.h>

#include <cmath>

#include "algo/algo.h"
#include "tests/model/support.h"

namespace ringfold::model {
namespace {

ClusterModel hosts(int n, double bytes_per_s) {
  std::vector<int> host_of(static_cast<size_t>(n));
  for (int r = 0; r < n; ++r) host_of[static_cast<size_t>(r)] = r;
  auto cluster = default_cluster(host_of, std::vector<int>(static_cast<size_t>(n), 4));
  cluster.links[1].wire = cluster.node.port = 1 / bytes_per_s;
  return cluster;
}

Candidates of(int n, std::vector<std::string> names) {
  return {[names](Collective) { return names; },
          [n](Collective c, std::string_view name, int lanes) {
            return algo::make(name, {c, n, 0}, {lanes, {}});
          },
          [](Collective, std::string_view) { return true; }};
}

TEST(Coding, ShrinksTheWireByTheCodesRatio) {
  EXPECT_NEAR(wire_ratio(CodecKind::kInt8), 8.5 / 32, 1e-6);
  EXPECT_NEAR(wire_ratio(CodecKind::kBF16), 0.5, 1e-6);
  EXPECT_EQ(wire_ratio(CodecKind::kNone), 1);
  const auto cluster = hosts(4, 1e9 / 8);
  const auto coded = with_codec(cluster, CodecKind::kInt8, Collective::kAllReduce);
  EXPECT_NEAR(coded.links[1].wire, cluster.links[1].wire * 8.5 / 32, 1e-15);
  EXPECT_EQ(coded.links[0], cluster.links[0]);  // only what goes between hosts is encoded
  EXPECT_TRUE(coded.check().ok());
}

TEST(Coding, ApproachesTheRatioOnSlowLinksAndLosesOnFastOnes) {
  const auto plain = of(4, {"ring", "direct"}), coded = of(4, {"direct"});
  const uint64_t bytes = 64 << 20;
  for (CodecKind kind : {CodecKind::kBF16, CodecKind::kInt8, CodecKind::kInt4}) {
    const auto speed_up = [&](double rate) {
      const auto cluster = hosts(4, rate);
      const auto with = with_codec(cluster, kind, Collective::kAllReduce);
      return least_seconds(cluster, plain, Collective::kAllReduce, bytes, {}) /
             least_seconds(with, coded, Collective::kAllReduce, bytes, {});
    };
    EXPECT_GT(speed_up(1e8 / 8), 0.97 / wire_ratio(kind)) << name_of(kind);
    double before = INFINITY;
    for (double rate = 1e7; rate < 1e11; rate *= 4) {
      const double now = speed_up(rate);
      EXPECT_LE(now, before * 1.02) << name_of(kind) << " at " << rate;
      before = now;
    }
  }
}

TEST(Coding, CrossesOverWhereBothWaysCostTheSame) {
  const auto plain = of(4, {"ring", "direct"}), coded = of(4, {"direct"});
  auto cluster = hosts(4, 1e9);
  auto& figures = cluster.codecs[static_cast<size_t>(CodecKind::kInt8)];
  figures = {.encode = 2e-9, .decode = 2e-9};
  const uint64_t bytes = 16 << 20;
  const double rate = crossover_rate(cluster, plain, coded, Collective::kAllReduce, CodecKind::kInt8, bytes, {});
  ASSERT_GT(rate, 1e7);
  ASSERT_LT(rate, 1e10);
  const auto ratio_at = [&](double r) {
    auto at = cluster;
    at.links[1].wire = at.node.port = 1 / r;
    return least_seconds(at, plain, Collective::kAllReduce, bytes, {}) /
           least_seconds(with_codec(at, CodecKind::kInt8, Collective::kAllReduce), coded, Collective::kAllReduce,
                         bytes, {});
  };
  EXPECT_NEAR(ratio_at(rate), 1, 0.05);
  EXPECT_GT(ratio_at(rate / 3), 1.2);
  EXPECT_LT(ratio_at(rate * 3), 0.95);
  figures = {.encode = 1, .decode = 1};  // a second a byte
  EXPECT_EQ(crossover_rate(cluster, plain, coded, Collective::kAllReduce, CodecKind::kInt8, bytes, {}), 0);
}

TEST(Coding, FiguresOfCodecsTravelWithTheCluster) {
  auto cluster = hosts(3, 1e9);
  cluster.codecs[static_cast<size_t>(CodecKind::kTopK)] = {.encode = 3e-9, .decode = 4e-9};
  const auto back = cluster_from_text(to_text(cluster));
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(*back, cluster);
  cluster.codecs[2].decode = -1;
  EXPECT_FALSE(cluster.check().ok());
}

}  // namespace
}  // namespace ringfold::model
