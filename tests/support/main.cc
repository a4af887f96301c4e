// main() of every test program: GoogleTest, plus the rule that a log line at warning level or above fails the test that
// caused it unless the test said that it expects one (support/expect_log.h).
#include <gtest/gtest.h>

#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include "base/log.h"
#include "tests/support/expect_log.h"

namespace ringfold::test {
namespace {
std::mutex g_mutex;
std::vector<std::string> g_expected;    // substrings
std::vector<std::string> g_unexpected;  // lines

bool observe(log::Level, std::string_view line) {
  std::lock_guard lock(g_mutex);
  for (const auto& part : g_expected) {
    if (line.find(part) != std::string_view::npos) return false;
  }
  g_unexpected.emplace_back(line);
  return true;
}

class LogRule : public testing::EmptyTestEventListener {
  void OnTestEnd(const testing::TestInfo&) override {
    std::vector<std::string> lines;
    {
      std::lock_guard lock(g_mutex);
      lines.swap(g_unexpected);
      g_expected.clear();
    }
    for (const auto& line : lines) ADD_FAILURE() << "unexpected log line: " << line;
  }
};
}  // namespace

void expect_log(std::string part) {
  std::lock_guard lock(g_mutex);
  g_expected.push_back(std::move(part));
}

}  // namespace ringfold::test

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  ringfold::log::set_observer(ringfold::test::observe);
  testing::UnitTest::GetInstance()->listeners().Append(new ringfold::test::LogRule);
  return RUN_ALL_TESTS();
}
