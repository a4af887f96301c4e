#include "plan/originals.h"

#include <algorithm>
#include <optional>

namespace ringfold::plan {
namespace {

using program::Move;
using program::Operand;
using program::Program;
using program::Where;

bool same_stretch(const Move& a, const Move& b) {
  return a.chunk == b.chunk && a.chunks == b.chunks && a.block_elems == b.block_elems && a.full == b.full;
}

bool copies_input_to_scratch(const Program& p, const Move& m) {
  return m.inputs == 1 && m.outputs > 0 && (m.flags & program::kReduce) == 0 && m.wait == program::kNoEvent &&
         m.signal == program::kNoEvent && p.operands[m.operands].where == Where::kInput &&
         p.operands[m.operands + 1].where == Where::kScratch;
}

// The operands that read what move `at` of the lane copies; nothing if the input would not do.
std::optional<std::vector<uint32_t>> readers_of(const Program& p, const std::vector<Move>& lane, size_t at) {
  const Move& copy = lane[at];
  const Operand &from = p.operands[copy.operands], &cell = p.operands[copy.operands + 1];
  std::vector<uint32_t> readers;
  bool written = false;  // the output, by a move after the copy
  for (size_t i = 0; i < lane.size(); ++i) {
    const Move& move = lane[i];
    bool reads = false;
    for (uint32_t o = 0; o < uint32_t{move.inputs} + move.outputs; ++o) {
      const Operand& op = p.operands[move.operands + o];
      if (op.where != Where::kScratch || op.base != cell.base || (i == at && o == 1)) continue;
      if (i < at || o >= move.inputs || !same_stretch(move, copy) || written) return std::nullopt;
      readers.push_back(move.operands + o);
      reads = true;
    }
    if (i <= at || move.outputs == 0) continue;
    const Operand& out = p.operands[move.operands + move.inputs];
    if (out.where != Where::kOutput) continue;
    // A write elsewhere could be to what the same move reads in its next tile.
    if (reads && !(same_stretch(move, copy) && out.base == from.base)) return std::nullopt;
    written = true;
  }
  if (readers.empty()) return std::nullopt;
  return readers;
}

}  // namespace

void read_originals(Program* program) {
  if (program->lanes.size() != 1) return;
  auto& lane = program->lanes[0];
  auto& operands = program->operands;
  for (size_t at = 0; at < lane.size(); ++at) {
    if (!copies_input_to_scratch(*program, lane[at])) continue;
    const auto readers = readers_of(*program, lane, at);
    if (!readers) continue;
    Move& copy = lane[at];
    const Operand from = operands[copy.operands];
    for (uint32_t reader : *readers) operands[reader] = from;
    operands[++copy.operands] = from;  // in the place of the scratch, before the links
    --copy.outputs;
    copy.flags |= program::kByValue;
  }
  // Copies that went nowhere else.
  std::erase_if(lane, [&](const Move& m) {
    return m.inputs == 1 && m.outputs == 0 && operands[m.operands].where == Where::kInput;
  });
  const bool scratch = std::any_of(lane.begin(), lane.end(), [&](const Move& m) {
    const auto first = operands.begin() + m.operands;
    return std::any_of(first, first + m.inputs + m.outputs,
                       [](const Operand& op) { return op.where == Where::kScratch; });
  });
  if (!scratch) program->scratch_bytes = 0;
}

}  // namespace ringfold::plan
