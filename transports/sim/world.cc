#include "transports/sim/endpoint.h"

namespace ringfold::sim {

World::World(uint64_t seed, const Options& options) : options_(options), random_(seed) {}
World::~World() = default;

void World::at(base::TimePoint when, Task task) {
  events_.push({std::max(when, now_), next_number_++, std::move(task)});
}

bool World::step() {
  if (events_.empty()) return false;
  now_ = events_.top().when;
  Task task = events_.top().task;
  events_.pop();
  task();
  return true;
}

base::Duration World::between(base::Duration least, base::Duration most) {
  return least + base::Duration(static_cast<int64_t>(roll(static_cast<uint64_t>((most - least).count()) + 1)));
}

bool World::alive(int p) const { return !processes_[p].dead; }

bool World::runnable(int p) const {
  const Process& state = processes_[p];
  return !state.dead && !state.stopped && now_ >= state.busy_until;
}

void World::kill(int p) {
  if (std::exchange(process(p).dead, true)) return;
  for (auto& [key, endpoint] : endpoints_) {
    if (key.second == p) endpoint->leave(true);
  }
}

void World::cut(int a, int b) {
  for (auto& [key, endpoint] : endpoints_) {
    if (key.second == a) endpoint->lose(b);
    if (key.second == b) endpoint->lose(a);
  }
}

void World::stop(int p) { process(p).stopped = true; }

void World::resume(int p) {
  process(p).stopped = false;
  for (auto& task : std::exchange(process(p).inbox, {})) {
    if (!process(p).dead) task();
  }
}

void World::slow(int p, base::Duration most) { process(p).slowness = most; }

void World::ran(int p) {
  Process& state = process(p);
  if (state.slowness == base::Duration::zero()) return;
  state.busy_until = now_ + between({}, state.slowness);
  at(state.busy_until, [] {});
}

void World::post(int from, int to, base::Duration delay, Task task) {
  base::TimePoint& last = last_post_[{from, to}];
  last = std::max(last, now_ + delay);
  at(last, [this, to, task = std::move(task)] {
    Process& receiver = process(to);
    if (receiver.dead) return;
    if (receiver.stopped) {
      receiver.inbox.push_back(task);
    } else {
      task();
    }
  });
}

std::unique_ptr<transport::Transport> World::make(int process, uint64_t nonce) {
  return std::make_unique<Endpoint>(this, process, nonce);
}

}  // namespace ringfold::sim
