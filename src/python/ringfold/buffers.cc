#include "python/ringfold/buffers.h"

namespace ringfold::python {

void raise(const Status& status) {
  py::object verdict = py::none();
  if (const Verdict* v = status.verdict(); v != nullptr)
    verdict = py::make_tuple(v->rank, v->host, v->operation, v->sequence, v->epoch, v->cause);
  py::object error = py::module_::import("ringfold._errors")
                         .attr("_make")(static_cast<int>(status.code()), status.message(), verdict);
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
  throw py::error_already_set();
}

void raise_invalid(const std::string& message) { raise(Status(Code::kInvalid, message)); }

namespace {

// The type that a format of the struct module stands for.
std::optional<DataType> type_of(std::string_view format, size_t bytes) {
  if (!format.empty() && (format[0] == '@' || format[0] == '=' || format[0] == '<')) format.remove_prefix(1);
  if (format.size() != 1) return std::nullopt;
  const bool is_signed = std::string_view("bhilqn").find(format[0]) != std::string_view::npos;
  const bool is_unsigned = std::string_view("BHILQN").find(format[0]) != std::string_view::npos;
  if (format[0] == 'e' && bytes == 2) return DataType::kF16;
  if (format[0] == 'f' && bytes == 4) return DataType::kF32;
  if (format[0] == 'd' && bytes == 8) return DataType::kF64;
  if (!is_signed && !is_unsigned) return std::nullopt;
  switch (bytes) {
    case 1: return is_signed ? DataType::kI8 : DataType::kU8;
    case 4: return is_signed ? DataType::kI32 : DataType::kU32;
    case 8: return is_signed ? DataType::kI64 : DataType::kU64;
    default: return std::nullopt;
  }
}

}  // namespace

Buffer::Buffer(const char* name, const py::handle& object, bool writable, std::optional<DataType> type)
    : object_(py::reinterpret_borrow<py::object>(object)) {
  auto view = std::make_unique<Py_buffer>();
  const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
  if (PyObject_GetBuffer(object.ptr(), view.get(), flags) != 0) {
    py::error_already_set why;
    raise_invalid(std::string(name) + " must be a contiguous" + (writable ? ", writable" : "") +
                  " buffer (a NumPy array, bytearray, ...): " + py::str(why.value()).cast<std::string>());
  }
  view_ = std::move(view);
  const std::string format = view_->format == nullptr ? "B" : view_->format;
  const auto item = static_cast<size_t>(view_->itemsize);
  const auto found = type ? type : type_of(format, item);
  if (!found) {
    raise_invalid(
        std::string(name) + " has elements of format '" + format + "' and " + std::to_string(item) +
        " bytes, which is none of Ringfold's types (f64, f32, f16, i8, u8, i32, u32, i64, u64); dtype=\"bf16\" "
        "or another says what they are");
  }
  type_ = *found;
  if ((item != size_of(type_) && item != 1) || static_cast<size_t>(view_->len) % size_of(type_) != 0) {
    raise_invalid(std::string(name) + " has elements of " + std::to_string(item) + " bytes, which are not " +
                  std::string(name_of(type_)));
  }
}

py::object new_array(const Buffer& of, const std::vector<py::ssize_t>& shape) {
  py::module_ numpy;
  try {
    numpy = py::module_::import("numpy");
  } catch (const py::error_already_set&) {
    raise_invalid("without NumPy the argument out is needed");
  }
  const py::object type = py::hasattr(of.object(), "dtype")
                              ? of.object().attr("dtype")
                              : numpy.attr("asarray")(py::memoryview(of.object())).attr("dtype");
  py::tuple sizes(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) sizes[i] = shape[i];
  return numpy.attr("empty")(sizes, type);
}

DataType to_type(const std::string& name) {
  if (const auto type = parse_data_type(name)) return *type;
  raise_invalid("dtype=\"" + name + "\" is none of f64, f32, f16, bf16, i8, u8, i32, u32, i64, u64");
}

ReduceOp to_op(const std::string& name, std::optional<double> scale) {
  const auto kind = parse_reduce_kind(name);
  if (!kind) raise_invalid("op=\"" + name + "\" is none of sum, prod, min, max, avg, scaled_sum");
  if ((*kind == ReduceKind::kScaledSum) != scale.has_value())
    raise_invalid("op=\"scaled_sum\" takes a factor scale=..., and no other op does");
  return scale ? ReduceOp::scaled_sum(*scale) : ReduceOp(*kind);
}

}  // namespace ringfold::python
