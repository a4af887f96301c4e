// What the calls of a process group have in common.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "torch/process_group.h"

namespace ringfold::pytorch {

using c10d::OpType;
using std::chrono::milliseconds;

// Starts one call.
class ProcessGroupRingfold::Starter {
 public:
  // `tensors` are some of those that the call is on, for their device.
  Starter(ProcessGroupRingfold& group, const char* title, OpType type, milliseconds timeout, const Tensors& tensors)
      : group_(group),
        title_(title),
        type_(type),
        communicator_(group.communicator()),
        on_stream_(group.streams_, tensors,
                   type == OpType::SEND || type == OpType::RECV || type == OpType::RECVANYSOURCE) {
    options.timeout_s = timeout.count() > 0 ? std::chrono::duration<double>(timeout).count() : group.timeout_s_;
    options.stream = on_stream_.handle();
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
    if (options.stream == nullptr) {
      work->follow(start(), std::move(after));
      return work;
    }
    ringfold::Work call = start();
    if (after) after();  // comes after the call on the stream; copies nobody asks for, if that fails
    on_stream_.keep(inputs);
    on_stream_.keep(outputs);
    work->follow(std::move(call), on_stream_.mark());
    return work;
  }
  // What else the call reads, on the device of its tensors: not given to others before the group's stream has read
  // it.
  void keep(const at::Tensor& tensor) const {
    if (tensor.defined() && !tensor.is_cpu()) on_stream_.keep({tensor});
  }
  CallOptions options;

 private:
  ProcessGroupRingfold& group_;
  const char* title_;
  const OpType type_;
  const std::shared_ptr<Communicator> communicator_;
  const OnStream on_stream_;
};

inline std::vector<size_t> scaled(const std::vector<int64_t>& counts, int64_t factor) {
  std::vector<size_t> result;
  for (int64_t c : counts) result.push_back(static_cast<size_t>(c * factor));
  return result;
}

inline bool are_equal(const std::vector<int64_t>& counts) {
  return std::adjacent_find(counts.begin(), counts.end(), std::not_equal_to<>()) == counts.end();
}

inline std::vector<int64_t> numels(const Tensors& tensors) {
  std::vector<int64_t> result;
  for (const at::Tensor& t : tensors) result.push_back(t.numel());
  return result;
}

// Several calls as one work, for what PyTorch hands over in one call: they are complete when all are.
inline WorkPtr last_of(std::vector<WorkPtr> works) {
  for (size_t i = 0; i + 1 < works.size(); ++i) works[i]->wait();
  return works.back();
}

}  // namespace ringfold::pytorch
