// --device: where a model computes, if not in the strategy's memory on the host. Costs some of libtorch's headers.
#pragma once

#include <c10/core/Device.h>

#include <optional>

#include "ringfold/communicator.h"
#include "sync/bucket.h"
#include "train/args.h"

namespace ringfold::train {

// Of this rank. Nothing: the host, with the strategy's memory as the model's. kUnavailable, with what is missing,
// where libtorch or the machine has no such device; kInvalid for what is no device, or does not go with `args`.
Result<std::optional<c10::Device>> device_of(const Args& args, int rank);

// Gradients in one tensor on a device.
std::shared_ptr<sync::DeviceGradients> gradients_on(c10::Device device);
// Until all that was given to the device is done.
void wait_for(c10::Device device);

}  // namespace ringfold::train
