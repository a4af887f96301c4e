// Runs the built program `ringfold` (RINGFOLD_PROGRAM names it) as its users do: as a process.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace ringfold::test {

struct Outcome {
  int status = -1;  // 0 to 255, 128 + number for a signal, -1: it had to be killed at the time limit
  std::string out, err;
  std::vector<std::string> lines() const;  // of `out`
};

using Words = std::vector<std::string>;

// One process, its output kept. The time limit ends it and fails the wait.
class Command {
 public:
  // `environment`: "NAME=VALUE" beyond this process's own, from which all RINGFOLD_* are taken out; "NAME=" unsets.
  explicit Command(const Words& arguments, const Words& environment = {});
  Command(const Command&) = delete;
  Command& operator=(const Command&) = delete;
  ~Command();

  pid_t pid() const { return pid_; }
  void signal(int number) const;
  // Reads on until standard output holds `text`, so often. False at the time limit or the end of the output.
  bool wait_for(const std::string& text, int times = 1, double seconds = 20);
  const std::string& output() const { return outcome_.out; }  // standard output as far as it has been read
  Outcome wait(double seconds = 60);

 private:
  bool pump(double seconds);  // false: both streams have ended, or nothing came in time
  pid_t pid_ = -1;
  int out_ = -1, err_ = -1;
  Outcome outcome_;
};

// `ringfold ARGUMENTS`, start to end.
Outcome ringfold(const Words& arguments, const Words& environment = {});
std::string program();

// A new folder that is removed with the object.
class Folder {
 public:
  Folder();
  ~Folder();
  const std::string& path() const { return path_; }
  std::string write(const std::string& name, const std::string& text, int mode) const;  // the file's path
  std::vector<std::string> entries() const;

 private:
  std::string path_;
};

std::string read_file(const std::string& path);
bool alive(pid_t pid);  // not a zombie either
// Waits until it is not alive.
bool gone(pid_t pid, double seconds = 10);
int count(const std::string& text, const std::string& part);

}  // namespace ringfold::test
