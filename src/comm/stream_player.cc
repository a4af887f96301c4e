#include "comm/stream_player.h"

#include <algorithm>
#include <array>
#include <bit>

namespace ringfold::comm {
namespace {

using program::Move;
using program::Operand;
using program::Where;

std::byte* pointer_to(device::Address address) { return reinterpret_cast<std::byte*>(address); }
device::Address address_of(const std::byte* memory) { return reinterpret_cast<device::Address>(memory); }

class Player {
 public:
  Player(const program::Program& program, const DeviceReducer& reducer, const PlayedOn& memory, nvlink::Mesh& mesh)
      : program_(program), reducer_(reducer), memory_(memory), mesh_(mesh) {}

  Status run() {
    if (program_.lanes.empty()) return {};
    for (uint32_t pass = 0; pass < program_.passes; ++pass) {
      for (const Move& move : program_.lanes.front()) {
        // Both ends of a link know which moves have no bytes.
        const program::Stretch stretch = program::stretch_of(program_, move, pass);
        if (move.inputs == 0) continue;
        for (uint64_t done = 0; done < stretch.bytes; done += program_.tile_bytes) {
          RINGFOLD_TRY(step(move, stretch, done, std::min(program_.tile_bytes, stretch.bytes - done)));
        }
      }
    }
    return {};
  }

 private:
  // One tile of one move.
  Status step(const Move& move, const program::Stretch& stretch, uint64_t done, uint64_t bytes) {
    const Operand* in = &program_.operands[move.operands];
    const Operand* out = in + move.inputs;
    const bool kept = move.outputs > 0 && out[0].where != Where::kLink;
    const auto at = [&](const Operand& op) {
      const bool reused = op.where == Where::kScratch && (op.flags & program::kFullSize) == 0;
      std::byte* base = op.where == Where::kInput    ? const_cast<std::byte*>(memory_.input)
                        : op.where == Where::kOutput ? memory_.output
                                                     : memory_.scratch;
      return base + op.base + (reused ? stretch.scratch_offset : stretch.offset) + done;
    };
    std::array<const void*, DeviceReducer::kMostInputs> sources{};
    for (int i = 0; i < move.inputs; ++i) {
      if (in[i].where != Where::kLink) {
        sources[static_cast<size_t>(i)] = at(in[i]);
        continue;
      }
      auto arrival = mesh_.arrival(peer_of(in[i]));
      if (!arrival.ok()) return arrival.status();
      sources[static_cast<size_t>(i)] = pointer_to(*arrival);
    }
    const std::byte* value = static_cast<const std::byte*>(sources[0]);
    if ((move.flags & program::kReduce) != 0) {
      std::byte* to = kept ? at(out[0]) : memory_.bounce;
      RINGFOLD_TRY(reducer_.fold(mesh_.stream(), (move.flags & program::kComplete) != 0, to, sources.data(),
                                 move.inputs, bytes / size_of(program_.type)));
      value = to;
    } else if (kept && at(out[0]) != value) {
      RINGFOLD_TRY(mesh_.stream().on_devices(address_of(at(out[0])), address_of(value), bytes));
    }
    for (int o = kept ? 1 : 0; o < move.outputs; ++o) {
      const int peer = peer_of(out[o]);
      auto slot = mesh_.reserve(peer);
      if (!slot.ok()) return slot.status();
      RINGFOLD_TRY(mesh_.stream().on_devices(*slot, address_of(value), bytes));
      RINGFOLD_TRY(mesh_.commit(peer));
    }
    for (int i = 0; i < move.inputs; ++i) {
      if (in[i].where == Where::kLink) RINGFOLD_TRY(mesh_.release(peer_of(in[i])));
    }
    return {};
  }

  int peer_of(const Operand& op) const { return program_.links[op.link].peer; }

  const program::Program& program_;
  const DeviceReducer& reducer_;
  const PlayedOn& memory_;
  nvlink::Mesh& mesh_;
};

}  // namespace

Status play(const program::Program& program, const DeviceReducer& reducer, const PlayedOn& memory,
            nvlink::Mesh& mesh) {
  return Player(program, reducer, memory, mesh).run();
}

}  // namespace ringfold::comm
