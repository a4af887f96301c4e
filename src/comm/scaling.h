// Values times a number, in place: CallOptions::input_factor.
#pragma once

#include <cstddef>

#include "ringfold/types.h"

namespace ringfold::comm {

// Floats are multiplied and rounded once (16-bit floats in f32), integers by the factor's whole part, wrapping.
void multiply(DataType type, std::byte* values, size_t elems, double factor);

}  // namespace ringfold::comm
