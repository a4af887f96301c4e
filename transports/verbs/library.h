// The functions of libibverbs that this transport calls, as one table. They are looked up at run time, so that the
// library works where rdma-core is not installed; and tests put a table of their own in their place (a network in
// the process that fails on order). The calls of the data path (ibv_post_send, ibv_post_recv, ibv_poll_cq,
// ibv_req_notify_cq) are not here: verbs.h makes them through ibv_context::ops, which whoever opens the device fills.
#pragma once

#include <infiniband/verbs.h>
#include <sys/types.h>

#include "ringfold/status.h"

namespace ringfold::verbs {

struct Library {
  ibv_device** (*get_device_list)(int* count);
  void (*free_device_list)(ibv_device** list);
  const char* (*get_device_name)(ibv_device* device);
  ibv_context* (*open_device)(ibv_device* device);
  int (*close_device)(ibv_context* context);
  int (*query_device)(ibv_context* context, ibv_device_attr* attributes);
  int (*query_port)(ibv_context* context, uint8_t port, _compat_ibv_port_attr* attributes);  // zeroed ibv_port_attr
  ssize_t (*query_gid_table)(ibv_context* context, ibv_gid_entry* entries, size_t most, uint32_t flags,
                             size_t entry_bytes);
  ibv_pd* (*alloc_pd)(ibv_context* context);
  int (*dealloc_pd)(ibv_pd* pd);
  ibv_mr* (*reg_mr)(ibv_pd* pd, void* address, size_t bytes, int access);
  int (*dereg_mr)(ibv_mr* mr);
  ibv_comp_channel* (*create_comp_channel)(ibv_context* context);
  int (*destroy_comp_channel)(ibv_comp_channel* channel);
  ibv_cq* (*create_cq)(ibv_context* context, int entries, void* cq_context, ibv_comp_channel* channel, int vector);
  int (*destroy_cq)(ibv_cq* cq);
  int (*get_cq_event)(ibv_comp_channel* channel, ibv_cq** cq, void** cq_context);
  void (*ack_cq_events)(ibv_cq* cq, unsigned count);
  ibv_qp* (*create_qp)(ibv_pd* pd, ibv_qp_init_attr* attributes);
  int (*modify_qp)(ibv_qp* qp, ibv_qp_attr* attributes, int mask);
  int (*destroy_qp)(ibv_qp* qp);
  int (*get_async_event)(ibv_context* context, ibv_async_event* event);
  void (*ack_async_event)(ibv_async_event* event);
  const char* (*wc_status_str)(ibv_wc_status status);
  const char* (*event_type_str)(ibv_event_type event);
  // Null before rdma-core 34.
  ibv_mr* (*reg_dmabuf_mr)(ibv_pd* pd, uint64_t offset, size_t bytes, uint64_t address, int fd, int access);
};

// rdma-core's, loaded at the first call and kept. kUnavailable where it is not installed. Any thread.
Result<const Library*> load();
// What load() gives instead from now on; null: rdma-core's again. For tests of what lies above the transport.
void stand_in(const Library* library);

}  // namespace ringfold::verbs
