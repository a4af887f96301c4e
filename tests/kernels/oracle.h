// What the reducers must compute, written from their contract one element at a time, with none of the kernels' code
// and none of their tricks: 16-bit floats are read and rounded by arithmetic on powers of two in double precision.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/reducer.h"

namespace ringfold::test {

double value_of_half(DataType type, uint16_t bits);   // kF16, kBF16
uint16_t round_to_half(DataType type, double value);  // to nearest, ties to even; NaN is the quiet one
std::vector<unsigned char> expected(DataType type, ReduceKind kind, bool complete, const std::vector<const void*>& in,
                                    size_t elems, const kernels::Post& post);

}  // namespace ringfold::test
