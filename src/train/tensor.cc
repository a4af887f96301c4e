#include "train/tensor.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/types.h>

#include <chrono>

namespace ringfold::train {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The group, which outlives the graph, as a number: what contexts keep is meant to be serialised.
void keep(AutogradContext* context, TensorGroup* group) {
  context->saved_data["group"] = reinterpret_cast<int64_t>(group);
}
TensorGroup& kept(AutogradContext* context) {
  return *reinterpret_cast<TensorGroup*>(context->saved_data["group"].toInt());
}

struct Enter : torch::autograd::Function<Enter> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, TensorGroup* group) {
    keep(context, group);
    return x.view_as(x);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {kept(context).sum(gradients[0]), {}};
  }
};

struct Leave : torch::autograd::Function<Leave> {
  static at::Tensor forward(AutogradContext*, const at::Tensor& x, TensorGroup* group) { return group->sum(x); }
  static variable_list backward(AutogradContext*, const variable_list& gradients) { return {gradients[0], {}}; }
};

struct Collect : torch::autograd::Function<Collect> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, TensorGroup* group) {
    keep(context, group);
    return group->gather(x, x.dim() - 1);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {own_part(gradients[0], gradients[0].dim() - 1, kept(context)), {}};
  }
};

}  // namespace

void TensorGroup::wait(Work work) {
  const auto begin = std::chrono::steady_clock::now();
  const Status status = work.wait();
  waited_s_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (!status.ok()) throw CommunicationError(status);
}

at::Tensor TensorGroup::sum(const at::Tensor& x) {
  const at::Tensor input = x.contiguous();
  at::Tensor output = at::empty_like(input);
  // Exact sums, whatever codec the job's gradients travel in: errors in activations add up from layer to layer.
  wait(comm_.all_reduce(input.data_ptr(), output.data_ptr(), static_cast<size_t>(input.numel()), DataType::kF32, kSum,
                        {.codec = Codec{}}));
  return output;
}

at::Tensor TensorGroup::gather(const at::Tensor& x, int64_t dim) {
  const at::Tensor input = x.contiguous();
  at::Tensor parts = at::empty({comm_.size(), input.numel()}, input.options());
  wait(comm_.all_gather(input.data_ptr(), parts.data_ptr(), static_cast<size_t>(input.numel()), DataType::kF32,
                        {.codec = Codec{}}));
  std::vector<at::Tensor> by_rank;
  for (int r = 0; r < comm_.size(); ++r) by_rank.push_back(parts[r].view(input.sizes()));
  return at::cat(by_rank, dim);
}

at::Tensor enter(const at::Tensor& x, TensorGroup* group) { return group ? Enter::apply(x, group) : x; }
at::Tensor leave(const at::Tensor& x, TensorGroup* group) { return group ? Leave::apply(x, group) : x; }
at::Tensor collect(const at::Tensor& x, TensorGroup* group) { return group ? Collect::apply(x, group) : x; }

at::Tensor own_part(const at::Tensor& whole, int64_t dim, const TensorGroup& group) {
  const int64_t part = whole.size(dim) / group.size();
  return whole.narrow(dim, group.rank() * part, part).clone(at::MemoryFormat::Contiguous);
}

}  // namespace ringfold::train
