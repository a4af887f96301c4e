#include "transports/verbs/library.h"

#include <fmt/format.h>

#include <atomic>

#include "base/loaded.h"

namespace ringfold::verbs {
namespace {

constexpr const char* kFile = "libibverbs.so.1";

Result<Library> look_up() {
  base::Loaded library(kFile);
  if (!library.ok()) {
    return Status(Code::kUnavailable, fmt::format("{} cannot be loaded ({}): install rdma-core (Debian: "
                                                  "libibverbs1, ibverbs-providers)",
                                                  kFile, library.why()));
  }
  Library l{};
  library.find(l.get_device_list, "ibv_get_device_list");
  library.find(l.free_device_list, "ibv_free_device_list");
  library.find(l.get_device_name, "ibv_get_device_name");
  library.find(l.open_device, "ibv_open_device");
  library.find(l.close_device, "ibv_close_device");
  library.find(l.query_device, "ibv_query_device");
  library.find(l.query_port, "ibv_query_port");
  library.find(l.query_gid_table, "_ibv_query_gid_table");
  library.find(l.alloc_pd, "ibv_alloc_pd");
  library.find(l.dealloc_pd, "ibv_dealloc_pd");
  library.find(l.reg_mr, "ibv_reg_mr");
  library.find(l.dereg_mr, "ibv_dereg_mr");
  library.find(l.create_comp_channel, "ibv_create_comp_channel");
  library.find(l.destroy_comp_channel, "ibv_destroy_comp_channel");
  library.find(l.create_cq, "ibv_create_cq");
  library.find(l.destroy_cq, "ibv_destroy_cq");
  library.find(l.get_cq_event, "ibv_get_cq_event");
  library.find(l.ack_cq_events, "ibv_ack_cq_events");
  library.find(l.create_qp, "ibv_create_qp");
  library.find(l.modify_qp, "ibv_modify_qp");
  library.find(l.destroy_qp, "ibv_destroy_qp");
  library.find(l.get_async_event, "ibv_get_async_event");
  library.find(l.ack_async_event, "ibv_ack_async_event");
  library.find(l.wc_status_str, "ibv_wc_status_str");
  library.find(l.event_type_str, "ibv_event_type_str");
  library.find_if_there(l.reg_dmabuf_mr, "ibv_reg_dmabuf_mr");
  if (!library.missing().empty()) {
    return Status(Code::kUnavailable,
                  fmt::format("{} has no {}: rdma-core 32 or newer is needed", kFile, library.missing()));
  }
  return l;
}

std::atomic<const Library*> substitute{nullptr};

}  // namespace

void stand_in(const Library* library) { substitute = library; }

Result<const Library*> load() {
  if (const Library* instead = substitute) return instead;
  static const Result<Library> library = look_up();
  if (!library.ok()) return library.status();
  return &library.value();
}

}  // namespace ringfold::verbs
