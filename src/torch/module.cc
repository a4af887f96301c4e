// The extension module behind the Python package ringfold_torch.
#include <pybind11/chrono.h>
#include <torch/python.h>

#include "torch/process_group.h"

namespace py = pybind11;

namespace ringfold::pytorch {
namespace {

py::handle error_type;  // ringfold_torch.Error; lives as long as the interpreter

// ringfold_torch.Error with the parts of the status as attributes.
void raise(const Error& error) {
  py::object instance = error_type(error.what());
  const Verdict* verdict = error.status().verdict();
  instance.attr("code") = std::string(name_of(error.status().code()));
  instance.attr("rank") = verdict != nullptr && verdict->rank >= 0 ? py::object(py::int_(verdict->rank)) : py::none();
  instance.attr("host") = verdict != nullptr ? verdict->host : std::string();
  instance.attr("operation") = verdict != nullptr ? verdict->operation : std::string();
  instance.attr("sequence") = verdict != nullptr ? verdict->sequence : 0;
  instance.attr("cause") = verdict != nullptr ? verdict->cause : error.status().message();
  PyErr_SetObject(error_type.ptr(), instance.ptr());
}

std::optional<Codec> codec_of(const std::optional<std::string>& text) {
  if (!text) return std::nullopt;
  auto codec = parse_codec(*text);
  if (!codec.ok()) throw Error("codec", codec.status());
  return *codec;
}

void check(const char* what, const Status& status) {
  if (!status.ok()) throw Error(what, status);
}

}  // namespace
}  // namespace ringfold::pytorch

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace ringfold;
  using namespace ringfold::pytorch;
  using Group = ProcessGroupRingfold;
  py::module_::import("torch.distributed");  // registers the base class

  error_type =
      PyErr_NewExceptionWithDoc("ringfold_torch.Error",
                                "What a call of a Ringfold process group fails with. `rank` is the culprit, as "
                                "a rank of the group, or None; `code`, `host`, `operation`, `sequence` and "
                                "`cause` say more.",
                                PyExc_RuntimeError, nullptr);
  m.attr("Error") = error_type;
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const Error& error) {
      ringfold::pytorch::raise(error);
    }
  });

  const auto released = py::call_guard<py::gil_scoped_release>();
  py::class_<Group, GroupBase, c10::intrusive_ptr<Group>>(m, "ProcessGroupRingfold")
      .def(
          "compressed_mean",
          [](Group& group, const at::Tensor& tensor, const std::optional<std::string>& codec,
             const std::string& feedback) { return group.compressed_mean(tensor, codec_of(codec), feedback); },
          py::arg("tensor"), py::arg("codec"), py::arg("feedback"), released)
      .def(
          "allgather_into_tensor_coalesced",
          [](Group& group, Tensors outputs, Tensors inputs) {
            return group.allgather_into_tensor_coalesced(outputs, inputs);
          },
          py::arg("outputs"), py::arg("inputs"), released)
      .def(
          "reduce_scatter_tensor_coalesced",
          [](Group& group, Tensors outputs, Tensors inputs, const c10d::ReduceOp& op) {
            c10d::ReduceScatterOptions options;
            options.reduceOp = op;
            return group.reduce_scatter_tensor_coalesced(outputs, inputs, options);
          },
          py::arg("outputs"), py::arg("inputs"), py::arg("op"), released)
      .def(
          "monitored_barrier",
          [](Group& group, const std::optional<std::chrono::milliseconds>& timeout, bool wait_all_ranks) {
            c10d::BarrierOptions options;
            if (timeout) options.timeout = *timeout;
            group.monitoredBarrier(options, wait_all_ranks);
          },
          py::arg("timeout") = py::none(), py::arg("wait_all_ranks") = false, released)
      .def("abort", &Group::abort_for, py::arg("cause") = "the program called abort()", released)
      .def("shutdown", &Group::shutdown, released)
      .def("feedback_names", [](Group& group) { return group.error_feedback().names(); })
      .def("feedback_of", [](Group& group, const std::string& name) { return group.error_feedback().get(name); })
      .def("reset_feedback", [](Group& group, const std::string& name) { group.error_feedback().reset(name); })
      .def("save_feedback", [](Group& group) { return py::bytes(group.error_feedback().save()); })
      .def("load_feedback",
           [](Group& group, const std::string& saved) {
             check("load_state_dict", group.error_feedback().load(saved));
           })
      .def("add_feedback", [](Group& group, const std::string& saved) {
        check("load_state_dict", group.error_feedback().add(saved));
      });

  m.def("abort_all", &Group::abort_all);
  m.def("shutdown_all", &Group::shutdown_all);
  m.def("check_codec", [](const std::string& text) { return to_string(*codec_of(text)); });
  m.def(
      "create",
      [](const c10::intrusive_ptr<c10d::Store>& store, int rank, int size, std::chrono::duration<double> timeout,
         std::vector<int64_t> global_ranks, std::string codec, std::string algorithm, std::string transport,
         bool deterministic) {
        GroupOptions options;
        options.timeout_s = timeout.count();
        options.global_ranks = std::move(global_ranks);
        options.codec = std::move(codec);
        options.algorithm = std::move(algorithm);
        options.transport = std::move(transport);
        options.deterministic = deterministic;
        return Group::create(store, rank, size, options);
      },
      py::arg("store"), py::arg("rank"), py::arg("size"), py::arg("timeout"), py::arg("global_ranks"),
      py::arg("codec"), py::arg("algorithm"), py::arg("transport"), py::arg("deterministic"), released);
}
