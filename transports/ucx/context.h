// What the transports of a process share: UCX's context, that is its view of the devices, and the settings it read.
#pragma once

#include <memory>
#include <string>

#include "ringfold/status.h"
#include "transports/ucx/library.h"

namespace ringfold::transport::ucx {

// Ends with the last of its transports. Any thread.
class Context {
 public:
  // The one of this process, made if there is none.
  static Result<std::shared_ptr<const Context>> shared();
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  const Library& ucx() const { return *ucx_; }
  ucp_context_h get() const { return context_; }

 private:
  Context() = default;
  Status open();

  const Library* ucx_ = nullptr;
  ucp_context_h context_ = nullptr;
};

// "No such device (the last words of UCX)".
std::string words_of(const Library& ucx, ucs_status_t status);

}  // namespace ringfold::transport::ucx
