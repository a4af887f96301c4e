// Of builds without CUDA.
#include "kernels/cuda/all_reduce.h"
#include "kernels/cuda/cuda.h"

namespace ringfold::kernels::cuda {

namespace {
constexpr int kNotBuilt = 999;  // cudaErrorUnknown
}

const std::string& why_no_gpu() {
  static const std::string kReason = "this build has no CUDA: nvcc was not found, or -Dcuda=disabled";
  return kReason;
}
std::string describe_gpu() { return ""; }
std::string error_text(int error) { return error == 0 ? "no error" : why_no_gpu(); }
int copy(void*, const void*, size_t bytes, Stream) { return bytes == 0 ? 0 : kNotBuilt; }
Reducer find_reducer(DataType, ReduceKind) { return {}; }
int one_shot(DataType, ReduceKind, const simt::OneShotArgs*, int, int, Stream) { return kNotBuilt; }
int two_shot(DataType, ReduceKind, const simt::TwoShotArgs*, int, int, int, Stream) { return kNotBuilt; }
int multicast(DataType, bool, const simt::MulticastArgs*, int, Stream) { return kNotBuilt; }
int most_blocks(int) { return 0; }
CodecKernels find_codec(const Codec&) { return {}; }

}  // namespace ringfold::kernels::cuda
