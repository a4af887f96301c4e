// Tensors as what Ringfold moves: stretches of memory of one of its types.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Types.hpp>

#include <stdexcept>
#include <string>
#include <vector>

#include "ringfold/status.h"
#include "ringfold/types.h"

namespace ringfold::pytorch {

using Tensors = std::vector<at::Tensor>;

// What PyTorch's callers see of a Status that is not ok: a RuntimeError in Python, with the verdict's parts as
// attributes (module.cc).
class Error : public std::runtime_error {
 public:
  Error(const std::string& operation, Status status)
      : std::runtime_error("ringfold: " + operation + ": " + status.to_string()), status_(std::move(status)) {}
  const Status& status() const { return status_; }

 private:
  Status status_;
};

// Throws an Error of Code::kInvalid.
[[noreturn]] void refuse(const std::string& operation, const std::string& why);

// How the elements of a dtype are counted: `per_element` of `type` for each.
struct Elements {
  DataType type = DataType::kU8;
  int64_t per_element = 1;
};

// For calls that only move values: every dtype that has a fixed size and is not quantized.
Elements moved_as(const std::string& operation, at::ScalarType dtype);

// For calls that reduce. Where the runtime has no such reduction, tensors are cast (int16), scaled before
// (PREMUL_SUM), or collected and folded here (bitwise operations).
struct Reduction {
  Elements elements;
  ReduceOp op;
  at::ScalarType compute = at::kFloat;  // dtype in which the call is made
  at::Tensor scale;                     // of what goes in; undefined: 1
  bool fold = false;                    // bitwise: `kind` over what all ranks have
  c10d::ReduceOp::RedOpType kind = c10d::ReduceOp::SUM;
};
Reduction reduced_as(const std::string& operation, at::ScalarType dtype, const c10d::ReduceOp& op);
// The bitwise fold over blocks that lie one after another along dimension 0, of size `ranks`.
at::Tensor fold_blocks(const at::Tensor& blocks, c10d::ReduceOp::RedOpType kind);

// Throws unless the tensor is dense, in memory of the CPU or of a device that this build knows (device.h), and of a
// known dtype.
void check_tensor(const std::string& operation, const at::Tensor& tensor);
void check_tensors(const std::string& operation,
                   const Tensors& tensors);  // and of one dtype and device, at least one

// Tensors as one stretch of memory, in their order: their own memory where they lie one after another in it, a copy
// otherwise. Keeps what it uses alive.
class Stretch {
 public:
  Stretch() = default;  // no memory
  // With the tensors' values; or for results only: then a copy begins uninitialized.
  enum class Use { kValues, kResults };
  Stretch(Tensors tensors, Use use);
  void* data() const { return data_; }
  bool copied() const { return copied_; }
  // A flat tensor over the stretch; of its own memory only if copied().
  const at::Tensor& copy() const { return copy_; }
  int64_t elements() const { return elements_; }
  // Writes the stretch back to the tensors, if it is a copy.
  void give_back() const;

 private:
  Tensors tensors_;
  at::Tensor copy_;
  void* data_ = nullptr;
  bool copied_ = false;
  int64_t elements_ = 0;
};

}  // namespace ringfold::pytorch
