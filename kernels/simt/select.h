// From run-time descriptions to the types of this folder: calls the visitor with a tag of what was asked for.
#pragma once

#include "kernels/simt/combine.h"
#include "kernels/simt/fold.h"
#include "ringfold/codec.h"
#include "ringfold/types.h"

namespace ringfold::kernels::simt {

template <class T>
struct Tag {
  using Type = T;
};

// visit(Tag<Number>, Tag<Operation>, std::bool_constant<post>), or nothing where the combination has no meaning.
template <class N, class Visit>
void visit_operation(ReduceKind kind, bool complete, Visit visit) {
  switch (kind) {
    case ReduceKind::kSum: return visit(Tag<N>(), Tag<Sum>(), std::false_type());
    case ReduceKind::kProd: return visit(Tag<N>(), Tag<Prod>(), std::false_type());
    case ReduceKind::kMin: return visit(Tag<N>(), Tag<Min>(), std::false_type());
    case ReduceKind::kMax: return visit(Tag<N>(), Tag<Max>(), std::false_type());
    case ReduceKind::kScaledSum:
      if (!kFloating<typename N::Computed>) return;
      [[fallthrough]];
    case ReduceKind::kAvg:
      if (complete) return visit(Tag<N>(), Tag<Sum>(), std::true_type());
      return visit(Tag<N>(), Tag<Sum>(), std::false_type());
  }
}

template <class Visit>
void visit_float(DataType type, ReduceKind kind, bool complete, Visit visit) {
  switch (type) {
    case DataType::kF64: return visit_operation<F64>(kind, complete, visit);
    case DataType::kF32: return visit_operation<F32>(kind, complete, visit);
    default: return;
  }
}
template <class Visit>
void visit_half(DataType type, ReduceKind kind, bool complete, Visit visit) {
  switch (type) {
    case DataType::kF16: return visit_operation<F16>(kind, complete, visit);
    case DataType::kBF16: return visit_operation<BF16>(kind, complete, visit);
    default: return;
  }
}
template <class Visit>
void visit_integer(DataType type, ReduceKind kind, bool complete, Visit visit) {
  switch (type) {
    case DataType::kI8: return visit_operation<Integer<int8_t>>(kind, complete, visit);
    case DataType::kU8: return visit_operation<Integer<uint8_t>>(kind, complete, visit);
    case DataType::kI32: return visit_operation<Integer<int32_t>>(kind, complete, visit);
    case DataType::kU32: return visit_operation<Integer<uint32_t>>(kind, complete, visit);
    case DataType::kI64: return visit_operation<Integer<int64_t>>(kind, complete, visit);
    case DataType::kU64: return visit_operation<Integer<uint64_t>>(kind, complete, visit);
    default: return;
  }
}
template <class Visit>
void visit_reduction(DataType type, ReduceKind kind, bool complete, Visit visit) {
  visit_float(type, kind, complete, visit);
  visit_half(type, kind, complete, visit);
  visit_integer(type, kind, complete, visit);
}

// visit(Tag<codec class>). Decoding does not depend on how a code was rounded: ask for the nearest one there.
template <int kBits, class Visit>
void visit_int(const Codec& codec, Visit visit) {
  const bool random = codec.rounding == Rounding::kStochastic;
  if (codec.rotate) {
    if (random) return visit(Tag<PlaneCodec<IntFormat<kBits, true, true>>>());
    return visit(Tag<PlaneCodec<IntFormat<kBits, false, true>>>());
  }
  if (random) return visit(Tag<PlaneCodec<IntFormat<kBits, true, false>>>());
  return visit(Tag<PlaneCodec<IntFormat<kBits, false, false>>>());
}
template <class Visit>
void visit_small_float(const Codec& codec, Visit visit) {
  switch (codec.kind) {
    case CodecKind::kE4M3: return visit(Tag<PlaneCodec<E4M3Format>>());
    case CodecKind::kE5M2: return visit(Tag<PlaneCodec<E5M2Format>>());
    case CodecKind::kMXFP8: return visit(Tag<PlaneCodec<MXFP8Format>>());
    case CodecKind::kMXFP4: return visit(Tag<PlaneCodec<MXFP4Format>>());
    case CodecKind::kNVFP4: return visit(Tag<PlaneCodec<NVFP4Format>>());
    default: return;
  }
}
template <class Visit>
void visit_other(const Codec& codec, Visit visit) {
  switch (codec.kind) {
    case CodecKind::kF16: return visit(Tag<HalfCodec<F16>>());
    case CodecKind::kBF16: return visit(Tag<HalfCodec<BF16>>());
    case CodecKind::kSign: return visit(Tag<PlaneCodec<SignFormat>>());
    case CodecKind::kTernary: return visit(Tag<PlaneCodec<TernaryFormat>>());
    case CodecKind::kTopK: return visit(Tag<TopCodec>());
    default: return;
  }
}
template <class Visit>
void visit_codec(const Codec& codec, Visit visit) {
  switch (codec.kind) {
    case CodecKind::kInt8: return visit_int<8>(codec, visit);
    case CodecKind::kInt6: return visit_int<6>(codec, visit);
    case CodecKind::kInt5: return visit_int<5>(codec, visit);
    case CodecKind::kInt4: return visit_int<4>(codec, visit);
    default: break;
  }
  visit_small_float(codec, visit);
  visit_other(codec, visit);
}

}  // namespace ringfold::kernels::simt
