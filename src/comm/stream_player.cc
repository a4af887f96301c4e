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
  Player(const program::Program& program, const DeviceReducer& reducer, const DeviceCoder& coder,
         const PlayedOn& memory, nvlink::Mesh& mesh)
      : program_(program), reducer_(reducer), coder_(coder), memory_(memory), mesh_(mesh) {}

  Status run() {
    if (program_.lanes.empty()) return {};
    for (uint32_t pass = 0; pass < program_.passes; ++pass) {
      for (const Move& move : program_.lanes.front()) {
        // Both ends of a link know which moves have no bytes.
        const program::Stretch stretch = program::stretch_of(program_, move, pass);
        if (move.inputs == 0) continue;
        for (uint64_t done = 0; done < stretch.bytes; done += program_.tile_bytes) {
          const uint64_t bytes = std::min(program_.tile_bytes, stretch.bytes - done);
          const bool codes = (move.flags & program::kCodes) != 0;
          RINGFOLD_TRY(codes ? step_coded(move, stretch, done, bytes) : step(move, stretch, done, bytes));
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
    const auto at = [&](const Operand& op) { return place_of(op, stretch, done); };
    std::array<const void*, DeviceReducer::kMostInputs> sources{};
    for (int i = 0; i < move.inputs; ++i) {
      auto source = source_of(in[i], stretch, done);
      if (!source.ok()) return source.status();
      sources[static_cast<size_t>(i)] = *source;
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
    for (int o = kept ? 1 : 0; o < move.outputs; ++o) RINGFOLD_TRY(send(out[o], value, bytes));
    return release(in, move.inputs);
  }

  // The same where links carry codes. One kernel decodes what has come, folds, encodes what goes and leaves what the
  // code decodes to; a code that one peer alone is sent is made in its memory.
  Status step_coded(const Move& move, const program::Stretch& stretch, uint64_t done, uint64_t bytes) {
    const Operand* in = &program_.operands[move.operands];
    const Operand* const out = in + move.inputs;
    const Operand* const end = out + move.outputs;
    const uint64_t elems = bytes / sizeof(float), code_bytes = encoded_bytes(coder_.codec, elems);
    std::array<kernels::cuda::Term, DeviceCoder::kMostTerms> terms{};
    for (int i = 0; i < move.inputs; ++i) {
      auto source = source_of(in[i], stretch, done);
      if (!source.ok()) return source.status();
      terms[static_cast<size_t>(i)] = is_coded(in[i])
                                          ? kernels::cuda::Term{.code = *source}
                                          : kernels::cuda::Term{.values = reinterpret_cast<const float*>(*source)};
    }
    const bool kept = out != end && out->where != Where::kLink;
    const Operand* const links = kept ? out + 1 : out;
    const auto coded = std::count_if(links, end, is_coded);
    const bool values_go = end - links > coded;
    std::byte* const values = kept ? place_of(*out, stretch, done) : values_go ? memory_.bounce : nullptr;
    const std::byte* code = nullptr;
    bool in_place = false;
    if (move.inputs == 1 && (move.flags & program::kReduce) == 0 && is_coded(in[0])) {
      code = terms[0].code;  // handed on
      if (values != nullptr) RINGFOLD_TRY(combine(move, terms.data(), elems, {.values = as_floats(values)}, {}));
    } else {
      std::byte* target = coded > 0 ? memory_.code_bounce : nullptr;
      in_place = coded == 1 && !values_go;
      if (in_place) {
        auto slot = mesh_.reserve(peer_of(*links));
        if (!slot.ok()) return slot.status();
        target = pointer_to(*slot);
      }
      const uint64_t index = move.origin + (stretch.offset + done) / sizeof(float);
      float* const gap = target != nullptr && memory_.missed != nullptr ? memory_.missed + index : nullptr;
      RINGFOLD_TRY(combine(move, terms.data(), elems, {.values = as_floats(values), .code = target, .residual = gap},
                           {.key = memory_.draw, .first = index}));
      code = target;
    }
    for (const Operand* op = links; op != end; ++op) {
      if (in_place) {
        RINGFOLD_TRY(mesh_.commit(peer_of(*op)));
      } else {
        RINGFOLD_TRY(is_coded(*op) ? send(*op, code, code_bytes) : send(*op, values, bytes));
      }
    }
    return release(in, move.inputs);
  }

  static float* as_floats(std::byte* memory) { return reinterpret_cast<float*>(memory); }
  static bool is_coded(const Operand& op) { return (op.flags & program::kCoded) != 0; }

  Status combine(const Move& move, const kernels::cuda::Term* terms, uint64_t elems,
                 const kernels::cuda::Target& target, const kernels::Draw& draw) {
    return coder_.combine(mesh_.stream(), (move.flags & program::kComplete) != 0, terms, move.inputs, elems, target,
                          draw);
  }

  std::byte* place_of(const Operand& op, const program::Stretch& stretch, uint64_t done) const {
    const bool reused = op.where == Where::kScratch && (op.flags & program::kFullSize) == 0;
    std::byte* base = op.where == Where::kInput    ? const_cast<std::byte*>(memory_.input)
                      : op.where == Where::kOutput ? memory_.output
                                                   : memory_.scratch;
    return base + op.base + (reused ? stretch.scratch_offset : stretch.offset) + done;
  }

  // Where an input of a tile lies, once the stream is there.
  Result<const std::byte*> source_of(const Operand& op, const program::Stretch& stretch, uint64_t done) {
    if (op.where != Where::kLink) return static_cast<const std::byte*>(place_of(op, stretch, done));
    auto arrival = mesh_.arrival(peer_of(op));
    if (!arrival.ok()) return arrival.status();
    return static_cast<const std::byte*>(pointer_to(*arrival));
  }

  Status send(const Operand& op, const std::byte* what, uint64_t bytes) {
    const int peer = peer_of(op);
    auto slot = mesh_.reserve(peer);
    if (!slot.ok()) return slot.status();
    RINGFOLD_TRY(mesh_.stream().on_devices(*slot, address_of(what), bytes));
    return mesh_.commit(peer);
  }

  Status release(const Operand* in, int inputs) {
    for (int i = 0; i < inputs; ++i) {
      if (in[i].where == Where::kLink) RINGFOLD_TRY(mesh_.release(peer_of(in[i])));
    }
    return {};
  }

  int peer_of(const Operand& op) const { return program_.links[op.link].peer; }

  const program::Program& program_;
  const DeviceReducer& reducer_;
  const DeviceCoder& coder_;
  const PlayedOn& memory_;
  nvlink::Mesh& mesh_;
};

}  // namespace

Status play(const program::Program& program, const DeviceReducer& reducer, const DeviceCoder& coder,
            const PlayedOn& memory, nvlink::Mesh& mesh) {
  return Player(program, reducer, coder, memory, mesh).run();
}

}  // namespace ringfold::comm
