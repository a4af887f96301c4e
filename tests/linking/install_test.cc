// What `meson install` puts into a prefix is enough to build and run programs with each build system; and the shared
// library exports what it promises, no more and no less.
#include <fnmatch.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <regex>
#include <set>
#include <sstream>

#include "tests/tools/command.h"

namespace ringfold::test {
namespace {

namespace fs = std::filesystem;

fs::path source_root() { return RF_SOURCE_ROOT; }
std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : value;
}
bool have(const char* program) {
  return Command({"sh", "-c", std::string("command -v ") + program}).wait().status == 0;
}

// An installation in a folder of its own: not where it was configured to lie, as after copying it to other hosts.
class Installed : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new Folder;
    const auto result = Command({"meson", "install", "-C", environment("RINGFOLD_BUILD"), "--no-rebuild", "--quiet",
                                 "--destdir", folder_->path() + "/stage"})
                            .wait(120);
    ASSERT_EQ(result.status, 0) << result.out << result.err;
    // A place that differs from the configured one by more than what stands before it.
    fs::rename(folder_->path() + "/stage" + environment("RINGFOLD_PREFIX"), prefix());
  }
  static void TearDownTestSuite() {
    delete folder_;
    folder_ = nullptr;
  }
  static fs::path prefix() { return folder_->path() + "/prefix"; }
  static fs::path libdir() { return prefix() / environment("RINGFOLD_LIBDIR"); }
  static std::string tool() { return prefix() / "bin/ringfold"; }

  // Compiler and linker flags as pkg-config tells them for the place where the files are now.
  static std::string flags() {
    const auto result =
        Command({"pkg-config", "--define-variable=prefix=" + prefix().string(), "--cflags", "--libs", "ringfold"},
                {"PKG_CONFIG_PATH=" + (libdir() / "pkgconfig").string()})
            .wait();
    EXPECT_EQ(result.status, 0) << result.err;
    return result.out.substr(0, result.out.find('\n')) + " -Wl,-rpath," + libdir().string();
  }

  // sh -c SCRIPT in a new folder, which it returns.
  static void build(const Folder& folder, const std::string& script) {
    const auto result = Command({"sh", "-ec", "cd " + folder.path() + "\n" + script}).wait(120);
    ASSERT_EQ(result.status, 0) << result.out << result.err;
  }

  static void check_average(const fs::path& program) {
    const auto result = Command({tool(), "run", "-n", "4", "--", program.string()}).wait();
    EXPECT_EQ(result.status, 0) << result.err;
    EXPECT_EQ(result.err, "");
    auto lines = result.lines();
    std::sort(lines.begin(), lines.end());
    EXPECT_EQ(lines, (Words{"[0] rank 0 of 4: 2.5", "[1] rank 1 of 4: 2.5", "[2] rank 2 of 4: 2.5",
                            "[3] rank 3 of 4: 2.5"}));
  }
  static void check_ring(const fs::path& program) {
    const auto result = Command({tool(), "run", "-n", "4", "--", program.string()}).wait();
    EXPECT_EQ(result.status, 0) << result.err;
    EXPECT_EQ(result.err, "");
    EXPECT_EQ(result.lines().size(), 7U) << result.out;  // a title and six sizes
  }

 private:
  static Folder* folder_;
};
Folder* Installed::folder_ = nullptr;

// Debian's packages are built apart, and refuse a file that nobody takes: this is seen here first.
TEST_F(Installed, EveryFileBelongsToOnePackageOfDebian) {
  std::map<std::string, Words> patterns;  // of a package
  for (const auto& file : fs::directory_iterator(source_root() / "tools/debian")) {
    if (file.path().extension() != ".install") continue;
    std::ifstream lines(file.path());
    for (std::string line; std::getline(lines, line);) patterns[file.path().stem()].push_back(line);
  }
  const auto covers = [](const std::string& pattern, const fs::path& file) {
    for (fs::path p = file; p.has_relative_path(); p = p.parent_path()) {
      if (::fnmatch(pattern.c_str(), p.c_str(), FNM_PATHNAME) == 0) return true;  // the file, or a folder it is in
    }
    return false;
  };
  std::set<std::string> used;
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(prefix())) {
    if (entry.is_directory()) continue;
    ++files;
    const fs::path file = "usr" / entry.path().lexically_relative(prefix());
    Words takers;
    for (const auto& [package, of_it] : patterns) {
      for (const auto& pattern : of_it) {
        if (!covers(pattern, file)) continue;
        takers.push_back(package);
        used.insert(pattern);
      }
    }
    EXPECT_EQ(takers.size(), 1U) << file << " is in: " << ::testing::PrintToString(takers);
  }
  EXPECT_GT(files, 10);
  for (const char* always : {"libringfold0", "libringfold-dev", "libringfold-nccl0", "ringfold-tools"}) {
    EXPECT_TRUE(patterns.contains(always)) << always;
    for (const auto& pattern : patterns[always]) EXPECT_TRUE(used.contains(pattern)) << always << ": " << pattern;
  }
}

TEST_F(Installed, PkgConfigBuildsTheExamplesWithoutAWarning) {
  const Folder folder;
  const std::string examples = (source_root() / "tools/examples").string(),
                    strict = " -Wall -Wextra -Wpedantic -Werror ";
  build(folder, "gcc -std=c11" + strict + examples + "/ring.c -o ring " + flags() + "\ng++ -std=c++20" + strict +
                    examples + "/average.cc -o average " + flags());
  check_ring(folder.path() + "/ring");
  check_average(folder.path() + "/average");
}

TEST_F(Installed, FindPackageOfCMakeBuildsTheExamples) {
  if (!have("cmake")) GTEST_SKIP() << "no cmake here (Debian: cmake)";
  const Folder folder;
  build(folder, "cmake -S " + (source_root() / "tools/examples").string() +
                    " -B . -DCMAKE_PREFIX_PATH=" + prefix().string() +
                    " >log 2>&1 || { cat log; exit 1; }\ncmake --build . >log 2>&1 || { cat log; exit 1; }");
  check_ring(folder.path() + "/ring");
  check_average(folder.path() + "/average");
}

TEST_F(Installed, CMakeRefusesAVersionThatIsNotCompatible) {
  if (!have("cmake")) GTEST_SKIP() << "no cmake here (Debian: cmake)";
  for (const auto& [version, found] :
       {std::pair("0.1", true), {"0.1.0", true}, {"0", true}, {"0.2", false}, {"0.0", false}, {"1.0", false}}) {
    const Folder folder;
    folder.write("CMakeLists.txt",
                 std::string("cmake_minimum_required(VERSION 3.20)\nproject(p C)\nfind_package(Ringfold ") + version +
                     ")\nmessage(STATUS \"found: ${Ringfold_FOUND}\")\n",
                 0600);
    const auto result = Command({"cmake", "-S", folder.path(), "-B", folder.path() + "/build",
                                 "-DCMAKE_PREFIX_PATH=" + prefix().string()})
                            .wait();
    EXPECT_EQ(count(result.out, found ? "found: 1" : "found: 0"), 1) << version << result.out << result.err;
  }
}

TEST_F(Installed, MesonFindsItAsADependency) {
  const Folder folder;
  build(folder,
        "cp " + (source_root() / "tools/examples/average.cc").string() + " . && cat >meson.build <<'END'\n" +
            "project('user', 'cpp', default_options: ['cpp_std=c++20'])\n"
            "executable('average', 'average.cc', dependencies: dependency('ringfold'))\nEND\n"
            "sed 's,^prefix=.*,prefix=" +
            prefix().string() + ",' " + (libdir() / "pkgconfig/ringfold.pc").string() +
            " >ringfold.pc\n"
            "PKG_CONFIG_PATH=$PWD meson setup build >log 2>&1 && ninja -C build >>log 2>&1 || { cat log; exit 1; }");
  check_average(folder.path() + "/build/average");
}

TEST_F(Installed, TheHeadersStandAloneInEveryLanguageVersion) {
  const Folder folder;
  const std::string include =
      " -I" + (prefix() / "include").string() + " -Wall -Wextra -Wpedantic -Werror -fsyntax-only ";
  std::string script;
  for (const char* standard : {"c99", "c11", "c17"})
    script += std::string("echo '#include <ringfold/ringfold.h>' | gcc -xc -std=") + standard + include + "-\n";
  for (const char* standard : {"c++11", "c++20"})
    script += std::string("echo '#include <ringfold/ringfold.h>' | g++ -xc++ -std=") + standard + include + "-\n";
  for (const auto& header : fs::directory_iterator(prefix() / "include/ringfold"))
    script += "echo '#include <ringfold/" + header.path().filename().string() + ">' | g++ -xc++ -std=c++20" +
              include + "-\n";
  build(folder, script);
  const auto old =
      Command({"sh", "-c", "echo '#include <ringfold/ringfold.hpp>' | g++ -xc++ -std=c++17" + include + "-"}).wait();
  EXPECT_NE(old.status, 0);
  EXPECT_GT(count(old.err, "C++20"), 0) << old.err;
}

std::set<std::string> words_of(const fs::path& path) {
  std::istringstream text(read_file(path));
  std::set<std::string> words;
  for (std::string word; text >> word;) words.insert(word);
  return words;
}

// The list is the ABI: a name that goes from it, or changes its meaning, takes a new soname.
TEST_F(Installed, TheLibraryExportsTheListedCFunctionsAndOtherwiseOnlyCpp) {
  const std::string library = (libdir() / "libringfold.so").string();
  const auto listed = words_of(source_root() / "src/capi/symbols.txt");
  EXPECT_GT(listed.size(), 60U);
  const auto table = Command({"sh", "-c", "nm -D --defined-only " + library + " | awk '{print $3}'"}).wait();
  ASSERT_EQ(table.status, 0) << table.err;
  std::set<std::string> exported;
  for (auto name : table.lines()) {
    name = name.substr(0, name.find('@'));
    if (name.starts_with("ringfold_")) {
      exported.insert(name);
    } else if (name != "RINGFOLD_0") {
      EXPECT_TRUE(std::regex_search(name, std::regex("^_Z(N|NK|T[IVS]N)8ringfold"))) << name << " is exported";
    }
  }
  EXPECT_EQ(exported, listed);
  // The header declares the same ones.
  const std::string header = read_file((prefix() / "include/ringfold/ringfold.h").string());
  std::set<std::string> declared;
  const std::regex function("RINGFOLD_C_API[^;(]*\\b(ringfold_\\w+)\\(");
  for (std::sregex_iterator it(header.begin(), header.end(), function), end; it != end; ++it)
    declared.insert((*it)[1]);
  EXPECT_EQ(declared, listed);
}

TEST_F(Installed, TheLibraryCarriesItsSonameAndNeedsNoPath) {
  const auto dynamic = Command({"readelf", "-d", (libdir() / "libringfold.so").string()}).wait();
  EXPECT_EQ(count(dynamic.out, "Library soname: [libringfold.so.0]"), 1) << dynamic.out;
  EXPECT_EQ(count(dynamic.out, "RUNPATH"), 0) << dynamic.out;
  EXPECT_TRUE(fs::is_symlink(libdir() / "libringfold.so"));
  EXPECT_TRUE(fs::is_symlink(libdir() / "libringfold.so.0"));
}

}  // namespace
}  // namespace ringfold::test
