#include "plan/lower.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "plan/accesses.h"
#include "plan/originals.h"
#include "plan/scratch.h"
#include "ringfold/codec.h"

namespace ringfold::plan {
namespace {

// How it goes. Each lane is read from the front. A maximal run of steps that builds one value in one cell and then
// sends it becomes one Move (`Builder::fuse`): recv, recv_reduce, reduce and copy steps collect its inputs in fold
// order, sends its outputs. The value is also written to memory unless nothing reads it there again (`dead_after`),
// so a ring's "recv_reduce c; send c" touches memory once.
//
// Places. A cell starts in the input buffer where the rank contributes to it. Its first write moves it to the output
// buffer if it belongs to the result, else to scratch: the user's input is never written. A send that covers cells in
// different places first copies them together (`gather_cells`). What is not in the output at the end is copied there.
//
// Codes. A sender goes on with what its receivers decode: a move with a coded output stores the result if anything
// reads it later, also where a plain send would leave the value where it is. What was decoded to memory is not
// encoded again, since that need not give the same code; such schedules are refused.

using program::Move;
using program::Operand;
using program::Program;
using program::Where;
using schedule::Step;
using schedule::StepKind;

enum class Place : uint8_t { kInput, kOutput, kScratch };

// One input of the value under construction.
struct Term {
  bool link = false;
  uint32_t index = 0;  // link number, or first cell
};

class Builder {
 public:
  Builder(const LowerRequest& request, schedule::RankSteps steps, uint32_t widest)
      : request_(request),
        schedule_(*request.schedule),
        steps_(std::move(steps)),
        accesses_(steps_),
        widest_(widest),
        size_(size_of(request.type)),
        chunks_(schedule_.chunks()) {}

  Result<Program> build();

 private:
  Status choose_passes();
  void lower_lane(int lane);
  uint32_t fuse(int lane, uint32_t at);
  void emit(int lane, const std::vector<Term>& terms, uint32_t cell, uint32_t count, bool store,
            const std::vector<uint32_t>& links, uint8_t flags);
  void emit_piece(int lane, const std::vector<Term>& terms, uint32_t offset_in_range, uint32_t cell, uint32_t count,
                  bool store, const std::vector<uint32_t>& links, uint8_t flags);
  void place(Move* move, uint32_t first, uint32_t count) const;
  void emit_copy(int lane, uint32_t cell, Place to);
  void gather_cells(int lane, uint32_t cell, uint32_t count);
  void bring_results_to_output();

  // Is the value that step `step` of `lane` leaves in `cell` never read from there?
  bool dead_after(uint32_t cell, int lane, uint32_t step) const {
    const bool result = cell < chunks_ && schedule::ends_with(schedule_.shape, request_.layout.rank, block_of(cell));
    return accesses_.dead_after(cell, lane, step, result);
  }
  Place place_of(int lane, uint32_t cell) const;
  Place home_of(uint32_t cell, bool alone) const;
  uint32_t shadow(uint32_t cell) const {  // the chunk whose size the cell has
    return cell < chunks_ ? cell : steps_.temporaries[cell - chunks_];
  }
  uint64_t block_of(uint32_t cell) const { return schedule_.block_of(shadow(cell)); }
  // How many of `count` cells from chunk `first` on make one move: those inside one block, or all if they are whole
  // blocks that fit one pass.
  uint32_t piece_of(uint32_t first, uint32_t count) const {
    const uint32_t k = schedule_.chunks_per_block;
    if (program_.passes == 1 && first % k == 0 && count % k == 0) return count;
    return std::min(count, k - first % k);
  }
  uint32_t link_index(int peer, int lane);
  bool coded(uint32_t link) const { return request_.coded && request_.coded(program_.links[link].peer); }
  void note_codings(const std::vector<Term>& terms, uint32_t cell, uint32_t count, bool store,
                    const std::vector<uint32_t>& links);
  Operand memory(int lane, Place place, uint32_t cell, uint64_t blocks = 1);
  const LowerRequest& request_;
  const schedule::Schedule& schedule_;
  const schedule::RankSteps steps_;
  const Accesses accesses_;
  const uint32_t widest_;
  const size_t size_;
  const uint64_t chunks_;
  Program program_;
  std::unordered_map<uint32_t, Place> place_;     // cells that were written
  std::unordered_map<uint32_t, int> written_by_;  // lane of the last write
  std::unordered_set<uint32_t> decoded_;          // cells whose memory holds what a code decodes to
  bool codes_twice_ = false;
  std::vector<char> waited_;            // by lane: has it passed a wait?
  std::vector<uint32_t> pending_wait_;  // by lane
  Scratch scratch_;
  std::map<std::pair<int, int>, uint32_t> links_;
  std::map<std::pair<uint32_t, bool>, bool> link_used_;
};

Status Builder::choose_passes() {
  uint64_t tile_elems = std::max<uint64_t>(1, request_.tile_bytes / size_);
  if (request_.coded && tile_elems > Codec::kGroup) tile_elems -= tile_elems % Codec::kGroup;
  // A step leaves one slot free: a fused move takes from one link only when it can put on the next, so around a ring
  // of full links nobody could move.
  const auto slots = static_cast<uint32_t>(request_.slots - 1);
  const uint64_t room = tile_elems * slots;  // elements of one step
  const uint64_t largest = request_.layout.largest_block();
  const uint32_t k = schedule_.chunks_per_block;
  program_.type = request_.type;
  program_.reduces = reduces(schedule_.shape.collective);
  program_.chunks_per_block = k;
  program_.tile_bytes = tile_elems * size_;
  // Cells of one step that lie in one block, and blocks that one step covers.
  const uint32_t cells = std::min(widest_, k), blocks = (widest_ + k - 1) / k;
  // One pass does if the widest step fits the slots as one stretch of bytes.
  const uint64_t chunk = (largest + k - 1) / k;
  if (chunk * widest_ <= room) {
    program_.segment_elems = largest;
    program_.passes = 1;
    return {};
  }
  if (blocks > slots) {
    return {Code::kInvalid,
            fmt::format("{} {} sends {} blocks in one step, more than the {} slots of a link take at {} "
                        "elements a block; use ring or direct",
                        schedule_.algorithm, name_of(schedule_.shape.collective), blocks, slots, largest)};
  }
  // Several passes: a step becomes one put or more for each block it covers.
  const uint64_t per_block = tile_elems * (slots / blocks);
  const uint64_t segment = std::max<uint64_t>(1, per_block / cells) * k;
  program_.segment_elems = std::min(largest, segment);
  program_.passes = static_cast<uint32_t>((largest + program_.segment_elems - 1) / program_.segment_elems);
  return {};
}

// Where `lane` finds the present value of a cell.
Place Builder::place_of(int lane, uint32_t cell) const {
  auto it = place_.find(cell);
  if (it != place_.end()) {
    const bool visible = written_by_.at(cell) == lane || waited_[lane];
    if (visible) return it->second;
  }
  const bool has_input =
      cell < chunks_ && schedule::starts_with(schedule_.shape, request_.layout.rank, block_of(cell));
  if (has_input) return Place::kInput;
  return it != place_.end() ? it->second : home_of(cell, true);
}

// Where a cell goes when it is written; `alone`: by a step that covers one block.
Place Builder::home_of(uint32_t cell, bool alone) const {
  if (cell >= chunks_) return Place::kScratch;
  if (!schedule::ends_with(schedule_.shape, request_.layout.rank, block_of(cell))) return Place::kScratch;
  return alone || !schedule::starts_with(schedule_.shape, request_.layout.rank, block_of(cell)) ? Place::kOutput
                                                                                                : Place::kScratch;
}

uint32_t Builder::link_index(int peer, int lane) {
  auto [it, added] = links_.try_emplace({peer, lane}, static_cast<uint32_t>(program_.links.size()));
  if (added) program_.links.push_back({peer, lane});
  return it->second;
}

Operand Builder::memory(int lane, Place place, uint32_t cell, uint64_t blocks) {
  const uint64_t block = block_of(cell);
  Operand op;
  switch (place) {
    case Place::kInput:
      op.where = Where::kInput;
      op.base = request_.layout.input_offset(block).value() * size_;
      break;
    case Place::kOutput:
      op.where = Where::kOutput;
      op.base = request_.layout.output_offset(block).value() * size_;
      break;
    case Place::kScratch: {
      op.where = Where::kScratch;
      const bool shared = accesses_.shared(cell);
      if (shared) op.flags |= program::kFullSize;
      // Layer 0 holds the cells of chunks; temporaries that shadow the same chunk go to different layers.
      uint32_t layer = 0;
      if (cell >= chunks_) {
        layer = 1;
        for (uint32_t t = 0; t < cell - chunks_; ++t) layer += steps_.temporaries[t] == shadow(cell);
      }
      // Reused scratch is a lane's own: where a chunk lies in the segment differs in the last pass, and lanes are not
      // in step.
      scratch_.use(program_.operands.size(), {shared, shared ? 0 : lane, layer, block}, blocks);
      break;
    }
  }
  return op;
}

void Builder::note_codings(const std::vector<Term>& terms, uint32_t cell, uint32_t count, bool store,
                           const std::vector<uint32_t>& links) {
  const bool encodes = std::any_of(links.begin(), links.end(), [&](uint32_t link) { return coded(link); });
  const bool alone = terms.size() == 1;
  for (uint32_t c = 0; c < count; ++c) {
    const bool decoded = alone && (terms[0].link ? coded(terms[0].index) : decoded_.contains(terms[0].index + c));
    codes_twice_ |= decoded && encodes && !terms[0].link;
    if (!store) continue;
    if (decoded || encodes) {
      decoded_.insert(cell + c);
    } else {
      decoded_.erase(cell + c);
    }
  }
}

void Builder::emit(int lane, const std::vector<Term>& terms, uint32_t cell, uint32_t count, bool store,
                   const std::vector<uint32_t>& links, uint8_t flags) {
  if (request_.coded) note_codings(terms, cell, count, store, links);
  for (uint32_t done = 0; done < count;) {
    const uint32_t piece = piece_of(shadow(cell + done), count - done);
    emit_piece(lane, terms, done, cell + done, piece, store, links, flags);
    done += piece;
  }
}

// Says that `move` covers chunks [first, first+count): part of one block, or several whole ones.
void Builder::place(Move* move, uint32_t first, uint32_t count) const {
  const uint32_t k = schedule_.chunks_per_block;
  const uint32_t block = first / k, last = (first + count - 1) / k;
  move->chunk = first % k;
  move->chunks = count;
  move->origin = request_.layout.input_offset(block).value_or(0);
  if (block == last) {
    move->block_elems = request_.layout.elems_of(block);
    const program::Extent e = program::extent_of(program_.segment_elems, k, move->chunk, count);
    move->full = {e.start * size_, e.length * size_};
  } else {
    move->block_elems = program_.segment_elems;
    for (uint32_t b = block; b <= last; ++b) move->full.length += request_.layout.elems_of(b) * size_;
  }
}

void Builder::emit_piece(int lane, const std::vector<Term>& terms, uint32_t offset, uint32_t cell, uint32_t count,
                         bool store, const std::vector<uint32_t>& links, uint8_t flags) {
  const uint32_t k = schedule_.chunks_per_block;
  const uint32_t first = shadow(cell);
  Move move;
  move.operands = static_cast<uint32_t>(program_.operands.size());
  move.inputs = static_cast<uint16_t>(terms.size());
  move.outputs = static_cast<uint16_t>((store ? 1 : 0) + links.size());
  move.flags = flags;
  if (terms.size() > 1 || (flags & program::kComplete)) move.flags |= program::kReduce;
  std::swap(move.wait, pending_wait_[lane]);
  place(&move, first, count);
  auto link_operand = [&](uint32_t index, bool output) {
    Operand op;
    op.where = Where::kLink;
    op.link = static_cast<uint16_t>(index);
    if (!std::exchange(link_used_[{index, output}], true)) op.flags |= program::kFirst;
    if (coded(index)) {
      op.flags |= program::kCoded;
      move.flags |= program::kCodes;
    }
    return op;
  };
  const uint64_t blocks = (first + count - 1) / k - first / k + 1;
  for (const Term& t : terms) {
    program_.operands.push_back(t.link ? link_operand(t.index, false)
                                       : memory(lane, place_of(lane, t.index + offset), t.index + offset, blocks));
  }
  if (store) {
    // One stretch goes to one place: home only if all of its cells have their home in the output.
    Place to = Place::kOutput;
    for (uint32_t c = cell; c < cell + count; ++c) {
      if (home_of(c, blocks == 1) != Place::kOutput) to = Place::kScratch;
    }
    for (uint32_t c = cell; c < cell + count; ++c) {
      place_[c] = to;
      written_by_[c] = lane;
    }
    program_.operands.push_back(memory(lane, to, cell, blocks));
  }
  for (uint32_t link : links) program_.operands.push_back(link_operand(link, true));
  program_.most_inputs = std::max<uint32_t>(program_.most_inputs, move.inputs);
  program_.lanes[lane].push_back(move);
}

void Builder::emit_copy(int lane, uint32_t cell, Place to) {
  Move move;
  const Operand from = [&] {
    move.operands = static_cast<uint32_t>(program_.operands.size());
    return memory(lane, place_of(lane, cell), cell);
  }();
  move.inputs = move.outputs = 1;
  std::swap(move.wait, pending_wait_[lane]);
  place(&move, shadow(cell), 1);
  program_.operands.push_back(from);
  program_.operands.push_back(memory(lane, to, cell));
  place_[cell] = to;
  written_by_[cell] = lane;
  program_.lanes[lane].push_back(move);
}

// Makes [cell, cell+count) one stretch of memory, as seen by `lane`, or one stretch per block where moves are cut at
// blocks.
void Builder::gather_cells(int lane, uint32_t cell, uint32_t count) {
  for (uint32_t done = 0; done < count;) {
    const uint32_t piece = piece_of(shadow(cell + done), count - done);
    bool same = true, scratch = false;
    for (uint32_t c = cell + done; c < cell + done + piece; ++c) {
      const Place p = place_of(lane, c);
      same &= p == place_of(lane, cell + done);
      scratch |= p == Place::kScratch || (p == Place::kInput && home_of(c, true) == Place::kScratch);
    }
    const Place to = scratch ? Place::kScratch : Place::kOutput;
    for (uint32_t c = cell + done; c < cell + done + piece && !same; ++c) {
      if (place_of(lane, c) != to) emit_copy(lane, c, to);
    }
    done += piece;
  }
}

// Lowers the run of steps at `at` that makes one move; returns the index behind it.
uint32_t Builder::fuse(int lane, uint32_t at) {
  const auto& steps = steps_.lanes[lane];
  const Step& head = steps[at];
  const uint32_t count = head.count;
  std::vector<Term> terms;
  std::vector<uint32_t> links;
  uint32_t cell = head.chunk;
  bool complete = false, store = true;
  uint32_t next = at;

  const bool sends_only = head.kind == StepKind::kSend;
  if (sends_only) {
    gather_cells(lane, cell, count);
    terms.push_back({false, cell});
  } else {
    // Collect the inputs of one value, as long as the fold stays a fold from the left.
    for (; next < steps.size() && !complete; ++next) {
      const Step& s = steps[next];
      if (!touches_cells(s) || s.kind == StepKind::kSend || s.count != count) break;
      const bool first = next == at;
      const Term own{false, s.chunk}, source{false, s.source};
      const Term link{true,
                      s.kind == StepKind::kRecv || s.kind == StepKind::kRecvReduce ? link_index(s.peer, lane) : 0};
      const bool prepend = (s.flags & schedule::kPrepend) != 0;
      if (s.kind == StepKind::kRecv || s.kind == StepKind::kCopy) {
        if (first) {
          terms = {s.kind == StepKind::kRecv ? link : source};
        } else if (s.kind == StepKind::kCopy && s.source == cell && dead_after(cell, lane, next)) {
          // The value moves on to another cell.
        } else {
          break;
        }
      } else {
        const Term other = s.kind == StepKind::kRecvReduce ? link : source;
        if (first) {
          terms = prepend ? std::vector{other, own} : std::vector{own, other};
        } else if (s.chunk == cell && (!prepend || terms.size() == 1)) {
          terms.insert(prepend ? terms.begin() : terms.end(), other);
        } else if (s.kind == StepKind::kReduce && s.source == cell && s.chunk != cell &&
                   dead_after(cell, lane, next) && (prepend || terms.size() == 1)) {
          terms.insert(prepend ? terms.end() : terms.begin(), own);
        } else {
          break;
        }
      }
      cell = s.chunk;
      complete = (s.flags & schedule::kComplete) != 0;
    }
    // The inputs are read together: cells that only some of these steps cover must lie in one stretch each.
    for (const Term& t : terms) {
      if (!t.link) gather_cells(lane, t.index, count);
    }
  }
  while (next < steps.size() && steps[next].kind == StepKind::kSend && steps[next].chunk == cell &&
         steps[next].count == count) {
    links.push_back(link_index(steps[next].peer, lane));
    ++next;
  }
  if (!links.empty()) {
    bool dead = true;
    for (uint32_t c = 0; c < count; ++c) dead &= dead_after(cell + c, lane, next - 1);
    store = !dead;
  }
  // A value that is only sent stays where it is, unless its codes change it.
  if (sends_only) store &= std::any_of(links.begin(), links.end(), [&](uint32_t link) { return coded(link); });
  uint8_t flags = complete ? program::kComplete : 0;
  // A copy that was made to be sent, and is not: the original must not be referred to while it may change.
  if (head.kind == StepKind::kCopy && terms.size() == 1 && !store) flags |= program::kByValue;
  emit(lane, terms, cell, count, store, links, flags);
  return next;
}

void Builder::lower_lane(int lane) {
  const auto& steps = steps_.lanes[lane];
  auto nop = [&] {
    Move move;
    move.operands = static_cast<uint32_t>(program_.operands.size());
    std::swap(move.wait, pending_wait_[lane]);
    program_.lanes[lane].push_back(move);
  };
  for (uint32_t i = 0; i < steps.size();) {
    const Step& s = steps[i];
    if (s.kind == StepKind::kWait) {
      if (pending_wait_[lane] != program::kNoEvent) nop();
      pending_wait_[lane] = s.source;
      waited_[lane] = true;
      ++i;
    } else if (s.kind == StepKind::kSignal) {
      if (program_.lanes[lane].empty() || pending_wait_[lane] != program::kNoEvent ||
          program_.lanes[lane].back().signal != program::kNoEvent) {
        nop();
      }
      program_.lanes[lane].back().signal = s.source;
      ++i;
    } else {
      i = fuse(lane, i);
    }
  }
  if (pending_wait_[lane] != program::kNoEvent) nop();
}

// Results that no step wrote (a rank's own block of an all_gather) or that ended elsewhere.
void Builder::bring_results_to_output() {
  const int rank = request_.layout.rank;
  const auto& shape = schedule_.shape;
  const uint32_t k = schedule_.chunks_per_block;
  // The last move of lane 0, a block that nothing else touches, need not wait for what comes by link.
  auto move_before_links = [&] {
    auto& lane = program_.lanes[0];
    auto takes = [&](const Move& move) {
      const auto in = program_.operands.begin() + move.operands;
      return std::any_of(in, in + move.inputs, [](const Operand& op) { return op.where == Where::kLink; });
    };
    std::rotate(std::find_if(lane.begin(), lane.end() - 1, takes), lane.end() - 1, lane.end());
  };
  auto bring = [&](uint64_t block) {
    for (uint64_t c = block * k; c < (block + 1) * k; ++c) {
      const auto cell = static_cast<uint32_t>(c);
      auto it = place_.find(cell);
      if (it != place_.end()) {
        waited_.assign(waited_.size(), true);
        if (it->second != Place::kOutput) emit_copy(written_by_.at(cell), cell, Place::kOutput);
      } else if (shape.ranks == 1 && program_.reduces) {
        emit(0, {{false, cell}}, cell, 1, true, {}, program::kComplete);
      } else if (schedule::starts_with(shape, rank, block) && schedule::ends_with(shape, rank, block)) {
        // One move of the whole block, unless some of its chunks were written.
        bool untouched = true;
        for (uint64_t d = block * k; d < (block + 1) * k; ++d)
          untouched &= !place_.contains(static_cast<uint32_t>(d));
        if (untouched) {
          emit(0, {{false, static_cast<uint32_t>(block * k)}}, static_cast<uint32_t>(block * k), k, true, {}, 0);
          if (program_.passes == 1) move_before_links();
          return;
        }
        emit_copy(0, cell, Place::kOutput);
      }
    }
  };
  const auto n = static_cast<uint64_t>(shape.ranks);
  const uint64_t blocks = schedule::blocks_of(shape);
  if (blocks == n * n && n > 1) {
    for (uint64_t s = 0; s < n; ++s) bring(s * n + static_cast<uint64_t>(rank));
  } else {
    for (uint64_t b = 0; b < blocks; ++b) {
      if (schedule::ends_with(shape, rank, b)) bring(b);
    }
  }
}

Result<Program> Builder::build() {
  RINGFOLD_TRY(choose_passes());
  program_.lanes.resize(std::max<size_t>(1, steps_.lanes.size()));
  program_.events = steps_.events;
  waited_.assign(program_.lanes.size(), false);
  pending_wait_.assign(program_.lanes.size(), program::kNoEvent);
  for (int lane = 0; lane < static_cast<int>(steps_.lanes.size()); ++lane) lower_lane(lane);
  bring_results_to_output();
  if (codes_twice_) {
    return Status(Code::kInvalid, fmt::format("{} {} would encode again what it decoded; use direct",
                                              schedule_.algorithm, name_of(schedule_.shape.collective)));
  }
  scratch_.lay_out(request_.layout, &program_);
  return std::move(program_);
}

}  // namespace

uint32_t widest_step(const schedule::Schedule& schedule) {
  uint32_t widest = 1;
  for (int r = 0; r < schedule.shape.ranks; ++r) {
    for (const auto& lane : schedule.rank(r).lanes) {
      for (const Step& s : lane) {
        if (s.kind == StepKind::kSend) widest = std::max<uint32_t>(widest, s.count);
      }
    }
  }
  return widest;
}

Result<Program> lower(const LowerRequest& request) {
  const uint32_t widest = request.widest != 0 ? request.widest : widest_step(*request.schedule);
  auto program = Builder(request, request.schedule->rank(request.layout.rank), widest).build();
  // With codes the copy is not the same as the original: it is what the others decode.
  const bool same = !request.coded && request.layout.shape.collective == Collective::kAllReduce;
  if (program.ok() && same) read_originals(&*program);
  return program;
}

}  // namespace ringfold::plan
