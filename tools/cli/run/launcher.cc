// `ringfold run`: starts the ranks of a job, passes their output and this process's signals on, and ends all when one
// fails.
//
// One thread in one poll loop; signals arrive on a descriptor. Each rank leads a process group, so that what it
// started goes when it goes. Two things make sure that nothing survives this process, whatever ends it: the kernel
// kills the ranks with it, and a guard process (guard.h) kills their groups and removes the job's folder. On other
// hosts the end of the connection does the same (remote.h).
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "base/clock.h"
#include "comm/config.h"
#include "comm/rendezvous.h"
#include "tools/cli/cli.h"
#include "tools/cli/run/binding.h"
#include "tools/cli/run/guard.h"
#include "tools/cli/run/hosts.h"
#include "tools/cli/run/output.h"
#include "tools/cli/run/process.h"
#include "tools/cli/run/remote.h"

namespace ringfold::cli {
namespace {

using base::Clock;
using base::TimePoint;

constexpr int kExitTimeout = 124;  // as timeout(1)

sigset_t watched_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int s : {SIGCHLD, SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2}) ::sigaddset(&set, s);
  return set;
}

class Job {
 public:
  Job(const JobOptions& options, std::vector<Host> hosts, std::vector<Seat> seats, JobGuard* guard,
      std::string folder)
      : options_(options),
        hosts_(std::move(hosts)),
        seats_(std::move(seats)),
        guard_(guard),
        folder_(std::move(folder)) {}
  ~Job() {
    for (Rank& rank : ranks_) {
      if (rank.control >= 0) ::close(rank.control);
    }
    if (signals_ >= 0) ::close(signals_);
  }

  Status start();
  int supervise();

 private:
  struct Rank {
    pid_t pid = -1;
    int host = 0;
    int control = -1;  // of a rank on another host: see remote.h
    bool running = false;
  };

  Status start_rank(int r, bool again = false);
  void start_all_again();
  std::vector<std::string> job_variables(int r) const;
  void on_signal(int signal);
  void reap();
  void on_end(int r, int status);
  void send_signal(const Rank& rank, int signal) const;
  void signal_all(int signal);
  void end_all(int signal);
  void on_time();
  int wait_ms() const;
  int running() const;
  template <typename... A>
  void say(fmt::format_string<A...> format, A&&... a) const {
    if (!options_.quiet) fmt::print(stderr, "ringfold run: {}\n", fmt::format(format, std::forward<A>(a)...));
  }

  const JobOptions& options_;
  const std::vector<Host> hosts_;
  const std::vector<Seat> seats_;
  JobGuard* const guard_;
  const std::string folder_;
  std::string key_text_, rendezvous_;
  std::unique_ptr<comm::RendezvousServer> server_;
  int signals_ = -1;
  std::vector<Rank> ranks_;
  std::vector<std::vector<bool>> shares_;  // by local rank: processors; empty: unbound
  std::vector<LineStream> streams_;
  bool one_did_well_ = false;
  bool goes_on() const {
    return options_.keep_going || options_.elastic || (options_.restarts > 0 && !options_.restart_all);
  }
  int restarts_ = 0;           // so far
  bool restarting_ = false;    // all, when the last has ended
  std::optional<int> result_;  // the exit status, decided by the first failure
  bool ending_ = false;        // the ranks have been asked to end
  bool killed_ = false;        // ... and told to
  int passed_on_ = 0;          // a signal from outside
  TimePoint stop_at_ = TimePoint::max(), kill_at_ = TimePoint::max(), drain_until_ = TimePoint::max();
};

Status Job::start() {
  const sigset_t wanted = watched_signals();
  signals_ = ::signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK);
  if (signals_ < 0) return Status(Code::kIo, fmt::format("signalfd: {}", std::strerror(errno)));

  const auto key = base::Key::generate();
  if (!key.ok()) return key.status();
  RINGFOLD_TRY(key->save(folder_ + "/key"));
  key_text_ = key->text();
  bool elsewhere = false;
  for (const Seat& seat : seats_) elsewhere |= !hosts_[static_cast<size_t>(seat.host)].local;
  if (elsewhere) {
    std::string address = options_.address;
    if (address.empty()) {
      auto found = meeting_address(hosts_);
      if (!found.ok()) return found.status();
      address = *found;
    }
    auto server = comm::RendezvousServer::start({address, 0, 0, static_cast<int>(seats_.size()), false}, *key);
    if (!server.ok()) return server.status();
    server_ = *std::move(server);
    rendezvous_ = server_->address();
  } else {
    rendezvous_ = "dir:" + folder_ + "/meet";
    ::mkdir((folder_ + "/meet").c_str(), 0700);
  }
  if (options_.timeout_s > 0) stop_at_ = Clock::now() + base::duration_of(options_.timeout_s);
  ranks_.resize(seats_.size());
  int here = 0;
  for (const Seat& seat : seats_) here += hosts_[static_cast<size_t>(seat.host)].local;
  if (options_.bind) shares_ = share_processors(here);
  for (size_t r = 0; r < seats_.size(); ++r) RINGFOLD_TRY(start_rank(static_cast<int>(r)));
  return {};
}

// What makes a process a rank of this job. RINGFOLD_LAUNCHER, as a batch system's variables may be there as well.
std::vector<std::string> Job::job_variables(int r) const {
  const Seat& seat = seats_[static_cast<size_t>(r)];
  const Host& host = hosts_[static_cast<size_t>(seat.host)];
  std::vector<std::string> result = {fmt::format("RINGFOLD_RANK={}", r),
                                     fmt::format("RINGFOLD_SIZE={}", seats_.size()),
                                     fmt::format("RINGFOLD_LOCAL_RANK={}", seat.local_rank),
                                     fmt::format("RINGFOLD_LOCAL_SIZE={}", seat.local_size),
                                     "RINGFOLD_RENDEZVOUS=" + rendezvous_,
                                     "RINGFOLD_LAUNCHER=ringfold"};
  if (!options_.hosts.empty()) result.push_back("RINGFOLD_HOST_NAME=" + host.name);
  if (host.local) result.push_back("RINGFOLD_KEY_FILE=" + folder_ + "/key");
  return result;
}

Status Job::start_rank(int r, bool again) {
  Rank& rank = ranks_[static_cast<size_t>(r)];
  rank.host = seats_[static_cast<size_t>(r)].host;
  const Host& host = hosts_[static_cast<size_t>(rank.host)];
  ProcessSpec spec;
  auto variables = job_variables(r);
  if (again) variables.emplace_back("RINGFOLD_RESTARTED=1");
  const auto is_replaced = [&](std::string_view name) {
    for (const auto& entry : variables) {
      if (std::string_view(entry).substr(0, entry.find('=')) == name) return true;
    }
    return name == "RINGFOLD_KEY_FILE" || name == "RINGFOLD_HOST_NAME" || name == "RINGFOLD_RESTARTED";
  };
  std::vector<std::string> others;
  for (const auto& [name, value] : comm::process_environment()) {
    if (is_replaced(name)) continue;
    if (host.local || (name.starts_with("RINGFOLD_") && name != "RINGFOLD_SSH")) others.push_back(name + "=" + value);
  }
  for (const std::string& entry : options_.pass) {
    const auto at = entry.find('=');
    const char* value = at == entry.npos ? std::getenv(entry.c_str()) : entry.c_str() + at + 1;
    if (value != nullptr) others.push_back(entry.substr(0, at) + "=" + value);
  }
  variables.insert(variables.end(), others.begin(), others.end());

  std::array<int, 2> control{-1, -1}, out{-1, -1}, error{-1, -1};
  if (host.local) {
    spec.arguments = options_.command;
    spec.environment = variables;
    const size_t here = static_cast<size_t>(seats_[static_cast<size_t>(r)].local_rank);
    if (here < shares_.size()) spec.processors = shares_[here];
  } else {
    spec.arguments =
        remote_command(host.name, remote_script(options_.command, variables, std::filesystem::current_path()));
    for (const auto& [name, value] : comm::process_environment()) spec.environment.push_back(name + "=" + value);
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, control.data()) != 0) {
      return Status(Code::kIo, fmt::format("socketpair: {}", std::strerror(errno)));
    }
    rank.control = control[0];
    spec.in = control[1];
  }
  int null = -1;
  if (options_.quiet) {
    null = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
    spec.out = spec.error = null;
  } else if (options_.prefix) {
    if (::pipe2(out.data(), O_CLOEXEC) != 0 || ::pipe2(error.data(), O_CLOEXEC) != 0) {
      return Status(Code::kUnavailable, fmt::format("pipe: {}; `ulimit -n` raises the limit", std::strerror(errno)));
    }
    const std::string prefix = fmt::format("[{}] ", r);
    streams_.emplace_back(out[0], STDOUT_FILENO, prefix);
    streams_.emplace_back(error[0], STDERR_FILENO, prefix);
    spec.out = out[1];
    spec.error = error[1];
  }
  auto pid = start_process(spec);
  for (const int fd : {control[1], out[1], error[1], null}) {
    if (fd >= 0) ::close(fd);
  }
  if (!pid.ok()) return pid.status();
  guard_->watch(*pid);
  rank.pid = *pid;
  rank.running = true;
  if (rank.control >= 0) ::send(rank.control, (key_text_ + "\n").c_str(), key_text_.size() + 1, MSG_NOSIGNAL);
  return {};
}

int Job::running() const {
  int count = 0;
  for (const Rank& rank : ranks_) count += rank.running;
  return count;
}

void Job::send_signal(const Rank& rank, int signal) const {
  if (!rank.running) return;
  if (rank.control < 0) {
    ::kill(-rank.pid, signal);
    return;
  }
  const std::string line = signal_name(signal) + "\n";
  ::send(rank.control, line.c_str(), line.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

void Job::signal_all(int signal) {
  for (const Rank& rank : ranks_) send_signal(rank, signal);
}

void Job::end_all(int signal) {
  signal_all(signal);
  if (ending_) return;
  ending_ = true;
  kill_at_ = Clock::now() + base::duration_of(options_.grace_s);
}

void Job::on_signal(int signal) {
  if (signal == SIGCHLD) return reap();
  if (signal == SIGUSR1 || signal == SIGUSR2) return signal_all(signal);  // a message to the ranks, and no more
  if (passed_on_ != 0 && signal == SIGINT) kill_at_ = Clock::now();       // somebody has lost patience
  passed_on_ = signal;
  end_all(signal);
}

void Job::reap() {
  for (size_t r = 0; r < ranks_.size(); ++r) {
    Rank& rank = ranks_[r];
    if (!rank.running) continue;
    siginfo_t info{};
    if (::waitid(P_PID, static_cast<id_t>(rank.pid), &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0)
      continue;
    ::kill(-rank.pid, SIGKILL);  // what it left behind; its number is its own until it is reaped
    guard_->forget(rank.pid);
    int status = 0;
    ::waitpid(rank.pid, &status, 0);
    rank.running = false;
    on_end(static_cast<int>(r), status);
  }
}

void Job::on_end(int r, int status) {
  if (status == 0) {
    one_did_well_ = true;
    return;
  }
  const Rank& rank = ranks_[static_cast<size_t>(r)];
  const int code = exit_status_of(status);
  const bool left_out = options_.left_out_status != 0 && code == options_.left_out_status;
  if (ending_) {  // it was asked to
    if (passed_on_ != 0 && !result_) result_ = 128 + passed_on_;
    return;
  }
  // Where nobody is left there is nothing to come back to, and where one was done the rest is not needed.
  const int left = running();
  const bool all = options_.restart_all;
  const bool useful = all ? !options_.elastic || left == 0 : left > 0;
  const bool again = useful && !one_did_well_ && restarts_ < options_.restarts && (!left_out || (all && result_));
  if (left_out && !again) return;
  if (!result_ && !again) result_ = code;
  const char* then = again && all ? "; starting all again"
                     : again      ? "; starting it again"
                     : left == 0  ? ""
                     : goes_on()  ? "; the others go on"
                                  : "; ending the others";
  const std::string& host = hosts_[static_cast<size_t>(rank.host)].name;
  if (rank.control >= 0 && code == 255) {
    say("rank {} on {}: ssh (pid {}) failed with status 255{}", r, host, rank.pid, then);
  } else if (left_out) {
    say("none of the ranks has come to the end{}", then);
  } else if (code != options_.expected_status) {
    say("rank {} on {} ({} {}) {}{}", r, host, rank.control >= 0 ? "ssh pid" : "pid", rank.pid,
        ending_in_words(status), then);
  }
  if (!goes_on()) end_all(SIGTERM);
  if (!again) return;
  ++restarts_;
  if (all) {
    restarting_ = true;
    return;
  }
  if (const Status started = start_rank(r, true); !started.ok()) {
    say("rank {} cannot be started again: {}", r, started.message());
    if (!result_) result_ = code;
  }
}

void Job::start_all_again() {
  restarting_ = ending_ = killed_ = false;
  kill_at_ = drain_until_ = TimePoint::max();
  for (size_t r = 0; r < ranks_.size(); ++r) {
    if (ranks_[r].control >= 0) ::close(std::exchange(ranks_[r].control, -1));
    const Status started = start_rank(static_cast<int>(r));
    if (started.ok()) continue;
    say("rank {} cannot be started again: {}", r, started.message());
    result_ = kExitEnvironment;
    return end_all(SIGTERM);
  }
}

void Job::on_time() {
  const auto now = Clock::now();
  if (now >= stop_at_ && running() > 0) {
    stop_at_ = TimePoint::max();
    if (!result_) result_ = kExitTimeout;
    say("the job did not end within {} s; ending it", options_.timeout_s);
    end_all(SIGTERM);
  }
  if (now >= kill_at_) {
    if (killed_) {  // a connection that no longer answers
      for (const Rank& rank : ranks_) {
        if (rank.running) ::kill(-rank.pid, SIGKILL);
      }
      kill_at_ = TimePoint::max();
    } else {
      signal_all(SIGKILL);
      killed_ = true;
      kill_at_ = now + std::chrono::seconds(2);
    }
  }
}

int Job::wait_ms() const {
  const auto at = std::min({stop_at_, kill_at_, drain_until_});
  if (at == TimePoint::max()) return -1;
  return static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(base::Deadline{at}.left()).count());
}

int Job::supervise() {
  while (running() > 0 || !streams_.empty() || restarting_) {
    if (restarting_ && running() == 0 && passed_on_ == 0) start_all_again();
    if (passed_on_ != 0) restarting_ = false;
    // A process that left its rank's group may hold the rank's output open for ever.
    if (running() == 0 && drain_until_ == TimePoint::max())
      drain_until_ = Clock::now() + std::chrono::milliseconds(500);
    if (Clock::now() >= drain_until_) break;
    std::vector<pollfd> polls = {{signals_, POLLIN, 0}};
    for (const LineStream& stream : streams_) polls.push_back({stream.fd(), POLLIN, 0});
    if (::poll(polls.data(), polls.size(), wait_ms()) < 0 && errno != EINTR) break;
    for (size_t i = polls.size(); i-- > 1;) {
      if (polls[i].revents != 0 && !streams_[i - 1].pump())
        streams_.erase(streams_.begin() + static_cast<long>(i) - 1);
    }
    signalfd_siginfo info{};
    while (::read(signals_, &info, sizeof(info)) == sizeof(info)) on_signal(static_cast<int>(info.ssi_signo));
    on_time();
  }
  streams_.clear();
  // What ended the job as a whole counts all the same.
  if (options_.elastic && one_did_well_ && !ending_) return kExitOk;
  return result_.value_or(kExitOk);
}

Result<std::string> make_folder() {
  const char* base = std::getenv("TMPDIR");
  std::string folder = std::string(base != nullptr && *base != '\0' ? base : "/tmp") + "/ringfold-XXXXXX";
  if (::mkdtemp(folder.data()) == nullptr) {
    return Status(Code::kUnavailable,
                  fmt::format("cannot make the job's folder {}: {}", folder, std::strerror(errno)));
  }
  return folder;
}

int complain(const Status& status) {
  fmt::print(stderr, "ringfold run: {}\n", status.message());
  return status.code() == Code::kInvalid ? kExitUsage : kExitEnvironment;
}

int run_in_folder(const JobOptions& options, std::vector<Host> hosts, std::vector<Seat> seats) {
  const auto folder = make_folder();
  if (!folder.ok()) return complain(folder.status());
  auto guard = JobGuard::start(*folder);
  if (!guard.ok()) {
    ::rmdir(folder->c_str());
    return complain(guard.status());
  }
  Job job(options, std::move(hosts), std::move(seats), &*guard, *folder);
  const Status started = job.start();
  return started.ok() ? job.supervise() : complain(started);
}

}  // namespace

int run_job(const JobOptions& options) {
  auto hosts = parse_hosts(options.hosts);
  if (!hosts.ok()) return complain(hosts.status());
  auto seats = seat_ranks(*hosts, options.ranks);
  if (!seats.ok()) return complain(seats.status());
  // From here on a signal is not the end of this process, but of the job.
  const sigset_t wanted = watched_signals();
  sigset_t before;
  ::sigprocmask(SIG_BLOCK, &wanted, &before);
  const int result = run_in_folder(options, *std::move(hosts), *std::move(seats));
  ::sigprocmask(SIG_SETMASK, &before, nullptr);
  return result;
}

}  // namespace ringfold::cli
