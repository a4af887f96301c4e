#include "kernels/cuda/launch.cuh"

namespace ringfold::kernels::cuda {

Reducer find_half_reducer(DataType type, ReduceKind kind) {
  Reducer found;
  simt::visit_half(type, kind, false, FoundFold{&found.fold});
  simt::visit_half(type, kind, true, FoundFold{&found.fold_complete});
  return found;
}

}  // namespace ringfold::kernels::cuda
