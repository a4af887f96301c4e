// What stands behind ringfold.Communicator, Work and Persistent in Python.
#pragma once

#include <list>

#include "python/ringfold/buffers.h"

namespace ringfold::python {

// Everything with the GIL, but where it says otherwise.
class PyComm : public std::enable_shared_from_this<PyComm> {
 public:
  explicit PyComm(Communicator comm) : comm_(std::make_shared<Communicator>(std::move(comm))) {}
  PyComm(const PyComm&) = delete;
  ~PyComm() { close(); }

  // Shared with whoever is inside a call, on another thread, when the communicator is closed.
  std::shared_ptr<Communicator> get() const {
    if (!comm_) raise_invalid("the communicator is closed");
    return comm_;
  }
  bool closed() const { return !comm_; }
  void close();

  // Buffers of a call whose Work was dropped: kept until it is done.
  void keep(Work work, Buffers buffers);
  // Gives the buffers of those that are done back.
  void sweep();

 private:
  std::shared_ptr<Communicator> comm_;
  std::list<std::pair<Work, Buffers>> dropped_;
};
using Comm = std::shared_ptr<PyComm>;

class PyWork {
 public:
  PyWork(Comm comm, Work work, Buffers buffers, py::object result)
      : comm_(std::move(comm)), work_(std::move(work)), buffers_(std::move(buffers)), result_(std::move(result)) {}
  PyWork(const PyWork&) = delete;
  ~PyWork();

  // Waits with the GIL released; looks for signals now and then. The result, or raises. `timeout` in seconds: raises
  // TimeoutError then, and the call goes on.
  py::object wait(std::optional<double> timeout);
  bool test();
  bool done() const { return work_.done(); }
  int source() const { return work_.source(); }
  Work work() const { return work_; }

 private:
  Comm comm_;
  Work work_;
  Buffers buffers_;
  py::object result_;
};

// Starts a call by `start(communicator)`, which runs without the GIL: a Work, or what its wait() returns.
template <typename Start>
py::object run(const Comm& comm, Buffers buffers, py::object result, bool async_op, const Start& start) {
  comm->sweep();
  Work work = [&] {
    const auto inside = comm->get();
    const py::gil_scoped_release released;
    return start(*inside);
  }();
  auto handle = std::make_unique<PyWork>(comm, std::move(work), std::move(buffers), std::move(result));
  if (async_op && !(handle->done() && !handle->work().wait().ok())) return py::cast(std::move(handle));
  return handle->wait(std::nullopt);
}

void define_calls(py::class_<PyComm, Comm>& type, py::module_& module);

}  // namespace ringfold::python
