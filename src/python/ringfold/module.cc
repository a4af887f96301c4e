// The extension module ringfold._core; ringfold/__init__.py says what is public, ringfold/_core.pyi documents it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "python/ringfold/work.h"

namespace ringfold::python {
namespace {

using Name = std::optional<std::string>;

Options options_of(std::optional<int> rank, std::optional<int> size, const Name& rendezvous, double timeout,
                   const Name& transport, const Name& algorithm, const Name& key_file, bool deterministic,
                   bool background, const Name& codec, bool open) {
  Options options;
  options.rank = rank.value_or(-1);
  options.size = size.value_or(-1);
  options.rendezvous = rendezvous.value_or("");
  options.timeout_s = timeout;
  options.transport = transport.value_or("");
  options.algorithm = algorithm.value_or("");
  options.key_file = key_file.value_or("");
  options.deterministic = deterministic;
  options.background = background;
  options.codec = codec.value_or("");
  options.open = open;
  return options;
}

// What `call` returns, made without the GIL, or its failure raised.
template <typename Call>
auto unlocked(const Call& call) {
  auto result = [&] {
    const py::gil_scoped_release released;
    return call();
  }();
  if (!result.ok()) raise(result.status());
  return *std::move(result);
}

void check_rank(const Communicator& comm, int rank) {
  if (rank < 0 || rank >= comm.size())
    raise_invalid(std::to_string(rank) + " is not a rank of 0.." + std::to_string(comm.size() - 1));
}

std::optional<Codec> to_codec(const Name& text) {
  if (!text) return std::nullopt;
  auto codec = parse_codec(*text);
  if (!codec.ok()) raise(codec.status());
  return *codec;
}

// A call that explain and its relatives ask about.
struct Question {
  std::shared_ptr<Communicator> comm;
  Collective collective;
  DataType type;
  ReduceOp op;
  std::optional<Codec> codec;
  Question(const Comm& self, const std::string& name, const std::string& dtype, const std::string& how, int root,
           const Name& text)
      : comm(self->get()),
        type(to_type(dtype)),
        op(to_op(how, how == "scaled_sum" ? std::optional(1.0) : std::nullopt)),
        codec(to_codec(text)) {
    const auto known = parse_collective(name);
    if (!known) raise_invalid("\"" + name + "\" is no collective (all_reduce, broadcast, ...)");
    collective = *known;
    check_rank(*comm, root);
  }
};

// Memory from ringfold::allocate as a writable buffer of bytes.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes) {
    auto memory = allocate(bytes);
    if (!memory.ok()) raise(memory.status());
    data_ = *memory;
  }
  Memory(const Memory&) = delete;
  ~Memory() { deallocate(data_); }
  py::buffer_info view() const { return {static_cast<uint8_t*>(data_), static_cast<py::ssize_t>(bytes_)}; }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

// The state of a communicator's codes: a view that keeps the communicator.
struct PyFeedback {
  Comm comm;
  std::shared_ptr<Communicator> inside;
  ErrorFeedback& get() const { return inside->error_feedback(); }
};

void define_feedback(py::module_& module) {
  using py::arg;
  py::class_<PyFeedback>(module, "ErrorFeedback")
      .def("names", [](const PyFeedback& f) { return f.get().names(); })
      .def(
          "get",
          [](const PyFeedback& f, const std::string& name) -> py::object {
            const auto values = f.get().get(name);
            if (values.empty()) return py::none();
            const py::bytes bytes(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
            return py::module_::import("numpy").attr("frombuffer")(bytes, "float32").attr("copy")();
          },
          arg("name"))
      .def(
          "reset",
          [](const PyFeedback& f, const Name& name) { return name ? f.get().reset(*name) : f.get().reset(); },
          arg("name") = py::none())
      .def("save", [](const PyFeedback& f) { return py::bytes(f.get().save()); })
      .def(
          "load",
          [](const PyFeedback& f, const py::bytes& state) {
            if (const Status s = f.get().load(state.cast<std::string>()); !s.ok()) raise(s);
          },
          arg("state"))
      .def(
          "add",
          [](const PyFeedback& f, const py::bytes& state) {
            if (const Status s = f.get().add(state.cast<std::string>()); !s.ok()) raise(s);
          },
          arg("state"));
}

void define_counters(py::module_& module) {
  py::class_<Counters>(module, "Counters")
      .def_readonly("touched_bytes", &Counters::touched_bytes)
      .def_readonly("system_calls", &Counters::system_calls)
      .def_readonly("yields", &Counters::yields)
      .def_readonly("sleeps", &Counters::sleeps)
      .def_readonly("wakeups", &Counters::wakeups);
}

void define_communicator(py::class_<PyComm, Comm>& type) {
  using py::arg;
  const auto none = py::none();
  type.def_property_readonly("rank", [](const Comm& c) { return c->get()->rank(); })
      .def_property_readonly("size", [](const Comm& c) { return c->get()->size(); })
      .def_property_readonly("job_rank", [](const Comm& c) { return c->get()->job_rank(); })
      .def_property_readonly("epoch", [](const Comm& c) { return c->get()->epoch(); })
      .def_property_readonly("closed", [](const Comm& c) { return c->closed(); })
      .def_property_readonly("error_feedback",
                             [](const Comm& c) {
                               return PyFeedback{c, c->get()};
                             })
      .def("close", [](const Comm& c) { c->close(); })
      .def("__enter__", [](const Comm& c) { return c; })
      .def("__exit__",
           [](const Comm& c, const py::object& kind, const py::object&, const py::object&) {
             // Whoever leaves takes along what others have not read yet: so all leave together, unless something is
             // wrong.
             if (kind.is_none() && !c->closed() && c->get()->status().ok())
               run(c, {}, py::none(), false, [](Communicator& inside) { return inside.barrier(); });
             c->close();
           })
      .def("__repr__",
           [](const Comm& c) -> std::string {
             if (c->closed()) return "<ringfold.Communicator, closed>";
             const auto inside = c->get();
             return "<ringfold.Communicator, rank " + std::to_string(inside->rank()) + " of " +
                    std::to_string(inside->size()) + ", epoch " + std::to_string(inside->epoch()) + ">";
           })
      .def("check",
           [](const Comm& c) {
             if (const Status s = c->get()->status(); !s.ok()) raise(s);
           })
      .def(
          "host_of",
          [](const Comm& c, int rank) {
            check_rank(*c->get(), rank);
            return c->get()->host_of(rank);
          },
          arg("rank"))
      .def(
          "transport_to",
          [](const Comm& c, int peer) {
            check_rank(*c->get(), peer);
            const auto inside = c->get();
            const py::gil_scoped_release released;
            return inside->transport_to(peer);
          },
          arg("peer"))
      .def(
          "split",
          [](const Comm& c, int color, int key) -> Comm {
            const auto inside = c->get();
            auto part = unlocked([&] { return inside->split(color, key); });
            return color < 0 ? nullptr : std::make_shared<PyComm>(std::move(part));
          },
          arg("color"), arg("key") = 0)
      .def(
          "subset",
          [](const Comm& c, const std::vector<int>& ranks, double timeout) {
            const auto inside = c->get();
            return std::make_shared<PyComm>(unlocked([&] { return inside->subset(ranks, timeout); }));
          },
          arg("ranks"), arg("timeout") = 0.0)
      .def("reconfigure",
           [](const Comm& c) {
             const auto inside = c->get();
             return std::make_shared<PyComm>(unlocked([&] { return inside->reconfigure(); }));
           })
      .def("waiting", [](const Comm& c) { return c->get()->waiting(); })
      .def(
          "abort",
          [](const Comm& c, const std::string& cause) {
            const auto inside = c->get();
            const py::gil_scoped_release released;
            inside->abort(cause);
          },
          arg("cause"))
      .def("counters", [](const Comm& c) { return c->get()->counters(); })
      .def(
          "tune",
          [](const Comm& c, double seconds) {
            const auto inside = c->get();
            const Status status = [&] {
              const py::gil_scoped_release released;
              return inside->tune(seconds);
            }();
            if (!status.ok()) raise(status);
          },
          arg("seconds") = 2.0)
      .def("tuning", [](const Comm& c) { return c->get()->tuning(); })
      .def(
          "explain",
          [](const Comm& c, const std::string& collective, size_t count, const std::string& dtype,
             const std::string& op, int root, const Name& codec) {
            const Question q(c, collective, dtype, op, root, codec);
            return q.comm->explain(q.collective, count, q.type, q.op, root, q.codec);
          },
          arg("collective"), arg("count"), arg("dtype") = "f32", py::kw_only(), arg("op") = "sum", arg("root") = 0,
          arg("codec") = none)
      .def(
          "algorithm_for",
          [](const Comm& c, const std::string& collective, size_t count, const std::string& dtype,
             const std::string& op, int root, const Name& codec) {
            const Question q(c, collective, dtype, op, root, codec);
            return q.comm->algorithm_for(q.collective, count, q.type, q.op, root, q.codec);
          },
          arg("collective"), arg("count"), arg("dtype") = "f32", py::kw_only(), arg("op") = "sum", arg("root") = 0,
          arg("codec") = none)
      .def(
          "codec_for",
          [](const Comm& c, const std::string& collective, size_t count, const std::string& dtype,
             const std::string& op, int root, const Name& codec) {
            const Question q(c, collective, dtype, op, root, codec);
            return to_string(q.comm->codec_for(q.collective, count, q.type, q.op, root, q.codec));
          },
          arg("collective"), arg("count"), arg("dtype") = "f32", py::kw_only(), arg("op") = "sum", arg("root") = 0,
          arg("codec") = none);
}

void define_work(py::module_& module) {
  using py::arg;
  py::class_<PyWork>(module, "Work")
      .def("wait", &PyWork::wait, arg("timeout") = py::none())
      .def("test", &PyWork::test)
      .def_property_readonly("done", &PyWork::done)
      .def_property_readonly("source", &PyWork::source);
}

// All of `works`, then the first failure in their order, as Work::all has it. In slices, for signals.
py::list wait_all(const py::iterable& works, std::optional<double> timeout) {
  std::vector<py::object> handles;
  std::vector<Work> parts;
  for (const py::handle handle : works) {
    handles.push_back(py::reinterpret_borrow<py::object>(handle));
    parts.push_back(handle.cast<PyWork&>().work());
  }
  PyWork(nullptr, Work::all(std::move(parts)), {}, py::none()).wait(timeout);
  py::list results;
  for (const auto& handle : handles) results.append(handle.cast<PyWork&>().wait(std::nullopt));
  return results;
}

#define RF_OPTIONS                                                                                  \
  arg("rendezvous") = none, arg("timeout") = 0.0, arg("transport") = none, arg("algorithm") = none, \
  arg("key_file") = none, arg("deterministic") = false, arg("background") = false, arg("codec") = none

PYBIND11_MODULE(_core, module) {
  using py::arg;
  const auto none = py::none();
  module.attr("__version__") = version();
  module.attr("ANY_SOURCE") = Communicator::kAnySource;
  py::class_<PyComm, Comm> communicator(module, "Communicator");
  define_work(module);
  define_counters(module);
  define_feedback(module);
  define_communicator(communicator);
  define_calls(communicator, module);
  module.def(
      "init",
      [](std::optional<int> rank, std::optional<int> size, const Name& rendezvous, double timeout,
         const Name& transport, const Name& algorithm, const Name& key_file, bool deterministic, bool background,
         const Name& codec, bool open) {
        const Options options = options_of(rank, size, rendezvous, timeout, transport, algorithm, key_file,
                                           deterministic, background, codec, open);
        return std::make_shared<PyComm>(unlocked([&] { return Communicator::init(options); }));
      },
      py::kw_only(), arg("rank") = none, arg("size") = none, RF_OPTIONS, arg("open") = false);
  module.def(
      "init_local",
      [](int ranks, const Name& rendezvous, double timeout, const Name& transport, const Name& algorithm,
         const Name& key_file, bool deterministic, bool background, const Name& codec) {
        const Options options = options_of({}, {}, rendezvous, timeout, transport, algorithm, key_file, deterministic,
                                           background, codec, false);
        std::vector<Comm> all;
        for (auto& comm : unlocked([&] { return Communicator::init_local(ranks, options); }))
          all.push_back(std::make_shared<PyComm>(std::move(comm)));
        return all;
      },
      arg("ranks"), py::kw_only(), RF_OPTIONS);
  module.def("wait_all", &wait_all, arg("works"), arg("timeout") = none);
  py::class_<Memory>(module, "_Memory", py::buffer_protocol()).def_buffer(&Memory::view);
  module.def(
      "allocate",
      [](const py::object& shape, const py::object& dtype) {
        const auto numpy = py::module_::import("numpy");
        const py::object type = numpy.attr("dtype")(dtype);
        const auto elems = numpy.attr("prod")(shape, arg("dtype") = "int64").cast<int64_t>();
        const auto item = type.attr("itemsize").cast<int64_t>();
        if (elems < 0 || (item > 0 && elems > std::numeric_limits<int64_t>::max() / item))
          raise_invalid("allocate: no array has this shape");
        const py::object memory = py::cast(std::make_unique<Memory>(static_cast<size_t>(elems * item)));
        return numpy.attr("frombuffer")(memory, type, elems).attr("reshape")(shape);
      },
      arg("shape"), arg("dtype") = "float32");
  module.def(
      "encoded_bytes",
      [](const std::string& codec, uint64_t elems) { return encoded_bytes(*to_codec(codec), elems); }, arg("codec"),
      arg("elems"));
  module.def(
      "error_bound", [](const std::string& codec) { return error_bound(*to_codec(codec)); }, arg("codec"));
}

}  // namespace
}  // namespace ringfold::python
