// Who may include whom: the table of the design, enforced over the #include lines of the sources.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace ringfold::test {
namespace {

namespace fs = std::filesystem;
using Names = std::set<std::string>;

// A layer is a folder, as far as it tells parts apart. What it may include besides itself and the standard and system
// headers: other layers, and the headers of libraries by the first part of their path.
struct Rule {
  Names layers, libraries;
};

// "transport.h" and so on are single headers of include/ringfold that parts below the communicator may know.
const std::map<std::string, Rule>& rules() {
  const Names values = {"types", "status", "codec.h"},
              contract = {"types", "status", "codec.h", "counters.h", "transport.h", "memory.h"};
  auto with = [](Names a, const Names& b) {
    a.insert(b.begin(), b.end());
    return a;
  };
  static const std::map<std::string, Rule> all = {
      {"include", {contract, {}}},
      {"base", {contract, {"fmt", "spdlog", "openssl"}}},
      {"device", {with(contract, {"base"}), {"fmt"}}},
      {"schedule", {with(values, {"base"}), {}}},
      {"program", {with(values, {"base"}), {}}},
      {"algo", {with(values, {"schedule"}), {}}},
      {"model", {with(values, {"schedule", "base"}), {"fmt", "nlohmann"}}},
      {"kernels", {with(values, {"base"}), {"hwy"}}},
      {"transports/loopback", {with(contract, {"base", "kernels", "transports/shm"}), {"fmt"}}},
      {"transports/shm", {with(contract, {"base", "kernels"}), {"fmt"}}},
      {"transports/tcp", {with(contract, {"base"}), {"fmt", "boost"}}},
      {"transports/ucx", {with(contract, {"base"}), {"fmt", "ucp", "ucs"}}},
      {"transports/verbs", {with(contract, {"base"}), {"fmt", "infiniband"}}},
      {"transports/nvlink", {with(contract, {"base", "device"}), {"fmt"}}},
      {"transports/sim", {with(contract, {"base"}), {"fmt"}}},
      {"plan", {with(values, {"algo", "model", "schedule", "program", "base"}), {"fmt"}}},
      {"exec", {with(contract, {"program", "kernels", "base"}), {"fmt"}}},
      {"comm",
       {with(contract, {"include", "plan", "exec", "algo", "model", "schedule", "program", "kernels", "device",
                        "base", "transports/loopback", "transports/shm", "transports/tcp", "transports/ucx",
                        "transports/verbs", "transports/nvlink"}),
        {"fmt", "boost", "openssl"}}},
      {"sync", {with(contract, {"include"}), {}}},
      {"pipeline", {with(contract, {"include", "base"}), {"fmt"}}},
      {"train",
       {with(contract, {"include", "sync", "pipeline"}),
        {"fmt", "nlohmann", "CLI", "openssl", "torch", "ATen", "c10"}}},
      {"deploy", {with(values, {"train"}), {"fmt", "nlohmann", "CLI", "boost", "openssl"}}},
      {"capi", {with(contract, {"include"}), {}}},
      {"nccl", {with(contract, {"include"}), {"fmt"}}},
      {"python", {with(contract, {"include"}), {"pybind11"}}},
      {"torch", {with(contract, {"include"}), {"fmt", "torch", "ATen", "c10", "pybind11"}}},
  };
  return all;
}

std::string first_part(const std::string& path, int parts = 1) {
  size_t end = 0;
  for (int i = 0; i < parts && end != std::string::npos; ++i) end = path.find('/', end + (i > 0 ? 1 : 0));
  return path.substr(0, end);
}

// The layer of a source by its path from the root; "" when it is in none.
std::string layer_of(const std::string& path) {
  if (path.starts_with("src/")) return path.find('/', 4) == std::string::npos ? "" : first_part(path.substr(4));
  if (path.starts_with("transports/")) return first_part(path, 2);
  if (path.starts_with("kernels/")) return "kernels";
  if (path.starts_with("include/")) return "include";
  return "";
}

// What an include line of ours means: a layer, or one of the headers that rules name.
std::string target_of(const fs::path& root, const std::string& including, const std::string& included) {
  if (included.starts_with("ringfold/")) {
    const std::string name = included.substr(9);
    if (name == "types.h" || name == "status.h") return name.substr(0, name.size() - 2);
    if (name == "codec.h" || name == "counters.h" || name == "transport.h" || name == "memory.h") return name;
    return "include";
  }
  if (fs::exists(root / "src" / included)) return layer_of("src/" + included);
  if (fs::exists(root / included)) return layer_of(included);
  const auto beside = fs::path(including).parent_path() / included;
  return fs::exists(root / beside) ? layer_of(beside.lexically_normal().string()) : "";
}

bool is_system(const std::string& included) {
  const bool standard = included.find_first_of("./") == std::string::npos;  // <vector>
  static const Names kFolders = {"sys", "linux", "netinet", "arpa", "net", "asm", "bits"};
  const bool c = included.ends_with(".h") && included.find('/') == std::string::npos &&
                 !included.starts_with("hwloc");  // <unistd.h>
  return standard || c || kFolders.contains(first_part(included));
}

// What is wrong with the includes of the source at `path`, one line each.
std::vector<std::string> violations(const fs::path& root, const std::string& path, std::istream& text) {
  const std::string layer = layer_of(path);
  if (layer.empty()) return {path + " belongs to no layer"};
  const auto rule = rules().find(layer);
  if (rule == rules().end()) return {path + ": the table has no layer " + layer};
  std::vector<std::string> found;
  std::string line;
  for (int number = 1; std::getline(text, line); ++number) {
    const size_t hash = line.find_first_not_of(" \t");
    if (hash == std::string::npos || line[hash] != '#') continue;
    const size_t word = line.find("include", hash);
    const size_t open = line.find_first_of("\"<", hash);
    if (word == std::string::npos || open == std::string::npos || word > open) continue;
    const size_t close = line.find_first_of("\">", open + 1);
    if (close == std::string::npos) continue;
    const std::string included = line.substr(open + 1, close - open - 1);
    std::string why;
    if (line[open] == '<') {
      if (!is_system(included) && !rule->second.libraries.contains(first_part(included)))
        why = "a library that is not for it";
    } else {
      const std::string target = target_of(root, path, included);
      if (target.empty()) {
        if (!rule->second.libraries.contains(first_part(included))) why = "which is none of its sources";
      } else if (target != layer && !rule->second.layers.contains(target)) {
        why = "which is in " + target;
      }
    }
    if (!why.empty())
      found.push_back(path + ":" + std::to_string(number) + ": " + layer + " may not include " + included + ", " +
                      why);
  }
  return found;
}

fs::path source_root() { return RF_SOURCE_ROOT; }

TEST(Layers, IncludeOnlyWhatTheDesignAllows) {
  int files = 0;
  for (const char* folder : {"src", "include", "kernels", "transports"}) {
    for (const auto& entry : fs::recursive_directory_iterator(source_root() / folder)) {
      const auto extension = entry.path().extension();
      if (extension != ".h" && extension != ".hpp" && extension != ".cc" && extension != ".cu" && extension != ".cuh")
        continue;
      ++files;
      std::ifstream in(entry.path());
      for (const auto& v : violations(source_root(), fs::relative(entry.path(), source_root()).string(), in))
        ADD_FAILURE() << v;
    }
  }
  EXPECT_GT(files, 80);
}

TEST(Layers, ViolationsAreFound) {
  const std::pair<const char*, const char*> bad[] = {
      {"src/algo/made_up.cc", "#include \"exec/run.h\""},
      {"src/algo/made_up.cc", "#include \"plan/planner.h\""},
      {"src/schedule/made_up.cc", "  #  include \"algo/algo.h\""},
      {"src/schedule/made_up.h", "#include \"ringfold/transport.h\""},
      {"src/plan/made_up.cc", "#include \"exec/plan.h\""},
      {"src/plan/made_up.cc", "#include \"ringfold/communicator.h\""},
      {"src/exec/made_up.cc", "#include \"schedule/schedule.h\""},
      {"src/exec/made_up.cc", "#include \"transports/tcp/tcp.h\""},
      {"src/exec/made_up.cc", "#include \"comm/guard.h\""},
      {"src/model/made_up.cc", "#include \"algo/algo.h\""},
      {"src/sync/made_up.cc", "#include \"comm/impl.h\""},
      {"src/sync/made_up.cc", "#include <torch/torch.h>"},
      {"src/pipeline/made_up.cc", "#include \"comm/impl.h\""},
      {"src/pipeline/made_up.cc", "#include <torch/torch.h>"},
      {"src/comm/made_up.cc", "#include <torch/torch.h>"},
      {"src/capi/made_up.cc", "#include \"comm/impl.h\""},
      {"src/python/made_up.cc", "#include \"capi/capi.h\""},
      {"src/base/made_up.cc", "#include \"schedule/schedule.h\""},
      {"transports/tcp/made_up.cc", "#include \"transports/shm/shm.h\""},
      {"transports/shm/made_up.cc", "#include \"exec/engine.h\""},
      {"kernels/cpu/made_up.cc", "#include \"ringfold/transport.h\""},
      {"include/ringfold/made_up.h", "#include \"comm/impl.h\""},
      {"include/ringfold/made_up.h", "#include <fmt/format.h>"},
      {"src/deploy/made_up.cc", "#include <torch/script.h>"},
      {"src/train/made_up.cc", "#include \"deploy/api.h\""},
      {"src/nowhere/made_up.cc", ""},
      {"src/made_up.cc", ""},
  };
  for (const auto& [path, line] : bad) {
    std::istringstream text(line);
    EXPECT_EQ(violations(source_root(), path, text).size(), 1U) << path << ": " << line;
  }
  const std::pair<const char*, const char*> good[] = {
      {"src/algo/made_up.cc", "#include \"schedule/schedule.h\""},
      {"src/train/made_up.cc", "#include <torch/torch.h>"},
      {"src/exec/made_up.cc", "#include <sys/eventfd.h>"},
      {"src/exec/made_up.cc", "// #include \"comm/guard.h\""},
      {"include/ringfold/made_up.h", "#include \"ringfold/work.h\""},
  };
  for (const auto& [path, line] : good) {
    std::istringstream text(line);
    EXPECT_EQ(violations(source_root(), path, text), std::vector<std::string>()) << path;
  }
}

}  // namespace
}  // namespace ringfold::test
