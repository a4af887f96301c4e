// Figures: measured, fitted, written and read.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <random>

#include "model/cache.h"
#include "model/probe.h"
#include "tests/model/support.h"

namespace ringfold::model {
namespace {

// ---- the fit ----

// Scatters times upwards, as a loaded machine does: some percent, and now and then ten times.
class Noise {
 public:
  explicit Noise(uint32_t seed) : random_(seed) {}
  double operator()(double seconds) {
    const double factor = 1 + std::abs(std::normal_distribution(0.0, 0.03)(random_));
    return seconds * factor * (std::uniform_real_distribution(0.0, 1.0)(random_) < 0.1 ? 10 : 1);
  }

 private:
  std::mt19937 random_;
};

TEST(FitLine, RecoversALineFromNoisySamples) {
  for (uint32_t seed = 0; seed < 50; ++seed) {
    Noise noise(seed);
    std::vector<Sample> samples;
    for (const double x : {8.0, 512.0, 4096.0, 16384.0, 65536.0}) {
      for (int i = 0; i < 9; ++i) samples.push_back({x, noise(5e-6 + 1e-9 * x)});
    }
    const Line line = fit_line(samples);
    EXPECT_NEAR(line.fixed / 5e-6, 1, 0.1) << seed;
    EXPECT_NEAR(line.slope / 1e-9, 1, 0.1) << seed;
  }
}

TEST(FitLine, IsExactWithoutNoiseAndNeverNegative) {
  holds("exact", [] {
    const double fixed = *rc::gen::inRange(1, 1000) * 1e-7, slope = *rc::gen::inRange(1, 1000) * 1e-11;
    std::vector<Sample> samples;
    for (const double x : {0.0, 100.0, 10000.0, 60000.0}) samples.push_back({x, fixed + slope * x});
    const Line line = fit_line(samples);
    RC_ASSERT(std::abs(line.fixed / fixed - 1) < 1e-6);
    RC_ASSERT(std::abs(line.slope / slope - 1) < 1e-6);
  });
  holds("never negative, whatever the samples", [] {
    const auto pairs = *rc::gen::container<std::vector<std::pair<int, int>>>(
        rc::gen::pair(rc::gen::inRange(0, 5), rc::gen::inRange(0, 1000)));
    std::vector<Sample> samples;
    for (const auto& [x, t] : pairs) samples.push_back({x * 1000.0, t * 1e-6});
    const Line line = fit_line(samples);
    RC_ASSERT(line.fixed >= 0 && line.slope >= 0);
    RC_ASSERT(std::isfinite(line.fixed) && std::isfinite(line.slope));
  });
  const Line decreasing = fit_line({{1, 3}, {2, 2}, {3, 1}});
  EXPECT_EQ(decreasing.slope, 0);
  EXPECT_EQ(fit_line({}).fixed, 0);
  EXPECT_DOUBLE_EQ(fit_line({{5, 2}, {5, 2}}).fixed, 2);
}

// A cluster that answers as its figures say.
class FakeProber : public Prober {
 public:
  FakeProber(ClusterModel truth, uint32_t seed) : truth_(std::move(truth)), noise_(seed) {}

  Result<double> round_trip(int peer, uint64_t bytes) override {
    const LinkFigures& f = asked(peer);
    const double per_byte = f.put + f.wire + std::max(f.take, truth_.node.copy);
    return answer(2 * (2 * f.overhead + f.latency + per_byte * static_cast<double>(bytes)));
  }
  Result<double> stream(int peer, uint64_t bytes, int count) override {
    const LinkFigures& f = asked(peer);
    const double per_byte = std::max({f.put, f.wire, f.take, truth_.node.copy});
    return answer(2 * f.latency + 3 * f.overhead + count * (f.overhead + per_byte * static_cast<double>(bytes)));
  }
  Result<double> reduce(uint64_t bytes) override {
    return answer(1e-7 + truth_.node.reduce * static_cast<double>(bytes));
  }
  Result<double> copy(uint64_t bytes) override {
    return answer(1e-7 + truth_.node.copy * static_cast<double>(bytes));
  }
  Result<double> encode(CodecKind kind, uint64_t bytes) override {
    return answer(truth_.codecs[static_cast<size_t>(kind)].encode * static_cast<double>(bytes));
  }
  Result<double> decode(CodecKind kind, uint64_t bytes) override {
    return answer(truth_.codecs[static_cast<size_t>(kind)].decode * static_cast<double>(bytes));
  }

  std::map<int, int> asked_of;  // peer -> times
  double spent = 0;
  int fails_at = -1;

 private:
  const LinkFigures& asked(int peer) {
    ++asked_of[peer];
    return truth_.link(0, peer);
  }
  Result<double> answer(double seconds) {
    if (fails_at-- == 0) return Status(Code::kPeerLost, "rank 1 is gone");
    seconds = noise_(seconds);
    spent += seconds;
    return seconds;
  }
  ClusterModel truth_;
  Noise noise_;
};

TEST(Probe, RecoversTheFiguresOfACluster) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    ClusterModel truth = cluster_of(6, 3, 4, seed % 2 == 0 ? "shm" : "tcp");
    truth.links[0].latency = seed % 2 == 0 ? 0.5e-6 : 15e-6;
    truth.links[0].overhead *= 1.7;
    truth.links[0].put *= 1.5;
    truth.links[1].latency *= 0.3;
    truth.links[1].wire *= 0.5;
    truth.node.port = truth.links[1].wire;
    truth.node.reduce *= 2;
    FakeProber prober(truth, seed);
    const auto found = probe(prober, cluster_of(6, 3, 4, seed % 2 == 0 ? "shm" : "tcp"), 0);
    ASSERT_TRUE(found.ok()) << found.status().to_string();
    EXPECT_TRUE(found->measured);
    for (int c = 0; c < kLinkClasses; ++c) {
      SCOPED_TRACE("seed " + std::to_string(seed) + " " + std::string(name_of(static_cast<LinkClass>(c))));
      const LinkFigures &f = found->links[c], &t = truth.links[c];
      EXPECT_NEAR(f.latency / t.latency, 1, 0.35);  // what is left of a round trip when four overheads are taken off
      EXPECT_NEAR(f.overhead / t.overhead, 1, 0.15);
      EXPECT_NEAR(f.wire, t.wire, 0.15 * t.wire);
      EXPECT_NEAR(f.put + f.take, t.put + t.take, 0.15 * (t.put + t.take + t.wire + truth.node.copy));
    }
    EXPECT_NEAR(found->node.port / truth.node.port, 1, 0.15);
    EXPECT_NEAR(found->node.copy / truth.node.copy, 1, 0.15);
    EXPECT_NEAR(found->node.reduce / truth.node.reduce, 1, 0.15);
  }
}

TEST(Probe, MeasuresOnePairPerClass) {
  FakeProber prober(cluster_of(8, 2, 4), 1);
  ASSERT_TRUE(probe(prober, cluster_of(8, 2, 4), 0).ok());
  ASSERT_EQ(prober.asked_of.size(), 2u);
  EXPECT_TRUE(prober.asked_of.contains(1));
  EXPECT_TRUE(prober.asked_of.contains(4));
  FakeProber alone(cluster_of(1, 1, 4), 1);
  ASSERT_TRUE(probe(alone, cluster_of(1, 1, 4), 0).ok());
  EXPECT_TRUE(alone.asked_of.empty());
}

TEST(Probe, KeepsToItsBudgetOnASlowLink) {
  ClusterModel truth = cluster_of(2, 2, 1);
  truth.links[1] = {.latency = 0.05, .overhead = 1e-5, .wire = 1e-6, .put = 1e-9, .take = 1e-9};  // 1 MB/s, 100 ms
  FakeProber prober(truth, 3);
  const auto found = probe(prober, cluster_of(2, 2, 1), 0, 2.0);
  ASSERT_TRUE(found.ok());
  EXPECT_LE(prober.spent, 8.0);  // the budget, and in each series one measurement begun (some ten times too slow)
  EXPECT_NEAR(found->links[1].latency / 0.05, 1, 0.5);
}

TEST(Probe, PassesOnAFailure) {
  for (const int at : {0, 30, 70, 100, 200}) {
    FakeProber prober(cluster_of(4, 2, 2), 1);
    prober.fails_at = at;
    EXPECT_EQ(probe(prober, cluster_of(4, 2, 2), 0).status().code(), Code::kPeerLost) << at;
  }
}

// ---- text and files ----

ClusterModel odd_cluster() {
  ClusterModel cluster = cluster_of(5, 2, 3);
  cluster.links[0].latency = 1.0 / 3e6;
  cluster.links[1].wire = 0.1e-9 + 1e-25;
  cluster.node.port = 5e-324;
  cluster.measured = true;
  return cluster;
}

TEST(ClusterModel, TextGoesRoundExactly) {
  for (const auto& cluster : {odd_cluster(), cluster_of(1, 1, 1), cluster_of(64, 8, 2, "tcp")}) {
    const auto back = cluster_from_text(to_text(cluster));
    ASSERT_TRUE(back.ok()) << back.status().to_string();
    EXPECT_EQ(*back, cluster);
  }
}

TEST(ClusterModel, DamagedTextGivesAnErrorOrASaneModel) {
  const std::string good = to_text(odd_cluster());
  for (size_t i = 0; i < good.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string text = good;
      text[i] = static_cast<char>(text[i] ^ (1 << bit));
      const auto cluster = cluster_from_text(text);
      if (cluster.ok()) {
        EXPECT_TRUE(cluster->check().ok());
      }
    }
    EXPECT_FALSE(cluster_from_text(good.substr(0, i)).ok());
  }
}

TEST(ClusterModel, RefusesWhatMakesNoSense) {
  const auto refused = [](auto change) {
    ClusterModel cluster = cluster_of(4, 2, 2);
    change(cluster);
    return cluster.check().code() == Code::kInvalid;
  };
  EXPECT_FALSE(refused([](ClusterModel&) {}));
  EXPECT_TRUE(refused([](ClusterModel& c) { c.host_of.clear(); }));
  EXPECT_TRUE(refused([](ClusterModel& c) { c.host_of = {1, 0, 0, 1}; }));
  EXPECT_TRUE(refused([](ClusterModel& c) { c.host_of = {0, 0, -1, 1}; }));
  EXPECT_TRUE(refused([](ClusterModel& c) { c.cores = {2}; }));
  EXPECT_TRUE(refused([](ClusterModel& c) { c.cores = {2, 0}; }));
  for (const double value :
       {-1e-9, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    EXPECT_TRUE(refused([&](ClusterModel& c) { c.links[1].wire = value; }));
    EXPECT_TRUE(refused([&](ClusterModel& c) { c.node.reduce = value; }));
  }
}

TEST(ClusterModel, FiguresHaveNamesAndUnits) {
  const std::string text = cluster_of(4, 2, 2).to_string();
  for (const auto& figure : link_figures()) EXPECT_NE(text.find(figure.name), std::string::npos);
  for (const auto& figure : node_figures()) EXPECT_NE(text.find(figure.name), std::string::npos);
  EXPECT_NE(text.find("same_host (shm) latency 200 ns"), std::string::npos) << text;
  EXPECT_EQ(seconds_text(1.5e-6), "1.50 us");
  EXPECT_EQ(seconds_text(0.9999e-3), "1.00 ms");
  EXPECT_EQ(bytes_text(4096), "4 KiB");
  EXPECT_EQ(bytes_text(4097), "4097 B");
}

class Cache : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "ringfold-cache-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string path() const { return (std::filesystem::path(directory_) / file_name(key_)).string(); }
  std::string contents() const {
    std::ifstream file(path(), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write(const std::string& text) const { std::ofstream(path(), std::ios::binary | std::ios::trunc) << text; }

  std::string directory_;
  const CacheKey key_{.hosts = {{"a", 2, 4}, {"b", 2, 4}}, .transports = {"shm", "tcp"}, .version = "0.1.0"};
};

TEST_F(Cache, GivesBackTheFiguresAndKeepsThePlacement) {
  ClusterModel cluster = cluster_of(4, 2, 4);
  const ClusterModel before = cluster;
  EXPECT_FALSE(load_figures(directory_, key_, cluster));
  ASSERT_TRUE(save_figures(directory_, key_, odd_cluster()).ok());
  ASSERT_TRUE(load_figures(directory_, key_, cluster));
  EXPECT_EQ(cluster.host_of, before.host_of);
  EXPECT_EQ(cluster.links[0], odd_cluster().links[0]);
  EXPECT_EQ(cluster.links[1], odd_cluster().links[1]);
  EXPECT_EQ(cluster.node, odd_cluster().node);
  EXPECT_TRUE(cluster.measured);
}

TEST_F(Cache, IsReplacedAndLeavesNothingElse) {
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(save_figures(directory_ + "/made/here", key_, odd_cluster()).ok());
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory_ + "/made/here")) {
    EXPECT_EQ(entry.path().filename(), file_name(key_));
    ++files;
  }
  EXPECT_EQ(files, 1);
}

TEST_F(Cache, IsPerHostSetWhateverTheOrder) {
  CacheKey same = key_;
  std::swap(same.hosts[0], same.hosts[1]);
  EXPECT_EQ(file_name(same), file_name(key_));
  const auto differs = [&](auto change) {
    CacheKey other = key_;
    change(other);
    return file_name(other) != file_name(key_);
  };
  EXPECT_TRUE(differs([](CacheKey& k) { k.hosts[0].name = "c"; }));
  EXPECT_TRUE(differs([](CacheKey& k) { k.hosts[0].ranks = 3; }));
  EXPECT_TRUE(differs([](CacheKey& k) { k.hosts[1].cores = 3; }));
  EXPECT_TRUE(differs([](CacheKey& k) { k.hosts.pop_back(); }));
  EXPECT_TRUE(differs([](CacheKey& k) { k.transports[0] = "tcp"; }));
  EXPECT_TRUE(differs([](CacheKey& k) { k.version = "0.1.1"; }));
  EXPECT_TRUE(differs([](CacheKey& k) { k.transports = {"shm\", transport \"tcp"}; }));
}

TEST_F(Cache, IgnoresEveryDamage) {
  ASSERT_TRUE(save_figures(directory_, key_, odd_cluster()).ok());
  const std::string good = contents();
  ClusterModel cluster = cluster_of(4, 2, 4);
  const ClusterModel before = cluster;
  const auto ignored = [&](const std::string& text) {
    write(text);
    return !load_figures(directory_, key_, cluster) && cluster == before;
  };
  for (size_t i = 0; i < good.size(); ++i) {
    std::string text = good;
    text[i] = static_cast<char>(text[i] ^ (1 << (i % 8)));
    EXPECT_TRUE(ignored(text)) << "byte " << i;
  }
  for (size_t i = 0; i < good.size(); i += 7) EXPECT_TRUE(ignored(good.substr(0, i))) << "cut at " << i;
  EXPECT_TRUE(ignored(good + "\n"));
  EXPECT_TRUE(ignored(good + good));
  EXPECT_TRUE(ignored(std::string(100, '\0')));
  EXPECT_TRUE(ignored("\n\n"));
  write(good);
  EXPECT_TRUE(load_figures(directory_, key_, cluster));
}

TEST_F(Cache, OfAnotherKeyUnderThisNameIsIgnored) {
  CacheKey other = key_;
  other.version = "0.0.9";
  ASSERT_TRUE(save_figures(directory_, other, odd_cluster()).ok());
  std::filesystem::rename(std::filesystem::path(directory_) / file_name(other), path());
  ClusterModel cluster = cluster_of(4, 2, 4);
  EXPECT_FALSE(load_figures(directory_, key_, cluster));
}

TEST_F(Cache, SaysWhatCannotBeWritten) {
  write("not a directory");
  const Status status = save_figures(path(), key_, odd_cluster());
  EXPECT_EQ(status.code(), Code::kIo);
  EXPECT_NE(status.message().find(path()), std::string::npos);
  ClusterModel cluster = cluster_of(4, 2, 4);
  EXPECT_FALSE(load_figures(path(), key_, cluster));
}

}  // namespace
}  // namespace ringfold::model
