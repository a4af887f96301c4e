// Kernels around the bodies of kernels/simt, and how many blocks they are launched with.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.cuh"
#include "kernels/simt/select.h"

namespace ringfold::kernels::cuda {

template <class N, class Op, bool kPost, int kInputs>
__global__ void __launch_bounds__(simt::kThreads) fold_kernel(const __grid_constant__ simt::FoldArgs args) {
  simt::DeviceBlock block(nullptr);
  simt::fold<N, Op, kPost, kInputs>(block, args);
}

template <class C, bool kCareful, bool kEncode, bool kBack>
__global__ void __launch_bounds__(simt::kThreads) combine_kernel(const __grid_constant__ simt::CombineArgs args) {
  constexpr size_t kWords = (kCareful ? C::kCarefulScratch : C::kScratch) / 4;
  __shared__ uint32_t scratch[kWords * (simt::kThreads / 32)];
  simt::DeviceBlock block(scratch, kWords);
  simt::combine<C, kCareful, kEncode, kBack>(block, args);
}

// Enough blocks for `work` blocks' worth, but no more than run at a time: the bodies stride.
template <class Kernel>
unsigned blocks_for(Kernel kernel, size_t work) {
  static const int kResident = [&] {
    int device = 0, processors = 1, each = 1;
    if (cudaGetDevice(&device) != cudaSuccess) return 1;
    cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, simt::kThreads, 0);
    return processors * (each > 0 ? each : 1);
  }();
  const size_t most = static_cast<size_t>(kResident);
  return static_cast<unsigned>(work < 1 ? 1 : work < most ? work : most);
}

template <class Kernel, class Args>
int launch(Kernel kernel, size_t work, const Args& args, Stream stream) {
  kernel<<<blocks_for(kernel, work), simt::kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  return cudaGetLastError();
}

// --- Reductions

template <class N, class Op, bool kPost>
int fold(void* out, const void* const* in, int inputs, size_t elems, const Post& post, Stream stream) {
  using Bits = typename N::Bits;
  if (inputs < 1 || inputs > kMostInputs) return cudaErrorInvalidValue;
  if (elems == 0) return 0;
  if (inputs == 1 && !kPost) return out == in[0] ? 0 : copy(out, in[0], elems * sizeof(Bits), stream);
  simt::FoldArgs args{};
  args.out = out;
  for (int k = 0; k < inputs; ++k) args.in[k] = in[k];
  args.inputs = inputs;
  args.elems = elems;
  args.factor = post.factor;
  args.divisor = post.divisor;
  simt::set_alignment(args, sizeof(Bits));
  const size_t work =
      args.quads / (simt::kThreads * 4) + (args.elems - args.quads * (16 / sizeof(Bits))) / simt::kThreads + 1;
  // What training does all day has its loads unrolled for each number of inputs.
  if constexpr (std::is_same_v<Op, simt::Sum> && sizeof(Bits) <= 4 && simt::kFloating<typename N::Computed>) {
    switch (inputs) {
      case 2: return launch(fold_kernel<N, Op, kPost, 2>, work, args, stream);
      case 3: return launch(fold_kernel<N, Op, kPost, 3>, work, args, stream);
      case 4: return launch(fold_kernel<N, Op, kPost, 4>, work, args, stream);
      case 5: return launch(fold_kernel<N, Op, kPost, 5>, work, args, stream);
      case 6: return launch(fold_kernel<N, Op, kPost, 6>, work, args, stream);
      case 7: return launch(fold_kernel<N, Op, kPost, 7>, work, args, stream);
      case 8: return launch(fold_kernel<N, Op, kPost, 8>, work, args, stream);
      default: break;
    }
  }
  return launch(fold_kernel<N, Op, kPost, 0>, work, args, stream);
}

struct FoundFold {
  ReduceFn* to;
  template <class N, class Op, class Post>
  void operator()(simt::Tag<N>, simt::Tag<Op>, Post) const {
    *to = fold<N, Op, Post::value>;
  }
};

// --- Codecs

// Whole groups by the fast kernel, what is left by the careful one. Where there is little to do, that one does all: a
// second launch takes longer.
template <class C, bool kEncode, bool kBack>
int launch_combine(simt::CombineArgs& args, Stream stream) {
  constexpr size_t kFew = 64;
  const size_t groups = (args.elems + simt::kGroup - 1) / simt::kGroup;
  size_t fast = simt::fast_groups(args, C::kAlign, kEncode && C::kStochastic);
  if (fast != groups && groups <= kFew) fast = 0;
  const auto work = [](size_t count) { return (count + simt::kThreads / 32 - 1) / (simt::kThreads / 32); };
  int error = 0;
  args.begin = 0;
  args.end = fast;
  if (fast != 0) error = launch(combine_kernel<C, false, kEncode, kBack>, work(fast), args, stream);
  args.begin = fast;
  args.end = groups;
  if (fast != groups && error == 0)
    error = launch(combine_kernel<C, true, kEncode, kBack>, work(groups - fast), args, stream);
  return error;
}

// C encodes, D decodes: the same but for the rounding.
template <class C, class D>
int combine_as(const Codec& codec, const Term* terms, int count, size_t elems, const Post* post, const Target& target,
               const Draw& draw, Stream stream) {
  if (count < 1 || count > kMostTerms || (target.values == nullptr && target.code == nullptr))
    return cudaErrorInvalidValue;
  if (elems == 0) return 0;
  simt::CombineArgs args{};
  for (int t = 0; t < count; ++t) args.terms[t] = {terms[t].values, terms[t].code};
  args.count = count;
  args.values = target.values;
  args.code = target.code;
  args.residual = target.code != nullptr ? target.residual : nullptr;
  args.elems = elems;
  args.factor = post != nullptr ? static_cast<float>(post->factor) : 1.0f;
  args.scale = post != nullptr;
  args.call = {draw.key, draw.first, codec.keep};
  if (target.code == nullptr) return launch_combine<D, false, false>(args, stream);
  if (target.values == nullptr && args.residual == nullptr) return launch_combine<C, true, false>(args, stream);
  return launch_combine<C, true, true>(args, stream);
}

template <class C, class D>
CodecKernels kernels_of() {
  CodecKernels found;
  found.combine = combine_as<C, D>;
  found.encode = [](const Codec& codec, const float* in, size_t elems, std::byte* code, const Draw& draw,
                    Stream stream) {
    const Term term{in, nullptr};
    return combine_as<C, D>(codec, &term, 1, elems, nullptr, {nullptr, code, nullptr}, draw, stream);
  };
  found.decode = [](const Codec& codec, const std::byte* code, size_t elems, float* out, Stream stream) {
    const Term term{nullptr, code};
    return combine_as<C, D>(codec, &term, 1, elems, nullptr, {out, nullptr, nullptr}, {}, stream);
  };
  found.decode_add = [](const Codec& codec, const std::byte* code, size_t elems, float* sum, Stream stream) {
    const Term both[] = {{sum, nullptr}, {nullptr, code}};
    return combine_as<C, D>(codec, both, 2, elems, nullptr, {sum, nullptr, nullptr}, {}, stream);
  };
  return found;
}

template <class C>
struct Nearest {
  using Type = C;
};
template <class Scale, int kBits, bool kRotate, size_t kAlign>
struct Nearest<simt::PlaneCodec<simt::Format<Scale, simt::IntCode<kBits, true>, kRotate, kAlign>>> {
  using Type = simt::PlaneCodec<simt::Format<Scale, simt::IntCode<kBits, false>, kRotate, kAlign>>;
};

struct FoundCodec {
  CodecKernels* to;
  template <class C>
  void operator()(simt::Tag<C>) const {
    *to = kernels_of<C, typename Nearest<C>::Type>();
  }
};

// One source for each family, so that they compile side by side.
Reducer find_float_reducer(DataType type, ReduceKind kind);
Reducer find_half_reducer(DataType type, ReduceKind kind);
Reducer find_integer_reducer(DataType type, ReduceKind kind);
CodecKernels find_int8_codec(const Codec& codec);
CodecKernels find_int6_codec(const Codec& codec);
CodecKernels find_int5_codec(const Codec& codec);
CodecKernels find_int4_codec(const Codec& codec);
CodecKernels find_float_codec(const Codec& codec);
CodecKernels find_other_codec(const Codec& codec);

}  // namespace ringfold::kernels::cuda
