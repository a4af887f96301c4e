#include "exec/plan.h"

#include <algorithm>

namespace ringfold::exec {

using program::Move;
using program::Operand;
using program::Where;

void Plan::find_short_moves() {
  const program::Program& p = program;
  if (coder.codec || p.lanes.size() != 1 || p.passes != 1 || p.events != 0) return;
  std::vector<Place> all;
  all.reserve(p.operands.size());
  std::vector<ShortMove> list;
  for (const Move& move : p.lanes[0]) {
    const program::Stretch stretch = program::stretch_of(p, move, 0);
    if (stretch.bytes > p.tile_bytes || move.wait != program::kNoEvent || move.signal != program::kNoEvent) return;
    ShortMove m;
    m.inputs = move.inputs;
    m.outputs = move.outputs;
    m.operands = static_cast<uint32_t>(all.size());
    m.bytes = stretch.bytes;
    for (uint32_t i = 0; i < uint32_t{move.inputs} + move.outputs; ++i) {
      const Operand& op = p.operands[move.operands + i];
      const bool reused = op.where == Where::kScratch && (op.flags & program::kFullSize) == 0;
      Place place{.where = op.where, .first = (op.flags & program::kFirst) != 0};
      if (op.where == Where::kLink) {
        place.link = links[op.link];
      } else {
        place.offset = op.base + (reused ? stretch.scratch_offset : stretch.offset);
      }
      all.push_back(place);
    }
    const Place* in = all.data() + m.operands;
    const Place* out = in + m.inputs;
    const bool kept = move.outputs == 1 && out->link == nullptr;
    m.complete = (move.flags & program::kComplete) != 0;
    if ((move.flags & program::kReduce) != 0) {
      if (kept) m.kind = ShortMove::Kind::kFold;
    } else if (move.inputs == 1 && in->link != nullptr) {
      if (kept) m.kind = ShortMove::Kind::kTake;
    } else if (move.inputs == 1 && move.outputs > 0 && out->link == nullptr) {
      m.kind = ShortMove::Kind::kKeep;
      m.by_value = m.by_value_in_place = out->where == Where::kScratch;
    } else if (move.inputs == 1 && move.outputs > 0) {
      m.kind = ShortMove::Kind::kSend;
      const bool marked = (move.flags & program::kByValue) != 0;
      m.by_value = in->where == Where::kScratch || (in->where == Where::kOutput && marked);
      m.by_value_in_place = m.by_value || marked;
    }
    list.push_back(m);
  }
  short_moves = std::move(list);
  places = std::move(all);
}

void Plan::find_takes() {
  const program::Program& p = program;
  if (!short_moves.empty()) return;
  auto takes_from = [&](const Move& move, uint16_t link) {
    const Operand* in = p.operands.data() + move.operands;
    return std::any_of(in, in + move.inputs,
                       [&](const Operand& op) { return op.where == Where::kLink && op.link == link; });
  };
  takes.resize(p.lanes.size());
  nexts.clear();
  for (size_t lane = 0; lane < p.lanes.size(); ++lane) {
    const auto& moves = p.lanes[lane];
    auto& list = takes[lane];
    list.resize(moves.size());
    for (size_t m = 0; m < moves.size(); ++m) {
      const Operand* in = p.operands.data() + moves[m].operands;
      const Operand* out = in + moves[m].inputs;
      list[m].plain = moves[m].inputs == 1 && in->where == Where::kLink && moves[m].outputs > 0 &&
                      out->where != Where::kLink && (moves[m].flags & (program::kReduce | program::kCodes)) == 0;
    }
    for (size_t m = 0; m < moves.size(); ++m) {
      list[m].nexts = static_cast<uint32_t>(nexts.size());
      const Operand* in = p.operands.data() + moves[m].operands;
      for (const Operand* op = in; op != in + moves[m].inputs; ++op) {
        if (op->where != Where::kLink) continue;
        list[m].contract |= (op->flags & program::kFirst) != 0;
        size_t next = m;
        do {
          next = (next + 1) % moves.size();
        } while (!takes_from(moves[next], op->link));
        if (list[next].plain && p.operands[moves[next].operands + 1].where == Where::kOutput) {
          nexts.push_back({op->link, static_cast<uint32_t>(next)});
        }
      }
      list[m].count = static_cast<uint32_t>(nexts.size()) - list[m].nexts;
    }
  }
}

}  // namespace ringfold::exec
