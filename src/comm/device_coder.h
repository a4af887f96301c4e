// Codes on a GPU's stream: the kernels of kernels/cuda, or those of a library that stands in for the driver.
#pragma once

#include <string>

#include "device/stream.h"
#include "kernels/cuda/cuda.h"

namespace ringfold::comm {

struct DeviceCoder {
  static constexpr int kMostTerms = kernels::cuda::kMostTerms;

  Codec codec;  // kNone: links carry values
  kernels::Post post;

  // "" or why there is none for this codec.
  std::string why_not() const;
  // As kernels::combine (kernels/coding.h), of memory that the stream's device may touch; `complete`: with `post`.
  Status combine(device::OwnStream& stream, bool complete, const kernels::cuda::Term* terms, int count, size_t elems,
                 const kernels::cuda::Target& target, const kernels::Draw& draw) const;
};

}  // namespace ringfold::comm
