#include "exec/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "exec/domain.h"
#include "kernels/copy.h"

namespace ringfold::exec {

using program::Move;
using program::Operand;
using program::Program;
using program::Where;
using transport::Arrival;
using transport::Link;
using transport::Preamble;

void Run::prepare(const std::shared_ptr<const Plan>& plan, const std::byte* input, std::byte* output,
                  uint32_t sequence) {
  if (plan_ != plan) bind(plan);
  in_place_ = input < output + plan_->output_bytes && output < input + plan_->input_bytes;
  contract_.sequence = sequence;
  preamble_.words[0] = static_cast<uint64_t>(sequence) << 32 | static_cast<uint32_t>(preamble_.words[0]);
  memory_ = {const_cast<std::byte*>(input), output, scratch_.data()};
  const Program& p = plan_->program;
  for (size_t l = 0; l < p.lanes.size(); ++l) {
    Cursor& c = cursors_[l];
    c.pass = c.move = 0;
    c.entered = c.elsewhere = false;
    c.ready = 0;
    c.done = 0;
  }
  if (p.events > 0) {
    events_.assign(p.events, 0);
    waits_.assign(p.events, 0);
  }
  if (std::exchange(referred_, false)) std::fill(issued_.begin(), issued_.end(), 0);
  next = {};
  touched_bytes = 0;
  lanes_left = static_cast<int>(p.lanes.size());
}

void Run::bind(const std::shared_ptr<const Plan>& plan) {
  plan_ = plan;
  const Program& p = plan->program;
  contract_ = plan->contract;
  preamble_ = contract_.encode();
  if (scratch_.size() < p.scratch_bytes) scratch_.resize(p.scratch_bytes);
  const size_t lanes = p.lanes.size();
  arrivals_.resize(std::max(arrivals_.size(), lanes * p.most_inputs));
  sources_.resize(arrivals_.size());
  for (size_t l = 0; l < lanes; ++l) {
    cursors_[l].arrivals = arrivals_.data() + l * p.most_inputs;
    cursors_[l].sources = sources_.data() + l * p.most_inputs;
  }
  shift_ = std::countr_zero(size_of(p.type));
  issued_.assign(p.links.size(), 0);
}

std::byte* Run::keep(size_t bytes) {
  if (kept_.size() < bytes) kept_.resize(bytes);
  return kept_.data();
}

inline void Run::copy(std::byte* to, const std::byte* from, size_t bytes) {
  if (bytes == 0) return;  // the pointers may be null
  kernels::copy(plan_->copies, to, from, bytes);
  touched_bytes += 2 * bytes;
}

inline void Run::fold(std::byte* to, const void** sources, int inputs, size_t bytes, bool complete) {
  if (bytes == 0) return;
  const auto& reducer = plan_->reducer;
  plan_->folds.write(bytes, [&](bool streaming) {
    auto* kernel = streaming  ? complete ? reducer.fold_complete_streaming : reducer.fold_streaming
                   : complete ? reducer.fold_complete
                              : reducer.fold;
    kernel(to, sources, inputs, bytes >> shift_, plan_->post);
  });
  touched_bytes += static_cast<uint64_t>(inputs + 1) * bytes;
}

int Run::peer_of(const Link* link) const {
  const auto& links = plan_->links;
  return plan_->program.links[static_cast<size_t>(std::find(links.begin(), links.end(), link) - links.begin())].peer;
}

bool Run::refuse_arrival(const Arrival& a, int peer, bool first, size_t bytes, Fault* fault) const {
  if (first) {
    if (a.preamble == nullptr) {
      *fault = {FaultKind::kMismatch, peer,
                Status(Code::kMismatch, fmt::format("rank {} is in the middle of another call than {} #{}", peer,
                                                    contract_.to_string(), contract_.sequence))};
      return false;
    }
    if (!(*a.preamble == preamble_)) {
      *fault = {FaultKind::kMismatch, peer,
                Status(Code::kMismatch, difference(contract_, peer, Contract::decode(*a.preamble)))};
      return false;
    }
  }
  if (a.preamble != nullptr && !first) {
    *fault = {FaultKind::kMismatch, peer,
              Status(Code::kMismatch, difference(contract_, peer, Contract::decode(*a.preamble)))};
  } else {
    *fault = {
        FaultKind::kMismatch, peer,
        Status(Code::kMismatch, fmt::format("rank {} sent {} bytes in {} #{} where {} were expected: the counts that "
                                            "the two ranks gave differ",
                                            peer, a.bytes, contract_.to_string(), contract_.sequence, bytes))};
  }
  return false;
}

// Puts `bytes` at `data` on a link: by reference where the memory is the user's and stays as it is until the receiver
// has read it (the checkers prove that), else through the link's own memory. It is left to be fetched only where
// every rank sends as it receives, so that all are busy: a sender that copies does half of the work while the
// receiver does the other half, and what is summed would be brought somewhere first and then read once more.
void Run::send(Link* link, const std::byte* data, size_t bytes, bool stable, const Preamble* preamble) {
  if (stable) {
    const bool mutual =
        contract_.collective == Collective::kAllGather || contract_.collective == Collective::kAllToAll;
    mutual ? link->put(data, bytes, preamble) : link->put_by_copy(data, bytes, preamble);
  } else {
    std::byte* slot = link->reserve(bytes);
    copy(slot, data, bytes);
    link->commit(bytes, preamble);
  }
}

// False without a fault: the tile is taken again when its payload is here.
bool Run::fetch(Link* link, std::byte* to, Cursor& c, Fault* fault) {
  Status status = link->fetch(to);
  if (status.ok()) return true;
  c.ready = 0;
  c.elsewhere = false;
  if (status.code() != Code::kUnavailable) *fault = {FaultKind::kPeer, peer_of(link), status};
  return false;
}

// Apart from the path of what comes in slots.
[[gnu::noinline]] bool Run::confirm(Link* link, Fault* fault) {
  Status status = link->confirm();
  if (status.ok()) return true;
  *fault = {FaultKind::kPeer, peer_of(link), status};
  return false;
}

[[gnu::noinline]] bool Run::confirm_sources(const Arrival* arrivals, const Move& move, Fault* fault) {
  for (int i = 0; i < move.inputs; ++i) {
    const Operand& op = plan_->program.operands[move.operands + static_cast<uint32_t>(i)];
    if (op.where == Where::kLink && arrivals[i].referred && !confirm(plan_->links[op.link], fault)) return false;
  }
  return true;
}

// Brings what the arrivals of a fold only refer to, and points the sources at it.
bool Run::fetch_sources(Cursor& c, const Move& move, size_t bytes, Fault* fault) {
  for (int i = 0; i < move.inputs; ++i) {
    const Operand& op = plan_->program.operands[move.operands + static_cast<uint32_t>(i)];
    if (op.where != Where::kLink || !c.arrivals[i].remote) continue;
    if (bounce_.size() < move.inputs * bytes) bounce_.resize(move.inputs * bytes);
    std::byte* bounce = bounce_.data() + static_cast<size_t>(i) * bytes;
    if (!fetch(plan_->links[op.link], bounce, c, fault)) return false;
    c.sources[i] = bounce;
  }
  return true;
}

// One tile of one move. False: see *blocked or *fault. Inlined into its one caller: the call would cost 2 ns of a
// tile.
[[gnu::always_inline]] inline bool Run::step(Cursor& c, const Move& move, size_t bytes, Fault* fault, bool* blocked) {
  const Program& p = plan_->program;
  const Operand* in = &p.operands[move.operands];
  const Operand* out = in + move.inputs;
  // Copies, since nothing that is read through a pointer stays in a register across a call to a link.
  Link* const* const links = plan_->links.data();
  Arrival* const arrivals = c.arrivals;
  const void** const sources = c.sources;
  const int inputs = move.inputs, outputs = move.outputs;
  const uint64_t done = c.done, offset = c.stretch.offset + done, scratch_offset = c.stretch.scratch_offset + done;
  const bool first = c.pass == 0 && done == 0;
  const bool folds = (move.flags & program::kReduce) != 0;
  // Memory outputs come first. Null pointers are fine for moves without bytes, so `kept` says whether there is one.
  const bool kept = outputs > 0 && out[0].where != Where::kLink;
  std::byte* home = kept ? address(out[0], offset, scratch_offset) : nullptr;

  // Everything that the tile needs must be there: arrivals in, credit out.
  for (int i = c.ready; i < inputs; ++i) {
    const Operand& op = in[i];
    if (op.where != Where::kLink) {
      sources[i] = address(op, offset, scratch_offset);
      continue;
    }
    Arrival& a = arrivals[i];
    // The contract is compared before a byte of its payload may land.
    const bool contract = first && (op.flags & program::kFirst);
    if (contract) {
      if (!links[op.link]->announced(&a, bytes)) {
        c.ready = static_cast<uint16_t>(i);
        return *blocked = true, false;
      }
      if (!check_arrival(a, links[op.link], true, bytes, fault)) return false;
    }
    if (!links[op.link]->arrived(&a, folds ? nullptr : home, bytes)) {
      c.ready = static_cast<uint16_t>(i);
      return *blocked = true, false;
    }
    if (!contract && !check_arrival(a, links[op.link], false, bytes, fault)) return false;
    sources[i] = a.data;
    c.elsewhere |= a.remote | a.referred;
  }
  for (int o = kept ? 1 : 0; o < outputs; ++o) {
    if (links[out[o].link]->writable()) continue;
    c.ready = move.inputs;
    return *blocked = true, false;
  }

  auto preamble_of = [&](const Operand& op) { return first && (op.flags & program::kFirst) ? &preamble_ : nullptr; };
  const std::byte* value = nullptr;  // where the result lies
  bool stable = false;               // and whether it stays there
  int built = -1;                    // the output link in whose memory it was built
  auto target = [&]() -> std::byte* {
    if (kept) return home;
    if (outputs == 0) return nullptr;
    built = 0;
    return links[out[0].link]->reserve(bytes);
  };
  if (folds) {
    if (c.elsewhere && !fetch_sources(c, move, bytes, fault)) return *blocked = fault->status.ok(), false;
    std::byte* to = target();
    fold(to, sources, inputs, bytes, (move.flags & program::kComplete) != 0);
    value = to;
    stable = kept && out[0].where == Where::kOutput;
  } else if (inputs == 1) {
    if (in[0].where != Where::kLink) {
      value = static_cast<const std::byte*>(sources[0]);
      stable = in[0].where == Where::kInput ? !(in_place_ && (move.flags & program::kByValue))
                                            : in[0].where == Where::kOutput && !(move.flags & program::kByValue);
      if (kept) {
        if (home != value) copy(home, value, bytes);
        value = home;
        stable = out[0].where == Where::kOutput;
      }
    } else {
      const Arrival& a = arrivals[0];
      // What may be refused is fetched before a slot is reserved for it.
      if (a.remote && !(kept ? fetch(links[in[0].link], home, c, fault) : fetch_sources(c, move, bytes, fault))) {
        return *blocked = fault->status.ok(), false;
      }
      std::byte* to = target();
      if (to != nullptr && !(kept && a.remote) && sources[0] != to) {
        copy(to, static_cast<const std::byte*>(sources[0]), bytes);
      }
      value = to;
      stable = kept && out[0].where == Where::kOutput;
    }
  }
  if (c.elsewhere && !confirm_sources(arrivals, move, fault)) return false;

  // Output links other than the one that the value was built in, then that one.
  for (int o = kept || built == 0 ? 1 : 0; o < outputs; ++o) {
    Link* link = links[out[o].link];
    send(link, value, bytes, stable, preamble_of(out[o]));
  }
  if (built == 0) {
    Link* link = links[out[0].link];
    link->commit(bytes, preamble_of(out[0]));
  }
  for (int i = 0; i < inputs; ++i) {
    if (in[i].where == Where::kLink) links[in[i].link]->release();
  }
  c.ready = 0;
  c.elsewhere = false;
  return true;
}

// Apart, so that the others need none of its registers.
[[gnu::noinline]] bool Run::play_other(Cursor& c, size_t bytes, Fault* fault) {
  const Move& move = plan_->program.lanes[0][c.move];
  if (move.inputs == 0) return true;
  c.stretch = stretch_of(plan_->program, move, 0, shift_);
  bool blocked = false;
  return step(c, move, bytes, fault, &blocked);
}

// One move of a short program. False: it has to wait, or *fault says what is wrong.
[[gnu::always_inline]] inline bool Run::play(const ShortMove& move, Cursor& c, Fault* fault) {
  const Place* in = plan_->places.data() + move.operands;
  const Place* out = in + move.inputs;
  const size_t bytes = move.bytes;
  auto at = [&](const Place& place) { return memory_[static_cast<size_t>(place.where)] + place.offset; };
  // As in step(), where a function for both would cost 1 to 3 ns of a tile: the contract is compared before a byte of
  // its payload may land.
  auto arrived = [&](const Place& place, Arrival* a, std::byte* landing) {
    if (place.first && !(place.link->announced(a, bytes) && check_arrival(*a, place.link, true, bytes, fault)))
      return false;
    return place.link->arrived(a, landing, bytes) &&
           (place.first || check_arrival(*a, place.link, false, bytes, fault));
  };
  switch (move.kind) {
    case ShortMove::Kind::kSend:
    case ShortMove::Kind::kKeep: {
      const int links = move.kind == ShortMove::Kind::kKeep ? 1 : 0;  // the first of them
      for (int o = links; o < move.outputs; ++o) {
        if (!out[o].link->writable()) return false;
      }
      const bool stable = in_place_ ? !move.by_value_in_place : !move.by_value;
      const std::byte* data = at(*in);
      if (links == 1) {
        std::byte* home = at(*out);
        if (home != data) copy(home, data, bytes);
        data = home;
      }
      for (int o = links; o < move.outputs; ++o) {
        send(out[o].link, data, bytes, stable, out[o].first ? &preamble_ : nullptr);
      }
      return true;
    }
    case ShortMove::Kind::kTake: {
      std::byte* to = at(*out);
      Arrival& a = c.arrivals[0];
      if (!arrived(*in, &a, to)) return false;
      if (a.remote) {
        if (!fetch(in->link, to, c, fault)) return false;
      } else if (a.data != to) {
        copy(to, a.data, bytes);
      }
      if (a.referred && !confirm(in->link, fault)) return false;
      in->link->release();
      return true;
    }
    case ShortMove::Kind::kFold: {
      for (; c.ready < move.inputs; ++c.ready) {
        const Place& place = in[c.ready];
        if (place.link == nullptr) {
          c.sources[c.ready] = at(place);
          continue;
        }
        // Nothing lands anywhere yet, so the contract may come with its payload.
        Arrival& a = c.arrivals[c.ready];
        if (!place.link->arrived(&a, nullptr, bytes) || !check_arrival(a, place.link, place.first, bytes, fault)) {
          return false;
        }
        c.sources[c.ready] = a.data;
        c.elsewhere |= a.remote | a.referred;
      }
      const Move& whole = plan_->program.lanes[0][c.move];
      if (c.elsewhere && !fetch_sources(c, whole, bytes, fault)) return false;
      fold(at(*out), c.sources, move.inputs, bytes, (whole.flags & program::kComplete) != 0);
      if (c.elsewhere && !confirm_sources(c.arrivals, whole, fault)) return false;
      for (int i = 0; i < move.inputs; ++i) {
        if (in[i].link != nullptr) in[i].link->release();
      }
      c.ready = 0;
      c.elsewhere = false;
      return true;
    }
    case ShortMove::Kind::kOther: return play_other(c, bytes, fault);
  }
  return false;
}

Advance Run::advance_short(Fault* fault) {
  Cursor& c = cursors_[0];
  const uint32_t before = c.move;
  const ShortMove* move = plan_->short_moves.data() + before;
  for (const ShortMove* end = &plan_->short_moves.back() + 1; move != end; ++move, ++c.move) {
    if (play(*move, c, fault)) continue;
    if (fault->status.ok()) return c.move > before ? Advance::kProgress : Advance::kBlocked;
    return Advance::kFault;
  }
  c.pass = 1;
  note_issued(0);
  return Advance::kFinished;
}

// Nothing of a later run is on this lane's links yet, so what was put up to here is what has to retire.
void Run::note_issued(int lane) {
  for (size_t i = 0; i < issued_.size(); ++i) {
    if (plan_->program.links[i].lane != lane) continue;
    Link* link = plan_->links[i];
    if (const uint64_t issued = link->issued(); link->retired() < issued) {
      issued_[i] = issued;
      referred_ = true;
    }
  }
}

// Tells the links of a move where what they bring belongs: the rest of this move's, if it only takes, and what comes
// behind that.
//
// All of that memory is nobody else's from the moment that the move is entered: what this rank did with it before is
// done, and what others read of it they have read before they send what comes. plan/program_check.h proves this of
// every algorithm, with arrivals that land as early as this lets them. And the link's contract was compared: what
// does not match lands nowhere.
void Run::expect(int lane, const Cursor& c) {
  const Program& p = plan_->program;
  const Move* const moves = p.lanes[static_cast<size_t>(lane)].data();
  const Take& take = plan_->takes[static_cast<size_t>(lane)][c.move];
  const uint64_t left = c.stretch.bytes - c.done, tiles = (left + p.tile_bytes - 1) / p.tile_bytes;
  if (take.plain && left > 0) {
    const Operand* op = &p.operands[moves[c.move].operands];
    std::byte* const to = address(op[1], c.stretch.offset + c.done, c.stretch.scratch_offset + c.done);
    plan_->links[op[0].link]->expect(0, to, left, p.tile_bytes);
  }
  for (uint32_t n = take.nexts; n < take.nexts + take.count; ++n) {
    const auto [link, move] = plan_->nexts[n];
    const uint32_t pass = c.pass + (move <= c.move ? 1 : 0);
    if (pass >= p.passes) continue;
    const program::Stretch next = stretch_of(p, moves[move], pass, shift_);
    if (next.bytes == 0) continue;
    std::byte* const to = address(p.operands[moves[move].operands + 1], next.offset, next.scratch_offset);
    plan_->links[link]->expect(tiles, to, next.bytes, p.tile_bytes);
  }
}

Advance Run::advance_long(int lane, Fault* fault) {
  const Program& p = plan_->program;
  const Move* const moves = p.lanes[lane].data();
  const auto count = static_cast<uint32_t>(p.lanes[lane].size());
  const uint32_t passes = count > 0 ? p.passes : 0;
  const Take* const takes = plan_->takes.empty() ? nullptr : plan_->takes[static_cast<size_t>(lane)].data();
  // A copy that lives in registers: what is reached through a pointer is read again after every call to a link.
  Cursor c = cursors_[lane];
  bool progress = false;
  auto leave = [&](Advance how) { return cursors_[lane] = c, how; };
  while (c.pass < passes) {
    const Move& move = moves[c.move];
    if (!c.entered) {
      if (move.wait != program::kNoEvent) {
        if (events_[move.wait] <= waits_[move.wait]) return leave(progress ? Advance::kProgress : Advance::kBlocked);
        ++waits_[move.wait];
      }
      c.stretch = stretch_of(p, move, c.pass, shift_);
      c.entered = true;
      if (takes != nullptr && takes[c.move].tells() && (c.pass > 0 || !takes[c.move].contract) &&
          c.stretch.bytes > 0) {
        expect(lane, c);
      }
    }
    // A move without bytes still sends its slot in the first pass, for the contract's sake; both ends know when it
    // does not.
    if (move.inputs > 0 && (c.stretch.bytes > 0 || c.pass == 0)) {
      do {
        const size_t bytes = std::min(p.tile_bytes, c.stretch.bytes - c.done);
        bool blocked = false;
        const bool done = (move.flags & program::kCodes) != 0 ? step_coded(c, move, bytes, fault, &blocked)
                                                              : step(c, move, bytes, fault, &blocked);
        if (!done) {
          if (!blocked) return leave(Advance::kFault);
          return leave(progress ? Advance::kProgress : Advance::kBlocked);
        }
        progress = true;
        c.done += bytes;
        if (c.pass == 0 && c.done == bytes && takes != nullptr && takes[c.move].contract) expect(lane, c);
      } while (c.done < c.stretch.bytes);
    }
    if (move.signal != program::kNoEvent) ++events_[move.signal];
    c.done = 0;
    c.entered = false;
    if (++c.move == count) {
      c.move = 0;
      ++c.pass;
    }
  }
  note_issued(lane);
  return leave(Advance::kFinished);
}

bool Run::retired() const {
  if (!referred_) return true;
  for (size_t i = 0; i < issued_.size(); ++i) {
    if (issued_[i] != 0 && plan_->links[i]->retired() < issued_[i]) return false;
  }
  return true;
}

int Run::waits_for() const {
  const Program& p = plan_->program;
  for (size_t l = 0; l < p.lanes.size(); ++l) {
    const Cursor& c = cursors_[l];
    if (c.pass >= p.passes || p.lanes[l].empty()) continue;
    const Move& move = p.lanes[l][c.move];
    const Operand* op = &p.operands[move.operands];
    if (c.ready < move.inputs && op[c.ready].where == Where::kLink) return p.links[op[c.ready].link].peer;
    for (int o = 0; o < move.outputs; ++o) {
      const Operand& out = op[move.inputs + o];
      if (out.where == Where::kLink && !plan_->links[out.link]->writable()) return p.links[out.link].peer;
    }
  }
  for (size_t i = 0; i < issued_.size(); ++i) {
    if (issued_[i] != 0 && plan_->links[i]->retired() < issued_[i]) return p.links[i].peer;
  }
  return -1;
}

// With one lane there is one move that stands still, for its input number `ready` first.
transport::Watch Run::watch() const {
  const Program& p = plan_->program;
  const Cursor& c = cursors_[0];
  if (p.lanes.size() != 1 || c.pass >= p.passes || p.lanes[0].empty()) return {};
  const Move& move = p.lanes[0][c.move];
  const Operand* op = &p.operands[move.operands];
  if (c.ready >= move.inputs || op[c.ready].where != Where::kLink) return {};
  return plan_->links[op[c.ready].link]->watch();
}

std::string Run::describe() const { return fmt::format("{} #{}", contract_.to_string(), contract_.sequence); }

void Run::recycle() {
  missed.reset();
  domain->recycle(this);
}

}  // namespace ringfold::exec
