#include "comm/agreement.h"

#include <fmt/format.h>

#include <algorithm>

namespace ringfold::comm {
namespace {
using base::Duration;
constexpr int kMaxNaps = 3;
constexpr int kPatience = 3;  // graces
constexpr int kTicks = 8;     // looks at the clock in a grace
constexpr int kOnTime = 64;   // a timer that comes late by less than this part of a grace is on time
constexpr int kStepsOfAnswer =
    4;  // through the hands of processors that are as busy as ours: hear, report, hear, conclude
constexpr int kMostHeldUp = 5;  // graces, for all that came late
}  // namespace

Agreement::Agreement(Options options) : options_(std::move(options)) {}

// ---- causes ----

void Agreement::suspect(int peer, Code code, std::string cause, TimePoint now) {
  if (peer < 0 || peer >= size() || peer == options_.rank) return;
  listen_again_after_sleep(now);
  add_suspect(peer, {false, code == Code::kOk ? Code::kPeerLost : code, std::move(cause)}, now);
  abort(now);
  advance(now);
}

void Agreement::link_broke(int peer, Code code, std::string cause, TimePoint now) {
  if (peer < 0 || peer >= size() || peer == options_.rank) return;
  listen_again_after_sleep(now);
  dirty_ |= mine_.evidence.broken_links.try_emplace(peer, Loss{code, std::move(cause)}).second;
  abort(now);
  advance(now);
}

void Agreement::timed_out(std::string what, TimePoint now) {
  listen_again_after_sleep(now);
  if (!mine_.evidence.timeout) dirty_ = true, mine_.evidence.timeout = std::move(what);
  abort(now);
  advance(now);
}

void Agreement::mismatched(int peer, std::string cause, TimePoint now) {
  if (peer < 0 || peer >= size()) return;
  listen_again_after_sleep(now);
  dirty_ |= mine_.evidence.mismatches.try_emplace(peer, std::move(cause)).second;
  abort(now);
  advance(now);
}

void Agreement::request_abort(std::string cause, TimePoint now) {
  listen_again_after_sleep(now);
  if (!mine_.evidence.abort) dirty_ = true, mine_.evidence.abort = std::move(cause);
  abort(now);
  advance(now);
}

void Agreement::stand(Standing standing, TimePoint now) {
  if (mine_.stands) return;
  listen_again_after_sleep(now);
  mine_.standing = std::move(standing);
  if (mine_.standing.waits_for < -1 || mine_.standing.waits_for >= size()) mine_.standing.waits_for = -1;
  mine_.stands = dirty_ = true;
  advance(now);
}

void Agreement::abort(TimePoint now) {
  if (aborting_) return;
  aborting_ = true;
  since_ = now;
  dirty_ = true;
}

void Agreement::add_suspect(int peer, Suspicion suspicion, TimePoint now) {
  auto [it, added] = mine_.suspects.try_emplace(peer, suspicion);
  if (added) {
    since_ = now;
    ready_since_.reset();
    dirty_ = true;
  } else if (it->second.silent && !suspicion.silent) {
    it->second = std::move(suspicion);  // it is not only silent, it is gone
  }
}

// ---- the others ----

void Agreement::on_message(int from, std::string_view bytes, TimePoint now) {
  hear(from, bytes, now);
  advance(now);
}

void Agreement::hear(int from, std::string_view bytes, TimePoint now) {
  if (from < 0 || from >= size() || from == options_.rank) return;
  listen_again_after_sleep(now);
  auto message = decode(bytes, size());
  if (!message) {
    add_suspect(from, {false, Code::kProtocol, "it sent bytes that no Ringfold sends"}, now);
    return abort(now);
  }
  if (message->epoch != options_.epoch) return;

  if (message->issued) {
    // Our report was a promise to take nothing from those we suspect.
    if (consider_exclusion(*message->issued, now) || decision_ || !present(message->issued->leader)) return;
    abort(now);
    return accept(*std::move(message->issued));
  }

  Report& report = *message->report;
  const bool asks = !report.accepted;
  for (const auto& [peer, suspicion] : report.suspects) add_suspect(peer, suspicion, now);
  if (report.accepted && consider_exclusion(*report.accepted, now)) return;
  reports_[from] = std::move(report);
  if (!decision_) return abort(now);
  if (!asks || excluded_) return;
  // We have decided and somebody has not. To one that was excluded, or as the leader, the decision itself; to others
  // a report that carries it, for their leader to issue again.
  const auto& survivors = decision_->survivors;
  const bool survives = std::binary_search(survivors.begin(), survivors.end(), from);
  if (!survives || leader() == options_.rank) {
    outbox_.push_back(
        {from, encode(Issued{survives ? options_.rank : mine_.accepted->leader, *decision_}, options_.epoch)});
  } else {
    outbox_.push_back({from, encode(mine_, options_.epoch)});
  }
}

// Others may have decided without us: then they are right, unless it is us who went on without them.
bool Agreement::consider_exclusion(const Issued& issued, TimePoint now) {
  const auto& survivors = issued.decision.survivors;
  if (std::binary_search(survivors.begin(), survivors.end(), options_.rank)) return false;
  const bool known = std::any_of(survivors.begin(), survivors.end(), [&](int rank) {
    return decision_ ? std::binary_search(decision_->survivors.begin(), decision_->survivors.end(), rank)
                     : present(rank);
  });
  if (known && !excluded_) {
    abort(now);
    accept(issued);
  }
  return true;
}

void Agreement::tick(TimePoint now) {
  listen_again_after_sleep(now);
  advance(now);
}

std::optional<Agreement::TimePoint> Agreement::next_timer() const {
  if (!aborting_ || decision_) return std::nullopt;
  // Often in any case: a timer that comes late tells that we were asleep, or that this machine has too much to do.
  auto first = looked_ + options_.grace / kTicks;
  if (ready_since_) return std::min(first, *ready_since_ + options_.grace / 2 + held_up_);
  first = std::min(first, since_ + kPatience * options_.grace);
  for (int rank = 0; rank < size(); ++rank) {
    if (rank != options_.rank && present(rank) && !up_to_date(rank)) first = std::min(first, limit_of(rank));
  }
  return first;
}

std::vector<Agreement::Message> Agreement::take_messages() {
  std::vector<Message> result;
  result.swap(outbox_);
  return result;
}

// ---- the protocol ----

bool Agreement::up_to_date(int rank) const {
  auto it = reports_.find(rank);
  if (it == reports_.end()) return false;
  return std::all_of(mine_.suspects.begin(), mine_.suspects.end(),
                     [&](const auto& suspect) { return it->second.suspects.contains(suspect.first); });
}

int Agreement::leader() const {
  for (int rank = 0; rank < size(); ++rank) {
    if (present(rank)) return rank;
  }
  return options_.rank;  // suspected by others, and all others gone: nobody else is left to decide
}

bool Agreement::complete() const {
  for (int rank = 0; rank < size(); ++rank) {
    if (rank != options_.rank && present(rank) && !up_to_date(rank)) return false;
  }
  return true;
}

bool Agreement::all_stand() const {
  return mine_.stands && std::all_of(reports_.begin(), reports_.end(), [this](const auto& entry) {
           return !present(entry.first) || entry.second.stands;
         });
}

// Until when its next report is waited for.
Agreement::TimePoint Agreement::limit_of(int rank) const {
  return since_ + (reports_.contains(rank) ? kPatience : 1) * options_.grace + held_up_;
}

void Agreement::listen_again_after_sleep(TimePoint now) {
  const auto due = next_timer();
  if (!due) {
    looked_ = now;
    return;
  }
  if (now < *due) return;
  looked_ = now;
  const auto late = now - *due;
  if (late >= options_.grace / 2 && naps_ < kMaxNaps) {
    ++naps_;
    since_ = now;
    if (ready_since_) ready_since_ = now;
  } else if (late > options_.grace / kOnTime) {
    held_up_ = std::max(held_up_, std::min<Duration>(kStepsOfAnswer * late, kMostHeldUp * options_.grace));
  }
}

void Agreement::advance(TimePoint now) {
  if (!aborting_ || decision_) return;
  auto silent = [&](int rank) { add_suspect(rank, {true, Code::kPeerLost, "stopped answering"}, now); };
  for (;;) {
    if (!complete()) {
      ready_since_.reset();
      std::vector<int> missing;  // first of all: each new suspect outdates the reports
      for (int rank = 0; rank < size(); ++rank) {
        if (rank != options_.rank && present(rank) && !up_to_date(rank) && now >= limit_of(rank))
          missing.push_back(rank);
      }
      if (missing.empty()) break;
      for (int rank : missing) silent(rank);
      continue;
    }
    if (!ready_since_ && !all_stand() && now < since_ + kPatience * options_.grace) break;
    if (leader() == options_.rank) return issue();
    if (!ready_since_) ready_since_ = now;
    if (now < *ready_since_ + options_.grace / 2 + held_up_) break;
    silent(leader());
  }
  if (dirty_) flood(encode(mine_, options_.epoch));
  dirty_ = false;
}

// We lead, and every present member has promised to follow. If one of them holds a decision, that is the decision.
void Agreement::issue() {
  const Issued* found = nullptr;
  for (const auto& [rank, report] : reports_) {
    if (present(rank) && report.accepted && (found == nullptr || report.accepted->leader > found->leader))
      found = &*report.accepted;
  }
  Issued issued;
  if (found != nullptr) {
    issued.decision = found->decision;
  } else {
    auto all = reports_;
    all[options_.rank] = mine_;
    issued.decision.verdict = judge(all, mine_.suspects, options_.hosts, options_.epoch);
    for (int rank = 0; rank < size(); ++rank) {
      if (present(rank) || rank == options_.rank) issued.decision.survivors.push_back(rank);
    }
  }
  issued.leader = options_.rank;
  flood(encode(issued, options_.epoch));
  dirty_ = false;
  accept(std::move(issued));
}

void Agreement::accept(Issued issued) {
  const auto& survivors = issued.decision.survivors;
  if (!std::binary_search(survivors.begin(), survivors.end(), options_.rank)) {
    if (excluded_) return;
    excluded_ = true;
    auto& verdict = issued.decision.verdict;
    if (verdict.rank != options_.rank) {
      const auto theirs = verdict.to_string();
      verdict.rank = options_.rank;
      verdict.host = options_.hosts[options_.rank];
      verdict.code = Code::kPeerLost;
      verdict.cause =
          fmt::format("did not answer in time, so the others went on without it; their verdict: {}", theirs);
    }
  }
  decision_ = issued.decision;
  mine_.accepted = std::move(issued);
}

void Agreement::flood(const std::string& bytes) {
  for (int rank = 0; rank < size(); ++rank) {
    if (rank != options_.rank) outbox_.push_back({rank, bytes});
  }
}

}  // namespace ringfold::comm
