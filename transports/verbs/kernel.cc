#include "transports/verbs/kernel.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <system_error>

namespace ringfold::verbs {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder, none)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

std::string word_in(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word;
}

}  // namespace

std::vector<std::string> kernel_devices(const std::string& root) { return names_in(root + "/sys/class/infiniband"); }

Finding why_closed(const std::string& root, const std::string& device) {
  const std::string verbs = root + "/sys/class/infiniband_verbs";
  std::string node;
  for (const std::string& name : names_in(verbs)) {
    if (word_in(verbs + "/" + name + "/ibdev") == device) node = "/dev/infiniband/" + name;
  }
  if (node.empty()) return {"the kernel's module ib_uverbs is not loaded", "modprobe ib_uverbs"};
  if (::access((root + node).c_str(), F_OK) != 0) {
    return {node + " is missing, as it is in a container that was not given it",
            "start the container with --device /dev/infiniband; elsewhere `udevadm trigger` makes it"};
  }
  if (::access((root + node).c_str(), R_OK | W_OK) != 0) {
    return {node + " is not open to this user",
            fmt::format("chmod 666 {}, or add the user to its group (`ls -l {}`)", node, node)};
  }
  return {};
}

std::string interface_of(const std::string& root, const std::string& device, int port) {
  const std::string folder = root + "/sys/class/infiniband/" + device;
  for (const std::string& file : {fmt::format("{}/ports/{}/gid_attrs/ndevs/0", folder, port), folder + "/parent"}) {
    if (std::string name = word_in(file); !name.empty()) return name;
  }
  const auto names = names_in(folder + "/device/net");
  return names.size() == 1 ? names.front() : "";
}

int interface_mtu(const std::string& root, const std::string& name) {
  const std::string text = name.empty() ? "" : word_in(root + "/sys/class/net/" + name + "/mtu");
  if (text.empty() || text.size() > 6 || text.find_first_not_of("0123456789") != std::string::npos) return 0;
  return std::stoi(text);
}

}  // namespace ringfold::verbs
