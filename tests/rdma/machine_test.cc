// The machine that stands for RDMA hardware is what the tests believe it to be.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace ringfold::test {
namespace {

std::string setup() {
  const char* name = std::getenv("RINGFOLD_TEST_RDMA");
  return name == nullptr ? "" : name;
}

std::vector<std::string> devices() {
  std::vector<std::string> names;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/class/infiniband", none))
    names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

TEST(RdmaMachine, HasTheDevicesOfItsSetUpAndTheirPortsAreActive) {
  if (setup().empty()) GTEST_SKIP() << "not started by tests/rdma/on-rdma";
  if (setup() == "none") {
    EXPECT_TRUE(devices().empty());
    EXPECT_FALSE(std::filesystem::exists("/dev/infiniband/uverbs0"));
    return;
  }
  if (setup() == "native") {
    EXPECT_FALSE(devices().empty());
    return;
  }
  const std::vector<std::string> pair = {"rxe0", "rxe1"}, one = {"rxe0"};
  ASSERT_EQ(devices(), setup() == "pair" ? pair : one);
  for (const auto& device : devices()) {
    const std::string port = "/sys/class/infiniband/" + device + "/ports/1/";
    EXPECT_EQ(first_line(port + "state"), "4: ACTIVE") << device;
    EXPECT_EQ(first_line(port + "gid_attrs/types/1"), "RoCE v2") << device;
    const bool second = device == "rxe1" || (setup() == "guests" && std::string(std::getenv("RDMA_VM_GUEST")) == "1");
    EXPECT_EQ(first_line(port + "gids/1"),
              "0000:0000:0000:0000:0000:ffff:0a4d:000" + std::string(second ? "2" : "1"));
  }
}

}  // namespace
}  // namespace ringfold::test
