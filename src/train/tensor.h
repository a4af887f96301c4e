// Tensor parallelism: the ranks of a group hold parts of each layer, and exchange activations inside the layer.
//
//   column-parallel linear   y_r = x W_r, W cut by outputs: x is needed whole, y comes in parts
//   row-parallel linear      y = sum over r of x_r W_r, W cut by inputs: x comes in parts, y is whole
//
// A column-parallel layer followed by what works on each part alone (an activation, some of the heads of attention)
// and then a row-parallel layer costs one sum forward and one backward (Shoeybi et al. 2019, "Megatron-LM"). Whole
// values, and the gradients of what all ranks hold, are bitwise equal on all ranks, since a sum gives all ranks the
// same bits.
#pragma once

#include <ATen/core/Tensor.h>

#include <exception>
#include <string>

#include "ringfold/communicator.h"
#include "ringfold/status.h"

namespace ringfold::train {

// A call of a layer failed. Autograd knows exceptions only; train() turns it into the status again.
class CommunicationError : public std::exception {
 public:
  explicit CommunicationError(Status status) : status_(std::move(status)), text_(status_.to_string()) {}
  const char* what() const noexcept override { return text_.c_str(); }
  const Status& status() const { return status_; }

 private:
  Status status_;
  std::string text_;
};

// The communicator of the ranks that share the layers, and what they spend on it. Threads: one at a time. Throws
// CommunicationError.
class TensorGroup {
 public:
  explicit TensorGroup(Communicator& comm) : comm_(comm) {}
  int rank() const { return comm_.rank(); }
  int size() const { return comm_.size(); }
  Communicator& comm() { return comm_; }
  at::Tensor sum(const at::Tensor& x);
  // The ranks' parts side by side along dimension `dim`.
  at::Tensor gather(const at::Tensor& x, int64_t dim);
  double waited_s() const { return waited_s_; }

 private:
  void wait(Work work);
  Communicator& comm_;
  double waited_s_ = 0;
};

// Differentiable. A null group is one rank that holds all: then each is the identity.
at::Tensor enter(const at::Tensor& x, TensorGroup* group);  // forward: x; backward: the sum of the ranks' gradients
at::Tensor leave(const at::Tensor& x,
                 TensorGroup* group);  // forward: the sum of the ranks' x; backward: the gradient
at::Tensor collect(const at::Tensor& x,
                   TensorGroup* group);  // forward: all parts of the last dimension; backward: this rank's

// This rank's part of `whole` along `dim`, a copy.
at::Tensor own_part(const at::Tensor& whole, int64_t dim, const TensorGroup& group);

}  // namespace ringfold::train
