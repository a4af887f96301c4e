#include "schedule/walk.h"

#include <bit>

#include "schedule/print.h"
#include "schedule/value.h"

namespace ringfold::schedule {
namespace {

constexpr uint32_t kWindow = 2048;  // steps of a lane held at a time when there are many ranks

bool receives(StepKind kind) { return kind == StepKind::kRecv || kind == StepKind::kRecvReduce; }
bool local(StepKind kind) { return kind == StepKind::kCopy || kind == StepKind::kReduce; }
bool uses_event(StepKind kind) { return kind == StepKind::kSignal || kind == StepKind::kWait; }

}  // namespace

std::string_view name_of(Property property) {
  switch (property) {
    case Property::kNone: return "none";
    case Property::kRange: return "range";
    case Property::kMatching: return "matching";
    case Property::kDeadlock: return "deadlock";
    case Property::kEvents: return "events";
    case Property::kUnset: return "unset";
    case Property::kHazard: return "hazard";
    case Property::kComplete: return "complete";
    case Property::kValue: return "value";
    case Property::kReplica: return "replica";
    case Property::kCanonical: return "canonical";
    case Property::kDepth: return "depth";
  }
  return "?";
}

Fault Walk::load() {
  const int n = schedule_.shape.ranks;
  const auto lanes = static_cast<uint32_t>(schedule_.lanes);
  actors_.resize(static_cast<size_t>(n) * lanes);
  temporaries_.resize(static_cast<size_t>(n));
  cell_base_ = {0};
  for (int rank = 0; rank < n; ++rank) {
    RankSteps steps = schedule_.rank(rank);
    const auto bad = [&](std::string what) { return Fault{Property::kRange, rank, -1, -1, std::move(what)}; };
    if (steps.lanes.size() != lanes) return bad("has " + std::to_string(steps.lanes.size()) + " lanes");
    for (const uint32_t chunk : steps.temporaries) {
      if (chunk >= schedule_.chunks()) return bad("a temporary has the size of chunk " + std::to_string(chunk));
    }
    temporaries_[static_cast<size_t>(rank)] = std::move(steps.temporaries);
    cell_base_.push_back(cell_base_.back() + schedule_.chunks() + temporaries_[static_cast<size_t>(rank)].size());
    event_base_.push_back(static_cast<uint32_t>(events_.size()));
    events_.resize(events_.size() + steps.events);
    for (uint32_t l = 0; l < lanes; ++l) {
      const uint32_t index = static_cast<uint32_t>(rank) * lanes + l;
      const Lane& lane = steps.lanes[l];
      actors_[index].total = static_cast<uint32_t>(lane.size());
      for (uint32_t i = 0; i < lane.size(); ++i) {
        if (Fault fault = test(lane[i], steps.events, {index, i})) return fault;
        messages_ += lane[i].kind == StepKind::kSend;
      }
      steps_ += lane.size();
      fill(index, lane, 0);
    }
  }
  return {};
}

// Everything about a step that can be seen without its neighbours.
Fault Walk::test(const Step& step, uint32_t events, Site site) {
  const int rank = rank_of(site.actor);
  const auto bad = [&](const char* what) {
    std::string text("(");
    text += text_of(schedule_, step) + ") " + what;
    return Fault{Property::kRange, rank, static_cast<int>(site.actor % static_cast<uint32_t>(schedule_.lanes)),
                 static_cast<int64_t>(site.step), std::move(text)};
  };
  if (uses_event(step.kind)) {
    if (step.source >= events) return bad("no such event");
    Event& event = events_[event_base_.back() + step.source];
    uint32_t& user = step.kind == StepKind::kSignal ? event.signaller : event.waiter;
    if (user != Event::kNobody && user != site.actor) return bad("the event belongs to another lane");
    user = site.actor;
    return {};
  }
  const uint64_t cells = schedule_.chunks() + temporaries_[static_cast<size_t>(rank)].size();
  if (step.count == 0) return bad("covers no cell");
  if (uint64_t{step.chunk} + step.count > cells) return bad("no such chunk");
  if (local(step.kind)) {
    if (uint64_t{step.source} + step.count > cells) return bad("no such source chunk");
    if (step.chunk < step.source + step.count && step.source < step.chunk + step.count) {
      return bad("reads what it writes");
    }
    if (!same_sizes(site.actor, step.source, site.actor, step.chunk, step.count)) return bad("sizes differ");
  } else if (step.peer < 0 || step.peer >= schedule_.shape.ranks || step.peer == rank) {
    return bad("no such peer");
  }
  const int flags = step.kind == StepKind::kRecvReduce || step.kind == StepKind::kReduce ? kPrepend | kComplete : 0;
  if (step.flags & ~flags) return bad("flags that mean nothing here");
  return {};
}

void Walk::fill(uint32_t index, const Lane& lane, uint32_t from) {
  Actor& actor = actors_[index];
  const uint32_t window = schedule_.shape.ranks > kResidentRanks ? kWindow : UINT32_MAX;
  const uint32_t count = std::min(window, static_cast<uint32_t>(lane.size()) - from);
  actor.base = from;
  actor.steps.assign(lane.begin() + from, lane.begin() + from + count);
  actor.partner.resize(count);
  const auto lanes = static_cast<uint32_t>(schedule_.lanes);
  for (uint32_t i = 0; i < count; ++i) {
    const Step& step = actor.steps[i];
    const uint32_t peer = static_cast<uint32_t>(step.peer) * lanes + index % lanes;
    if (step.kind == StepKind::kSend) actor.partner[i] = link_between(index, peer);
    if (receives(step.kind)) actor.partner[i] = link_between(peer, index);
    if (uses_event(step.kind)) actor.partner[i] = event_base_[static_cast<size_t>(rank_of(index))] + step.source;
  }
}

void Walk::refill(uint32_t index) {
  const RankSteps steps = schedule_.rank(rank_of(index));
  fill(index, steps.lanes[index % static_cast<uint32_t>(schedule_.lanes)], actors_[index].next);
}

void Walk::rewind() {
  for (uint32_t a = 0; a < actors(); ++a) {
    actors_[a].next = 0;
    if (actors_[a].base != 0) refill(a);
  }
  for (Link& link : links_) link.full = link.sender_waits = link.receiver_waits = false;
  for (Event& event : events_) event.signals = event.waits = 0, event.waiter_waits = false;
  ready_.clear();
}

uint32_t Walk::link_between(uint32_t from, uint32_t to) {
  const auto slot_of = [&](uint32_t f, uint32_t t) {
    const uint64_t mask = table_.size() - 1;
    uint64_t slot = mix(uint64_t{f} << 32 | t) & mask;
    while (table_[slot] != 0 && (links_[table_[slot] - 1].from != f || links_[table_[slot] - 1].to != t)) {
      slot = (slot + 1) & mask;
    }
    return slot;
  };
  if (table_.size() < 2 * links_.size() + 16) {
    table_.assign(std::bit_ceil(4 * links_.size() + 64), 0);
    for (uint32_t i = 0; i < links_.size(); ++i) table_[slot_of(links_[i].from, links_[i].to)] = i + 1;
  }
  uint32_t& entry = table_[slot_of(from, to)];
  if (entry == 0) {
    links_.push_back({.from = from, .to = to});
    entry = static_cast<uint32_t>(links_.size());
  }
  return entry - 1;
}

uint32_t Walk::size_of(uint32_t actor, uint32_t cell) const {
  const auto chunks = static_cast<uint32_t>(schedule_.chunks());
  return cell < chunks ? cell : temporaries_[static_cast<size_t>(rank_of(actor))][cell - chunks];
}

bool Walk::same_sizes(uint32_t a, uint32_t first_a, uint32_t b, uint32_t first_b, uint32_t count) const {
  const auto chunks = static_cast<uint32_t>(schedule_.chunks());
  if (first_a == first_b && first_a + count <= chunks) return true;
  for (uint32_t i = 0; i < count; ++i) {
    if (size_of(a, first_a + i) != size_of(b, first_b + i)) return false;
  }
  return true;
}

Step Walk::step_at(Site site) {
  const Actor& actor = actors_[site.actor];
  if (site.step >= actor.base && site.step - actor.base < actor.steps.size())
    return actor.steps[site.step - actor.base];
  return schedule_.rank(rank_of(site.actor)).lanes[site.actor % static_cast<uint32_t>(schedule_.lanes)][site.step];
}

std::string Walk::in_brackets(Site site) {
  std::string text("(");
  text += text_of(schedule_, step_at(site));
  return text += ')';
}

std::string Walk::text_at(Site site) {
  return "rank " + std::to_string(rank_of(site.actor)) + " lane " +
         std::to_string(site.actor % static_cast<uint32_t>(schedule_.lanes)) + " step " + std::to_string(site.step) +
         " " + in_brackets(site);
}

Fault Walk::fault(Property property, Site site, std::string what) {
  return {property, rank_of(site.actor), static_cast<int>(site.actor % static_cast<uint32_t>(schedule_.lanes)),
          static_cast<int64_t>(site.step), in_brackets(site) + " " + what};
}

// Nothing can be taken any more. A partner that is missing explains more than the circle of waiting that it leaves,
// so it is looked for first.
Fault Walk::stuck() {
  const auto ended = [&](uint32_t actor) {
    return actor == Event::kNobody || actors_[actor].next == actors_[actor].total;
  };
  for (const Link& link : links_) {
    if (link.full && ended(link.to)) return fault(Property::kMatching, link.sent, "is never received");
  }
  for (uint32_t a = 0; a < actors(); ++a) {
    if (ended(a)) continue;
    const Actor& actor = actors_[a];
    if (actor.next - actor.base == actor.steps.size()) refill(a);
    const Step step = step_at({a, actor.next});
    const uint32_t partner = actor.partner[actor.next - actor.base];
    if (receives(step.kind) && ended(links_[partner].from)) {
      return fault(Property::kMatching, {a, actor.next}, "is never sent");
    }
    if (step.kind == StepKind::kWait && ended(events_[partner].signaller)) {
      return fault(Property::kEvents, {a, actor.next}, "is never signalled");
    }
  }
  for (uint32_t a = 0; a < actors(); ++a) {
    if (!ended(a)) return fault(Property::kDeadlock, {a, actors_[a].next}, "waits in a circle");
  }
  for (uint32_t e = 0; e < events_.size(); ++e) {
    const Event& event = events_[e];
    if (event.signals == event.waits) continue;
    return {Property::kEvents, rank_of(event.signaller), -1, -1, "more signals than waits"};
  }
  return {};
}

}  // namespace ringfold::schedule
