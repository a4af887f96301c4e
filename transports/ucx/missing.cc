// In the place of the transport where UCX's headers were not there at build time.
#include "transports/ucx/ucx.h"

namespace ringfold::transport::ucx {
namespace {
constexpr char kWhy[] =
    "this Ringfold was built without UCX: build it where UCX's headers are (libucx-dev), with -Ducx=enabled";
}

Result<std::unique_ptr<Transport>> make(int, int, uint64_t, uint32_t, const Options&) {
  return Status(Code::kUnavailable, kWhy);
}
Presence presence() { return {false, kWhy}; }
std::vector<Setting> settings() { return {}; }
std::vector<Remark> remarks() { return {}; }

}  // namespace ringfold::transport::ucx
