#include "torch/tensors.h"

#include <fmt/format.h>

#include <array>

#include "torch/device.h"

namespace ringfold::pytorch {

void refuse(const std::string& operation, const std::string& why) {
  throw Error(operation, Status(Code::kInvalid, why));
}

Elements moved_as(const std::string& operation, at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble: return {DataType::kF64};
    case at::kFloat: return {DataType::kF32};
    case at::kHalf: return {DataType::kF16};
    case at::kBFloat16: return {DataType::kBF16};
    case at::kChar: return {DataType::kI8};
    case at::kByte: return {DataType::kU8};
    case at::kInt: return {DataType::kI32};
    case at::kLong: return {DataType::kI64};
    default:
      if (c10::isQIntType(dtype)) {
        refuse(operation,
               fmt::format("a tensor of {}: its scale does not travel with it; send the dequantized values",
                           c10::toString(dtype)));
      }
      return {DataType::kU8, static_cast<int64_t>(c10::elementSize(dtype))};  // bool, int16, complex, ...
  }
}

namespace {

bool is_bitwise(c10d::ReduceOp::RedOpType kind) {
  return kind == c10d::ReduceOp::BAND || kind == c10d::ReduceOp::BOR || kind == c10d::ReduceOp::BXOR;
}

std::string name_of_op(c10d::ReduceOp::RedOpType kind) {
  static constexpr std::array kNames = {"SUM", "AVG", "PRODUCT", "MIN", "MAX", "BAND", "BOR", "BXOR", "PREMUL_SUM"};
  return kind < kNames.size() ? kNames[kind] : fmt::format("operation {}", static_cast<int>(kind));
}

// Booleans are 0 and 1: "or" is their maximum and "and" their minimum.
c10d::ReduceOp::RedOpType of_booleans(c10d::ReduceOp::RedOpType kind) {
  switch (kind) {
    case c10d::ReduceOp::SUM:
    case c10d::ReduceOp::BOR: return c10d::ReduceOp::MAX;
    case c10d::ReduceOp::PRODUCT:
    case c10d::ReduceOp::BAND: return c10d::ReduceOp::MIN;
    default: return kind;
  }
}

// What PREMUL_SUM multiplies by, if that is a tensor. PyTorch 1.13 has a list.
template <typename Supplement>
Tensors factors_of(const Supplement& supplement) {
  if constexpr (requires { supplement.tensor_factors; }) {
    return supplement.tensor_factors;
  } else {
    return supplement.tensor_factor.defined() ? Tensors{supplement.tensor_factor} : Tensors{};
  }
}

}  // namespace

Reduction reduced_as(const std::string& operation, at::ScalarType dtype, const c10d::ReduceOp& op) {
  Reduction reduction;
  reduction.kind = op;
  reduction.compute = dtype == at::kShort ? at::kInt : dtype;
  auto bad = [&](const char* why) {
    refuse(operation, fmt::format("{} of {} {}", name_of_op(op), c10::toString(dtype), why));
  };
  if (c10::isComplexType(dtype)) {
    if (op != c10d::ReduceOp::SUM && op != c10d::ReduceOp::AVG)
      bad("is not defined; complex tensors have SUM and AVG");
    if (dtype != at::kComplexFloat && dtype != at::kComplexDouble) bad("is not supported");
    reduction.elements = {dtype == at::kComplexFloat ? DataType::kF32 : DataType::kF64, 2};
  } else if (dtype == at::kBool) {
    reduction.kind = of_booleans(reduction.kind);
    if (op == c10d::ReduceOp::AVG || op == c10d::ReduceOp::PREMUL_SUM) bad("is not defined");
    reduction.elements = {DataType::kU8};
  } else {
    reduction.elements = moved_as(operation, reduction.compute);
    if (reduction.elements.per_element != 1) bad("is not supported");
  }
  if (is_bitwise(reduction.kind)) {
    if (c10::isFloatingType(dtype)) bad("is not defined; bitwise operations are for integers and booleans");
    reduction.fold = true;
    return reduction;
  }
  switch (reduction.kind) {
    case c10d::ReduceOp::SUM: reduction.op = kSum; break;
    case c10d::ReduceOp::AVG: reduction.op = kAvg; break;
    case c10d::ReduceOp::PRODUCT: reduction.op = kProd; break;
    case c10d::ReduceOp::MIN: reduction.op = kMin; break;
    case c10d::ReduceOp::MAX: reduction.op = kMax; break;
    case c10d::ReduceOp::PREMUL_SUM: {
      if (!c10::isFloatingType(dtype)) bad("is for floating point types");
      const auto* supplement = dynamic_cast<const c10d::NCCLPreMulSumSupplement*>(op.supplement_.get());
      if (supplement == nullptr) bad("has no factor; make it with torch.distributed._make_nccl_premul_sum");
      const Tensors factors = factors_of(*supplement);
      if (factors.size() > 1) bad("takes one factor");
      reduction.scale = factors.empty() ? at::scalar_tensor(supplement->double_factor, at::kDouble) : factors[0];
      reduction.op = kSum;
      break;
    }
    default: bad("is unknown");
  }
  return reduction;
}

at::Tensor fold_blocks(const at::Tensor& blocks, c10d::ReduceOp::RedOpType kind) {
  at::Tensor result = blocks[0].clone();
  for (int64_t r = 1; r < blocks.size(0); ++r) {
    if (kind == c10d::ReduceOp::BAND) result.bitwise_and_(blocks[r]);
    if (kind == c10d::ReduceOp::BOR) result.bitwise_or_(blocks[r]);
    if (kind == c10d::ReduceOp::BXOR) result.bitwise_xor_(blocks[r]);
  }
  return result;
}

void check_tensor(const std::string& operation, const at::Tensor& tensor) {
  if (!tensor.defined()) refuse(operation, "a tensor is undefined");
  if (tensor.layout() != at::kStrided) {
    refuse(operation, fmt::format("a tensor has layout {}; this call takes dense tensors: use .to_dense()",
                                  c10::str(tensor.layout())));
  }
  if (!tensor.device().is_cpu() && !tensor.is_cuda()) {
    refuse(operation,
           fmt::format("a tensor is on {}: Ringfold moves tensors in the memory of CPUs and of CUDA devices; "
                       "copy it with .cpu(), or give the group another backend",
                       tensor.device().str()));
  }
  if (tensor.is_cuda() && stream_handle() == nullptr) {
    refuse(operation, fmt::format("a tensor is on {}, and this build of ringfold_torch is for PyTorch without CUDA: "
                                  "build it against the PyTorch that has made the tensor, or copy it with .cpu()",
                                  tensor.device().str()));
  }
  moved_as(operation, tensor.scalar_type());
}

void check_tensors(const std::string& operation, const Tensors& tensors) {
  if (tensors.empty()) refuse(operation, "the list of tensors is empty");
  for (const at::Tensor& tensor : tensors) {
    check_tensor(operation, tensor);
    if (tensor.scalar_type() != tensors[0].scalar_type()) {
      refuse(operation, fmt::format("tensors of {} and {} in one call", c10::toString(tensors[0].scalar_type()),
                                    c10::toString(tensor.scalar_type())));
    }
    if (tensor.device() != tensors[0].device()) {
      refuse(operation,
             fmt::format("tensors on {} and on {} in one call", tensors[0].device().str(), tensor.device().str()));
    }
  }
}

namespace {

bool is_plain(const at::Tensor& tensor) { return tensor.is_contiguous() && !tensor.is_conj() && !tensor.is_neg(); }

// Do they lie one after another in memory?
bool are_consecutive(const Tensors& tensors) {
  const char* next = nullptr;
  for (const at::Tensor& tensor : tensors) {
    if (!is_plain(tensor)) return false;
    if (tensor.numel() == 0) continue;
    const auto* at = static_cast<const char*>(tensor.data_ptr());
    if (next != nullptr && at != next) return false;
    next = at + tensor.nbytes();
  }
  return true;
}

}  // namespace

Stretch::Stretch(Tensors tensors, Use use) : tensors_(std::move(tensors)) {
  for (const at::Tensor& tensor : tensors_) elements_ += tensor.numel();
  if (are_consecutive(tensors_)) {
    for (const at::Tensor& tensor : tensors_) {
      if (data_ == nullptr && tensor.numel() > 0) data_ = tensor.data_ptr();
    }
    return;
  }
  const at::NoGradGuard guard;
  copied_ = true;
  copy_ = at::empty({elements_}, tensors_[0].options().layout(at::kStrided));
  data_ = copy_.data_ptr();
  if (use == Use::kResults) return;
  int64_t begin = 0;
  for (const at::Tensor& tensor : tensors_) {
    copy_.narrow(0, begin, tensor.numel()).view(tensor.sizes()).copy_(tensor);
    begin += tensor.numel();
  }
}

void Stretch::give_back() const {
  if (!copied_) return;
  const at::NoGradGuard guard;
  int64_t begin = 0;
  for (const at::Tensor& tensor : tensors_) {
    tensor.copy_(copy_.narrow(0, begin, tensor.numel()).view(tensor.sizes()));
    begin += tensor.numel();
  }
}

}  // namespace ringfold::pytorch
