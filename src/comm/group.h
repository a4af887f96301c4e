// The inside of a Group: what its calls on streams share.
#pragma once

#include <memory>
#include <vector>

#include "device/stream.h"
#include "ringfold/communicator.h"

namespace ringfold {

class Group::Impl {
 public:
  struct OnStream {
    device::Context context;
    device::Stream stream;
    std::shared_ptr<device::Moment> begin;  // of all its calls
    std::vector<Work> works;
  };
  // That of a stream; made at the first call. Until the next one.
  Result<OnStream*> on(device::Context context, device::Stream stream);

  std::vector<Work> works;
  std::vector<OnStream> streams;
};

}  // namespace ringfold
