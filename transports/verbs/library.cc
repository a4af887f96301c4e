#include "transports/verbs/library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <optional>

namespace ringfold::verbs {
namespace {

constexpr const char* kFile = "libibverbs.so.1";

Result<Library> look_up() {
  // Never closed: it has loaded drivers, and threads of theirs may run.
  void* handle = dlopen(kFile, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    return Status(Code::kUnavailable, fmt::format("{} cannot be loaded ({}): install rdma-core (Debian: "
                                                  "libibverbs1, ibverbs-providers)",
                                                  kFile, dlerror()));
  }
  Library l{};
  const char* missing = nullptr;
  auto find = [&](auto*& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    if (function == nullptr && missing == nullptr) missing = name;
  };
  find(l.get_device_list, "ibv_get_device_list");
  find(l.free_device_list, "ibv_free_device_list");
  find(l.get_device_name, "ibv_get_device_name");
  find(l.open_device, "ibv_open_device");
  find(l.close_device, "ibv_close_device");
  find(l.query_device, "ibv_query_device");
  find(l.query_port, "ibv_query_port");
  find(l.query_gid_table, "_ibv_query_gid_table");
  find(l.alloc_pd, "ibv_alloc_pd");
  find(l.dealloc_pd, "ibv_dealloc_pd");
  find(l.reg_mr, "ibv_reg_mr");
  find(l.dereg_mr, "ibv_dereg_mr");
  find(l.create_comp_channel, "ibv_create_comp_channel");
  find(l.destroy_comp_channel, "ibv_destroy_comp_channel");
  find(l.create_cq, "ibv_create_cq");
  find(l.destroy_cq, "ibv_destroy_cq");
  find(l.get_cq_event, "ibv_get_cq_event");
  find(l.ack_cq_events, "ibv_ack_cq_events");
  find(l.create_qp, "ibv_create_qp");
  find(l.modify_qp, "ibv_modify_qp");
  find(l.destroy_qp, "ibv_destroy_qp");
  find(l.get_async_event, "ibv_get_async_event");
  find(l.ack_async_event, "ibv_ack_async_event");
  find(l.wc_status_str, "ibv_wc_status_str");
  find(l.event_type_str, "ibv_event_type_str");
  if (missing != nullptr) {
    return Status(Code::kUnavailable, fmt::format("{} has no {}: rdma-core 32 or newer is needed", kFile, missing));
  }
  return l;
}

}  // namespace

Result<const Library*> load() {
  static const Result<Library> library = look_up();
  if (!library.ok()) return library.status();
  return &library.value();
}

}  // namespace ringfold::verbs
