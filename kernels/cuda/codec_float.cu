#include "kernels/cuda/launch.cuh"

namespace ringfold::kernels::cuda {

CodecKernels find_float_codec(const Codec& codec) {
  CodecKernels found;
  simt::visit_small_float(codec, FoundCodec{&found});
  return found;
}

}  // namespace ringfold::kernels::cuda
