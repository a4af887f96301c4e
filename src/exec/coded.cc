// Moves some of whose links carry codes: decode what arrives, fold, encode what leaves.
#include <algorithm>
#include <cstring>

#include "exec/run.h"

namespace ringfold::exec {

using program::Move;
using program::Operand;
using program::Where;
using transport::Arrival;
using transport::Link;

namespace {

bool is_coded(const Operand& op) { return (op.flags & program::kCoded) != 0; }

}  // namespace

// Everything that the tile needs: arrivals in (c.sources then says where they lie), credit out.
bool Run::take_inputs(Cursor& c, const Move& move, size_t bytes, size_t code_bytes, Fault* fault, bool* blocked) {
  const program::Program& p = plan_->program;
  const Operand* in = &p.operands[move.operands];
  const Operand* out = in + move.inputs;
  const bool first = c.pass == 0 && c.done == 0;
  for (int i = c.ready; i < move.inputs; ++i) {
    const Operand& op = in[i];
    if (op.where != Where::kLink) {
      c.sources[i] = address(op, c.stretch.offset + c.done, c.stretch.scratch_offset + c.done);
      continue;
    }
    Link* link = plan_->links[op.link];
    Arrival& a = c.arrivals[i];
    const size_t expected = is_coded(op) ? code_bytes : bytes;
    const bool contract = first && (op.flags & program::kFirst) != 0;
    const bool there = (!contract || link->announced(&a, expected)) && link->arrived(&a, nullptr, expected);
    if (!there) {
      c.ready = static_cast<uint16_t>(i);
      return *blocked = true, false;
    }
    if (!check_arrival(a, link, contract, expected, fault)) return false;
    c.sources[i] = a.data;
    c.elsewhere |= a.remote | a.referred;
  }
  c.ready = move.inputs;
  for (int o = 0; o < move.outputs; ++o) {
    if (out[o].where == Where::kLink && !plan_->links[out[o].link]->writable()) return *blocked = true, false;
  }
  if (!c.elsewhere || fetch_sources(c, move, (std::max(bytes, code_bytes) + 63) / 64 * 64, fault)) return true;
  return *blocked = fault->status.ok(), false;
}

bool Run::step_coded(Cursor& c, const Move& move, size_t bytes, Fault* fault, bool* blocked) {
  const program::Program& p = plan_->program;
  const kernels::Coder& coder = plan_->coder;
  const Operand* in = &p.operands[move.operands];
  const Operand* out = in + move.inputs;
  const Operand* end = out + move.outputs;
  const size_t elems = bytes / sizeof(float), code_bytes = encoded_bytes(coder.codec, elems);
  if (!take_inputs(c, move, bytes, code_bytes, fault, blocked)) return false;

  // The values go to memory, or else into the first link that carries values; the code into the first that carries
  // codes. The other links get copies.
  auto first_link = [&](bool coded) {
    return std::find_if(out, end,
                        [&](const Operand& op) { return op.where == Where::kLink && is_coded(op) == coded; });
  };
  const Operand* const code_link = first_link(true);
  const Operand* const value_link = first_link(false);
  const bool kept = out != end && out->where != Where::kLink;
  std::byte* values = nullptr;
  if (kept) {
    values = address(*out, c.stretch.offset + c.done, c.stretch.scratch_offset + c.done);
  } else if (value_link != end) {
    values = plan_->links[value_link->link]->reserve(bytes);
  }
  std::byte* const code = code_link != end ? plan_->links[code_link->link]->reserve(code_bytes) : nullptr;
  float* gap = nullptr;
  const bool handed_on = move.inputs == 1 && (move.flags & program::kReduce) == 0 && is_coded(*in);
  if (elems > 0 && handed_on) {
    const auto* from = static_cast<const std::byte*>(c.sources[0]);
    if (code != nullptr) std::memcpy(code, from, code_bytes);
    if (values != nullptr) coder.kernels.decode(coder.codec, from, elems, reinterpret_cast<float*>(values));
  } else if (elems > 0) {
    terms_.resize(std::max<size_t>(terms_.size(), move.inputs));
    for (int i = 0; i < move.inputs; ++i) {
      terms_[i] = is_coded(in[i]) ? kernels::Term{.code = static_cast<const std::byte*>(c.sources[i])}
                                  : kernels::Term{.values = static_cast<const float*>(c.sources[i])};
    }
    const uint64_t index = move.origin + (c.stretch.offset + c.done) / sizeof(float);
    gap = code != nullptr && missed != nullptr ? missed.get() + index : nullptr;
    kernels::combine(coder, terms_.data(), move.inputs, elems,
                     (move.flags & program::kComplete) != 0 ? &plan_->post : nullptr,
                     {.values = reinterpret_cast<float*>(values), .code = code, .residual = gap},
                     {.key = plan_->draw ^ contract_.sequence, .first = index});
  }
  touched_bytes += (move.inputs + (values != nullptr ? 1U : 0U)) * bytes + (code != nullptr ? code_bytes : 0);

  if (c.elsewhere && !confirm_sources(c.arrivals, move, fault)) {
    if (gap != nullptr) std::fill_n(gap, elems, 0.0f);  // what a later call would make up for was never missed
    return false;
  }

  const bool first = c.pass == 0 && c.done == 0;
  auto preamble_of = [&](const Operand& op) {
    return first && (op.flags & program::kFirst) != 0 ? &preamble_ : nullptr;
  };
  const bool stable = kept && out->where == Where::kOutput;
  for (const Operand* op = kept ? out + 1 : out; op != end; ++op) {
    Link* link = plan_->links[op->link];
    if (op == code_link || (op == value_link && !kept)) continue;
    if (!is_coded(*op)) {
      send(link, values, bytes, stable, preamble_of(*op));
    } else {
      std::memcpy(link->reserve(code_bytes), code, code_bytes);
      link->commit(code_bytes, preamble_of(*op));
    }
  }
  if (!kept && value_link != end) plan_->links[value_link->link]->commit(bytes, preamble_of(*value_link));
  if (code_link != end) plan_->links[code_link->link]->commit(code_bytes, preamble_of(*code_link));
  for (int i = 0; i < move.inputs; ++i) {
    if (in[i].where == Where::kLink) plan_->links[in[i].link]->release();
  }
  c.ready = 0;
  c.elsewhere = false;
  return true;
}

}  // namespace ringfold::exec
