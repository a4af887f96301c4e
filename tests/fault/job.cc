#include "tests/fault/job.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <thread>

#include "base/handshake.h"

namespace ringfold::chaos {
namespace {

namespace fs = std::filesystem;

std::string worker_program() {
  if (const char* path = std::getenv("RINGFOLD_CHAOS_WORKER")) return path;
  return fs::read_symlink("/proc/self/exe").parent_path() / "chaos_worker";
}

Event parse(const std::string& line) {
  const auto j = nlohmann::json::parse(line);
  Event e;
  e.kind = j.value("event", "");
  e.text = j.value("text", "");
  e.code = j.value("code", "");
  e.round = j.value("round", 0);
  e.rank = j.value("rank", -1);
  e.members = j.value("members", std::vector<int>());
  e.fds = j.value("fds", 0);
  e.segments = j.value("segments", 0);
  e.at = static_cast<double>(j.value("t", int64_t{0})) * 1e-9;
  return e;
}

}  // namespace

double now_s() { return std::chrono::duration<double>(base::Clock::now().time_since_epoch()).count(); }

namespace {
class StandstillWatch {
 public:
  StandstillWatch() : thread_([this] { watch(); }) {}
  ~StandstillWatch() {
    stopping_ = true;
    thread_.join();
  }
  double since(double begin) {
    std::lock_guard lock(mutex_);
    double sum = 0;
    for (const auto& [end, late] : stalls_) {
      if (end >= begin) sum += late + std::min(kGrace, kSteps * late);
    }
    return sum;
  }

 private:
  static constexpr double kTurn = 0.01, kLate = 0.02, kGrace = 0.4, kSteps = 4;
  void watch() {
    while (!stopping_) {
      const double begin = now_s();
      ::usleep(static_cast<useconds_t>(kTurn * 1e6));
      const double end = now_s(), late = end - begin - kTurn;
      if (late < kLate) continue;
      std::lock_guard lock(mutex_);
      stalls_.emplace_back(end, late);
    }
  }

  std::mutex mutex_;
  std::vector<std::pair<double, double>> stalls_;  // when each ended, and how long it was
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};
}  // namespace

double standstill_since(double since) {
  static StandstillWatch watch;
  return watch.since(since);
}

Job::Job(Options options) : options_(std::move(options)), ranks_(static_cast<size_t>(options_.size)) {
  standstill_since(0);  // watches from the first job on
  std::string pattern = fs::temp_directory_path() / "chaos-XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary directory");
  folder_ = pattern;
  if (!base::Key::generate()->save(folder_ + "/key").ok()) throw std::runtime_error("no key");
  for (int r = 0; r < options_.size; ++r) {
    if (std::find(options_.late.begin(), options_.late.end(), r) == options_.late.end()) start(r);
  }
}

Job::~Job() {
  for (auto& w : ranks_) {
    if (w.pid > 0 && w.status == kRunning) {
      ::kill(w.pid, SIGKILL);
      ::waitpid(w.pid, nullptr, 0);
    }
    if (w.events_fd >= 0) ::close(w.events_fd);
    if (w.stdin_fd >= 0) ::close(w.stdin_fd);
  }
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

void Job::start(int rank, const std::string& key) {
  auto of = [&](const std::map<int, std::string>& special, const std::string& usual) {
    auto it = special.find(rank);
    return it == special.end() ? usual : it->second;
  };
  const auto rendezvous = options_.rendezvous.empty() ? "dir:" + folder_ + "/meet" : options_.rendezvous;
  std::vector<std::string> arguments = {worker_program(),
                                        std::to_string(rank),
                                        std::to_string(options_.size),
                                        std::to_string(options_.seed),
                                        of(options_.rendezvouses, rendezvous),
                                        options_.transport,
                                        fmt::format("{}", options_.deadline_s)};
  if (auto it = options_.faults.find(rank); it != options_.faults.end()) arguments.push_back(it->second);
  std::vector<std::string> environment = {
      "RINGFOLD_KEY_FILE=" + (key.empty() ? of(options_.keys, folder_ + "/key") : key),
      fmt::format("RINGFOLD_TIMEOUT={}", options_.timeout_s),
      options_.large ? "RINGFOLD_LOG=debug" : "RINGFOLD_LOG=info", "TMPDIR=" + folder_, "HOME=" + folder_};
  if (options_.large) environment.insert(environment.end(), {"CHAOS_LARGE=1", "RINGFOLD_SLOT=8192"});
  for (const char* name : {"ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS", "UCX_TLS"}) {
    if (const char* value = std::getenv(name)) environment.push_back(fmt::format("{}={}", name, value));
  }
  auto pointers = [](std::vector<std::string>& strings) {
    std::vector<char*> result;
    for (auto& s : strings) result.push_back(s.data());
    result.push_back(nullptr);
    return result;
  };
  int events[2], input[2];
  if (::pipe2(events, O_CLOEXEC) != 0 || ::pipe2(input, O_CLOEXEC) != 0) throw std::runtime_error("no pipes");
  const auto log = fmt::format("{}/log-{}", folder_, rank);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, input[0], STDIN_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, events[1], STDOUT_FILENO);
  ::posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND,
                                     0600);
  Worker& w = ranks_[static_cast<size_t>(rank)];
  const int failed = ::posix_spawn(&w.pid, arguments[0].c_str(), &actions, nullptr, pointers(arguments).data(),
                                   pointers(environment).data());
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(events[1]);
  ::close(input[0]);
  w.events_fd = events[0];
  w.stdin_fd = input[1];
  if (failed != 0) throw std::runtime_error("cannot start " + arguments[0]);
}

void Job::read_events(int timeout_ms) {
  std::vector<pollfd> fds;
  std::vector<Worker*> of;
  for (auto& w : ranks_) {
    if (w.events_fd < 0) continue;
    fds.push_back({w.events_fd, POLLIN, 0});
    of.push_back(&w);
  }
  ::poll(fds.data(), fds.size(), timeout_ms);
  for (size_t i = 0; i < fds.size(); ++i) {
    if (fds[i].revents == 0) continue;
    Worker& w = *of[i];
    char buffer[65536];
    const auto n = ::read(w.events_fd, buffer, sizeof buffer);
    if (n <= 0) {
      ::close(w.events_fd);
      w.events_fd = -1;
      continue;
    }
    w.partial.append(buffer, static_cast<size_t>(n));
    size_t begin = 0;
    for (size_t end; (end = w.partial.find('\n', begin)) != std::string::npos; begin = end + 1) {
      w.lines.push_back(w.partial.substr(begin, end - begin));
      if (!w.lines.back().starts_with("{\"event\":\"call\"")) w.events.push_back(parse(w.lines.back()));
    }
    w.partial.erase(0, begin);
  }
}

void Job::reap() {
  for (auto& w : ranks_) {
    if (w.pid > 0 && w.status == kRunning && w.events_fd < 0) {  // having read all that it said
      int status = 0;
      if (::waitpid(w.pid, &status, WNOHANG) == w.pid) w.status = status;
    }
  }
}

bool Job::wait(double seconds, const std::function<bool()>& done) {
  const double until = now_s() + seconds;
  for (;;) {
    reap();
    if (done()) return true;
    if (now_s() >= until) return false;
    const bool any = std::any_of(ranks_.begin(), ranks_.end(), [](const Worker& w) { return w.events_fd >= 0; });
    if (!any) ::usleep(1000);  // they end; nothing tells us when
    read_events(10);
  }
}

void Job::signal(int rank, int number) { ::kill(pid(rank), number); }

void Job::ask_to_end() {
  for (auto& w : ranks_) {
    if (w.stdin_fd >= 0) ::close(std::exchange(w.stdin_fd, -1));
  }
}

bool Job::wait_for_exit(int rank, double seconds) {
  return wait(seconds, [&] { return !running(rank); });
}

const Event* Job::find(int rank, const std::string& kind, int round) const {
  for (const Event& e : events(rank)) {
    if (e.kind == kind && (round < 0 || e.round == round)) return &e;
  }
  return nullptr;
}

std::vector<std::string> Job::leftovers() const {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    const auto name = entry.path().filename().string();
    if (name != "key" && !name.starts_with("log-") && !name.starts_with("own-")) names.push_back(name);
  }
  return names;
}

std::string Job::logs() const {
  std::string text;
  for (int r = 0; r < options_.size; ++r) {
    const Worker& w = ranks_[static_cast<size_t>(r)];
    text += fmt::format("--- rank {} (process {}, {})\n", r, w.pid,
                        w.status == kRunning ? "running" : fmt::format("status {:#x}", w.status));
    constexpr size_t kMost = 40;
    const size_t first = w.lines.size() > kMost ? w.lines.size() - kMost : 0;
    for (size_t i = 0; i < w.lines.size(); ++i) {
      if (i >= first || !w.lines[i].starts_with("{\"event\":\"call\"")) text += w.lines[i] + "\n";
    }
    std::ifstream log(fmt::format("{}/log-{}", folder_, r));
    text.append(std::istreambuf_iterator<char>(log), {});
  }
  return text;
}

}  // namespace ringfold::chaos
