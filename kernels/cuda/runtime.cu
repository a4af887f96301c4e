// What there is to run on, and copies.
#include <cstdio>

#include "kernels/cuda/launch.cuh"

namespace ringfold::kernels::cuda {
namespace {

__global__ void probe_kernel() {}

std::string find_out() {
  int driver = 0, devices = 0;
  // Without a driver this gives 0 and no error.
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    (void)cudaGetLastError();
    return "this machine has no CUDA driver (libcuda.so.1)";
  }
  const cudaError_t error = cudaGetDeviceCount(&devices);
  (void)cudaGetLastError();
  if (error == cudaErrorInsufficientDriver) {
    return "the CUDA driver supports CUDA " + std::to_string(driver / 1000) + "." +
           std::to_string(driver % 1000 / 10) + ", older than this build's " + std::to_string(CUDART_VERSION / 1000) +
           "." + std::to_string(CUDART_VERSION % 1000 / 10);
  }
  if (error != cudaSuccess && error != cudaErrorNoDevice) return std::string("CUDA: ") + cudaGetErrorString(error);
  if (devices == 0) return "the CUDA driver finds no GPU";
  // Is there code for it?
  cudaFuncAttributes attributes;
  const cudaError_t loads = cudaFuncGetAttributes(&attributes, probe_kernel);
  (void)cudaGetLastError();
  if (loads != cudaSuccess)
    return std::string("this build's kernels do not load on the GPU: ") + cudaGetErrorString(loads);
  return "";
}

}  // namespace

const std::string& why_no_gpu() {
  static const std::string kReason = find_out();
  return kReason;
}

std::string describe_gpu() {
  if (!why_no_gpu().empty()) return "";
  int device = 0, driver = 0;
  cudaDeviceProp properties;
  cudaDriverGetVersion(&driver);
  if (cudaGetDevice(&device) != cudaSuccess || cudaGetDeviceProperties(&properties, device) != cudaSuccess) return "";
  char text[512];
  std::snprintf(text, sizeof(text), "%s, %d SMs, %.0f GB, compute capability %d.%d, driver for CUDA %d.%d",
                properties.name, properties.multiProcessorCount, static_cast<double>(properties.totalGlobalMem) / 1e9,
                properties.major, properties.minor, driver / 1000, driver % 1000 / 10);
  return text;
}

std::string error_text(int error) {
  const auto code = static_cast<cudaError_t>(error);
  return std::string(cudaGetErrorName(code)) + ": " + cudaGetErrorString(code);
}

int copy(void* dst, const void* src, size_t bytes, Stream stream) {
  if (bytes == 0) return 0;
  simt::FoldArgs args{};
  args.out = dst;
  args.in[0] = src;
  args.inputs = 1;
  args.elems = bytes;
  simt::set_alignment(args, 1);
  const size_t work = args.quads / (simt::kThreads * 4) + (bytes - 16 * args.quads) / simt::kThreads + 1;
  return launch(fold_kernel<simt::Integer<uint8_t>, simt::Sum, false, 1>, work, args, stream);
}

Reducer find_reducer(DataType type, ReduceKind kind) {
  if (!why_no_gpu().empty()) return {};
  if (!is_float(type)) return find_integer_reducer(type, kind);
  return size_of(type) == 2 ? find_half_reducer(type, kind) : find_float_reducer(type, kind);
}

CodecKernels find_codec(const Codec& codec) {
  if (!why_no_gpu().empty()) return {};
  switch (codec.kind) {
    case CodecKind::kInt8: return find_int8_codec(codec);
    case CodecKind::kInt6: return find_int6_codec(codec);
    case CodecKind::kInt5: return find_int5_codec(codec);
    case CodecKind::kInt4: return find_int4_codec(codec);
    case CodecKind::kE4M3:
    case CodecKind::kE5M2:
    case CodecKind::kMXFP8:
    case CodecKind::kMXFP4:
    case CodecKind::kNVFP4: return find_float_codec(codec);
    default: return find_other_codec(codec);
  }
}

}  // namespace ringfold::kernels::cuda
