#include "comm/config.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace ringfold::comm {
namespace {

std::string row(const Config& config, const std::string& name) {
  for (const auto& r : config.rows()) {
    if (r.name == name) return r.to_string();
  }
  return "no such row";
}

TEST(Config, EverySettingSaysWhereItsValueComesFrom) {
  auto config =
      Config::from_environment({{"RINGFOLD_TIMEOUT", "20"}, {"RINGFOLD_SLOT", "64K"}, {"RINGFOLD_LOG", ""}});
  ASSERT_TRUE(config.ok());
  config->tcp_streams = 4;
  EXPECT_EQ(row(*config, "RINGFOLD_TIMEOUT"), "RINGFOLD_TIMEOUT=20 (environment)");
  EXPECT_EQ(row(*config, "RINGFOLD_SLOT"), "RINGFOLD_SLOT=64K (environment)");
  EXPECT_EQ(row(*config, "RINGFOLD_TCP_STREAMS"), "RINGFOLD_TCP_STREAMS=4 (caller)");
  EXPECT_EQ(row(*config, "RINGFOLD_LOG"), "RINGFOLD_LOG=warn (default)");
  EXPECT_EQ(config->slot_bytes, 65536);
  EXPECT_EQ(config->timeout, 20.0);
}

TEST(Config, ABadValueIsRefusedWithItsNameItsTextAndWhatIsAllowed) {
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"RINGFOLD_TRANSPORT", "ethernet"},  {"RINGFOLD_TIMEOUT", "-1"},    {"RINGFOLD_TIMEOUT", "20s"},
      {"RINGFOLD_TIMEOUT", "nan"},         {"RINGFOLD_TCP_STREAMS", "0"}, {"RINGFOLD_TCP_STREAMS", "65"},
      {"RINGFOLD_DETERMINISTIC", "maybe"}, {"RINGFOLD_SLOT", "1"},        {"RINGFOLD_SLOT", "99999999999999999G"},
      {"RINGFOLD_TILE", "64KB"},           {"RINGFOLD_LAUNCHER", "pbs"},  {"RINGFOLD_LOG", "loud"}};
  for (const auto& [name, value] : bad) {
    auto config = Config::from_environment({{name, value}});
    ASSERT_FALSE(config.ok()) << name << "=" << value;
    EXPECT_EQ(config.status().code(), Code::kInvalid);
    for (const auto& part : {name, "\"" + value + "\"", std::string("it must be")}) {
      EXPECT_NE(config.status().message().find(part), std::string::npos) << config.status().message();
    }
  }
}

TEST(Config, ValuesThatRowsPrintAreReadBackUnchanged) {
  Config config;
  config.interfaces = {"eth0", "10.0.0.0/8"};
  config.deterministic = true;
  config.message_buffer = int64_t{3} << 30;
  config.timeout = 0.25;
  Environment environment;
  for (const auto& r : config.rows()) environment[r.name] = r.value;
  auto copy = Config::from_environment(environment);
  ASSERT_TRUE(copy.ok()) << copy.status().message();
  const auto a = config.rows(), b = copy->rows();
  for (size_t i = 0; i < a.size(); ++i) EXPECT_EQ(a[i].value, b[i].value) << a[i].name;
}

TEST(Config, WhatACallerSetsIsCheckedToo) {
  Config config;
  EXPECT_TRUE(config.check().ok());
  config.transport = "carrier pigeon";
  EXPECT_EQ(config.check().code(), Code::kInvalid);
}

TEST(Config, UnknownNamesAreIgnored) {
  auto config = Config::from_environment({{"RINGFOLD_TIMEOT", "20"}, {"RINGFOLDER", "1"}});
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->timeout.source(), Source::kDefault);
}

}  // namespace
}  // namespace ringfold::comm
