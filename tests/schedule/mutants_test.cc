// Is the checker worth its name? Breaks schedules in many ways and asks it: mutants that change the meaning must be
// rejected, and whatever it lets pass must be harmless in the eyes of an independent oracle (oracle.h).
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>

#include "algo/algo.h"
#include "schedule/checker.h"
#include "tests/schedule/oracle.h"
#include "tests/schedule/shapes.h"

namespace ringfold::test {
namespace {

using namespace schedule;

using AllSteps = std::vector<RankSteps>;
using Random = std::mt19937;

struct Place {
  int rank = 0;
  int lane = 0;
  int step = 0;
};

// A schedule that is being broken.
struct Mutant {
  Schedule schedule;
  AllSteps ranks;
  Random& random;

  RankSteps& rank(const Place& p) { return ranks[static_cast<size_t>(p.rank)]; }
  Lane& lane(const Place& p) { return rank(p).lanes[static_cast<size_t>(p.lane)]; }
  Step& at(const Place& p) { return lane(p)[static_cast<size_t>(p.step)]; }
  int pick(size_t below) { return static_cast<int>(random() % below); }
  void insert(const Place& p, Step step) { lane(p).insert(lane(p).begin() + p.step, step); }
  void erase(const Place& p) { lane(p).erase(lane(p).begin() + p.step); }
  // The receive that gets the send at `p`.
  Place match(const Place& p) {
    const int peer = at(p).peer;
    int k = 0;
    for (int i = 0; i < p.step; ++i) {
      const Step& step = lane(p)[static_cast<size_t>(i)];
      k += step.kind == StepKind::kSend && step.peer == peer;
    }
    Place to{peer, p.lane, 0};
    for (;; ++to.step) {
      const Step& step = at(to);
      const bool receives = step.kind == StepKind::kRecv || step.kind == StepKind::kRecvReduce;
      if (receives && step.peer == p.rank && k-- == 0) return to;
    }
  }
  Schedule finished() const {
    Schedule s = schedule;
    s.rank = [steps = std::make_shared<AllSteps>(ranks)](int rank) { return (*steps)[static_cast<size_t>(rank)]; };
    return s;
  }
};

// One way to break a schedule at a step. `apply` returns false where it does not apply.
struct Kind {
  const char* name;
  bool always_wrong;  // else the oracle says whether it matters
  std::function<bool(Mutant&, Place)> apply;
};

bool is(const Step& step, std::initializer_list<StepKind> kinds) {
  return std::find(kinds.begin(), kinds.end(), step.kind) != kinds.end();
}
bool moves(const Step& step) { return is(step, {StepKind::kSend, StepKind::kRecv, StepKind::kRecvReduce}); }
bool folds(const Step& step) { return is(step, {StepKind::kRecvReduce, StepKind::kReduce}); }
bool has_cells(const Step& step) { return !is(step, {StepKind::kSignal, StepKind::kWait}); }

const std::vector<Kind>& kinds() {
  using K = StepKind;
  static const std::vector<Kind> all = {
      {"drop a step", true,
       [](Mutant& m, Place p) {
         m.erase(p);
         return true;
       }},
      {"drop a message at both ends", true,
       [](Mutant& m, Place p) {
         if (m.at(p).kind != K::kSend) return false;
         m.erase(m.match(p));
         m.erase(p);
         return true;
       }},
      {"duplicate a step", true,
       [](Mutant& m, Place p) {
         if (m.at(p).kind == K::kCopy) return false;
         m.insert(p, m.at(p));
         return true;
       }},
      {"swap neighbours", false,
       [](Mutant& m, Place p) {
         if (p.step == 0 || m.at(p) == m.lane(p)[static_cast<size_t>(p.step - 1)]) return false;
         std::swap(m.at(p), m.lane(p)[static_cast<size_t>(p.step - 1)]);
         return true;
       }},
      {"swap any two steps of a lane", false,
       [](Mutant& m, Place p) {
         const Place q{p.rank, p.lane, m.pick(m.lane(p).size())};
         if (m.at(p) == m.at(q)) return false;
         std::swap(m.at(p), m.at(q));
         return true;
       }},
      {"move a step to another lane", true,
       [](Mutant& m, Place p) {
         if (m.schedule.lanes == 1) return false;
         Place q{p.rank, (p.lane + 1) % m.schedule.lanes, 0};
         q.step = m.pick(m.lane(q).size() + 1);
         const Step step = m.at(p);
         m.erase(p);
         m.insert(q, step);
         return true;
       }},
      {"another peer", true,
       [](Mutant& m, Place p) {
         if (!moves(m.at(p)) || m.schedule.shape.ranks < 3) return false;
         int& peer = m.at(p).peer;
         do peer = (peer + 1) % m.schedule.shape.ranks;
         while (peer == p.rank);
         return true;
       }},
      {"a peer that is no peer", true,
       [](Mutant& m, Place p) {
         if (!moves(m.at(p))) return false;
         const int wrong[] = {p.rank, -1, m.schedule.shape.ranks};
         m.at(p).peer = wrong[m.pick(3)];
         return true;
       }},
      {"another chunk", true,
       [](Mutant& m, Place p) {
         Step& step = m.at(p);
         if (!has_cells(step) || step.chunk >= m.schedule.chunks() || m.schedule.chunks() < 2) return false;
         step.chunk = static_cast<uint32_t>((step.chunk + 1) % m.schedule.chunks());
         return true;
       }},
      {"another chunk at both ends", true,
       [](Mutant& m, Place p) {
         if (m.at(p).kind != K::kSend || m.schedule.chunks() < 2) return false;
         Step& to = m.at(m.match(p));
         if (m.at(p).chunk != to.chunk) return false;
         m.at(p).chunk = to.chunk = static_cast<uint32_t>((to.chunk + 1) % m.schedule.chunks());
         return true;
       }},
      {"another count", true,
       [](Mutant& m, Place p) {
         if (!has_cells(m.at(p))) return false;
         m.at(p).count = static_cast<uint16_t>(m.at(p).count == 1 ? 2 * m.pick(2) : m.at(p).count - 1);
         return true;
       }},
      {"receive instead of receive and reduce", true,
       [](Mutant& m, Place p) {
         if (m.at(p).kind != K::kRecvReduce) return false;
         m.at(p).kind = K::kRecv;
         m.at(p).flags = 0;
         return true;
       }},
      {"receive and reduce instead of receive", true,
       [](Mutant& m, Place p) {
         if (m.at(p).kind != K::kRecv || m.schedule.shape.collective == Collective::kBarrier) return false;
         m.at(p).kind = K::kRecvReduce;
         return true;
       }},
      {"copy instead of reduce, reduce instead of copy", true,
       [](Mutant& m, Place p) {
         if (!is(m.at(p), {K::kCopy, K::kReduce})) return false;
         m.at(p).kind = m.at(p).kind == K::kCopy ? K::kReduce : K::kCopy;
         m.at(p).flags = 0;
         return true;
       }},
      {"flip kPrepend", false,
       [](Mutant& m, Place p) {
         if (!folds(m.at(p))) return false;
         m.at(p).flags ^= kPrepend;
         return true;
       }},
      {"missing kComplete", true,
       [](Mutant& m, Place p) {
         if (!(m.at(p).flags & kComplete)) return false;
         m.at(p).flags &= static_cast<uint8_t>(~kComplete);
         return true;
       }},
      {"early kComplete", true,
       [](Mutant& m, Place p) {
         if (m.at(p).flags & kComplete || !folds(m.at(p))) return false;
         m.at(p).flags |= kComplete;
         return true;
       }},
      {"a flag where it means nothing", true,
       [](Mutant& m, Place p) {
         if (!is(m.at(p), {K::kSend, K::kRecv, K::kCopy})) return false;
         m.at(p).flags |= 1 + m.pick(3);
         return true;
       }},
      {"missing signal", true,
       [](Mutant& m, Place p) {
         if (m.at(p).kind != K::kSignal) return false;
         m.erase(p);
         return true;
       }},
      {"missing signal and wait", true,
       [](Mutant& m, Place p) {
         if (m.at(p).kind != K::kSignal) return false;
         const uint32_t event = m.at(p).source;
         for (auto& lane : m.rank(p).lanes) {
           std::erase_if(lane, [&](const Step& s) { return !has_cells(s) && s.source == event; });
         }
         return true;
       }},
      {"signal too early", false,
       [](Mutant& m, Place p) {
         if (m.at(p).kind != K::kSignal || p.step == 0) return false;
         const Step step = m.at(p);
         m.erase(p);
         m.insert({p.rank, p.lane, m.pick(static_cast<size_t>(p.step))}, step);
         return true;
       }},
      {"extra wait", true,
       [](Mutant& m, Place p) {
         m.rank(p).events = std::max(1u, m.rank(p).events);
         m.insert(p, {.kind = K::kWait, .source = 0});
         return true;
       }},
      {"extra signal", true,
       [](Mutant& m, Place p) {
         m.rank(p).events = std::max(1u, m.rank(p).events);
         m.insert(p, {.kind = K::kSignal, .source = 0});
         return true;
       }},
      {"an event that does not exist", true,
       [](Mutant& m, Place p) {
         if (has_cells(m.at(p))) return false;
         m.at(p).source = m.rank(p).events;
         return true;
       }},
      {"rewrite a cell with its own value while a send may read it", true,
       [](Mutant& m, Place p) {
         const Step step = m.at(p);
         if (step.kind != K::kSend || step.count != 1 || step.chunk >= m.schedule.chunks()) return false;
         const auto temporary = static_cast<uint32_t>(m.schedule.chunks() + m.rank(p).temporaries.size());
         m.rank(p).temporaries.push_back(step.chunk);
         m.insert(p, {.kind = K::kCopy, .chunk = temporary, .source = step.chunk});
         m.insert({p.rank, p.lane, p.step + 2}, {.kind = K::kCopy, .chunk = step.chunk, .source = temporary});
         return m.schedule.shape.collective != Collective::kBarrier;
       }},
      {"write a cell in another lane", false,
       [](Mutant& m, Place p) {
         const Step step = m.at(p);
         if (m.schedule.lanes == 1 || !moves(step) || step.chunk >= m.schedule.chunks()) return false;
         const auto temporary = static_cast<uint32_t>(m.schedule.chunks() + m.rank(p).temporaries.size());
         m.rank(p).temporaries.push_back(step.chunk);
         const Place q{p.rank, (p.lane + 1) % m.schedule.lanes, 0};
         if (!starts_with(m.schedule.shape, p.rank, m.schedule.block_of(step.chunk))) return false;
         m.insert(q, {.kind = K::kCopy, .chunk = step.chunk, .source = temporary});
         m.insert(q, {.kind = K::kCopy, .chunk = temporary, .source = step.chunk});
         return true;
       }},
      {"a temporary that does not exist", true,
       [](Mutant& m, Place p) {
         if (!has_cells(m.at(p))) return false;
         const auto cells = static_cast<uint32_t>(m.schedule.chunks() + m.rank(p).temporaries.size());
         m.at(p).chunk = cells - m.at(p).count + 1;
         return true;
       }},
      {"a temporary of another size", true,
       [](Mutant& m, Place p) {
         auto& temporaries = m.rank(p).temporaries;
         if (temporaries.empty()) return false;
         uint32_t& chunk = temporaries[static_cast<size_t>(m.pick(temporaries.size()))];
         if (m.schedule.chunks() == 1) return chunk = 1, true;
         chunk = static_cast<uint32_t>((chunk + 1) % m.schedule.chunks());
         return true;
       }},
      {"another source", true,
       [](Mutant& m, Place p) {
         if (!is(m.at(p), {K::kCopy, K::kReduce})) return false;
         m.at(p).source = m.at(p).source > 0 ? m.at(p).source - 1 : m.at(p).source + 1;
         return true;
       }},
      {"receive before sending, on all ranks", false,
       [](Mutant& m, Place p) {
         for (auto& rank : m.ranks) {
           auto& lane = rank.lanes[static_cast<size_t>(p.lane)];
           std::stable_partition(lane.begin(), lane.end(), [](const Step& s) { return s.kind != K::kSend; });
         }
         return true;
       }},
      {"another root", false,
       [](Mutant& m, Place) {
         if (!has_root(m.schedule.shape.collective)) return false;
         m.schedule.shape.root = (m.schedule.shape.root + 1) % m.schedule.shape.ranks;
         return true;
       }},
      {"a lane less", true,
       [](Mutant& m, Place p) {
         m.rank(p).lanes.pop_back();
         return true;
       }},
  };
  return all;
}

struct Base {
  std::string algorithm;
  Shape shape;
  algo::Parameters parameters;
};

std::vector<Base> bases() {
  std::vector<Base> all;
  for (const Collective collective : kEvery) {
    for (const auto& algorithm : algo::algorithms_for(collective)) {
      for (const int n : {2, 3, 4, 5, 6, 8}) {
        const int root = has_root(collective) ? n / 2 : 0;
        algo::Parameters parameters{.lanes = 1 + n % 2};
        if (algorithm == "hierarchical") parameters.host_of = placements_of(n)[n % 2 ? 4 : 2];
        all.push_back({algorithm, {collective, n, root}, parameters});
      }
    }
  }
  return all;
}

TEST(Mutants, ThatChangeTheMeaningAreRejected) {
  Random random(20250101);
  std::map<std::string, std::map<Property, int>> rejected;  // by kind
  std::map<std::string, int> harmless;
  std::map<Property, int> by_property;
  for (const Base& base : bases()) {
    const auto schedule = algo::make(base.algorithm, base.shape, base.parameters);
    ASSERT_TRUE(schedule.ok()) << schedule.status().message();
    AllSteps steps;
    std::vector<Place> places;
    for (int r = 0; r < base.shape.ranks; ++r) {
      steps.push_back(schedule->rank(r));
      for (int l = 0; l < schedule->lanes; ++l) {
        const auto& lane = steps.back().lanes[static_cast<size_t>(l)];
        for (int i = 0; i < static_cast<int>(lane.size()); ++i) places.push_back({r, l, i});
      }
    }
    CheckOptions options;
    options.require_canonical = algo::is_canonical(base.shape.collective, base.algorithm);
    for (const Kind& kind : kinds()) {
      std::shuffle(places.begin(), places.end(), random);
      int applied = 0;
      for (const Place& place : places) {
        Mutant mutant{*schedule, steps, random};
        if (!kind.apply(mutant, place)) continue;
        if (++applied > 10) break;
        const Schedule broken = mutant.finished();
        CheckReport report;
        const Status status = check(broken, options, &report);
        const std::string where = std::string(kind.name) + ": " + base.algorithm + " " +
                                  name_of_case(base.shape, base.parameters) + " rank " + std::to_string(place.rank) +
                                  " lane " + std::to_string(place.lane) + " step " + std::to_string(place.step);
        if (!status.ok()) {
          EXPECT_NE(report.fault.property, Property::kNone);
          EXPECT_NE(status.message().find(name_of(report.fault.property)), std::string::npos);
          ++rejected[kind.name][report.fault.property];
          ++by_property[report.fault.property];
          continue;
        }
        EXPECT_FALSE(kind.always_wrong) << "passed: " << where;
        ++harmless[kind.name];
        for (uint64_t seed = 0; seed < 30; ++seed) {
          const std::string wrong = play(broken, seed);
          EXPECT_EQ(wrong, "") << "passed, but is wrong: " << where;
          if (!wrong.empty()) break;
        }
        if (HasFailure()) return;
      }
    }
  }
  for (const Kind& kind : kinds()) {
    int total = 0;
    std::string line;
    for (const auto& [property, count] : rejected[kind.name]) {
      total += count;
      line += " " + std::string(name_of(property)) + " " + std::to_string(count);
    }
    std::printf("%-62s rejected %4d, harmless %3d:%s\n", kind.name, total, harmless[kind.name], line.c_str());
    EXPECT_GE(total, 10) << kind.name;
  }
  // Each property has work to do: none of the tests is dead.
  for (const Property property :
       {Property::kRange, Property::kMatching, Property::kDeadlock, Property::kEvents, Property::kUnset,
        Property::kHazard, Property::kComplete, Property::kValue, Property::kReplica, Property::kCanonical}) {
    EXPECT_GE(by_property[property], 3) << name_of(property);
  }
}

TEST(Checker, RefusesMoreCodingsThanAllowed) {
  const auto ring = algo::make("ring", {Collective::kAllReduce, 5, 0}, {});
  ASSERT_TRUE(ring.ok());
  CheckReport report;
  EXPECT_TRUE(check(*ring, {.most_depth = 5}).ok());
  const Status status = check(*ring, {.most_depth = 4}, &report);
  EXPECT_EQ(report.fault.property, Property::kDepth);
  EXPECT_EQ(status.message(),
            "all_reduce ring: 5 ranks, 1 lane, 5 chunks: depth: values are coded 5 times, allowed are 4");
}

TEST(Checker, NamesRankLaneStepAndProperty) {
  auto ring = algo::make("ring", {Collective::kAllReduce, 3, 0}, {.lanes = 2});
  ASSERT_TRUE(ring.ok());
  Schedule broken = *ring;
  broken.rank = [good = ring->rank](int rank) {
    RankSteps steps = good(rank);
    if (rank == 2) steps.lanes[1][1].kind = StepKind::kRecv;
    return steps;
  };
  const Status status = check(broken);
  EXPECT_EQ(status.code(), Code::kInternal);
  EXPECT_EQ(status.message(),
            "all_reduce ring: 3 ranks, 2 lanes, 6 chunks: range: rank 2 lane 1 step 1: (recv c3 <- 1 prepend) flags "
            "that mean nothing here");
}

TEST(Oracle, AgreesThatTheGeneratorsAreRight) {
  for (const Base& base : bases()) {
    const auto schedule = algo::make(base.algorithm, base.shape, base.parameters);
    ASSERT_TRUE(schedule.ok());
    for (uint64_t seed = 0; seed < 10; ++seed) {
      EXPECT_EQ(play(*schedule, seed), "") << base.algorithm << " " << name_of_case(base.shape, base.parameters);
    }
  }
}

}  // namespace
}  // namespace ringfold::test
