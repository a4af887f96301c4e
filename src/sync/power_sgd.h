// PowerSgd: gradients summed over all ranks as products of thin factors (Vogels, Karimireddy, Jaggi 2019).
//
// The gradient of a weight matrix is nearly of low rank. So instead of the matrix M (m x n) ranks exchange P (m x r)
// and Q (n x r) with M ~ P Q^T, and both by an ordinary all_reduce, as each is linear in M. With M_w = gradient +
// error of rank w, and Q from the step before, a step is
//
//   P = sum of M_w Q         all_reduce; then orthonormal columns: the same bits, so the same result, on all ranks
//   Q = sum of M_w^T P       all_reduce
//   gradient = P Q^T         everywhere the same bits
//   error_w  = M_w - P Q_w^T with this rank's own Q_w = M_w^T P
//
// That is one round of power iteration towards the r largest singular vectors of the sum; because Q is kept, rounds
// add up over steps. What a step leaves out is added to the next step's gradient: over all steps and ranks
//   sum of decoded + sum of last errors = sum of gradients        (up to rounding).
//
// Of two known forms of the error this is the paper's. The other one, M_w - P Q^T / N with the average of Q, has
// the same mean over ranks, and since only that mean enters P and Q, both train alike in exact arithmetic. But the
// other one never drops what a rank's gradients differ by from the mean: errors that grow with the number of steps
// and cancel in the sum, where their rounding does not. Here the part that P spans goes away in each step. Also,
// error_w then belongs to the sum or the average alike, and can be computed while Q is still on its way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ringfold/communicator.h"
#include "ringfold/memory.h"
#include "sync/bucket.h"
#include "sync/low_rank.h"

namespace ringfold::sync {

// A parameter. `name` is what its state is found by in a checkpoint: unique. A convolution's weight is a matrix of
// outputs x (all the rest); what has one dimension is one row.
struct PowerSgdTensor {
  std::string name;
  size_t rows = 0;
  size_t cols = 0;
};

struct PowerSgdOptions {
  size_t rank = 2;
  // Steps that are reduced whole before compression begins: early gradients change fast, and are of high rank.
  uint64_t warm_up_steps = 0;
  uint64_t seed = 1;   // of the first Q
  ReduceOp op = kAvg;  // or kSum
};

// Used like a BucketReducer, without ready(): one step is
//   begin();                 // all gradients are zero
//   ... backward adds into gradient(t) ...
//   Status s = finish();     // all gradients are reduced, bitwise equal on all ranks
// It owns the gradients. A tensor is compressed where r (rows + cols) < rows cols; all others, so all of one
// dimension, lie in one flat bucket that is all-reduced in place, while P is computed. Three calls a step.
//
// Work per step and matrix: O(rows cols r) in four passes over the matrix, and O(rows r^2) for P.
//
// Values that are not finite: where any rank's matrix holds one (or its product overflows), the tensor's decoded
// gradient is NaN in every element on all ranks, so that a trainer's own check or loss shows it; its errors are reset
// to zero on all ranks, its Q begins anew. Other tensors are not touched by it. Flat tensors: what all_reduce does.
//
// When finish() fails all gradients are zero, the step does not count, and errors and Q are as they were before it.
//
// When to reset(): the errors are leftovers of gradients of *these* parameters. Call it after parameters were
// replaced by others than those that the state was exported with (a checkpoint without state, another model), and on
// all ranks or on none. After Communicator::reconfigure() a new object is needed; survivors may carry their state
// over by export_state and import_state only where the number of ranks and their own rank stayed the same. Otherwise
// they begin with zero errors, which loses what those held. The step in which ranks failed may have succeeded on some
// of them: ranks that go on with old state must agree on step() first.
//
// Threads: one at a time. The communicator must outlive this, and all ranks must make their other calls on it outside
// finish.
class PowerSgd {
 public:
  // The same tensors and options on all ranks; makes no calls itself. kInvalid: rank 0 or above kMaxRank, a name that
  // occurs twice, another op than kAvg and kSum.
  static Result<std::unique_ptr<PowerSgd>> make(Communicator& comm, std::span<const PowerSgdTensor> tensors,
                                                const PowerSgdOptions& options = {});
  PowerSgd(const PowerSgd&) = delete;
  PowerSgd& operator=(const PowerSgd&) = delete;

  std::span<float> gradient(size_t tensor);
  std::span<float> all() { return {gradients_.get(), elems_}; }  // of all tensors
  void begin();
  Status finish();

  // Number of finish()es that succeeded, since make() or reset(), or as imported.
  uint64_t step() const { return step_; }
  // exposed_s: all of finish(), since nothing of it overlaps with backward. bytes: what all_reduce was called with.
  const BucketTimes& times() const { return times_; }
  // Of such a step, at 4 bytes an element: the whole gradients, and after warm-up flat ones + sum of r (rows + cols).
  size_t plain_bytes() const { return elems_ * sizeof(float); }
  size_t compressed_bytes() const { return (flat_elems_ + p_elems_ + q_elems_) * sizeof(float); }
  // Number of tensors that are compressed, and which.
  size_t compressed() const { return matrices_.size(); }
  bool is_compressed(size_t tensor) const { return slots_[tensor].matrix != kFlat; }
  // Of a compressed tensor: this rank's error, row by row; and the Q that the next step begins with, column by
  // column.
  std::span<const float> error(size_t tensor) const;
  std::span<const float> factor(size_t tensor) const;

  // As newly made.
  void reset();
  // Errors of this rank, Q, and the number of steps, as bytes for a checkpoint; a run that imports them goes on bit
  // for bit. For hosts of the same byte order.
  std::vector<std::byte> export_state() const;
  // The order of tensors may be another. kInvalid, with nothing changed: bytes that are damaged or of something else;
  // another rank, number of ranks, or r; tensors of other names or shapes.
  Status import_state(std::span<const std::byte> state);

  static constexpr size_t kMaxRank = 1024;

 private:
  static constexpr size_t kFlat = SIZE_MAX;
  struct Slot {
    size_t offset = 0;  // in gradients_
    size_t elems = 0;
    size_t matrix = kFlat;  // index in matrices_
  };
  struct Matrix {
    std::string name;
    MatrixShape shape;
    size_t offset = 0;                  // in gradients_; less flat_elems_, in errors_
    size_t p_offset = 0, q_offset = 0;  // in p_; in q_, own_q_, sum_q_
    bool finite = true;                 // in this step, on all ranks
    std::vector<uint8_t> alive;         // columns of P that are independent
  };

  PowerSgd(Communicator& comm, const PowerSgdOptions& options) : comm_(comm), options_(options) {}
  Status lay_out(std::span<const PowerSgdTensor> tensors);
  Work reduce(const float* input, float* output, size_t elems);
  Status reduce_whole();
  Status reduce_factors();
  void project();
  void project_back_all();
  void take_leftovers();
  void decode();
  void renew(const Matrix& m, size_t column);

  float* of(const Buffer<float>& buffer, size_t offset) const { return buffer.get() + offset; }
  std::span<float> error_of(const Matrix& m) { return {errors_.data() + (m.offset - flat_elems_), m.shape.elems()}; }

  Communicator& comm_;
  PowerSgdOptions options_;
  std::vector<Slot> slots_;
  std::vector<Matrix> matrices_;
  size_t elems_ = 0, flat_elems_ = 0, p_elems_ = 0, q_elems_ = 0;
  Buffer<float> gradients_;  // flat tensors, then matrices
  Buffer<float> p_, own_q_, sum_q_;
  std::vector<float> errors_, q_;
  uint64_t step_ = 0;
  BucketTimes times_;
};

}  // namespace ringfold::sync
