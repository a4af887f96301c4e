#include "exec/engine.h"

#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>

namespace ringfold::exec {
namespace {

// Holds the engine's lock; tells a spinning holder that somebody else wants it.
class Hold {
 public:
  Hold(std::mutex& mutex, std::atomic<int>& contenders) : lock(mutex, std::try_to_lock) {
    if (lock.owns_lock()) return;
    contenders.fetch_add(1, std::memory_order_relaxed);
    lock.lock();
    contenders.fetch_sub(1, std::memory_order_relaxed);
  }
  std::unique_lock<std::mutex> lock;
};

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

WaitPolicy WaitPolicy::for_host(bool processor_for_each) {
  WaitPolicy policy;
  if (!processor_for_each) policy.spin_for = {};
  return policy;
}

Engine::Engine(Options options) : options_(std::move(options)), wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  fds_.reserve(64);  // so that the first sleep, whenever that is, allocates nothing either
  asleep_.reserve(32);
  if (options_.background) thread_ = std::thread([this] { background(); });
}

Engine::~Engine() {
  if (thread_.joinable()) {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      wake();
    }
    work_.notify_all();
    thread_.join();
  }
  if (wake_fd_ >= 0) close(wake_fd_);
}

void Engine::add(std::shared_ptr<Domain> domain) {
  Hold hold(mutex_, contenders_);
  domain->engine_ = this;
  domains_.push_back(std::move(domain));
  wake();
}

void Engine::remove(const std::shared_ptr<Domain>& domain) {
  Hold hold(mutex_, contenders_);
  std::erase(domains_, domain);
  wake();
}

void Engine::wake() {
  if (!sleeping_) return;
  const uint64_t one = 1;
  [[maybe_unused]] auto n = write(wake_fd_, &one, sizeof one);
}

void Engine::run_deferred(std::unique_lock<std::mutex>& lock, Deferred* deferred) {
  if (deferred->empty()) return;
  lock.unlock();
  for (auto& f : *deferred) f();
  deferred->clear();
  lock.lock();
}

// After something was put in flight: a sleeper has not armed its links, and the background thread may be idle.
void Engine::finish_start(std::unique_lock<std::mutex>& lock, Deferred* deferred) {
  wake();
  if (options_.background) work_.notify_one();
  run_deferred(lock, deferred);
}

void Engine::start(Domain& domain, Run* run, std::shared_ptr<const Plan> plan, const std::byte* input,
                   std::byte* output) {
  Hold hold(mutex_, contenders_);
  Deferred deferred;
  run->prepare(std::move(plan), input, output, domain.next_sequence());
  if (!domain.dead_.ok()) {
    run->ref();
    domain.complete(run, domain.dead_, &deferred);
  } else {
    domain.enqueue(run);
    domain.advance(false, &deferred);
  }
  finish_start(hold.lock, &deferred);
}

void Engine::start(Domain& domain, Message* message) {
  Hold hold(mutex_, contenders_);
  Deferred deferred;
  domain.track(message);
  if (!domain.dead_.ok()) {
    domain.complete(message, domain.dead_, &deferred);
  } else if (!domain.suspended_) {
    std::vector<Request*> finished;
    Fault fault;
    if (message->send) {
      domain.messages_.post_send(message, &finished, &fault);
    } else {
      domain.messages_.post_receive(message, &finished, &fault);
    }
    for (Request* r : finished) domain.complete(r, {}, &deferred);
    if (!fault.status.ok()) domain.raise(std::move(fault), &deferred);
    domain.advance(false, &deferred);
  }
  finish_start(hold.lock, &deferred);
}

bool Engine::advance(Deferred* deferred) {
  bool progress = false;
  for (size_t i = 0; i < domains_.size(); ++i) {
    if (domains_[i]->active() > 0 || domains_[i]->messages().open()) progress |= domains_[i]->advance(true, deferred);
  }
  if (!deferred->empty()) changed_.notify_all();
  return progress;
}

bool Engine::poll() {
  Hold hold(mutex_, contenders_);
  Deferred deferred;
  bool progress = advance(&deferred);
  const auto now = polled_ = options_.now();
  for (auto& d : domains_) progress |= d->check_deadlines(now, &deferred);
  run_deferred(hold.lock, &deferred);
  return progress;
}

bool Engine::driven() const {
  constexpr auto kLately = std::chrono::milliseconds(500);
  return waiters_ > 0 || options_.background || options_.now() < polled_ + kLately;
}

bool Engine::wait(Request& request, base::Deadline until) {
  if (request.done()) return true;
  Hold hold(mutex_, contenders_);
  ++waiters_;
  const bool done = drive(hold.lock, request, until);
  --waiters_;
  if (done) changed_.notify_all();
  return done;
}

bool Engine::drive(std::unique_lock<std::mutex>& lock, Request& request, base::Deadline until) {
  Deferred deferred;
  Patience patience;
  while (!request.done()) {
    if (advance(&deferred)) {
      patience = {};
      run_deferred(lock, &deferred);
      if (contenders_.load(std::memory_order_relaxed) > 0) step_aside(lock);
      continue;
    }
    run_deferred(lock, &deferred);
    if (request.done()) break;
    if (!idle(lock, &patience, options_.wait.spin_for, until.at, &deferred)) return false;
  }
  return true;
}

bool Engine::test(Request& request) {
  if (!request.done()) poll();
  return request.done();
}

void Engine::then(Request& request, std::function<void(const Status&)> callback) {
  {
    Hold hold(mutex_, contenders_);
    if (!request.done()) {
      request.callbacks.push_back(std::move(callback));
      return;
    }
  }
  callback(request.status());
}

void Engine::abort(Domain& domain, const Status& status) {
  Hold hold(mutex_, contenders_);
  Deferred deferred;
  domain.abort(status, &deferred);
  changed_.notify_all();
  wake();
  run_deferred(hold.lock, &deferred);
}

void Engine::suspend(Domain& domain) {
  Hold hold(mutex_, contenders_);
  domain.suspended_ = true;
}

void Engine::inspect(const std::function<void()>& f) {
  Hold hold(mutex_, contenders_);
  f();
}

// Gives the lock away. A thread that waits for it must first be woken, which takes longer than one yield: whoever
// takes the lock back at once shuts it out, for good if it does so again and again.
void Engine::step_aside(std::unique_lock<std::mutex>& lock) {
  lock.unlock();
  sched_yield();
  for (int i = 0; i < 1000 && contenders_.load(std::memory_order_relaxed) > 0; ++i) sched_yield();
  lock.lock();
}

bool Engine::idle(std::unique_lock<std::mutex>& lock, Patience* patience, base::Duration spin_for,
                  base::TimePoint until, Deferred* deferred) {
  constexpr uint32_t kTurnsPerLook = 32;  // at the clock, while spinning
  if (patience->spinning && patience->turns++ % kTurnsPerLook != 0) {
    pause();
    return true;
  }
  const auto now = options_.now();
  if (now >= until) return false;
  for (auto& d : domains_) d->check_deadlines(now, deferred);
  if (!deferred->empty()) {
    run_deferred(lock, deferred);
    return true;  // the lock was away: what the caller waits for may have come, and nobody wakes one who does not
                  // sleep yet
  }
  if (patience->since == base::TimePoint()) patience->since = now;
  const auto waited = now - patience->since;
  patience->spinning = waited < spin_for;
  if (patience->spinning && contenders_.load(std::memory_order_relaxed) == 0) {
    pause();
  } else if (waited < spin_for + options_.wait.yield_for) {
    step_aside(lock);
  } else {
    sleep(lock, until);
  }
  return true;
}

void Engine::sleep(std::unique_lock<std::mutex>& lock, base::TimePoint until) {
  for (auto& d : domains_) until = std::min(until, d->earliest_deadline());
  const auto left =
      std::clamp<base::Duration>(until - options_.now(), std::chrono::milliseconds(0), std::chrono::hours(1));
  if (sleeping_) {
    // Somebody sleeps for all of us; whatever completes, or its return, is announced.
    changed_.wait_for(lock,
                      std::min<base::Duration>(left + std::chrono::milliseconds(1), std::chrono::milliseconds(100)));
    return;
  }
  fds_.assign(1, {wake_fd_, POLLIN, 0});
  bool ready = false;
  int timeout =
      static_cast<int>(std::min<int64_t>(std::chrono::ceil<std::chrono::milliseconds>(left).count(), 60'000));
  for (auto& d : domains_) {
    if (d->suspended_ || (d->active() == 0 && !d->messages_.open())) continue;
    asleep_.push_back(d);
    for (auto& t : d->transports_) {
      if (t->failure() !=
          nullptr) {  // of a peer that nobody waits for here, or not yet; there is no other news of it
        timeout = std::min(timeout, 1);
        continue;
      }
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
    lock.unlock();
    ::poll(fds_.data(), fds_.size(), timeout);
    lock.lock();
    sleeping_ = false;
    uint64_t drained;
    [[maybe_unused]] auto n = read(wake_fd_, &drained, sizeof drained);
    changed_.notify_all();
  }
  for (auto& d : asleep_) {
    if (d->suspended_) continue;
    for (auto& t : d->transports_) t->awake();
  }
  asleep_.clear();
  if (ready) step_aside(lock);
}

void Engine::background() {
  std::unique_lock lock(mutex_);
  Deferred deferred;
  Patience patience;
  while (!stopping_) {
    bool busy = false;
    for (auto& d : domains_) busy |= d->active() > 0 && !d->suspended_;
    if (!busy) {
      work_.wait_for(lock, std::chrono::seconds(3600));
      continue;
    }
    if (advance(&deferred)) {
      patience = {};
      run_deferred(lock, &deferred);
    } else {
      // Never spins: the processor belongs to the computation.
      idle(lock, &patience, base::Duration::zero(), base::TimePoint::max(), &deferred);
    }
    if (contenders_.load(std::memory_order_relaxed) > 0) step_aside(lock);
  }
}

}  // namespace ringfold::exec
