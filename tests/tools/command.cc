#include "tests/tools/command.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

extern char** environ;  // NOLINT: POSIX's name

namespace ringfold::test {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_until(Clock::time_point at) { return std::chrono::duration<double>(at - Clock::now()).count(); }
Clock::time_point after(double seconds) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

std::vector<char*> pointers(const Words& words) {
  std::vector<char*> result;
  for (const auto& word : words) result.push_back(const_cast<char*>(word.c_str()));
  result.push_back(nullptr);
  return result;
}

}  // namespace

std::vector<std::string> Outcome::lines() const {
  std::vector<std::string> result;
  std::istringstream text(out);
  for (std::string line; std::getline(text, line);) result.push_back(line);
  return result;
}

Command::Command(const Words& arguments, const Words& environment) {
  Words variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text(*entry);
    const auto same_name = [&](const std::string& e) { return text.starts_with(e.substr(0, e.find('=') + 1)); };
    if (!text.starts_with("RINGFOLD_") && std::none_of(environment.begin(), environment.end(), same_name))
      variables.push_back(text);
  }
  for (const auto& entry : environment) {
    if (!entry.ends_with('=')) variables.push_back(entry);
  }
  const auto argv = pointers(arguments), envp = pointers(variables);
  std::array<int, 2> out{}, err{};
  if (::pipe2(out.data(), O_CLOEXEC) != 0 || ::pipe2(err.data(), O_CLOEXEC) != 0) return;
  pid_ = ::fork();
  if (pid_ == 0) {
    ::setpgid(0, 0);
    ::signal(SIGHUP, SIG_DFL);  // nohup has it ignored, and a shell cannot trap what was ignored when it started
    ::dup2(out[1], 1);
    ::dup2(err[1], 2);
    ::execvpe(argv[0], argv.data(), envp.data());
    ::_exit(127);
  }
  ::close(out[1]);
  ::close(err[1]);
  out_ = out[0];
  err_ = err[0];
}

Command::~Command() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  if (out_ >= 0) ::close(out_);
  if (err_ >= 0) ::close(err_);
}

void Command::signal(int number) const { ::kill(pid_, number); }

bool Command::pump(double seconds) {
  std::array<pollfd, 2> polls = {{{out_, POLLIN, 0}, {err_, POLLIN, 0}}};
  if (out_ < 0 && err_ < 0) return false;
  if (::poll(polls.data(), polls.size(), static_cast<int>(1000 * std::max(0.0, seconds))) <= 0) return false;
  for (auto& poll : polls) {
    if (poll.revents == 0) continue;
    std::array<char, 65536> buffer;  // NOLINT: written by read
    int& fd = poll.fd == out_ ? out_ : err_;
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got > 0) (&fd == &out_ ? outcome_.out : outcome_.err).append(buffer.data(), static_cast<size_t>(got));
    if (got > 0 || (got < 0 && errno == EINTR)) continue;
    ::close(fd);
    fd = -1;
  }
  return true;
}

bool Command::wait_for(const std::string& text, int times, double seconds) {
  const auto end = after(seconds);
  while (count(outcome_.out, text) < times) {
    if (!pump(seconds_until(end))) return false;
  }
  return true;
}

Outcome Command::wait(double seconds) {
  const auto end = after(seconds);
  while (pump(seconds_until(end))) {
  }
  int status = 0;
  pid_t done = 0;
  while ((done = ::waitpid(pid_, &status, WNOHANG)) == 0 && Clock::now() < end)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  if (done == 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, &status, 0);
  } else {
    outcome_.status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }
  pid_ = -1;
  return outcome_;
}

std::string program() {
  const char* path = std::getenv("RINGFOLD_PROGRAM");
  return path == nullptr ? "ringfold" : path;
}

Outcome ringfold(const Words& arguments, const Words& environment) {
  Words all = {program()};
  all.insert(all.end(), arguments.begin(), arguments.end());
  return Command(all, environment).wait();
}

Folder::Folder() : path_("/tmp/ringfold-test-XXXXXX") {
  if (::mkdtemp(path_.data()) == nullptr) std::abort();
}
Folder::~Folder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string Folder::write(const std::string& name, const std::string& text, int mode) const {
  const std::string path = path_ + "/" + name;
  std::ofstream(path) << text;
  ::chmod(path.c_str(), static_cast<mode_t>(mode));
  return path;
}

std::vector<std::string> Folder::entries() const {
  std::vector<std::string> result;
  for (const auto& entry : std::filesystem::directory_iterator(path_)) result.push_back(entry.path().filename());
  return result;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

bool alive(pid_t pid) {
  const std::string stat = read_file("/proc/" + std::to_string(pid) + "/stat");
  const auto close = stat.rfind(')');
  return close != std::string::npos && close + 2 < stat.size() && stat[close + 2] != 'Z' && stat[close + 2] != 'X';
}

bool gone(pid_t pid, double seconds) {
  for (const auto end = after(seconds); alive(pid);) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

int count(const std::string& text, const std::string& part) {
  int times = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++times;
  return times;
}

}  // namespace ringfold::test
