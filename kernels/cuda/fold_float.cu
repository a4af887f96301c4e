#include "kernels/cuda/launch.cuh"

namespace ringfold::kernels::cuda {

Reducer find_float_reducer(DataType type, ReduceKind kind) {
  Reducer found;
  simt::visit_float(type, kind, false, FoundFold{&found.fold});
  simt::visit_float(type, kind, true, FoundFold{&found.fold_complete});
  return found;
}

}  // namespace ringfold::kernels::cuda
