// Walks through a schedule: takes its steps in an order that lanes, links with one slot, and events allow, and shows
// them to a visitor. Checker and timeline are visitors.
//
// Lanes are sequential processes, links and events are queues with one writer and one reader each, so a schedule is a
// Kahn network: which steps can be taken, whether all can, and which receive gets which send do not depend on the
// order that the walk happens to choose. One walk therefore decides matching and deadlock for all of them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "schedule/builder.h"
#include "schedule/schedule.h"

namespace ringfold::schedule {

// What a schedule can get wrong.
enum class Property : uint8_t {
  kNone,
  kRange,      // a chunk, temporary, peer, event, count or flag that does not exist
  kMatching,   // k-th send and k-th receive of a link differ in size, or one of them is missing
  kDeadlock,   // ranks wait for each other in a circle, with one slot per link
  kEvents,     // signals and waits do not pair up
  kUnset,      // a cell is read before it holds a value
  kHazard,     // two accesses of a cell, one a write, are in no order; or a send may still read what is overwritten
  kComplete,   // kComplete missing, or on a value that is not complete
  kValue,      // a result is not what the collective promises
  kReplica,    // two ranks hold results of different expressions
  kCanonical,  // asked for the rank-order fold, but it is another one
  kDepth,      // more codings than allowed
};
std::string_view name_of(Property property);

// A violated property and where; no fault by default.
struct Fault {
  Property property = Property::kNone;
  int rank = -1;
  int lane = -1;
  int64_t step = -1;
  std::string what;
  explicit operator bool() const { return property != Property::kNone; }
};

class Walk {
 public:
  // A step in progress: `actor` is lane actor % lanes of rank actor / lanes.
  struct Site {
    uint32_t actor = 0;
    uint32_t step = 0;
  };
  struct Link {
    uint32_t from = 0, to = 0;  // actors
    Site sent;                  // while full: the send, and its cells at the sender
    Span cells;
    bool full = false, sender_waits = false, receiver_waits = false;
  };
  struct Event {
    static constexpr uint32_t kNobody = UINT32_MAX;
    uint32_t signaller = kNobody, waiter = kNobody;  // actors
    uint32_t signals = 0, waits = 0;
    bool waiter_waits = false;
  };

  // Keeps a reference to the schedule. Of schedules with more than kResidentRanks ranks only a window of each lane is
  // held, and steps are generated again as the walk reaches them.
  static constexpr int kResidentRanks = 512;
  explicit Walk(const Schedule& schedule) : schedule_(schedule) {}

  // Generates all steps and tests their ranges. Call once, before run().
  Fault load();

  // Visitor: send(site, step, link), receive(site, step, link) with the link still full, local(site, step),
  // signal(site, event), wait(site, event), each returning false to stop the walk. Yields what the walk found:
  // matching, deadlock, events; nothing when stopped. A walk can be repeated.
  template <typename Visitor>
  Fault run(Visitor& visitor);

  const Schedule& schedule() const { return schedule_; }
  const std::vector<Link>& links() const { return links_; }
  const std::vector<Event>& events() const { return events_; }
  uint32_t actors() const { return static_cast<uint32_t>(actors_.size()); }
  uint32_t length(uint32_t actor) const { return actors_[actor].total; }
  int rank_of(uint32_t actor) const { return static_cast<int>(actor / static_cast<uint32_t>(schedule_.lanes)); }
  // Cells of all ranks are numbered through: rank r has cell_base(r) .. cell_base(r+1)-1.
  uint64_t cell_base(int rank) const { return cell_base_[static_cast<size_t>(rank)]; }
  uint64_t cells() const { return cell_base_.back(); }
  uint64_t cell(uint32_t actor, uint32_t chunk) const { return cell_base(rank_of(actor)) + chunk; }
  uint64_t steps() const { return steps_; }
  uint64_t messages() const { return messages_; }
  Fault fault(Property property, Site site, std::string what);
  std::string text_at(Site site);  // "rank 3 lane 0 step 5 (send c2 -> 1)"

 private:
  struct Actor {
    std::vector<Step> steps;        // a window of the lane, from step `base` on
    std::vector<uint32_t> partner;  // of each step of the window: the link or event that it uses
    uint32_t base = 0;
    uint32_t next = 0;
    uint32_t total = 0;
  };

  Fault test(const Step& step, uint32_t events, Site site);
  void fill(uint32_t actor, const Lane& lane, uint32_t from);
  void refill(uint32_t actor);
  uint32_t link_between(uint32_t from, uint32_t to);
  Step step_at(Site site);
  std::string in_brackets(Site site);
  uint32_t size_of(uint32_t actor, uint32_t cell) const;  // the chunk whose size the cell has
  bool same_sizes(uint32_t a, uint32_t first_a, uint32_t b, uint32_t first_b, uint32_t count) const;
  void rewind();
  Fault stuck();

  enum class Progress { kTaken, kBlocked, kStopped };
  template <typename Visitor>
  Progress advance(Visitor& visitor, uint32_t actor);
  void wake(bool& waits, uint32_t actor) {
    if (waits) ready_.push_back(actor);
    waits = false;
  }

  const Schedule& schedule_;
  std::vector<Actor> actors_;
  std::vector<Link> links_;
  std::vector<Event> events_;
  std::vector<uint32_t> event_base_;  // by rank
  std::vector<std::vector<uint32_t>> temporaries_;
  std::vector<uint64_t> cell_base_;
  std::vector<uint32_t> table_;  // hash of (from, to) -> link + 1
  std::vector<uint32_t> ready_;
  Fault fault_;
  uint64_t steps_ = 0, messages_ = 0;
};

template <typename Visitor>
Fault Walk::run(Visitor& visitor) {
  rewind();
  for (uint32_t a = 0; a < actors(); ++a) ready_.push_back(a);
  std::vector<uint32_t> now;
  while (!ready_.empty()) {
    now.swap(ready_);
    ready_.clear();
    for (const uint32_t actor : now) {
      Progress progress = Progress::kTaken;
      while (progress == Progress::kTaken) progress = advance(visitor, actor);
      if (progress == Progress::kStopped) return fault_;
    }
  }
  return stuck();
}

template <typename Visitor>
Walk::Progress Walk::advance(Visitor& visitor, uint32_t index) {
  Actor& actor = actors_[index];
  if (actor.next == actor.total) return Progress::kBlocked;
  if (actor.next - actor.base == actor.steps.size()) refill(index);
  const Step& step = actor.steps[actor.next - actor.base];
  const uint32_t partner = actor.partner[actor.next - actor.base];
  const Site site{index, actor.next};
  const auto blocked = [](bool& waits) {
    waits = true;
    return Progress::kBlocked;
  };
  bool goes_on = true;
  switch (step.kind) {
    case StepKind::kSend: {
      Link& link = links_[partner];
      if (link.full) return blocked(link.sender_waits);
      goes_on = visitor.send(site, step, partner);
      link.full = true;
      link.sent = site;
      link.cells = {step.chunk, step.count};
      wake(link.receiver_waits, link.to);
      break;
    }
    case StepKind::kRecv:
    case StepKind::kRecvReduce: {
      Link& link = links_[partner];
      if (!link.full) return blocked(link.receiver_waits);
      if (link.cells.count != step.count || !same_sizes(link.from, link.cells.first, index, step.chunk, step.count)) {
        fault_ = fault(Property::kMatching, site, "gets cells of another number or size: " + text_at(link.sent));
        return Progress::kStopped;
      }
      goes_on = visitor.receive(site, step, partner);
      link.full = false;
      wake(link.sender_waits, link.from);
      break;
    }
    case StepKind::kCopy:
    case StepKind::kReduce: goes_on = visitor.local(site, step); break;
    case StepKind::kSignal: {
      Event& event = events_[partner];
      goes_on = visitor.signal(site, partner);
      ++event.signals;
      wake(event.waiter_waits, event.waiter);
      break;
    }
    case StepKind::kWait: {
      Event& event = events_[partner];
      if (event.signals == event.waits) return blocked(event.waiter_waits);
      goes_on = visitor.wait(site, partner);
      ++event.waits;
      break;
    }
  }
  ++actor.next;
  return goes_on ? Progress::kTaken : Progress::kStopped;
}

}  // namespace ringfold::schedule
