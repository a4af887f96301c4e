// The two families of CPU reducers, each for the best instruction set; nulls for a type of the other family.
#pragma once

#include "kernels/reducer.h"

namespace ringfold::kernels {

Reducer find_float_reducer(DataType type, ReduceKind kind);
Reducer find_integer_reducer(DataType type, ReduceKind kind);

}  // namespace ringfold::kernels
