#include "comm/device_reducer.h"

#include <fmt/format.h>

namespace ringfold::comm {

std::string DeviceReducer::why_not() const {
  if (device::driver() == nullptr) return device::why_none();
  if (device::driver()->stand_in_fold != nullptr) return "";
  if (const std::string& why = kernels::cuda::why_no_gpu(); !why.empty()) return why;
  if (kernels::cuda::find_reducer(type, kind).fold != nullptr) return "";
  return fmt::format("no kernel for {} of {}", name_of(kind), name_of(type));
}

Status DeviceReducer::fold(device::OwnStream& stream, bool complete, void* out, const void* const* in, int inputs,
                           size_t elems) const {
  const device::Current current(stream.context());
  RINGFOLD_TRY(current.status());
  if (auto* stand_in = device::driver()->stand_in_fold; stand_in != nullptr) {
    return device::check(stand_in(static_cast<int>(type), static_cast<int>(kind), complete, out, in, inputs, elems,
                                  post.factor, post.divisor, stream.handle()),
                         "fold");
  }
  const auto reducer = kernels::cuda::find_reducer(type, kind);
  const int error = (complete ? reducer.fold_complete : reducer.fold)(out, in, inputs, elems, post, stream.handle());
  if (error == 0) return {};
  return {Code::kIo,
          fmt::format("{} of {} on the GPU: {}", name_of(kind), name_of(type), kernels::cuda::error_text(error))};
}

}  // namespace ringfold::comm
