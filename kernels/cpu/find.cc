#include "kernels/cpu/find.h"

namespace ringfold::kernels {

Reducer find_cpu_reducer(DataType type, ReduceKind kind) {
  return is_float(type) ? find_float_reducer(type, kind) : find_integer_reducer(type, kind);
}

}  // namespace ringfold::kernels
