// The families of CPU reducers and codecs, each for the best instruction set; nulls for what is of another family.
#pragma once

#include "kernels/codec.h"
#include "kernels/reducer.h"

namespace ringfold::kernels {

Reducer find_float_reducer(DataType type, ReduceKind kind);
Reducer find_integer_reducer(DataType type, ReduceKind kind);

CodecKernels find_half_codec(const Codec& codec);
CodecKernels find_int_codec(const Codec& codec);
CodecKernels find_float_codec(const Codec& codec);
CodecKernels find_bits_codec(const Codec& codec);
CodecKernels find_topk_codec();

}  // namespace ringfold::kernels
