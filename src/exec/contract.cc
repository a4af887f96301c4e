#include "exec/contract.h"

#include <fmt/format.h>

namespace ringfold::exec {

transport::Preamble Contract::encode() const {
  transport::Preamble p;
  p.words[0] = static_cast<uint64_t>(sequence) << 32 | static_cast<uint64_t>(staged) << 31 |
               static_cast<uint64_t>(collective) << 24 | static_cast<uint64_t>(type) << 16 |
               static_cast<uint64_t>(op) << 8 | static_cast<uint64_t>(codec) << 1 | (variable ? 1 : 0);
  p.words[1] = count;
  p.words[2] = static_cast<uint64_t>(root) << 48 | (details & 0xffffffffffffULL);
  return p;
}

Contract Contract::decode(const transport::Preamble& p) {
  auto within = [](uint64_t value, int limit) { return value < static_cast<uint64_t>(limit) ? value : 0; };
  Contract c;
  c.sequence = static_cast<uint32_t>(p.words[0] >> 32);
  c.collective = static_cast<Collective>(within(p.words[0] >> 24 & 0x7f, kCollectives));
  c.type = static_cast<DataType>(within(p.words[0] >> 16 & 0xff, kDataTypes));
  c.op = static_cast<ReduceKind>(within(p.words[0] >> 8 & 0xff, kReduceKinds));
  c.staged = (p.words[0] >> 31 & 1) != 0;
  c.variable = (p.words[0] & 1) != 0;
  c.codec = static_cast<CodecKind>(within(p.words[0] >> 1 & 0x7f, kCodecKinds));
  c.count = p.words[1];
  c.root = static_cast<uint16_t>(p.words[2] >> 48);
  c.details = p.words[2] & 0xffffffffffffULL;
  return c;
}

std::string Contract::to_string() const {
  std::string text(name_of(collective));
  if (variable) text += "_v";
  if (collective == Collective::kBarrier) return text;
  text += fmt::format(" {}", name_of(type));
  if (reduces(collective)) text += fmt::format(" {}", name_of(op));
  text += fmt::format(" x{}", count);
  if (has_root(collective)) text += fmt::format(" root {}", root);
  if (codec != CodecKind::kNone) text += fmt::format(" codec {}", name_of(codec));
  if (staged) text += " of device memory (one piece)";
  return text;
}

std::string difference(const Contract& mine, int peer, const Contract& theirs) {
  if (mine.to_string() == theirs.to_string()) {
    if (mine.sequence != theirs.sequence) {
      return fmt::format(
          "rank {} is at call #{} ({}) while this rank is at call #{}: one of them skipped or repeated a call", peer,
          theirs.sequence, theirs.to_string(), mine.sequence);
    }
    return fmt::format(
        "rank {} runs {} #{} with other settings (algorithm, codec, sizes of blocks, scale or tile size differ); "
        "give "
        "all ranks the same RINGFOLD_* variables and arguments",
        peer, theirs.to_string(), theirs.sequence);
  }
  return fmt::format("rank {} called {} (#{}) where this rank called {} (#{})", peer, theirs.to_string(),
                     theirs.sequence, mine.to_string(), mine.sequence);
}

}  // namespace ringfold::exec
