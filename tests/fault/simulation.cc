#include "tests/fault/simulation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "comm/text.h"

namespace ringfold::test {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr auto kGrace = milliseconds(100);
constexpr auto kControlDelay = milliseconds(2);

sim::Options network_of(uint64_t seed) {
  std::mt19937_64 random(seed * 7 + 1);
  sim::Options o;
  o.slots = std::array{2, 3, 4, 8}[random() % 4];
  o.slot_bytes = std::array{256, 1024, 4096}[random() % 3];
  o.max_delay = microseconds(std::array{5, 100, 1000}[random() % 3]);
  o.fetches_per_refusal = 4;
  return o;
}

}  // namespace

std::string_view name_of(Harm harm) {
  return std::array{
      "none", "kill", "stop", "stop_and_resume", "skip", "mismatch", "slow", "cut", "several"}[static_cast<size_t>(
      harm)];
}

void Simulation::note(const std::string& line) const {
  const auto us = std::chrono::duration_cast<microseconds>(world_.now().time_since_epoch() - std::chrono::hours(1));
  fmt::print("{:>10} us  {}\n", us.count(), line);
}

void Simulation::wrong(std::string what) {
  trace("WRONG: {}", what);
  outcome_.wrong.push_back(std::move(what));
}

Simulation::Simulation(uint64_t seed, bool trace) : seed_(seed), tracing_(trace), world_(seed, network_of(seed)) {
  std::mt19937_64 random(seed);
  processes_ = 2 + static_cast<int>(random() % 7);
  items_ = 6 + random() % 14;
  window_ = 1 + random() % 4;
  timeout_ = milliseconds(600 + random() % 400);
  for (int p = 0; p < processes_; ++p) {
    exec::Engine::Options o;
    o.now = [this] { return world_.now(); };
    engines_.push_back(std::make_shared<exec::Engine>(o));
  }
  current_.assign(static_cast<size_t>(processes_), nullptr);
  plan_faults();
  bound_ = 3 * kGrace * static_cast<int>(1 + faults_.size()) + 10 * kControlDelay;
  std::vector<int> all(static_cast<size_t>(processes_));
  std::iota(all.begin(), all.end(), 0);
  form(all, 0, 0);
}

Simulation::~Simulation() {
  for (auto& group : groups_) {
    for (auto& m : group->members)
      engines_[static_cast<size_t>(m->process)]->abort(*m->domain, Status(Code::kAborted, "the simulation ends"));
  }
  for (auto& engine : engines_) engine->stop();
}

void Simulation::plan_faults() {
  std::mt19937_64 random(seed_ + 17);
  const Harm harm = harm_of(seed_);
  const int count = harm == Harm::kNone ? 0 : harm == Harm::kSeveral ? 2 + static_cast<int>(random() % 2) : 1;
  for (int k = 0; k < count; ++k) {
    static constexpr Harm kSingle[] = {Harm::kKill, Harm::kStop, Harm::kStopAndResume, Harm::kSkip, Harm::kMismatch,
                                       Harm::kSlow, Harm::kCut};
    Fault f{harm == Harm::kSeveral ? kSingle[random() % std::size(kSingle)] : harm,
            static_cast<int>(random() % static_cast<uint64_t>(processes_))};
    f.at = world_.now() + microseconds(random() % (random() % 2 == 0 ? 2000 : 30000));
    if (k > 0 && random() % 2 == 0) {  // while the others agree on the first one, and often to who leads them
      f.at = faults_[0].at + microseconds(random() % 45000);
      if (random() % 2 == 0) f.process = faults_[0].process == 0 ? 1 : 0;
    }
    f.item = random() % items_;
    while (f.item < items_ && is_message(f.item)) ++f.item;  // for wrong calls
    const int p = f.process;
    if (f.harm == Harm::kKill) world_.at(f.at, [this, p] { kill(p); });
    if (f.harm == Harm::kCut) {
      // Of one process to some others: a cable, a switch, or its device.
      const int ends = 1 + static_cast<int>(random() % static_cast<uint64_t>(processes_ - 1));
      for (int k = 1; k <= ends; ++k) f.cut_from.push_back((p + k) % processes_);
      world_.at(f.at, [this, p, others = f.cut_from] {
        trace("process {} is cut off from {}", p, comm::join(others, " "));
        for (int q : others) world_.cut(p, q);
      });
    }
    if (f.harm == Harm::kStop || f.harm == Harm::kStopAndResume) {
      const bool resumes = f.harm == Harm::kStopAndResume;
      const base::Duration length = milliseconds(random() % 2 == 0 ? random() % 400 : random() % 2500);
      world_.at(f.at, [this, p, resumes] {
        trace("process {} stops", p);
        world_.stop(p);
        ever_stopped_.insert(p);
        if (!resumes) stopped_for_good_.insert(p);
        follow_up();
      });
      if (resumes) {
        world_.at(f.at + length, [this, p] {
          trace("process {} resumes", p);
          if (!stopped_for_good_.contains(p)) world_.resume(p);
        });
      }
    }
    if (f.harm == Harm::kSlow) world_.slow(p, milliseconds(1 + random() % 3));
    faults_.push_back(f);
  }
}

const Simulation::Fault* Simulation::fault_at(int process, Harm harm, uint64_t item) const {
  for (auto& f : faults_) {
    if (f.process == process && f.harm == harm && f.item == item) return &f;
  }
  return nullptr;
}

// ---- epochs ----

void Simulation::form(const std::vector<int>& processes, uint32_t epoch, uint64_t first_item) {
  auto group = std::make_unique<Group>();
  group->epoch = epoch;
  group->processes = processes;
  const int n = static_cast<int>(processes.size());
  std::vector<std::string> hosts;
  std::vector<std::unique_ptr<transport::Transport>> transports;
  for (int p : processes) {
    hosts.push_back(fmt::format("host{}", p));
    transports.push_back(world_.make(p, epoch));
  }
  for (int r = 0; r < n; ++r) {
    for (int q = 0; q < n; ++q) {
      if (q == r) continue;
      const Status s = transports[static_cast<size_t>(r)]->add_peer(q, transports[static_cast<size_t>(q)]->address());
      if (!s.ok()) wrong(s.to_string());
    }
  }
  for (int r = 0; r < n; ++r) {
    auto m = std::make_unique<Member>();
    m->group = group.get();
    m->process = processes[static_cast<size_t>(r)];
    m->rank = r;
    m->next = first_item;
    std::vector<std::unique_ptr<transport::Transport>> one;
    one.push_back(std::move(transports[static_cast<size_t>(r)]));
    m->domain = std::make_shared<exec::Domain>(r, n, std::move(one), std::vector<int>(static_cast<size_t>(n), 0));
    m->domain->messages().set_limits(20000, std::min<size_t>(1000, world_.options().slot_bytes));
    Member* raw = m.get();
    m->domain->on_fault = [this, raw](const exec::Fault& fault) { on_fault(*raw, fault); };
    comm::Agreement::Options o;
    o.rank = r;
    o.hosts = hosts;
    o.epoch = epoch;
    o.grace = kGrace;
    m->agreement = std::make_unique<comm::Agreement>(o);
    engines_[static_cast<size_t>(m->process)]->add(m->domain);
    current_[static_cast<size_t>(m->process)] = raw;
    group->members.push_back(std::move(m));
  }
  groups_.push_back(std::move(group));
  trace("epoch {} of {} ranks ({}) from item {}", epoch, n, comm::join(processes, " "), first_item);
  for (auto& m : groups_.back()->members) {
    for (int dead : std::set<int>(known_dead_[m->process])) tell_of_death(*m, dead);
  }
}

// When all survivors that can have ended an epoch, they begin the next.
void Simulation::follow_up() {
  Group& group = *groups_.back();
  if (!group.decision || group.followed) return;
  std::vector<int> survivors;
  uint64_t first = 0;
  for (int rank : group.decision->survivors) {
    Member& m = *group.members[static_cast<size_t>(rank)];
    if (m.decided && world_.alive(m.process)) {
      survivors.push_back(m.process);
      first = std::max(first, m.next);
    } else if (world_.alive(m.process) && !ever_stopped_.contains(m.process)) {
      return;
    }
  }
  group.followed = true;
  judge(group);
  for (int p : group.processes) current_[static_cast<size_t>(p)] = nullptr;
  if (!survivors.empty()) form(survivors, group.epoch + 1, first);
}

// Does the verdict name whom it should?
void Simulation::judge(const Group& group) {
  ++outcome_.verdicts;
  const Verdict& verdict = group.decision->verdict;
  trace("verdict: {}", verdict.to_string());
  if (faults_.size() != 1) {
    if (faults_.empty()) wrong("a verdict without a fault: " + verdict.to_string());
    return;
  }
  const Fault& fault = faults_[0];
  if (fault.harm == Harm::kSlow) return wrong("a slow rank was taken for a failed one: " + verdict.to_string());
  if (fault.harm == Harm::kStopAndResume) return;  // by then it may be a survivor like the others
  if (fault.harm == Harm::kCut) {
    // Everybody answers, so nobody is to blame for more than a link, and nobody is left out.
    if (group.decision->survivors.size() != group.processes.size()) {
      wrong(fmt::format("a link broke, and {} of {} ranks survive: {}", group.decision->survivors.size(),
                        group.processes.size(), verdict.to_string()));
    }
    const int named = verdict.rank < 0 ? -1 : group.processes[static_cast<size_t>(verdict.rank)];
    if (named != fault.process &&
        std::find(fault.cut_from.begin(), fault.cut_from.end(), named) == fault.cut_from.end())
      wrong("the verdict names a rank whose links are well: " + verdict.to_string());
    return;
  }
  const auto it = std::find(group.processes.begin(), group.processes.end(), fault.process);
  const int culprit = it == group.processes.end() ? -1 : static_cast<int>(it - group.processes.begin());
  if (verdict.rank == culprit) return;
  if (fault.harm == Harm::kMismatch || fault.harm == Harm::kSkip) {
    // When only two ranks have made the call by now, nobody can tell which of them is wrong.
    uint64_t sequence = 1;
    for (uint64_t item = 0; item < fault.item; ++item) sequence += !is_message(item);
    std::vector<int> made;
    for (auto& m : group.members) {
      if (m->called >= sequence) made.push_back(m->rank);
    }
    if (made.size() <= 2 && std::find(made.begin(), made.end(), verdict.rank) != made.end()) {
      ++outcome_.undecidable;
      return;
    }
    // Nor when a rank that skipped a call waits for a message of one that waits for it in that call: the other may
    // have skipped its message.
    if (fault.harm == Harm::kSkip && verdict.rank == -1 && verdict.code == Code::kTimeout) {
      ++outcome_.undecidable;
      return;
    }
  }
  wrong(fmt::format("the verdict should name rank {}: {}", culprit, verdict.to_string()));
}

// ---- agreement ----

comm::Standing Simulation::standing(Member& m) {
  comm::Standing s;
  engines_[static_cast<size_t>(m.process)]->inspect([&] {
    const exec::Standing e = m.domain->standing();
    s.sequence = e.contract.sequence;
    s.inside = e.inside;
    s.call = e.text;
    s.waits_for = e.waits_for;
    const transport::Preamble p = e.contract.encode();
    std::memcpy(s.contract.data(), p.words, sizeof p.words);
    for (const exec::Contract& contract : e.recent) {
      comm::Made& made = s.recent.emplace_back();
      const transport::Preamble word = contract.encode();
      std::memcpy(made.contract.data(), word.words, sizeof word.words);
      made.sequence = contract.sequence;
      made.call = contract.to_string();
    }
  });
  return s;
}

void Simulation::on_fault(Member& m, const exec::Fault& fault) {
  trace("rank {} of epoch {} finds: peer {}: {}", m.rank, m.group->epoch, fault.peer, fault.status.to_string());
  switch (fault.kind) {
    case exec::FaultKind::kPeer:
      m.agreement->link_broke(fault.peer, fault.status.code(), fault.status.message(), world_.now());
      break;
    case exec::FaultKind::kMismatch: m.agreement->mismatched(fault.peer, fault.status.message(), world_.now()); break;
    case exec::FaultKind::kTimeout: m.agreement->timed_out(fault.status.message(), world_.now()); break;
  }
  pump(m);
}

void Simulation::pump(Member& m) {
  if (m.agreement->aborting() && !std::exchange(m.suspended, true)) {
    const auto s = standing(m);
    m.called = s.recent.empty() ? 0 : s.recent.back().sequence;
    trace("rank {} of epoch {} aborts in {} (inside {}, waits for {})", m.rank, m.group->epoch, s.call, s.inside,
          s.waits_for);
    engines_[static_cast<size_t>(m.process)]->suspend(*m.domain);
    m.agreement->stand(s, world_.now());
  }
  for (auto& message : m.agreement->take_messages()) {
    Member* to = m.group->members[static_cast<size_t>(message.to)].get();
    world_.post(m.process, to->process, world_.between(microseconds(10), kControlDelay),
                [this, to, from = m.rank, bytes = message.bytes] {
                  to->agreement->hear(from, bytes, world_.now());
                  pump(*to);
                  conclude_soon(*to);
                });
  }
  if (const comm::Decision* decision = m.agreement->decision(); decision != nullptr && !m.decided) {
    m.decided = true;
    trace("rank {} of epoch {} decides{}", m.rank, m.group->epoch,
          m.agreement->excluded() ? " that it was excluded" : "");
    if (!m.agreement->excluded()) {
      if (!m.group->decision) m.group->decision = *decision;
      if (!(*m.group->decision == *decision)) {
        wrong(fmt::format("two verdicts in one epoch: {} and {}", m.group->decision->verdict.to_string(),
                          decision->verdict.to_string()));
      }
    }
    engines_[static_cast<size_t>(m.process)]->abort(*m.domain, Status(decision->verdict));
    if (!m.flying.empty()) collect(m);
    if (!m.flying.empty()) wrong("calls are left after an abort");
    follow_up();
  }
  const auto next = m.agreement->next_timer();
  if (next && *next != m.timer) {
    m.timer = *next;
    world_.at(*next, [this, raw = &m] {
      auto task = [this, raw] {
        raw->agreement->tick(world_.now());
        pump(*raw);
      };
      world_.post(raw->process, raw->process, {}, task);  // not while it is stopped
    });
  }
}

// After what else has arrived by now: a process that resumes finds all that came meanwhile.
void Simulation::conclude_soon(Member& m) {
  if (std::exchange(m.concluding, true)) return;
  world_.post(m.process, m.process, {}, [this, raw = &m] {
    raw->concluding = false;
    raw->agreement->tick(world_.now());
    pump(*raw);
  });
}

void Simulation::kill(int process) {
  trace("process {} dies", process);
  world_.kill(process);
  dead_.insert(process);
  for (int q = 0; q < processes_; ++q) {
    const auto delay = world_.between(world_.options().min_detection, world_.options().max_detection);
    world_.post(process, q, delay, [this, q, process] {
      known_dead_[q].insert(process);
      for (auto& group : groups_) {
        for (auto& m : group->members) {
          if (m->process == q && !m->decided) tell_of_death(*m, process);
        }
      }
    });
  }
  follow_up();
}

void Simulation::tell_of_death(Member& m, int dead) {
  const auto& all = m.group->processes;
  const auto it = std::find(all.begin(), all.end(), dead);
  if (it == all.end()) return;
  m.agreement->suspect(static_cast<int>(it - all.begin()), Code::kPeerLost, "its process ended", world_.now());
  pump(m);
}

// ---- driving ----

bool Simulation::turn(int process) {
  bool moved = engines_[static_cast<size_t>(process)]->poll();
  Member* m = member_of(process);
  if (m == nullptr) return moved;
  moved |= collect(*m);
  if (!m->agreement->aborting() && m->next < items_ && m->flying.size() < window_ && world_.now() >= m->rests_until) {
    issue(*m);
    moved = true;
  }
  return moved;
}

bool Simulation::finished() const {
  for (int p = 0; p < processes_; ++p) {
    const Member* m = current_[static_cast<size_t>(p)];
    if (m == nullptr || !world_.alive(p) || stopped_for_good_.contains(p)) continue;
    if (m->next < items_ || !m->flying.empty() || m->agreement->aborting()) return false;
  }
  return true;
}

std::string Simulation::stuck() const {
  std::string text;
  for (int p = 0; p < processes_; ++p) {
    const Member* m = current_[static_cast<size_t>(p)];
    if (m == nullptr) continue;
    text += fmt::format(" [rank {} of epoch {}: item {}, {} in flight, {}]", m->rank, m->group->epoch, m->next,
                        m->flying.size(),
                        m->decided                 ? "decided"
                        : m->agreement->aborting() ? "aborting"
                                                   : "running");
  }
  return text;
}

Outcome Simulation::run() {
  std::mt19937_64 random(seed_ + 99);
  std::vector<int> order(static_cast<size_t>(processes_));
  std::iota(order.begin(), order.end(), 0);
  const auto end = world_.now() + seconds(30);
  while (!finished() && outcome_.wrong.empty()) {
    std::shuffle(order.begin(), order.end(), random);
    bool moved = false;
    for (int p : order) {
      if (!world_.runnable(p) || !turn(p)) continue;
      world_.ran(p);
      moved = true;
    }
    if (!moved && !world_.step()) wrong("nothing will ever happen again:" + stuck());
    if (world_.now() > end) wrong("a hang:" + stuck());
  }
  for (auto& violation : world_.violations()) wrong(violation);
  for (auto& group : groups_) {
    for (auto& m : group->members) {
      if (!m->flying.empty() && world_.alive(m->process) && !ever_stopped_.contains(m->process)) {
        wrong(fmt::format("rank {} of epoch {} is left with {} calls", m->rank, group->epoch, m->flying.size()));
      }
    }
  }
  return outcome_;
}

}  // namespace ringfold::test
