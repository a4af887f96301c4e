#include "kernels/cuda/launch.cuh"

namespace ringfold::kernels::cuda {

CodecKernels find_other_codec(const Codec& codec) {
  CodecKernels found;
  simt::visit_other(codec, FoundCodec{&found});
  return found;
}

}  // namespace ringfold::kernels::cuda
