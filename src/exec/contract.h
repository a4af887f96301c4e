// The contract word: what a rank believes it is calling. 24 bytes that ride on the first slot of every link in every
// collective; the receiver compares them with its own before it uses a byte of the payload.
#pragma once

#include <cstdint>
#include <string>

#include "ringfold/codec.h"
#include "ringfold/transport.h"
#include "ringfold/types.h"

namespace ringfold::exec {

struct Contract {
  uint32_t sequence = 0;  // number of the call on its communicator, from 1
  Collective collective = Collective::kAllReduce;
  DataType type = DataType::kF32;
  ReduceKind op = ReduceKind::kSum;
  bool variable = false;  // a -v form
  bool staged = false;    // one piece of a call on device memory, if that is cut into pieces
  uint64_t count = 0;     // as the caller gave it: elements of a block; of all blocks in a -v form
  uint16_t root = 0;      // low bits of the root
  CodecKind codec = CodecKind::kNone;
  uint64_t details =
      0;  // 48-bit hash of everything else that must agree: algorithm, tiles, scale, sizes, the codec's members

  transport::Preamble encode() const;
  static Contract decode(const transport::Preamble& preamble);
  // "all_reduce f32 sum x100", "broadcast u8 x5 from root 2".
  std::string to_string() const;
  friend bool operator==(const Contract&, const Contract&) = default;
};

// How two different contracts of one link are told to a person; `peer` sent `theirs`.
std::string difference(const Contract& mine, int peer, const Contract& theirs);

}  // namespace ringfold::exec
