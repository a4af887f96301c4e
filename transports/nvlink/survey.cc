#include "transports/nvlink/survey.h"

#include "transports/nvlink/multicast.h"

namespace ringfold::nvlink {

Survey survey() {
  Survey found;
  found.none = why_not_shared();
  if (!found.none.empty()) return found;
  int count = 0;
  Status s = device::check(device::driver()->device_count(&count), "cuDeviceGetCount");
  if (s.ok() && count == 0) s = {Code::kUnavailable, "the CUDA driver sees no GPU"};
  for (int ordinal = 0; s.ok() && ordinal < count; ++ordinal) {
    auto gpu = Gpu::of(ordinal);
    s = gpu.status();
    if (gpu.ok())
      found.rows.push_back({.gpu = *gpu,
                            .why_not = why_not_shared(*gpu),
                            .why_no_multicast = why_not_multicast(*gpu),
                            .reaches = {},
                            .why_no_reach = {}});
  }
  if (!s.ok()) return {.none = s.message(), .rows = {}};
  for (auto& from : found.rows) {
    for (const auto& to : found.rows) {
      if (from.gpu.uuid == to.gpu.uuid) continue;
      const std::string why = why_not_reached(from.gpu, to.gpu);
      if (why.empty()) {
        from.reaches.push_back(to.gpu.ordinal);
      } else {
        from.why_no_reach.push_back(why);
      }
    }
  }
  return found;
}

}  // namespace ringfold::nvlink
