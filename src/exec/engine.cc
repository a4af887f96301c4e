#include "exec/engine.h"

#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace ringfold::exec {
namespace {

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Looks at one word, or asks one link, for some hundred nanoseconds; or looks at nothing once. The order of memory is
// for who takes what has come: that look is an acquiring one.
bool spin(const transport::Watch& watch) {
  constexpr int kLooks = 8;
  if (!watch) return pause(), false;
  for (int i = 0; i < kLooks; ++i) {
    if (watch.link != nullptr) {
      transport::Arrival arrival;
      if (watch.link->announced(&arrival, 0)) return true;
      continue;
    }
    if (std::atomic_ref(const_cast<uint64_t&>(*watch.word)).load(std::memory_order_relaxed) == watch.value)
      return true;
    pause();
  }
  return false;
}

}  // namespace

WaitPolicy WaitPolicy::for_host(bool processor_for_each) {
  WaitPolicy policy;
  if (!processor_for_each) {
    policy.spin_for = {};
    policy.turns_for = std::chrono::milliseconds(1);
  }
  return policy;
}

Engine::Engine(Options options) : options_(std::move(options)), wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  fds_.reserve(64);  // so that the first sleep, whenever that is, allocates nothing either
  asleep_.reserve(32);
  if (options_.background) drive_in_background();
}

Engine::~Engine() {
  if (wake_fd_ >= 0) close(wake_fd_);
}

void Engine::stop() {
  if (thread_.joinable()) {
    {
      std::lock_guard lock(latch_);
      stopping_ = true;
      wake();
    }
    work_.notify_all();
    thread_.join();
  }
  std::vector<std::shared_ptr<Domain>> domains;  // they refer to this engine
  Hold hold(*this);
  domains.swap(domains_);
  for (auto& domain : domains) domain->close_pools();
}

namespace {
thread_local bool calling_back = false;
}
bool Engine::calling_back() { return exec::calling_back; }

void Engine::add(std::shared_ptr<Domain> domain) {
  Hold hold(*this);
  domain->engine_ = shared_from_this();
  for (const auto& t : domain->transports()) in_memory_ |= t->capabilities().in_memory;
  domains_.push_back(std::move(domain));
  wake();
}

void Engine::remove(const std::shared_ptr<Domain>& domain) {
  Hold hold(*this);
  std::erase(domains_, domain);
  domain->close_pools();
  wake();
}

// Makes the thread that sleeps go round once more.
void Engine::wake() {
  if (!sleeping_ || woken_) return;
  woken_ = true;
  const uint64_t one = 1;
  [[maybe_unused]] auto n = write(wake_fd_, &one, sizeof one);
}

void Engine::run_deferred(Lock& lock, Deferred* deferred) {
  if (deferred->empty()) return;
  lock.unlock();
  const bool outer = std::exchange(exec::calling_back, true);
  for (auto& f : *deferred) f();
  deferred->clear();
  exec::calling_back = outer;
  lock.lock();
}

void Engine::begin_driving() {
  ++drivers_;
  vacant_.store(false, std::memory_order_relaxed);
  wake();
}

void Engine::end_driving() {
  if (--drivers_ > 0 || sleeping_ || followers_ == 0) return;
  {
    std::lock_guard follow(follow_mutex_);
    vacant_.store(true, std::memory_order_relaxed);
  }
  follow_.notify_one();  // it drives, or finds its request done and passes this on when it leaves
}

void Engine::completed() {
  if (followers_ == 0) return;
  { std::lock_guard follow(follow_mutex_); }  // whoever saw its request unfinished sleeps by now
  follow_.notify_all();
}

// Callbacks may take their time, and wait for what only another thread would bring: it drives meanwhile.
void Engine::run_deferred_of_driver(Lock& lock, Deferred* deferred) {
  if (deferred->empty()) return;
  end_driving();
  run_deferred(lock, deferred);
  begin_driving();
}

bool Engine::busy() const {
  return std::any_of(domains_.begin(), domains_.end(), [](auto& d) { return d->active() > 0 && !d->suspended_; });
}

// After something was put in flight, which moved transports: a sleeper must arm them again, and the background thread
// may be idle.
void Engine::finish_start(Lock& lock, Deferred* deferred) {
  wake();
  if (in_background_ && waiters_ == 0) work_.notify_one();
  run_deferred(lock, deferred);
}

void Engine::start(Hold& hold, Domain& domain, Run* run, const std::shared_ptr<const Plan>& plan,
                   const std::byte* input, std::byte* output) {
  run->prepare(plan, input, output, domain.next_sequence());
  begin(hold.lock_, domain, run);
}

bool Engine::start(Hold& hold, Domain& domain, Run* run, const std::shared_ptr<const Plan>& plan,
                   const std::byte* input, std::byte* output, base::Duration timeout) {
  run->prepare(plan, input, output, domain.next_sequence());
  if (ends_at_once(domain, run)) return true;
  run->deadline = base::Deadline::about_after(timeout);
  begin(hold.lock_, domain, run);
  return false;
}

// What ends here needs no place in the lanes, no deadline, and nobody who waits for it: half of what a small call
// costs.
bool Engine::ends_at_once(Domain& domain, Run* run) {
  if (domain.suspended_ || domain.active() > 0 || run->plan().short_moves.empty()) return false;
  constexpr int kMostMoments = 64;  // a word may say that there is something where nothing can be done about it yet
  Fault fault;
  base::TimePoint end;  // of asking links
  for (int moments = 0; run->advance(0, &fault) != Advance::kFinished; ++moments) {
    // begin() finds the same again.
    if (!fault.status.ok() || moments == kMostMoments || !comes_in_a_moment(domain, run->watch(), &end)) return false;
  }
  if (!run->retired()) return false;
  domain.remember(*run);
  wake();
  return true;
}

// (4 ranks on 2 cores of an Intel Xeon, in turns here and in flight: sendrecv of 8 B 0.96 and 1.13 us, a stream of
// them 0.13 and 0.21, a barrier 1.98 and 2.10.)
bool Engine::comes_in_a_moment(Domain& domain, const transport::Watch& watch, base::TimePoint* end) {
  constexpr int kMoments = 4;  // about a microsecond in all, which is what an answer in memory takes;
  // through a library, calls to the system included, it takes more (20 us over soft-RoCE in a virtual machine), and
  // on a processor that others have in between some turns
  constexpr auto kAsked = std::chrono::microseconds(50);
  constexpr auto kInTurn = std::chrono::microseconds(25);
  constexpr uint32_t kLateCalls = 2;  // in a row: the ranks do not keep step
  const bool asks = watch.link != nullptr, in_turn = spin_for() == base::Duration::zero();
  const uint32_t period = asks ? 256 : 32;  // calls until that is tried again
  if (!watch || (asks && in_turn)) return false;
  const int untimed = in_turn ? 0 : kMoments;
  const base::Duration most = asks ? kAsked : in_turn ? kInTurn : base::Duration::zero();
  bool seen = false, computes = false;
  if (domain.late_ < kLateCalls || domain.late_ % period == 0) {
    for (int i = 0; !seen && !latch_.contended(); ++i) {
      if (i >= untimed) {
        if (most == base::Duration::zero()) break;
        const auto now = base::Clock::now();
        if (*end == base::TimePoint()) *end = now + most;
        if (now >= *end) break;
      }
      // With the lock, for this call has its place among calls and is not in flight yet. Who computes here would keep
      // it from this rank's other threads for a time slice: not again soon.
      if (in_turn) {
        ++yields_;
        const auto away = yield(true);
        crowd_.yielded(away);
        computes |= away >= Crowd::kSlice;
      }
      seen = spin(watch);
    }
  }
  domain.late_ = computes ? kLateCalls + 1 : seen ? 0 : domain.late_ + 1;
  return seen;
}

void Engine::begin(Lock& lock, Domain& domain, Run* run) {
  Deferred deferred;
  if (!domain.dead_.ok()) {
    domain.track(run);
    domain.complete(run, domain.dead_, &deferred);
  } else {
    domain.enqueue(run);
    if (domain.active() > 1) {
      domain.advance(false, &deferred);
    } else if (!domain.suspended_) {
      domain.advance_runs(&deferred);  // nothing else is there to move
    }
  }
  finish_start(lock, &deferred);
}

// With collectives in flight a message is started in any case, which moves them, too.
bool Engine::attempt(Hold&, Domain& domain, Transfer* transfer) {
  if (domain.suspended_ || domain.collectives()) return false;
  if (!domain.messages_.attempt(transfer)) {
    base::TimePoint end;
    if (!comes_in_a_moment(domain, domain.messages_.next_for(*transfer), &end)) return false;
    if (!domain.messages_.attempt(transfer)) return false;
  }
  wake();
  return true;
}

void Engine::start(Hold& hold, Domain& domain, Message* message) {
  Deferred deferred;
  domain.track(message);
  if (!domain.dead_.ok()) {
    domain.complete(message, domain.dead_, &deferred);
  } else if (!domain.suspended_) {
    domain.post(message, &deferred);
  }
  finish_start(hold.lock_, &deferred);
}

void Engine::start(Domain& domain, Direct* call) {
  Hold hold(*this);
  Deferred deferred;
  domain.track(call);
  if (!domain.dead_.ok()) {
    domain.complete(call, domain.dead_, &deferred);
  } else {
    domain.direct_.push_back(call);
    if (!domain.suspended_) domain.advance_direct(&deferred);
  }
  finish_start(hold.lock_, &deferred);
}

bool Engine::advance(Deferred* deferred) {
  bool progress = false;
  for (size_t i = 0; i < domains_.size(); ++i) {
    if (domains_[i]->active() > 0 || domains_[i]->messages().open()) progress |= domains_[i]->advance(true, deferred);
  }
  return progress;
}

bool Engine::poll() {
  Hold hold(*this);
  const auto now = polled_ = options_.now();
  if (sleeping_) return false;  // whatever comes, a deadline included, wakes that thread
  Deferred deferred;
  bool progress = advance(&deferred);
  for (auto& d : domains_) progress |= d->check_deadlines(now, &deferred);
  run_deferred(hold.lock_, &deferred);
  return progress;
}

bool Engine::driven() const {
  constexpr auto kLately = std::chrono::milliseconds(500);
  return waiters_ > 0 || in_background_ || options_.now() < polled_ + kLately;
}

bool Engine::wait(Request& request, base::Deadline until) {
  if (request.done()) return true;
  Hold hold(*this);
  ++waiters_;
  ++request.waiters;
  begin_driving();
  const bool done = drive(hold.lock_, request, until);
  end_driving();
  --request.waiters;
  if (--waiters_ == 0 && in_background_ && busy()) work_.notify_one();
  return done;
}

bool Engine::drive(Lock& lock, Request& request, base::Deadline until) {
  Deferred deferred;
  const auto fresh = [this] { return Patience{.spinning = in_memory_ && spin_for() > base::Duration::zero()}; };
  Patience patience = fresh();
  // The answer is often here, or on its way: a look where it will show comes before one at everything.
  if (patience.spinning && !idle(lock, &patience, &request, until.at, &deferred)) return false;
  while (!request.done()) {
    if (advance(&deferred)) {
      patience = fresh();
      run_deferred_of_driver(lock, &deferred);
      if (latch_.contended()) step_aside(lock);
      continue;
    }
    run_deferred_of_driver(lock, &deferred);
    if (request.done()) break;
    if (!idle(lock, &patience, &request, until.at, &deferred)) return false;
  }
  run_deferred_of_driver(lock, &deferred);
  return true;
}

bool Engine::test(Request& request) {
  if (!request.done()) poll();
  return request.done();
}

void Engine::then(Request& request, std::function<void(const Status&)> callback) {
  {
    Hold hold(*this);
    if (!request.done()) {
      request.callbacks.push_back(std::move(callback));
      return;
    }
  }
  callback(request.status());
}

void Engine::finish(Request& request, const Status& status) {
  Hold hold(*this);
  Deferred deferred;
  request.end(status, &deferred);
  completed();
  wake();
  run_deferred(hold.lock_, &deferred);
}

void Engine::drive_in_background() {
  const Hold hold(*this);
  if (std::exchange(in_background_, true)) return;
  thread_ = std::thread([this] { background(); });
}

void Engine::abort(Domain& domain, const Status& status) {
  Hold hold(*this);
  Deferred deferred;
  domain.abort(status, &deferred);
  wake();
  run_deferred(hold.lock_, &deferred);
}

void Engine::peer_left(Domain& domain, int peer) {
  Hold hold(*this);
  if (domain.suspended_) return;
  domain.transport_to(peer)->peer_left(peer);
  wake();
}

void Engine::suspend(Domain& domain) {
  Hold hold(*this);
  domain.suspended_ = true;
}

Counters Engine::counters(const Domain& domain) {
  Hold hold(*this);
  Counters c = domain.counters();
  c.yields = yields_;
  c.sleeps = sleeps_;
  c.system_calls += yields_ + sleeps_;
  return c;
}

void Engine::inspect(const std::function<void()>& f) {
  Hold hold(*this);
  f();
}

// Lets others have the processor. How long they had it, if that is asked.
base::Duration Engine::yield(bool timed) {
  const auto left = timed ? base::Clock::now() : base::TimePoint();
  sched_yield();
  return timed ? base::Clock::now() - left : base::Duration();
}

// Gives the lock away. A thread that waits for it must first be woken, which takes longer than one yield: whoever
// takes the lock back at once shuts it out, for good if it does so again and again.
void Engine::step_aside(Lock& lock) {
  ++yields_;
  lock.unlock();
  const auto away = yield(options_.wait.spin_for > base::Duration::zero());  // who may spin while nobody wants to run
  for (int i = 0; i < 1000 && latch_.contended(); ++i) sched_yield();
  lock.lock();
  crowd_.yielded(away);
}

bool Engine::idle(Lock& lock, Patience* patience, const Request* request, base::TimePoint until, Deferred* deferred) {
  constexpr uint32_t kTurnsPerLook = 16;  // at the clock, while spinning
  constexpr uint32_t kTurnsPerRound = 4;  // through everything; in between only what the request waits for
  while (patience->spinning && ++patience->turns % kTurnsPerLook != 0) {
    Domain* const domain = request->domain.get();
    const transport::Watch watch = domain != nullptr ? domain->watch(*request) : transport::Watch();
    const bool seen = spin(watch);
    if (latch_.contended() || (!seen && patience->turns % kTurnsPerRound == 0)) return true;
    if (!seen && watch) continue;
    if (domain == nullptr || !domain->advance_for(*request, deferred)) {
      if (seen || domain == nullptr || !domain->collectives()) return true;
      continue;
    }
    patience->since = {};
    return true;
  }
  const auto now = options_.now();
  if (now >= until) return false;
  for (auto& d : domains_) d->check_deadlines(now, deferred);
  if (!deferred->empty()) {
    run_deferred_of_driver(lock, deferred);
    return true;  // the lock was away: what the caller waits for may have come, and nobody wakes one who does not
                  // sleep yet
  }
  if (patience->since == base::TimePoint()) patience->since = now;
  const auto waited = now - patience->since;
  // The background thread never spins: the processor belongs to the computation.
  const bool near = request != nullptr && in_memory_;
  const auto spin_for = near ? this->spin_for() : base::Duration::zero();
  const auto yield_for = options_.wait.yield_for + (near ? options_.wait.turns_for : base::Duration::zero());
  patience->spinning = waited < spin_for;
  if (patience->spinning && !latch_.contended()) {
    pause();
  } else if (waited < spin_for + yield_for) {
    step_aside(lock);
  } else if (drivers_ == 1 && !sleeping_) {
    sleep(lock, until);
  } else if (request != nullptr) {
    follow(lock, *request, until);
  }
  return true;
}

base::Duration Engine::time_left(base::TimePoint until) const {
  return std::clamp<base::Duration>(until - options_.now(), std::chrono::milliseconds(0), std::chrono::hours(1));
}

void Engine::follow(Lock& lock, const Request& request, base::TimePoint until) {
  ++followers_;
  --drivers_;
  {
    std::unique_lock follow(follow_mutex_);
    lock.unlock();
    follow_.wait_for(follow, time_left(until),
                     [&] { return request.done() || vacant_.load(std::memory_order_relaxed); });
  }
  lock.lock();
  --followers_;
  begin_driving();
}

// Arms the transports and sleeps, for everybody.
void Engine::sleep(Lock& lock, base::TimePoint until) {
  for (auto& d : domains_) until = std::min(until, d->earliest_deadline());
  fds_.assign(1, {wake_fd_, POLLIN, 0});
  bool ready = false;
  int timeout = static_cast<int>(
      std::min<int64_t>(std::chrono::ceil<std::chrono::milliseconds>(time_left(until)).count(), 60'000));
  for (auto& d : domains_) {
    if (d->suspended_ || (d->active() == 0 && !d->messages_.open())) continue;
    asleep_.push_back(d);
    for (auto& t : d->transports_) {
      if (!ready && !t->prepare_to_sleep()) ready = true;
      if (t->wake_fd() >= 0) {
        fds_.push_back({t->wake_fd(), POLLIN, 0});
      } else {
        timeout = std::min(timeout, 1);
      }
    }
  }
  if (!ready) {
    sleeping_ = true;
    ++sleeps_;
    --drivers_;
    lock.unlock();
    ::poll(fds_.data(), fds_.size(), timeout);
    lock.lock();
    ++drivers_;
    sleeping_ = false;
    if (std::exchange(woken_, false)) {
      uint64_t drained;
      [[maybe_unused]] auto n = read(wake_fd_, &drained, sizeof drained);
    }
  }
  for (auto& d : asleep_) {
    if (d->suspended_) continue;
    for (auto& t : d->transports_) t->awake();
  }
  asleep_.clear();
  if (ready) step_aside(lock);
}

void Engine::background() {
  Lock lock(latch_);
  Deferred deferred;
  while (true) {
    while (!stopping_ && (waiters_ > 0 || !busy())) work_.wait_for(lock, std::chrono::seconds(3600));
    if (stopping_) return;
    begin_driving();
    constexpr Patience kFresh{.spinning = false};
    Patience patience = kFresh;
    while (!stopping_ && waiters_ == 0 && busy()) {
      if (advance(&deferred)) {
        patience = kFresh;
        run_deferred_of_driver(lock, &deferred);
      } else {
        idle(lock, &patience, nullptr, base::TimePoint::max(), &deferred);
      }
      if (latch_.contended()) step_aside(lock);
    }
    end_driving();
  }
}

}  // namespace ringfold::exec
