// Is the checker worth its name? Breaks schedules in many ways and asks it. What it rejects must be wrong, and what
// it lets pass must run, in the eyes of an independent oracle that just does what the lists say, in random orders.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "tests/pipeline/random_schedule.h"

namespace ringfold::test {
namespace {

using namespace pipeline;
using Random = std::mt19937_64;

// Runs the lists as ranks would, with messages and values, and says what goes wrong; "" if all that there is to
// compute has been computed once. Shares nothing with the checker.
std::string play(const Schedule& s, uint64_t seed) {
  Random random(seed);
  const int stages = static_cast<int>(s.rank_of.size()), ranks = static_cast<int>(s.actions.size());
  std::map<std::pair<int, int>, std::set<ActionKind>> did;  // by stage and micro-batch
  std::set<std::tuple<bool, int, int>> messages;            // to a stage: activation or gradient, micro-batch
  std::vector<size_t> next(static_cast<size_t>(ranks), 0);
  for (;;) {
    std::vector<int> able;
    bool left = false;
    for (int r = 0; r < ranks; ++r) {
      const auto& list = s.actions[static_cast<size_t>(r)];
      const size_t at = next[static_cast<size_t>(r)];
      if (at == list.size()) continue;
      left = true;
      const Action& a = list[at];
      if (a.stage < 0 || a.stage >= stages || a.micro_batch < 0 || a.micro_batch >= s.micro_batches) return "range";
      if (s.rank_of[static_cast<size_t>(a.stage)] != r) return "another rank's stage";
      const bool forward = a.kind == ActionKind::kForward;
      const bool outside = forward ? a.stage > 0 : a.kind != ActionKind::kBackwardWeight && a.stage < stages - 1;
      if (!outside || messages.contains({!forward, a.stage, a.micro_batch})) able.push_back(r);
    }
    if (!left) break;
    if (able.empty()) return "deadlock";
    const int r = able[random() % able.size()];
    const Action a = s.actions[static_cast<size_t>(r)][next[static_cast<size_t>(r)]++];
    auto& done = did[{a.stage, a.micro_batch}];
    if (!done.insert(a.kind).second) return "twice";
    const bool input = a.kind == ActionKind::kBackward || a.kind == ActionKind::kBackwardInput;
    if (a.kind == ActionKind::kForward && done.size() > 1) return "forward after backward";
    if (input && !done.contains(ActionKind::kForward)) return "backward before forward";
    if (a.kind == ActionKind::kBackwardWeight && !done.contains(ActionKind::kBackwardInput)) return "W before B";
    if (input && done.contains(ActionKind::kBackward) && done.contains(ActionKind::kBackwardInput)) return "B twice";
    if (a.kind == ActionKind::kForward) messages.insert({false, a.stage + 1, a.micro_batch});
    if (input) messages.insert({true, a.stage - 1, a.micro_batch});
  }
  for (int k = 0; k < stages; ++k) {
    for (int i = 0; i < s.micro_batches; ++i) {
      const auto& done = did[{k, i}];
      const bool whole = done.contains(ActionKind::kBackward);
      const bool parts = done.contains(ActionKind::kBackwardInput) && done.contains(ActionKind::kBackwardWeight);
      if (!done.contains(ActionKind::kForward) || !(whole || parts)) return "something is missing";
    }
  }
  return "";
}

struct Mutant {
  Schedule s;
  Random& random;
  std::vector<Action>& list(int r) { return s.actions[static_cast<size_t>(r)]; }
  size_t pick(size_t below) { return static_cast<size_t>(random() % below); }
};

// One way to break a schedule at action `i` of rank `r`. False where it does not apply.
struct Kind {
  const char* name;
  bool always_wrong;  // else the oracle says whether it matters
  std::function<bool(Mutant&, int r, size_t i)> apply;
};

const std::vector<Kind>& kinds() {
  using K = ActionKind;
  auto at = [](Mutant& m, int r, size_t i) -> Action& { return m.list(r)[i]; };
  static const std::vector<Kind> all = {
      {"drop an action", true,
       [](Mutant& m, int r, size_t i) {
         m.list(r).erase(m.list(r).begin() + static_cast<std::ptrdiff_t>(i));
         return true;
       }},
      {"do an action twice", true,
       [](Mutant& m, int r, size_t i) {
         const Action a = m.list(r)[i];
         m.list(r).insert(m.list(r).begin() + static_cast<std::ptrdiff_t>(i + m.pick(m.list(r).size() - i)), a);
         return true;
       }},
      {"swap neighbours", false,
       [](Mutant& m, int r, size_t i) {
         if (i == 0) return false;
         std::swap(m.list(r)[i], m.list(r)[i - 1]);
         return true;
       }},
      {"swap any two actions of a rank", false,
       [](Mutant& m, int r, size_t i) {
         const size_t j = m.pick(m.list(r).size());
         std::swap(m.list(r)[i], m.list(r)[j]);
         return i != j;
       }},
      {"move an action to the front", false,
       [](Mutant& m, int r, size_t i) {
         auto& list = m.list(r);
         std::rotate(list.begin(), list.begin() + static_cast<std::ptrdiff_t>(i),
                     list.begin() + static_cast<std::ptrdiff_t>(i) + 1);
         return i > 0;
       }},
      {"move an action to the end", false,
       [](Mutant& m, int r, size_t i) {
         auto& list = m.list(r);
         std::rotate(list.begin() + static_cast<std::ptrdiff_t>(i), list.begin() + static_cast<std::ptrdiff_t>(i) + 1,
                     list.end());
         return i + 1 < list.size();
       }},
      {"reverse a rank's list", true,
       [](Mutant& m, int r, size_t) {
         std::reverse(m.list(r).begin(), m.list(r).end());
         return true;
       }},
      {"another micro-batch", true,
       [at](Mutant& m, int r, size_t i) {
         at(m, r, i).micro_batch = (at(m, r, i).micro_batch + 1) % m.s.micro_batches;
         return m.s.micro_batches > 1;
       }},
      {"a micro-batch that there is not", true,
       [at](Mutant& m, int r, size_t i) {
         at(m, r, i).micro_batch = m.pick(2) == 0 ? -1 : m.s.micro_batches;
         return true;
       }},
      {"another stage", true,
       [at](Mutant& m, int r, size_t i) {
         at(m, r, i).stage = (at(m, r, i).stage + 1) % m.s.stages();
         return m.s.stages() > 1;
       }},
      {"a stage that there is not", true,
       [at](Mutant& m, int r, size_t i) {
         at(m, r, i).stage = m.pick(2) == 0 ? -1 : m.s.stages();
         return true;
       }},
      {"another kind", true,
       [at](Mutant& m, int r, size_t i) {
         Action& a = at(m, r, i);
         a.kind = static_cast<K>((static_cast<size_t>(a.kind) + 1 + m.pick(3)) % 4);
         return true;
       }},
      {"an action on another rank", true,
       [](Mutant& m, int r, size_t i) {
         const int to = static_cast<int>((static_cast<size_t>(r) + 1) % m.s.actions.size());
         const Action a = m.list(r)[i];
         m.list(r).erase(m.list(r).begin() + static_cast<std::ptrdiff_t>(i));
         m.list(to).insert(m.list(to).begin() + static_cast<std::ptrdiff_t>(m.pick(m.list(to).size() + 1)), a);
         return to != r;
       }},
      {"a backward pass whole and in parts", true,
       [](Mutant& m, int r, size_t i) {
         const Action a = m.list(r)[i];
         if (a.kind != K::kBackwardWeight) return false;
         m.list(r).insert(m.list(r).begin() + static_cast<std::ptrdiff_t>(i), {K::kBackward, a.stage, a.micro_batch});
         return true;
       }},
      {"a gradient of the weights before that of the input", true,
       [](Mutant& m, int r, size_t i) {
         auto& list = m.list(r);
         const Action a = list[i];
         if (a.kind != K::kBackwardWeight) return false;
         const auto b = std::find(list.begin(), list.end(), Action{K::kBackwardInput, a.stage, a.micro_batch});
         std::swap(list[i], *b);
         return true;
       }},
      {"all backward passes first", true,
       [](Mutant& m, int r, size_t) {
         std::stable_partition(m.list(r).begin(), m.list(r).end(),
                               [](const Action& a) { return a.kind != K::kForward; });
         return true;
       }},
      {"a later micro-batch's forward pass after an earlier one's backward", false,
       [](Mutant& m, int r, size_t i) {
         auto& list = m.list(r);
         if (list[i].kind != K::kForward) return false;
         for (size_t j = i + 1; j < list.size(); ++j) {
           if (list[j].kind == K::kForward) continue;
           std::rotate(list.begin() + static_cast<std::ptrdiff_t>(i),
                       list.begin() + static_cast<std::ptrdiff_t>(i) + 1,
                       list.begin() + static_cast<std::ptrdiff_t>(j) + 1);
           return true;
         }
         return false;
       }},
      {"another placement", true,
       [](Mutant& m, int r, size_t i) {
         int& rank = m.s.rank_of[static_cast<size_t>(m.list(r)[i].stage)];
         rank = (rank + 1) % m.s.ranks();
         return m.s.ranks() > 1;
       }},
      {"a stage on no rank", true,
       [](Mutant& m, int r, size_t i) {
         m.s.rank_of[static_cast<size_t>(m.list(r)[i].stage)] = m.pick(2) == 0 ? -1 : m.s.ranks();
         return true;
       }},
      {"a micro-batch more", true,
       [](Mutant& m, int, size_t) {
         ++m.s.micro_batches;
         return true;
       }},
  };
  return all;
}

std::vector<Schedule> bases() {
  std::vector<Schedule> all;
  for (const Recipe& recipe : recipes()) {
    for (int p : {1, 2, 3, 4}) {
      for (int m : {1, 4, 12}) {
        if (auto s = make(recipe.name, {p, m}); s.ok()) all.push_back(*s);
      }
    }
  }
  Random random(5);
  for (int k = 0; k < 40; ++k) all.push_back(random_schedule(random));
  return all;
}

TEST(PipelineMutants, ThatCannotRunOrComputeSomethingElseAreRejected) {
  Random random(20261126);
  std::map<std::string, std::map<Property, int>> rejected;
  std::map<std::string, int> harmless;
  std::map<Property, int> by_property;
  for (const Schedule& base : bases()) {
    ASSERT_TRUE(check(base).ok());
    for (const Kind& kind : kinds()) {
      for (int tries = 0; tries < 12; ++tries) {
        Mutant mutant{base, random};
        const int r = static_cast<int>(mutant.pick(base.actions.size()));
        if (base.actions[static_cast<size_t>(r)].empty()) continue;
        if (!kind.apply(mutant, r, mutant.pick(base.actions[static_cast<size_t>(r)].size()))) continue;
        CheckReport report;
        const Status status = check(mutant.s, {}, &report);
        const std::string where = std::string(kind.name) + ": " + base.name + " rank " + std::to_string(r);
        if (status.ok()) {
          EXPECT_FALSE(kind.always_wrong) << "passed: " << where;
          ++harmless[kind.name];
          for (uint64_t seed = 0; seed < 5; ++seed)
            EXPECT_EQ(play(mutant.s, seed), "") << "passed, but is wrong: " << where;
        } else {
          EXPECT_NE(report.property, Property::kNone);
          EXPECT_EQ(status.code(), Code::kInvalid);
          EXPECT_NE(status.message().find(name_of(report.property)), std::string::npos) << status.message();
          ++rejected[kind.name][report.property];
          ++by_property[report.property];
          if (report.property != Property::kShape) {
            EXPECT_NE(play(mutant.s, 1), "") << "rejected, but runs: " << where << ": " << status.message();
          }
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
    std::printf("%-70s rejected %4d, harmless %3d:%s\n", kind.name, total, harmless[kind.name], line.c_str());
    EXPECT_GE(total, 10) << kind.name;
  }
  for (const Property property : {Property::kShape, Property::kRange, Property::kOnce, Property::kComplete,
                                  Property::kOrder, Property::kDeadlock}) {
    EXPECT_GE(by_property[property], 20) << name_of(property);
  }
}

TEST(PipelineOracle, AgreesThatTheSchedulesAreRight) {
  for (const Schedule& schedule : bases()) {
    for (uint64_t seed = 0; seed < 5; ++seed) EXPECT_EQ(play(schedule, seed), "") << schedule.name;
  }
}

TEST(PipelineChecker, NamesTheCircleOfADeadlock) {
  Schedule s = *make("1f1b", {2, 2});           // rank 0: F0 F1 B0 B1, rank 1: F0 B0 F1 B1
  std::swap(s.actions[0][1], s.actions[0][2]);  // rank 0: F0 B0 F1 B1
  s.actions[1] = {{ActionKind::kForward, 1, 1},
                  {ActionKind::kBackward, 1, 1},
                  {ActionKind::kForward, 1, 0},
                  {ActionKind::kBackward, 1, 0}};
  CheckReport report;
  const Status deadlock = check(s, {}, &report);
  EXPECT_EQ(report.property, Property::kDeadlock);
  EXPECT_EQ(
      deadlock.message(),
      "pipeline schedule 1f1b: deadlock: rank 0 action 1: rank 0 waits in backward of micro-batch 0 on stage 0 for "
      "backward_input of micro-batch 0 on stage 1; rank 1 waits in forward of micro-batch 1 on stage 1 for forward "
      "of micro-batch 1 on stage 0");
}

TEST(PipelineChecker, CountsActivationsAndHoldsThemToABound) {
  const Schedule s = *make("1f1b", {4, 8});
  CheckReport report;
  EXPECT_TRUE(check(s, {.most_activations = 4}, &report).ok());
  EXPECT_EQ(report.peak, (std::vector<int>{4, 3, 2, 1}));
  const Status status = check(s, {.most_activations = 3}, &report);
  EXPECT_EQ(report.property, Property::kMemory);
  EXPECT_EQ(
      status.message(),
      "pipeline schedule 1f1b: memory: rank 0 action 3: forward of micro-batch 3 on stage 0 makes 4 activations, "
      "allowed are 3");
}

TEST(Pipeline, BadShapesAreRefusedWithWhatIsNeeded) {
  auto refused = [](std::string_view name, const Shape& shape, const std::string& text) {
    const auto made = make(name, shape);
    ASSERT_FALSE(made.ok()) << text;
    EXPECT_EQ(made.status().code(), Code::kInvalid);
    EXPECT_NE(made.status().message().find(text), std::string::npos) << made.status().message();
  };
  refused("zb", {4, 8},
          "there is no pipeline schedule \"zb\"; there are: gpipe 1f1b interleaved-1f1b zb-h1 zb-h2 zb-v");
  refused("1f1b", {0, 8}, "each must be 1 or more");
  refused("1f1b", {4, 0}, "each must be 1 or more");
  refused("1f1b", {4, 8, -1}, "each must be 1 or more");
  refused("1f1b", {4, 8, 2}, "takes 1 stage for each rank, not 2");
  refused("zb-v", {4, 8, 3}, "takes 2 stages for each rank, not 3");
  refused("interleaved-1f1b", {4, 8, 1}, "with 1 it is 1f1b");
  refused("interleaved-1f1b", {4, 9}, "9 is no multiple of 4");
  refused("1f1b", {1 << 20, 1 << 20}, "more than");
  refused("gpipe", {2147483647, 2147483647}, "more than");
  const Schedule s = *make("1f1b", {2, 2});
  EXPECT_EQ(simulate(s, {.forward = -1}).status().code(), Code::kInvalid);
  EXPECT_EQ(simulate(s, {.transfer = std::numeric_limits<double>::infinity()}).status().code(), Code::kInvalid);
  EXPECT_EQ(simulate(s, {}, 0).status().code(), Code::kInvalid);
}

TEST(Pipeline, SchedulesOfOneHashAreTheSame) {
  std::map<uint64_t, Schedule> seen;
  for (Schedule s : bases()) {
    s.name = "";
    const auto [it, fresh] = seen.emplace(s.hash(), s);
    if (!fresh) {
      EXPECT_EQ(it->second, s);
    }
    ASSERT_FALSE(s.actions[0].empty() && s.actions[1].empty());
    for (auto& list : s.actions) {
      if (list.size() < 2) continue;
      std::swap(list[0], list[1]);
      EXPECT_NE(s.hash(), it->first);
      break;
    }
  }
  EXPECT_GE(seen.size(), 60u);
}

// ---- text and traces ----

TEST(Trace, IsJsonWithEveryActionOnItsRanksTrackAndAnArrowForEveryMessage) {
  for (const Recipe& recipe : recipes()) {
    Schedule s = *make(recipe.name, {3, 6});
    s.name += " \"quoted\"\n";
    const Timing timing = *simulate(s, {}, 2);
    const auto trace = nlohmann::json::parse(chrome_trace(s, timing, 1000));
    std::map<std::string, int> phases;
    size_t of_a_step = 0, messages = 0, at = 0;
    for (const auto& list : s.actions) of_a_step += list.size();
    for (size_t k = 0; k + 1 < s.rank_of.size(); ++k) messages += s.rank_of[k] != s.rank_of[k + 1];
    for (const auto& event : trace.at("traceEvents")) {
      const std::string phase = event.at("ph");
      ++phases[phase];
      if (phase != "X") continue;
      const Span& span = timing.spans[at++];
      EXPECT_EQ(event.at("tid"), span.rank);
      EXPECT_EQ(event.at("cat"), name_of(span.action.kind));
      EXPECT_EQ(event.at("args").at("stage"), span.action.stage);
      EXPECT_EQ(event.at("args").at("micro_batch"), span.action.micro_batch);
      EXPECT_NEAR(event.at("ts"), span.begin * 1000, 1e-3);
      EXPECT_NEAR(event.at("dur"), (span.end - span.begin) * 1000, 1e-3);
    }
    EXPECT_EQ(phases["X"], static_cast<int>(2 * of_a_step)) << recipe.name;
    EXPECT_EQ(phases["M"], 4);
    EXPECT_EQ(phases["s"], static_cast<int>(2 * 2 * 6 * messages)) << recipe.name;  // both ways, in two steps
    EXPECT_EQ(phases["f"], phases["s"]);
  }
}

TEST(Draw, ShowsWhoComputesWhatWhen) {
  const Schedule s = *make("1f1b", {2, 3});
  EXPECT_EQ(draw(s, *simulate(s, {})),
            "rank 0 |F0 F1       B0--- F2 B1---    B2---\n"
            "rank 1 |   F0 B0--- F1 B1--- F2 B2---\n");
  const Schedule v = *make("zb-v", {2, 3});
  EXPECT_EQ(draw(v, *simulate(v, {})),
            "rank 0 |F0  F1  F2  F0b B0b W0b F1b B1b W1b B0  W0  F2b B2b W2b B1  W1  B2  W2\n"
            "rank 1 |    F0  F0b F1  F1b B0b W0b F2  B0  W0  F2b B1b W1b B1  B2b B2  W1  W2b W2\n");
  EXPECT_EQ(draw(s, *simulate(s, {}), 8), "rank 0 |F0 F1 ...\nrank 1 |   F0 ...\n");
  EXPECT_NE(draw(s, *simulate(s, {}), 0, true).find("\033[44;97mF0\033[0m "), std::string::npos);
}

}  // namespace
}  // namespace ringfold::test
