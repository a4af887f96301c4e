#include "python/ringfold/work.h"

#include <algorithm>
#include <chrono>

namespace ringfold::python {

void PyComm::close() {
  std::shared_ptr<Communicator> last = std::move(comm_);
  if (last) {
    const py::gil_scoped_release released;
    last.reset();
  }
  // Nothing writes to these any more, unless another thread is inside a call.
  sweep();
}

void PyComm::keep(Work work, Buffers buffers) {
  sweep();
  if (!work.done()) dropped_.emplace_back(std::move(work), std::move(buffers));
}

void PyComm::sweep() {
  dropped_.remove_if([](auto& call) { return call.first.test(); });  // nobody else drives them
}

PyWork::~PyWork() {
  if (!work_.done() && !buffers_.empty()) comm_->keep(work_, std::move(buffers_));
}

py::object PyWork::wait(std::optional<double> timeout) {
  using Clock = std::chrono::steady_clock;
  constexpr double kSlice = 0.1;  // seconds until signals are looked for
  const auto begin = Clock::now();
  while (!work_.done()) {
    const double left = timeout ? *timeout - std::chrono::duration<double>(Clock::now() - begin).count() : kSlice;
    {
      const py::gil_scoped_release released;
      (void)work_.wait_for(std::clamp(left, 0.0, kSlice));
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (left < kSlice && !work_.done() && timeout)
      raise(Status(Code::kTimeout, "the call has not completed within the time that wait was given; it goes on"));
  }
  buffers_.clear();
  if (const Status status = work_.wait(); !status.ok()) raise(status);
  return result_;
}

bool PyWork::test() {
  bool done = false;
  {
    const py::gil_scoped_release released;
    done = work_.test();
  }
  if (done) buffers_.clear();
  return done;
}

}  // namespace ringfold::python
