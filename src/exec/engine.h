// The engine of one rank: it advances the lanes, messages and transports of all of the rank's communicators, owns
// their deadlines, and waits without wasting a processor.
//
// There is no thread that has to run: start() advances inline on the caller, and whoever waits drives everything, all
// communicators included, so that no order of waits on different ranks can block. With `background` on, a thread
// drives while something is in flight and nobody waits; it sleeps otherwise, so an idle engine costs nothing.
//
// Threads: every function may be called from any thread. One lock guards all state; it is released while a waiter
// sleeps or yields, and callbacks run without it.
//
// Who sleeps where. Of the threads that wait, those that are awake *drive*. One that runs out of patience while
// another drives becomes a *follower*: it sleeps until its own request is done or nobody drives any more. The last
// driver arms the transports and *sleeps* in poll(2), for everybody. Whatever moves a transport takes the news that
// would have woken the sleeper, so nobody does while it sleeps without waking it: it then goes round once more and
// arms them again.
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
#include "base/latch.h"
#include "exec/crowd.h"
#include "exec/domain.h"

namespace ringfold::exec {

// How a waiter waits: first it spins, then it yields its processor to others, then it sleeps until something arrives.
struct WaitPolicy {
  // A neighbour's answer through shared memory takes less than this. (Where all answers come by calls to the system
  // nobody spins: a yield costs no more than such a call.) Yielding to nobody costs some 0.3 us a turn, so
  // longer spins gain nothing, and where a core turns out to be shared they cost the neighbour all of their time.
  base::Duration spin_for = std::chrono::microseconds(5);
  base::Duration yield_for = std::chrono::microseconds(100);  // then a wake-up, some 25 us, matters less
  // So much longer where answers come through memory, of some of the ranks at least, and ranks take turns on the
  // processors: one that copies has its processor for hundreds of microseconds while another one waits for its turn,
  // and all that it does meanwhile would wake sleepers. Who computes there keeps the processor for longer, and sends
  // its waiters to sleep. (4 ranks on 2 cores of an Intel Xeon, ordinary memory, dealt out in turn, with and without:
  // sendrecv of 2 MiB 388 and 541 us, broadcast of 2 MiB 651 and 840.)
  base::Duration turns_for = {};
  // With a processor for each rank of this host, a waiter may spin; otherwise it must let the others run at once.
  static WaitPolicy for_host(bool processor_for_each);
};

// Shared by its owner and its domains, whose requests may outlive both: a wait that ends late still has its engine.
class Engine : public std::enable_shared_from_this<Engine> {
 public:
  struct Options {
    WaitPolicy wait;
    bool background = false;
    std::function<base::TimePoint()> now = [] { return base::Clock::now(); };
  };
  explicit Engine(Options options);
  ~Engine();
  // By its owner, at the end, and not within a callback: the background thread ends, and no domain is driven any
  // more.
  void stop();

  // Is this thread within a callback of a request? What waits for threads that may be this one must then go
  // elsewhere.
  static bool calling_back();

  void add(std::shared_ptr<Domain> domain);
  void remove(const std::shared_ptr<Domain>& domain);

  // The engine's lock, for callers that look at more under it than one function does.
  class Hold {
   public:
    explicit Hold(Engine& engine) : lock_(engine.latch_) {}
    void release() { lock_.unlock(); }

   private:
    friend class Engine;
    base::LatchLock lock_;
  };
  // Puts a run of `plan` into the domain's lanes, in the order of calls, and advances it; its sequence number and its
  // place in the lanes are given under one lock. The run's deadline is set already. `hold` may be given away
  // meanwhile.
  void start(Hold& hold, Domain& domain, Run* run, const std::shared_ptr<const Plan>& plan, const std::byte* input,
             std::byte* output);
  void start(Domain& domain, Run* run, const std::shared_ptr<const Plan>& plan, const std::byte* input,
             std::byte* output) {
    Hold hold(*this);
    start(hold, domain, run, plan, input, output);
  }
  // The same, with a deadline `timeout` from now. True: the run is over, well, and was never in flight: a short call
  // to which the answers were there, or came within a moment. Nobody waits here for ranks that have not kept step
  // lately.
  bool start(Hold& hold, Domain& domain, Run* run, const std::shared_ptr<const Plan>& plan, const std::byte* input,
             std::byte* output, base::Duration timeout);
  // Sends or receives at once what has to wait for nothing, or for a moment as above; there is no request then.
  // False: a message made of `*transfer`, which knows how far it has come, is to be started under the same hold.
  bool attempt(Hold& hold, Domain& domain, Transfer* transfer);
  void start(Hold& hold, Domain& domain, Message* message);
  void start(Domain& domain, Message* message) {
    Hold hold(*this);
    start(hold, domain, message);
  }

  // A call that goes straight to devices, with its deadline, behind those before it.
  void start(Domain& domain, Direct* call);

  // Drives until the request is done (true) or `until` passes (false).
  bool wait(Request& request, base::Deadline until);
  // Drives once; is the request done?
  bool test(Request& request);
  // Calls `callback` with the final status, without locks: at once if it is done, else on the thread that completes
  // it.
  void then(Request& request, std::function<void(const Status&)> callback);
  // Ends a request that no domain has in flight: what its maker put together of other calls.
  void finish(Request& request, const Status& status);
  // From now on the background thread runs, whatever the options said.
  void drive_in_background();
  // The peer has left the job in order some time ago (Transport::peer_left).
  void peer_left(Domain& domain, int peer);
  // Moves nothing of the domain any more; abort() will follow, with the reason.
  void suspend(Domain& domain);
  // Ends a domain: its transports stop, then everything in flight completes with `status`, and so does everything
  // after.
  void abort(Domain& domain, const Status& status);
  // Drives once without waiting; true if something moved. For drivers of virtual time.
  bool poll();
  // Does somebody move what is in flight: a waiter, the background thread, or one who has tested lately? Needs the
  // lock.
  bool driven() const;
  // Of a domain, and of this engine's waiting, which serves all of them.
  Counters counters(const Domain& domain);
  // Runs `f` under the lock: a consistent look at a domain.
  void inspect(const std::function<void()>& f);

 private:
  using Deferred = std::vector<std::function<void()>>;
  using Lock = base::LatchLock;
  friend class Domain;
  // All of these need the lock; those that take it may give it away for a while.
  bool advance(Deferred* deferred);
  bool drive(Lock& lock, Request& request, base::Deadline until);
  // Puts a prepared run in flight.
  void begin(Lock& lock, Domain& domain, Run* run);
  bool ends_at_once(Domain& domain, Run* run);
  bool comes_in_a_moment(Domain& domain, const transport::Watch& watch, base::TimePoint* end);
  void run_deferred(Lock& lock, Deferred* deferred);
  void run_deferred_of_driver(Lock& lock, Deferred* deferred);
  static base::Duration yield(bool timed);
  void step_aside(Lock& lock);
  void begin_driving();
  void end_driving();
  // Of Domain: a request is done.
  void completed();
  bool busy() const;
  // How long a waiter has found nothing to do.
  struct Patience {
    uint32_t turns = 0;
    bool spinning = false;
    base::TimePoint since;
  };
  // None, too, while others want this processor.
  base::Duration spin_for() const { return crowd_.here() ? base::Duration::zero() : options_.wait.spin_for; }
  // One turn of a driver that found nothing to do, in which the lock may be given away. False: `until` has passed.
  // The background thread waits for no request.
  bool idle(Lock& lock, Patience* patience, const Request* request, base::TimePoint until, Deferred* deferred);
  base::Duration time_left(base::TimePoint until) const;
  void follow(Lock& lock, const Request& request, base::TimePoint until);
  void sleep(Lock& lock, base::TimePoint until);
  void finish_start(Lock& lock, Deferred* deferred);
  void wake();
  void background();

  const Options options_;
  base::Latch latch_;
  std::vector<std::shared_ptr<Domain>> domains_;
  uint64_t yields_ = 0, sleeps_ = 0;  // calls to the system
  Crowd crowd_;                       // as the yields of all waiters have it
  bool in_memory_ = false;            // some arrivals are seen by a look at memory
  int waiters_ = 0;                   // threads in wait()
  int drivers_ = 0;                   // of these and the background thread, those that are awake
  base::TimePoint polled_{};          // when poll() was called last

  int followers_ = 0;
  // What they wait with instead of the lock, which a busy driver may hold for long. Taken after it, if both are.
  std::mutex follow_mutex_;
  std::condition_variable follow_;
  std::atomic<bool> vacant_{false};  // nobody drives or sleeps for the followers

  bool sleeping_ = false, woken_ = false;  // a thread is in poll(2); it was told to return
  int wake_fd_ = -1;                       // what tells it
  std::vector<pollfd> fds_;                // of that thread, kept so that sleeping allocates nothing
  std::vector<std::shared_ptr<Domain>> asleep_;

  bool stopping_ = false, in_background_ = false;
  std::condition_variable_any work_;  // for the background thread
  std::thread thread_;
};

}  // namespace ringfold::exec
