// The stream of calls: what item k is on every rank, how it is made, and what must come of it.
#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "algo/algo.h"
#include "tests/fault/simulation.h"

namespace ringfold::test {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

// Draws for one item of the stream, the same on all ranks.
std::mt19937_64 dice_of(uint64_t seed, uint64_t item) {
  std::mt19937_64 random(seed * 1000003 + item);
  random.discard(3);
  return random;
}

}  // namespace

bool Simulation::is_message(uint64_t item) const { return dice_of(seed_, item)() % 4 == 0; }

Call Simulation::call_of(uint64_t item, int ranks) const {
  auto random = dice_of(seed_, item);
  random.discard(2);
  Call call;
  const auto collective = static_cast<Collective>(random() % kCollectives);
  const auto algorithms = algo::algorithms_for(collective);
  call.shape = {collective, ranks, 0};
  call.algorithm = algorithms[random() % algorithms.size()];
  const uint64_t root = random();
  if (has_root(collective)) call.shape.root = static_cast<int>(root % static_cast<uint64_t>(ranks));
  if (call.algorithm == "hierarchical") {
    for (int r = 0; r < ranks; ++r) call.hosts.push_back(r / 3);
  }
  call.lanes = 1 + static_cast<int>(random() % 3);
  // Counts differ between items, so that a skipped call meets another one.
  const uint64_t count = random() % 3 == 0 ? random() % 4 : random() % 30;
  call.count = collective == Collective::kBarrier ? 0 : count * items_ + item;
  call.type = static_cast<DataType>(random() % kDataTypes);
  if (reduces(collective)) call.op = static_cast<ReduceKind>(random() % 5);
  call.in_place = has_in_place_form(collective) && random() % 2 == 0;
  call.tile_bytes = random() % 2 == 0 ? 64 : world_.options().slot_bytes;
  call.slots = world_.options().slots;
  call.salt = item;
  return call;
}

// The same call with one argument wrong.
void Simulation::tamper(Call& call, uint64_t item) const {
  auto random = dice_of(seed_ + 5, item);
  const int n = call.shape.ranks;
  switch (random() % 5) {
    case 0:
      if (reduces(call.shape.collective)) {
        call.op = call.op.kind == ReduceKind::kMin ? kMax : kMin;
        return;
      }
      break;
    case 1:
      if (has_root(call.shape.collective) && n > 1) {
        call.shape.root = (call.shape.root + 1) % n;
        return;
      }
      break;
    case 2:
      if (call.shape.collective != Collective::kBarrier) {
        call.type = call.type == DataType::kI32 ? DataType::kF32 : DataType::kI32;
        return;
      }
      break;
    case 3: {
      const bool was = call.shape.collective == Collective::kAllGather;
      call.shape = {was ? Collective::kAllToAll : Collective::kAllGather, n, 0};
      call.algorithm = "direct";
      call.count = std::max<uint64_t>(call.count, 1);
      call.op = {};
      return;
    }
    default: break;
  }
  if (call.shape.collective == Collective::kBarrier)
    call = {.shape = {Collective::kAllReduce, n, 0}, .slots = call.slots};
  call.count += 1;
}

void Simulation::start_call(Member& m, uint64_t item, bool tampered) {
  const int n = static_cast<int>(m.group->processes.size());
  Call call = call_of(item, n);
  if (tampered) tamper(call, item);
  auto plan = bind_plan(call, *m.domain);
  if (!plan.ok()) {  // steps too wide for these slots, on every rank
    call.algorithm = call.shape.collective == Collective::kBarrier ? "oneshot" : "direct";
    plan = bind_plan(call, *m.domain);
  }
  if (!plan.ok()) return wrong(plan.status().to_string());
  exec::Engine& engine = *engines_[static_cast<size_t>(m.process)];
  Flight f;
  f.item = item;
  f.checked = !tampered;
  f.deadline = world_.now() + timeout_;
  f.buffers = std::make_unique<Buffers>(call, m.rank);
  f.run = m.domain->take_run();
  f.run->deadline = {f.deadline};
  trace("rank {} of epoch {} calls {}{} (item {})", m.rank, m.group->epoch, call.to_string(),
        tampered ? ", which is wrong" : "", item);
  m.flying.push_back(std::move(f));
  Flight& flight = m.flying.back();
  engine.start(*m.domain, flight.run.get(), *plan, flight.buffers->input(), flight.buffers->output());
}

void Simulation::start_message(Member& m, uint64_t item) {
  auto random = dice_of(seed_, item);
  random.discard(2);
  const int n = static_cast<int>(m.group->processes.size());
  const int shift = static_cast<int>(random() % static_cast<uint64_t>(n));
  const size_t count = random() % 2 == 0 ? random() % 5 : random() % 2000;
  const bool any = random() % 2 == 0;
  auto data_of = [&](int rank) {
    std::vector<uint64_t> data(count);
    std::iota(data.begin(), data.end(), item * 1000000 + static_cast<uint64_t>(rank) * 10000);
    return data;
  };
  exec::Engine& engine = *engines_[static_cast<size_t>(m.process)];
  m.flying.emplace_back();
  Flight& f = m.flying.back();
  f.item = item;
  f.deadline = world_.now() + timeout_;
  f.source = data_of(m.rank);
  f.expected = data_of((m.rank + n - shift) % n);
  f.target.assign(count, 0);
  trace("rank {} of epoch {} sends x{} to rank {} (item {})", m.rank, m.group->epoch, count, (m.rank + shift) % n,
        item);
  auto make = [&](bool send) {
    exec::Ref<exec::Message> message(new exec::Message);
    message->send = send;
    message->peer = send ? (m.rank + shift) % n : any ? exec::kAnySource : (m.rank + n - shift) % n;
    message->tag = static_cast<int64_t>(item);
    message->format.type = DataType::kU64;
    message->bytes = count * sizeof(uint64_t);
    message->source = reinterpret_cast<const std::byte*>(f.source.data());
    message->target = reinterpret_cast<std::byte*>(f.target.data());
    message->deadline = {f.deadline};
    return message;
  };
  f.send = make(true);
  f.receive = make(false);
  const bool receive_first = world_.roll(2) == 0;
  engine.start(*m.domain, receive_first ? f.receive.get() : f.send.get());
  engine.start(*m.domain, receive_first ? f.send.get() : f.receive.get());
}

void Simulation::issue(Member& m) {
  const uint64_t item = m.next++;
  m.rests_until = world_.now() + world_.between({}, microseconds(world_.roll(4) == 0 ? 3000 : 100));
  world_.at(m.rests_until, [] {});
  world_.at(world_.now() + timeout_, [] {});
  if (is_message(item)) return start_message(m, item);
  if (fault_at(m.process, Harm::kSkip, item) != nullptr && m.group->epoch == 0) {
    return trace("rank {} skips item {}", m.rank, item);
  }
  start_call(m, item, fault_at(m.process, Harm::kMismatch, item) != nullptr && m.group->epoch == 0);
}

// Takes in what has completed. In any order: messages may overtake.
bool Simulation::collect(Member& m) {
  bool any = false;
  for (auto it = m.flying.begin(); it != m.flying.end();) {
    if (!it->done()) {
      ++it;
      continue;
    }
    any = true;
    Flight& f = *it;
    const Status& status = f.status();
    if (status.ok()) {
      ++outcome_.calls;
      const std::string what = f.buffers                ? f.buffers->check()
                               : f.target == f.expected ? ""
                                                        : "a message arrived damaged";
      if (f.checked && !what.empty()) wrong(what);
    } else if (status.verdict() == nullptr) {
      wrong("a call ended without a verdict: " + status.to_string());
    }
    if (world_.now() > f.deadline + bound_ && !ever_stopped_.contains(m.process)) {
      wrong(fmt::format("rank {} of epoch {}: item {} ended {} ms after its deadline", m.rank, m.group->epoch, f.item,
                        std::chrono::duration_cast<milliseconds>(world_.now() - f.deadline).count()));
    }
    // The memory is the user's again; who still reads or writes it is found out.
    if (f.buffers) f.buffers->scribble();
    std::fill(f.source.begin(), f.source.end(), ~uint64_t{0});
    m.landed.push_back(std::move(f));
    it = m.flying.erase(it);
  }
  return any;
}

}  // namespace ringfold::test
