// Which way a call on device memory goes: what ranks ask each other about it, and what follows from the answers.
#include <algorithm>
#include <utility>

#include "comm/staging.h"

namespace ringfold::comm {

// Have the ranks found out that no call goes where this one may?
bool Staging::never(const Staged& call) const {
  if (call.codes != nullptr) return false;
  return call.straight ? options_.direct->never() : options_.gpus->never();
}

// What this rank says when it is asked.
Staged::Answers Staging::answers(const Staged& c) const {
  GpuPath& gpus = *options_.gpus;
  auto usable = [&](const Side& side) {
    const bool any = std::any_of(side.blocks.begin(), side.blocks.end(), [](const auto& b) { return b.bytes > 0; });
    return !any || (side.place && (c.straight || gpus.is_here(side.place)));
  };
  const bool fits = c.fits && usable(c.in) && usable(c.out);
  if (c.codes != nullptr) return {c.fits, true, false};
  if (c.straight) return {fits, options_.direct->could(), false};
  const bool could = gpus.could();
  Staged::Answers said{could && fits && c.on_gpu->why_not.empty(), could, gpus.has_kernels()};
  if (said[0] == 0 || !c.on_gpu->for_opened) return said;
  const GpuPath::Where where =
      gpus.where(c.in.memory, c.out.memory, c.on_gpu->elems * size_of(c.on_gpu->reducer.type));
  for (size_t i = 0; where != GpuPath::Where{} && i < where.size(); ++i) {
    said[3 + i] = where[i];
    said[3 + where.size() + i] = static_cast<uint8_t>(~where[i]);
  }
  return said;
}

namespace {

bool all_at_one_place(const Staged::Answers& all) {
  constexpr size_t kWhere = std::tuple_size_v<GpuPath::Where>;
  for (size_t i = 3; i < 3 + kWhere; ++i) {
    if (all[i] + all[i + kWhere] != 0xff) return false;
  }
  return true;
}

}  // namespace

// Where a call goes: asks the other ranks, if it may go from GPU to GPU or straight from device to device.
Staging::Way Staging::way_of(const exec::Ref<Staged>& call) {
  Staged& c = *call;
  if (c.asking_ && !c.asked_.done()) return Way::kWaits;  // it writes to the call
  const bool decided = (c.on_gpu == nullptr && !c.straight && c.codes == nullptr) || c.straight_ || c.coded_;
  if (decided || !c.failure_.ok()) return Way::kHost;
  GpuPath& gpus = *options_.gpus;
  const double seconds = std::max(base::seconds_of(c.deadline.left()), 1e-3);
  const auto by_host = [&] {
    c.on_gpu = nullptr;
    c.straight = nullptr;
    c.codes = nullptr;
    return Way::kHost;
  };
  if (!c.asking_) {
    if (never(c)) return by_host();
    if (!arriving_[c.kind].empty() || between_halves(c.kind)) return Way::kWaits;  // in the order of calls
    c.can_ = answers(c);
    c.asking_ = true;
    c.asked_ = c.ask(c.can_.data(), c.all_can_.data(), seconds);
    c.asked_.then([bell = bell_](const Status&) { bell->ring(); });
    return Way::kAsks;
  }
  if (!c.straight && gpus.full()) return Way::kWaits;
  c.asking_ = false;
  if (const Status asked = c.asked_.wait(); !asked.ok()) {
    fail(c, asked, false);
    return Way::kHost;
  }
  if (c.codes != nullptr) {
    if (c.all_can_[0] == 0) return by_host();
    c.coded_ = true;
    return Way::kHost;
  }
  if (c.straight) {
    if (c.all_can_[1] == 0) options_.direct->give_up("RDMA does not reach another rank's GPU; its log says why");
    if (c.all_can_[0] == 0) return by_host();
    c.straight_ = true;
    c.pieces = 1;
    return Way::kHost;
  }
  if (c.all_can_[1] == 0) gpus.give_up("another rank cannot share its GPU's memory; its log says why");
  if (c.all_can_[0] != 0 && !gpus.connected()) {
    if (const Status s = gpus.connect(c.all_can_[2] != 0, c.deadline); !s.ok()) {
      fail(c, s, true);
      return Way::kHost;
    }
  }
  if (c.all_can_[0] != 0 && gpus.connected()) {
    play(call);
    return Way::kPlayed;
  }
  return by_host();
}

// ---- straight from device to device ----

Status Staging::copy_own_block(Piece& piece) {
  const Staged& call = *piece.call;
  const std::byte* from = call.in.memory + call.own.from;
  std::byte* to = call.out.memory + call.own.to;
  device::OwnStream& stream = stream_of(call.out.place ? call.out : call.in, &Streams::in);
  if (call.after != nullptr) RINGFOLD_TRY(stream.wait_for(*call.after));
  Status put;
  if (call.own.bytes > 0 && from != to) {
    put = stream.on_devices(reinterpret_cast<device::Address>(to), reinterpret_cast<device::Address>(from),
                            call.own.bytes);
  }
  return mark(put, stream, piece);
}

// ---- codes on the device ----

Status Staging::encode(Piece& piece) {
  Staged& call = *piece.call;
  device::OwnStream& stream = stream_of(call.in, &Streams::in);
  if (call.after != nullptr) RINGFOLD_TRY(stream.wait_for(*call.after));
  const auto* in = reinterpret_cast<const float*>(call.in.memory);
  return mark(call.codes->encode(stream, in, call.missed.get(), piece.buffers->in.get()), stream, piece);
}

Status Staging::fold(Piece& piece) {
  Staged& call = *piece.call;
  device::OwnStream& stream = stream_of(call.out, &Streams::out);
  const auto* in = reinterpret_cast<const float*>(call.in.memory);
  auto* out = reinterpret_cast<float*>(call.out.memory);
  piece.folded = true;
  return mark(call.codes->fold(stream, in, out, call.missed.get(), piece.buffers->out.get(), piece.buffers->in.get()),
              stream, piece);
}

Status Staging::decode(Piece& piece) {
  Staged& call = *piece.call;
  device::OwnStream& stream = stream_of(call.out, &Streams::out);
  auto* out = reinterpret_cast<float*>(call.out.memory);
  return mark(call.codes->decode(stream, out, piece.buffers->out.get()), stream, piece);
}

void Staging::play(const exec::Ref<Staged>& call) {
  Staged& c = *call;
  c.pieces = c.copied_in_ = c.started_ = 1;
  c.played_ = true;
  ++c.in_flight_;
  Piece piece{.call = call, .on_gpu = true};
  const GpuPath::Playing how{.input = c.in.memory,
                             .output = c.out.memory,
                             .after = c.after.get(),
                             .gate = &c.gate,
                             .seconds = std::max(base::seconds_of(c.deadline.left()), 1e-3),
                             .kernel = c.all_can_[2] != 0,
                             .opened = all_at_one_place(c.all_can_),
                             .missed = c.missed.get()};
  auto end = options_.gpus->play(*c.on_gpu, how, &piece.kernel, [bell = bell_] { bell->ring(); });
  if (!end.ok()) {
    fail(c, end.status(), true);
    end = options_.gpus->now();
    piece.uncertain = !end.ok();
  }
  if (end.ok()) piece.copied = *std::move(end);
  begun(c);
  leaving_.push_back(std::move(piece));
}

// Has its kernel been told by another rank's to give up? That rank knows why, and has all ranks know.
bool Staging::waits_for_verdict(const Piece& piece) {
  bool told = false;
  return piece.kernel != nullptr && piece.call->failure_.ok() && !GpuKernels::outcome(*piece.kernel, &told).ok() &&
         told;
}

}  // namespace ringfold::comm
