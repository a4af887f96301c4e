// How the survivors of one communicator agree on one verdict and one set of survivors after something went wrong.
// A pure state machine: no threads, clocks or I/O. Time and messages are passed in, messages are taken out, so the
// code that runs on the control thread is the code that a simulator runs in virtual time.
//
// THE PROTOCOL. Whoever has a cause (a dead peer, a broken link, a passed deadline, a mismatched call, a request to
// abort) aborts and floods REPORT: whom it suspects of being gone, its standing (which call it is in), its evidence,
// and a decision if it has one. Whoever hears a REPORT aborts and floods its own. Suspicions are adopted by all and
// never taken back, so the sets of all ranks become one; a rank whose set has grown reports again. The members not
// suspected are the *present*.
//
//   complete   every present member has reported a suspect set equal to mine
//   ready      and its standing, or patience has run out
//   leader     the lowest present member
//
// When it is ready the leader decides and floods DECIDE. A REPORT with suspects S is also a promise to accept no
// decision issued by a member of S. So when a leader is suspected, the next one collects reports that all carry such
// a promise; if any of them also carries a decision the new leader issues that very one again (the one of the highest
// leader, if there are several), and if none does, no present member has ever accepted one, nor will. That is why a
// leader that dies half way through DECIDE cannot split the survivors.
//
// A LINK that breaks makes nobody a suspect: it has two ends, and both of their ranks may live and answer, as when an
// interface goes down. It is evidence for the verdict. If one of the two is dead, its control connection says so, or
// its silence does. (Were it a suspicion, the ends would suspect each other, which leaves neither in.)
//
// TIME. Those who have not reported a grace after my set last grew are suspected: "stopped answering". Who has
// answered before gets patience, some graces, for every later answer: it lives, and may be held up. So the first
// report goes out before a rank looks where it stands: that takes the engine's lock, which a driver may keep for long
// in a device's library. When all is ready and the leader says nothing for half a grace, the leader is suspected.
// From the first cause to the decision that is at most two graces and a round trip for one fault, also when a leader
// dies in the middle; each further fault costs one grace at most, or patience when it befalls a rank that has
// answered. A rank whose own timer comes late was itself asleep (stopped, starved): its silence says nothing about
// others, so it listens for another grace first, and mostly finds that it was excluded. Where timers come late by
// less, the machine has more to do than it can, and answers take as long: each step on their way as much as our
// timer at its latest. So all limits are some such steps later, five graces at most: load that all ranks feel excludes
// hardly anybody (one of 4000 simulated jobs).
//
// LIMITS. Agreement holds among ranks that answer within half a grace, or that are no busier than those who wait for
// them. Without that, nobody can tell a dead rank from a slow one; a slow one is excluded, and told so. A rank that
// nobody can reach decides alone, as the only survivor.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "comm/agreement_report.h"
#include "ringfold/status.h"

namespace ringfold::comm {

// One rank's side of one epoch of a communicator. One thread at a time. Ranks are the communicator's.
class Agreement {
 public:
  struct Options {
    int rank = 0;
    std::vector<std::string> hosts;  // host name by rank
    uint32_t epoch = 0;
    base::Duration grace = std::chrono::milliseconds(400);
  };
  struct Message {
    int to = -1;
    std::string bytes;
  };
  using TimePoint = base::TimePoint;

  explicit Agreement(Options options);

  // ---- causes, with local evidence ----
  // The peer is gone: its process, its connection, or it left the job. Also to be called when that happens later.
  void suspect(int peer, Code code, std::string cause, TimePoint now);
  // Nothing moves between the peer and us any more, but as far as anybody knows it lives.
  void link_broke(int peer, Code code, std::string cause, TimePoint now);
  // A deadline of ours passed. `what`: "all_reduce #7 after 20 s".
  void timed_out(std::string what, TimePoint now);
  // The peer's contract does not belong to our call.
  void mismatched(int peer, std::string cause, TimePoint now);
  void request_abort(std::string cause, TimePoint now);
  // Where this rank stood when it aborted; once, soon after aborting() has become true.
  void stand(Standing standing, TimePoint now);

  // ---- the others ----
  // Any bytes are survived; those of another epoch are dropped, those that no Agreement sends make the peer a
  // suspect.
  void on_message(int from, std::string_view bytes, TimePoint now);
  // The same, but nothing is concluded before the next tick(). For news that come together: a rank that was asleep,
  // and concluded something from the oldest, would decide what the others have long decided without it.
  void hear(int from, std::string_view bytes, TimePoint now);
  // To be called at next_timer(), or later.
  void tick(TimePoint now);
  std::optional<TimePoint> next_timer() const;
  // What is to be sent now; empties the outbox. To be called after every input.
  std::vector<Message> take_messages();

  // From the first cause on: local traffic of this epoch must stop.
  bool aborting() const { return aborting_; }
  // Null until there is one. A rank that the others excluded gets a verdict that names itself, even where it had
  // decided otherwise before; apart from that the decision never changes.
  const Decision* decision() const { return decision_ ? &*decision_ : nullptr; }
  bool excluded() const { return excluded_; }

 private:
  int size() const { return static_cast<int>(options_.hosts.size()); }
  bool present(int rank) const { return !mine_.suspects.contains(rank); }
  bool up_to_date(int rank) const;
  int leader() const;
  bool complete() const;
  bool all_stand() const;
  TimePoint limit_of(int rank) const;
  void listen_again_after_sleep(TimePoint now);
  void abort(TimePoint now);
  void add_suspect(int peer, Suspicion suspicion, TimePoint now);
  void advance(TimePoint now);
  bool consider_exclusion(const Issued& issued, TimePoint now);
  void issue();
  void accept(Issued issued);
  void flood(const std::string& bytes);

  Options options_;
  bool aborting_ = false, excluded_ = false;
  Report mine_;
  std::map<int, Report> reports_;  // the newest of each rank, this one's excluded
  std::optional<Decision> decision_;
  bool dirty_ = false;  // our report changed since it was last sent
  TimePoint since_{};   // our suspect set grew, or the abort began
  std::optional<TimePoint> ready_since_;
  TimePoint looked_{};       // at the clock, when a timer was due
  int naps_ = 0;             // how often we found ourselves asleep
  base::Duration held_up_{};  // what limits are moved by, as our timers came so late at most
  std::vector<Message> outbox_;
};

}  // namespace ringfold::comm
