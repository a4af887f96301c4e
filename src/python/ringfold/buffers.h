// Python's buffers and exceptions as Ringfold's memory and Status.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ringfold/ringfold.hpp"

namespace ringfold::python {

namespace py = pybind11;

// Raises the exception of `status` (ringfold/_errors.py). With the GIL.
[[noreturn]] void raise(const Status& status);
[[noreturn]] void raise_invalid(const std::string& message);

// A contiguous view of an object's memory, which holds the object in place. Made and dropped with the GIL.
class Buffer {
 public:
  // `name`: of the argument, for people. `type`: what the user says its elements are; unset: what the buffer says.
  Buffer(const char* name, const py::handle& object, bool writable, std::optional<DataType> type);
  Buffer(Buffer&& other) noexcept
      : object_(std::move(other.object_)), view_(std::move(other.view_)), type_(other.type_) {}
  ~Buffer() {
    if (view_) PyBuffer_Release(view_.get());
  }

  void* data() const { return view_->buf; }
  size_t count() const { return static_cast<size_t>(view_->len) / size_of(type_); }
  DataType type() const { return type_; }
  const py::object& object() const { return object_; }
  std::vector<py::ssize_t> shape() const { return {view_->shape, view_->shape + view_->ndim}; }

 private:
  py::object object_;
  std::unique_ptr<Py_buffer> view_;
  DataType type_ = DataType::kU8;
};
using Buffers = std::vector<Buffer>;

// A new array like `of`, with this shape. By NumPy, which must be there for that.
py::object new_array(const Buffer& of, const std::vector<py::ssize_t>& shape);

DataType to_type(const std::string& name);
ReduceOp to_op(const std::string& name, std::optional<double> scale);

}  // namespace ringfold::python
