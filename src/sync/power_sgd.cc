#include "sync/power_sgd.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <set>

#include "sync/mix.h"
#include "sync/replica.h"

namespace ringfold::sync {
namespace {

double clock_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

bool multiply_fits(size_t a, size_t b, size_t* product) { return !__builtin_mul_overflow(a, b, product); }

uint64_t hash_of(std::span<const std::byte> bytes) {
  ReplicaHash hash;
  hash.add(bytes);
  return hash.value();
}

}  // namespace

Result<std::unique_ptr<PowerSgd>> PowerSgd::make(Communicator& comm, std::span<const PowerSgdTensor> tensors,
                                                 const PowerSgdOptions& options) {
  if (options.rank == 0 || options.rank > kMaxRank) {
    return Status(Code::kInvalid, "the rank of low-rank compression is " + std::to_string(options.rank) +
                                      ", not 1 to " + std::to_string(kMaxRank));
  }
  if (options.op != kAvg && options.op != kSum) {
    return Status(Code::kInvalid, "low-rank compression sums or averages; other reductions are not linear");
  }
  std::unique_ptr<PowerSgd> power(new PowerSgd(comm, options));
  RINGFOLD_TRY(power->lay_out(tensors));
  for (auto [buffer, elems] : {std::pair{&power->gradients_, power->elems_},
                               {&power->p_, power->p_elems_},
                               {&power->own_q_, power->q_elems_},
                               {&power->sum_q_, power->q_elems_}}) {
    auto memory = allocate_buffer<float>(std::max<size_t>(elems, 1));
    if (!memory.ok()) return memory.status();
    *buffer = std::move(*memory);
  }
  power->errors_.resize(power->elems_ - power->flat_elems_);
  power->q_.resize(power->q_elems_);
  power->reset();
  return power;
}

Status PowerSgd::lay_out(std::span<const PowerSgdTensor> tensors) {
  const size_t r = options_.rank;
  std::set<std::string> names;
  for (const auto& t : tensors) {
    if (!names.insert(t.name).second) return Status(Code::kInvalid, "two tensors are named '" + t.name + "'");
    size_t elems = 0;
    if (!multiply_fits(t.rows, t.cols, &elems) || elems > SIZE_MAX / sizeof(float) / 2 - elems_) {
      return Status(Code::kInvalid, "tensor '" + t.name + "' has too many elements");
    }
    Slot slot{.elems = elems};
    // rows + cols cannot overflow where both are at most elems; and where one is 0 there is nothing to compress.
    if (elems > 0 && t.rows + t.cols <= (elems - 1) / r) {
      slot.matrix = matrices_.size();
      matrices_.push_back({.name = t.name,
                           .shape = {t.rows, t.cols},
                           .p_offset = p_elems_,
                           .q_offset = q_elems_,
                           .alive = std::vector<uint8_t>(r)});
      p_elems_ += t.rows * r;
      q_elems_ += t.cols * r;
    } else {
      slot.offset = flat_elems_;
      flat_elems_ += elems;
    }
    elems_ += elems;
    slots_.push_back(slot);
  }
  size_t end = flat_elems_;
  for (Slot& slot : slots_) {
    if (slot.matrix == kFlat) continue;
    slot.offset = matrices_[slot.matrix].offset = end;
    end += slot.elems;
  }
  return {};
}

std::span<float> PowerSgd::gradient(size_t tensor) {
  return {gradients_.get() + slots_[tensor].offset, slots_[tensor].elems};
}

std::span<const float> PowerSgd::error(size_t tensor) const {
  const Matrix& m = matrices_[slots_[tensor].matrix];
  return {errors_.data() + (m.offset - flat_elems_), m.shape.elems()};
}

std::span<const float> PowerSgd::factor(size_t tensor) const {
  const Matrix& m = matrices_[slots_[tensor].matrix];
  return {q_.data() + m.q_offset, m.shape.cols * options_.rank};
}

void PowerSgd::reset() {
  std::ranges::fill(errors_, 0.0F);
  step_ = 0;
  for (const Matrix& m : matrices_) {
    for (size_t k = 0; k < options_.rank; ++k) renew(m, k);
  }
}

// A column of Q that depends only on what all ranks know.
void PowerSgd::renew(const Matrix& m, size_t column) {
  const uint64_t name = hash_of(std::as_bytes(std::span(m.name)));
  const std::span<float> q(q_.data() + m.q_offset + column * m.shape.cols, m.shape.cols);
  fill_random(q, mix(options_.seed) ^ mix(name + mix(step_ * kMaxRank + column)));
  if (!normalise(q)) q.front() = 1;  // all zero: not within our lifetime, but cheap to rule out
}

void PowerSgd::begin() { std::fill_n(gradients_.get(), elems_, 0.0F); }

Status PowerSgd::finish() {
  const double begin_s = clock_s();
  Status status = step_ < options_.warm_up_steps || matrices_.empty() ? reduce_whole() : reduce_factors();
  if (status.ok()) {
    ++step_;
  } else {
    std::fill_n(gradients_.get(), elems_, 0.0F);
  }
  times_.exposed_s += clock_s() - begin_s;
  return status;
}

Work PowerSgd::reduce(const float* input, float* output, size_t elems) {
  if (elems == 0) return {};
  ++times_.calls;
  times_.bytes += elems * sizeof(float);
  // The factors are the compression: they travel as they are, whatever the communicator's default.
  return comm_.all_reduce(input, output, elems, DataType::kF32, options_.op, {.codec = Codec()});
}

Status PowerSgd::reduce_whole() {
  const double begin_s = clock_s();
  Status status = reduce(gradients_.get(), gradients_.get(), elems_).wait();
  times_.in_flight_s += clock_s() - begin_s;
  return status;
}

// No call is in flight when this returns, also not after an error: all are waited for.
Status PowerSgd::reduce_factors() {
  const double flat_s = clock_s();
  Work flat = reduce(gradients_.get(), gradients_.get(), flat_elems_);
  project();
  Status status = reduce(p_.get(), p_.get(), p_elems_).wait();
  Status flat_status = flat.wait();
  if (status.ok()) status = std::move(flat_status);
  times_.in_flight_s += clock_s() - flat_s;
  if (!status.ok()) return status;

  project_back_all();
  const double q_s = clock_s();
  Work factors = reduce(own_q_.get(), sum_q_.get(), q_elems_);
  take_leftovers();
  status = factors.wait();
  times_.in_flight_s += clock_s() - q_s;
  if (status.ok()) decode();
  return status;
}

// The gradients' memory becomes M = gradient + error, so that the errors stay until the step is known to be good.
void PowerSgd::project() {
  for (const Matrix& m : matrices_) {
    add_and_project(m.shape, options_.rank, of(gradients_, m.offset), error_of(m).data(), q_.data() + m.q_offset,
                    of(p_, m.p_offset));
  }
}

void PowerSgd::project_back_all() {
  for (Matrix& m : matrices_) {
    float* p = of(p_, m.p_offset);
    // A value that is not finite, on any rank, is so in all of its row's products: no column of Q is zero, and what
    // is finite or zero times infinity is not finite either. So all ranks see it here, without another call.
    m.finite = all_finite({p, m.shape.rows * options_.rank});
    if (m.finite) {
      orthonormalise(m.shape.rows, options_.rank, p, m.alive);
      project_back(m.shape, options_.rank, of(gradients_, m.offset), p, of(own_q_, m.q_offset));
    } else {
      std::fill_n(of(own_q_, m.q_offset), m.shape.cols * options_.rank, 0.0F);
    }
  }
}

// The gradients' memory becomes the errors of the next step.
void PowerSgd::take_leftovers() {
  for (const Matrix& m : matrices_) {
    if (!m.finite) continue;
    subtract_product(m.shape, options_.rank, of(p_, m.p_offset), of(own_q_, m.q_offset), of(gradients_, m.offset));
  }
}

void PowerSgd::decode() {
  const size_t r = options_.rank;
  for (Matrix& m : matrices_) {
    float *gradient = of(gradients_, m.offset), *q = of(sum_q_, m.q_offset);
    m.finite = m.finite && all_finite({q, m.shape.cols * r});
    if (!m.finite) {
      std::fill_n(gradient, m.shape.elems(), std::numeric_limits<float>::quiet_NaN());
      std::ranges::fill(error_of(m), 0.0F);
      for (size_t k = 0; k < r; ++k) renew(m, k);
      continue;
    }
    std::copy_n(gradient, m.shape.elems(), error_of(m).data());
    expand_product(m.shape, r, of(p_, m.p_offset), q, gradient);
    // Columns of length 1 for the next step: P = M Q then neither overflows nor vanishes as powers of M would. Where
    // P had no independent column, that of Q is zero and would stay so for ever: a new direction is tried.
    std::copy_n(q, m.shape.cols * r, q_.data() + m.q_offset);
    for (size_t k = 0; k < r; ++k) {
      const std::span<float> column(q_.data() + m.q_offset + k * m.shape.cols, m.shape.cols);
      if (m.alive[k] == 0 || !normalise(column)) renew(m, k);
    }
  }
}

}  // namespace ringfold::sync
