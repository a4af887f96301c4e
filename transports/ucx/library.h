// libucp and libucs, loaded at run time: one table of the functions that are used.
#pragma once

#include <ucp/api/ucp.h>

#include <string>

#include "ringfold/status.h"

namespace ringfold::transport::ucx {

#define RF_UCP_FUNCTIONS(X)         \
  X(ucp_get_version_string)         \
  X(ucp_config_read)                \
  X(ucp_config_modify)              \
  X(ucp_config_release)             \
  X(ucp_init_version)               \
  X(ucp_cleanup)                    \
  X(ucp_worker_create)              \
  X(ucp_worker_destroy)             \
  X(ucp_worker_get_address)         \
  X(ucp_worker_release_address)     \
  X(ucp_worker_get_efd)             \
  X(ucp_worker_arm)                 \
  X(ucp_worker_progress)            \
  X(ucp_worker_set_am_recv_handler) \
  X(ucp_ep_create)                  \
  X(ucp_ep_close_nbx)               \
  X(ucp_ep_flush_nbx)               \
  X(ucp_ep_print_info)              \
  X(ucp_am_send_nbx)                \
  X(ucp_am_recv_data_nbx)           \
  X(ucp_am_data_release)            \
  X(ucp_request_check_status)       \
  X(ucp_request_free)

struct Library {
#define RF_DECLARE(name) decltype(&::name) name = nullptr;
  RF_UCP_FUNCTIONS(RF_DECLARE)
#undef RF_DECLARE
  decltype(&::ucs_status_string) ucs_status_string = nullptr;
};

// Loaded at the first call and for good. Any thread.
Result<const Library*> library();

// While one of these lives on a thread, what UCX has to say at level warn or error on it is kept, not printed: the
// transport reports it with the failure that it explains. (UCX's default is to print on standard output.)
class Listening {
 public:
  Listening() { ++depth_; }
  ~Listening() { --depth_; }
  Listening(const Listening&) = delete;
  Listening& operator=(const Listening&) = delete;
  static std::string& words();  // the last ones of this thread; "" when there were none since they were taken
  static bool here() { return depth_ > 0; }

 private:
  static inline constinit thread_local int depth_ = 0;
};

}  // namespace ringfold::transport::ucx
