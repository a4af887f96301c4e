#include "exec/domain.h"

#include <fmt/format.h>

#include <algorithm>

#include "exec/engine.h"

namespace ringfold::exec {

Domain::Domain(int rank, int size, std::vector<std::unique_ptr<transport::Transport>> transports,
               std::vector<int> route)
    : rank_(rank),
      size_(size),
      transports_(std::move(transports)),
      route_(std::move(route)),
      messages_(rank, size, [this](int peer) { return link(peer, transport::kMessageLane); }) {
  retiring_.reserve(64);
}

// Nothing is in the pools: it would keep the domain alive.
Domain::~Domain() {
  for (auto& t : transports_) t->stop();
}

transport::Link* Domain::link(int peer, int lane) { return transports_[route_[peer]]->open(peer, lane); }

Standing Domain::standing() const {
  Standing s;
  s.contract = last_;
  for (uint32_t k = last_.sequence - std::min(last_.sequence, kRemembered); k < last_.sequence; ++k) {
    s.recent.push_back(recent_[(k + 1) % kRemembered]);
  }
  for (Request* request : active_) {
    if (auto* run = dynamic_cast<Run*>(request)) {
      // The oldest collective is the one that everything else waits behind.
      s.contract = run->contract();
      s.inside = true;
      s.waits_for = run->waits_for();
      s.text = run->describe();
      return s;
    }
  }
  for (Request* request : active_) {
    const auto* message = dynamic_cast<const Message*>(request);
    if (message != nullptr && !message->awaited()) continue;
    s.inside = true;
    s.text = request->describe();
    s.waits_for = waits_for(request);
    return s;
  }
  if (last_.sequence != 0) {
    s.text = fmt::format("{} #{}", last_.to_string(), last_.sequence);
  }
  return s;
}

Counters Domain::counters() const {
  Counters c;
  c.touched_bytes = touched_bytes_ + messages_.touched_bytes();
  for (const auto& t : transports_) {
    const transport::Counters mine = t->counters();
    c.touched_bytes += 2 * (mine.copied_bytes + mine.system_bytes);
    c.system_calls += mine.system_calls;
    c.wakeups += mine.wakeups;
    c.puts += mine.puts;
    c.put_bytes += mine.put_bytes;
    c.work_requests += mine.work_requests;
    c.doorbells += mine.doorbells;
    c.completions += mine.completions;
  }
  return c;
}

void Domain::track(Request* request) {
  request->ref_unshared();
  active_.push_back(request);
}

void Domain::enqueue(Run* run) {
  track(run);
  note(run->contract());
  for (int lane = 0; lane < run->lanes(); ++lane) {
    if (tail_[lane] != nullptr) {
      tail_[lane]->next[lane] = run;
    } else {
      head_[lane] = run;
    }
    tail_[lane] = run;
  }
}

void Domain::complete(Request* request, const Status& status, std::vector<std::function<void()>>* deferred) {
  active_.erase(request);
  request->end(status, deferred);
  engine_->completed();
  request->unref();
}

void Domain::finish_messages(std::vector<std::function<void()>>* deferred) {
  for (Request* request : finished_) {
    request->landed();
    complete(request, {}, deferred);
  }
}

void Domain::raise(Fault fault, std::vector<std::function<void()>>* deferred) {
  if (suspended_) return;
  suspended_ = true;
  if (on_fault) deferred->push_back([hook = on_fault, fault = std::move(fault)] { hook(fault); });
}

bool Domain::advance_runs(std::vector<std::function<void()>>* deferred) {
  bool progress = false;
  Fault fault;
  for (int lane = 0; lane < transport::kCollectiveLanes; ++lane) {
    while (Run* run = head_[lane]) {
      const Advance a = run->advance(lane, &fault);
      if (a == Advance::kFault) {
        raise(std::move(fault), deferred);
        return true;
      }
      progress |= a != Advance::kBlocked;
      if (a != Advance::kFinished) break;
      head_[lane] = run->next[lane];
      if (head_[lane] == nullptr) tail_[lane] = nullptr;
      if (--run->lanes_left == 0) {
        touched_bytes_ += run->touched_bytes;
        if (run->retired()) {
          complete(run, {}, deferred);
        } else {
          retiring_.push_back(run);
        }
      }
    }
  }
  for (size_t i = 0; i < retiring_.size();) {
    if (retiring_[i]->retired()) {
      Run* run = retiring_[i];
      retiring_.erase(retiring_.begin() + static_cast<int64_t>(i));
      complete(run, {}, deferred);
      progress = true;
    } else {
      ++i;
    }
  }
  return progress;
}

bool Domain::advance_direct(std::vector<std::function<void()>>* deferred) {
  bool progress = false;
  while (!direct_.empty()) {
    Fault fault;
    const Advance a = direct_.front()->advance(&fault);
    if (a == Advance::kFault) {
      raise(std::move(fault), deferred);
      return true;
    }
    progress |= a != Advance::kBlocked;
    if (a != Advance::kFinished) break;
    Direct* call = direct_.front();
    direct_.pop_front();
    complete(call, {}, deferred);
  }
  return progress;
}

bool Domain::advance_for(const Request& request, std::vector<std::function<void()>>* deferred) {
  if (suspended_) return false;
  if (collectives()) return advance_runs(deferred);
  const int peer = request.listens_to();
  if (peer < 0) return false;
  Fault fault;
  finished_.clear();
  messages_.poll_peer(peer, &finished_, &fault);
  const bool progress = !finished_.empty() || !fault.status.ok();
  settle(std::move(fault), deferred);
  return progress;
}

// With collectives on several lanes there is more to look at than one word.
transport::Watch Domain::watch(const Request& request) const {
  if (suspended_) return {};
  if (collectives()) return !collectives_beside() ? head_[0]->watch() : transport::Watch();
  const int peer = request.listens_to();
  return peer >= 0 ? messages_.watch(peer) : transport::Watch();
}

bool Domain::advance(bool waiting, std::vector<std::function<void()>>* deferred) {
  if (suspended_) return false;
  for (auto& t : transports_) t->progress();
  bool progress = advance_runs(deferred);
  if (!suspended_ && !direct_.empty()) progress |= advance_direct(deferred);
  if (suspended_) return true;
  if (!messages_.open() && !progress) {
    // A peer may send before this rank has any message of its own: take it in, so that the peer's send can end.
    for (auto& t : transports_) {
      if (t->wanted(transport::kMessageLane)) messages_.open_all();
    }
  }
  if (messages_.open()) {
    Fault fault;
    finished_.clear();
    // What is taken in before its receive is posted is copied twice, and a rank that has got further may post it now.
    progress |= messages_.poll(waiting && !progress, &finished_, &fault);
    finish_messages(deferred);
    if (!fault.status.ok()) {
      raise(std::move(fault), deferred);
      return true;
    }
  }
  if (!progress) {
    for (auto& t : transports_) {
      // A peer that is gone matters to those who wait for it: it may have left in order. Deaths are told by the
      // control mesh.
      for (const transport::Failure& f : t->failures()) {
        if (!waits_on(f.peer)) continue;
        raise({FaultKind::kPeer, f.peer, f.status}, deferred);
        return true;
      }
    }
  }
  return progress;
}

void Domain::post(Message* message, std::vector<std::function<void()>>* deferred) {
  Fault fault;
  finished_.clear();
  if (message->send) {
    messages_.post_send(message, &finished_, &fault);
  } else {
    messages_.post_receive(message, &finished_, &fault);
    if (fault.status.ok() && message->peer != kAnySource) messages_.poll_peer(message->peer, &finished_, &fault);
  }
  settle(std::move(fault), deferred);
  if (collectives() || message->peer == kAnySource) advance(false, deferred);
}

void Domain::settle(Fault fault, std::vector<std::function<void()>>* deferred) {
  finish_messages(deferred);
  if (!fault.status.ok()) raise(std::move(fault), deferred);
}

int Domain::waits_for(Request* request) const {
  if (auto* run = dynamic_cast<Run*>(request)) return run->waits_for();
  if (auto* direct = dynamic_cast<Direct*>(request)) return direct->waits_for();
  return messages_.waits_for(request);
}

bool Domain::waits_on(int peer) const {
  for (Request* request : active_) {
    const int waits = waits_for(request);
    if (waits == peer || (waits == kAnySource && dynamic_cast<Message*>(request) != nullptr)) return true;
  }
  return false;
}

bool Domain::check_deadlines(base::TimePoint now, std::vector<std::function<void()>>* deferred) {
  if (suspended_) return false;
  for (Request* request : active_) {
    if (now >= request->deadline.at) {
      raise(
          {FaultKind::kTimeout, -1, Status(Code::kTimeout, request->describe() + " did not finish by its deadline")},
          deferred);
      return true;
    }
  }
  return false;
}

base::TimePoint Domain::earliest_deadline() const {
  auto at = base::TimePoint::max();
  if (suspended_) return at;
  for (Request* request : active_) at = std::min(at, request->deadline.at);
  return at;
}

void Domain::abort(const Status& status, std::vector<std::function<void()>>* deferred) {
  if (!dead_.ok()) return;
  suspended_ = true;
  dead_ = status;
  // Quiesce first: from here on no transport touches a buffer, so the runs may be given back.
  for (auto& t : transports_) t->abandon();
  head_ = {};
  tail_ = {};
  retiring_.clear();
  direct_.clear();
  messages_.clear();
  close_pools();
  while (!active_.empty()) complete(active_.front(), status, deferred);
}

}  // namespace ringfold::exec
