// The part of Control that is the same over sockets and in memory: topics, kept messages, losses and exchanges.
#include "comm/control.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "comm/text.h"
#include "comm/wire.h"

namespace ringfold::comm {
namespace {

constexpr std::string_view kExchange = "\x01";  // the topic of exchanges; callers' topics are printable
constexpr size_t kMaxKept = 64 << 20;
constexpr size_t kOverhead = 64;  // of a kept message, so that empty ones are bounded as well

}  // namespace

Peers::Peers(std::vector<PeerInfo> first) : now_(first.size()) {
  for (size_t r = 0; r < first.size(); ++r) replace(r, std::move(first[r]));
}

void Peers::replace(size_t rank, PeerInfo info) {
  now_[rank].store(&all_.emplace_back(std::move(info)), std::memory_order_release);
}

bool Control::may_keep(size_t bytes, std::string_view topic) {
  if (kept_bytes_ + bytes + kOverhead <= kMaxKept) {
    kept_bytes_ += bytes + kOverhead;
    return true;
  }
  if (!overflowed_)
    log::warn("control messages that nobody reads exceed {} MiB; dropping those of \"{}\"", kMaxKept >> 20, topic);
  overflowed_ = true;
  return false;
}

void Control::deliver(int from, std::string_view topic, std::string_view bytes) {
  std::unique_lock lock(mutex_);
  if (topic == kExchange) {
    Reader reader(bytes);
    std::string key(reader.text());
    auto blob = reader.rest();
    if (!reader.ok() || !may_keep(blob.size(), key)) return;
    blobs_[key][from].emplace_back(blob);
    changed_.notify_all();
    return;
  }
  if (retired_.contains(topic)) return;
  auto it = topics_.find(topic);
  if (it == topics_.end()) it = topics_.emplace(topic, std::make_shared<Topic>()).first;
  if (!may_keep(bytes.size(), topic)) return;
  it->second->events.push_back({Event::Kind::kMessage, from, std::string(bytes), {}, {}});
  if (!it->second->subscriber) return;
  const std::string name = it->first;
  lock.unlock();
  drain(name);
}

void Control::lose(int peer, Status why, bool left) {
  std::vector<std::string> names;
  {
    std::lock_guard lock(mutex_);
    guests_.erase(peer);
    if (losses_[peer]) return;
    losses_[peer] = Loss{why, left};
    changed_.notify_all();
    for (auto& [name, topic] : topics_) {
      if (!topic->subscriber) continue;
      topic->events.push_back({Event::Kind::kLoss, peer, {}, why, {}});
      names.push_back(name);
    }
  }
  for (const auto& name : names) drain(name);
}

// On the control thread. Delivers a topic's events in order. A callback that causes events of its own topic leaves
// them to the drain that it runs under.
void Control::drain(const std::string& name) {
  std::unique_lock lock(mutex_);
  auto it = topics_.find(name);
  if (it == topics_.end() || it->second->running) return;
  const auto topic = it->second;  // survives unsubscribe
  while (topic->subscriber && !topic->events.empty()) {
    Event event = std::move(topic->events.front());
    topic->events.pop_front();
    if (event.kind == Event::Kind::kMessage) kept_bytes_ -= event.bytes.size() + kOverhead;
    auto subscriber = topic->subscriber;
    topic->running = true;
    lock.unlock();
    if (event.kind == Event::Kind::kMessage && subscriber->first) subscriber->first(event.peer, event.bytes);
    if (event.kind == Event::Kind::kLoss && subscriber->second) subscriber->second(event.peer, event.why);
    if (event.kind == Event::Kind::kTask) event.task();
    event.task = nullptr;
    subscriber.reset();
    lock.lock();
    topic->running = false;
    changed_.notify_all();
  }
}

void Control::send(int peer, std::string_view topic, std::string_view bytes) {
  if (peer != rank_) return transmit(peer, topic, bytes);
  post([this, topic = std::string(topic), bytes = std::string(bytes)] { deliver(rank_, topic, bytes); });
}

void Control::subscribe(const std::string& name, OnMessage on_message, OnLost on_lost) {
  {
    std::lock_guard lock(mutex_);
    retired_.erase(name);
    auto& topic = topics_[name];
    if (!topic) topic = std::make_shared<Topic>();
    topic->subscriber =
        std::make_shared<const std::pair<OnMessage, OnLost>>(std::move(on_message), std::move(on_lost));
    for (size_t peer = 0; peer < losses_.size(); ++peer) {
      if (losses_[peer])
        topic->events.push_back({Event::Kind::kLoss, static_cast<int>(peer), {}, losses_[peer]->why, {}});
    }
  }
  post([this, name] { drain(name); });
}

void Control::unsubscribe(const std::string& name) {
  std::unique_lock lock(mutex_);
  auto it = topics_.find(name);
  retired_.insert(name);
  if (it == topics_.end()) return;
  const auto topic = it->second;
  topics_.erase(it);
  for (const auto& event : topic->events) {
    if (event.kind == Event::Kind::kMessage) kept_bytes_ -= event.bytes.size() + kOverhead;
  }
  auto events = std::move(topic->events);
  auto subscriber = std::move(topic->subscriber);
  topic->events.clear();
  topic->subscriber = nullptr;
  if (!on_control_thread()) changed_.wait(lock, [&] { return !topic->running; });
  lock.unlock();  // before what the callbacks own is destroyed
}

void Control::run_at(const std::string& name, base::TimePoint when, std::function<void()> task) {
  std::weak_ptr<Topic> weak;
  {
    std::lock_guard lock(mutex_);
    auto it = topics_.find(name);
    if (it == topics_.end() || !it->second->subscriber) return;
    weak = it->second;
  }
  post_at(when, [this, name, weak, task = std::move(task)]() mutable {
    {
      std::lock_guard lock(mutex_);
      auto topic = weak.lock();
      if (!topic || !topic->subscriber) return;
      topic->events.push_back({Event::Kind::kTask, -1, {}, {}, std::move(task)});
    }
    drain(name);
  });
}

Status Control::alive(int peer) const {
  std::lock_guard lock(mutex_);
  return losses_[peer] ? losses_[peer]->why : Status();
}

bool Control::has_left(int peer) const {
  std::lock_guard lock(mutex_);
  return losses_[peer] && losses_[peer]->left;
}

void Control::arrive(int peer, PeerInfo info) {
  std::lock_guard lock(mutex_);
  guests_[peer] = Guest{std::move(info)};
}

void Control::ready(int peer) {
  std::lock_guard lock(mutex_);
  if (const auto it = guests_.find(peer); it != guests_.end()) it->second.ready = true;
}

std::vector<Control::Arrival> Control::arrivals() const {
  std::lock_guard lock(mutex_);
  std::vector<Arrival> all;
  for (const auto& [rank, guest] : guests_) all.push_back({rank, guest.ready});
  return all;
}

void Control::admit(int rank) {
  std::lock_guard lock(mutex_);
  const auto it = guests_.find(rank);
  if (it == guests_.end()) return;
  peers_.replace(static_cast<size_t>(rank), std::move(it->second.info));
  losses_[static_cast<size_t>(rank)].reset();
  guests_.erase(it);
}

void Control::expect(int rank) {
  std::lock_guard lock(mutex_);
  const auto r = static_cast<size_t>(rank);
  if (rank != rank_ && !losses_[r]) guests_.emplace(rank, Guest{peers_[r], true});
}

void Control::end_exchanges_of(const std::string& name) {
  std::lock_guard lock(mutex_);
  ended_.insert(name + "/");
  changed_.notify_all();
}

bool Control::ended(std::string_view key) const {
  const size_t slash = std::min(key.find('/'), key.size() - 1);
  const std::string_view kind = key.substr(0, slash), name = key.substr(slash + 1);
  if (kind == "ready") return false;
  const int generations = kind == "wire" || kind == "figures" ? 1 : 0;  // before it is there
  return std::any_of(ended_.begin(), ended_.end(), [&](const std::string& over) {
    if (!name.starts_with(over)) return false;
    const std::string_view rest = name.substr(over.size());
    return std::count(rest.begin(), rest.end(), ':') <= generations && rest.find('~') == rest.npos;
  });
}

Result<std::vector<std::string>> Control::exchange(const std::string& key, std::span<const int> members,
                                                   std::string_view blob, base::Deadline deadline,
                                                   WhenGone when_gone) {
  const bool valid = std::all_of(members.begin(), members.end(), [&](int m) { return m >= 0 && m < size(); });
  if (!valid || std::count(members.begin(), members.end(), rank_) != 1) {
    return Status(
        Code::kInvalid,
        fmt::format("exchange \"{}\": the members must be ranks of the job with this rank among them", key));
  }
  const auto frame = Writer().text(key).bytes(blob).take();
  if (frame.size() > kMaxMessage)
    return Status(Code::kInvalid, fmt::format("exchange \"{}\": {} bytes are too many", key, blob.size()));
  for (int m : members) {
    if (m != rank_) transmit(m, kExchange, frame);
  }

  const auto begin = base::Clock::now();
  std::unique_lock lock(mutex_);
  auto has = [&](int m) {
    auto it = blobs_.find(key);
    return m == rank_ || (it != blobs_.end() && it->second.contains(m));
  };
  for (;;) {
    std::vector<int> missing;
    for (int m : members) {
      const bool gone = losses_[m].has_value();
      if ((has(m) && !(gone && when_gone == WhenGone::kFail)) || (gone && when_gone == WhenGone::kGoOn)) continue;
      if (gone) {
        return Status(Code::kPeerLost, fmt::format("rank {} on {}: {}", m, peer(m).host, losses_[m]->why.message()));
      }
      missing.push_back(m);
    }
    if (missing.empty()) break;
    if (ended(key)) return Status(Code::kPeerLost, fmt::format("\"{}\": its communicator has failed meanwhile", key));
    if (deadline.passed()) {
      return Status(Code::kTimeout, fmt::format("rank{} {} of {} did not join \"{}\" within {:.3g} s",
                                                missing.size() == 1 ? "" : "s", list_ranks(missing), members.size(),
                                                key, base::seconds_of(base::Clock::now() - begin)));
    }
    changed_.wait_for(lock, deadline.left());
  }
  std::vector<std::string> result;
  for (int m : members) {
    if (m == rank_) {
      result.emplace_back(blob);
      continue;
    }
    if (!has(m)) {
      result.emplace_back();
      continue;
    }
    auto& queue = blobs_[key][m];
    kept_bytes_ -= queue.front().size() + kOverhead;
    result.push_back(std::move(queue.front()));
    queue.pop_front();
    if (queue.empty()) blobs_[key].erase(m);
  }
  if (auto it = blobs_.find(key); it != blobs_.end() && it->second.empty()) blobs_.erase(it);
  return result;
}

}  // namespace ringfold::comm
