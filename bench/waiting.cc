// What waiting costs: the processor time of ranks that have nothing to do, and what a waiting rank takes from one
// that computes on the same processor.
//
//   ringfold run -n 2 --no-bind -- build/bench/waiting [SECONDS]
//
// Limits: an idle communicator needs no time at all; beside a busy rank a waiter that spun would take half of the
// processor, one that sleeps nothing.
#include <fmt/format.h>
#include <sched.h>
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "ringfold/communicator.h"

namespace {

using ringfold::Communicator;
using ringfold::DataType;
using ringfold::Status;
using Clock = std::chrono::steady_clock;

double processor_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void check(const Status& status) {
  if (status.ok()) return;
  fmt::print(stderr, "waiting: {}\n", status.to_string());
  std::exit(1);
}

// Of `seconds` of wall time, the share of one processor that `f` took on this rank.
template <typename F>
double share_of(double seconds, F&& f) {
  const double before = processor_seconds();
  f();
  return (processor_seconds() - before) / seconds;
}

// Rounds of arithmetic until `seconds` have passed.
double compute(double seconds) {
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  double rounds = 0;
  volatile double x = 1;
  while (Clock::now() < end) {
    for (int i = 0; i < 100000; ++i) x = x * 1.0000001 + 1e-9;
    rounds += 1;
  }
  return rounds;
}

void pin(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  if (sched_setaffinity(0, sizeof set, &set) != 0) {
    std::perror("waiting: sched_setaffinity");
    std::exit(3);
  }
}

void say(const Communicator& comm, const char* what, double share) {
  if (comm.rank() == 1) fmt::print("{:<64}{:>9.3f} %\n", what, 100 * share);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 10;
  auto made = Communicator::init();
  check(made.status());
  Communicator& comm = *made;
  if (comm.size() != 2 || !(seconds > 0)) {
    fmt::print(stderr, "usage: ringfold run -n 2 --no-bind -- waiting [SECONDS]\n");
    return 2;
  }
  cpu_set_t all;
  sched_getaffinity(0, sizeof all, &all);
  int first = 0;
  while (!CPU_ISSET(first, &all)) ++first;
  pin(first);
  const bool waits = comm.rank() == 1;
  float word = 1;
  const auto rest = [&] { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); };
  const auto late = [&](auto&& before) {  // rank 0 is late for an all_reduce that rank 1 waits for
    check(comm.barrier().wait());
    return share_of(seconds, [&] {
      if (!waits) before();
      check(comm.all_reduce(&word, &word, 1, DataType::kF32).wait());
    });
  };

  check(comm.all_reduce(&word, &word, 1, DataType::kF32).wait());
  if (waits)
    fmt::print("# share of one processor that rank 1 takes, over {} s, both ranks on one processor\n", seconds);
  say(comm, "idle: the communicator exists, nobody calls", share_of(seconds, rest));
  say(comm, "waiting in all_reduce for rank 0, which sleeps", late(rest));
  double alone = 0, beside = 0;
  if (!waits) alone = compute(seconds);
  say(comm, "waiting in all_reduce for rank 0, which computes", late([&] { beside = compute(seconds); }));
  check(comm.barrier().wait());
  if (!waits)
    fmt::print("{:<64}{:>9.3f} %\n", "what rank 0 computes meanwhile, of what it does alone", 100 * beside / alone);
  return 0;
}
