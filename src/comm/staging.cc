#include "comm/staging.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>

#include "base/log.h"
#include "comm/thread.h"

namespace ringfold::comm {
namespace {

constexpr auto kTick = std::chrono::milliseconds(10);     // between looks at what tells nobody when it ends
constexpr auto kBroken = std::chrono::milliseconds(200);  // the same where the device cannot tell
constexpr auto kPatience = std::chrono::seconds(5);       // with copies of a call that has failed

// The part of `block` that belongs to a piece.
Side::Block part_of(const Side::Block& block, uint64_t piece, uint64_t step) {
  const uint64_t from = std::min(block.bytes, piece * step);
  return {block.offset + from, std::min(step, block.bytes - from)};
}

// Calls `copy(place in the buffer, offset of the part, bytes)` for all parts of a piece, which lie one after another
// there.
template <typename Copy>
Status for_parts(const Side& side, uint64_t piece, uint64_t step, const Copy& copy) {
  uint64_t at = 0;
  for (const Side::Block& block : side.blocks) {
    const Side::Block part = part_of(block, piece, step);
    if (part.bytes == 0) continue;
    RINGFOLD_TRY(copy(at, part.offset, part.bytes));
    at += part.bytes;
  }
  return {};
}

// Never destroyed, and never out of reach.
template <typename T>
void keep_for_good(T value) {
  static std::mutex mutex;
  static auto& kept = *new std::deque<T>;
  const std::lock_guard lock(mutex);
  kept.push_back(std::move(value));
}

}  // namespace

uint64_t Side::piece_bytes(uint64_t piece, uint64_t step) const {
  uint64_t sum = 0;
  for (const Block& block : blocks) sum += part_of(block, piece, step).bytes;
  return sum;
}

void Staging::Bell::ring() {
  {
    const std::lock_guard lock(mutex);
    rung = true;
  }
  rings.notify_one();
}

Staging::Staging(Options options) : options_(std::move(options)) {
  options_.engine->drive_in_background();
  thread_ = start_thread("ringfold-stage", [this] { run(); });
}

Staging::~Staging() {
  stopping_ = true;
  bell_->ring();
  thread_.join();
  // Copies that never ended may still run some day: their memory and streams stay.
  for (Piece& piece : lost_) {
    auto over = piece.copied.over();
    if (!piece.uncertain && over.ok() && *over) continue;
    log::info("copies of a failed call never ended: their memory is kept");
    if (piece.on_gpu) options_.gpus->keep();
    keep_for_good(std::move(piece));
    for (auto& [context, streams] : streams_) keep_for_good(std::move(streams));
    streams_.clear();
  }
}

// ---- on the caller's thread ----

bool Staging::fits_shared(const Staged& call) const {
  return call.kind == Staged::kCollective && call.in.piece_bytes(0, call.step) <= options_.piece_bytes &&
         call.out.piece_bytes(0, call.step) <= options_.piece_bytes;
}

Result<std::unique_ptr<Buffers>> Staging::make_buffers(const Staged& call, device::Context context,
                                                       bool shared) const {
  auto buffers = std::make_unique<Buffers>();
  buffers->shared = shared;
  auto make = [&](const Side& side, device::Pinned* memory) -> Status {
    if (!shared && !call.staged(side)) return {};
    auto pinned = device::pin(context, shared ? options_.piece_bytes : side.piece_bytes(0, call.step));
    if (!pinned.ok()) return pinned.status();
    *memory = *std::move(pinned);
    return {};
  };
  RINGFOLD_TRY(make(call.in, &buffers->in));
  RINGFOLD_TRY(make(call.out, &buffers->out));
  buffers->spare = !shared && call.on_gpu != nullptr;
  buffers->in_bytes = buffers->in != nullptr ? call.in.piece_bytes(0, call.step) : 0;
  buffers->out_bytes = buffers->out != nullptr ? call.out.piece_bytes(0, call.step) : 0;
  return buffers;
}

bool Staging::fits_spare(const Staged& call, uint64_t in_bytes, uint64_t out_bytes) const {
  return (!call.staged(call.in) || call.in.piece_bytes(0, call.step) <= in_bytes) &&
         (!call.staged(call.out) || call.out.piece_bytes(0, call.step) <= out_bytes);
}

void Staging::keep_spare(std::unique_ptr<Buffers> buffers) {
  if (buffers == nullptr || !buffers->spare) return;
  const std::lock_guard lock(mutex_);
  if (buffers->in_bytes >= spare_in_ && buffers->out_bytes >= spare_out_) spare_ = std::move(buffers);
}

Status Staging::make_streams(device::Context context) {
  if (streams_.contains(context)) return {};
  auto in = device::OwnStream::make(context), out = device::OwnStream::make(context);
  for (auto* made : {&in, &out}) RINGFOLD_TRY(made->ok() ? Status() : made->status());
  streams_[context] = {*std::move(in), *std::move(out)};
  return {};
}

Status Staging::prepare(const exec::Ref<Staged>& call) {
  call->domain = options_.domain;
  if (!call->on_device()) return {};
  const std::lock_guard lock(mutex_);
  for (const Side* side : {&call->in, &call->out}) {
    if (side->place) RINGFOLD_TRY(make_streams(side->place.context));
  }
  // Most of those that ranks have done from GPU to GPU before need none.
  const bool hardly = call->on_gpu != nullptr && call->pieces == 1 && options_.gpus->connected();
  if (!fits_shared(*call) && hardly && fits_spare(*call, spare_in_, spare_out_)) {
    call->takes_spare_ = true;
  } else if (!fits_shared(*call)) {
    auto made = make_buffers(*call, call->context(), false);
    if (!made.ok()) return made.status();
    call->own_ = *std::move(made);
    if (call->own_->spare && call->own_->in_bytes >= spare_in_ && call->own_->out_bytes >= spare_out_) {
      spare_in_ = call->own_->in_bytes;
      spare_out_ = call->own_->out_bytes;
    }
  } else if (!has_shared_) {
    std::vector<std::unique_ptr<Buffers>> all;
    for (int i = 0; i < kShared; ++i) {
      auto made = make_buffers(*call, call->context(), true);
      if (!made.ok()) return made.status();
      all.push_back(*std::move(made));
    }
    free_ = std::move(all);
    has_shared_ = true;
  }
  return {};
}

void Staging::add(const exec::Ref<Staged>& call) {
  waiting_[call->kind].fetch_add(1, std::memory_order_release);
  unfinished_.fetch_add(1, std::memory_order_release);
  {
    const std::lock_guard lock(mutex_);
    added_.push_back(call);
  }
  bell_->ring();
}

// ---- on the thread ----

void Staging::run() {
  for (;;) {
    {
      std::unique_lock lock(bell_->mutex);
      const auto rung = [&] { return bell_->rung; };
      if (calls_.empty() && lost_.empty() && !stopping_ && !options_.gpus->captured()) {
        bell_->rings.wait(lock, rung);
      } else {
        bell_->rings.wait_for(lock, kTick, rung);
      }
      bell_->rung = false;
    }
    {
      const std::lock_guard lock(mutex_);
      for (auto& call : added_) {
        calls_.push_back(call);
        queues_[call->kind].push_back(call);
      }
      added_.clear();
    }
    watch();
    while (advance()) {
    }
    if (stopping_ && calls_.empty()) return;
  }
}

bool Staging::advance() {
  bool progress = false;
  for (const auto kind : {Staged::kCollective, Staged::kSend, Staged::kReceive}) {
    progress |= copy_in(kind);
    progress |= start_next(kind);
  }
  progress |= copy_out();
  progress |= finish_copies();
  return progress;
}

// Begins to copy the next piece of a kind.
bool Staging::copy_in(Staged::Kind kind) {
  auto& queue = queues_[kind];
  if (queue.empty()) return false;
  const exec::Ref<Staged> call = queue.front();
  if (const Way way = way_of(call); way != Way::kHost) {
    if (way == Way::kPlayed) queue.pop_front();
    return way != Way::kWaits;
  }
  Piece piece{.call = call, .number = call->copied_in_};
  if (!call->on_device() || call->straight_ || !call->failure_.ok()) {
  } else if (call->own_ != nullptr) {
    piece.buffers = std::move(call->own_);
  } else if (call->takes_spare_) {
    const std::lock_guard lock(mutex_);
    if (spare_ == nullptr || !fits_spare(*call, spare_->in_bytes, spare_->out_bytes)) return false;
    piece.buffers = std::move(spare_);
  } else if (fits_shared(*call)) {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) return false;
    piece.buffers = std::move(free_.back());
    free_.pop_back();
  } else {
    return false;  // its own buffers are with the piece before
  }
  if (!call->failure_.ok()) {
    call->copied_in_ = call->pieces;
    queue.pop_front();
    finish_if_over(call);
    return true;
  }
  if (++call->copied_in_ == call->pieces) queue.pop_front();
  ++call->in_flight_;
  const Status copied = copy_piece_in(piece);
  arriving_[kind].push_back(std::move(piece));
  if (!copied.ok()) fail(*call, copied, true);
  return true;
}

void Staging::begun(Staged& call) {
  if (!std::exchange(call.begun_, true)) waiting_[call.kind].fetch_sub(1, std::memory_order_release);
}

device::OwnStream& Staging::stream_of(const Side& side, std::unique_ptr<device::OwnStream> Streams::*direction) {
  const std::lock_guard lock(mutex_);
  return *(streams_[side.place.context].*direction);
}

// Has the end of the piece's copies told. Where that fails, or they did not all begin (`put`), some may run all the
// same.
Status Staging::mark(Status put, device::OwnStream& stream, Piece& piece) {
  if (put.ok()) {
    auto end = stream.mark([bell = bell_] { bell->ring(); });
    if (end.ok()) piece.copied = *std::move(end);
    put = end.status();
  }
  if (put.ok()) return {};
  auto end = stream.now();
  if (end.ok()) piece.copied = *std::move(end);
  piece.uncertain = !end.ok();
  return put;
}

// Of a failed call, copies that do not end are lost in the end. What a device that has failed has not done yet it
// will not do any more.
Staging::Copies Staging::look_at_copies(const Piece& piece) {
  Staged& call = *piece.call;
  auto over = piece.copied.over();
  if (!piece.uncertain && over.ok() && *over) return Copies::kOver;
  if (!over.ok()) fail(call, over.status(), true);
  if (piece.uncertain || !over.ok()) call.patience_ = call.patience_.within(kBroken);
  return call.failure_.ok() || !call.patience_.passed() ? Copies::kRunning : Copies::kLost;
}

Status Staging::copy_piece_in(Piece& piece) {
  Staged& call = *piece.call;
  if (call.straight_) return copy_own_block(piece);
  if (call.coded_) return encode(piece);
  if (!call.in.place) return {};
  device::OwnStream& stream = stream_of(call.in, &Streams::in);
  if (piece.number == 0 && call.after != nullptr) RINGFOLD_TRY(stream.wait_for(*call.after));
  const Status put = for_parts(call.in, piece.number, call.step, [&](uint64_t at, uint64_t offset, uint64_t bytes) {
    return stream.to_host(piece.buffers->in.get() + at, call.in.memory + offset, bytes);
  });
  return mark(put, stream, piece);
}

// Is the first half of a call whose codes are made on the device under way? Then nothing else begins: it would not
// come between the two on all ranks.
bool Staging::between_halves(Staged::Kind kind) const {
  return std::any_of(running_.begin(), running_.end(),
                     [kind](const Piece& p) { return p.call->kind == kind && p.call->coded_ && !p.folded; });
}

// Starts the communication of the oldest piece of a kind that was copied in.
bool Staging::start_next(Staged::Kind kind) {
  auto& arriving = arriving_[kind];
  if (arriving.empty()) return false;
  if (between_halves(kind)) return false;
  Piece& next = arriving.front();
  Staged& call = *next.call;
  const Copies copies = look_at_copies(next);
  if (copies == Copies::kRunning) return false;
  if (call.failure_.ok() && !call.in.place && !call.straight_ && call.after != nullptr) {
    auto over = call.after->over();  // nothing was copied in: the stream itself tells when the call may begin
    if (over.ok() && !*over) return false;
    if (!over.ok()) fail(call, over.status(), true);
  }
  Piece piece = std::move(next);
  arriving.pop_front();
  if (!call.failure_.ok()) {
    leave(std::move(piece), copies);
    return true;
  }
  const double seconds = std::max(base::seconds_of(call.deadline.left()), 1e-3);
  const std::byte* in = call.in.memory;
  std::byte* out = call.out.memory;
  if (call.coded_) {
    in = piece.buffers->in.get();
  } else if (call.staged(call.in) && !call.straight_) {
    if (!call.in.place) {
      (void)for_parts(call.in, piece.number, call.step, [&](uint64_t at, uint64_t offset, uint64_t bytes) {
        std::memcpy(piece.buffers->in.get() + at, call.in.memory + offset, bytes);
        return Status();
      });
    }
    in = piece.buffers->in.get();
    if (call.before) call.before(piece.buffers->in.get(), call.in.piece_bytes(piece.number, call.step));
  }
  if (call.staged(call.out) && !call.straight_) out = piece.buffers->out.get();
  piece.work = call.coded_      ? call.codes->send(piece.folded, in, out, seconds)
               : call.straight_ ? call.straight(seconds)
                                : call.start(piece.number, in, out, seconds);
  if ((!call.coded_ || piece.folded) && ++call.started_ == call.pieces) begun(call);
  piece.work.then([bell = bell_](const Status&) { bell->ring(); });
  running_.push_back(std::move(piece));
  return true;
}

// Takes what was communicated, and begins to copy its results back.
bool Staging::copy_out() {
  bool progress = false;
  for (auto at = running_.begin(); at != running_.end();) {
    if (!at->work.done()) {
      ++at;
      continue;
    }
    progress = true;
    Piece piece = std::move(*at);
    at = running_.erase(at);
    Staged& call = *piece.call;
    piece.copied = {};
    Status status = piece.work.wait();
    if (status.ok()) {
      call.source_ = piece.work.source();
      if (call.coded_ && !piece.folded && call.failure_.ok()) {
        status = fold(piece);
        const auto kind = call.kind;
        if (!status.ok()) fail(call, status, true);
        arriving_[kind].push_front(std::move(piece));
        continue;
      }
      status = copy_piece_out(piece);
      if (!status.ok()) fail(call, status, true);
    } else {
      fail(call, status, false);
    }
    leaving_.push_back(std::move(piece));
  }
  return progress;
}

Status Staging::copy_piece_out(Piece& piece) {
  Staged& call = *piece.call;
  if (!call.staged(call.out) || !call.failure_.ok()) return {};
  if (call.straight_) return device::see_writes(call.out.place.context);
  if (call.coded_) return decode(piece);
  const std::byte* from = piece.buffers->out.get();
  if (!call.out.place) {
    return for_parts(call.out, piece.number, call.step, [&](uint64_t at, uint64_t offset, uint64_t bytes) {
      std::memcpy(call.out.memory + offset, from + at, bytes);
      return Status();
    });
  }
  device::OwnStream& stream = stream_of(call.out, &Streams::out);
  const Status put = for_parts(call.out, piece.number, call.step, [&](uint64_t at, uint64_t offset, uint64_t bytes) {
    return stream.to_device(call.out.memory + offset, from + at, bytes);
  });
  return mark(put, stream, piece);
}

bool Staging::finish_copies() {
  bool progress = false;
  for (auto at = leaving_.begin(); at != leaving_.end();) {
    const Copies copies = look_at_copies(*at);
    if (copies == Copies::kRunning || (copies == Copies::kOver && waits_for_verdict(*at))) {
      ++at;
      continue;
    }
    progress = true;
    Piece piece = std::move(*at);
    at = leaving_.erase(at);
    leave(std::move(piece), copies);
  }
  return progress;
}

// A piece is done with, well or not.
void Staging::leave(Piece piece, Copies copies) {
  const exec::Ref<Staged> call = std::move(piece.call);
  if (piece.kernel != nullptr && copies == Copies::kOver) {
    if (const Status s = options_.gpus->outcome(piece.kernel); !s.ok()) fail(*call, s, true);
  }
  --call->in_flight_;
  ++call->over_;
  if (copies == Copies::kLost) {
    piece.work = {};
    piece.codes = call->codes;
    piece.missed = call->missed;
    given_up_.fetch_add(1, std::memory_order_release);
    lost_.push_back(std::move(piece));
  } else if (piece.buffers != nullptr && piece.buffers->shared) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(piece.buffers));
  } else if (call->copied_in_ < call->pieces) {
    call->own_ = std::move(piece.buffers);  // for its next piece
  } else {
    keep_spare(std::move(piece.buffers));
  }
  if (piece.on_gpu) keep_spare(std::move(call->own_));
  finish_if_over(call);
}

// `ours`: the others do not know of it yet.
void Staging::fail(Staged& call, const Status& why, bool ours) {
  if (!call.failure_.ok()) return;
  call.failure_ = why;
  call.patience_ = base::Deadline::after(kPatience);
  begun(call);
  if ((call.played_ || call.coded_) && call.missed != nullptr) call.missed->lose();
  if (ours && !stopping_) options_.guard->request_abort(fmt::format("{}: {}", call.text, why.message()));
}

void Staging::finish_if_over(const exec::Ref<Staged>& call) {
  const bool all = call->failure_.ok() ? call->over_ == call->pieces : call->copied_in_ == call->pieces;
  if (!all || call->in_flight_ > 0 || call->done()) return;
  calls_.remove_if([&](const auto& c) { return c.get() == call.get(); });
  call->gate.open();
  unfinished_.fetch_sub(1, std::memory_order_release);
  options_.engine->finish(*call, call->failure_);
}

// Replays of graphs, which no call tells of: what one of them waited for in vain ends the communicator, and its end
// ends them.
void Staging::watch_replays(const Status& dead) {
  if (!dead.ok()) {
    if (!std::exchange(replays_ended_, true)) options_.gpus->let_go();
    return;
  }
  bool told = false;
  const Status s = options_.gpus->captured_outcome(&told);
  if (s.ok() || told || stopping_ || std::exchange(replays_told_, true)) return;
  options_.guard->request_abort(fmt::format("a graph with calls of this communicator: {}", s.message()));
}

// Deadlines that no call of a piece has, and verdicts that none brings.
void Staging::watch() {
  Status dead;
  options_.engine->inspect([&] { dead = options_.domain->dead(); });
  bool let_go = false;
  for (auto& call : calls_) {
    const bool late = call->deadline.passed() || stopping_;
    if (!dead.ok() && (late || call->started_ < call->pieces || call->played_)) fail(*call, dead, false);
    let_go |= call->played_ && !call->failure_.ok();
    if (!late || call->reported_ || stopping_ || !call->failure_.ok()) continue;
    call->reported_ = true;
    options_.guard->report({exec::FaultKind::kTimeout, -1,
                            Status(Code::kTimeout, fmt::format("{} did not finish by its deadline: {}", call->text,
                                                               call->started_ < call->pieces
                                                                   ? "the work before it on its stream has not ended"
                                                                   : "the device has not ended its copies"))});
  }
  // What was given up on a GPU may wait for peers when its turn comes at last.
  lost_.remove_if([&](const Piece& piece) {
    if (!piece.on_gpu || piece.uncertain) return false;
    auto over = piece.copied.over();
    if (!over.ok()) return false;
    let_go |= !*over;
    if (*over) given_up_.fetch_sub(1, std::memory_order_release);
    return *over;
  });
  if (let_go) options_.gpus->let_go();
  if (options_.gpus->captured()) watch_replays(dead);
}

}  // namespace ringfold::comm
