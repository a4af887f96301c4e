// The calls of ringfold.Communicator: which buffers they take, and which they make where there is no `out`.
#include <pybind11/stl.h>

#include <functional>
#include <numeric>

#include "python/ringfold/work.h"

namespace ringfold::python {
namespace {

using Name = std::optional<std::string>;
using Shape = std::vector<py::ssize_t>;
using Counts = std::vector<size_t>;

// What calls have in common beside their buffers.
struct Common {
  CallOptions options;
  std::string feedback;
  Common(const Name& codec, const Name& tensor, double timeout) {
    options.timeout_s = timeout;
    if (codec) {
      auto parsed = parse_codec(*codec);
      if (!parsed.ok()) raise(parsed.status());
      options.codec = *parsed;
    }
    feedback = tensor.value_or("");
  }
  CallOptions get() const {
    CallOptions with = options;
    with.feedback = feedback;
    return with;
  }
};

std::optional<DataType> type_of(const Name& dtype) { return dtype ? std::optional(to_type(*dtype)) : std::nullopt; }

void same_type(const Buffer& a, const Buffer& b) {
  if (a.type() == b.type()) return;
  raise_invalid("the buffers have different types: " + std::string(name_of(a.type())) + " and " +
                std::string(name_of(b.type())));
}

void check_count(const char* name, const Buffer& buffer, size_t expected) {
  if (buffer.count() == expected) return;
  raise_invalid(std::string(name) + " has " + std::to_string(buffer.count()) + " elements, but this call takes " +
                std::to_string(expected));
}

// `out` as it was given, or a new array of `shape`.
Buffer output(const py::object& out, const Buffer& input, const Shape& shape, const Name& dtype) {
  Buffer buffer("out", out.is_none() ? new_array(input, shape) : out, true, dtype ? type_of(dtype) : std::nullopt);
  same_type(input, buffer);
  return buffer;
}

Shape with_ranks(const Buffer& block, int ranks) {
  Shape shape = block.shape();
  shape.insert(shape.begin(), ranks);
  return shape;
}

// The shape of one of `ranks` equal blocks: the first dimension is divided, or else all is flat.
Shape divided(const Buffer& all, int ranks, const char* call) {
  Shape shape = all.shape();
  if (shape.empty() || all.count() % static_cast<size_t>(ranks) != 0) {
    raise_invalid(std::string(call) + ": " + std::to_string(all.count()) + " elements are not " +
                  std::to_string(ranks) + " equal blocks");
  }
  if (shape[0] == ranks && shape.size() > 1) {
    shape.erase(shape.begin());
  } else if (shape[0] % ranks == 0) {
    shape[0] /= ranks;
  } else {
    shape = {static_cast<py::ssize_t>(all.count()) / ranks};
  }
  return shape;
}

size_t total(const Counts& counts) { return std::accumulate(counts.begin(), counts.end(), size_t{0}); }

void check_ranks(const Counts& counts, int ranks) {
  if (counts.size() != static_cast<size_t>(ranks))
    raise_invalid(std::to_string(counts.size()) + " counts for " + std::to_string(ranks) + " ranks");
}

template <typename... B>
Buffers held(B&&... buffers) {
  Buffers all;
  (all.push_back(std::move(buffers)), ...);
  return all;
}

// all_reduce and reduce: in place, or to `out`.
py::object reduce_like(const Comm& comm, const py::object& array, const py::object& out, const std::string& op,
                       std::optional<double> scale, std::optional<int> root, const Name& dtype, const Common& common,
                       bool async_op) {
  const ReduceOp how = to_op(op, scale);
  const bool mine = !root || *root == comm->get()->rank();
  Buffer in("array", array, out.is_none() && mine, type_of(dtype));
  const void* from = in.data();
  const size_t count = in.count();
  const DataType type = in.type();
  void* to = in.data();
  py::object result = mine ? (out.is_none() ? array : out) : py::object(py::none());
  Buffers buffers = held(std::move(in));
  if (!out.is_none() && mine) {
    buffers.emplace_back("out", out, true, type_of(dtype));
    same_type(buffers[0], buffers[1]);
    check_count("out", buffers[1], count);
    to = buffers[1].data();
  }
  return run(comm, std::move(buffers), result, async_op, [&](Communicator& c) {
    return root ? c.reduce(from, to, count, type, how, *root, common.get())
                : c.all_reduce(from, to, count, type, how, common.get());
  });
}

// Calls from one buffer to another, once both are there.
using Transfer = std::function<Work(Communicator&, const Buffer& in, const Buffer& out)>;
py::object transfer(const Comm& comm, Buffer in, Buffer out, bool async_op, const Transfer& call) {
  py::object result = out.object();
  Buffers buffers = held(std::move(in), std::move(out));
  // The vector moves into the handle; what it points to stays.
  const Buffer* pair = buffers.data();
  return run(comm, std::move(buffers), result, async_op, [&](Communicator& c) { return call(c, pair[0], pair[1]); });
}

py::object reduce_scatter(const Comm& comm, const py::object& array, const py::object& out, const std::string& op,
                          std::optional<double> scale, const Name& dtype, const Common& common, bool async_op) {
  const ReduceOp how = to_op(op, scale);
  Buffer in("array", array, false, type_of(dtype));
  const int n = comm->get()->size();
  Buffer to = output(out, in, divided(in, n, "reduce_scatter"), dtype);
  check_count("out", to, in.count() / static_cast<size_t>(n));
  return transfer(comm, std::move(in), std::move(to), async_op,
                  [&](Communicator& c, const Buffer& i, const Buffer& o) {
                    return c.reduce_scatter(i.data(), o.data(), o.count(), o.type(), how, common.get());
                  });
}

py::object all_gather(const Comm& comm, const py::object& array, const py::object& out, const Name& dtype,
                      const Common& common, bool async_op) {
  Buffer in("array", array, false, type_of(dtype));
  const int n = comm->get()->size();
  Buffer to = output(out, in, with_ranks(in, n), dtype);
  check_count("out", to, in.count() * static_cast<size_t>(n));
  return transfer(comm, std::move(in), std::move(to), async_op,
                  [&](Communicator& c, const Buffer& i, const Buffer& o) {
                    return c.all_gather(i.data(), o.data(), i.count(), i.type(), common.get());
                  });
}

py::object broadcast(const Comm& comm, const py::object& array, int root, const Name& dtype, const Common& common,
                     bool async_op) {
  Buffer buffer("array", array, comm->get()->rank() != root, type_of(dtype));
  void* data = buffer.data();
  const size_t count = buffer.count();
  const DataType type = buffer.type();
  return run(comm, held(std::move(buffer)), array, async_op,
             [&](Communicator& c) { return c.broadcast(data, data, count, type, root, common.get()); });
}

py::object gather(const Comm& comm, const py::object& array, int root, const py::object& out, const Name& dtype,
                  const Common& common, bool async_op) {
  Buffer in("array", array, false, type_of(dtype));
  const int n = comm->get()->size();
  if (comm->get()->rank() == root) {
    Buffer to = output(out, in, with_ranks(in, n), dtype);
    check_count("out", to, in.count() * static_cast<size_t>(n));
    return transfer(comm, std::move(in), std::move(to), async_op,
                    [&](Communicator& c, const Buffer& i, const Buffer& o) {
                      return c.gather(i.data(), o.data(), i.count(), i.type(), root, common.get());
                    });
  }
  const void* data = in.data();
  const size_t count = in.count();
  const DataType type = in.type();
  return run(comm, held(std::move(in)), py::none(), async_op,
             [&](Communicator& c) { return c.gather(data, nullptr, count, type, root, common.get()); });
}

py::object scatter(const Comm& comm, const py::object& out, int root, const py::object& array, const Name& dtype,
                   const Common& common, bool async_op) {
  Buffer to("out", out, true, type_of(dtype));
  if (comm->get()->rank() == root) {
    Buffer in("array", array, false, type_of(dtype));
    same_type(in, to);
    check_count("array", in, to.count() * static_cast<size_t>(comm->get()->size()));
    return transfer(comm, std::move(in), std::move(to), async_op,
                    [&](Communicator& c, const Buffer& i, const Buffer& o) {
                      return c.scatter(i.data(), o.data(), o.count(), o.type(), root, common.get());
                    });
  }
  void* data = to.data();
  const size_t count = to.count();
  const DataType type = to.type();
  return run(comm, held(std::move(to)), out, async_op,
             [&](Communicator& c) { return c.scatter(nullptr, data, count, type, root, common.get()); });
}

py::object all_to_all(const Comm& comm, const py::object& array, const py::object& out, const Name& dtype,
                      const Common& common, bool async_op) {
  Buffer in("array", array, false, type_of(dtype));
  const int n = comm->get()->size();
  (void)divided(in, n, "all_to_all");
  Buffer to = output(out, in, in.shape(), dtype);
  check_count("out", to, in.count());
  return transfer(
      comm, std::move(in), std::move(to), async_op, [&](Communicator& c, const Buffer& i, const Buffer& o) {
        return c.all_to_all(i.data(), o.data(), i.count() / static_cast<size_t>(n), i.type(), common.get());
      });
}

py::object all_gather_v(const Comm& comm, const py::object& array, const Counts& counts, const py::object& out,
                        const Name& dtype, const Common& common, bool async_op) {
  Buffer in("array", array, false, type_of(dtype));
  check_ranks(counts, comm->get()->size());
  check_count("array", in, counts[static_cast<size_t>(comm->get()->rank())]);
  Buffer to = output(out, in, {static_cast<py::ssize_t>(total(counts))}, dtype);
  check_count("out", to, total(counts));
  return transfer(comm, std::move(in), std::move(to), async_op,
                  [&](Communicator& c, const Buffer& i, const Buffer& o) {
                    return c.all_gather_v(i.data(), o.data(), counts, i.type(), common.get());
                  });
}

py::object reduce_scatter_v(const Comm& comm, const py::object& array, const Counts& counts, const py::object& out,
                            const std::string& op, std::optional<double> scale, const Name& dtype,
                            const Common& common, bool async_op) {
  const ReduceOp how = to_op(op, scale);
  Buffer in("array", array, false, type_of(dtype));
  check_ranks(counts, comm->get()->size());
  check_count("array", in, total(counts));
  const size_t mine = counts[static_cast<size_t>(comm->get()->rank())];
  Buffer to = output(out, in, {static_cast<py::ssize_t>(mine)}, dtype);
  check_count("out", to, mine);
  return transfer(comm, std::move(in), std::move(to), async_op,
                  [&](Communicator& c, const Buffer& i, const Buffer& o) {
                    return c.reduce_scatter_v(i.data(), o.data(), counts, i.type(), how, common.get());
                  });
}

py::object all_to_all_v(const Comm& comm, const py::object& array, const Counts& send_counts,
                        const Counts& receive_counts, const py::object& out, const Name& dtype, const Common& common,
                        bool async_op) {
  Buffer in("array", array, false, type_of(dtype));
  check_ranks(send_counts, comm->get()->size());
  check_ranks(receive_counts, comm->get()->size());
  check_count("array", in, total(send_counts));
  Buffer to = output(out, in, {static_cast<py::ssize_t>(total(receive_counts))}, dtype);
  check_count("out", to, total(receive_counts));
  return transfer(comm, std::move(in), std::move(to), async_op,
                  [&](Communicator& c, const Buffer& i, const Buffer& o) {
                    return c.all_to_all_v(i.data(), send_counts, o.data(), receive_counts, i.type(), common.get());
                  });
}

py::object send(const Comm& comm, const py::object& array, int peer, int64_t tag, const Name& dtype,
                const Common& common, bool async_op) {
  Buffer buffer("array", array, false, type_of(dtype));
  const void* data = buffer.data();
  const size_t count = buffer.count();
  const DataType type = buffer.type();
  return run(comm, held(std::move(buffer)), py::none(), async_op,
             [&](Communicator& c) { return c.send(data, count, type, peer, tag, common.get()); });
}

py::object recv(const Comm& comm, const py::object& array, int peer, int64_t tag, const Name& dtype,
                const Common& common, bool async_op) {
  Buffer buffer("array", array, true, type_of(dtype));
  void* data = buffer.data();
  const size_t count = buffer.count();
  const DataType type = buffer.type();
  return run(comm, held(std::move(buffer)), array, async_op,
             [&](Communicator& c) { return c.recv(data, count, type, peer, tag, common.get()); });
}

py::object send_recv(const Comm& comm, const py::object& array, int to, const py::object& out, int source,
                     int64_t tag, const Name& dtype, const Common& common, bool async_op) {
  Buffer in("array", array, false, type_of(dtype)), target("out", out, true, type_of(dtype));
  same_type(in, target);
  return transfer(
      comm, std::move(in), std::move(target), async_op, [&](Communicator& c, const Buffer& i, const Buffer& o) {
        return c.send_recv(i.data(), i.count(), to, o.data(), o.count(), source, i.type(), tag, common.get());
      });
}

// ---- persistent calls ----

struct PyPersistent {
  PyPersistent(Comm c, Persistent p, Buffers b, py::object r)
      : comm(std::move(c)), call(std::move(p)), buffers(std::move(b)), result(std::move(r)) {}
  PyPersistent(const PyPersistent&) = delete;
  Comm comm;
  Persistent call;
  Buffers buffers;
  py::object result;
};

py::object start(const PyPersistent& persistent, bool async_op) {
  // Views of its own: the call may outlive the persistent one.
  Buffers buffers;
  for (const Buffer& b : persistent.buffers) buffers.emplace_back("array", b.object(), false, b.type());
  Persistent call = persistent.call;
  return run(persistent.comm, std::move(buffers), persistent.result, async_op,
             [&](Communicator&) { return call.start(); });
}

using Make = std::function<Result<Persistent>(Communicator&, const Buffer& in, const Buffer& out)>;
std::unique_ptr<PyPersistent> persist(const Comm& comm, Buffer in, Buffer out, const Make& make) {
  const auto inside = comm->get();
  auto made = make(*inside, in, out);
  if (!made.ok()) raise(made.status());
  py::object result = out.object();
  return std::make_unique<PyPersistent>(comm, *std::move(made), held(std::move(in), std::move(out)),
                                        std::move(result));
}

}  // namespace

void define_calls(py::class_<PyComm, Comm>& type, py::module_& module) {
  using py::arg;
  const auto none = py::none();
  // The keywords that end every call.
#define RF_COMMON arg("dtype") = none, arg("codec") = none, arg("timeout") = 0.0, arg("async_op") = false

  type.def(
      "all_reduce",
      [](const Comm& c, const py::object& array, const py::object& out, const std::string& op,
         std::optional<double> scale, const Name& feedback, const Name& dtype, const Name& codec, double timeout,
         bool async_op) {
        return reduce_like(c, array, out, op, scale, std::nullopt, dtype, Common(codec, feedback, timeout), async_op);
      },
      arg("array"), arg("out") = none, py::kw_only(), arg("op") = "sum", arg("scale") = none, arg("feedback") = none,
      RF_COMMON);
  type.def(
      "reduce",
      [](const Comm& c, const py::object& array, int root, const py::object& out, const std::string& op,
         std::optional<double> scale, const Name& dtype, const Name& codec, double timeout, bool async_op) {
        return reduce_like(c, array, out, op, scale, root, dtype, Common(codec, {}, timeout), async_op);
      },
      arg("array"), arg("root"), arg("out") = none, py::kw_only(), arg("op") = "sum", arg("scale") = none, RF_COMMON);
  type.def(
      "reduce_scatter",
      [](const Comm& c, const py::object& array, const py::object& out, const std::string& op,
         std::optional<double> scale, const Name& feedback, const Name& dtype, const Name& codec, double timeout,
         bool async_op) {
        return reduce_scatter(c, array, out, op, scale, dtype, Common(codec, feedback, timeout), async_op);
      },
      arg("array"), arg("out") = none, py::kw_only(), arg("op") = "sum", arg("scale") = none, arg("feedback") = none,
      RF_COMMON);
  type.def(
      "all_gather",
      [](const Comm& c, const py::object& array, const py::object& out, const Name& dtype, const Name& codec,
         double timeout,
         bool async_op) { return all_gather(c, array, out, dtype, Common(codec, {}, timeout), async_op); },
      arg("array"), arg("out") = none, py::kw_only(), RF_COMMON);
  type.def(
      "broadcast",
      [](const Comm& c, const py::object& array, int root, const Name& dtype, const Name& codec, double timeout,
         bool async_op) { return broadcast(c, array, root, dtype, Common(codec, {}, timeout), async_op); },
      arg("array"), arg("root"), py::kw_only(), RF_COMMON);
  type.def(
      "gather",
      [](const Comm& c, const py::object& array, int root, const py::object& out, const Name& dtype,
         const Name& codec, double timeout,
         bool async_op) { return gather(c, array, root, out, dtype, Common(codec, {}, timeout), async_op); },
      arg("array"), arg("root"), arg("out") = none, py::kw_only(), RF_COMMON);
  type.def(
      "scatter",
      [](const Comm& c, const py::object& out, int root, const py::object& array, const Name& dtype,
         const Name& codec, double timeout,
         bool async_op) { return scatter(c, out, root, array, dtype, Common(codec, {}, timeout), async_op); },
      arg("out"), arg("root"), arg("array") = none, py::kw_only(), RF_COMMON);
  type.def(
      "all_to_all",
      [](const Comm& c, const py::object& array, const py::object& out, const Name& dtype, const Name& codec,
         double timeout,
         bool async_op) { return all_to_all(c, array, out, dtype, Common(codec, {}, timeout), async_op); },
      arg("array"), arg("out") = none, py::kw_only(), RF_COMMON);
  type.def(
      "all_gather_v",
      [](const Comm& c, const py::object& array, const Counts& counts, const py::object& out, const Name& dtype,
         const Name& codec, double timeout,
         bool async_op) { return all_gather_v(c, array, counts, out, dtype, Common(codec, {}, timeout), async_op); },
      arg("array"), arg("counts"), arg("out") = none, py::kw_only(), RF_COMMON);
  type.def(
      "reduce_scatter_v",
      [](const Comm& c, const py::object& array, const Counts& counts, const py::object& out, const std::string& op,
         std::optional<double> scale, const Name& dtype, const Name& codec, double timeout, bool async_op) {
        return reduce_scatter_v(c, array, counts, out, op, scale, dtype, Common(codec, {}, timeout), async_op);
      },
      arg("array"), arg("counts"), arg("out") = none, py::kw_only(), arg("op") = "sum", arg("scale") = none,
      RF_COMMON);
  type.def(
      "all_to_all_v",
      [](const Comm& c, const py::object& array, const Counts& send_counts, const Counts& receive_counts,
         const py::object& out, const Name& dtype, const Name& codec, double timeout, bool async_op) {
        return all_to_all_v(c, array, send_counts, receive_counts, out, dtype, Common(codec, {}, timeout), async_op);
      },
      arg("array"), arg("send_counts"), arg("receive_counts"), arg("out") = none, py::kw_only(), RF_COMMON);
  type.def(
      "barrier",
      [](const Comm& comm, double timeout, bool async_op) {
        return run(comm, {}, py::none(), async_op,
                   [&](Communicator& c) { return c.barrier({.timeout_s = timeout}); });
      },
      py::kw_only(), arg("timeout") = 0.0, arg("async_op") = false);
  type.def(
      "send",
      [](const Comm& c, const py::object& array, int peer, int64_t tag, const Name& dtype, const Name& codec,
         double timeout,
         bool async_op) { return send(c, array, peer, tag, dtype, Common(codec, {}, timeout), async_op); },
      arg("array"), arg("peer"), arg("tag") = 0, py::kw_only(), RF_COMMON);
  type.def(
      "recv",
      [](const Comm& c, const py::object& array, int peer, int64_t tag, const Name& dtype, const Name& codec,
         double timeout,
         bool async_op) { return recv(c, array, peer, tag, dtype, Common(codec, {}, timeout), async_op); },
      arg("array"), arg("peer") = Communicator::kAnySource, arg("tag") = 0, py::kw_only(), RF_COMMON);
  type.def(
      "send_recv",
      [](const Comm& c, const py::object& array, int to, const py::object& out, int source, int64_t tag,
         const Name& dtype, const Name& codec, double timeout, bool async_op) {
        return send_recv(c, array, to, out, source, tag, dtype, Common(codec, {}, timeout), async_op);
      },
      arg("array"), arg("to"), arg("out"), arg("source"), arg("tag") = 0, py::kw_only(), RF_COMMON);
#undef RF_COMMON

  py::class_<PyPersistent>(module, "Persistent").def("start", &start, py::kw_only(), arg("async_op") = false);
#define RF_PERSISTENT arg("dtype") = none, arg("codec") = none, arg("timeout") = 0.0
  type.def(
      "persistent_all_reduce",
      [](const Comm& c, const py::object& array, const py::object& out, const std::string& op,
         std::optional<double> scale, const Name& feedback, const Name& dtype, const Name& codec, double timeout) {
        const Common common(codec, feedback, timeout);
        const ReduceOp how = to_op(op, scale);
        Buffer in("array", array, out.is_none(), type_of(dtype));
        Buffer to("out", out.is_none() ? array : out, true, type_of(dtype));
        same_type(in, to);
        check_count("out", to, in.count());
        return persist(c, std::move(in), std::move(to), [&](Communicator& self, const Buffer& i, const Buffer& o) {
          return self.persistent_all_reduce(i.data(), o.data(), i.count(), i.type(), how, common.get());
        });
      },
      arg("array"), arg("out") = none, py::kw_only(), arg("op") = "sum", arg("scale") = none, arg("feedback") = none,
      RF_PERSISTENT);
  type.def(
      "persistent_reduce_scatter",
      [](const Comm& c, const py::object& array, const py::object& out, const std::string& op,
         std::optional<double> scale, const Name& feedback, const Name& dtype, const Name& codec, double timeout) {
        const Common common(codec, feedback, timeout);
        const ReduceOp how = to_op(op, scale);
        Buffer in("array", array, false, type_of(dtype));
        const int n = c->get()->size();
        Buffer to = output(out, in, divided(in, n, "reduce_scatter"), dtype);
        check_count("out", to, in.count() / static_cast<size_t>(n));
        return persist(c, std::move(in), std::move(to), [&](Communicator& self, const Buffer& i, const Buffer& o) {
          return self.persistent_reduce_scatter(i.data(), o.data(), o.count(), i.type(), how, common.get());
        });
      },
      arg("array"), arg("out") = none, py::kw_only(), arg("op") = "sum", arg("scale") = none, arg("feedback") = none,
      RF_PERSISTENT);
  type.def(
      "persistent_all_gather",
      [](const Comm& c, const py::object& array, const py::object& out, const Name& dtype, const Name& codec,
         double timeout) {
        const Common common(codec, {}, timeout);
        Buffer in("array", array, false, type_of(dtype));
        const int n = c->get()->size();
        Buffer to = output(out, in, with_ranks(in, n), dtype);
        check_count("out", to, in.count() * static_cast<size_t>(n));
        return persist(c, std::move(in), std::move(to), [&](Communicator& self, const Buffer& i, const Buffer& o) {
          return self.persistent_all_gather(i.data(), o.data(), i.count(), i.type(), common.get());
        });
      },
      arg("array"), arg("out") = none, py::kw_only(), RF_PERSISTENT);
  type.def(
      "persistent_broadcast",
      [](const Comm& c, const py::object& array, int root, const Name& dtype, const Name& codec, double timeout) {
        const Common common(codec, {}, timeout);
        const bool writes = c->get()->rank() != root;
        Buffer in("array", array, writes, type_of(dtype)), to("array", array, writes, type_of(dtype));
        return persist(c, std::move(in), std::move(to), [&](Communicator& self, const Buffer& i, const Buffer& o) {
          return self.persistent_broadcast(i.data(), o.data(), i.count(), i.type(), root, common.get());
        });
      },
      arg("array"), arg("root"), py::kw_only(), RF_PERSISTENT);
#undef RF_PERSISTENT
}

}  // namespace ringfold::python
