// The engine of one rank: it advances the lanes, messages and transports of all of the rank's communicators, owns
// their deadlines, and waits without wasting a processor.
//
// There is no thread that has to run: start() advances inline on the caller, and whoever waits drives everything, all
// communicators included, so that no order of waits on different ranks can block. With `background` on, a thread
// drives while something is in flight and nobody waits; it sleeps otherwise, so an idle engine costs nothing.
//
// Threads: every function may be called from any thread. One lock guards all state; it is released while a waiter
// sleeps or yields, and callbacks run without it.
#pragma once

#include <poll.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "exec/domain.h"

namespace ringfold::exec {

// How a waiter waits: first it spins, then it yields its processor to others, then it sleeps until something arrives.
struct WaitPolicy {
  // A neighbour's answer through shared memory takes less than this. Yielding to nobody costs some 0.3 us a turn, so longer
  // spins gain nothing, and where a core turns out to be shared they cost the neighbour all of their time.
  base::Duration spin_for = std::chrono::microseconds(5);
  base::Duration yield_for = std::chrono::microseconds(100);  // then a wake-up, some 25 us, matters less
  // With a processor for each rank of this host, a waiter may spin; otherwise it must let the others run at once.
  static WaitPolicy for_host(bool processor_for_each);
};

class Engine {
 public:
  struct Options {
    WaitPolicy wait;
    bool background = false;
    std::function<base::TimePoint()> now = [] { return base::Clock::now(); };
  };
  explicit Engine(Options options);
  ~Engine();

  void add(std::shared_ptr<Domain> domain);
  void remove(const std::shared_ptr<Domain>& domain);

  // Puts a run of `plan` into the domain's lanes, in the order of calls, and advances it; its sequence number and its
  // place in the lanes are given under one lock. The run's deadline is set already.
  void start(Domain& domain, Run* run, std::shared_ptr<const Plan> plan, const std::byte* input, std::byte* output);
  void start(Domain& domain, Message* message);

  // Drives until the request is done (true) or `until` passes (false).
  bool wait(Request& request, base::Deadline until);
  // Drives once; is the request done?
  bool test(Request& request);
  // Calls `callback` with the final status, without locks: at once if it is done, else on the thread that completes
  // it.
  void then(Request& request, std::function<void(const Status&)> callback);
  // Moves nothing of the domain any more; abort() will follow, with the reason.
  void suspend(Domain& domain);
  // Ends a domain: its transports stop, then everything in flight completes with `status`, and so does everything
  // after.
  void abort(Domain& domain, const Status& status);
  // Drives once without waiting; true if something moved. For drivers of virtual time.
  bool poll();
  // Does somebody move what is in flight: a waiter, the background thread, or one who has tested lately? Needs the lock.
  bool driven() const;
  // Runs `f` under the lock: a consistent look at a domain.
  void inspect(const std::function<void()>& f);

 private:
  using Deferred = std::vector<std::function<void()>>;
  bool advance(Deferred* deferred);  // needs the lock
  bool drive(std::unique_lock<std::mutex>& lock, Request& request, base::Deadline until);
  void run_deferred(std::unique_lock<std::mutex>& lock, Deferred* deferred);
  void step_aside(std::unique_lock<std::mutex>& lock);
  // How long a waiter has found nothing to do.
  struct Patience {
    uint32_t turns = 0;
    bool spinning = true;
    base::TimePoint since;
  };
  // One turn of waiting, in which the lock may be given away. False: `until` has passed.
  bool idle(std::unique_lock<std::mutex>& lock, Patience* patience, base::Duration spin_for, base::TimePoint until,
            Deferred* deferred);
  void sleep(std::unique_lock<std::mutex>& lock, base::TimePoint until);
  void finish_start(std::unique_lock<std::mutex>& lock, Deferred* deferred);
  void wake();
  void background();

  const Options options_;
  std::mutex mutex_;
  std::atomic<int> contenders_{0};  // threads that want the lock while a waiter spins with it
  std::vector<std::shared_ptr<Domain>> domains_;
  std::condition_variable changed_;  // something completed, or the sleeper returned
  int waiters_ = 0;
  base::TimePoint polled_{};         // when poll() was called last
  bool sleeping_ = false;            // a thread sleeps in poll()
  std::vector<pollfd> fds_;          // of that thread, kept so that sleeping allocates nothing
  std::vector<std::shared_ptr<Domain>> asleep_;
  int wake_fd_ = -1;  // makes it return
  bool stopping_ = false;
  std::condition_variable work_;  // for the background thread
  std::thread thread_;
};

}  // namespace ringfold::exec
