#include "sync/bucket.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

namespace ringfold::sync {
namespace {

constexpr size_t kBucketAlign =
    128 / sizeof(float);  // two cache lines: neighbours in flight share none, nor a prefetch

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

Result<std::unique_ptr<BucketReducer>> BucketReducer::make(Communicator& comm, std::span<const size_t> counts,
                                                           const BucketOptions& options,
                                                           const std::vector<bool>& plain) {
  if (options.bucket_bytes == 0 || options.first_bucket_bytes == 0) {
    return Status(Code::kInvalid, "a bucket must have room for at least one byte");
  }
  RINGFOLD_TRY(check(options.codec));
  std::unique_ptr<BucketReducer> reducer(new BucketReducer(comm, options));
  reducer->lay_out(counts, plain);
  for (Bucket& b : reducer->buckets_) {
    // "auto" decides by size.
    const Collective call = options.scatter ? Collective::kReduceScatter : Collective::kAllReduce;
    const size_t count =
        options.scatter ? reducer->block(static_cast<size_t>(&b - reducer->buckets_.data())).elems : b.elems;
    b.bytes = encoded_bytes(comm.codec_for(call, count, DataType::kF32, options.op, 0, b.codec), b.elems);
  }
  auto memory = allocate_buffer<float>(std::max<size_t>(reducer->elems_, 1));
  if (!memory.ok()) return memory.status();
  reducer->memory_ = std::move(*memory);
  if (options.device != nullptr) {
    auto device = options.device->make(std::max<size_t>(reducer->elems_, 1));
    if (!device.ok()) return device.status();
    reducer->device_ = *device;
  }
  return reducer;
}

BucketReducer::~BucketReducer() { land(true); }

void BucketReducer::lay_out(std::span<const size_t> counts, const std::vector<bool>& plain) {
  parameters_.resize(counts.size());
  const auto travels_plain = [&](size_t p) { return !options_.codec || (p < plain.size() && plain[p]); };
  const auto add = [&](size_t p, bool opens) {
    const size_t limit = buckets_.size() <= 1 ? options_.first_bucket_bytes : options_.bucket_bytes;
    if (opens || (buckets_.back().elems + counts[p]) * sizeof(float) > limit) {
      elems_ = (elems_ + kBucketAlign - 1) / kBucketAlign * kBucketAlign;
      Bucket bucket{.offset = elems_};
      if (options_.codec) bucket.codec = travels_plain(p) ? Codec() : options_.codec;
      if (!travels_plain(p) && options_.feedback)
        bucket.feedback = options_.name + " " + std::to_string(buckets_.size());
      buckets_.push_back(std::move(bucket));
    }
    parameters_[p] = {.offset = elems_, .elems = counts[p], .bucket = buckets_.size() - 1};
    buckets_.back().elems += counts[p];
    ++buckets_.back().parameters;
    elems_ += counts[p];
  };
  for (const bool now_plain : {false, true}) {
    bool opens = true;
    for (size_t p = counts.size(); p-- > 0;) {
      if (travels_plain(p) == now_plain) add(p, std::exchange(opens, false));
    }
  }
  if (options_.scatter) pad();
}

// Rounds each bucket up to blocks of equal size that begin at cache lines, and moves what follows.
void BucketReducer::pad() {
  const size_t unit = kBucketAlign * static_cast<size_t>(comm_.size());
  size_t end = 0;
  for (size_t b = 0; b < buckets_.size(); ++b) {
    const size_t moved = end - buckets_[b].offset;  // never down: each bucket only grows
    for (Parameter& p : parameters_) {
      if (p.bucket == b) p.offset += moved;
    }
    buckets_[b].offset = end;
    buckets_[b].elems = (buckets_[b].elems + unit - 1) / unit * unit;
    end += buckets_[b].elems;
  }
  elems_ = end;
}

BucketReducer::Block BucketReducer::block(size_t bucket) const {
  const size_t elems = buckets_[bucket].elems / static_cast<size_t>(comm_.size());
  return {buckets_[bucket].offset + static_cast<size_t>(comm_.rank()) * elems, elems};
}

std::span<float> BucketReducer::gradient(size_t parameter) {
  const Parameter& p = parameters_[parameter];
  return {memory_.get() + p.offset, p.elems};
}

uint64_t BucketReducer::bytes() const {
  uint64_t bytes = 0;
  for (const Bucket& b : buckets_) bytes += b.bytes;
  return bytes;
}

void BucketReducer::begin() {
  land(true);  // of a step that was given up
  for (Parameter& p : parameters_) p.ready = false;
  for (Bucket& b : buckets_) b.pending = b.parameters;
  std::fill_n(memory_.get(), elems_, 0.0F);
  if (device_ != nullptr) options_.device->zero();
  started_ = landed_ = 0;
  error_ = {};
}

void BucketReducer::ready(size_t parameter) {
  if (parameter >= parameters_.size() || parameters_[parameter].ready) {
    const char* why = parameter >= parameters_.size() ? " does not exist" : " became ready twice in a step";
    if (error_.ok()) error_ = Status(Code::kInvalid, "gradient " + std::to_string(parameter) + why);
    return;
  }
  parameters_[parameter].ready = true;
  --buckets_[parameters_[parameter].bucket].pending;
  const double begin_s = now_s();
  while (started_ < buckets_.size() && buckets_[started_].pending == 0) start_next();
  land(false);
  times_.exposed_s += now_s() - begin_s;
}

Status BucketReducer::finish() {
  const double begin_s = now_s();
  while (started_ < buckets_.size()) start_next();
  land(true);
  if (!error_.ok()) {
    std::fill_n(memory_.get(), elems_, 0.0F);
  } else if (device_ != nullptr) {
    fetch();
  }
  times_.exposed_s += now_s() - begin_s;
  return error_;
}

// Also after an error: a misuse here must not leave the peers waiting, and on a dead communicator the call fails at
// once.
void BucketReducer::start_next() {
  Bucket& b = buckets_[started_];
  if (started_ == landed_) flight_began_s_ = now_s();
  float* const all = device_ != nullptr ? device_ : memory_.get();
  float* data = all + b.offset;
  if (device_ != nullptr) options_.device->wait();
  const CallOptions call{.codec = b.codec, .feedback = b.feedback};
  if (b.elems == 0) {
    b.work = Work();
  } else if (options_.scatter) {
    const Block own = block(started_);
    b.work = comm_.reduce_scatter(data, all + own.offset, own.elems, DataType::kF32, options_.op, call);
  } else {
    b.work = comm_.all_reduce(data, data, b.elems, DataType::kF32, options_.op, call);
  }
  ++started_;
  if (b.elems == 0) return;
  ++times_.calls;
  times_.bytes += b.bytes;
}

// Takes in completed buckets, in order; drives those in flight, and with `wait` until all have completed.
void BucketReducer::land(bool wait) {
  if (landed_ == started_) return;
  while (landed_ < started_ && (wait || buckets_[landed_].work.test())) {
    Status status = buckets_[landed_].work.wait();
    buckets_[landed_++].work = Work();
    if (error_.ok()) error_ = std::move(status);
  }
  if (landed_ == started_) times_.in_flight_s += now_s() - flight_began_s_;
}

// At the end, since the device may do it in turn with what is left of backward.
void BucketReducer::fetch() {
  if (!options_.scatter) return options_.device->fetch(memory_.get(), 0, elems_);
  for (size_t b = 0; b < buckets_.size(); ++b) {
    const Block own = block(b);
    if (own.elems > 0) options_.device->fetch(memory_.get() + own.offset, own.offset, own.elems);
  }
}

}  // namespace ringfold::sync
