// The text of RINGFOLD_ALGORITHM: what it means and what is refused, with words that help.
#include <gtest/gtest.h>

#include "tests/model/support.h"

namespace ringfold::model {
namespace {

using C = Collective;

Result<std::vector<Rule>> parse(std::string_view text) { return parse_override(text, algo::algorithms_for); }

TEST(Override, GoodTextsMeanTheirRules) {
  const struct {
    const char* text;
    std::vector<Rule> rules;
  } cases[] = {
      {"", {}},
      {"   ", {}},
      {"auto", {{.algorithm = "auto"}}},
      {"ring", {{.algorithm = "ring"}}},
      {" ring , lanes=4 ", {{.algorithm = "ring", .lanes = 4}}},
      {"broadcast:tree", {{.collective = C::kBroadcast, .algorithm = "tree"}}},
      {"all_reduce:4k-:ring,lanes=2", {{C::kAllReduce, 4096, kNoLimit, "ring", 2}}},
      {"all_reduce:0-7:oneshot", {{C::kAllReduce, 0, 7, "oneshot", 0}}},
      {"all_reduce : 1K - 2M : direct", {{C::kAllReduce, 1024, 2 << 20, "direct", 0}}},
      {"all_reduce:1g-17179869183g:ring", {{C::kAllReduce, 1 << 30, 17179869183UL << 30, "ring", 0}}},
      {"all_reduce:0-4k:oneshot;all_reduce:4k-:ring,lanes=2;broadcast:tree",
       {{C::kAllReduce, 0, 4096, "oneshot", 0},
        {C::kAllReduce, 4096, kNoLimit, "ring", 2},
        {.collective = C::kBroadcast, .algorithm = "tree"}}},
      {"tree;all_reduce:64k-:auto", {{.algorithm = "tree"}, {C::kAllReduce, 65536, kNoLimit, "auto", 0}}},
  };
  for (const auto& [text, rules] : cases) {
    const auto parsed = parse(text);
    ASSERT_TRUE(parsed.ok()) << text << ": " << parsed.status().message();
    EXPECT_EQ(*parsed, rules) << text;
  }
}

TEST(Override, BadTextsAreRefusedWithTheReason) {
  const struct {
    const char* text;
    const char* part;  // of the message
  } cases[] = {
      {"rings", "no algorithm \"rings\"; there are ring, tree, "},
      {"broadcast:ring",
       "no algorithm \"ring\" for broadcast; there are tree, direct, hierarchical, chain, and auto"},
      {"allreduce:ring", "no collective \"allreduce\""},
      {":ring", "no collective \"\""},
      {"all_reduce:", "no algorithm \"\" for all_reduce"},
      {"ring;", "rule \"\""},
      {";ring", "rule \"\""},
      {"ring;;tree", "rule \"\""},
      {"all_reduce:0-4k:oneshot:1", "more parts"},
      {"all_reduce:4k:ring", "no range of sizes"},
      {"all_reduce:-4k:ring", "no range of sizes"},
      {"all_reduce:0-4x:ring", "no range of sizes"},
      {"all_reduce:0-4kb:ring", "no range of sizes"},
      {"all_reduce:0-1-2:ring", "no range of sizes"},
      {"all_reduce:a-b:ring", "no range of sizes"},
      {"all_reduce:0x10-0x20:ring", "no range of sizes"},
      {"all_reduce:0-99999999999999999999:ring", "no range of sizes"},
      {"all_reduce:0-17179869184g:ring", "no range of sizes"},
      {"all_reduce:4k-4k:ring", "is empty"},
      {"all_reduce:8k-4k:ring", "is empty"},
      {"ring,lanes=0", "only ,lanes=1 to ,lanes=4"},
      {"ring,lanes=5", "only ,lanes=1 to ,lanes=4"},
      {"ring,lanes=", "only ,lanes=1 to ,lanes=4"},
      {"ring,lanes=12", "only ,lanes=1 to ,lanes=4"},
      {"ring,2", "only ,lanes=1 to ,lanes=4"},
      {"ring,lanes=2,lanes=2", "only ,lanes=1 to ,lanes=4"},
      {"auto,lanes=2", "auto chooses the lanes itself"},
      {"all_reduce:ring;tree;broadcast:0-:ring", "rule \"broadcast:0-:ring\""},
  };
  for (const auto& [text, part] : cases) {
    const auto parsed = parse(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_EQ(parsed.status().code(), Code::kInvalid);
    EXPECT_NE(parsed.status().message().find(part), std::string::npos) << text << ": " << parsed.status().message();
    EXPECT_EQ(parsed.status().message().find("RINGFOLD_ALGORITHM"), 0u);
  }
}

TEST(Override, AnyTextGivesRulesOrAnError) {
  holds("from the characters of the grammar", [] {
    const auto text = *rc::gen::container<std::string>(rc::gen::elementOf(std::string(":;,-=04kMg ringlaes_")));
    const auto parsed = parse(text);
    RC_ASSERT(parsed.ok() || !parsed.status().message().empty());
  });
  holds("written rules are read", [] {
    const auto collective = collective_of(*rc::gen::inRange(0, kCollectives));
    Rule rule{.collective = collective, .algorithm = *rc::gen::elementOf(algo::algorithms_for(collective))};
    rule.from = *rc::gen::inRange<uint64_t>(0, 1UL << 40);
    rule.to = rule.from + *rc::gen::inRange<uint64_t>(1, 1UL << 40);
    rule.lanes = *rc::gen::inRange(1, 5);
    const std::string text = std::string(name_of(collective)) + ":" + std::to_string(rule.from) + "-" +
                             std::to_string(rule.to) + ":" + rule.algorithm + ",lanes=" + std::to_string(rule.lanes);
    const auto parsed = parse(text);
    RC_ASSERT(parsed.ok());
    RC_ASSERT(*parsed == std::vector{rule});
  });
}

}  // namespace
}  // namespace ringfold::model
