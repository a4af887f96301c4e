// Calls that reduce.
#include "torch/starter.h"

namespace ringfold::pytorch {

namespace {

// What a reduction works on: the tensors' own memory where it can, otherwise a copy, scaled and of the dtype that the
// call is made in.
struct Reduced {
  Tensors tensors;  // the caller's
  at::Tensor converted;
  std::shared_ptr<Stretch> stretch;
  Reduced(const Tensors& input, const Reduction& how) : tensors(input) {
    if (!how.scale.defined() && how.compute == input[0].scalar_type()) {
      stretch = std::make_shared<Stretch>(input, Stretch::Use::kValues);
      return;
    }
    const at::NoGradGuard guard;
    Tensors flat;
    for (const at::Tensor& t : input) {
      flat.push_back((how.scale.defined() ? t.mul(how.scale) : t).to(how.compute).reshape({-1}));
    }
    converted = at::cat(flat);
    stretch = std::make_shared<Stretch>(Tensors{converted}, Stretch::Use::kValues);
  }
  void* data() const { return stretch->data(); }
  int64_t elements() const { return stretch->elements(); }
  void give_back() const {
    if (!converted.defined()) return stretch->give_back();
    const at::NoGradGuard guard;
    int64_t begin = 0;
    for (const at::Tensor& t : tensors) {
      t.copy_(converted.narrow(0, begin, t.numel()).view(t.sizes()));
      begin += t.numel();
    }
  }
  // A flat tensor over all of it, of the caller's dtype.
  at::Tensor flat() const {
    if (converted.defined()) return converted;
    return stretch->copied() ? stretch->copy()
                             : at::from_blob(stretch->data(), {stretch->elements()}, tensors[0].options());
  }
};
}  // namespace

WorkPtr ProcessGroupRingfold::reduce_all(const char* title, OpType type, const Tensors& tensors,
                                         const c10d::ReduceOp& op, milliseconds timeout) {
  Starter start(*this, title, type, timeout, tensors);
  check_tensors(start.name(), tensors);
  const auto how = reduced_as(start.name(), tensors[0].scalar_type(), op);
  auto data = std::make_shared<Reduced>(tensors, how);
  start.keep(how.scale);
  if (how.fold) {
    const at::Tensor mine = data->flat();
    const at::Tensor all = at::empty({getSize(), mine.numel()}, mine.options());
    return start(
        tensors, tensors,
        [&] {
          return start.communicator().all_gather(mine.data_ptr(), all.data_ptr(), mine.nbytes(), DataType::kU8,
                                                 start.options);
        },
        [data, mine, all, kind = how.kind] {
          const at::NoGradGuard guard;
          mine.copy_(fold_blocks(all, kind));
          data->give_back();
        });
  }
  if (how.elements.type == DataType::kF32) start.options.codec = codec_;
  if (how.op.kind != ReduceKind::kSum && how.op.kind != ReduceKind::kAvg) start.options.codec.reset();
  return start(
      tensors, tensors,
      [&] {
        return start.communicator().all_reduce(data->data(), data->data(),
                                               static_cast<size_t>(data->elements() * how.elements.per_element),
                                               how.elements.type, how.op, start.options);
      },
      [data] { data->give_back(); });
}

// The sum of sparse tensors holds the indices of all. How many each rank has must be known first, so the first half
// of this happens during the call.
WorkPtr ProcessGroupRingfold::sum_of_sparse(const at::Tensor& tensor, const c10d::AllreduceOptions& options) {
  Starter start(*this, "ringfold:sparse_all_reduce", OpType::ALLREDUCE, options.timeout, {});
  if (options.reduceOp != c10d::ReduceOp::SUM) refuse(start.name(), "sparse tensors have SUM only");
  if (!tensor.device().is_cpu()) refuse(start.name(), "the tensor is not in CPU memory");
  const at::NoGradGuard guard;
  const at::Tensor mine = tensor.coalesce();
  const at::Tensor values = mine.values().contiguous(), indices = mine.indices().t().contiguous();
  const auto elements = moved_as(start.name(), values.scalar_type());
  check_tensor(start.name(), values);
  // Shape first: ranks whose tensors differ must not go on.
  std::vector<int64_t> shape = {mine.sparse_dim()};
  shape.insert(shape.end(), tensor.sizes().begin(), tensor.sizes().end());
  std::vector<int64_t> counts(static_cast<size_t>(getSize()));
  int64_t hash = 0, lowest = 0, highest = 0;
  for (int64_t s : shape) hash = (hash ^ s) * 0x100000001b3 & 0x7fffffffffffffff;
  const int64_t nonzero = indices.size(0);
  Communicator& communicator = start.communicator();
  const Status known =
      ringfold::Work::all({communicator.all_gather(&nonzero, counts.data(), 1, DataType::kI64, start.options),
                           communicator.all_reduce(&hash, &lowest, 1, DataType::kI64, kMin, start.options),
                           communicator.all_reduce(&hash, &highest, 1, DataType::kI64, kMax, start.options)})
          .wait();
  if (!known.ok()) throw Error(start.name(), known);
  if (lowest != highest) throw Error(start.name(), Status(Code::kMismatch, "the ranks' tensors differ in shape"));
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  std::vector<int64_t> sizes = values.sizes().vec();
  sizes[0] = total;
  const at::Tensor all_values = at::empty(sizes, values.options());
  const at::Tensor all_indices = at::empty({total, mine.sparse_dim()}, indices.options());
  const int64_t row = nonzero > 0 ? values.numel() / nonzero : all_values.numel() / std::max<int64_t>(total, 1);
  return start(
      {tensor}, {tensor},
      [&] {
        return ringfold::Work::all(
            {communicator.all_gather_v(indices.data_ptr(), all_indices.data_ptr(), scaled(counts, mine.sparse_dim()),
                                       DataType::kI64, start.options),
             communicator.all_gather_v(values.data_ptr(), all_values.data_ptr(),
                                       scaled(counts, row * elements.per_element), elements.type, start.options)});
      },
      [tensor, indices, values, all_indices, all_values] {
        const at::NoGradGuard no_grad;
        tensor.copy_(at::sparse_coo_tensor(all_indices.t(), all_values, tensor.sizes()).coalesce());
      });
}

WorkPtr ProcessGroupRingfold::allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) {
  if (tensors.size() != 1) refuse("all_reduce", fmt::format("{} tensors instead of one", tensors.size()));
  if (tensors[0].is_sparse()) return sum_of_sparse(tensors[0], options);
  return reduce_all("ringfold:all_reduce", OpType::ALLREDUCE, tensors, options.reduceOp, options.timeout);
}

WorkPtr ProcessGroupRingfold::allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& options) {
  return reduce_all("ringfold:all_reduce", OpType::ALLREDUCE_COALESCED, tensors, options.reduceOp, options.timeout);
}

WorkPtr ProcessGroupRingfold::compressed_mean(const at::Tensor& tensor, const std::optional<Codec>& codec,
                                              const std::string& feedback) {
  Starter start(*this, "ringfold:all_reduce", OpType::ALLREDUCE, c10d::kUnsetTimeout, {tensor});
  check_tensors(start.name(), {tensor});
  if (tensor.scalar_type() != at::kFloat || !tensor.is_contiguous()) {
    refuse("compress", fmt::format("a gradient bucket of {}: compression is for contiguous float32",
                                   c10::toString(tensor.scalar_type())));
  }
  start.options.codec = codec ? codec : codec_;
  start.options.feedback = feedback;
  return start(
      {tensor}, {tensor},
      [&] {
        return start.communicator().all_reduce(tensor.data_ptr(), tensor.data_ptr(),
                                               static_cast<size_t>(tensor.numel()), DataType::kF32, kAvg,
                                               start.options);
      },
      [tensor] {});
}

WorkPtr ProcessGroupRingfold::reduce(Tensors& tensors, const c10d::ReduceOptions& options) {
  Starter start(*this, "ringfold:reduce", OpType::REDUCE, options.timeout, tensors);
  check_tensors(start.name(), tensors);
  if (tensors.size() != 1) refuse("reduce", fmt::format("{} tensors instead of one", tensors.size()));
  const auto how = reduced_as(start.name(), tensors[0].scalar_type(), options.reduceOp);
  const int root = static_cast<int>(options.rootRank);
  const bool here = root == getRank();
  auto data = std::make_shared<Reduced>(tensors, how);
  start.keep(how.scale);
  if (how.fold) {
    const at::Tensor mine = data->flat();
    const at::Tensor all = here ? at::empty({getSize(), mine.numel()}, mine.options()) : at::Tensor();
    return start(
        tensors, tensors,
        [&] {
          return start.communicator().gather(mine.data_ptr(), here ? all.data_ptr() : nullptr, mine.nbytes(),
                                             DataType::kU8, root, start.options);
        },
        [data, mine, all, here, kind = how.kind] {
          if (!here) return;
          const at::NoGradGuard guard;
          mine.copy_(fold_blocks(all, kind));
          data->give_back();
        });
  }
  return start(
      tensors, tensors,
      [&] {
        return start.communicator().reduce(data->data(), here ? data->data() : nullptr,
                                           static_cast<size_t>(data->elements() * how.elements.per_element),
                                           how.elements.type, how.op, root, start.options);
      },
      [data, here] {
        if (here) data->give_back();
      });
}

// `counts`: elements of the block of each rank.
WorkPtr ProcessGroupRingfold::scatter_sums(const char* title, OpType type, const at::Tensor& output,
                                           const Tensors& inputs, const std::vector<int64_t>& counts,
                                           const c10d::ReduceScatterOptions& options) {
  Starter start(*this, title, type, options.timeout, inputs);
  check_tensors(start.name(), inputs);
  check_tensors(start.name(), {output, inputs[0]});
  const int64_t mine = counts[static_cast<size_t>(getRank())];
  if (output.numel() != mine) {
    refuse(start.name(),
           fmt::format("the output has {} elements, and block {} of the input {}", output.numel(), getRank(), mine));
  }
  const auto how = reduced_as(start.name(), output.scalar_type(), options.reduceOp);
  auto from = std::make_shared<Reduced>(inputs, how);
  start.keep(how.scale);
  const bool convert = how.compute != output.scalar_type();
  const at::Tensor result = convert ? at::empty({mine}, output.options().dtype(how.compute)) : output;
  auto to = std::make_shared<Stretch>(Tensors{result}, Stretch::Use::kResults);
  auto give_back = [to, convert, result, output] {
    to->give_back();
    const at::NoGradGuard guard;
    if (convert) output.copy_(result.view(output.sizes()));
  };
  if (how.fold) {
    const at::Tensor all = at::empty({getSize(), mine}, result.options());
    const auto element = static_cast<int64_t>(result.element_size());
    return start(
        inputs, {output},
        [&] {
          const std::vector<size_t> send = scaled(counts, element);
          const std::vector<size_t> receive(static_cast<size_t>(getSize()), static_cast<size_t>(mine * element));
          return start.communicator().all_to_all_v(from->data(), send, all.data_ptr(), receive, DataType::kU8,
                                                   start.options);
        },
        [from, give_back, to, result, all, kind = how.kind] {
          const at::NoGradGuard guard;
          const at::Tensor folded = fold_blocks(all, kind);
          if (to->copied()) {
            to->copy().copy_(folded);
          } else {
            result.copy_(folded.view(result.sizes()));
          }
          give_back();
        });
  }
  if (how.elements.type == DataType::kF32 && (how.op == kSum || how.op == kAvg)) start.options.codec = codec_;
  return start(
      inputs, {output},
      [&] {
        const int64_t factor = how.elements.per_element;
        if (are_equal(counts)) {
          return start.communicator().reduce_scatter(from->data(), to->data(), static_cast<size_t>(mine * factor),
                                                     how.elements.type, how.op, start.options);
        }
        return start.communicator().reduce_scatter_v(from->data(), to->data(), scaled(counts, factor),
                                                     how.elements.type, how.op, start.options);
      },
      [from, give_back] { give_back(); });
}

WorkPtr ProcessGroupRingfold::reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                                             const c10d::ReduceScatterOptions& options) {
  if (outputs.size() != 1 || inputs.size() != 1 || std::ssize(inputs[0]) != getSize()) {
    refuse("reduce_scatter",
           fmt::format("it takes one output and a list of {} inputs, one for each rank", getSize()));
  }
  return scatter_sums("ringfold:reduce_scatter", OpType::REDUCE_SCATTER, outputs[0], inputs[0], numels(inputs[0]),
                      options);
}

WorkPtr ProcessGroupRingfold::_reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                                   const c10d::ReduceScatterOptions& options) {
  if (input.numel() != output.numel() * getSize()) {
    refuse("reduce_scatter_tensor", fmt::format("an input of {} elements for an output of {} on {} ranks",
                                                input.numel(), output.numel(), getSize()));
  }
  const std::vector<int64_t> counts(static_cast<size_t>(getSize()), output.numel());
  return scatter_sums("ringfold:_reduce_scatter_base", OpType::_REDUCE_SCATTER_BASE, output, {input}, counts,
                      options);
}

WorkPtr ProcessGroupRingfold::reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                              const c10d::ReduceScatterOptions& options) {
  if (outputs.empty() || outputs.size() != inputs.size()) {
    refuse("reduce_scatter_tensor_coalesced", fmt::format("{} outputs and {} inputs", outputs.size(), inputs.size()));
  }
  std::vector<WorkPtr> works;
  for (size_t i = 0; i < outputs.size(); ++i) works.push_back(_reduce_scatter_base(outputs[i], inputs[i], options));
  return last_of(std::move(works));
}

}  // namespace ringfold::pytorch
