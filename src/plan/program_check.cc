#include "plan/program_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <tuple>

namespace ringfold::plan {
namespace {

using program::Move;
using program::Operand;
using program::Program;
using program::Stretch;
using program::Where;

uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// An element's symbolic value: the exact sum of random contributions, and a hash of the expression that made it.
struct Value {
  uint64_t sum = 0;
  uint64_t expression = 0;
  bool defined = false;
  bool complete = false;  // has been post-processed: final, never folded again
  bool decoded = false;   // is what a code decodes to, and was not changed since
  int depth = 0;          // most codings on the way of a contribution
};

Value contribution(int rank, uint64_t block, uint64_t index) {
  const uint64_t v = mix(mix(static_cast<uint64_t>(rank) * 1000003 + block) + index);
  return {.sum = v, .expression = mix(v), .defined = true};
}

Value fold(const Value& a, const Value& b) {
  return {.sum = a.sum + b.sum,
          .expression = mix(a.expression * 3 + mix(b.expression) * 5 + 1),
          .defined = a.defined && b.defined,
          .complete = a.complete || b.complete,
          .depth = std::max(a.depth, b.depth)};
}

Value code(Value v) {
  v.expression = mix(~v.expression);
  v.decoded = true;
  ++v.depth;
  return v;
}

struct Slot {
  std::vector<Value> values;                   // by value
  const std::vector<Value>* region = nullptr;  // by reference
  uint64_t start = 0, elems = 0;
  bool contract = false;
  bool coded = false;
  bool landed = false;  // its values lie where they belong, and nobody has taken them yet

  const Value& operator[](uint64_t e) const { return region ? (*region)[start + e] : values[e]; }
};

// Where an arrival belongs, as its receiver has told the link; 0 elements: it has not.
struct Landing {
  Where where = Where::kOutput;
  uint64_t start = 0, elems = 0;
};

struct Queue {
  std::deque<Slot> slots;
  std::deque<Landing> told;  // of the slots, and of those that come behind them
};

struct LaneState {
  uint32_t pass = 0;
  size_t move = 0;
  uint64_t done = 0;     // bytes of the current move
  bool entered = false;  // it
};

struct Rank {
  const Program* program;
  const Layout* layout;
  std::vector<Value> input, output, scratch;
  bool aliased = false;
  uint64_t input_at = 0, output_at = 0;  // in place: offsets of input and output in `output`
  std::vector<LaneState> lanes;
  std::vector<int64_t> events, waits;
};

class Simulation {
 public:
  Simulation(const std::vector<Program>& programs, const std::vector<Layout>& layouts, const ProgramCheckOptions& o)
      : options_(o), random_(o.seed) {
    for (size_t r = 0; r < programs.size(); ++r) add_rank(programs[r], layouts[r]);
  }

  Status run() {
    std::vector<std::pair<int, int>> order;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      for (size_t l = 0; l < ranks_[r].lanes.size(); ++l) order.emplace_back(r, l);
    }
    for (;;) {
      std::shuffle(order.begin(), order.end(), random_);
      bool progress = false, all_done = true;
      for (auto [r, l] : order) {
        const int steps = 1 + static_cast<int>(random_() % 4);
        for (int i = 0; i < steps; ++i) {
          bool advanced = false;
          RINGFOLD_TRY(advance(r, l, &advanced));
          progress |= advanced;
          if (!advanced) break;
        }
        all_done &= finished(ranks_[r], ranks_[r].lanes[l]);
      }
      if (all_done) break;
      if (!progress) return {Code::kInternal, "deadlock: " + where_everybody_waits()};
    }
    for (auto& [key, queue] : links_) {
      if (!queue.slots.empty()) {
        return {Code::kInternal,
                fmt::format("rank {} sent {} slots to rank {} on lane {} that nobody takes", std::get<0>(key),
                            queue.slots.size(), std::get<1>(key), std::get<2>(key))};
      }
    }
    return check_results();
  }

 private:
  using LinkId = std::tuple<int, int, int>;  // from, to, lane

  void add_rank(const Program& program, const Layout& layout) {
    Rank rank{.program = &program, .layout = &layout};
    rank.input.resize(layout.input_elems());
    rank.output.resize(layout.output_elems());
    for_blocks(layout, [&](uint64_t b) {
      if (auto at = layout.input_offset(b)) {
        for (uint64_t i = 0; i < layout.elems_of(b); ++i) rank.input[*at + i] = contribution(layout.rank, b, i);
      }
    });
    if (options_.in_place && !rank.input.empty() && !rank.output.empty()) {
      // The larger buffer holds the smaller one at the place of this rank's block.
      rank.aliased = true;
      const auto own = static_cast<uint64_t>(layout.rank);
      auto at = [&](const std::vector<Value>& large, const std::vector<Value>& small) -> uint64_t {
        if (large.size() == small.size()) return 0;
        return layout.sizes.empty() ? own * layout.count : offset_of(layout.sizes, own);
      };
      if (rank.input.size() <= rank.output.size()) {
        rank.input_at = at(rank.output, rank.input);
        std::copy(rank.input.begin(), rank.input.end(), rank.output.begin() + static_cast<int64_t>(rank.input_at));
      } else {
        rank.output_at = at(rank.input, rank.output);
        rank.output = rank.input;
      }
    }
    rank.scratch.resize(program.scratch_bytes / size_of(program.type) + 64);
    rank.lanes.resize(program.lanes.size());
    rank.events.resize(program.events);
    rank.waits.resize(program.events);
    ranks_.push_back(std::move(rank));
  }

  static uint64_t offset_of(const std::vector<uint64_t>& sizes, uint64_t block) {
    uint64_t sum = 0;
    for (uint64_t b = 0; b < block; ++b) sum += sizes[b];
    return sum;
  }

  template <typename F>
  static void for_blocks(const Layout& layout, F f) {
    const auto n = static_cast<uint64_t>(layout.shape.ranks), r = static_cast<uint64_t>(layout.rank);
    if (layout.shape.collective != Collective::kAllToAll) {
      for (uint64_t b = 0; b < schedule::blocks_of(layout.shape); ++b) f(b);
      return;
    }
    for (uint64_t p = 0; p < n; ++p) {
      f(r * n + p);
      if (p != r) f(p * n + r);
    }
  }

  static bool finished(const Rank& rank, const LaneState& s) { return s.pass >= rank.program->passes; }

  std::vector<Value>& region(Rank& rank, Where where, uint64_t* start) {
    if (where == Where::kScratch) return rank.scratch;
    if (rank.aliased) {
      *start += where == Where::kInput ? rank.input_at : rank.output_at;
      return rank.output;
    }
    return where == Where::kInput ? rank.input : rank.output;
  }

  Status advance(int r, int l, bool* advanced) {
    Rank& rank = ranks_[r];
    LaneState& s = rank.lanes[l];
    const Program& program = *rank.program;
    const auto& moves = program.lanes[l];
    if (finished(rank, s)) return {};
    if (moves.empty()) {
      s.pass = program.passes;
      *advanced = true;
      return {};
    }
    const Move& move = moves[s.move];
    const Stretch stretch = stretch_of(program, move, s.pass);
    auto fail = [&](std::string_view what) {
      return Status(Code::kInternal, fmt::format("rank {} lane {} pass {} move {} at byte {}: {}", r, l, s.pass,
                                                 s.move, s.done, what));
    };
    if (s.done == 0 && move.wait != program::kNoEvent && rank.events[move.wait] <= rank.waits[move.wait]) return {};
    if (!s.entered) {
      s.entered = true;
      if (s.pass > 0 || !brings_contract(program, move)) tell(r, l);
    }
    const size_t size = size_of(program.type);
    const uint64_t bytes = std::min(program.tile_bytes, stretch.bytes - s.done);
    const uint64_t elems = bytes / size;
    const bool skipped = move.inputs == 0 || (stretch.bytes == 0 && s.pass > 0);
    if (!skipped) {
      const Operand* in = &program.operands[move.operands];
      const Operand* out = in + move.inputs;
      for (int i = 0; i < move.inputs; ++i) {
        if (in[i].where == Where::kLink && incoming(r, program, in[i]).slots.empty()) return {};
      }
      for (int o = 0; o < move.outputs; ++o) {
        if (out[o].where == Where::kLink &&
            outgoing(r, program, out[o]).slots.size() >= static_cast<size_t>(options_.slots)) {
          return {};
        }
      }
      const bool first = s.pass == 0 && s.done == 0;
      std::vector<Value> result;
      for (int i = 0; i < move.inputs; ++i) {
        std::vector<Value> term(elems);
        if (in[i].where == Where::kLink) {
          auto& queue = incoming(r, program, in[i]);
          if (queue.slots.empty()) return fail("takes two slots of one link in one move");
          const Slot& slot = queue.slots.front();
          const uint64_t got = slot.region ? slot.elems : slot.values.size();
          if (got != elems) return fail(fmt::format("expected {} elements, got {}", elems, got));
          if (slot.contract != (first && (in[i].flags & program::kFirst))) return fail("contract on the wrong slot");
          if (slot.coded != ((in[i].flags & program::kCoded) != 0))
            return fail("one end codes and the other does not");
          for (uint64_t e = 0; e < elems; ++e) term[e] = slot[e];
          if (slot.landed) {
            const Landing& place = queue.told.front();
            uint64_t start = place.start;
            const auto& memory = region(rank, place.where, &start);
            for (uint64_t e = 0; e < elems; ++e) {
              if (memory[start + e].expression != term[e].expression) return fail("what came early was overwritten");
            }
          }
          queue.slots.pop_front();
          if (!queue.told.empty()) queue.told.pop_front();
        } else {
          uint64_t start = address(in[i], stretch, s.done) / size;
          const auto& memory = region(rank, in[i].where, &start);
          if (start + elems > memory.size()) return fail("reads outside of its memory");
          for (uint64_t e = 0; e < elems; ++e) term[e] = memory[start + e];
        }
        if (move.flags & program::kReduce) {
          for (const Value& v : term) {
            if (v.complete) return fail("folds a value that is already complete");
          }
        }
        if (i == 0) {
          result = std::move(term);
        } else {
          for (uint64_t e = 0; e < elems; ++e) result[e] = fold(result[e], term[e]);
        }
      }
      for (auto& v : result) {
        if (!v.defined) return fail("uses a value that was never written");
        if (move.flags & program::kComplete) v.complete = true;
      }
      const bool encodes =
          std::any_of(out, out + move.outputs, [](const Operand& op) { return (op.flags & program::kCoded) != 0; });
      const bool handed_on =
          move.inputs == 1 && (move.flags & program::kReduce) == 0 && (in[0].flags & program::kCoded) != 0;
      for (Value& v : result) {
        if (!encodes || handed_on) continue;
        if (v.decoded) return fail("encodes again what was decoded");
        v = code(v);
      }
      const std::vector<Value>* home = nullptr;
      uint64_t home_at = 0;
      for (int o = 0; o < move.outputs; ++o) {
        if (out[o].where != Where::kLink) {
          if (o != 0) return fail("memory is not the first output");
          if (out[o].where == Where::kInput) return fail("writes the input");
          uint64_t start = address(out[o], stretch, s.done) / size;
          auto& memory = region(rank, out[o].where, &start);
          if (start + elems > memory.size()) return fail("writes outside of its memory");
          std::copy(result.begin(), result.end(), memory.begin() + static_cast<int64_t>(start));
          if (out[o].where == Where::kOutput) home = &memory, home_at = start;
          continue;
        }
        Slot slot;
        slot.contract = first && (out[o].flags & program::kFirst);
        slot.coded = (out[o].flags & program::kCoded) != 0;
        const bool changes = (move.flags & program::kByValue) && (rank.aliased || in[0].where == Where::kOutput);
        if (home == nullptr && !encodes && move.outputs > 0 && out[0].where == Where::kLink && move.inputs == 1 &&
            in[0].where != Where::kLink && in[0].where != Where::kScratch && !changes) {
          home_at = address(in[0], stretch, s.done) / size;
          home = &region(rank, in[0].where, &home_at);
        }
        if (home != nullptr && !slot.coded) {
          slot.region = home, slot.start = home_at, slot.elems = elems;
        } else {
          slot.values = result;
        }
        auto& queue = outgoing(r, program, out[o]);
        if (queue.slots.size() >= static_cast<size_t>(options_.slots))
          return fail("puts on one link twice in one move");
        queue.slots.push_back(std::move(slot));
        land(queue, program.links[out[o].link].peer);
      }
    }
    const bool opens = s.pass == 0 && s.done == 0 && stretch.bytes > 0 && brings_contract(program, move);
    *advanced = true;
    s.done += bytes;
    if (opens) tell(r, l);
    if (skipped || s.done >= stretch.bytes) {
      if (move.wait != program::kNoEvent) ++rank.waits[move.wait];
      if (move.signal != program::kNoEvent) ++rank.events[move.signal];
      s.done = 0;
      s.entered = false;
      if (++s.move == moves.size()) s.move = 0, ++s.pass;
    }
    return {};
  }

  // A rank that has entered a move tells its links where that belongs which comes next: what this move only takes,
  // and behind what it takes of a link what the next one does that only takes from there. If the move brings
  // contracts, it does so behind them. A link remembers what it was told first.
  void tell(int r, int l) {
    if (!options_.early) return;
    Rank& rank = ranks_[r];
    const LaneState& s = rank.lanes[l];
    const auto& moves = rank.program->lanes[l];
    const Program& program = *rank.program;
    const Move& move = moves[s.move];
    const Stretch stretch = stretch_of(program, move, s.pass);
    if (stretch.bytes == 0) return;
    for (uint32_t i = move.operands; i < move.operands + move.inputs; ++i) {
      const Operand& in = program.operands[i];
      if (in.where != Where::kLink) continue;
      Queue& queue = incoming(r, program, in);
      if (only_takes(program, move)) tell(&queue, 0, rank, move, stretch, s.done);
      uint32_t pass = s.pass;
      size_t next = s.move;
      do {
        if (++next == moves.size()) next = 0, ++pass;
      } while (!takes_from(program, moves[next], in.link));
      const bool known = pass < program.passes && only_takes(program, moves[next]) &&
                         program.operands[moves[next].operands + 1].where == Where::kOutput;
      const uint64_t before = (stretch.bytes - s.done + program.tile_bytes - 1) / program.tile_bytes;
      if (known) tell(&queue, before, rank, moves[next], stretch_of(program, moves[next], pass), 0);
      land(queue, r);
    }
  }

  // Of the arrivals from number `at` on: the move has them from byte `done` on.
  static void tell(Queue* queue, size_t at, const Rank& rank, const Move& move, const Stretch& stretch,
                   uint64_t done) {
    const Operand& out = rank.program->operands[move.operands + 1];
    const size_t size = size_of(rank.program->type);
    for (; done < stretch.bytes; ++at, done += rank.program->tile_bytes) {
      const uint64_t elems = std::min(rank.program->tile_bytes, stretch.bytes - done) / size;
      if (queue->told.size() <= at) queue->told.resize(at + 1);
      if (queue->told[at].elems == 0) queue->told[at] = {out.where, address(out, stretch, done) / size, elems};
    }
  }

  // What is there and has a place lies there now.
  void land(Queue& queue, int receiver) {
    for (size_t i = 0; i < queue.slots.size() && i < queue.told.size(); ++i) {
      Slot& slot = queue.slots[i];
      const Landing& place = queue.told[i];
      if (slot.landed || (slot.region ? slot.elems : slot.values.size()) != place.elems) continue;
      uint64_t start = place.start;
      auto& memory = region(ranks_[receiver], place.where, &start);
      if (start + place.elems > memory.size()) continue;
      for (uint64_t e = 0; e < place.elems; ++e) memory[start + e] = slot[e];
      slot.landed = place.elems > 0;
    }
  }

  static bool brings_contract(const Program& program, const Move& move) {
    const Operand* in = &program.operands[move.operands];
    return std::any_of(in, in + move.inputs, [](const Operand& op) {
      return op.where == Where::kLink && (op.flags & program::kFirst) != 0;
    });
  }

  static bool only_takes(const Program& program, const Move& move) {
    const Operand* op = &program.operands[move.operands];
    return move.inputs == 1 && op[0].where == Where::kLink && move.outputs > 0 && op[1].where != Where::kLink &&
           (move.flags & (program::kReduce | program::kCodes)) == 0;
  }

  static bool takes_from(const Program& program, const Move& move, uint16_t link) {
    const Operand* in = &program.operands[move.operands];
    return std::any_of(in, in + move.inputs,
                       [&](const Operand& op) { return op.where == Where::kLink && op.link == link; });
  }

  static uint64_t address(const Operand& op, const Stretch& stretch, uint64_t done) {
    const bool reused = op.where == Where::kScratch && !(op.flags & program::kFullSize);
    return op.base + (reused ? stretch.scratch_offset : stretch.offset) + done;
  }

  Queue& incoming(int r, const Program& p, const Operand& op) {
    return links_[{p.links[op.link].peer, r, p.links[op.link].lane}];
  }
  Queue& outgoing(int r, const Program& p, const Operand& op) {
    return links_[{r, p.links[op.link].peer, p.links[op.link].lane}];
  }

  std::string where_everybody_waits() const {
    std::string text;
    for (size_t r = 0; r < ranks_.size() && text.size() < 400; ++r) {
      for (size_t l = 0; l < ranks_[r].lanes.size(); ++l) {
        const auto& s = ranks_[r].lanes[l];
        if (!finished(ranks_[r], s)) text += fmt::format("rank {} lane {} pass {} move {}; ", r, l, s.pass, s.move);
      }
    }
    return text;
  }

  Status check_results() {
    std::map<std::pair<uint64_t, uint64_t>, uint64_t> expressions;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      Rank& rank = ranks_[r];
      const Layout& layout = *rank.layout;
      const int n = layout.shape.ranks;
      Status bad;
      uint64_t covered = 0;
      for_blocks(layout, [&](uint64_t b) {
        auto at = layout.output_offset(b);
        if (!at || !bad.ok()) return;
        for (uint64_t i = 0; i < layout.elems_of(b); ++i, ++covered) {
          uint64_t sum = 0;
          for (int q = 0; q < n; ++q) {
            if (schedule::starts_with(layout.shape, q, b)) sum += contribution(q, b, i).sum;
          }
          uint64_t start = *at + i;
          const Value& v = region(rank, Where::kOutput, &start)[start];
          if (!v.defined || v.sum != sum) {
            bad = Status(Code::kInternal, fmt::format("rank {}: wrong value in block {} element {}", r, b, i));
            return;
          }
          if (v.depth > options_.most_depth) {
            bad = Status(Code::kInternal, fmt::format("rank {}: block {} was encoded {} times", r, b, v.depth));
            return;
          }
          if (v.complete != rank.program->reduces) {
            bad = Status(Code::kInternal,
                         fmt::format("rank {}: block {} is {}post-processed", r, b, v.complete ? "" : "not "));
            return;
          }
          auto [it, added] = expressions.try_emplace({b, i}, v.expression);
          if (!added && it->second != v.expression) {
            bad = Status(Code::kInternal, fmt::format("rank {}: block {} was folded in another order", r, b));
            return;
          }
        }
      });
      RINGFOLD_TRY(bad);
      if (covered != layout.output_elems()) return {Code::kInternal, "the layout leaves part of the output out"};
      if (!rank.aliased) {
        for_blocks(layout, [&](uint64_t b) {
          if (auto at = layout.input_offset(b)) {
            for (uint64_t i = 0; i < layout.elems_of(b); ++i) {
              if (rank.input[*at + i].sum != contribution(layout.rank, b, i).sum) {
                bad = Status(Code::kInternal, fmt::format("rank {}: the input was overwritten", r));
              }
            }
          }
        });
        RINGFOLD_TRY(bad);
      }
    }
    return {};
  }

  ProgramCheckOptions options_;
  std::mt19937_64 random_;
  std::vector<Rank> ranks_;
  std::map<LinkId, Queue> links_;
};

}  // namespace

Status check_programs(const std::vector<Program>& programs, const std::vector<Layout>& layouts,
                      const ProgramCheckOptions& options) {
  return Simulation(programs, layouts, options).run();
}

}  // namespace ringfold::plan
