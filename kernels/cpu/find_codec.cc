#include "kernels/cpu/find.h"

namespace ringfold::kernels {

CodecKernels find_cpu_codec(const Codec& codec) {
  switch (codec.kind) {
    case CodecKind::kNone: return {};
    case CodecKind::kF16:
    case CodecKind::kBF16: return find_half_codec(codec);
    case CodecKind::kInt8:
    case CodecKind::kInt6:
    case CodecKind::kInt5:
    case CodecKind::kInt4: return find_int_codec(codec);
    case CodecKind::kE4M3:
    case CodecKind::kE5M2:
    case CodecKind::kMXFP8:
    case CodecKind::kMXFP4:
    case CodecKind::kNVFP4: return find_float_codec(codec);
    case CodecKind::kSign:
    case CodecKind::kTernary: return find_bits_codec(codec);
    case CodecKind::kTopK: return find_topk_codec();
  }
  return {};
}

}  // namespace ringfold::kernels
