// Reductions on a GPU's stream: the kernels of kernels/cuda, or those of a library that stands in for the driver.
#pragma once

#include <string>

#include "device/stream.h"
#include "kernels/cuda/cuda.h"

namespace ringfold::comm {

struct DeviceReducer {
  static constexpr int kMostInputs = kernels::cuda::kMostInputs;

  DataType type = DataType::kF32;
  ReduceKind kind = ReduceKind::kSum;
  kernels::Post post;

  // "" or why there is none for this type and operation.
  std::string why_not() const;
  // As Reducer::fold and fold_complete (kernels/reducer.h), of memory that the stream's device may touch.
  Status fold(device::OwnStream& stream, bool complete, void* out, const void* const* in, int inputs,
              size_t elems) const;
};

}  // namespace ringfold::comm
