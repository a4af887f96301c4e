#include "kernels/cuda/launch.cuh"

namespace ringfold::kernels::cuda {

CodecKernels find_int5_codec(const Codec& codec) {
  CodecKernels found;
  simt::visit_int<5>(codec, FoundCodec{&found});
  return found;
}

}  // namespace ringfold::kernels::cuda
