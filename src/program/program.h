// What one rank executes for one shape: lanes of Moves. A Program is a Schedule lowered to bytes; it is immutable,
// holds no pointer and no link, and is the only thing that crosses from deciding (algo, model, plan) to doing (exec).
//
// Passes. Large buffers are worked through in passes: pass p runs all moves of the program on the p-th *segment* of
// every block (`segment_elems` elements of it, the last one shorter). So what a lane sends before it has to receive
// stays within the slots of a link, and scratch memory is the size of a segment, not of the buffer.
//
// Tiles. A move works through its bytes of one pass tile by tile; a tile is what one put carries. A move advances by
// a tile when every input tile has arrived and every output link has credit: cut-through between the links of one
// move.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "ringfold/types.h"

namespace ringfold::program {

enum class Where : uint8_t { kInput, kOutput, kScratch, kLink };

enum OperandFlag : uint8_t {
  kFirst = 1,     // kLink: the first use of this direction of the link in the program: the contract rides here
  kFullSize = 2,  // kScratch: the cell keeps its place for all passes (several lanes use it); else it is reused
  kCoded = 4,     // kLink: what travels there are codes of the values (kernels/codec.h)
};

// Memory of this rank, or the next slot of a link.
struct Operand {
  Where where = Where::kInput;
  uint8_t flags = 0;
  uint16_t link = 0;  // kLink: index into Program::links
  uint32_t reserved = 0;
  uint64_t base = 0;  // memory: byte offset of the block (or scratch cell) in its region
  friend bool operator==(const Operand&, const Operand&) = default;
};

enum MoveFlag : uint8_t {
  kReduce = 1,    // fold the inputs from the left; else there is one input and it is forwarded
  kComplete = 2,  // the result holds every contribution: apply the operation's post-processing
  kByValue = 4,  // forwards memory that later moves may write before the receivers have read it: from the output, and
                 // from the input too when a run is in place, the links must take copies
  kCodes = 8,    // some operand is kCoded
};

inline constexpr uint32_t kNoEvent = ~0U;

struct Extent {
  uint64_t start = 0;
  uint64_t length = 0;
  friend bool operator==(const Extent&, const Extent&) = default;
};
// Chunks [first, first+count) of `elems` elements in `parts` chunks that differ by at most one element, longer ones
// first.
constexpr Extent extent_of(uint64_t elems, uint32_t parts, uint32_t first, uint32_t count) {
  const uint64_t base = elems / parts, longer = elems % parts;
  auto start_of = [&](uint64_t chunk) { return chunk * base + (chunk < longer ? chunk : longer); };
  const uint64_t start = start_of(first);
  return {start, start_of(static_cast<uint64_t>(first) + count) - start};
}

// inputs -> combine -> outputs. At most one output is memory, and it comes first. Of a move with a coded output the
// result is what the code decodes to: for memory and for links that carry values, too. What comes by a coded link and
// is only handed on is not decoded and encoded again.
struct Move {
  uint32_t operands = 0;  // index of the first in Program::operands: inputs, then outputs
  uint16_t inputs = 0;
  uint16_t outputs = 0;
  uint8_t flags = 0;
  uint32_t wait = kNoEvent;    // before the first tile of each pass
  uint32_t signal = kNoEvent;  // after the last tile of each pass
  // Which part it covers of each segment of its block: chunks chunk .. chunk+chunks-1 of `chunks_per_block`.
  uint32_t chunk = 0;
  uint32_t chunks = 1;
  uint64_t block_elems = 0;
  uint64_t origin = 0;  // where its block starts in the input, in elements, if this rank has it there, else 0
  // What it covers in bytes for a full segment, worked out beforehand. Where there is one pass it may reach over
  // whole blocks that follow; block_elems is that of a full segment then.
  Extent full;
};

struct LinkKey {
  int32_t peer = -1;
  int32_t lane = 0;
  friend bool operator==(const LinkKey&, const LinkKey&) = default;
};

struct Program {
  DataType type = DataType::kF32;
  bool reduces = false;
  std::vector<std::vector<Move>> lanes;
  std::vector<Operand> operands;
  std::vector<LinkKey> links;
  uint32_t events = 0;
  uint32_t chunks_per_block = 1;
  uint64_t segment_elems = 0;  // of a block, per pass
  uint32_t passes = 1;
  uint64_t tile_bytes = 0;  // a multiple of the element size; of values, also where links carry codes
  uint64_t scratch_bytes = 0;
  uint32_t most_inputs = 1;  // over all moves
};

// Where a move of `program` is in pass `pass`: byte offset from each memory operand's base, and bytes. Operands that
// are reused scratch (no kFullSize) start at their base in every pass.
struct Stretch {
  uint64_t offset = 0;          // from the base of input, output and kFullSize scratch operands
  uint64_t scratch_offset = 0;  // from the base of reused scratch operands
  uint64_t bytes = 0;
};
// `shift` is log2 of the element's size.
inline Stretch stretch_of(const Program& program, const Move& move, uint32_t pass, int shift) {
  const uint64_t start = static_cast<uint64_t>(pass) * program.segment_elems;
  const uint64_t left = start < move.block_elems ? move.block_elems - start : 0;
  if (left >= program.segment_elems) return {(start << shift) + move.full.start, move.full.start, move.full.length};
  const Extent e = extent_of(left, program.chunks_per_block, move.chunk, move.chunks);
  return {(start + e.start) << shift, e.start << shift, e.length << shift};
}
inline Stretch stretch_of(const Program& program, const Move& move, uint32_t pass) {
  return stretch_of(program, move, pass, std::countr_zero(size_of(program.type)));
}

}  // namespace ringfold::program
