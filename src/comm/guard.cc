#include "comm/guard.h"

#include <algorithm>
#include <cstring>

namespace ringfold::comm {

Guard::Guard(Options options)
    : options_(std::move(options)), agreement_([this] {
        Agreement::Options a;
        a.rank = options_.me;
        for (int m : options_.members) a.hosts.push_back(options_.control->peer(m).host);
        a.epoch = options_.epoch;
        return a;
      }()) {
  options_.domain->on_fault = [this](const exec::Fault& fault) { report(fault); };
  auto member = [this](int peer) {
    auto it = std::find(options_.members.begin(), options_.members.end(), peer);
    return it == options_.members.end() ? -1 : static_cast<int>(it - options_.members.begin());
  };
  options_.control->subscribe(
      topic_,
      [this, member](int from, std::string_view bytes) {
        if (const int m = member(from); m >= 0) {
          agreement_.hear(m, bytes, base::Clock::now());
          pump();
          conclude_soon();
        }
      },
      [this, member](int peer, const Status& why) {
        const int m = member(peer);
        if (m < 0) return;
        // A rank that left in order is missed only by those who still wait for it: the engine tells, when what the
        // rank sent before has come.
        if (options_.control->has_left(peer) && !agreement_.aborting()) {
          options_.control->run_at(topic_, base::Clock::now() + std::chrono::seconds(1),
                                   [this, m] { options_.engine->peer_left(*options_.domain, m); });
          return;
        }
        agreement_.suspect(m, why.code(), why.message(), base::Clock::now());
        pump();
      });
}

Guard::~Guard() { close(); }

void Guard::close() { options_.control->unsubscribe(topic_); }

Standing Guard::standing() const {
  Standing s;
  options_.engine->inspect([&] {
    const exec::Standing e = options_.domain->standing();
    s.sequence = e.contract.sequence;
    s.inside = e.inside;
    s.call = e.text;
    // A call that nobody drives there waits for its own rank, whatever it lacks.
    s.waits_for = options_.engine->driven() ? e.waits_for : -1;
    const transport::Preamble p = e.contract.encode();
    static_assert(sizeof p.words == sizeof s.contract);
    std::memcpy(s.contract.data(), p.words, sizeof p.words);
    for (const exec::Contract& contract : e.recent) {
      Made& made = s.recent.emplace_back();
      const transport::Preamble word = contract.encode();
      std::memcpy(made.contract.data(), word.words, sizeof word.words);
      made.sequence = contract.sequence;
      made.call = contract.to_string();
    }
  });
  return s;
}

void Guard::post(std::function<void(base::TimePoint)> input) {
  options_.control->run_at(topic_, base::TimePoint::min(), [this, input = std::move(input)] {
    input(base::Clock::now());
    pump();
  });
}

void Guard::report(const exec::Fault& fault) {
  post([this, fault](base::TimePoint now) {
    switch (fault.kind) {
      case exec::FaultKind::kPeer: {
        // One that breaks the rules is not to be believed any more. Else its link may be all that is gone.
        const bool alive = options_.control->alive(options_.members[static_cast<size_t>(fault.peer)]).ok();
        const auto found =
            alive && fault.status.code() != Code::kProtocol ? &Agreement::link_broke : &Agreement::suspect;
        (agreement_.*found)(fault.peer, fault.status.code(), fault.status.message(), now);
        break;
      }
      case exec::FaultKind::kMismatch: agreement_.mismatched(fault.peer, fault.status.message(), now); break;
      case exec::FaultKind::kTimeout: agreement_.timed_out(fault.status.message(), now); break;
    }
  });
}

void Guard::request_abort(const std::string& cause) {
  options_.engine->suspend(*options_.domain);  // no call ends well after this one
  post([this, cause](base::TimePoint now) { agreement_.request_abort(cause, now); });
}

std::optional<Decision> Guard::decision() const {
  std::lock_guard lock(mutex_);
  return decision_;
}

void Guard::pump() {
  for (auto& m : agreement_.take_messages()) options_.control->send(options_.members[m.to], topic_, m.bytes);
  if (agreement_.aborting() && !std::exchange(suspended_, true)) {
    // After what was sent above: a driver may keep the engine's lock for long, and the others must know that we live.
    // They decide, and then stop their links, when we have said where we stand, which is when nothing moves here.
    options_.control->run_at(topic_, base::TimePoint::min(), [this] {
      options_.engine->suspend(*options_.domain);
      agreement_.stand(standing(), base::Clock::now());
      pump();
    });
  }
  const Decision* d = agreement_.decision();
  if (d != nullptr && (!decided_ || *decided_ != *d)) {
    decided_ = *d;
    // After what was sent above is with the system: a peer that hears of our links' end, or of our process's, must
    // have heard the decision before, or it takes us for one more that was lost.
    options_.control->run_at(topic_, base::TimePoint::min(), [this, decision = *d] {
      {
        std::lock_guard lock(mutex_);
        decision_ = decision;
      }
      options_.control->end_exchanges_of(options_.name);
      options_.engine->abort(*options_.domain, Status(decision.verdict));
    });
  }
  set_timer();
}

// After what else has arrived by now.
void Guard::conclude_soon() {
  if (std::exchange(concluding_, true)) return;
  post([this](base::TimePoint now) {
    concluding_ = false;
    agreement_.tick(now);
  });
}

void Guard::set_timer() {
  const auto next = agreement_.next_timer();
  if (!next || (timer_ && *timer_ <= *next)) return;
  timer_ = next;
  options_.control->run_at(topic_, *next, [this] {
    timer_.reset();
    agreement_.tick(base::Clock::now());
    pump();
  });
}

}  // namespace ringfold::comm
