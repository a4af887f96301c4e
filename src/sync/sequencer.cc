#include "sync/sequencer.h"

#include <algorithm>

#include "sync/mix.h"

namespace ringfold::sync {

Result<Sequencer> Sequencer::make(Options options) {
  if (options.workers < 1) return Status(Code::kInvalid, "a parameter server needs at least one worker");
  if (options.seed && !options.order.empty())
    return Status(Code::kInvalid, "the order of updates is either drawn from a seed or given, not both");
  for (int w : options.order) {
    if (w < 0 || w >= options.workers) {
      return Status(Code::kInvalid, "the order of updates names worker " + std::to_string(w) + " of " +
                                        std::to_string(options.workers) + ": it is of another number of ranks");
    }
  }
  return Sequencer(std::move(options));
}

Sequencer::Sequencer(Options options)
    : options_(std::move(options)), workers_(static_cast<size_t>(options_.workers)) {}

uint64_t Sequencer::most() const {
  if (folds()) return 0;
  const auto n = static_cast<uint64_t>(options_.workers);
  return options_.bound > kUnbounded / 2 / n ? kUnbounded / 2 : options_.bound * n;
}

void Sequencer::begin(std::vector<uint64_t> items) {
  items_ = std::move(items);
  next_item_ = 0;
  for (Worker& w : workers_) {
    w = {.read = version_};
    if (next_item_ == items_.size()) continue;
    w.busy = true;
    w.item = items_[next_item_++];
  }
}

Status Sequencer::ask(int worker) {
  if (worker < 0 || worker >= options_.workers)
    return Status(Code::kInvalid, "there is no worker " + std::to_string(worker));
  Worker& w = workers_[static_cast<size_t>(worker)];
  if (!w.busy || w.asked) {
    return Status(Code::kInvalid, "worker " + std::to_string(worker) +
                                      (w.asked ? " asked twice for one gradient" : " has nothing to update with"));
  }
  w.asked = true;
  w.arrival = arrivals_++;
  return {};
}

bool Sequencer::idle() const {
  return std::none_of(workers_.begin(), workers_.end(), [](const Worker& w) { return w.busy; });
}

int Sequencer::holds_up() const {
  if (std::none_of(workers_.begin(), workers_.end(), [](const Worker& w) { return w.asked; })) return -1;
  int oldest = -1;
  for (int i = 0; i < options_.workers; ++i) {
    const Worker& w = workers_[static_cast<size_t>(i)];
    if (!w.busy || w.asked) continue;
    if (drawn_ == i) return i;
    if (oldest < 0 || w.read < workers_[static_cast<size_t>(oldest)].read) oldest = i;
  }
  return oldest;
}

bool Sequencer::may_go(int worker) const {
  const uint64_t after = version_ + 1, most = this->most();
  std::vector<uint64_t> reads;
  for (int i = 0; i < options_.workers; ++i) {
    const Worker& w = workers_[static_cast<size_t>(i)];
    if (w.busy && i != worker) reads.push_back(w.read);
  }
  if (next_item_ < items_.size()) reads.push_back(after);
  std::sort(reads.begin(), reads.end());
  for (size_t k = 0; k < reads.size(); ++k) {
    if (after + k > reads[k] + most) return false;
  }
  return true;
}

// Who goes next, whether it has asked or not; -1: nobody can.
Result<int> Sequencer::choose() {
  if (!options_.order.empty()) {
    if (order_.size() >= options_.order.size()) {
      return Status(Code::kInvalid, "the recorded order ends after " + std::to_string(order_.size()) +
                                        " updates: it is of a shorter run");
    }
    const int next = options_.order[order_.size()];
    if (!workers_[static_cast<size_t>(next)].busy || (!folds() && !may_go(next))) {
      return Status(Code::kInvalid, "update " + std::to_string(order_.size()) + " of the recorded order, by worker " +
                                        std::to_string(next) + ", cannot be: it is of a run with other options");
    }
    return next;
  }
  if (options_.seed) {
    if (drawn_ >= 0) return drawn_;
    std::vector<int> able;
    for (int i = 0; i < options_.workers; ++i) {
      if (workers_[static_cast<size_t>(i)].busy && may_go(i)) able.push_back(i);
    }
    if (able.empty()) return -1;
    const uint64_t draw = mix(mix(*options_.seed) ^ ticket_) >> 32;
    return drawn_ = able[(draw * able.size()) >> 32];
  }
  int first = -1;
  for (int i = 0; i < options_.workers; ++i) {
    const Worker& w = workers_[static_cast<size_t>(i)];
    if (!w.asked || (first >= 0 && workers_[static_cast<size_t>(first)].arrival < w.arrival)) continue;
    if (may_go(i)) first = i;
  }
  return first;
}

Result<std::optional<Grant>> Sequencer::grant() {
  if (folds()) {
    if (closing_.empty()) {
      const auto computes = [](const Worker& w) { return w.busy && !w.asked; };
      if (idle() || std::any_of(workers_.begin(), workers_.end(), computes)) return std::optional<Grant>();
      for (int i = 0; i < options_.workers; ++i) {
        if (workers_[static_cast<size_t>(i)].busy) closing_.push_back(i);
      }
    }
    const int worker = closing_.front();
    closing_.erase(closing_.begin());
    return std::optional<Grant>(give(worker, closing_.empty()));
  }
  if (idle()) return std::optional<Grant>();
  auto next = choose();
  if (!next.ok()) return next.status();
  if (*next < 0 || !workers_[static_cast<size_t>(*next)].asked) return std::optional<Grant>();
  drawn_ = -1;
  return std::optional<Grant>(give(*next, true));
}

Grant Sequencer::give(int worker, bool closes) {
  Worker& w = workers_[static_cast<size_t>(worker)];
  Grant grant{.worker = worker, .ticket = ticket_++, .staleness = version_ - w.read, .closes = closes};
  const size_t k = static_cast<size_t>(grant.staleness);
  if (histogram_.size() <= k) histogram_.resize(k + 1);
  ++histogram_[k];
  order_.push_back(worker);
  w.asked = false;
  w.busy = grant.more = next_item_ < items_.size();
  if (w.busy) grant.item = w.item = items_[next_item_++];
  if (closes) ++version_;
  if (!folds()) {
    w.read = version_;
  } else if (closes) {  // all that took part read what comes of it
    for (Worker& other : workers_) other.read = version_;
  }
  return grant;
}

void Sequencer::set_tickets(uint64_t tickets, uint64_t version) {
  ticket_ = tickets;
  version_ = version;
}

}  // namespace ringfold::sync
