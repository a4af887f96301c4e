// The program ringfold-train, as its users start it: one process per rank.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace ringfold::train {

using Json = nlohmann::json;
using Strings = std::vector<std::string>;

inline const char* const kData = "/usr/share/datasets/fashion-mnist";

class Program : public testing::Test {
 protected:
  Program() {
    std::string name = std::filesystem::temp_directory_path() / "ringfold-train-XXXXXX";
    dir_ = mkdtemp(name.data());
    std::ofstream(path("key")) << "0123456789abcdef0123456789abcdef";
    std::filesystem::permissions(path("key"), std::filesystem::perms::owner_read);
  }
  ~Program() override {
    for (pid_t pid : running_) {
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
    std::filesystem::remove_all(dir_);
  }

  std::string path(const std::string& name) const { return dir_ + "/" + name; }

  std::string text(const std::string& name) const {
    std::stringstream all;
    all << std::ifstream(path(name)).rdbuf();
    return all.str();
  }

  // Rank r's output goes to the file "out<r>".
  void start(int ranks, const Strings& args) {
    for (int r = 0; r < ranks; ++r) start_rank(r, ranks, args);
  }
  // `again`: in the place of one that was killed; its output to "again<r>".
  void start_rank(int r, int ranks, Strings args, bool again = false) {
    args.insert(args.begin(), std::getenv("RINGFOLD_TRAIN_PROGRAM"));
    const pid_t pid = fork();
    ASSERT_GE(pid, 0);
    if (pid > 0) return running_.push_back(pid);
    const std::string out = (again ? "again" : "out") + std::to_string(r);
    if (!freopen(path(out).c_str(), "w", stdout) || dup2(1, 2) < 0) _exit(126);
    setenv("RINGFOLD_RANK", std::to_string(r).c_str(), 1);
    setenv("RINGFOLD_SIZE", std::to_string(ranks).c_str(), 1);
    setenv("RINGFOLD_RENDEZVOUS", ("dir:" + dir_).c_str(), 1);
    setenv("RINGFOLD_KEY_FILE", path("key").c_str(), 1);
    setenv("RINGFOLD_TIMEOUT", "60", 1);
    if (again) setenv("RINGFOLD_RESTARTED", "1", 1);
    std::vector<char*> argv;
    for (auto& a : args) argv.push_back(a.data());
    argv.push_back(nullptr);
    execv(argv[0], argv.data());
    _exit(127);
  }

  // Exit codes, or minus the signal; a program that has not ended in time is killed.
  std::vector<int> wait_all(int seconds = 200) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
    std::vector<int> codes;
    for (pid_t pid : std::exchange(running_, {})) {
      int status = 0;
      while (waitpid(pid, &status, WNOHANG) == 0) {
        if (std::chrono::steady_clock::now() > until) kill(pid, SIGKILL);
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
      codes.push_back(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
    }
    return codes;
  }

  // `cut`: whoever writes it may have been stopped, or still be writing, in the middle of a line.
  std::vector<Json> log(const std::string& name, bool cut = false) const {
    std::vector<Json> events;
    std::ifstream in(path(name));
    for (std::string line; std::getline(in, line);) {
      if (cut && !Json::accept(line)) continue;
      events.push_back(Json::parse(line));
    }
    return events;
  }
  // Waits until the log has come so far.
  bool logged(const std::string& name, size_t step, double seconds) const {
    const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    for (;;) {
      for (const auto& event : log(name, true)) {
        if (event["event"] == "step" && event["step"].get<size_t>() >= step) return true;
      }
      if (std::chrono::steady_clock::now() > until) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

  std::string dir_;
  std::vector<pid_t> running_;
};

class RealData : public Program {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kData)) GTEST_SKIP() << kData << " is missing: install dataset-fashion-mnist";
  }
};

}  // namespace ringfold::train
