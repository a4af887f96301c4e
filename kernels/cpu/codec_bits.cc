// One and two bits: signs, and ternary codes.
#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/codec_bits.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/codec-inl.h"
#include "kernels/cpu/find.h"

HWY_BEFORE_NAMESPACE();
namespace ringfold::kernels {
namespace HWY_NAMESPACE {

constexpr size_t kWide = 128;  // elements of a block

// The sum of 128 numbers >= 0, in an order that suits every width: the upper half is added to the lower one until one
// number is left. Overwrites x.
HWY_INLINE float sum_by_halves(float* x) {
  size_t half = kWide / 2;
  for (; half >= kLanes; half /= 2) {
    for (size_t i = 0; i < half; i += kLanes) {
      hn::Store(hn::Add(hn::Load(Df(), x + i), hn::Load(Df(), x + i + half)), Df(), x + i);
    }
  }
  for (; half != 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) x[i] += x[i + half];
  }
  return x[0];
}

// The nearest finite bf16 of a mean that is not negative, as a number.
inline uint32_t mean_scale(float mean) {
  uint32_t bits;
  std::memcpy(&bits, &mean, 4);
  bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  return bits < 0x80 ? 0 : std::min(bits, 0x7F7Fu);
}

template <int kCodeBits>
struct Wide : BF16Head<kWide> {
  static constexpr int kBits = kCodeBits, kHighBits = 0;
  static constexpr size_t kBlock = kWide;
  static constexpr size_t kBlocks = kGroup / kWide;

  void draw(const Draw&, size_t) const {}
  HWY_INLINE Vu clean(Vu code) const { return code; }
  HWY_INLINE Vu finish(Vu word) const { return word; }
  static HWY_INLINE void read_head(const std::byte* head, float* factors) { read(head, factors); }

 protected:
  // sizes = the magnitudes of a block; the largest of them, as bits.
  static HWY_INLINE uint32_t read_block(const float* x, float* sizes) {
    Vi most = hn::Zero(Di());
    for (size_t i = 0; i < kWide; i += kLanes) {
      const Vu size = magnitude(hn::LoadU(Df(), x + i));
      hn::Store(as_float(size), Df(), sizes + i);
      most = larger(most, hn::BitCast(Di(), size));
    }
    return static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(Di(), most)));
  }
};

struct Sign : Wide<1> {
  static constexpr bool kSigned = false;

  HWY_INLINE void prepare(const float* x, size_t n, Prepared& to, std::byte* head) const {
    uint32_t scales[kBlocks];
    to.finite = true;
    for (size_t b = 0; b < kBlocks; ++b) {
      alignas(64) float sizes[kWide];
      to.largest[b] = read_block(x + b * kWide, sizes);
      const bool finite = to.largest[b] < kInfBits;
      const size_t count = n > b * kWide ? std::min(kWide, n - b * kWide) : 1;
      scales[b] = finite ? mean_scale(sum_by_halves(sizes) / static_cast<float>(count)) : kNanBits >> 16;
      to.by[b] = 0;
      to.finite &= finite;
    }
    write(scales, head);
  }
  HWY_INLINE Vu code(Vf x, Vf, size_t) const { return hn::ShiftRight<31>(as_bits(x)); }
  HWY_INLINE Vf value(Vu code) const { return as_float(hn::Or(set_bits(0x3F800000u), hn::ShiftLeft<31>(code))); }
};

// Elements above 0.7 of the mean magnitude count; the scale is the mean of those. That is the rule of ternary weight
// networks (Li and Liu, 2016), and near the least error for normal and for Laplace distributions.
struct Ternary : Wide<2> {
  static constexpr bool kSigned = true;

  HWY_INLINE void prepare(const float* x, size_t n, Prepared& to, std::byte* head) const {
    uint32_t scales[kBlocks];
    to.finite = true;
    for (size_t b = 0; b < kBlocks; ++b) {
      alignas(64) float sizes[kWide];
      alignas(64) float sums[kWide];
      to.largest[b] = read_block(x + b * kWide, sizes);
      const bool finite = to.largest[b] < kInfBits;
      const size_t count = n > b * kWide ? std::min(kWide, n - b * kWide) : 1;
      std::memcpy(sums, sizes, sizeof(sums));
      const float threshold = finite ? sum_by_halves(sums) / static_cast<float>(count) * 0.7f : 0;
      size_t counted = 0;
      for (size_t i = 0; i < kWide; i += kLanes) {
        const Vf size = hn::Load(Df(), sizes + i);
        const auto counts = hn::Gt(size, set_float(threshold));
        counted += hn::CountTrue(Df(), counts);
        hn::Store(hn::IfThenElseZero(counts, size), Df(), sums + i);
      }
      const float mean = sum_by_halves(sums) / static_cast<float>(std::max<size_t>(counted, 1));
      scales[b] = finite ? mean_scale(mean) : kNanBits >> 16;
      to.by[b] = threshold;
      to.finite &= finite;
    }
    write(scales, head);
  }
  HWY_INLINE Vu code(Vf x, Vf threshold, size_t) const {
    const Vu sign = hn::ShiftLeft<1>(hn::ShiftRight<31>(as_bits(x)));
    const Vu counts = hn::VecFromMask(Du(), hn::RebindMask(Du(), hn::Gt(as_float(magnitude(x)), threshold)));
    return hn::And(hn::Or(sign, set_bits(1)), counts);
  }
  HWY_INLINE Vf value(Vu code) const { return hn::ConvertTo(Df(), hn::BitCast(Di(), code)); }
};

CodecKernels find_bits_codec_here(const Codec& codec) {
  return codec.kind == CodecKind::kSign ? codec_of<Sign>() : codec_of<Ternary>();
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace ringfold::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ringfold::kernels {

HWY_EXPORT(find_bits_codec_here);

CodecKernels find_bits_codec(const Codec& codec) { return HWY_DYNAMIC_DISPATCH(find_bits_codec_here)(codec); }

}  // namespace ringfold::kernels
#endif
