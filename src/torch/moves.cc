// Calls that only move values.
#include "torch/starter.h"

namespace ringfold::pytorch {

// ---- one value for all ----

WorkPtr ProcessGroupRingfold::broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) {
  Starter start(*this, "ringfold:broadcast", OpType::BROADCAST, options.timeout, tensors);
  check_tensors(start.name(), tensors);
  const auto type = moved_as(start.name(), tensors[0].scalar_type());
  const bool root = options.rootRank == getRank();
  auto data = std::make_shared<Stretch>(tensors, root ? Stretch::Use::kValues : Stretch::Use::kResults);
  return start(
      tensors, tensors,
      [&] {
        return start.communicator().broadcast(data->data(), data->data(),
                                              static_cast<size_t>(data->elements() * type.per_element), type.type,
                                              static_cast<int>(options.rootRank), start.options);
      },
      [data, root] {
        if (!root) data->give_back();
      });
}

// ---- everybody's values for all ----

// `outputs` are blocks of `counts` elements, one for each rank, one after another.
WorkPtr ProcessGroupRingfold::gather_all(const char* title, OpType type, const Tensors& outputs,
                                         const Tensors& inputs, const std::vector<int64_t>& counts,
                                         milliseconds timeout) {
  Starter start(*this, title, type, timeout, inputs);
  check_tensors(start.name(), inputs);
  check_tensors(start.name(), outputs);
  check_tensors(start.name(), {inputs[0], outputs[0]});
  auto from = std::make_shared<Stretch>(inputs, Stretch::Use::kValues);
  auto to = std::make_shared<Stretch>(outputs, Stretch::Use::kResults);
  const int64_t mine = counts[static_cast<size_t>(getRank())];
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  if (from->elements() != mine || to->elements() != total) {
    refuse(start.name(),
           fmt::format("an input of {} elements, where the output has {} for this rank", from->elements(), mine));
  }
  const auto elements = moved_as(start.name(), inputs[0].scalar_type());
  return start(
      inputs, outputs,
      [&] {
        if (are_equal(counts)) {
          return start.communicator().all_gather(from->data(), to->data(),
                                                 static_cast<size_t>(mine * elements.per_element), elements.type,
                                                 start.options);
        }
        return start.communicator().all_gather_v(from->data(), to->data(), scaled(counts, elements.per_element),
                                                 elements.type, start.options);
      },
      [from, to] { to->give_back(); });
}

WorkPtr ProcessGroupRingfold::allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                                        const c10d::AllgatherOptions& options) {
  if (inputs.size() != 1 || outputs.size() != 1 || std::ssize(outputs[0]) != getSize()) {
    refuse("all_gather", fmt::format("it takes one input and a list of {} outputs, one for each rank", getSize()));
  }
  return gather_all("ringfold:all_gather", OpType::ALLGATHER, outputs[0], inputs, numels(outputs[0]),
                    options.timeout);
}

WorkPtr ProcessGroupRingfold::_allgather_base(at::Tensor& output, at::Tensor& input,
                                              const c10d::AllgatherOptions& options) {
  if (output.numel() != input.numel() * getSize()) {
    refuse("all_gather_into_tensor", fmt::format("an output of {} elements for an input of {} on {} ranks",
                                                 output.numel(), input.numel(), getSize()));
  }
  const std::vector<int64_t> counts(static_cast<size_t>(getSize()), input.numel());
  return gather_all("ringfold:_all_gather_base", OpType::_ALLGATHER_BASE, {output}, {input}, counts, options.timeout);
}

WorkPtr ProcessGroupRingfold::allgather_coalesced(std::vector<Tensors>& outputs, Tensors& inputs,
                                                  const c10d::AllgatherOptions& options) {
  bool good = std::ssize(outputs) == getSize();
  for (const Tensors& list : outputs) good = good && numels(list) == numels(inputs);
  if (!good) {
    refuse("all_gather_coalesced",
           fmt::format("it takes {} lists of outputs, one for each rank, with the sizes of the inputs", getSize()));
  }
  Tensors all;
  for (const Tensors& list : outputs) all.insert(all.end(), list.begin(), list.end());
  int64_t mine = 0;
  for (int64_t n : numels(inputs)) mine += n;
  const std::vector<int64_t> counts(static_cast<size_t>(getSize()), mine);
  return gather_all("ringfold:all_gather", OpType::ALLGATHER_COALESCED, all, inputs, counts, options.timeout);
}

WorkPtr ProcessGroupRingfold::allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                              const c10d::AllgatherOptions& options) {
  if (outputs.empty() || outputs.size() != inputs.size()) {
    refuse("all_gather_into_tensor_coalesced",
           fmt::format("{} outputs and {} inputs", outputs.size(), inputs.size()));
  }
  std::vector<WorkPtr> works;
  for (size_t i = 0; i < outputs.size(); ++i) works.push_back(_allgather_base(outputs[i], inputs[i], options));
  return last_of(std::move(works));
}

// ---- to and from one rank ----

WorkPtr ProcessGroupRingfold::gather(std::vector<Tensors>& outputs, Tensors& inputs,
                                     const c10d::GatherOptions& options) {
  Starter start(*this, "ringfold:gather", OpType::GATHER, options.timeout, inputs);
  check_tensors(start.name(), inputs);
  const int root = static_cast<int>(options.rootRank);
  const bool here = root == getRank();
  if (inputs.size() != 1) refuse("gather", fmt::format("{} inputs instead of one", inputs.size()));
  if (here ? outputs.size() != 1 || std::ssize(outputs[0]) != getSize() : !outputs.empty()) {
    refuse("gather", fmt::format("the root gives a list of {} outputs, one for each rank; others none", getSize()));
  }
  const Tensors blocks = here ? outputs[0] : Tensors{};
  if (here) {
    check_tensors(start.name(), blocks);
    check_tensors(start.name(), {inputs[0], blocks[0]});
  }
  for (const at::Tensor& block : blocks) {
    if (block.numel() != inputs[0].numel()) {
      refuse("gather", fmt::format("an output of {} elements for an input of {}", block.numel(), inputs[0].numel()));
    }
  }
  const auto elements = moved_as(start.name(), inputs[0].scalar_type());
  auto from = std::make_shared<Stretch>(inputs, Stretch::Use::kValues);
  auto to = here ? std::make_shared<Stretch>(blocks, Stretch::Use::kResults) : std::make_shared<Stretch>();
  return start(
      inputs, blocks,
      [&] {
        return start.communicator().gather(from->data(), to->data(),
                                           static_cast<size_t>(from->elements() * elements.per_element),
                                           elements.type, root, start.options);
      },
      [from, to] { to->give_back(); });
}

WorkPtr ProcessGroupRingfold::scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                                      const c10d::ScatterOptions& options) {
  Starter start(*this, "ringfold:scatter", OpType::SCATTER, options.timeout, outputs);
  check_tensors(start.name(), outputs);
  const int root = static_cast<int>(options.rootRank);
  const bool here = root == getRank();
  if (outputs.size() != 1) refuse("scatter", fmt::format("{} outputs instead of one", outputs.size()));
  if (here ? inputs.size() != 1 || std::ssize(inputs[0]) != getSize() : !inputs.empty()) {
    refuse("scatter", fmt::format("the root gives a list of {} inputs, one for each rank; others none", getSize()));
  }
  const Tensors blocks = here ? inputs[0] : Tensors{};
  if (here) {
    check_tensors(start.name(), blocks);
    check_tensors(start.name(), {outputs[0], blocks[0]});
  }
  for (const at::Tensor& block : blocks) {
    if (block.numel() != outputs[0].numel()) {
      refuse("scatter",
             fmt::format("an input of {} elements for an output of {}", block.numel(), outputs[0].numel()));
    }
  }
  const auto elements = moved_as(start.name(), outputs[0].scalar_type());
  auto from = here ? std::make_shared<Stretch>(blocks, Stretch::Use::kValues) : std::make_shared<Stretch>();
  auto to = std::make_shared<Stretch>(outputs, Stretch::Use::kResults);
  return start(
      here ? blocks : outputs, outputs,
      [&] {
        return start.communicator().scatter(from->data(), to->data(),
                                            static_cast<size_t>(to->elements() * elements.per_element), elements.type,
                                            root, start.options);
      },
      [from, to] { to->give_back(); });
}

// ---- all to all ----

WorkPtr ProcessGroupRingfold::exchange_all(const char* title, OpType type, const Tensors& outputs,
                                           const Tensors& inputs, const std::vector<int64_t>& output_counts,
                                           const std::vector<int64_t>& input_counts, milliseconds timeout) {
  Starter start(*this, title, type, timeout, inputs);
  check_tensors(start.name(), inputs);
  check_tensors(start.name(), outputs);
  check_tensors(start.name(), {inputs[0], outputs[0]});
  const auto elements = moved_as(start.name(), inputs[0].scalar_type());
  auto from = std::make_shared<Stretch>(inputs, Stretch::Use::kValues);
  auto to = std::make_shared<Stretch>(outputs, Stretch::Use::kResults);
  return start(
      inputs, outputs,
      [&] {
        return start.communicator().all_to_all_v(from->data(), scaled(input_counts, elements.per_element), to->data(),
                                                 scaled(output_counts, elements.per_element), elements.type,
                                                 start.options);
      },
      [from, to] { to->give_back(); });
}

namespace {

// Elements for each rank of a tensor that is split along dimension 0.
std::vector<int64_t> split_counts(const char* operation, const at::Tensor& tensor, const std::vector<int64_t>& splits,
                                  int size) {
  const int64_t rows = tensor.dim() == 0 ? 1 : tensor.size(0);
  const int64_t row = rows == 0 ? 0 : tensor.numel() / rows;
  if (splits.empty()) {
    if (rows % size != 0) {
      refuse(operation,
             fmt::format("dimension 0 of size {} does not divide among {} ranks; give split sizes", rows, size));
    }
    return std::vector<int64_t>(static_cast<size_t>(size), rows / size * row);
  }
  int64_t total = 0;
  std::vector<int64_t> counts;
  for (int64_t s : splits) {
    if (s < 0) refuse(operation, fmt::format("a split size of {}", s));
    total += s;
    counts.push_back(s * row);
  }
  if (std::ssize(splits) != size || total != rows) {
    refuse(operation, fmt::format("{} split sizes with sum {} for {} ranks and dimension 0 of size {}", splits.size(),
                                  total, size, rows));
  }
  return counts;
}

}  // namespace

WorkPtr ProcessGroupRingfold::alltoall_base(at::Tensor& output, at::Tensor& input,
                                            std::vector<int64_t>& output_splits, std::vector<int64_t>& input_splits,
                                            const c10d::AllToAllOptions& options) {
  constexpr auto kName = "all_to_all_single";
  return exchange_all("ringfold:all_to_all", OpType::ALLTOALL_BASE, {output}, {input},
                      split_counts(kName, output, output_splits, getSize()),
                      split_counts(kName, input, input_splits, getSize()), options.timeout);
}

WorkPtr ProcessGroupRingfold::alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& options) {
  if (std::ssize(outputs) != getSize() || std::ssize(inputs) != getSize()) {
    refuse("all_to_all",
           fmt::format("{} outputs and {} inputs for {} ranks", outputs.size(), inputs.size(), getSize()));
  }
  return exchange_all("ringfold:all_to_all", OpType::ALLTOALL, outputs, inputs, numels(outputs), numels(inputs),
                      options.timeout);
}

// ---- messages ----

WorkPtr ProcessGroupRingfold::message(const char* title, OpType type, const Tensors& tensors, int peer, int tag) {
  Starter start(*this, title, type, c10d::kUnsetTimeout, tensors);
  check_tensors(start.name(), tensors);
  if (tensors.size() != 1) refuse(start.name(), fmt::format("{} tensors instead of one", tensors.size()));
  const bool send = type == OpType::SEND;
  const auto elements = moved_as(start.name(), tensors[0].scalar_type());
  auto data = std::make_shared<Stretch>(tensors, send ? Stretch::Use::kValues : Stretch::Use::kResults);
  const auto count = static_cast<size_t>(data->elements() * elements.per_element);
  return start(
      tensors, send ? Tensors{} : tensors,
      [&] {
        return send ? start.communicator().send(data->data(), count, elements.type, peer, tag, start.options)
                    : start.communicator().recv(data->data(), count, elements.type, peer, tag, start.options);
      },
      [data, send] {
        if (!send) data->give_back();
      });
}

WorkPtr ProcessGroupRingfold::send(Tensors& tensors, int to, int tag) {
  return message("ringfold:send", OpType::SEND, tensors, to, tag);
}

WorkPtr ProcessGroupRingfold::recv(Tensors& tensors, int from, int tag) {
  return message("ringfold:recv", OpType::RECV, tensors, from, tag);
}

WorkPtr ProcessGroupRingfold::recvAnysource(Tensors& tensors, int tag) {
  return message("ringfold:recvAnySource", OpType::RECVANYSOURCE, tensors, Communicator::kAnySource, tag);
}

// ---- barriers ----

WorkPtr ProcessGroupRingfold::barrier(const c10d::BarrierOptions& options) {
  Starter start(*this, "ringfold:barrier", OpType::BARRIER, options.timeout, {});
  return start({}, {}, [&] { return start.communicator().barrier(start.options); }, {});
}

}  // namespace ringfold::pytorch
