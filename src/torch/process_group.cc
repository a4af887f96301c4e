#include "torch/process_group.h"

#include <Python.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <thread>

namespace ringfold::pytorch {
namespace {

using c10d::OpType;
using std::chrono::milliseconds;

// For the time of a call that may wait, on a thread that may hold Python's lock.
class WithoutGil {
 public:
  WithoutGil() : state_(Py_IsInitialized() != 0 && PyGILState_Check() != 0 ? PyEval_SaveThread() : nullptr) {}
  ~WithoutGil() {
    if (state_ != nullptr) PyEval_RestoreThread(state_);
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

std::string list_of(const std::vector<int>& ranks) {
  std::string text;
  for (int r : ranks) text += (text.empty() ? "" : ", ") + std::to_string(r);
  return text;
}

// All-gather of small records through the store, for the bootstrap.
Exchange through(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size) {
  return [=](const std::string& mine, double timeout_s) -> Result<std::vector<std::string>> {
    auto key_of = [](int r) { return fmt::format("ringfold/card/{}", r); };
    const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_s);
    try {
      store->set(key_of(rank), std::vector<uint8_t>(mine.begin(), mine.end()));
      std::vector<std::string> all;
      for (int r = 0; r < size; ++r) {
        const auto left = std::chrono::duration_cast<milliseconds>(until - std::chrono::steady_clock::now());
        store->wait({key_of(r)}, std::max(left, milliseconds(1)));
        const auto bytes = store->get(key_of(r));
        all.emplace_back(bytes.begin(), bytes.end());
      }
      return all;
    } catch (const std::exception& error) {
      std::vector<int> missing;
      try {
        for (int r = 0; r < size; ++r) {
          if (!store->check({key_of(r)})) missing.push_back(r);
        }
      } catch (const std::exception&) {  // the store itself is gone
        missing.clear();
      }
      if (missing.empty()) return Status(Code::kIo, fmt::format("torch.distributed's store: {}", error.what()));
      return Status(Code::kTimeout,
                    fmt::format("rank{} {} of {} {} not come to torch.distributed's store within {:.3g} s",
                                missing.size() == 1 ? "" : "s", list_of(missing), size,
                                missing.size() == 1 ? "has" : "have", timeout_s));
    }
  };
}

// The communicator of the default group, for groups within it; as long as the default group has it.
std::mutex default_mutex;
std::weak_ptr<Communicator> default_communicator;

std::shared_ptr<Communicator> take(const char* what, Result<Communicator> made) {
  if (!made.ok()) throw Error(what, made.status());
  return std::make_shared<Communicator>(*std::move(made));
}

std::vector<size_t> scaled(const std::vector<int64_t>& counts, int64_t factor) {
  std::vector<size_t> result;
  for (int64_t c : counts) result.push_back(static_cast<size_t>(c * factor));
  return result;
}

bool are_equal(const std::vector<int64_t>& counts) {
  return std::adjacent_find(counts.begin(), counts.end(), std::not_equal_to<>()) == counts.end();
}

std::vector<int64_t> numels(const Tensors& tensors) {
  std::vector<int64_t> result;
  for (const at::Tensor& t : tensors) result.push_back(t.numel());
  return result;
}

Tensors all_of(const std::vector<Tensors>& lists) {
  Tensors all;
  for (const Tensors& list : lists) all.insert(all.end(), list.begin(), list.end());
  return all;
}

}  // namespace

c10::intrusive_ptr<ProcessGroupRingfold> ProcessGroupRingfold::create(const c10::intrusive_ptr<c10d::Store>& store,
                                                                      int rank, int size,
                                                                      const GroupOptions& options) {
  const WithoutGil released;
  std::shared_ptr<Communicator> parent;
  if (!options.global_ranks.empty() && !options.own()) {
    const std::lock_guard lock(default_mutex);
    parent = default_communicator.lock();
  }
  std::shared_ptr<Communicator> made;
  if (parent) {
    const std::vector<int> ranks(options.global_ranks.begin(), options.global_ranks.end());
    made = take("new_group", parent->subset(ranks, options.timeout_s));
  } else {
    ringfold::Options own;
    own.rank = rank;
    own.size = size;
    if (size > 1) own.exchange = through(store, rank, size);
    own.timeout_s = options.timeout_s;
    own.codec = options.codec;
    own.algorithm = options.algorithm;
    own.transport = options.transport;
    own.deterministic = options.deterministic;
    own.background = true;
    made = take("init_process_group", Communicator::init(own));
  }
  if (options.global_ranks.empty()) {
    const std::lock_guard lock(default_mutex);
    default_communicator = made;
  }
  return c10::make_intrusive<ProcessGroupRingfold>(store, rank, size, options, std::move(made));
}

ProcessGroupRingfold::ProcessGroupRingfold(c10::intrusive_ptr<c10d::Store> store, int rank, int size,
                                           const GroupOptions& options, std::shared_ptr<Communicator> communicator)
    : GroupBase(rank, size),
      store_(std::move(store)),
      timeout_s_(options.timeout_s),
      communicator_(std::move(communicator)) {
  if (options.codec.empty()) return;
  auto codec = parse_codec(options.codec);
  if (!codec.ok()) throw Error("Options", codec.status());
  codec_ = *codec;
}

ProcessGroupRingfold::~ProcessGroupRingfold() {
  const WithoutGil released;
  shutdown();
  if (::getpid() == process_) completer_->stop();
}

void ProcessGroupRingfold::shutdown() {
  const WithoutGil released;
  std::shared_ptr<Communicator> last;
  {
    const std::lock_guard lock(mutex_);
    last.swap(communicator_);
  }
  if (::getpid() != process_) {  // a fork of the rank: the connections are its parent's, and it has no threads
    static_cast<void>(new std::shared_ptr<Communicator>(std::move(last)));
    return;
  }
  if (last && getSize() > 1) leave_together(*last);
}

// A rank that is done may still be one that others could hear from, as far as they know: a receive from any source
// ends when somebody leaves. So all leave at about the same time, if they are all about to; nobody waits for long.
void ProcessGroupRingfold::leave_together(Communicator& communicator) {
  constexpr auto kKey = "ringfold/leaving";
  const auto patience = std::min(std::chrono::duration<double>(timeout_s_ / 2), std::chrono::duration<double>(5));
  const auto until = std::chrono::steady_clock::now() + patience;
  auto pause = milliseconds(1);
  try {
    for (int64_t here = store_->add(kKey, 1); here < getSize(); here = store_->add(kKey, 0)) {
      if (!communicator.status().ok() || std::chrono::steady_clock::now() > until) return;
      std::this_thread::sleep_for(pause);
      pause = std::min(pause * 2, milliseconds(20));
    }
  } catch (const std::exception&) {  // whoever kept the store has left
  }
}

void ProcessGroupRingfold::abort_for(const std::string& cause) {
  const WithoutGil released;
  const auto ending = communicator();
  ending->abort(cause);
  // Until all know: if this rank left before, that would be all that the others hear.
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  while (ending->status().ok() && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(milliseconds(1));
  }
}

std::shared_ptr<Communicator> ProcessGroupRingfold::communicator() const {
  const std::lock_guard lock(mutex_);
  if (!communicator_) throw Error("this process group", Status(Code::kAborted, "it was shut down"));
  return communicator_;
}

// What every call has in common.
class ProcessGroupRingfold::Starter {
 public:
  Starter(ProcessGroupRingfold& group, const char* title, OpType type, milliseconds timeout)
      : group_(group), title_(title), type_(type), communicator_(group.communicator()) {
    options.timeout_s = timeout.count() > 0 ? std::chrono::duration<double>(timeout).count() : group.timeout_s_;
  }
  Communicator& communicator() { return *communicator_; }
  // The name of the operation, for messages.
  std::string name() const { return std::string(title_).substr(std::string("ringfold:").size()); }

  // `start` makes the call; `after` brings the results to the tensors.
  template <typename Start>
  WorkPtr operator()(const Tensors& inputs, const Tensors& outputs, const Start& start, std::function<void()> after) {
    auto work = c10::make_intrusive<CallWork>(group_.getRank(), type_, title_, inputs, outputs, group_.completer_);
    work->on_abort = [communicator = std::weak_ptr(communicator_)] {
      if (auto alive = communicator.lock()) alive->abort("the program called Work.abort()");
    };
    ++group_.sequence_;
    work->follow(start(), std::move(after));
    return work;
  }
  CallOptions options;

 private:
  ProcessGroupRingfold& group_;
  const char* title_;
  const OpType type_;
  const std::shared_ptr<Communicator> communicator_;
};

// ---- one value for all ----

WorkPtr ProcessGroupRingfold::broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) {
  Starter start(*this, "ringfold:broadcast", OpType::BROADCAST, options.timeout);
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

// ---- reductions ----

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
    return stretch->copied()
               ? stretch->copy()
               : at::from_blob(stretch->data(), {stretch->elements()}, at::TensorOptions(tensors[0].scalar_type()));
  }
};

// The bytes of a flat tensor: what the bitwise operations move.
size_t bytes_of(const at::Tensor& flat) { return flat.nbytes(); }

}  // namespace

WorkPtr ProcessGroupRingfold::reduce_all(const char* title, OpType type, const Tensors& tensors,
                                         const c10d::ReduceOp& op, milliseconds timeout) {
  Starter start(*this, title, type, timeout);
  check_tensors(start.name(), tensors);
  const auto how = reduced_as(start.name(), tensors[0].scalar_type(), op);
  auto data = std::make_shared<Reduced>(tensors, how);
  if (how.fold) {
    const at::Tensor mine = data->flat();
    const at::Tensor all = at::empty({getSize(), mine.numel()}, mine.options());
    return start(
        tensors, tensors,
        [&] {
          return start.communicator().all_gather(mine.data_ptr(), all.data_ptr(), bytes_of(mine), DataType::kU8,
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
  Starter start(*this, "ringfold:sparse_all_reduce", OpType::ALLREDUCE, options.timeout);
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
  Starter start(*this, "ringfold:all_reduce", OpType::ALLREDUCE, c10d::kUnsetTimeout);
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
  Starter start(*this, "ringfold:reduce", OpType::REDUCE, options.timeout);
  check_tensors(start.name(), tensors);
  if (tensors.size() != 1) refuse("reduce", fmt::format("{} tensors instead of one", tensors.size()));
  const auto how = reduced_as(start.name(), tensors[0].scalar_type(), options.reduceOp);
  const int root = static_cast<int>(options.rootRank);
  const bool here = root == getRank();
  auto data = std::make_shared<Reduced>(tensors, how);
  if (how.fold) {
    const at::Tensor mine = data->flat();
    const at::Tensor all = here ? at::empty({getSize(), mine.numel()}, mine.options()) : at::Tensor();
    return start(
        tensors, tensors,
        [&] {
          return start.communicator().gather(mine.data_ptr(), here ? all.data_ptr() : nullptr, bytes_of(mine),
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
  Starter start(*this, title, type, options.timeout);
  check_tensors(start.name(), inputs);
  check_tensors(start.name(), {output, inputs[0]});
  const int64_t mine = counts[static_cast<size_t>(getRank())];
  if (output.numel() != mine) {
    refuse(start.name(),
           fmt::format("the output has {} elements, and block {} of the input {}", output.numel(), getRank(), mine));
  }
  const auto how = reduced_as(start.name(), output.scalar_type(), options.reduceOp);
  auto from = std::make_shared<Reduced>(inputs, how);
  const bool convert = how.compute != output.scalar_type();
  const at::Tensor result = convert ? at::empty({mine}, at::TensorOptions(how.compute)) : output;
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

namespace {

// Several calls as one work, for what PyTorch hands over in one call: they are complete when all are.
WorkPtr last_of(std::vector<WorkPtr> works) {
  for (size_t i = 0; i + 1 < works.size(); ++i) works[i]->wait();
  return works.back();
}

}  // namespace

WorkPtr ProcessGroupRingfold::reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                              const c10d::ReduceScatterOptions& options) {
  if (outputs.empty() || outputs.size() != inputs.size()) {
    refuse("reduce_scatter_tensor_coalesced", fmt::format("{} outputs and {} inputs", outputs.size(), inputs.size()));
  }
  std::vector<WorkPtr> works;
  for (size_t i = 0; i < outputs.size(); ++i) works.push_back(_reduce_scatter_base(outputs[i], inputs[i], options));
  return last_of(std::move(works));
}

// ---- everybody's values for all ----

// `outputs` are blocks of `counts` elements, one for each rank, one after another.
WorkPtr ProcessGroupRingfold::gather_all(const char* title, OpType type, const Tensors& outputs,
                                         const Tensors& inputs, const std::vector<int64_t>& counts,
                                         milliseconds timeout) {
  Starter start(*this, title, type, timeout);
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
  int64_t mine = 0;
  for (int64_t n : numels(inputs)) mine += n;
  const std::vector<int64_t> counts(static_cast<size_t>(getSize()), mine);
  return gather_all("ringfold:all_gather", OpType::ALLGATHER_COALESCED, all_of(outputs), inputs, counts,
                    options.timeout);
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
  Starter start(*this, "ringfold:gather", OpType::GATHER, options.timeout);
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
  Starter start(*this, "ringfold:scatter", OpType::SCATTER, options.timeout);
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
  Starter start(*this, title, type, timeout);
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
  Starter start(*this, title, type, c10d::kUnsetTimeout);
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
  Starter start(*this, "ringfold:barrier", OpType::BARRIER, options.timeout);
  return start({}, {}, [&] { return start.communicator().barrier(start.options); }, {});
}

// Every rank leaves a mark; rank 0 waits for the marks and says what it found.
void ProcessGroupRingfold::monitoredBarrier(const c10d::BarrierOptions& options, bool wait_all) {
  constexpr auto kName = "monitored_barrier";
  const WithoutGil released;
  const auto timeout = options.timeout.count() >= 0
                           ? options.timeout
                           : std::chrono::duration_cast<milliseconds>(std::chrono::duration<double>(timeout_s_));
  const auto until = std::chrono::steady_clock::now() + timeout;
  // Store::wait() of a FileStore knows whole seconds only.
  auto comes = [&](const std::string& key, milliseconds grace) {
    for (auto pause = milliseconds(1); !store_->check({key}); pause = std::min(pause * 2, milliseconds(20))) {
      if (std::chrono::steady_clock::now() > until + grace) return false;
      std::this_thread::sleep_for(pause);
    }
    return true;
  };
  const std::string place = fmt::format("ringfold/barrier/{}/", barriers_++);
  const std::string verdict_key = place + "verdict";
  store_->set(place + std::to_string(getRank()), {1});
  std::string verdict;
  if (getRank() == 0) {
    std::vector<int> missing;
    for (int r = 1; r < getSize() && (wait_all || missing.empty()); ++r) {
      if (!comes(place + std::to_string(r), milliseconds(0))) missing.push_back(r);
    }
    if (!missing.empty()) {
      verdict = fmt::format("Rank{} {} did not come within {} ms", missing.size() == 1 ? "" : "s", list_of(missing),
                            timeout.count());
    }
    store_->set(verdict_key, std::vector<uint8_t>(verdict.begin(), verdict.end()));
  } else {
    if (comes(verdict_key, milliseconds(1000))) {  // rank 0 may have begun later, and its verdict is worth a moment
      const auto bytes = store_->get(verdict_key);
      verdict.assign(bytes.begin(), bytes.end());
    } else {
      verdict = fmt::format("Rank 0 did not come within {} ms", timeout.count());
    }
  }
  if (!verdict.empty()) throw Error(kName, Status(Code::kTimeout, verdict));
}

}  // namespace ringfold::pytorch
