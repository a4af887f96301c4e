#include "comm/device_coder.h"

#include <fmt/format.h>

namespace ringfold::comm {

std::string DeviceCoder::why_not() const {
  if (device::driver() == nullptr) return device::why_none();
  if (device::driver()->stand_in_combine != nullptr) return "";
  if (const std::string& why = kernels::cuda::why_no_gpu(); !why.empty()) return why;
  if (kernels::cuda::find_codec(codec).combine != nullptr) return "";
  return fmt::format("no kernel for codes of {}", to_string(codec));
}

Status DeviceCoder::combine(device::OwnStream& stream, bool complete, const kernels::cuda::Term* terms, int count,
                            size_t elems, const kernels::cuda::Target& target, const kernels::Draw& draw) const {
  const device::Current current(stream.context());
  RINGFOLD_TRY(current.status());
  const kernels::Post* const after = complete ? &post : nullptr;
  if (auto* stand_in = device::driver()->stand_in_combine; stand_in != nullptr) {
    return device::check(stand_in(&codec, terms, count, elems, after, &target, draw.key, draw.first, stream.handle()),
                         "combine");
  }
  const int error =
      kernels::cuda::find_codec(codec).combine(codec, terms, count, elems, after, target, draw, stream.handle());
  if (error == 0) return {};
  return {Code::kIo, fmt::format("codes of {} on the GPU: {}", to_string(codec), kernels::cuda::error_text(error))};
}

}  // namespace ringfold::comm
